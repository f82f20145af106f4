"""How costs grow: step time with batch, classes, teachers and terms; a store's size and reading speed with examples.

Each curve has a slope, from a linear fit of the logarithms: 1 is proportional, 0 is free. If a fixed part (the
student's own step) hides it, the marginal cost is reported too.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _harness

# isort: split
import keras
import numpy as np
import tensorflow as tf

import keras_distill
from keras_distill import losses, teachers

CLAIM = (
    "Step time grows at most in proportion to batch, classes, teachers and terms; a store grows in proportion to the "
    "examples and is read as fast at 10^7 of them as at 10^4."
)
CURVES: dict[str, tuple[Sequence[int], Sequence[int]]] = {
    # quick, full
    "batch": ((32, 256), (32, 128, 512, 2048)),
    "classes": ((10, 1000), (10, 100, 1000, 8000, 32000)),
    "teachers": ((1, 4), (1, 2, 4, 8, 16)),
    "terms": ((1, 4), (1, 2, 4, 8)),
    "examples": ((10_000, 100_000), (10_000, 100_000, 1_000_000, 10_000_000)),
}


def mlp(width: int, classes: int) -> keras.Model:
    """64 inputs, one hidden layer, logits."""
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(classes)])


def stepper(batch: int = 128, classes: int = 10, members: int = 1, terms: int = 1) -> Callable[[], int]:
    """Return a program that runs some training steps."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, 64)).astype("float32")
    y = rng.integers(0, classes, batch)
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensors((x, y)).cache().repeat().with_options(options)
    several = [mlp(256, classes) for _ in range(members)]
    teacher = several[0] if members == 1 else teachers.Ensemble(several)
    kinds = [losses.SoftTargets, losses.ReverseSoftTargets, losses.JensenShannon, losses.TotalVariation]
    chosen = [keras_distill.LogitsDistillation(2.0 + i, kinds[i % 4]()) for i in range(terms)]
    distiller = keras_distill.Distiller(teacher, mlp(64, classes), chosen)
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.make_train_function()
    iterator = iter(data)

    def run() -> int:
        for _ in range(5):
            logs = distiller.train_function(iterator)
        float(logs["loss"])
        return 5

    return run


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Fit log y = a + slope * log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def steps(report: _harness.Report, what: str, values: Sequence[int], rounds: int) -> float:
    """Time steps along one curve, alternately; return the slope."""
    keras.backend.clear_session()
    name = {"teachers": "members"}.get(what, what)
    programs = {str(value): stepper(**{name: value}) for value in values}
    samples = _harness.paired(programs, rounds=rounds)
    seconds = [samples.seconds(str(value)).median for value in values]
    for value, each in zip(values, seconds, strict=True):
        report.add({"curve": what, what: value}, {"milliseconds": each * 1e3})
    found = slope(values, seconds)
    one_more = (seconds[-1] - seconds[0]) / (values[-1] - values[0]) * 1e6
    report.add({"curve": what}, {"slope": round(found, 3), "one_more_microseconds": round(one_more, 3)})
    return found


def stores(report: _harness.Report, values: Sequence[int]) -> tuple[float, float]:
    """Label synthetic examples and read them back; return the slope of the size and the last speed over the first."""
    sizes, speeds = [], []
    teacher = mlp(32, 10)
    for count in values:
        rows = tf.data.Dataset.range(0, count, 1000)

        def make(start: Any) -> Any:
            return tf.random.stateless_uniform((1000, 64), tf.stack([start, 0]))

        options = tf.data.Options()
        options.autotune.enabled = False
        data = rows.map(make).with_options(options)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            stored = teachers.label(teacher, data, folder, progress=False)
            labelled = time.perf_counter() - started
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
            started, read = time.perf_counter(), 0
            for batch in stored.attach(data):
                read += len(batch["inputs"])
            seconds = time.perf_counter() - started
        sizes.append(size)
        speeds.append(read / seconds)
        figures = {"bytes": size, "bytes_per_example": size / count, "label_seconds": labelled}
        figures |= {"read_seconds": seconds, "examples_per_second": speeds[-1]}
        report.add({"curve": "examples", "examples": count}, figures)
    return slope(values, sizes), speeds[-1] / speeds[0]


def main() -> None:
    """Measure every curve."""
    options = _harness.arguments(
        __doc__,
        rounds={"type": int, "help": "default 5, full 11"},
        curves={"nargs": "+", "choices": list(CURVES), "help": "default: all"},
        examples={"type": int, "help": "the longest store (default 100,000, full 10,000,000)"},
    )
    report = _harness.Report("scaling", CLAIM, options)
    rounds = options.rounds or (11 if options.full else 5)
    for what in options.curves or list(CURVES):
        values = CURVES[what][options.full]
        if what != "examples":
            report.verdict(f"slope of step time with {what}", steps(report, what, values, rounds), at_most=1.0)
            continue
        if options.examples:
            values = [*(v for v in values if v < options.examples), options.examples]
        size, speed = stores(report, values)
        report.verdict("slope of a store's size with examples", size, at_most=1.01)
        report.verdict("examples read per second, longest store / shortest", speed, at_least=0.8)
    report.write()


if __name__ == "__main__":
    main()
