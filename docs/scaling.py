"""Writes the table of ``docs/scaling.md`` from ``benchmarks/results/scaling.json``: python docs/scaling.py."""

import json
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
START, END = "<!-- table: python docs/scaling.py -->\n", "<!-- end of table -->"
EXAMPLES, EPOCHS = 1e9, 10
STUDENT, TEACHER = 1.8e9, 18e9  # operations of a forward pass: a ResNet-18 at 224 pixels, and ten times as much
PARAMETERS, BATCH = 11.7e6, 256
RATE = 144e9  # measured: float32 products of (200, 1200) and (1200, 1200) on one core of the machine below
ACCELERATOR = 60e12  # assumed: what such networks achieve on a current accelerator


def days(seconds):
    """Show seconds as days or hours."""
    return f"{seconds / 86400:,.1f} d" if seconds > 86400 else f"{seconds / 3600:.1f} h"


def text(kept):
    """Return the measured constants and the table."""
    stores = [each for each in kept["results"] if "bytes_per_example" in each]
    longest = max(stores, key=lambda each: each["examples"])
    speed, size = longest["examples_per_second"], longest["bytes_per_example"]
    top_5 = 8 + 4 * 5 + 4
    lines = [
        f"Measured: one core computes {RATE / 1e9:.0f} GFLOP/s in float32 products; a store of {longest['examples']:,} "
        f"examples with 10 classes takes {size:.1f} bytes per example, and {speed:,.0f} examples per second are read, "
        f"checked and paired in one process. Assumed: an accelerator with {ACCELERATOR / 1e12:.0f} TFLOP/s, a student "
        f"of {STUDENT / 1e9:.1f} and a teacher of {TEACHER / 1e9:.0f} GFLOP, {EPOCHS} epochs, {BATCH} examples per "
        f"worker and step, the top 5 of 1000 classes stored, which take {top_5} bytes per example and "
        f"{EXAMPLES * top_5 / 1e9:.0f} GB in total.",
        "",
        "| workers | live | label once | train on the store | gain | labels, MB/s | gradients, MB/s per worker |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workers in (1, 8, 64, 256, 1024):
        share = EXAMPLES / workers
        live = EPOCHS * share * (3 * STUDENT + TEACHER) / ACCELERATOR
        label = share * TEACHER / ACCELERATOR
        step = 3 * STUDENT / ACCELERATOR
        read = 1 / speed  # each worker its own part of the store
        stored = EPOCHS * share * max(step, read)
        labels = workers / max(step, read) * top_5 / 1e6
        gradients = 2 * 4 * PARAMETERS * (workers - 1) / workers / (BATCH * max(step, read)) / 1e6
        cells = [f"{workers:,}", days(live), days(label), days(stored), f"{live / (label + stored):.2f}x"]
        lines.append(f"| {' | '.join([*cells, f'{labels:,.1f}', f'{gradients:,.0f}'])} |")
    needed = ACCELERATOR / (3 * STUDENT)
    reading = "not the bottleneck" if speed > needed else "the bottleneck, so read with several processes"
    lines += [
        "",
        f"Such an accelerator trains the student on {needed:,.0f} examples per second, and one process reads "
        f"{speed:,.0f}, so reading is {reading}. With one store for all workers, of which each reads everything, this "
        f"holds for up to {max(1, speed / needed):,.0f} workers. On one core of the machine measured here, such a "
        f"student takes {3 * STUDENT / RATE * 1e3:.0f} ms per example, and reading a label {1e6 / speed:.1f} us.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    kept = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text(encoding="utf-8"))
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(before + START + "\n" + text(kept) + "\n" + END + rest.split(END)[1], encoding="utf-8")
