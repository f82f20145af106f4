"""Time and peak memory of every loss on logits, value and gradient, against its formula written plainly in keras.ops.

The plain form is what one writes first: log_softmax of logits / temperature, the formula, automatic differentiation.
It has no masks, keeps few digits near the match and none at a temperature of 1000. Both run in one process in turns,
inside ``tf.function`` with XLA and, with ``--full``, without. Memory is that of a process of its own: the peak (VmHWM)
of the first call above what was resident before it, inputs included there.

(64, 512, 32000) float32 is 4.2 GB a tensor: both are compared at an eighth of it, (8, 512, 32000), and ``--full`` then
runs each loss of ours at the full size where the memory it took at the eighth says that it fits beside its inputs.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import _harness

# isort: split
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill import losses

CLAIM = (
    "No loss on logits takes more than 1.1 times its plain form under XLA; with 32000 classes the divergences need at "
    "most a quarter of the memory beyond inputs and gradient."
)
TEMPERATURE = 2.0
Form = Callable[[Any, Any, Any], Any]  # (teacher, student, labels) -> values or scalar
EIGHTH, WHOLE = (8, 512, 32_000), (64, 512, 32_000)
BLOCKED = ("soft_targets", "reverse_soft_targets", "jensen_shannon", "total_variation", "probability_matching")


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
    """Mean 0, spread 1."""
    gap = x - ops.mean(x, axis=-1, keepdims=True)
    return gap / (ops.sqrt(ops.sum(gap * gap, axis=-1, keepdims=True) / (x.shape[-1] - 1)) + 1e-7)


def without(x: Any, y: Any) -> Any:
    """All but the target's logit, as public code removes it."""
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
    """The five likeliest kept, the rest spread."""
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
    """Teacher's and student's logits, repeated along the first axes so that nothing else stays resident; labels."""
    rng = np.random.default_rng(0)
    rows = [tf.constant(2 * rng.normal(size=(1, shape[-2], shape[-1])).astype("float32")) for _ in range(2)]
    teacher, student = (tf.tile(x, (*shape[:-2], 1, 1)) if len(shape) == 3 else x[0] for x in rows)
    return teacher, student, tf.constant(rng.integers(0, shape[-1], shape[:-1]))


def status(key: str) -> int:
    """Return a line of this process' status, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status: this benchmark needs Linux")


def measure_memory(name: str, form: str, by: str, shape: tuple[int, ...]) -> None:
    """Print the peak above what was resident before the call: the body of one process."""
    run, given = step(name, form, by == "xla"), inputs(shape)
    # The first call: allocators keep what it has freed. A smaller one brings in what compiling and running need.
    run(*(x[..., :1, :8] if x.dtype.is_floating else x[..., :1] % 8 for x in given))
    before = status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    value, gradient = run(*given)
    value.numpy()
    peak, size = status("VmHWM") - before, 4 * int(np.prod(gradient.shape))
    del gradient
    started = time.perf_counter()
    run(*given)[0].numpy()
    print(json.dumps({"peak": peak, "gradient": size, "seconds": round(time.perf_counter() - started, 3)}))


def memory(name: str, form: str, by: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.losses", "--body", name, form, by, ",".join(map(str, shape))]
    done = subprocess.run(command, cwd=_harness.ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def times(options: argparse.Namespace, names: list[str]) -> None:
    """Measure times in turns, and judge."""
    report = _harness.Report("losses", CLAIM, options)
    rounds = options.rounds or (21 if options.full else 7)
    shapes = ((4096, 1000), EIGHTH) if options.full else ((1024, 1000), (1, 128, 32_000))
    for shape in shapes:
        large = len(shape) == 3
        given = inputs(shape)
        for by in ("xla", "graph") if options.full else ("xla",):
            for name in names:
                if large and name not in BLOCKED and (by == "graph" or not options.full):
                    continue
                steps = {form: step(name, form, by == "xla") for form in ("ours", "plain")}
                wanted, got = steps["plain"](*given), steps["ours"](*given)  # the same loss, before it is timed
                np.testing.assert_allclose(got[0], wanted[0], rtol=1e-3)
                del wanted, got
                count = 1 if large else 4

                def runner(run: Any, count: int = count, given: Any = given) -> Callable[[], int]:
                    def many() -> int:
                        for _ in range(count):
                            value, gradient = run(*given)
                            value.numpy()
                            del gradient
                        return count

                    return many

                turns = max(5, rounds // 3) if large and options.full else rounds
                samples = _harness.paired({form: runner(run) for form, run in steps.items()}, rounds=turns)
                ratio, wall = (samples.ratio("ours", "plain", clock) for clock in ("cpu", "wall"))
                figures: dict[str, Any] = {
                    f"{form}_ms": round(samples.seconds(form, "wall").median * 1e3, 2) for form in steps
                }
                figures |= {"ratio_cpu": str(ratio), "ratio_wall": str(wall)}
                report.add({"loss": name, "shape": list(shape), "by": by}, figures)
                if by == "xla":
                    report.verdict(f"{name} {shape}, processor time over the plain form's", ratio.median, at_most=1.1)
        del given
    report.write()


def peaks(options: argparse.Namespace, names: list[str]) -> None:
    """Measure memory process by process, and judge."""
    report = _harness.Report("losses_memory", CLAIM, options)
    shapes: tuple[tuple[int, ...], ...] = ((4096, 1000), EIGHTH) if options.full else ((2, 256, 32_000),)
    tried = names if options.full else [name for name in names if name in BLOCKED[:1]]
    in_tensors: dict[str, float] = {}  # peak of ours under XLA, at the last shape
    for shape in shapes:
        for by in ("xla", "graph"):
            for name in tried:
                found = {form: memory(name, form, by, shape) for form in ("ours", "plain")}
                size = found["ours"]["gradient"]
                figures = {f"{form}_peak_in_tensors": round(each["peak"] / size, 2) for form, each in found.items()}
                beyond = {form: max(each["peak"] - size, 0) / size for form, each in found.items()}
                figures |= {f"{form}_beyond_gradient": round(value, 2) for form, value in beyond.items()}
                report.add({"loss": name, "shape": list(shape), "by": by, "tensor_mb": size // 2**20}, figures)
                if by == "xla":
                    in_tensors[name] = found["ours"]["peak"] / size
                if name in BLOCKED and by == "xla" and len(shape) == 3:
                    share = beyond["ours"] / max(beyond["plain"], 1e-9)
                    report.verdict(
                        f"{name} {shape}, memory beyond inputs and gradient over the plain form's", share, at_most=0.25
                    )
            report.write()
    for name in tried if options.full else ():
        whole_size(report, name, in_tensors[name])
    report.write()


def whole_size(report: _harness.Report, name: str, in_tensors: float) -> None:
    """Run one loss of ours at the full size, if it fits: its own peak, two inputs and an eighth to spare."""
    needed = (in_tensors + 2) * 4 * int(np.prod(WHOLE))
    settings = {"loss": name, "shape": list(WHOLE), "by": "xla"}
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    if needed > 7 / 8 * free:
        figures = {"not_run": "does not fit", "needs_gib": round(needed / 2**30, 1), "free_gib": round(free / 2**30, 1)}
        report.add(settings, figures)
        return
    found = memory(name, "ours", "xla", WHOLE)
    figures = {f"{key}_gib": round(found[key] / 2**30, 2) for key in ("peak", "gradient")}
    report.add(settings, {**figures, "seconds": found["seconds"]})


def main() -> None:
    """Measure times, then memory."""
    options = _harness.arguments(
        __doc__,
        only={"nargs": "+", "choices": list(PLAIN), "help": "these losses alone"},
        rounds={"type": int, "help": "per loss (default 7, full 21)"},
        part={"choices": ["time", "memory"], "help": "one of the two; default both"},
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
