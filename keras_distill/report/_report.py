"""The measurements as plain values: a frozen report that prints, saves and loads."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import os
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_distill import _files
from keras_distill._checks import choice, error, nearest, printable
from keras_distill.metrics import ReliabilityBins
from keras_distill.report._comparison import Comparison
from keras_distill.report._membership import Membership
from keras_distill.report._robustness import Robustness

Histories = Mapping[str, Sequence[Mapping[str, Sequence[float]]]]


@dataclasses.dataclass(frozen=True)
class Score:
    """One number per model, with mean and spread.

    Args:
        values: one per model, for instance the same student trained from several seeds.

    Example:
        >>> score = Score((1.0, 2.0, 3.0))
        >>> score.mean, score.spread
        (2.0, 1.0)
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation (divided by n - 1); None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 and all(map(math.isfinite, self.values)) else None


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """Measurements of one model, or of the same model trained several times.

    Args:
        name: the user's name for the model.
        accuracy: fraction correct, 0 to 1.
        negative_log_likelihood: mean over examples, nats.
        expected_calibration_error: mean distance between confidence and accuracy over the bins, 0 to 1.
        brier_score: squared distance between probabilities and one-hot label, summed over classes, 0 to 2.
        agreement: fraction of examples with the reference's answer, 0 to 1; None for the reference itself.
        num_parameters: number of parameters, trainable or not.
        size_bytes: size of the ``.keras`` file, without optimizer state.
        milliseconds_per_example: fastest of 100 calls of ``predict_on_batch``, divided by the batch size.
        batch_size: examples in those calls.
        reliability: bins of confidence over all examples of all models of this entry.
        confusion: (classes, classes) counts, rows are the true classes; summed over the models.
        risk_coverage: (2, at most 200): coverage, and the error rate among that fraction of most certain examples,
            over all examples of all models of this entry; empty in reports of older versions.
        expected_cost: mean cost of decisions per example if ``evaluate`` was given costs; otherwise None.
        membership: audit of the first model if ``evaluate`` was given members; otherwise None.
        robustness: results under attack and on corrupted inputs if ``evaluate`` was given either; otherwise None.
    """

    name: str
    accuracy: Score
    negative_log_likelihood: Score
    expected_calibration_error: Score
    brier_score: Score
    agreement: Score | None
    num_parameters: int
    size_bytes: int
    milliseconds_per_example: float
    batch_size: int
    reliability: ReliabilityBins
    confusion: np.ndarray
    risk_coverage: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((2, 0)))
    expected_cost: Score | None = None
    membership: Membership | None = None
    robustness: Robustness | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Models compared on the same examples: everything that the table, the figures and the page show.

    Args:
        title: one line.
        entries: one per model, in the given order.
        reference: name of the entry to which the others' ``agreement`` refers; None without one.
        class_names: one per class.
        num_examples: number of test examples.
        notes: sentences that a reader needs to judge the numbers.
        settings: how the models were made, names and plain values.
        environment: versions and machine, filled in by ``evaluate``.
        histories: training curves: entry -> one dictionary per model -> name -> one value per epoch.
        explanations: results of ``evaluate(..., explain=True)`` for each student; empty otherwise.
        comparison: comparison of the methods of a cross-validation if ``evaluate`` was given one; otherwise None.
    """

    title: str
    entries: tuple[Entry, ...]
    reference: str | None
    class_names: tuple[str, ...]
    num_examples: int
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    histories: Histories = dataclasses.field(default_factory=dict)
    explanations: tuple[Any, ...] = ()
    comparison: Comparison | None = None

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of that name."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        known = nearest(str(name), [entry.name for entry in self.entries])
        raise error("Report", f"the name of an entry (nearest: {known})", repr(name))

    def to_json(self) -> str:
        """Return the report as JSON text; NaN and infinity become null.

        Returns:
            Strict JSON, for ``from_json`` and for other programs.
        """
        text = json.dumps(_plain(self), indent=1, allow_nan=False, ensure_ascii=False)
        return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)  # UTF-8 has no lone surrogates

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read a report written by ``to_json``.

        Args:
            text: the JSON text.

        Returns:
            An equal report.

        Raises:
            ValueError: if the text is anything else.
        """
        from keras_distill.report._reading import report_of  # imports this module

        return report_of(text)

    def __str__(self) -> str:
        """Return the title and the table of the numbers, as lines of text."""
        from keras_distill.report._table import lines

        return lines(self)

    def _repr_html_(self) -> str:
        """Return the title and the table of the numbers, for notebooks."""
        from keras_distill.report._page import numbers

        return f"<h3>{html.escape(printable(self.title))}</h3>\n{numbers(self)}"

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Write the report as JSON or as one HTML page, depending on the suffix of the path.

        Args:
            path: ends in ``.json`` or ``.html``; an existing file is replaced.

        Returns:
            The path.

        Raises:
            ValueError: if the path ends in anything else, or matplotlib is missing for a page.
            OSError: if the file cannot be written.
        """
        from keras_distill.report._page import write_page

        path = pathlib.Path(path)
        choice("Report.save", "the ending of path", path.suffix, (".json", ".html"))
        if path.suffix == ".html":
            return write_page(self, path)
        _files.put(path, self.to_json().encode())
        return path


def _plain(value: Any) -> Any:
    """Convert dataclasses, arrays and mappings to JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
