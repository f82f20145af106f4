"""The page of ``students.shrink``: the budget, and gain and cost of each step."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_distill import _files
from keras_distill.report._figures import _BLUE, _INK, _RED, _panels
from keras_distill.report._html import escaped, figure_html
from keras_distill.report._page import _STYLE
from keras_distill.report._short_page import table_of
from keras_distill.students import ShrinkStep, Shrunk

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LIMITS = {
    "parameters": ("parameters", "{:,.0f}"),
    "macs": ("multiply-accumulates of one example", "{:,.0f}"),
    "file_bytes": ("bytes of the float file", "{:,.0f}"),
    "latency_ratio": ("of the teacher's time in float", "{:.2f}"),
}


def shrink_steps(shrunk: Shrunk) -> Figure:
    """Draw accuracy against file size and against the time of one example, step by step.

    Args:
        shrunk: the result of ``students.shrink``.

    Returns:
        The figure: filled points are accuracies after distillation, open ones before it, and a line connects the
        teacher and the steps.

    Raises:
        ValueError: if matplotlib is missing.

    Example:
        >>> from keras_distill.students import Budget, ShrinkStep, Shrunk
        >>> whole = ShrinkStep("teacher", 0.9, None, 0.02, 1.0, 4000, 9000, 16000, 0.4, 1.0)
        >>> half = ShrinkStep("build", 0.88, 0.6, 0.03, 0.95, 2000, 4000, 8000, 0.2, 0.5)
        >>> figure = shrink_steps(Shrunk(None, b"", (whole, half), Budget(parameters=2000)))
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['kB of the LiteRT file, logarithmic', 'ms of one example, one thread, logarithmic']
    """
    figure, grid = _panels("shrink_steps", 2, rows=1, width=4.2, height=3.2, ratios=(1,))
    for axes, label, values in (
        (grid[0][0], "kB of the LiteRT file", [step.file_bytes / 1000 for step in shrunk.steps]),
        (grid[0][1], "ms of one example, one thread", [step.milliseconds for step in shrunk.steps]),
    ):
        right = [100 * step.accuracy for step in shrunk.steps]
        axes.plot(values, right, "o-", color=_BLUE, linewidth=1.5, label="distilled")
        for step, x, y in zip(shrunk.steps, values, right, strict=True):
            axes.annotate(step.name, (x, y), (5, 5), textcoords="offset points", fontsize=8, color=_INK)
            if step.accuracy_before is not None:
                axes.plot([x, x], [100 * step.accuracy_before, y], ":", color=_RED, linewidth=1)
                axes.plot(x, 100 * step.accuracy_before, "o", markerfacecolor="none", color=_RED)
        axes.plot([], [], "o", markerfacecolor="none", color=_RED, label="before distillation")
        axes.set(xlabel=f"{label}, logarithmic", xscale="log")
        axes.margins(x=0.2, y=0.12)
        axes.set_ylim(top=min(axes.get_ylim()[1], 101.0))
        axes.set_xticks(values, [f"{value:.3g}" for value in values])
        axes.set_xticks([], minor=True)
    grid[0][0].set_ylabel("test accuracy, %")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def write_shrink_page(
    shrunk: Shrunk, path: str | os.PathLike[str], *, title: str = "A smaller model", notes: Sequence[str] = ()
) -> pathlib.Path:
    """Write the result of ``students.shrink`` as one self-contained HTML page, atomically.

    Args:
        shrunk: the result of ``students.shrink``.
        path: the file; replaced if it exists.
        title: first line of the page.
        notes: sentences that a reader needs to judge the numbers.

    Returns:
        The path.

    Raises:
        ValueError: if matplotlib is missing.
        OSError: if the file cannot be written.
    """
    header = ["", "accuracy ↑", "before distillation", "ECE ↓", "agrees with teacher ↑"]
    header += ["parameters", "MACs", "file, kB", "time, ms", "time / teacher's"]
    rows = [_row(step) for step in shrunk.steps]
    caption = (
        "From the right, the teacher, to the left: filled points are the students after distillation, open ones the "
        "same students before it. A long dotted line is a step that distillation had to repair."
    )
    parts = [
        f"<h1>{escaped(title)}</h1>",
        *(f"<p>{escaped(sentence)}</p>" for sentence in [*_summary(shrunk), *notes]),
        "<h2>Numbers</h2>",
        table_of(header, rows),
        "<p>Accuracy, ECE (calibration error of the probabilities, 15 bins) and agreement are of test examples. Times "
        "are tenth percentiles of one example in LiteRT on one thread, all files in turn in the same rounds.</p>",
        "<h2>What did each step bring?</h2>",
        figure_html(shrink_steps(shrunk), "Steps", caption),
    ]
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    path = pathlib.Path(path)
    _files.put(path, (text + "\n".join(parts) + "\n</main>\n</body>\n</html>\n").encode())
    return path


def _row(step: ShrinkStep) -> list[str]:
    return [
        step.name,
        f"{100 * step.accuracy:.2f} %",
        "" if step.accuracy_before is None else f"{100 * step.accuracy_before:.2f} %",
        f"{step.expected_calibration_error:.3f}",
        f"{100 * step.fidelity:.2f} %",
        f"{step.parameters:,}",
        f"{step.macs:,}",
        f"{step.file_bytes / 1000:,.1f}",
        f"{step.milliseconds:.3f}",
        f"{step.latency_ratio:.2f}",
    ]


def _summary(shrunk: Shrunk) -> list[str]:
    """Describe the budget, the result, and the steps in which distillation did not help."""
    first, last = shrunk.steps[0], shrunk.steps[-1]
    asked = " and ".join(
        f"at most {_LIMITS[name][1].format(value)} {_LIMITS[name][0]}" for name, value in shrunk.budget.limits.items()
    )
    points = 100 * (last.accuracy - first.accuracy)
    moved = "as many test examples right" if abs(points) < 0.005 else f"{abs(points):.2f} points of accuracy "
    moved += "" if abs(points) < 0.005 else ("lost" if points < 0 else "gained")
    sentences = [
        f"Asked for: {asked}.",
        f"The student's file is {first.file_bytes / last.file_bytes:.1f} times smaller than the teacher's, and it runs "
        f"{1 / last.latency_ratio:.1f} times as fast, with {moved}.",
    ]
    idle = [
        step.name for step in shrunk.steps if step.accuracy_before is not None and step.accuracy <= step.accuracy_before
    ]
    if idle:
        sentences.append(f"Training brought no accuracy after: {', '.join(idle)}.")
    return sentences
