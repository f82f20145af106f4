"""Reads explanations from untrusted JSON.

Kept apart from ``_reading.py``: a report without explanations has no such part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_distill.report._explained import Explained, ShownExample

_PARTS = {"name", "method", "num_examples", "measures", "examples", "rules", "rules_note", "tree"}
_SHOWN = {"rule", "label", "teacher_answer", "student_answer", "similarity", "values", "teacher_map", "student_map",
          "path"}  # fmt: skip
_LARGEST = 4_000_000  # maximum number of elements of one array


def explained_of(fields: Any, num_classes: int, need: Callable[[bool, str], None]) -> tuple[Explained, ...]:
    """Return the explanations written by ``Report.to_json``.

    Args:
        fields: the parsed list.
        num_classes: number of classes of the report.
        need: raises the error that names the part, if its first argument is false.

    Returns:
        The explanations.
    """
    need(isinstance(fields, list), "explanations")
    return tuple(_one(each, num_classes, need) for each in fields)


def _one(fields: Any, num_classes: int, need: Callable[[bool, str], None]) -> Explained:
    need(isinstance(fields, dict) and set(fields) == _PARTS, "an explanation's parts")
    for name in ("name", "method", "rules_note"):
        need(isinstance(fields[name], str), f"an explanation's {name}")
    need(type(fields["num_examples"]) is int and fields["num_examples"] >= 0, "an explanation's num_examples")
    measures = fields["measures"]
    need(isinstance(measures, dict), "measures")
    for row in measures.values():
        need(isinstance(row, list) and len(row) == 4 and all(each is None or _number(each) for each in row), "measures")
    rules = fields["rules"]
    need(isinstance(rules, list), "rules")
    for row in rules:
        need(isinstance(row, list) and len(row) == 3 and _number(row[2]), "rules")
        need(isinstance(row[0], str) and isinstance(row[1], str), "rules")
    need(isinstance(fields["examples"], list), "examples")
    tree = fields["tree"]
    if tree is not None:
        need(isinstance(tree, dict) and set(tree) == {"filters", "distributions", "shares"}, "tree")
        made: dict[str, Any] = {
            name: None if tree[name] is None else _array(tree[name], f"tree's {name}", need) for name in tree
        }
        need(made["filters"] is not None and made["distributions"] is not None, "tree")
        nodes = len(made["filters"]) + 1
        need(nodes & (nodes - 1) == 0 and 2 <= nodes <= 4096 and made["filters"].ndim in (2, 3, 4), "tree's filters")
        need(made["distributions"].shape == (nodes, num_classes), "tree's distributions")
        need(made["shares"] is None or made["shares"].shape == (2 * nodes - 1,), "tree's shares")
        tree = made
    return Explained(
        name=fields["name"],
        method=fields["method"],
        num_examples=fields["num_examples"],
        measures={name: (_or_nan(row[0]), row[1], _or_nan(row[2]), row[3]) for name, row in measures.items()},
        examples=tuple(_shown(each, num_classes, need) for each in fields["examples"]),
        rules=tuple((row[0], row[1], float(row[2])) for row in rules),
        rules_note=fields["rules_note"],
        tree=tree,
    )


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _shown(fields: Any, num_classes: int, need: Callable[[bool, str], None]) -> ShownExample:
    need(isinstance(fields, dict) and set(fields) == _SHOWN, "an example's parts")
    need(isinstance(fields["rule"], str) and _number(fields["similarity"]), "an example's rule")
    for name in ("label", "teacher_answer", "student_answer"):
        need(type(fields[name]) is int and 0 <= fields[name] < num_classes, f"an example's {name}")
    need(
        isinstance(fields["path"], list) and all(isinstance(each, str) for each in fields["path"]), "an example's path"
    )
    arrays = {
        name: _array(fields[name], f"an example's {name}", need) for name in ("values", "teacher_map", "student_map")
    }
    shape = arrays["values"].shape
    need(len(shape) in (1, 3), "an example's values")
    need(all(arrays[name].shape == shape[:2] for name in ("teacher_map", "student_map")), "an example's maps")
    return ShownExample(
        **{**fields, **arrays, "path": tuple(fields["path"]), "similarity": float(fields["similarity"])}
    )


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e300


def _array(value: Any, part: str, need: Callable[[bool, str], None]) -> np.ndarray:
    """Return nested lists of numbers of one shape as an array."""
    need(isinstance(value, list) and bool(value), part)
    try:
        made = np.array(value)
    except (TypeError, ValueError, OverflowError):
        made = np.array([None])
    need(made.dtype.kind in "if" and 0 < made.size <= _LARGEST and bool(np.isfinite(made).all()), part)
    return made.astype("float64")
