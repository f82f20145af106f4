"""Peak memory of training with the distiller and with ``keras.distillation``, each in a separate process.

The peak is the operating system's (VmHWM), so it counts everything: code, weights, optimizer, activations. The memory
of imports and models is measured in the same process before training, and the increase during training is shown too.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import sys

from benchmarks import _harness

CLAIM = "Training with keras_distill never needs more memory at its peak than training with keras.distillation."
PACKAGES = ("ours", "builtin")
BOTH = ("logits", "logits and layer")
TERMS = {"mlp small": BOTH[:1], "mlp large": BOTH, "cnn": BOTH, "cnn small": BOTH[1:]}
# Peaks vary by some megabytes held by threads and allocators; smaller differences are ignored.
SAME_FRACTION = 0.01


def peak_bytes() -> int:
    """Return the greatest resident size of this process so far."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status: this benchmark needs Linux")


def measure(package: str, model: str, terms: str, batch: int, xla: bool) -> None:
    """Train for some steps and print the peaks as JSON; runs in a separate process."""
    from benchmarks import step_time

    # Both packages are always loaded, so that only training is compared.
    run = step_time.programs(model, terms, 10, xla, 1, full=False, only=package, batch=batch)[package]
    before = peak_bytes()
    for _ in range(3):
        run()
    print(json.dumps({"before": before, "peak": peak_bytes()}))


def main() -> None:
    """Measure every setting alternately and evaluate."""
    options = _harness.arguments(
        __doc__,
        repeats={"type": int, "help": "processes per package and setting (default 1, full 7)"},
        body={"nargs": 5, "help": argparse.SUPPRESS},
    )
    if options.body:
        package, model, terms, batch, xla = options.body
        measure(package, model, terms, int(batch), xla == "on")
        return
    report = _harness.Report("memory", CLAIM, options)
    repeats = options.repeats or (7 if options.full else 1)
    settings = [("cnn small", 256, False)]
    if options.full:
        settings = [("mlp small", 128, False), ("cnn", 512, False), ("mlp large", 1024, False)]
        settings += [("cnn", 512, True), ("mlp large", 1024, True)]
    order, worst = random.Random(0), []
    print(f"{'model':10}{'terms':17}{'batch':>6} {'XLA':5}{'ours MiB':>9}{'built-in':>9}{'ratio':>7}{'added':>7}")
    for model, batch, xla in settings:
        for terms in TERMS[model]:
            found: dict[str, list[dict[str, int]]] = {package: [] for package in PACKAGES}
            for _ in range(repeats):
                for package in order.sample(PACKAGES, len(PACKAGES)):
                    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", "--body"]
                    command += [package, model, terms, str(batch), "on" if xla else "off"]
                    run = subprocess.run(command, cwd=_harness.ROOT, capture_output=True, text=True, check=False)
                    if run.returncode:
                        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr[-3000:]}")
                    found[package].append(json.loads(run.stdout.splitlines()[-1]))
            peaks = {p: statistics.median(each["peak"] for each in found[p]) / 2**20 for p in PACKAGES}
            added = {p: statistics.median(each["peak"] - each["before"] for each in found[p]) for p in PACKAGES}
            ratio = peaks["ours"] / peaks["builtin"]
            worst.append(ratio)
            report.add(
                {"model": model, "terms": terms, "batch": batch, "xla": xla, "repeats": repeats},
                {"peak_mib": peaks, "ratio": ratio, "processes": found},
                f"{model:10}{terms:17}{batch:6} {'on' if xla else 'off':5}{peaks['ours']:9.0f}{peaks['builtin']:9.0f}"
                f"{ratio:7.3f}{(added['ours'] - added['builtin']) / 2**20:+6.0f}M",
            )
    report.verdict("peak memory, ours / built-in, worst setting", max(worst), at_most=1.0 + SAME_FRACTION)
    report.write()


if __name__ == "__main__":
    main()
