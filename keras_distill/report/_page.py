"""The report as one self-contained HTML file: no network, no scripts, no other files."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from keras_distill import _files
from keras_distill.report._comparison import Comparison
from keras_distill.report._explained_page import EXPLAINED_STYLE, explanations
from keras_distill.report._figures import confusion_matrices, reliability_diagram, training_curves
from keras_distill.report._html import escaped, figure_html
from keras_distill.report._report import Report
from keras_distill.report._safety_page import safety
from keras_distill.report._table import table
from keras_distill.report._uncertainty import risk_coverage

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1c1c1c; font: 16px/1.5 system-ui, Helvetica, Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid #ddd; }
p, ul { max-width: 46rem; margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1.4rem .35rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
thead th { border-bottom: 2px solid #1c1c1c; vertical-align: bottom; }
tbody th, thead th:first-child { text-align: left; font-weight: 400; }
.facts th { color: #555; vertical-align: top; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
figure { margin: .5rem 0; }
figure svg { display: block; max-width: 100%; height: auto; }
figcaption, footer { color: #555; font-size: .9rem; max-width: 46rem; }
@media (max-width: 40rem) {
  main { padding: 1rem .75rem 3rem; }
  table { font-size: .78rem; }
  th, td { padding: .3rem .55rem .3rem 0; white-space: normal; }
  tbody th, thead th:first-child { min-width: 5.5rem; }
}
@media print { main { max-width: none; padding: 0; } h2, figure { break-inside: avoid; } }
"""

_CAPTIONS = {
    "reliability": (
        "Bars: accuracy among the answers of similar confidence. Dots: the mean confidence of these answers. "
        "A dot above its bar is over-confidence, below it under-confidence. Underneath: the number of answers in "
        "the bin, on a logarithmic scale; a gap over a handful of answers means little."
    ),
    "confusion": (
        "Rows are the true classes, columns the answers; counts. Right answers are grey, mistakes are darker "
        "the larger their share of the true class."
    ),
    "coverage": (
        "The share of errors of a model that answers only where it is most certain. A line that falls steeply to the "
        "left belongs to a model that knows where it errs; the area under it is its AURC."
    ),
    "curves": "Lines: mean over the runs. Bands: minimum to maximum over the runs.",
}


def write_page(report: Report, path: str | os.PathLike[str]) -> pathlib.Path:
    """Write the report as one self-contained HTML page, atomically.

    Args:
        report: the result of ``evaluate``.
        path: the file; replaced if it exists.

    Returns:
        The path.

    Raises:
        ValueError: if matplotlib is missing.
        OSError: if the file cannot be written.
    """
    path = pathlib.Path(path)
    text = _page(report)
    _files.put(path, text.encode())
    return path


def _page(report: Report) -> str:
    title = escaped(report.title or "Report")
    pooled = " Over all runs of a model." if any(len(entry.accuracy.values) > 1 for entry in report.entries) else ""
    bins = {entry.name: entry.reliability for entry in report.entries}
    confusion = {entry.name: entry.confusion for entry in report.entries}
    parts = [
        f"<h1>{title}</h1>",
        *(f"<p>{escaped(note)}</p>" for note in report.notes),
        "<h2>Numbers</h2>",
        numbers(report),
        "<h2>Are they as sure as they should be?</h2>",
        figure_html(reliability_diagram(bins), "Reliability diagrams", _CAPTIONS["reliability"] + pooled),
        "<h2>What do they confuse?</h2>",
        figure_html(
            confusion_matrices(confusion, report.class_names), "Confusion matrices", _CAPTIONS["confusion"] + pooled
        ),
    ]
    certain = {entry.name: tuple(entry.risk_coverage) for entry in report.entries if entry.risk_coverage.size}
    if certain:
        shown = figure_html(risk_coverage(certain), "Coverage and risk", _CAPTIONS["coverage"] + pooled)
        parts += ["<h2>Do they know where they err?</h2>", shown]
    if report.comparison is not None:
        parts += ["<h2>Do they differ on the same examples?</h2>", _comparison(report.comparison)]
    parts += safety(report)
    parts += explanations(report.explanations, report.class_names)
    if report.histories:
        curves = figure_html(training_curves(report.histories), "Training curves", _CAPTIONS["curves"])
        parts += ["<h2>How did they learn?</h2>", curves]
    parts += ["<h2>How was it made?</h2>", _facts({**report.settings, **report.environment})]
    body = "\n".join(parts)
    more_style = EXPLAINED_STYLE if report.explanations else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}{more_style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def numbers(report: Report) -> str:
    """Return the table of a report as HTML."""
    header, rows = table(report)
    runs = max(len(entry.accuracy.values) for entry in report.entries)
    spread = f" Mean ± standard deviation over {runs} runs." if runs > 1 else ""
    return (
        f'<div class="scroll">{_rows(header, rows)}</div>\n'
        f"<p>Measured on {report.num_examples:,} test examples. ↑ more is better, ↓ less is better.{spread}</p>"
    )


def _comparison(comparison: Comparison) -> str:
    header, rows = comparison.cells()
    facts = f"{comparison.num_examples:,} examples, each held out once in {comparison.num_folds} folds"
    return (
        f'<div class="scroll">{_rows(header, rows)}</div>\n<p>{facts}. Differences are paired over examples; '
        "their intervals cover other examples, not other training runs.</p>"
    )


def _rows(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{escaped(row[0])}</th>'
        + "".join(f"<td>{escaped(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escaped(name)}</th><td>{escaped(value)}</td></tr>' for name, value in facts.items()
    )
    return f'<table class="facts"><tbody>\n{rows}\n</tbody></table>'
