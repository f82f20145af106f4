"""A long run of a tiny model: constant memory, constant step time, no retracing.

During the run, a temperature and a weight are scheduled, one value is assigned from Python every few epochs, and
validation runs, because each of these could leak or retrace.
"""

from __future__ import annotations

import gc
import pathlib
import time
from typing import Any

from benchmarks import _harness

# isort: split
import keras
import numpy as np
import tensorflow as tf

import keras_distill

CLAIM = "200,000 steps run in flat memory (less than 2% growth after the first tenth), in constant time, on one trace."
STEPS_PER_EPOCH = 1000


def resident_bytes() -> int:
    """Return the current resident size of this process."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


class Watch(keras.callbacks.Callback):
    """Records memory, time and traces after each epoch, and assigns a value from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []
        self.traces = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start the clocks."""
        self.model.student_loss_weight = 0.3 + 0.4 * (epoch % 2)
        self.started = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop them."""
        wall, cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
        gc.collect()
        self.seen.append({"epoch": epoch, "bytes": resident_bytes(), "wall": wall, "cpu": cpu, "traces": self.traces})


def run(steps: int) -> list[dict[str, Any]]:
    """Train for this many steps; return the records of all epochs."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(320, 8)).astype("float32"), rng.integers(0, 4, 320)
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(32).repeat().with_options(options)
    teacher, student = (
        keras.Sequential([keras.Input((8,)), keras.layers.Dense(n, "relu"), keras.layers.Dense(4)]) for n in (16, 8)
    )
    watch = Watch()

    class Counted(keras_distill.LogitsDistillation):
        """A loss whose Python code runs only during tracing."""

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            """Count, then compute."""
            watch.traces += 1
            return super().compute_loss(*arguments, **options)

    falling = keras.optimizers.schedules.PolynomialDecay(6.0, steps, end_learning_rate=1.0)
    rising = keras.optimizers.schedules.PolynomialDecay(0.1, steps, end_learning_rate=1.0)
    distiller = keras_distill.Distiller(teacher, student, Counted(falling), [rising])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"], steps_per_execution=10)
    distiller.fit(
        data,
        epochs=steps // STEPS_PER_EPOCH,
        steps_per_epoch=STEPS_PER_EPOCH,
        validation_data=(x, y),
        callbacks=[watch],
        verbose=0,
    )
    return watch.seen


def main() -> None:
    """Run, and compare the beginning with the end."""
    options = _harness.arguments(__doc__, steps={"type": int, "help": "default 20,000, full 200,000"})
    report = _harness.Report("soak", CLAIM, options)
    steps = options.steps or (200_000 if options.full else 20_000)
    seen = run(steps)
    first = len(seen) // 10 + 1  # the allocators' arenas grow during the first tenth
    tenth = max(1, len(seen) // 10)
    begin, end = seen[first : first + tenth], seen[-tenth:]

    def middle(part: list[dict[str, Any]], key: str) -> float:
        return float(np.median([each[key] for each in part]))

    for each in seen[:: max(1, len(seen) // 20)]:
        report.add({"epoch": each["epoch"]}, {k: each[k] for k in ("bytes", "wall", "cpu", "traces")})
    growth = middle(end, "bytes") / middle(begin, "bytes") - 1.0
    bytes_per_step = (middle(end, "bytes") - middle(begin, "bytes")) / ((len(seen) - first - tenth) * STEPS_PER_EPOCH)
    report.add({"steps": steps}, {"bytes_per_step": bytes_per_step})
    report.verdict("growth of resident memory after the first tenth", growth, at_most=0.02)
    slower = middle(end, "cpu") / middle(begin, "cpu")
    report.verdict("processor time per step, last tenth / second tenth", slower, at_most=1.1)
    report.verdict("traces of the step after the first epoch", seen[-1]["traces"] - seen[0]["traces"], at_most=0)
    report.write()


if __name__ == "__main__":
    main()
