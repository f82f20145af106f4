"""An epoch with a live teacher, a stored one, and Keras' own Distiller; the cost of labelling, storage and memory.

The comparison is paired: in every round each program runs one epoch (of ``Model.fit``, data pipeline included, 10 steps
per execution), in a random order. The teacher's forward pass takes about 10 times as long as the student's; the
measured factor is in the results. As a stored teacher costs one or two ms per step, there are two pairs: a wide student
with about 45 ms per step, and a narrow one with less than 10. Run with ``python -m benchmarks.stored_teacher --full``
(about 15 minutes).
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _harness

# isort: split
import keras
import numpy as np
import tensorflow as tf

import keras_distill
from keras_distill import teachers

CLAIM = (
    "A stored teacher makes an epoch at most 1.05 times as long as the student's alone, and with a teacher of 10 times "
    "the student an epoch is at least 4 times shorter than with keras.distillation; labelling is within 5% of predict."
)
BATCH = 128
# For all programs, so that the work of a step is compared and not the Python between steps.
STEPS_PER_EXECUTION = 10
CLASSES = 10


def convolutions(filters: tuple[int, ...], name: str) -> keras.Model:
    """3x3 convolutions with pooling between them on 28x28 pixels, then 10 logits."""
    layers: list[Any] = [keras.Input((28, 28, 1))]
    for width in filters:
        layers += [keras.layers.Conv2D(width, 3, padding="same", activation="relu"), keras.layers.MaxPooling2D()]
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(CLASSES)], name=name)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The widths of a teacher and its student, chosen so that the teacher's forward pass takes 10 times as long."""

    name: str
    teacher: tuple[int, ...]
    student: tuple[int, ...]
    examples: int

    def models(self) -> tuple[keras.Model, keras.Model]:
        """Return teacher and student."""
        return convolutions(self.teacher, "teacher"), convolutions(self.student, "student")


WIDE = Pair("wide student", (176, 352, 416), (48, 96, 96), 12_800)
NARROW = Pair("narrow student", (80, 160, 192), (16, 32, 32), 54_000)  # as many examples as Fashion-MNIST


def multiply_adds(model: keras.Model) -> int:
    """Operations for one example, in convolutions and dense layers."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            positions = int(np.prod(layer.output.shape[1:3])) if isinstance(layer, keras.layers.Conv2D) else 1
            total += positions * int(np.prod(layer.kernel.shape))
    return total


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with the shape of Fashion-MNIST: the measurements do not depend on the pixels."""
    rng = np.random.default_rng(0)
    return rng.uniform(size=(count, 28, 28, 1)).astype("float32"), rng.integers(0, CLASSES, count)


def passes(model: keras.Model, x: np.ndarray) -> Callable[[], int]:
    """Forward passes over 8 batches."""
    batches = [tf.constant(x[start : start + BATCH]) for start in range(0, 8 * BATCH, BATCH)]
    run = tf.function(lambda batch: model(batch, training=False))
    return lambda: len([run(batch) for batch in batches])


def calm_data(examples: int) -> tf.data.Dataset:
    """Batches without autotune, whose background thread delays the end of an epoch."""
    calm = tf.data.Options()
    calm.autotune.enabled = False
    return tf.data.Dataset.from_tensor_slices(images(examples)).batch(BATCH).with_options(calm)


def epoch(model: keras.Model, batches: tf.data.Dataset) -> Callable[[], int]:
    """One epoch of ``fit``."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, steps_per_execution=STEPS_PER_EXECUTION)
    ahead = batches.prefetch(2)

    def run() -> int:
        model.fit(ahead, epochs=1, verbose=0)
        return 1

    return run


def ours(teacher: Any, student: keras.Model) -> keras.Model:
    """A copy of the student, trained by our distiller."""
    term = keras_distill.LogitsDistillation(temperature=3.0)
    return keras_distill.Distiller(teacher, keras.models.clone_model(student), term)


def epochs(report: _harness.Report, pair: Pair, examples: int, rounds: int) -> None:
    """Time an epoch of the student alone, live, stored and built-in.

    Starting an epoch on stored data costs about 0.05 s (functions are compiled, files opened), whatever its length,
    which dominates with few examples.
    """
    teacher, student = pair.models()
    data = calm_data(examples)
    stored = teachers.label(teacher, data, tempfile.mkdtemp(), progress=False)
    few = teachers.label(teacher, data, tempfile.mkdtemp(), top_k=5, progress=False)
    term = keras.distillation.LogitsDistillation(temperature=3.0)
    builtin = keras.distillation.Distiller(teacher, keras.models.clone_model(student), term)
    programs = {
        "student": epoch(keras.models.clone_model(student), data),
        "live": epoch(ours(teacher, student), data),
        "stored": epoch(ours(stored, student), stored.attach(data)),
        "stored top 5": epoch(ours(few, student), few.attach(data)),
        "builtin": epoch(builtin, data),
    }
    samples = _harness.paired(programs, rounds=rounds)
    for clock in ("wall", "cpu"):
        for name in programs:
            seconds = samples.seconds(name, clock).median
            over = {f"over_{o}": str(samples.ratio(name, o, clock)) for o in ("student", "builtin") if o != name}
            settings = {"what": "epoch", "pair": pair.name, "examples": examples, "clock": clock, "program": name}
            report.add(settings, {"seconds": round(seconds, 4), **over})
    x, _ = images(8 * BATCH)
    forward = _harness.paired({"teacher": passes(teacher, x), "student": passes(student, x)}, rounds=rounds)
    times = {clock: str(forward.ratio("teacher", "student", clock)) for clock in ("wall", "cpu")}
    factor = multiply_adds(teacher) / multiply_adds(student)
    report.add({"what": "teacher over student", "pair": pair.name}, {**times, "multiply_adds": round(factor, 2)})
    step = 1000 * samples.seconds("student").median / (examples / BATCH)
    of_stored = f"{pair.name}: stored epoch over student alone, {step:.0f} ms per step"
    report.verdict(of_stored, samples.ratio("stored", "student").median, at_most=1.05)
    of_builtin = f"{pair.name}: built-in epoch over stored"
    report.verdict(of_builtin, samples.ratio("builtin", "stored").median, at_least=4.0)


def labelling(report: _harness.Report, examples: int, rounds: int) -> None:
    """Time ``label`` against ``predict`` on the same batches, each of a model that has not been compiled before."""
    data = calm_data(examples).prefetch(2)
    teacher = NARROW.models()[0]

    def predict() -> int:
        keras.models.clone_model(teacher).predict(data, verbose=0)
        return examples

    def label() -> int:
        teachers.label(teacher, data, tempfile.mkdtemp(), progress=False)
        return examples

    samples = _harness.paired({"predict": predict, "label": label}, rounds=rounds)
    for clock in ("wall", "cpu"):
        per_second = {n: round(1 / samples.seconds(n, clock).median) for n in ("predict", "label")}
        figures = {f"{n}_examples_per_second": value for n, value in per_second.items()}
        report.add(
            {"what": "labelling", "clock": clock}, {**figures, "ratio": str(samples.ratio("label", "predict", clock))}
        )
    report.verdict("labelling time over predict's", samples.ratio("label", "predict").median, at_most=1.05)


def fast(report: _harness.Report, examples: int, rounds: int) -> None:
    """Compare a bfloat16 copy and an XLA copy of the teacher with the teacher in time, and report their agreement."""
    x, _ = images(examples)
    data = tf.data.Dataset.from_tensor_slices(x).batch(BATCH).cache()
    teacher = NARROW.models()[0]
    listeners = {
        "exact": teachers.Single(teacher),
        "bfloat16": teachers.Fast(teacher),
        "xla": teachers.Fast(teacher, dtype="float32", jit_compile=True),
    }

    def program(each: teachers.Teacher) -> Callable[[], int]:
        listen = tf.function(lambda batch: each.listen(batch)[0])

        def run() -> int:
            for batch in data:
                listen(batch)
            return 1

        return run

    samples = _harness.paired({name: program(each) for name, each in listeners.items()}, rounds=rounds)
    for name in ("bfloat16", "xla"):
        found = teachers.agreement(listeners[name], teacher, data)
        figures = {"top1_agreement": found.top1, "mean_kl": found.mean_kl}
        times = {f"{clock}_over_exact": str(samples.ratio(name, "exact", clock)) for clock in ("wall", "cpu")}
        report.add({"what": "fast teacher", "how": name}, {**times, **figures})


def sizes(report: _harness.Report) -> None:
    """Bytes per example for 1000 classes, TFRecord's 16 bytes of framing included."""
    settings: dict[str, dict[str, Any]] = {
        "dense float16": {},
        "dense int8": {"dtype": "int8"},
        "top 16 float16": {"top_k": 16},
        "top 5 float16": {"top_k": 5},
    }
    for name, options in settings.items():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1000)])
        data = tf.data.Dataset.from_tensor_slices(np.zeros((1024, 4), "float32")).batch(256)
        stored = teachers.label(model, data, tempfile.mkdtemp(), progress=False, **options)
        on_disk = sum(file.stat().st_size for file in Path(stored.directory).glob("shard-*")) / 1024
        report.add({"what": "bytes per example, 1000 classes", "stored": name}, {"bytes": round(on_disk, 1)})


def memory(report: _harness.Report, counts: tuple[int, int]) -> None:
    """Peak memory of labelling, each size in a separate process."""
    code = (
        "import resource, sys, tempfile, keras, tensorflow as tf; from keras_distill import teachers;"
        "n = int(sys.argv[1]); m = keras.Sequential([keras.Input((1,)), keras.layers.Dense(100)]);"
        "d = tf.data.Dataset.range(n).batch(1024).map(lambda i: tf.cast(i, tf.float32)[:, None] / 1e6);"
        "teachers.label(m, d, tempfile.mkdtemp(), progress=False);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = []
    for count in counts:
        done = subprocess.run([sys.executable, "-c", code, str(count)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
        report.add({"what": "peak memory of labelling", "examples": count}, {"megabytes": peaks[-1]})
    report.verdict("peak memory, the larger dataset over the smaller", peaks[1] / peaks[0], at_most=1.05)


def main() -> None:
    """Run all parts."""
    options = _harness.arguments(
        __doc__ or "",
        examples={
            "type": int,
            "help": "of an epoch (default 1024, full 12,800 of the wide pair and 54,000 of the narrow one)",
        },
        rounds={"type": int, "help": "default 3, full 5"},
    )
    keras.utils.set_random_seed(0)
    report = _harness.Report("stored_teacher", CLAIM, options)
    rounds = options.rounds or (5 if options.full else 3)
    for pair in (WIDE, NARROW) if options.full else (NARROW,):
        epochs(report, pair, options.examples or (pair.examples if options.full else 1024), rounds)
    labelling(report, 8192 if options.full else 4096, rounds)
    fast(report, 1024, rounds)
    sizes(report)
    memory(report, (100_000, 1_000_000) if options.full else (20_000, 40_000))
    report.write()


if __name__ == "__main__":
    main()
