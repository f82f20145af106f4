"""Reads a report from untrusted JSON: every part is checked before it is used.

Kept apart from ``_report.py``, whose classes hold checked values: here nothing is trusted yet.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from keras_distill._checks import error
from keras_distill.metrics import ReliabilityBins
from keras_distill.report._comparison import comparison_of
from keras_distill.report._explained_reading import explained_of
from keras_distill.report._membership import membership_of
from keras_distill.report._report import Entry, Report, Score
from keras_distill.report._robustness import robustness_of

_SCORES = ("accuracy", "negative_log_likelihood", "expected_calibration_error", "brier_score")
_COUNTS = ("num_parameters", "size_bytes", "batch_size")
_ENTRY = {"name", *_SCORES, "agreement", *_COUNTS, "milliseconds_per_example", "reliability", "confusion"}
_LATER = ("risk_coverage", "expected_cost", "membership", "robustness")  # missing from reports of older versions
_REPORT = {"title", "entries", "reference", "class_names", "num_examples", "notes", "settings", "environment",
           "histories", "explanations", "comparison"}  # fmt: skip


def report_of(text: str) -> Report:
    """Return the report written by ``Report.to_json``.

    Args:
        text: the JSON text.

    Raises:
        ValueError: if a part is invalid; the message names the first.
    """
    try:
        fields = json.loads(text)
    except (TypeError, ValueError, RecursionError) as problem:
        raise _wrong(f"{type(problem).__name__}: {problem}"[:200]) from problem
    _need(isinstance(fields, dict) and {"title", "entries", "class_names", "num_examples"} <= set(fields), "its parts")
    _need(set(fields) <= _REPORT, "a part of another name")
    _need(isinstance(fields["title"], str), "title")
    _need(_is_count(fields["num_examples"]), "num_examples")
    for name in ("class_names", "notes"):
        _need(_are_texts(fields.get(name, [])), name)
    _need(isinstance(fields["entries"], list) and bool(fields["entries"]), "entries")
    for name in ("settings", "environment", "histories"):
        _need(isinstance(fields.get(name, {}), dict), name)
    for runs in fields.get("histories", {}).values():
        _need(isinstance(runs, list) and all(isinstance(run, dict) for run in runs), "histories")
        _need(all(_are_numbers(curve) for run in runs for curve in run.values()), "histories")
    entries = tuple(_entry(each, len(fields["class_names"])) for each in fields["entries"])
    reference = fields.get("reference")
    _need(reference is None or reference in [each.name for each in entries], "reference")
    rest = {name: fields[name] for name in ("settings", "environment", "histories") if name in fields}
    return Report(
        title=fields["title"],
        entries=entries,
        reference=reference,
        class_names=tuple(fields["class_names"]),
        num_examples=fields["num_examples"],
        notes=tuple(fields.get("notes", ())),
        comparison=comparison_of(fields.get("comparison"), _need),
        explanations=explained_of(fields.get("explanations", []), len(fields["class_names"]), _need),
        **rest,
    )


def _entry(fields: Any, num_classes: int) -> Entry:
    _need(
        isinstance(fields, dict) and _ENTRY <= set(fields) <= {*_ENTRY, *_LATER},
        "an entry's parts",
    )
    _need(isinstance(fields["name"], str), "an entry's name")
    for name in _COUNTS:
        _need(_is_count(fields[name]), name)
    _need(_is_number(fields["milliseconds_per_example"]), "milliseconds_per_example")
    known: dict[str, Any] = {name: _score(fields[name], name) for name in _SCORES}
    known.update({name: fields[name] for name in _COUNTS})
    agreement = None if fields["agreement"] is None else _score(fields["agreement"], "agreement")
    bins = fields["reliability"]
    parts = ("edges", "weight", "confidence", "accuracy")
    _need(isinstance(bins, dict) and set(bins) == set(parts) and all(map(_are_numbers, bins.values())), "reliability")
    size = len(bins["weight"])
    _need(size > 0 and [len(bins[part]) for part in parts] == [size + 1, size, size, size], "reliability")
    confusion = fields["confusion"]
    _need(isinstance(confusion, list) and len(confusion) == num_classes, "confusion")
    for row in confusion:
        _need(isinstance(row, list) and len(row) == num_classes and all(map(_is_count, row)), "confusion")
    cost = fields.get("expected_cost")
    curve = fields.get("risk_coverage", [[], []])
    _need(isinstance(curve, list) and len(curve) == 2 and all(map(_are_numbers, curve)), "risk_coverage")
    _need(len(curve[0]) == len(curve[1]), "risk_coverage")
    return Entry(
        name=fields["name"],
        agreement=agreement,
        **known,
        milliseconds_per_example=_float(fields["milliseconds_per_example"]),
        reliability=ReliabilityBins(**{part: _floats(bins[part]) for part in parts}),
        confusion=np.array(confusion, np.int64).reshape(num_classes, num_classes),
        risk_coverage=np.stack([_floats(each) for each in curve]),
        expected_cost=None if cost is None else _score(cost, "expected_cost"),
        membership=membership_of(fields.get("membership"), _need),
        robustness=robustness_of(fields.get("robustness"), _need),
    )


def _score(value: Any, name: str) -> Score:
    _need(isinstance(value, dict) and set(value) == {"values"} and _are_numbers(value["values"]), name)
    _need(bool(value["values"]), name)
    return Score(tuple(map(_float, value["values"])))


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _floats(values: list[Any]) -> np.ndarray:
    return np.array(list(map(_float, values)), "float64")


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) <= 1e300)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(each, str) for each in values)


def _need(fine: bool, part: str) -> None:
    if not fine:
        raise _wrong(f"{part} that no report has")


def _wrong(got: str) -> ValueError:
    return error("Report.from_json", "the text that Report.to_json wrote", got)
