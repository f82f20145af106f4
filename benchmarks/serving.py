"""Latency, size and accuracy of a distilled student in Keras, TensorFlow's C API, LiteRT, ONNX Runtime and OpenVINO.

For Fashion-MNIST and CIFAR-10 (the JPEG-recompressed copy, so not comparable with published accuracies) a small
student is distilled from a larger teacher, exported in every format and run on the whole test set in the format's own
runtime: size on disk, accuracy, calibration error, and milliseconds per call at batch 1 and 32. The runtimes are called
alternately in random order, so that other load on the machine slows all of them; all compute on one thread. The C API
is timed inside the serving process, Keras is ``predict_on_batch``. Training takes long and can run on a busy machine;
timing takes a minute and should not. ``--models FOLDER --prepare`` runs only the training, the same without
``--prepare`` the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks import _harness  # before keras: it sets TensorFlow's environment variables

os.environ.update(TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")  # inherited by the serving process
import keras  # isort: skip
import numpy as np

from keras_distill import Distiller, LogitsDistillation, data, export
from keras_distill.export._runtimes import open_runtime, percentiles

DATA = {"fashion_mnist": "Fashion-MNIST", "cifar10_jpeg": "CIFAR-10 (JPEG copy)"}
BATCHES = (1, 32)


def network(shape: tuple[int, ...], widths: tuple[int, ...], name: str) -> keras.Sequential:
    """A plain convolutional classifier with 10 logits."""
    layers: list[keras.layers.Layer] = [keras.Input(shape, name="pixels")]
    for width in widths:
        layers += [
            keras.layers.Conv2D(width, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10)], name=name)


def distil(train: tuple[np.ndarray, np.ndarray], epochs: int) -> keras.Model:
    """Train a teacher, then a student from it."""
    x, y = train
    supervised = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher = network(x.shape[1:], (32, 64, 64), "teacher")
    teacher.compile(keras.optimizers.Adam(2e-3), supervised)
    teacher.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    student = network(x.shape[1:], (8, 16), "student")
    distiller = Distiller(teacher, student, LogitsDistillation(temperature=4.0), student_loss_weight=0.1)
    distiller.compile(keras.optimizers.Adam(3e-3), supervised)
    distiller.fit(x, y, batch_size=128, epochs=epochs, verbose=0)
    return student


def timed(programs: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Call every program once per round in a random order; each returns the seconds of one call."""
    order = random.Random(0)
    for run in programs.values():
        for _ in range(5):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        names = list(programs)
        order.shuffle(names)
        for name in names:
            seconds[name].append(programs[name]())
    return {name: percentiles(values) for name, values in seconds.items()}


def stopwatch(run: Callable[[], Any]) -> Callable[[], float]:
    """Make a function that returns how long one call took."""

    def measure() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return measure


def prepare(name: str, options: argparse.Namespace, folder: pathlib.Path) -> None:
    """Train a student of one data set and export it in every format; ``exports.json`` comes last."""
    keras.utils.set_random_seed(0)
    loaded = data.load(name)
    limit = None if options.full else options.examples
    train = (loaded.train.inputs[:limit], loaded.train.labels[:limit])
    student = distil(train, epochs=options.epochs)
    folder.mkdir(parents=True, exist_ok=True)
    check: dict[str, Any] = dict(check_inputs=loaded.test.inputs, check_labels=loaded.test.labels)
    edge = {**check, "latency_batch_sizes": ()}
    exports = {
        "SavedModel, C API": export.saved_model(student, folder / "served", **check),
        "LiteRT float32": export.litert(student, folder / "float32.tflite", **edge),
        "LiteRT float16": export.litert(student, folder / "float16.tflite", "float16", **edge),
        "LiteRT dynamic": export.litert(student, folder / "dynamic.tflite", "dynamic", **edge),
        "LiteRT int8": export.litert(
            student, folder / "int8.tflite", "int8", representative_data=train[0][:500], **edge
        ),
        "ONNX Runtime": export.onnx(student, folder / "student.onnx", **edge),
        "OpenVINO": export.openvino(student, folder / "student.xml", **edge),
    }
    student.save(folder / "student.keras")
    first = exports["SavedModel, C API"]
    keras_row = dataclasses.replace(
        first,
        path=folder / "student.keras",
        format="keras",
        accuracy=first.student_accuracy,
        ece=first.student_ece,
        max_difference=0.0,
        agreement=1.0,
        size_bytes=(folder / "student.keras").stat().st_size,
    )
    settings = {"data": name, "trained_on": len(train[0]), "epochs": options.epochs}
    rows = {row: {**each.as_dict(), "path": str(each)} for row, each in {"Keras": keras_row, **exports}.items()}
    (folder / "exports.json").write_text(json.dumps({"settings": settings, "exports": rows}, indent=1) + "\n")


def run(report: _harness.Report, name: str, options: argparse.Namespace, folder: pathlib.Path) -> None:
    """Time the exports of one data set made by ``prepare``, and report them."""
    made = json.loads((folder / "exports.json").read_text())
    exports = {
        row: export.Export(**{**figures, "path": pathlib.Path(figures["path"])})
        for row, figures in made["exports"].items()
    }
    test = data.load(name).test.inputs
    student = export.load_student(exports["Keras"])
    latency: dict[str, dict[int, dict[str, float]]] = {row: {} for row in exports}
    with export.ServingSession(exports["SavedModel, C API"]) as session:
        for size in BATCHES:
            batch = test[:size]
            programs = {"Keras": stopwatch(lambda batch=batch: student.predict_on_batch(batch))}
            for row, exported in exports.items():
                if row == "Keras":
                    continue
                if row == "SavedModel, C API":
                    programs[row] = lambda batch=batch: float(
                        session.measure({"pixels": batch}, outputs=["probabilities"], repeats=1, warmup=0)[0]
                    )
                else:
                    runtime = open_runtime("benchmark", exported, num_threads=1)
                    programs[row] = stopwatch(lambda runtime=runtime, batch=batch: runtime({"pixels": batch}))
            for row, times in timed(programs, rounds=options.rounds).items():
                latency[row][size] = times
    print(f"\n{DATA[name]}: {student.count_params():,} parameters, {len(test):,} test examples")
    print(
        f"{'':18} {'kB':>7} {'accuracy':>9} {'ECE':>7} {'agreement':>9}   batch 1: median, p99   batch 32: median, p99"
    )
    for row, exported in exports.items():
        times = latency[row]
        line = f"{row:18} {exported.size_bytes / 1e3:7.1f} {exported.accuracy:9.4f} {exported.ece:7.4f} "
        line += f"{exported.agreement:9.4f}   "
        line += "   ".join(f"{times[size]['median']:9.3f} {times[size]['p99']:9.3f}" for size in BATCHES)
        figures = {k: v for k, v in exported.as_dict().items() if k not in ("path", "latency_ms", "format")}
        report.add({**made["settings"], "runtime": row}, {**figures, "latency_ms": times}, line)
    float32 = exports["LiteRT float32"]
    exact = max(
        exports[row].max_difference for row in ("SavedModel, C API", "LiteRT float32", "ONNX Runtime", "OpenVINO")
    )
    report.verdict(f"{name}: float32 exports differ from Keras in no probability by more", exact, at_most=1e-4)
    drop = float32.accuracy - exports["LiteRT int8"].accuracy
    report.verdict(f"{name}: int8 loses at most one point of accuracy", drop, at_most=0.01)
    ratio = exports["LiteRT int8"].size_bytes / float32.size_bytes
    report.verdict(f"{name}: int8 takes less than half of float32's bytes", ratio, at_most=0.5)


def main() -> None:
    """Run the benchmark."""
    options = _harness.arguments(
        __doc__ or "",
        data=dict(choices=[*DATA, "both"], default="both"),
        examples=dict(type=int, default=6000, help="to train on; --full takes all"),
        epochs=dict(type=int, default=2),
        rounds=dict(type=int, default=100, help="timed calls of each runtime"),
        models=dict(type=pathlib.Path, help="folder that keeps the exported models; those that are there are used"),
        prepare=dict(action="store_true", help="train and export into --models, and time nothing"),
    )
    chosen = list(DATA) if options.data == "both" else [options.data]
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: (options.models or pathlib.Path(temporary)).resolve() / name for name in chosen}
        for name, folder in folders.items():
            if not (folder / "exports.json").exists():
                prepare(name, options, folder)
        if options.prepare:
            return
        claim = "Every float32 export equals the student to 1e-4; int8 loses at most a point of accuracy."
        report = _harness.Report("serving", claim, options)
        for name, folder in folders.items():
            run(report, name, options, folder)
        report.write()


if __name__ == "__main__":
    main()
