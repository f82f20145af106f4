"""Five teachers of different architectures teach one small student; all ways to combine them are compared.

The teachers run once: the predictions of all members are stored, and every rule is tried from the store. Run (10
minutes on an idle core; ``--smoke``: less than one): ``python examples/many_teachers.py``. % of the Fashion-MNIST test
set, 3 seeds, 2026-11-21; teachers were trained on 10,000 images, students on 4,000: mlp 84.3, convolutions 86.5,
separable 79.0, recurrent 82.5, mixer 82.8, together 85.6. Student alone 82.7 ± 1.2; of one teacher, in that order: 81.9
± 0.4, 83.4 ± 0.1, 78.1 ± 0.3, 81.4 ± 0.1, 80.8 ± 0.1; of all: fixed weights 82.7 ± 0.1, entropy 82.5 ± 0.1, mean_logits
82.5 ± 0.1, confidence 82.4 ± 0.2, mean_loss and mean_probs 82.3, uncertainty 81.8 ± 0.2, gradient 81.4 ± 0.3, gate 81.4
± 0.1, stochastic 80.6 ± 0.7. No rule beats the best single teacher's student: choose the best of unequal teachers.
"""

import argparse
import json
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_distill
from keras_distill import data, teachers

RULES = ("mean_probs", "mean_logits", "mean_loss", "entropy", "confidence", "gradient", "learned_gate", "stochastic")


def make_teacher(family: str, shape: tuple[int, ...], classes: int) -> keras.Model:
    """Build one of five architectures."""
    x = keras.Input(shape)
    if family == "mlp":
        y = layers.Flatten()(x)
        for _ in range(2):
            y = layers.Dropout(0.3)(layers.Dense(256, "relu")(y))
    elif family == "convolutions":
        y = layers.MaxPooling2D()(layers.Conv2D(32, 3, padding="same", activation="relu")(x))
        y = layers.MaxPooling2D()(layers.Conv2D(64, 3, padding="same", activation="relu")(y))
        y = layers.Dropout(0.4)(layers.Flatten()(y))
    elif family == "separable":
        y = layers.Conv2D(24, 3, strides=2, padding="same", activation="relu")(x)
        for width in (48, 96):
            y = layers.BatchNormalization()(layers.SeparableConv2D(width, 3, padding="same", activation="relu")(y))
        y = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(y))
    elif family == "recurrent":
        rows = layers.Reshape((shape[0], shape[1] * shape[2]))(x)
        y = layers.Dropout(0.2)(layers.Bidirectional(layers.GRU(64))(rows))
    else:  # an MLP-mixer over patches
        y = layers.Conv2D(64, shape[0] // 7 or 1, strides=shape[0] // 7 or 1)(x)
        y = layers.Reshape((-1, 64))(y)
        for _ in range(2):
            across = layers.Permute((2, 1))(layers.LayerNormalization()(y))
            y = y + layers.Permute((2, 1))(layers.Dense(y.shape[1], "gelu")(across))
            y = y + layers.Dense(64)(layers.Dense(128, "gelu")(layers.LayerNormalization()(y)))
        y = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(y))
    return keras.Model(x, layers.Dense(classes)(y), name=family)


def make_student(shape: tuple[int, ...], classes: int) -> keras.Model:
    """A very small convolutional network."""
    return keras.Sequential([
        keras.Input(shape),
        layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
        layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
        layers.Flatten(),
        layers.Dense(classes),
    ])  # fmt: skip


def cross_entropy() -> keras.losses.Loss:
    """Accuracy from logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def accuracy(model: keras.Model, examples: data.Examples) -> float:
    """In percent."""
    logits = model.predict(examples.inputs, batch_size=512, verbose=0)
    return 100.0 * float(np.mean(np.argmax(logits, -1) == examples.labels))


def main() -> None:
    """Train the teachers, store their predictions, train a student for each rule and seed, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--out", type=pathlib.Path, help="also write the table here, as JSON")
    options = parser.parse_args()
    name, many, few, teacher_epochs, epochs, seeds = (
        ("digits", 640, 320, 2, 2, 1) if options.smoke else (options.dataset, 10_000, 4_000, 6, 12, 3)
    )
    loaded = data.load(name)
    train, test, shape = loaded.train.take(few), loaded.test, loaded.train.inputs.shape[1:]

    rules = ("confidence",) if options.smoke else RULES
    keras.utils.set_random_seed(0)
    families = ("mlp", "convolutions", "separable", "recurrent", "mixer")[: 2 if options.smoke else 5]
    members = [make_teacher(family, shape, loaded.num_classes) for family in families]
    table = {}
    for member in members:
        member.compile("adam", cross_entropy())
        member.fit(loaded.train.take(many).dataset(64, shuffle_seed=0), epochs=teacher_epochs, verbose=0)
        table[f"teacher {member.name}"] = [accuracy(member, test)]
    table["teachers together"] = [accuracy(teachers.Ensemble(members), test)]

    in_order = tf.data.Dataset.from_tensor_slices((train.inputs, train.labels)).batch(80)

    def stored(teacher: teachers.Teacher) -> teachers.Stored:
        return teachers.label(teacher, in_order, tempfile.mkdtemp(), dtype="float32", progress=False)

    store = stored(teachers.Ensemble(members))

    def student(teacher: teachers.Teacher | None, seed: int) -> float:
        keras.utils.set_random_seed(seed)
        model = make_student(shape, loaded.num_classes)
        trained = model
        if teacher is not None:
            term = keras_distill.LogitsDistillation(temperature=4.0)
            trained = keras_distill.Distiller(teacher, model, term, student_loss_weight=0.1)
        trained.compile(keras.optimizers.Adam(2e-3), cross_entropy())
        examples = (in_order if teacher is None else teacher.attach(in_order)).unbatch().cache()
        trained.fit(examples.shuffle(few, seed=seed).batch(64).prefetch(2), epochs=epochs, verbose=0)
        return accuracy(model, test)

    def row(title: str, teacher: teachers.Teacher | None) -> None:
        table[title] = [student(teacher, seed) for seed in range(seeds)]
        print(f"{title:32} {np.mean(table[title]):6.2f} +- {np.std(table[title]):.2f}", flush=True)

    for title, (value,) in table.items():
        print(f"{title:32} {value:6.2f}")
    row("student alone", None)
    for number, member in enumerate(members):
        only = [float(m == number) for m in range(len(members))]
        row(f"student of {member.name}", teachers.Stored(store.directory, combine=teachers.MeanProbs(only)))
    best = max(np.mean(table[f"student of {member.name}"]) for member in members)
    for rule in rules:
        row(f"student of all, {rule}", teachers.Stored(store.directory, combine=rule))
    errors = [100.0 - accuracy(member, loaded.validation) for member in members]
    fixed = teachers.MeanProbs([1.0 / error**2 for error in errors])
    row("student of all, fixed weights", teachers.Stored(store.directory, combine=fixed))
    unsure = [teachers.MonteCarloDropout(member, 8) for member in members]
    row("student of all, uncertainty", stored(teachers.Ensemble(unsure, combine="uncertainty")))
    won = [
        title[16:] for title, scores in table.items() if title.startswith("student of all") and np.mean(scores) > best
    ]
    print(f"better than the best single teacher's student ({best:.2f}): {', '.join(won) or 'none'}")
    if options.out:
        options.out.write_text(json.dumps({"dataset": name, "examples": few, "accuracy": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
