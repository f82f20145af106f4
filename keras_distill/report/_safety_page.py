"""Parts of the page on safety: robustness to changed inputs, and membership inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from keras_distill.report._figures import _STYLES, _panels, plain
from keras_distill.report._html import escaped, figure_html
from keras_distill.report._robustness import Robustness
from keras_distill.report._table import with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from keras_distill.report._report import Report

_SHIFTS = (
    "Above: accuracy on images of increasing corruption; on the left they are unchanged. Below: the distance between "
    "confidence and accuracy. If that line rises, the model stays confident while it errs."
)
_AUDIT = (
    "An attacker uses a model's loss on an example to guess whether it was trained on it. Pure guessing gives an AUC "
    "of 0.5 and an advantage near 0, and finds 1% of the members at a false positive rate of 1%. In brackets: 95% "
    "intervals by bootstrap. A low value is no guarantee: a stronger attack may exist."
)


def safety(report: Report) -> list[str]:
    """Return the headings and contents of both parts as HTML; parts without measurements are omitted.

    Args:
        report: the result of ``evaluate``.
    """
    parts = []
    shifts = {entry.name: entry.robustness for entry in report.entries if entry.robustness and entry.robustness.shifts}
    if shifts:
        parts += [
            "<h2>Do they hold when inputs get worse?</h2>",
            figure_html(shift_curves(shifts), "Shift curves", _SHIFTS),
        ]
    audits = {entry.name: entry.membership for entry in report.entries if entry.membership is not None}
    if audits:
        names = ["AUC", "advantage", "true positives at 1% false positives"]
        head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in ["", *names])
        rows = "\n".join(
            f'<tr><th scope="row">{escaped(name)}</th>'
            + "".join(
                f"<td>{with_interval(getattr(audit, key), getattr(audit, key + '_interval'))}</td>"
                for key in ("auc", "advantage", "true_positive_rate")
            )
            + "</tr>"
            for name, audit in audits.items()
        )
        first = next(iter(audits.values()))
        shadows = f"{first.num_shadow_models} shadow model{'s' if first.num_shadow_models != 1 else ''}"
        counts = f"{first.num_members:,} members, {first.num_non_members:,} others, {shadows}."
        parts += [
            "<h2>Do they give away their training data?</h2>",
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>',
            f"<p>{escaped(counts)}</p>\n<p>{escaped(_AUDIT)}</p>",
        ]
    return parts


def shift_curves(robustness: Mapping[str, Robustness]) -> Figure:
    """Draw accuracy and calibration error of models against the severity of corruptions.

    Args:
        robustness: by model name, ``Entry.robustness`` with shifts.

    Returns:
        The figure: a column per corruption and a line per entry, the mean over its models.

    Raises:
        ValueError: if there is nothing to draw, or matplotlib is missing.

    Example:
        >>> from keras_distill.report import Robustness, Shift
        >>> shifts = (Shift("none", 0, (0.9,), (0.01,)), Shift("blur", 3, (0.7,), (0.1,)))
        >>> [axes.get_title() for axes in shift_curves({"model": Robustness(shifts=shifts)}).axes]
        ['blur', '']
    """
    kinds = list(dict.fromkeys(s.name for each in robustness.values() for s in each.shifts if s.severity))
    figure, grid = _panels("shift_curves", len(kinds), rows=2, width=2.9, height=4.6, ratios=(1, 1))
    for column, kind in enumerate(kinds):
        for index, (name, each) in enumerate(robustness.items()):
            own = [shift for shift in each.shifts if shift.name == kind or not shift.severity]
            color, style = _STYLES[index % len(_STYLES)]
            for row, key in enumerate(("accuracy", "expected_calibration_error")):
                values = [100 * np.mean(getattr(shift, key)) for shift in own]
                grid[row][column].plot(
                    [shift.severity for shift in own], values, color=color, linestyle=style, marker="o", markersize=3,
                    linewidth=1.8, label=plain(name),
                )  # fmt: skip
        grid[0][column].set(title=plain(kind), ylim=(0, 101))
        grid[1][column].set(xlabel="severity")
        grid[1][column].set_ylim(bottom=0)
        for axes in (grid[0][column], grid[1][column]):
            axes.grid(color="#EEEEEE")
            axes.set_xticks(sorted({s.severity for each in robustness.values() for s in each.shifts}))
    grid[0][0].set_ylabel("accuracy, %")
    grid[1][0].set_ylabel("ECE, %")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False, fontsize=8)
    return figure
