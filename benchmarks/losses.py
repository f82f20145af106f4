"""Time and peak memory of every loss on logits, value and gradient, against its plain formula in keras.ops.

The plain form is the straightforward one: log_softmax of logits / temperature, the formula, automatic differentiation.
It has no masks, and loses most digits for nearly equal distributions and all at a temperature of 1000. Both run
alternately in one process, inside ``tf.function`` with XLA and, with ``--full``, without. Memory is measured in a
separate process: the peak (VmHWM) of the first call minus the resident size before it, which includes the inputs.
Everything runs on one core.

For timing, the process keeps the memory that it frees. glibc returns blocks above 32 MiB to the system immediately and
pays for every page when it allocates them again; the tensors of 16 MiB here are merged to just below or just above
that, and the same loss took 1.0 or 2.0 times as long from one run to the next.

(64, 512, 32000) float32 takes 4.2 GB per tensor: both are compared at an eighth of it, (8, 512, 32000), and ``--full``
then runs each loss of ours at the full size. From 32000 classes on all of them are evaluated in blocks of rows, so that
they need memory for two inputs and a gradient, and a further amount that does not grow with the rows.

Results are written after each row and evaluated at the end or at Ctrl-C; ``--resume`` measures the missing rows.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import _harness

if __name__ == "__main__" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before TensorFlow creates its threads
    if sys.platform == "linux" and "--body" not in sys.argv:
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX none, M_TRIM_THRESHOLD never
            libc.mallopt(option, value)

# isort: split
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill import losses

CLAIM = (
    "No loss on logits takes more than 1.1 times its plain form under XLA; with 32000 classes each needs at most a "
    "quarter of its memory beyond inputs and gradient, and runs at (64, 512, 32000) within 5 GiB above its inputs."
)
TEMPERATURE = 2.0
Form = Callable[[Any, Any, Any], Any]  # (teacher, student, labels) -> values or scalar
EIGHTH, WHOLE = (8, 512, 32_000), (64, 512, 32_000)
PATIENCE_SECONDS = 60  # for one loss at the large size, at least three rounds


def logs(x: Any) -> Any:
    """Log-probabilities at the temperature."""
    return ops.log_softmax(x / TEMPERATURE, axis=-1)


def divergence(log_p: Any, log_q: Any) -> Any:
    """KL, times temperature squared."""
    return TEMPERATURE**2 * ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def jensen_shannon(t: Any, s: Any, y: Any) -> Any:
    """JSD at 0.5."""
    log_p, log_q = logs(t), logs(s)
    log_m = ops.logaddexp(log_p, log_q) - float(np.log(2.0))
    return 0.5 * (divergence(log_p, log_m) + divergence(log_q, log_m))


def standardized(x: Any) -> Any:
    """Mean 0, standard deviation 1."""
    gap = x - ops.mean(x, axis=-1, keepdims=True)
    return gap / (ops.sqrt(ops.sum(gap * gap, axis=-1, keepdims=True) / (x.shape[-1] - 1)) + 1e-7)


def without(x: Any, y: Any) -> Any:
    """All logits except the target's, as in public code."""
    return x / TEMPERATURE - 1000.0 * ops.one_hot(y, x.shape[-1])


def decoupled(t: Any, s: Any, y: Any) -> Any:
    """DKD."""
    hot = ops.one_hot(y, s.shape[-1])
    p, q = (ops.sum(ops.softmax(x / TEMPERATURE, axis=-1) * hot, axis=-1) for x in (t, s))
    binary = p * (ops.log(p) - ops.log(q)) + (1 - p) * (ops.log(1 - p) - ops.log(1 - q))
    rest = divergence(*(ops.log_softmax(without(x, y), axis=-1) for x in (t, s)))
    return TEMPERATURE**2 * binary + 8.0 * rest


def normalized(t: Any, s: Any, y: Any) -> Any:
    """NKD."""
    hot = ops.one_hot(y, s.shape[-1])
    target = -ops.sum(hot * ops.softmax(t, axis=-1) * ops.log_softmax(s, axis=-1), axis=-1)
    log_r, log_s = (ops.log_softmax(without(x, y), axis=-1) for x in (t, s))
    return target - 1.5 * TEMPERATURE**2 * ops.sum(ops.exp(log_r) * log_s, axis=-1)


def weighted(t: Any, s: Any, y: Any) -> Any:
    """WSLD."""
    own, best = (-ops.take_along_axis(ops.log_softmax(x, axis=-1), y[..., None], axis=-1)[..., 0] for x in (s, t))
    weight = ops.stop_gradient(1 - ops.exp(-own / (best + 1e-7)))
    return -weight * TEMPERATURE**2 * ops.sum(ops.exp(logs(t)) * logs(s), axis=-1)


def hard(t: Any, s: Any, y: Any) -> Any:
    """Cross-entropy to the argmax."""
    chosen = ops.argmax(t, axis=-1)[..., None]
    return -(TEMPERATURE**2) * ops.take_along_axis(logs(s), chosen, axis=-1)[..., 0]


def binary(t: Any, s: Any, y: Any) -> Any:
    """Bernoulli KL."""
    a, b = t / TEMPERATURE, s / TEMPERATURE
    one = ops.sigmoid(a) * (ops.log_sigmoid(a) - ops.log_sigmoid(b))
    return TEMPERATURE**2 * ops.sum(one + ops.sigmoid(-a) * (ops.log_sigmoid(-a) - ops.log_sigmoid(-b)), axis=-1)


def top_k(t: Any, s: Any, y: Any) -> Any:
    """The top five kept, the rest spread evenly."""
    log_p, classes = ops.log_softmax(t, axis=-1), t.shape[-1]
    kept, _ = ops.top_k(log_p, 5)
    rest = ops.log((1 - ops.sum(ops.exp(kept), axis=-1, keepdims=True)) / (classes - 5))
    return divergence(logs(ops.where(log_p >= kept[..., -1:], log_p, rest)), logs(s))


def correlation(t: Any, s: Any, y: Any) -> Any:
    """DIST."""
    p, q = (ops.reshape(ops.softmax(x / TEMPERATURE, axis=-1), (-1, x.shape[-1])) for x in (t, s))

    def mean_correlation(axis: int) -> Any:
        u, v = (x - ops.mean(x, axis=axis, keepdims=True) for x in (p, q))
        norms = ops.sqrt(ops.sum(u * u, axis=axis)) * ops.sqrt(ops.sum(v * v, axis=axis))
        return ops.mean(ops.sum(u * v, axis=axis) / (norms + 1e-8))

    return TEMPERATURE**2 * (2.0 - mean_correlation(1) - mean_correlation(0))


def gaussian(t: Any, s: Any, y: Any) -> Any:
    """Means, then log-variances."""
    (m_t, v_t), (m_s, v_s) = (ops.split(x, 2, axis=-1) for x in (t, s))
    return 0.5 * ops.sum(v_s - v_t + (ops.exp(v_t) + (m_t - m_s) ** 2) / ops.exp(v_s) - 1, axis=-1)


def squared(x: Any) -> Any:
    """Sum of squares."""
    return ops.sum(x * x, axis=-1)


PLAIN: dict[str, tuple[Any, Form]] = {
    "soft_targets": (losses.SoftTargets(), lambda t, s, y: divergence(logs(t), logs(s))),
    "reverse_soft_targets": (losses.ReverseSoftTargets(), lambda t, s, y: divergence(logs(s), logs(t))),
    "jensen_shannon": (losses.JensenShannon(), jensen_shannon),
    "total_variation": (
        losses.TotalVariation(),
        lambda t, s, y: 0.5 * TEMPERATURE**2 * ops.sum(ops.abs(ops.exp(logs(t)) - ops.exp(logs(s))), axis=-1),
    ),
    "probability_matching": (
        losses.ProbabilityMatching(),
        lambda t, s, y: TEMPERATURE**2 * squared(ops.exp(logs(t)) - ops.exp(logs(s))),
    ),
    "logit_matching": (losses.LogitMatching(), lambda t, s, y: 0.5 * squared(t - s)),
    "standardized_soft_targets": (
        losses.StandardizedSoftTargets(),
        lambda t, s, y: divergence(logs(standardized(t)), logs(standardized(s))),
    ),
    "decoupled_soft_targets": (losses.DecoupledSoftTargets(), decoupled),
    "normalized_soft_targets": (losses.NormalizedSoftTargets(), normalized),
    "weighted_soft_labels": (losses.WeightedSoftLabels(), weighted),
    "hard_targets": (losses.HardTargets(), hard),
    "binary_soft_targets": (losses.BinarySoftTargets(), binary),
    "top_k_soft_targets": (losses.TopKSoftTargets(), top_k),
    "class_correlation": (losses.ClassCorrelation(), correlation),
    "gaussian_kl": (losses.GaussianKL(), gaussian),
    "regression_matching": (losses.RegressionMatching(), lambda t, s, y: squared(t - s)),
}


def step(name: str, form: str, jit_compile: bool) -> Callable[..., tuple[Any, Any]]:
    """Value and gradient with respect to the student, in one graph."""
    loss, plain = PLAIN[name]

    @tf.function(jit_compile=jit_compile)
    def run(teacher: Any, student: Any, labels: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(student)
            if form == "ours":
                values = loss.values(teacher, student, temperature=TEMPERATURE, labels=labels)
            else:
                values = plain(teacher, student, labels)
            value = tf.reduce_mean(values)
        return value, tape.gradient(value, student)

    return run


def inputs(shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Teacher's and student's logits, repeated along the first axes to keep nothing else resident, and labels."""
    rng = np.random.default_rng(0)
    rows = [tf.constant(2 * rng.normal(size=(1, shape[-2], shape[-1])).astype("float32")) for _ in range(2)]
    teacher, student = (tf.tile(x, (*shape[:-2], 1, 1)) if len(shape) == 3 else x[0] for x in rows)
    return teacher, student, tf.constant(rng.integers(0, shape[-1], shape[:-1]))


def status(key: str) -> int:
    """Return an entry of this process' status, in bytes; Linux only."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.partition(f"{key}:")[2].split()[0]) * 1024


def measure_memory(name: str, form: str, by: str, shape: tuple[int, ...]) -> None:
    """Print the peak above the resident size before the call; runs in a separate process."""
    run, given = step(name, form, by == "xla"), inputs(shape)
    # Allocators keep memory freed by the first call. A smaller call first loads everything needed to compile and run.
    run(*(x[..., :1, :8] if x.dtype.is_floating else x[..., :1] % 8 for x in given))
    before = status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    value, gradient = run(*given)
    value.numpy()
    peak, size = status("VmHWM") - before, 4 * int(np.prod(gradient.shape))
    del gradient
    started = time.perf_counter()
    run(*given)[0].numpy()
    print(json.dumps({"peak": peak, "gradient": size, "seconds": round(time.perf_counter() - started, 3)}))


def memory(name: str, form: str, by: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Measure in a separate process."""
    command = [sys.executable, "-m", "benchmarks.losses", "--body", name, form, by, ",".join(map(str, shape))]
    done = subprocess.run(command, cwd=_harness.ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


class Rows:
    """A report that may already have rows from an interrupted run, which is evaluated on its existing rows.

    Args:
        name: of the report.
        options: the parsed command line.
        target: of a row: its name, the value and the bound; None if the row has no target.
    """

    def __init__(
        self,
        name: str,
        options: argparse.Namespace,
        target: Callable[[dict[str, Any]], tuple[str, float, float] | None],
    ) -> None:
        self.report, self.target = _harness.Report(name, CLAIM, options), target
        if options.resume and self.report.path.exists():
            self.report.content["results"] = json.loads(self.report.path.read_text())["results"]

    def row(self, settings: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the row with these settings, after measuring and writing it if it is missing."""
        rows = self.report.content["results"]
        found = [row for row in rows if settings.items() <= row.items()]
        if not found:
            self.report.add(settings, measure())
            self.report.write()
        return (found or rows[-1:])[0]

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *raised: object) -> None:
        for found in map(self.target, self.report.content["results"]):
            if found is not None:
                self.report.verdict(found[0], found[1], at_most=found[2])
        self.report.write()


def times(options: argparse.Namespace, names: list[str]) -> None:
    """Measure times alternately, and evaluate."""
    rounds = options.rounds or (21 if options.full else 7)
    small, large = ((4096, 1000), EIGHTH) if options.full else ((1024, 1000), (1, 128, 32_000))
    runs = [("xla", large), ("xla", small)] + [("graph", small), ("graph", large)] * options.full

    def target(row: dict[str, Any]) -> tuple[str, float, float] | None:
        words = f"{row['loss']} {tuple(row['shape'])}, processor time over the plain form's"
        return (words, float(row["ratio_cpu"].split()[0]), 1.1) if row["by"] == "xla" else None

    with Rows("losses", options, target) as rows:
        for by, shape in runs:
            given = inputs(shape)
            for name in names:
                settings = {"loss": name, "shape": list(shape), "by": by}
                rows.row(settings, lambda name=name, given=given, by=by: timed(name, given, by, rounds))
            del given


def timed(name: str, given: tuple[Any, ...], by: str, rounds: int) -> dict[str, Any]:
    """Time one loss against its plain form."""
    steps = {form: step(name, form, by == "xla") for form in ("ours", "plain")}
    wanted, got = steps["plain"](*given), steps["ours"](*given)  # the values agree, before timing
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-3)
    del wanted, got
    large = given[0].shape[-1] >= 32_000
    count = 1 if large else 4

    def runner(run: Any) -> Callable[[], int]:
        def many() -> int:
            for _ in range(count):
                value, gradient = run(*given)
                value.numpy()
                del gradient
            return count

        return many

    programs = {form: runner(run) for form, run in steps.items()}
    if large:
        started = time.perf_counter()
        for run in programs.values():
            run()
        fit = int(PATIENCE_SECONDS / (time.perf_counter() - started))
        rounds = max(3, min(max(5, rounds // 3), fit))
    samples = _harness.paired(programs, rounds=rounds)
    figures: dict[str, Any] = {f"{form}_ms": round(samples.seconds(form, "wall").median * 1e3, 2) for form in steps}
    ratios = {f"ratio_{clock}": str(samples.ratio("ours", "plain", clock)) for clock in ("cpu", "wall")}
    return {**figures, **ratios, "rounds": rounds}


def peaks(options: argparse.Namespace, names: list[str]) -> None:
    """Measure memory process by process, and evaluate."""
    tried = names if options.full else names[:1]
    large = EIGHTH if options.full else (2, 256, 32_000)
    runs = [("xla", (4096, 1000)), ("graph", large), ("graph", (4096, 1000))] * options.full

    def target(row: dict[str, Any]) -> tuple[str, float, float] | None:
        words = f"{row['loss']} {tuple(row['shape'])}, "
        if "peak_gib" in row:
            return words + "peak above the inputs in GiB, of which the gradient is 3.9", row["peak_gib"], 5.0
        if row["by"] != "xla" or tuple(row["shape"]) != large:
            return None
        share = row["ours_beyond_mib"] / max(row["plain_beyond_mib"], 1)
        return words + "memory beyond inputs and gradient over the plain form's", share, 0.25

    with Rows("losses_memory", options, target) as rows:
        for name in tried:
            row = rows.row(*against_plain(name, "xla", large))
            if options.full:
                settings = {"loss": name, "shape": list(WHOLE), "by": "xla"}
                rows.row(settings, lambda name=name, row=row: whole_size(name, row["ours_beyond_mib"]))
        for by, shape in runs:
            for name in tried:
                rows.row(*against_plain(name, by, shape))


def against_plain(name: str, by: str, shape: tuple[int, ...]) -> tuple[dict[str, Any], Callable[[], dict[str, Any]]]:
    """Return the settings of one comparison, and the function that measures it."""

    def measure() -> dict[str, Any]:
        found = {form: memory(name, form, by, shape) for form in ("ours", "plain")}
        size = found["ours"]["gradient"]
        figures: dict[str, Any] = {"tensor_mib": size // 2**20}
        figures |= {f"{form}_peak_in_tensors": round(each["peak"] / size, 2) for form, each in found.items()}
        beyond = {form: max(each["peak"] - size, 0) / 2**20 for form, each in found.items()}
        return figures | {f"{form}_beyond_mib": round(value, 1) for form, value in beyond.items()}

    return {"loss": name, "shape": list(shape), "by": by}, measure


def whole_size(name: str, beyond_mib: float) -> dict[str, Any]:
    """Run one loss of ours at the full size, if there is memory for two inputs, the gradient and an eighth more."""
    needed = 3 * 4 * int(np.prod(WHOLE)) + beyond_mib * 2**20
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    if needed > 7 / 8 * free:
        return {"not_run": "does not fit", "needs_gib": round(needed / 2**30, 1), "free_gib": round(free / 2**30, 1)}
    found = memory(name, "ours", "xla", WHOLE)
    return {f"{key}_gib": round(found[key] / 2**30, 2) for key in ("peak", "gradient")} | {"seconds": found["seconds"]}


def main() -> None:
    """Measure times, then memory."""
    options = _harness.arguments(
        __doc__,
        only={"nargs": "+", "choices": list(PLAIN), "help": "these losses alone"},
        rounds={"type": int, "help": "per loss (default 7, full 21)"},
        part={"choices": ["time", "memory"], "help": "one of the two; default both"},
        resume={"action": "store_true", "help": "keep the rows of the results that are there, and measure the others"},
        body={"nargs": 4, "help": argparse.SUPPRESS},
    )
    if options.body:
        name, form, by, shape = options.body
        measure_memory(name, form, by, tuple(map(int, shape.split(","))))
        return
    names = options.only or list(PLAIN)
    if options.part != "memory":
        times(options, names)
    if options.part != "time":
        peaks(options, names)


if __name__ == "__main__":
    main()
