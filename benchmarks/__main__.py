"""Run all benchmarks one after another: ``make bench`` is the quick version, ``make bench-full`` the full one."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

from benchmarks import _harness

# The benchmarks of the quick version, with options that shorten some of them. The full version has all others too.
QUICK: dict[str, list[str]] = {
    "step_time": ["--rounds", "11"],
    "memory": [],
    "against_builtin": [],
    "scaling": [],
    "soak": ["--steps", "5000"],
}
PAGE = _harness.ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results: python -m benchmarks --page -->", "<!-- end of results -->"


def names() -> list[str]:
    """Return the names of all benchmarks in this folder, those of the core first."""
    folder = pathlib.Path(__file__).parent
    found = {path.stem for path in folder.glob("*.py")} - set(QUICK)
    return [*QUICK, *sorted(name for name in found if not name.startswith("_"))]


def shown(verdict: dict[str, Any]) -> tuple[str, str]:
    """Return a verdict's value and its bound as text."""
    bound = f"<= {verdict['at_most']:g}" if "at_most" in verdict else f">= {verdict['at_least']:g}"
    return f"{verdict['value']:.3g}", bound


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of those results that are means over seeds with their spread, by model."""
    rows = [result for result in results if "mean" in result and "spread" in result]
    if not rows:
        return []
    keys = list(dict.fromkeys(key for row in rows for key in row["mean"]))
    lines = ["", "| | " + " | ".join(key.replace("_", " ") for key in keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for row in rows:
        cells = [f"{row['mean'][key]:.4f} ± {row['spread'][key]:.4f}" if key in row["mean"] else "" for key in keys]
        lines.append(f"| {row['model']} | " + " | ".join(cells) + " |")
    return lines


def page() -> None:
    """Write the recorded results and their figures into ``docs/benchmarks.md``, between its two marks."""
    from benchmarks import _plots  # the only use of matplotlib

    sections = []
    for path in sorted(_harness.RESULTS.glob("*.json")):
        if "runs" in path.name:
            continue  # from a benchmark that is still running
        kept = json.loads(path.read_text())
        if not kept.get("verdicts"):
            continue  # a part without targets
        lines = [f"### {kept['name']}", "", kept["claim"], "", "| target | measured | bound | |", "|---|---|---|---|"]
        for verdict in kept["verdicts"]:
            value, bound = shown(verdict)
            lines.append(f"| {verdict['target']} | {value} | {bound} | {'met' if verdict['met'] else '**missed**'} |")
        lines += table(kept["results"])
        picture = _plots.draw(kept, PAGE.parent / "benchmarks")
        if picture is not None:
            lines += ["", f"![{_plots.PLOTS[kept['name']].__doc__}](benchmarks/{picture.name})"]
        machine, versions = kept["machine"], kept["versions"]
        cores = f"{machine['cores']} core{'s' * (machine['cores'] > 1)}"
        where = f"{machine['cpu']}, {cores}, load {machine['load_average'][0]:g} at the start"
        packages = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "keras_distill")
        lines += ["", f"`{kept['command']}`, {kept['date'][:10]}, {where}; {packages}; "]
        lines[-1] += f"commit {versions['keras_distill']}."
        sections.append("\n".join(lines))
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(sections) + f"\n\n{END}{after}")


def main() -> int:
    """Run them, each in a separate process, and list all verdicts at the end.

    Returns:
        1 if a benchmark broke, else 0: a missed target is a finding, not a failure.
    """
    options = _harness.arguments(
        __doc__ or "",
        only={"nargs": "+", "choices": names(), "help": "default: see --full"},
        page={"action": "store_true", "help": "run nothing: show the kept results in docs/benchmarks.md"},
    )
    if options.page:
        page()
        return 0
    out = options.out if options.full or options.out != _harness.RESULTS else options.out / "quick"
    broken, started = [], time.monotonic()
    chosen = options.only or (names() if options.full else list(QUICK))
    for name in chosen:
        print(f"\n=== {name}", flush=True)
        arguments = ["--full"] if options.full else QUICK.get(name, [])
        command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", "--out", str(out), *arguments]
        if subprocess.run(command, cwd=_harness.ROOT, check=False).returncode:
            broken.append(name)
    print(f"\n=== verdicts after {time.monotonic() - started:.0f} s")
    for name in chosen:
        result = out / f"{name}.json"
        if name in broken or not result.exists():
            print(f"BROKEN {name}")
            continue
        for verdict in json.loads(result.read_text())["verdicts"]:
            found = "met   " if verdict["met"] else "MISSED"
            print(f"{found} {name}: {verdict['target']}: {' '.join(shown(verdict))}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
