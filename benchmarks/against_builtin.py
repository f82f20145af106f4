"""The distiller compared with ``keras.distillation`` in one run: epoch time, peak memory and final accuracy.

Every program starts from the same student's weights and sees the same images in the same order. In each round each of
them trains one epoch; after the last round the test accuracies are compared. The built-in's loss is tested in two
forms: its default, a function, for which it skips softmax and temperature (see the README's table), and an object.
Steps alone are timed in ``step_time.py``; a stored teacher of 10 times the student's cost in ``stored_teacher.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks import _harness, step_time

# isort: split
import keras
import numpy as np
import tensorflow as tf

import keras_distill
from keras_distill import data, teachers

CLAIM = "An epoch is never longer than with keras.distillation, at most 0.75 of it with features, and no less accurate."
TEMPERATURE = 4.0
BATCH = 128


def pipeline(images: np.ndarray, labels: np.ndarray) -> tf.data.Dataset:
    """Batches in a fixed order."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH).with_options(options)


def contestants(teacher: keras.Model, original: keras.Model, train: tf.data.Dataset) -> dict[str, Any]:
    """Return name to (compiled model, its data)."""
    stored = teachers.label(teacher, train, tempfile.mkdtemp(), dtype="float32", progress=False)

    def made(package: Any, heard: Any, loss: Any, features: bool) -> keras.Model:
        student = keras.models.clone_model(original)
        student.set_weights(original.get_weights())
        terms = [package.LogitsDistillation(temperature=TEMPERATURE, loss=loss)]
        if features:
            terms.append(package.FeatureDistillation("mse", "hidden_2", "hidden_2"))
        model = package.Distiller(heard, student, terms, student_loss_weight=0.1)
        hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), hard)
        return model

    builtin, kl = keras.distillation, keras.losses.KLDivergence()
    return {
        "ours, logits": (made(keras_distill, teacher, "kl_divergence", False), train),
        "built-in, logits": (made(builtin, teacher, kl, False), train),
        "built-in, its default": (made(builtin, teacher, "kl_divergence", False), train),
        "ours, features": (made(keras_distill, teacher, "kl_divergence", True), train),
        "built-in, features": (made(builtin, teacher, kl, True), train),
        "ours, stored": (made(keras_distill, stored, "kl_divergence", False), stored.attach(train)),
    }


def epoch_of(model: keras.Model, batches: tf.data.Dataset) -> Callable[[], int]:
    """One epoch of ``fit``."""

    def run() -> int:
        model.fit(batches, epochs=1, verbose=0)
        return 1

    return run


def peak_mib(package: str, terms: str) -> float:
    """Peak resident memory of a process that trains the convolutional pair, by ``benchmarks.memory``."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", "--body", package, "cnn", terms, "512", "off"]
    run = subprocess.run(command, cwd=_harness.ROOT, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])["peak"] / 2**20


def main() -> None:
    """Train all programs in alternation."""
    options = _harness.arguments(
        __doc__,
        rounds={"type": int, "help": "epochs of each, after two that are not timed (default 3, full 10)"},
        images={"type": int, "help": "of MNIST (default 2000, full 10,000)"},
    )
    report = _harness.Report("against_builtin", CLAIM, options)
    count, rounds = options.images or (10_000 if options.full else 2000), options.rounds or (10 if options.full else 3)
    mnist = data.load("mnist")
    x, y = mnist.train.inputs[:count].reshape(-1, 784), mnist.train.labels[:count].astype("int32")
    keras.utils.set_random_seed(0)
    teacher, student = step_time.mlp([1200, 1200], "teacher"), step_time.mlp([400, 1200], "student")
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(keras.optimizers.Adam(1e-3), hard)
    teacher.fit(x, y, batch_size=BATCH, epochs=4, verbose=0)
    everybody = contestants(teacher, student, pipeline(x, y))
    samples = _harness.paired({name: epoch_of(*each) for name, each in everybody.items()}, rounds=rounds)
    test_x, test_y = mnist.test.inputs.reshape(-1, 784), mnist.test.labels

    def accuracy(model: keras.Model) -> float:
        return float(np.mean(np.argmax(model.predict(test_x, batch_size=1000, verbose=0), -1) == test_y))

    found = {name: accuracy(model.student) for name, (model, _) in everybody.items()}
    report.add({"teacher": accuracy(teacher)}, {"epochs_of_each": rounds + 2, "images": count})
    for name in everybody:
        seconds = samples.seconds(name).median
        against = "built-in, features" if "features" in name else "built-in, logits"
        ratio = "" if name == against else str(samples.ratio(name, against))
        report.add({"who": name}, {"epoch_seconds": seconds, f"over {against}": ratio, "accuracy": found[name]})
    for terms in ("logits", "logits and layer") if options.full else ():  # else memory.py measures it
        peaks = {who: peak_mib(who, terms) for who in ("ours", "builtin")}
        report.add({"peak memory, MiB": terms}, peaks)
        report.verdict(f"peak memory, ours / built-in, {terms}", peaks["ours"] / peaks["builtin"], at_most=1.01)
    for terms, bound in (("logits", 1.0), ("features", 0.75)):
        ratio = samples.ratio(f"ours, {terms}", f"built-in, {terms}").median
        report.verdict(f"epoch time, ours / built-in, {terms}", ratio, at_most=bound)
    gain = found["ours, logits"] - found["built-in, its default"]
    report.verdict("accuracy, ours - the built-in's default loss, in points", 100 * gain, at_least=0.0)
    report.write()


if __name__ == "__main__":
    main()
