"""Label once, train from the store: no teacher forward pass in training, and five classes are enough (FKD).

Compared over several seeds: a student alone, with the live teacher, with a dense float16 store and with the top 5
classes. ``--dataset clinc_oos`` does it for 150 intents of short texts.

Run: ``python examples/stored_teacher.py`` (about 10 minutes on 2 cores; ``--smoke`` for less than one).
Expected: live, dense and top 5 within 0.3 points of each other; an epoch as fast as the student's alone.
"""

import argparse
import json
import pathlib
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_distill
from keras_distill import data, teachers


def for_images(loaded: data.Data) -> tuple[keras.Model, keras.Model]:
    """A teacher and a small student."""
    shape, classes = loaded.train.inputs.shape[1:], loaded.num_classes
    teacher = [layers.Conv2D(32, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
               layers.Conv2D(64, 3, padding="same", activation="relu"), layers.MaxPooling2D(),
               layers.Dropout(0.4), layers.Flatten(), layers.Dense(128, "relu")]  # fmt: skip
    student = [layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
               layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"), layers.Flatten()]  # fmt: skip
    return tuple(keras.Sequential([keras.Input(shape), *body, layers.Dense(classes)]) for body in (teacher, student))


def for_texts(loaded: data.Data) -> tuple[keras.Model, keras.Model]:
    """A teacher over word pairs and a student over words, on integer word ids."""

    def network(width: int, convolution: bool) -> keras.Model:
        ids = keras.Input((24,), dtype="int32")
        words = layers.Embedding(4000, width)(ids)
        if convolution:
            words = layers.Conv1D(256, 2, activation="relu")(layers.Dropout(0.3)(words))
        pooled = layers.GlobalMaxPooling1D()(words)
        return keras.Model(ids, layers.Dense(loaded.num_classes)(layers.Dropout(0.3 if convolution else 0.0)(pooled)))

    return network(128, True), network(24, False)


def prepare(name: str, count: int) -> tuple[data.Data, data.Examples, data.Examples]:
    """Load the data; texts become word ids."""
    loaded = data.load(name)
    train, test = loaded.train.take(count), loaded.test
    if train.inputs.dtype.kind in "OU":
        to_ids = layers.TextVectorization(4000, output_sequence_length=24)
        to_ids.adapt(train.inputs.tolist())
        train, test = (
            data.Examples(to_ids(e.inputs.tolist()).numpy().astype("int32"), e.labels) for e in (train, test)
        )
    return loaded, train, test


def main() -> None:
    """Train a teacher, store its predictions in two ways, train students, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--out", type=pathlib.Path, help="also write the table here, as JSON")
    options = parser.parse_args()
    name, count, teacher_epochs, epochs, seeds = (
        ("digits", 384, 2, 2, 1) if options.smoke else (options.dataset, 10000, 8, 10, 3)
    )
    loaded, train, test = prepare(name, count)
    make = for_texts if train.inputs.ndim == 2 else for_images
    keras.utils.set_random_seed(0)
    teacher = make(loaded)[0]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile("adam", loss)
    teacher.fit(train.dataset(64, shuffle_seed=0), epochs=teacher_epochs, verbose=0)

    def accuracy(model: keras.Model) -> float:
        return 100.0 * float(np.mean(model.predict(test.inputs, batch_size=512, verbose=0).argmax(-1) == test.labels))

    in_order = tf.data.Dataset.from_tensor_slices((train.inputs, train.labels))
    dense = teachers.label(teacher, in_order.batch(128), tempfile.mkdtemp(), progress=False)
    top_5 = teachers.label(teacher, in_order.batch(128), tempfile.mkdtemp(), top_k=5, progress=False)
    print(f"{name}: teacher {accuracy(teacher):.2f}%; {dense.bytes_per_example} bytes per example dense, "
          f"{top_5.bytes_per_example} for the top 5")  # fmt: skip
    table: dict[str, list[float]] = {}
    for title, chosen in {"alone": None, "live": teacher, "dense": dense, "top 5": top_5}.items():
        table[title], spent = [], []
        for seed in range(seeds):
            keras.utils.set_random_seed(seed)
            student = make(loaded)[1]
            trained, batches = student, in_order
            if chosen is not None:
                term = keras_distill.LogitsDistillation(temperature=options.temperature)
                trained = keras_distill.Distiller(chosen, student, term, student_loss_weight=0.1)
            if isinstance(chosen, teachers.Stored):
                batches = chosen.attach(in_order)
            trained.compile(keras.optimizers.Adam(2e-3), loss)
            started = time.process_time()
            trained.fit(batches.shuffle(count, seed=seed).batch(64).prefetch(2), epochs=epochs, verbose=0)
            spent.append((time.process_time() - started) / epochs)
            table[title].append(accuracy(student))
        found = table[title]
        print(
            f"student {title:8} {np.mean(found):6.2f} +- {np.std(found):.2f}   {np.median(spent):.1f} CPU s/epoch",
            flush=True,
        )
    gap = np.mean(table["top 5"]) - np.mean(table["dense"])
    print(f"top 5 against dense: {gap:+.2f} points")
    if options.out:
        facts = {"dataset": name, "temperature": options.temperature, "bytes": [dense.bytes_per_example,
                 top_5.bytes_per_example], "accuracy": table, "top_5_minus_dense": gap}  # fmt: skip
        options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
