"""The loss in accuracy if a teacher's predictions are stored as the top 5 classes instead of all of them.

Fashion-MNIST (10 classes, 6,000 of the training images) and CLINC (150 intents): one teacher per data set is stored
twice, dense float16 and top 5; from each store students of the same seeds are trained, the same weights and the same
order of examples, at temperature 1, where the top 5 have nearly all of the mass, and at 4. The top 5 are used in two
ways: as returned by the store, with the remaining mass spread evenly over the other classes, and with the others
ignored. The test accuracy is compared, paired by seed. Run with
``python -m benchmarks.top_k_quality --full`` (about 6 minutes on one core).
"""

from __future__ import annotations

import statistics
import tempfile

from benchmarks import _harness

# isort: split
import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_distill import Distiller, LogitsDistillation, data, losses, teachers

CLAIM = "Students of a teacher stored as its top 5 classes are within 0.3 points of students of the dense store."
# How it is stored, and the loss: a store of the top 5 spreads the remaining mass evenly over the others.
WAYS: dict[str, tuple[int | None, losses.LogitsLoss]] = {
    "dense": (None, losses.SoftTargets()),
    "top 5": (5, losses.SoftTargets()),
    "top 5, the rest ignored": (5, losses.TopKSoftTargets(5, missing="ignore")),
}
TEMPERATURES = (1.0, 4.0)
VOCABULARY, WORDS = 4000, 20


def pictures(count: int) -> tuple[data.Examples, data.Examples, keras.Model, keras.Model]:
    """Load Fashion-MNIST and build a teacher and a student for it."""
    loaded = data.load("fashion_mnist")

    def network(*filters: int) -> keras.Model:
        blocks: list[layers.Layer] = [keras.Input((28, 28, 1))]
        for width in filters:
            blocks += [layers.Conv2D(width, 3, padding="same", activation="relu"), layers.MaxPooling2D()]
        return keras.Sequential([*blocks, layers.Flatten(), layers.Dropout(0.3), layers.Dense(10)])

    return loaded.train.take(count), loaded.test, network(24, 48), network(4, 8)


def intents(count: int) -> tuple[data.Examples, data.Examples, keras.Model, keras.Model]:
    """Load CLINC as padded sequences of word ids, and build a teacher and a student for it."""
    loaded = data.load("clinc_oos")
    words = layers.TextVectorization(VOCABULARY, output_sequence_length=WORDS)
    words.adapt(loaded.train.inputs)

    def numbered(examples: data.Examples) -> data.Examples:
        return data.Examples(np.asarray(words(examples.inputs), "int32"), examples.labels)

    tokens = keras.Input((WORDS,), dtype="int32")
    x = layers.Conv1D(128, 3, padding="same", activation="relu")(layers.Embedding(VOCABULARY, 96)(tokens))
    x = layers.Dropout(0.5)(layers.GlobalMaxPooling1D()(x))
    teacher = keras.Model(tokens, layers.Dense(150)(x))
    x = layers.GlobalAveragePooling1D()(layers.Embedding(VOCABULARY, 16, mask_zero=True)(tokens))
    student = keras.Model(tokens, layers.Dense(150)(x))
    return numbered(loaded.train.take(count)), numbered(loaded.test), teacher, student


def accuracy(model: keras.Model, examples: data.Examples) -> float:
    """In percent."""
    logits = model.predict(examples.inputs, batch_size=500, verbose=0)
    return 100.0 * float(np.mean(np.argmax(logits, -1) == examples.labels))


def run(report: _harness.Report, name: str, task: tuple, epochs: tuple[int, int], seeds: int) -> None:
    """Train the teacher, store it both ways, train the students, compare."""
    train, test, teacher, student = task
    supervised = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(keras.optimizers.Adam(2e-3), supervised)
    teacher.fit(train.inputs, train.labels, batch_size=64, epochs=epochs[0], verbose=0)
    report.add(
        {"data": name, "model": "teacher"}, {"examples": len(train), "accuracy": round(accuracy(teacher, test), 2)}
    )
    calm = tf.data.Options()
    calm.autotune.enabled = False
    in_order = tf.data.Dataset.from_tensor_slices((train.inputs, train.labels)).with_options(calm)
    stored = {
        top_k: teachers.label(teacher, in_order.batch(500), tempfile.mkdtemp(), top_k=top_k, progress=False)
        for top_k in (None, 5)
    }
    for temperature in TEMPERATURES:
        scores: dict[str, list[float]] = {way: [] for way in WAYS}
        for way, (top_k, loss) in WAYS.items():
            source = stored[top_k]
            for seed in range(seeds):
                keras.utils.set_random_seed(seed)
                model = keras.models.clone_model(student)
                term = LogitsDistillation(loss=loss, temperature=temperature)
                distiller = Distiller(source, model, term, student_loss_weight=0.1)
                distiller.compile(keras.optimizers.Adam(5e-3), supervised)
                examples = source.attach(in_order.batch(500)).unbatch().cache()
                batches = examples.shuffle(len(train), seed=seed).batch(64).prefetch(2)
                distiller.fit(batches, epochs=epochs[1], verbose=0)
                scores[way].append(round(accuracy(model, test), 2))
            lost = [dense - kept for dense, kept in zip(scores["dense"], scores[way], strict=True)]
            figures = {
                "bytes_per_example": source.bytes_per_example,
                "accuracy": scores[way],
                "mean": round(statistics.mean(scores[way]), 2),
                "lost_by_seed": [round(each, 2) for each in lost],
            }
            report.add({"data": name, "temperature": temperature, "stored": way}, figures)
            if way != "dense":
                target = f"{name}, temperature {temperature:g}: points lost by {way}, mean of {seeds} seeds"
                report.verdict(target, statistics.mean(lost), at_most=0.3)


def main() -> None:
    """Run both data sets."""
    options = _harness.arguments(
        __doc__ or "", data=dict(choices=["fashion_mnist", "clinc_oos", "both"], default="both")
    )
    report = _harness.Report("top_k_quality", CLAIM, options)
    few = not options.full
    if options.data != "clinc_oos":
        keras.utils.set_random_seed(0)
        run(report, "fashion_mnist", pictures(1000 if few else 6_000), (2, 2) if few else (6, 12), 1 if few else 3)
    if options.data != "fashion_mnist":
        keras.utils.set_random_seed(0)
        run(report, "clinc_oos", intents(3000 if few else 15_000), (4, 6) if few else (8, 15), 1 if few else 3)
    report.write()


if __name__ == "__main__":
    main()
