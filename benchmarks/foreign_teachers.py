"""Boosted trees teach a small network: LightGBM on the adult census, through ``from_callable`` and ``label``.

The settings of the trees and of the network were chosen on rows held out from training. The student learns the trees'
predictions for the training rows and for mixtures of them, which take some columns from another row and need no label.
Both are evaluated on the publisher's test rows. Latency is measured with one thread: LiteRT compared with LightGBM's
own predictor and its scikit-learn interface.
"""

from __future__ import annotations

import functools
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _harness

# isort: split
import keras
import numpy as np
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, export, teachers

CLAIM = "A network with about 20,000 parameters agrees with boosted trees, at a tenth of their latency."
DATA = _harness.ROOT.parent / "shared" / "data" / "adult_census"
NUMBERS = (0, 2, 4, 10, 11, 12)


def census() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], list[int]]:
    """Read both files; categories become indices in the order of the training rows, unknown ones 0."""
    parts = []
    for name in ("adult.data.xz", "adult.test.xz"):
        lines = lzma.decompress((DATA / name).read_bytes()).decode().splitlines()
        rows = [[cell.strip(" .") for cell in line.split(",")] for line in lines if line.count(",") == 14]
        parts.append(np.array(rows))
    train = parts[0]
    sizes, columns = [], ([], [])
    for column in range(14):
        if column in NUMBERS:
            sizes.append(0)
            found = [part[:, column].astype("float32") for part in parts]
        else:
            known = {value: index for index, value in enumerate(sorted(set(train[:, column])))}
            sizes.append(len(known))
            found = [np.array([known.get(value, 0) for value in part[:, column]], "float32") for part in parts]
        for side, values in zip(columns, found, strict=True):
            side.append(values)
    x, y = [np.stack(side, 1) for side in columns], [(part[:, 14] == ">50K").astype("int32") for part in parts]
    return (x[0], y[0]), (x[1], y[1]), sizes


def network(x: np.ndarray, sizes: list[int], width: int) -> keras.Model:
    """Numbers as 49 quantile steps and logarithms, categories one-hot, two hidden layers."""
    inputs, parts = keras.Input((14,)), []
    for column, size in enumerate(sizes):
        each = inputs[:, column : column + 1]
        if size:
            parts.append(keras.ops.cast(keras.ops.equal(each, np.arange(size, dtype="float32")), "float32"))
        else:
            # Quantiles of distinct values: most people have no capital gains, and the trees split the others finely.
            steps = np.unique(np.quantile(np.unique(x[:, column]), np.linspace(0.0, 1.0, 50)[:-1]).astype("float32"))
            parts.append(keras.ops.cast(each > steps, "float32"))
            logs = np.log1p(x[:, column])
            parts.append((keras.ops.log(each + 1.0) - float(logs.mean())) / float(logs.std()))
    h = keras.layers.Concatenate()(parts)
    for units in (width, width):
        h = keras.layers.Dense(units, activation="relu")(h)
    return keras.Model(inputs, keras.layers.Dense(2)(h))


def mixtures(x: np.ndarray, copies: int, seed: int) -> np.ndarray:
    """Rows in which each column is replaced by that of another row with probability 0.15."""
    rng, made = np.random.default_rng(seed), [x]
    for _ in range(copies):
        other = x[rng.permutation(len(x))]
        made.append(np.where(rng.uniform(size=x.shape) < 0.15, other, x))
    return np.concatenate(made).astype("float32")


def distilled(teacher: teachers.Foreign, rows: np.ndarray, student: keras.Model, epochs: int) -> None:
    """Label once, train on the store."""
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices(rows).batch(1024).with_options(options)
    with tempfile.TemporaryDirectory() as folder:
        stored = teachers.label(teacher, dataset, folder, dtype="float32", progress=False)
        steps = -(-len(rows) // 256)
        train = stored.attach(dataset).unbatch().cache().shuffle(len(rows), seed=0).batch(256)
        distiller = Distiller(stored, student, LogitsDistillation(temperature=1.0), student_loss_weight=0.0)
        rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * steps)
        distiller.compile(keras.optimizers.Adam(rate), jit_compile=False)
        distiller.fit(train.with_options(options), epochs=epochs, verbose=0)


def main() -> None:
    """Train and evaluate."""
    import lightgbm
    from ai_edge_litert.interpreter import Interpreter

    options = _harness.arguments(__doc__, seeds={"type": int, "default": 2}, held_out={"action": "store_true"})
    report = _harness.Report("foreign_teachers", CLAIM, options)
    train, test, sizes = census()
    if options.held_out:  # to choose settings, the last fifth of the training rows replaces the test rows
        cut = len(train[0]) * 4 // 5
        train, test = (train[0][:cut], train[1][:cut]), (train[0][cut:], train[1][cut:])
    epochs, copies = (10, 6) if options.full else (2, 1)
    rows, runs = mixtures(train[0], copies, 0), []
    for seed in range(options.seeds):
        keras.utils.set_random_seed(seed)
        trees = lightgbm.LGBMClassifier(
            n_estimators=200, learning_rate=0.06, num_leaves=20, verbose=-1, n_jobs=1, random_state=seed
        ).fit(train[0], train[1], categorical_feature=[i for i, size in enumerate(sizes) if size])
        teacher = teachers.from_callable(trees.predict_proba, activation="softmax")
        student = network(train[0], sizes, 64)
        distilled(teacher, rows, student, epochs)
        said = trees.predict_proba(test[0]).argmax(1), student.predict(test[0], batch_size=2048, verbose=0).argmax(1)
        run = {"trees": float(np.mean(said[0] == test[1])), "student": float(np.mean(said[1] == test[1]))}
        run["agreement"] = float(np.mean(said[0] == said[1]))
        runs.append(run)
        report.add({"seed": seed, "parameters": student.count_params()}, run)
    with tempfile.TemporaryDirectory() as folder:
        export.litert(student, Path(folder) / "student.tflite", check_inputs=train[0][:64])
        file = next(Path(folder).rglob("*.tflite"))
        interpreter = Interpreter(str(file), num_threads=1)
    runner = interpreter.get_signature_runner()
    name = next(iter(runner.get_input_details()))

    def by(call: Callable[[], Any], times: int) -> Callable[[], int]:
        def run() -> int:
            for _ in range(times):
                call()
            return times

        return run

    ratios = {}
    for count, times in ((1, 200), (256, 20)):
        some = test[0][:count]
        programs = {
            "predict_proba": by(functools.partial(trees.predict_proba, some), times),
            "Booster.predict": by(functools.partial(trees.booster_.predict, some, num_threads=1), times),
            "student": by(functools.partial(runner, **{name: some}), times),
        }
        samples = _harness.paired(programs, rounds=11)
        report.add({"seconds for rows": count}, {kind: samples.seconds(kind).median for kind in programs})
        for kind in ("predict_proba", "Booster.predict"):
            ratios[count, kind] = samples.ratio("student", kind).median
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    report.verdict("points of accuracy lost to the trees", 100 * (mean["trees"] - mean["student"]), at_most=0.5)
    report.verdict("agreement with the trees, %", 100 * mean["agreement"], at_least=95.0)
    report.verdict("latency for 1 row over predict_proba's", ratios[1, "predict_proba"], at_most=0.1)
    report.verdict("latency for 1 row over Booster.predict's", ratios[1, "Booster.predict"], at_most=0.1)
    report.verdict("latency for 256 rows over Booster.predict's", ratios[256, "Booster.predict"], at_most=0.1)
    report.write()


if __name__ == "__main__":
    main()
