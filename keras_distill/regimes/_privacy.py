"""The privacy cost of answers: counters that survive a kill, and their epsilon by Google's dp-accounting."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_distill import _files
from keras_distill._checks import error, number, optional

#: Noise of the threshold (None without one) and of the answers.
Noises = tuple[float | None, float]
#: How many queries were asked, and how many of them answered, with each pair of noises.
Spent = dict[Noises, tuple[int, int]]

_FILE = "privacy.json"


@dataclasses.dataclass(frozen=True)
class PrivacyReport:
    """The bound on what all answers together reveal about one example of the private data.

    The counts and the epsilon are totals since the first query, not those of one call. Epsilon does not depend on the
    data, so the report itself may be published.

    Args:
        epsilon: >= 0, the privacy loss that is not exceeded except with probability ``delta``.
        delta: in 0..1, exclusive.
        num_answered: number of queries that got a label.
        num_asked: number of queries put to the teachers, without refused ones.
    """

    epsilon: float
    delta: float
    num_answered: int
    num_asked: int


@dataclasses.dataclass(frozen=True)
class TrainingPrivacy:
    """The bound on what a model from ``DifferentiallyPrivate`` reveals about one example of its training data.

    Args:
        epsilon: >= 0, the privacy loss that is not exceeded except with probability ``delta``, if an example is added
            or removed.
        delta: in 0..1, exclusive.
        num_steps: number of updates so far.
        sampling_rate: probability with which an example entered a step.
        noise: standard deviation as a multiple of the clipping norm.
    """

    epsilon: float
    delta: float
    num_steps: int
    sampling_rate: float
    noise: float


def check_delta(owner: str, delta: float) -> float:
    """Return ``delta`` as a float between 0 and 1, both exclusive, or raise the error that says so."""
    advice = "Choose less than one over the number of private examples, such as 1e-5"
    delta = number(owner, "delta", delta, above=0.0, advice=advice)
    if delta >= 1:
        raise error(owner, "delta < 1", delta, advice)
    return delta


def report(owner: str, spent: Mapping[Noises, tuple[int, int]], delta: float) -> PrivacyReport:
    """Return the report for the budget spent."""
    asked, answered = (sum(counts[i] for counts in spent.values()) for i in (0, 1))
    return PrivacyReport(epsilon(owner, spent, delta), delta, answered, asked)


def epsilon(owner: str, spent: Mapping[Noises, tuple[int, int]], delta: float) -> float:
    """Return the epsilon of Gaussian events under Renyi differential privacy, at the accountant's default orders.

    One private example changes one teacher's vote. That changes the highest count by at most one, and two counts of
    the histogram by one each, hence the square root of 2.

    Args:
        owner: name shown in the error message.
        spent: queries asked and answered, by their noises.
        delta: in 0..1.

    Returns:
        Epsilon, 0.0 if nothing was asked.

    Raises:
        ValueError: if dp-accounting is missing.
    """
    dp_accounting, accountant = _accountant(owner)
    for (selection_noise, answer_noise), (asked, answered) in spent.items():
        if asked and selection_noise is not None:
            accountant.compose(dp_accounting.GaussianDpEvent(selection_noise), asked)
        if answered:
            accountant.compose(dp_accounting.GaussianDpEvent(answer_noise / math.sqrt(2.0)), answered)
    return float(accountant.get_epsilon(delta))


def training(owner: str, noise: float, sampling_rate: float, num_steps: int, delta: float) -> TrainingPrivacy:
    """Return the privacy cost of steps of a subsampled Gaussian mechanism, under Renyi differential privacy.

    Args:
        owner: name shown in the error message.
        noise: as a multiple of the clipping norm.
        sampling_rate: rate of Poisson sampling.
        num_steps: >= 0.
        delta: in 0..1.
    """
    delta, spent = check_delta(owner, delta), 0.0
    dp_accounting, accountant = _accountant(owner)
    if num_steps:
        event = dp_accounting.PoissonSampledDpEvent(sampling_rate, dp_accounting.GaussianDpEvent(noise))
        accountant.compose(event, num_steps)
        spent = float(accountant.get_epsilon(delta))
    return TrainingPrivacy(spent, delta, num_steps, sampling_rate, noise)


def _accountant(owner: str) -> tuple[Any, Any]:
    """Return the library and a new accountant."""
    with optional(owner, "dp-accounting", "privacy"):
        import dp_accounting
        from dp_accounting import rdp
    return dp_accounting, rdp.RdpAccountant()


def add(spent: Mapping[Noises, tuple[int, int]], noises: Noises, asked: int, answered: int) -> Spent:
    """Return the budget spent after more queries."""
    before = spent.get(noises, (0, 0))
    return {**spent, noises: (before[0] + asked, before[1] + answered)}


class Ledger:
    """The budget spent, in memory or in a directory where it survives a kill, with the labels obtained for it.

    Only one process may hold the ledger at a time: use it as a context manager, which rereads the file.

    Args:
        owner: name shown in the error messages.
        directory: where to keep counters and labels, created if missing. None keeps the counters in memory.
    """

    def __init__(self, owner: str, directory: Any = None) -> None:
        self._owner = owner
        self._path = None if directory is None else Path(directory) / _FILE
        self._lock: _files.Lock | None = None
        self._spent: Spent = {}
        self._labels: dict[str, dict[str, int]] = {}
        if self._path is not None:
            _files.make_folder(self._path.parent, parents=True, exist_ok=True)
            self._read()

    @property
    def spent(self) -> Spent:
        """A copy of the privacy budget spent so far."""
        return dict(self._spent)

    def labels(self, kind: str) -> dict[str, int]:
        """Return the labels given to queries, -1 if the threshold was not passed; none in memory.

        Args:
            kind: noises and threshold of these queries.
        """
        return dict(self._labels.get(kind, {}))

    def write(self, spent: Spent, kind: str, labels: dict[str, int]) -> None:
        """Set the budget spent and add the labels obtained for it; returns when both are on disk, in one file.

        Args:
            spent: all counters.
            kind: noises and threshold of the labels.
            labels: fingerprint of a query to its label.
        """
        if self._path is not None:
            rows = [
                {"selection_noise": noises[0], "answer_noise": noises[1], "num_asked": asked, "num_answered": answered}
                for noises, (asked, answered) in spent.items()
            ]
            kept = {**self._labels, kind: {**self._labels.get(kind, {}), **labels}}
            _files.put(self._path, json.dumps({"version": 2, "spent": rows, "labels": kept}, indent=1).encode())
            self._labels = kept
        self._spent = dict(spent)

    def _read(self) -> None:
        if self._path is None or not self._path.exists():
            return
        try:
            content = json.loads(_files.read(self._path))
            rows, labels = content["spent"], content.get("labels", {})  # version 1 kept no labels
            pairs = {(row["selection_noise"], row["answer_noise"]): (row["num_asked"], row["num_answered"])
                     for row in rows}  # fmt: skip
            sound = content["version"] in (1, 2) and len(pairs) == len(rows)
            for (selection_noise, answer_noise), counts in pairs.items():
                sound &= all(isinstance(count, int) for count in counts) and 0 <= counts[1] <= counts[0]
                sound &= answer_noise > 0 and (selection_noise is None or selection_noise > 0)
            sound &= all(type(label) is int and label >= -1 for each in labels.values() for label in each.values())
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            advice = "Restore it from a backup: it records the privacy budget spent"
            raise error(self._owner, f"the counters of earlier queries in {_FILE}", "a damaged file", advice)
        self._spent, self._labels = pairs, labels

    def __enter__(self) -> Ledger:
        if self._path is not None:
            try:
                self._lock = _files.Lock(self._path.parent)
            except BlockingIOError:
                advice = "Wait until that process has ended"
                raise error(self._owner, "a directory that no other process uses", "one in use", advice) from None
            self._read()
        return self

    def __exit__(self, *problem: object) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
