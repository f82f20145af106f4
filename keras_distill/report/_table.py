"""The table of a report as text, shared by terminal and page."""

from __future__ import annotations

from keras_distill._checks import error, printable
from keras_distill.report._report import Report, Score


def table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return the numbers of a report as text: a row per quantity, a column per model.

    Args:
        report: the result of ``evaluate``.

    Returns:
        The header (its first cell is empty) and the rows, whose first cells name quantity and unit.

    Raises:
        ValueError: if there is no entry.
    """
    if not report.entries:
        raise error("report.table", "at least one entry", "none")
    batch = report.entries[0].batch_size
    attacks = [entry.robustness.attack for entry in report.entries if entry.robustness and entry.robustness.attack]
    columns = []
    for entry in report.entries:
        columns.append(
            [
                _score(entry.accuracy, 100, 2),
                _score(entry.negative_log_likelihood, 1, 3),
                _score(entry.expected_calibration_error, 100, 2),
                _score(entry.brier_score, 1, 3),
                "–" if entry.agreement is None else _score(entry.agreement, 100, 2),
                f"{entry.num_parameters:,}",
                f"{entry.size_bytes / 1024:,.0f}",
                f"{entry.milliseconds_per_example:.4f}",
                "–" if entry.expected_cost is None else _score(entry.expected_cost, 1, 4),
                "–" if entry.membership is None else with_interval(entry.membership.auc, entry.membership.auc_interval),
                "–"
                if entry.robustness is None or not entry.robustness.robust_accuracy
                else _score(Score(entry.robustness.robust_accuracy), 100, 2),
            ]
        )
    names = [
        "accuracy, % ↑",
        "NLL, nats ↓",
        "ECE, % ↓",
        "Brier score ↓",
        f"agreement with {report.reference}, % ↑" if report.reference else "agreement, %",
        "parameters",
        "size on disk, KiB",
        f"ms per example (batch {batch})",
        "expected cost ↓",
        "membership AUC ↓",
        f"accuracy under {attacks[0]}, % ↑" if attacks else "attacked",
    ]
    rows = [[name, *(column[i] for column in columns)] for i, name in enumerate(names)]
    if report.reference is None:
        rows = [row for row in rows if row[0] != "agreement, %"]
    if all(entry.expected_cost is None for entry in report.entries):
        rows = [row for row in rows if row[0] != "expected cost ↓"]
    if all(entry.membership is None for entry in report.entries):
        rows = [row for row in rows if row[0] != "membership AUC ↓"]
    rows = [row for row in rows if row[0] != "attacked"]
    return ["", *(entry.name for entry in report.entries)], rows


def _score(score: Score, factor: float, digits: int) -> str:
    mean = f"{factor * score.mean:.{digits}f}"
    return mean if score.spread is None else f"{mean} ± {factor * score.spread:.{digits}f}"


def with_interval(value: float, interval: tuple[float, float]) -> str:
    """Return a value with the bounds of its interval."""
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def lines(report: Report) -> str:
    """Return the title and the table of a report as lines of text with aligned columns.

    Args:
        report: the result of ``evaluate``.
    """
    header, rows = table(report)
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    shown = [printable(report.title)] if report.title else []
    for first, *rest in cells:
        columns = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        shown.append("  ".join(columns).rstrip())
    return "\n".join([*shown, f"Measured on {report.num_examples:,} examples."])
