"""Common parts of all benchmarks: a header, paired runs, medians of ratios, verdicts, one JSON file.

A benchmark is a script with a claim::

    report = _harness.Report("step_time", claim="...", full=arguments.full)
    samples = _harness.paired({"ours": run_ours, "builtin": run_builtin}, rounds=15)
    report.add({"model": "mlp"}, samples.summary("ours", "builtin"))
    report.verdict("ours never slower than the built-in", samples.ratio("ours", "builtin").median, at_most=1.0)
    report.write()

Times of two programs are only comparable when both ran on the same machine in the same state, so ``paired`` runs them
alternately, in many short rounds of random order, and compares within each round: other load that slows down a round
slows down both. The median over rounds ignores the rounds in which it affected only one.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or ROOT.parent / "shared" / "data")

# TensorFlow reads these on its first import, so every benchmark imports this module before it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


# ---------------------------------------------------------------------- machine, versions and date


def machine() -> dict[str, Any]:
    """Describe this machine and its current load: a busy machine gives wider spreads."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": cores,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Versions of this package and its dependencies."""
    found = {"python": platform.python_version()}
    for package in ("tensorflow", "keras", "numpy"):
        found[package] = importlib.metadata.version(package)
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%h"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {**found, "keras_distill": commit or "no git"}


def arguments(description: str, **more: dict[str, Any]) -> argparse.Namespace:
    """Parse the options that all benchmarks have, ``--full`` and ``--out``, and those of this one.

    Args:
        description: for ``--help``.
        **more: option name to keyword arguments of ``add_argument``.

    Returns:
        The parsed options.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="everything; without it a quick version")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="folder of the JSON file")
    for option, settings in more.items():
        parser.add_argument(f"--{option.replace('_', '-')}", **settings)
    return parser.parse_args()


class Report:
    """Collects the results of a benchmark, prints each immediately and writes them to ``<out>/<name>.json``.

    Args:
        name: of the benchmark, and of the file.
        claim: one sentence that the results can refute.
        options: the parsed command line.
    """

    def __init__(self, name: str, claim: str, options: argparse.Namespace) -> None:
        self.path = options.out / f"{name}.json"
        module = getattr(sys.modules["__main__"], "__spec__", None)
        program = f"-m {module.name}" if module is not None else sys.argv[0]
        self.content: dict[str, Any] = {
            "name": name,
            "claim": claim,
            "command": " ".join(["python", program, *sys.argv[1:]]),
            "machine": machine(),
            "versions": versions(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "full": bool(options.full),
            "results": [],
            "verdicts": [],
        }
        self._started = time.monotonic()
        for key in ("claim", "command", "machine", "versions", "date"):
            value = self.content[key]
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            print(f"{key:9}{shown}", flush=True)

    def add(self, settings: Mapping[str, Any], figures: Mapping[str, Any], line: str | None = None) -> None:
        """Keep one result.

        Args:
            settings: the measured configuration.
            figures: the measured values.
            line: printed; by default the settings and figures themselves.
        """
        self.content["results"].append({**settings, **figures})
        text = line if line is not None else "  ".join(f"{k}={_short(v)}" for k, v in {**settings, **figures}.items())
        print(text, flush=True)

    def verdict(
        self, target: str, value: float, *, at_most: float | None = None, at_least: float | None = None
    ) -> bool:
        """Record whether a target is met.

        Args:
            target: the target, in words.
            value: the measured value.
            at_most: the target's bound.
            at_least: the target's bound.

        Returns:
            Whether it is met.
        """
        met = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
        bound = {"at_most": at_most} if at_most is not None else {"at_least": at_least}
        self.content["verdicts"].append({"target": target, "value": value, **bound, "met": met})
        shown = f"<= {at_most:g}" if at_most is not None else f">= {at_least:g}"
        print(f"{'met   ' if met else 'MISSED'} {target}: {_short(value)} {shown}", flush=True)
        return met

    def write(self) -> pathlib.Path:
        """Write the JSON file atomically.

        Returns:
            Where it is.
        """
        self.content["seconds"] = round(time.monotonic() - self._started, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(json.dumps(self.content, indent=1) + "\n")
        aside.replace(self.path)
        shown = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        print(f"written {shown} after {self.content['seconds']:.0f} s", flush=True)
        return self.path


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------- times, measured in turns


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median and its uncertainty.

    Args:
        median: of all rounds.
        low: lower end of a 95% interval for the median (order statistics, no assumption on the distribution).
        high: upper end.
        rounds: how many.
    """

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Take the median of some values.

        Args:
            values: at least one.

        Returns:
            The spread.
        """
        ordered = sorted(values)
        n = len(ordered)
        # Ranks (n +- 1.96 sqrt n) / 2: the binomial interval of the median in its normal approximation.
        reach = 0.98 * n**0.5
        low, high = int(max(0, n / 2 - reach)), int(min(n - 1, n / 2 + reach))
        return cls(statistics.median(ordered), ordered[low], ordered[high], n)

    def __str__(self) -> str:
        """Show as ``1.012 [1.004, 1.020]``."""
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Samples:
    """Seconds per step of several programs in several rounds, in wall-clock and processor time.

    Args:
        wall: program to one value per round.
        cpu: the same for processor time over all threads, which other load on the machine hardly changes.
    """

    def __init__(self, wall: dict[str, list[float]], cpu: dict[str, list[float]]) -> None:
        self.wall, self.cpu = wall, cpu

    def seconds(self, name: str, clock: str = "wall") -> Spread:
        """Seconds per step of one program."""
        return Spread.of(getattr(self, clock)[name])

    def rounds(self, names: str | Sequence[str], clock: str = "wall") -> list[float]:
        """Seconds per step round by round, of one program or of several one after the other."""
        names = [names] if isinstance(names, str) else names
        return [sum(each) for each in zip(*(getattr(self, clock)[name] for name in names), strict=True)]

    def ratio(self, above: str | Sequence[str], below: str | Sequence[str], clock: str = "wall") -> Spread:
        """Median over rounds of one program's time over another's; several names mean the sum of their times."""
        pairs = zip(self.rounds(above, clock), self.rounds(below, clock), strict=True)
        return Spread.of([a / b for a, b in pairs])

    def difference(self, above: str | Sequence[str], below: str | Sequence[str], clock: str = "wall") -> Spread:
        """Median over rounds of one program's time minus another's, in seconds."""
        pairs = zip(self.rounds(above, clock), self.rounds(below, clock), strict=True)
        return Spread.of([a - b for a, b in pairs])


def paired(programs: Mapping[str, Callable[[], int]], *, rounds: int, seed: int = 0) -> Samples:
    """Run programs in turns: every round runs each of them once, in a random order.

    Args:
        programs: name to a function that runs some steps, waits until they are done and returns their number.
        rounds: how many; the first two of each program are not counted.
        seed: of the order.

    Returns:
        The samples.
    """
    order = random.Random(seed)
    for _ in range(2):
        for run in programs.values():
            run()
    wall: dict[str, list[float]] = {name: [] for name in programs}
    cpu: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        names = list(programs)
        order.shuffle(names)
        for name in names:
            started, started_cpu = time.perf_counter(), time.process_time()
            steps = programs[name]()
            cpu[name].append((time.process_time() - started_cpu) / steps)
            wall[name].append((time.perf_counter() - started) / steps)
    return Samples(wall, cpu)
