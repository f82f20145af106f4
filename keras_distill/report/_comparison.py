"""Comparison of methods on the same held-out examples, as a table in a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from keras_distill import regimes
from keras_distill._checks import error, nearest


@dataclasses.dataclass(frozen=True)
class Method:
    """One method's held-out score.

    Args:
        name: as in ``cross_validate``.
        mean: mean over folds.
        spread: standard deviation over folds.
        difference: mean paired difference from the baseline over examples; 0 for the baseline.
        low: lower bound of its 95% interval.
        high: upper bound.
    """

    name: str
    mean: float
    spread: float
    difference: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Result of ``comparison``: the methods of a cross-validation, each against one baseline.

    Args:
        baseline: name of the method with which the others are compared.
        num_folds: number of trainings of each method.
        num_examples: number of examples, each held out once.
        methods: in the given order.
    """

    baseline: str
    num_folds: int
    num_examples: int
    methods: tuple[Method, ...]

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the table as text: a header, and a row for each method."""
        header = ["method", "held-out score", f"minus {self.baseline}", "95% interval"]
        rows = []
        for each in self.methods:
            paired = ["–", "–"]
            if each.name != self.baseline:
                paired = [f"{each.difference:+.4f}", f"{each.low:+.4f} to {each.high:+.4f}"]
            rows.append([each.name, f"{each.mean:.4f} ± {each.spread:.4f}", *paired])
        return header, rows

    def __str__(self) -> str:
        """Return the table as lines of text."""
        header, rows = self.cells()
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]
        ]
        return "\n".join(line.rstrip() for line in lines)


def comparison(result: regimes.CrossValidation, baseline: str | None = None) -> Comparison:
    """Compare the methods of a cross-validation with one of them, example by example.

    Choose it over comparing means: all methods were evaluated on the same examples, so an example's difficulty cancels
    in the difference. The interval covers other examples, not other training runs.

    Args:
        result: the result of ``regimes.cross_validate``.
        baseline: name of the method to compare with; None takes the first one.

    Returns:
        The frozen table; ``report.evaluate(..., comparison=...)`` shows it on the page and keeps it in the JSON.

    Raises:
        ValueError: if ``result`` is not a cross-validation, or the method does not exist.

    Example:
        >>> import numpy as np
        >>> values = {"alone": np.array([1.0, 0.0, 1.0, 0.0]), "taught": np.array([1.0, 1.0, 1.0, 0.0])}
        >>> scores = {name: each.reshape(2, 2).mean(1) for name, each in values.items()}
        >>> print(comparison(regimes.CrossValidation(scores, values)))
        method  held-out score   minus alone  95% interval
        alone   0.5000 ± 0.0000  –            –
        taught  0.7500 ± 0.3536  +0.2500      -0.2400 to +0.7400
    """
    owner = "report.comparison"
    if not isinstance(result, regimes.CrossValidation):
        raise error(owner, "the result of regimes.cross_validate", result)
    names = list(result.scores)
    baseline = names[0] if baseline is None else baseline
    if baseline not in names:
        raise error(owner, f"a baseline among the methods (nearest: {nearest(str(baseline), names)})", repr(baseline))
    methods = []
    for name in names:
        paired = (0.0, 0.0, 0.0) if name == baseline else result.difference(name, baseline)
        methods.append(Method(name, result.mean(name), result.spread(name), *paired))
    return Comparison(baseline, len(result.scores[baseline]), len(result.values[baseline]), tuple(methods))


def comparison_of(fields: Any, need: Callable[[bool, str], None]) -> Comparison | None:
    """Return the comparison from a report's JSON text.

    Args:
        fields: the parsed comparison, or None.
        need: raises if its first argument is false.
    """
    if fields is None:
        return None
    names = {field.name for field in dataclasses.fields(Comparison)}
    need(isinstance(fields, dict) and set(fields) == names, "comparison")
    need(isinstance(fields["methods"], list) and bool(fields["methods"]), "comparison")
    methods = []
    for each in fields["methods"]:
        need(isinstance(each, dict) and set(each) == {field.name for field in dataclasses.fields(Method)}, "comparison")
        numbers = [value for name, value in each.items() if name != "name"]
        need(isinstance(each["name"], str), "comparison")
        need(all(type(value) in (int, float) and abs(value) <= 1e300 for value in numbers), "comparison")
        methods.append(Method(**each))
    need(fields["baseline"] in [each.name for each in methods], "comparison")
    counts = [fields["num_folds"], fields["num_examples"]]
    need(all(type(count) is int and 0 <= count < 2**63 for count in counts), "comparison")
    return Comparison(fields["baseline"], fields["num_folds"], fields["num_examples"], tuple(methods))
