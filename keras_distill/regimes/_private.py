"""Labels from private data: teachers of disjoint shards vote, and only the noisy winner is told."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error, integer, number
from keras_distill.regimes import _privacy
from keras_distill.regimes._fingerprints import check_disjoint, fingerprints
from keras_distill.regimes._privacy import PrivacyReport
from keras_distill.regimes._private_draws import secure_normal

_OWNER = "PrivateVotes"


@dataclasses.dataclass(frozen=True)
class PrivateLabels:
    """The answers of ``PrivateVotes.label``; everything in here may be published.

    Args:
        labels: (queries,), int64 class ids; -1 where no label was given.
        answered: (queries,), bool: where there is a label.
        asked: (queries,), bool: False where the query was refused because it could have exceeded ``max_epsilon``.
        report: what all answers so far have cost.
    """

    labels: np.ndarray
    answered: np.ndarray
    asked: np.ndarray
    report: PrivacyReport


class PrivateVotes:
    """Labels public examples by a noisy vote of teachers, each trained on its own private shard (PATE, GNMax).

    Choose it where the training data must stay private and public examples without labels can be had. Train many
    teachers: the noise must be large beside one vote and small beside the winner's lead. No one example may be seen by
    two teachers, nor may a teacher be trained on what another one says; otherwise the guarantee does not hold.

    Formula: label = argmax_k (n_k + N(0, answer_noise**2)), n_k = number of teachers that vote for class k. With a
    threshold (confident GNMax) a query is answered only if max_k n_k + N(0, selection_noise**2) >= threshold.

    Only the labels are protected. The teachers, their votes and a seed must never be published.

    Args:
        teachers: two or more ``keras.Model`` or functions, from inputs to (examples, classes) logits or probabilities.
        threshold: > 0, in votes: least noisy count of the winner. None answers every query.
        selection_noise: > 0, in votes: standard deviation of the threshold's noise; only with a threshold.
        answer_noise: > 0, in votes: standard deviation of the noise of each class.
        shards: the private training data of each teacher, to check that they are disjoint: for each teacher an array,
            or a tuple of inputs and labels. Only compared by their inputs' fingerprints, never kept. None trusts you.
        directory: where counters and labels are kept, so that they survive a kill; all votes about the same private
            data must share one directory. A query that was paid for there gets its label again, at no cost. None keeps
            the counters in this object, and no labels.
        seed: None draws the noise from the operating system's source for cryptography. An integer makes it repeatable:
            for tests only, because whoever knows the seed can take the noise away.
        batch_size: >= 1, of the teachers' predictions.

    Raises:
        ValueError: if there are fewer than two teachers, shards overlap, or an argument is out of bounds; when
            ``label`` is called without ``keras-distill[privacy]``.

    Example:
        >>> import numpy as np
        >>> cat, dog = (lambda x: np.tile([1.0, 0.0], (len(x), 1))), (lambda x: np.tile([0.0, 1.0], (len(x), 1)))
        >>> votes = PrivateVotes([cat] * 90 + [dog] * 10, answer_noise=10.0, seed=0)
        >>> result = votes.label(np.zeros((3, 2)), max_epsilon=0.9, delta=1e-5)
        >>> result.labels, result.report.num_answered, round(result.report.epsilon, 2)
        (array([ 0,  0, -1]), 2, 0.79)

    Reference:
        Papernot et al., "Scalable Private Learning with PATE", 2018, arXiv:1802.08908, sections 3.1 and 3.2. Differs:
        epsilon is the bound that does not depend on the data; the published figures use one that does, which is
        smaller but itself private.
    """

    def __init__(
        self,
        teachers: Sequence[Any],
        threshold: float | None = None,
        selection_noise: float | None = None,
        answer_noise: float | None = None,
        *,
        shards: Sequence[Any] | None = None,
        directory: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        batch_size: int = 256,
    ) -> None:
        self.teachers = list(teachers) if isinstance(teachers, (list, tuple)) else [teachers]
        if len(self.teachers) < 2:
            advice = "Train one on each of many disjoint shards"
            raise error(_OWNER, "two or more teachers", f"{len(self.teachers)}", advice)
        for teacher in self.teachers:
            if not callable(teacher):
                raise error(_OWNER, "each teacher to be a keras.Model or a function", type(teacher).__name__)
        if (threshold is None) != (selection_noise is None):
            got = f"threshold={threshold} and selection_noise={selection_noise}"
            raise error(_OWNER, "threshold and selection_noise together", got, "Leave both out for plain GNMax")
        advice = "It is the noise's standard deviation in votes; a fifth of the number of teachers is a start"
        self.answer_noise = number(_OWNER, "answer_noise", answer_noise, above=0.0, advice=advice)
        self.threshold, self.selection_noise = threshold, selection_noise
        if threshold is not None:
            self.threshold = number(_OWNER, "threshold", threshold, above=0.0)
            self.selection_noise = number(_OWNER, "selection_noise", selection_noise, above=0.0)
        self.seed = None if seed is None else integer(_OWNER, "seed", seed, low=0)
        self.batch_size = integer(_OWNER, "batch_size", batch_size, low=1)
        if shards is not None:
            check_disjoint(_OWNER, shards, len(self.teachers))
        self._ledger = _privacy.Ledger(_OWNER, directory)

    def report(self, delta: float) -> PrivacyReport:
        """Return what all answers so far have cost.

        Args:
            delta: in 0..1, exclusive.

        Returns:
            The frozen report.

        Raises:
            ValueError: if ``delta`` is out of bounds.
        """
        return _privacy.report(_OWNER, self._ledger.spent, _privacy.check_delta(_OWNER, delta))

    def label(self, x: Any, *, max_epsilon: float, delta: float) -> PrivateLabels:
        """Label examples until the next query could exceed ``max_epsilon``; the remaining ones are refused.

        Counters and labels are on disk before a label is returned: a kill is never undercounted, and after one the same
        call returns what was paid for and asks only the rest. Equal rows of ``x`` are queries of their own.

        Args:
            x: public examples, an array with one query per row; asked in this order.
            max_epsilon: > 0, for all queries since the first one, not for this call.
            delta: in 0..1, exclusive: the probability with which epsilon may be exceeded; choose less than one over
                the number of private examples.

        Returns:
            ``.labels`` (-1 where there is none), ``.answered``, ``.asked`` and ``.report``. Train a student on
            ``x[result.answered], result.labels[result.answered]``.

        Raises:
            ValueError: if epsilon or delta is out of bounds, a teacher's outputs are not finite numbers of shape
                (examples, classes), or another process uses the directory.
        """
        advice = "It bounds the privacy loss of all answers together"
        max_epsilon = number(_OWNER, "max_epsilon", max_epsilon, above=0.0, advice=advice)
        delta = _privacy.check_delta(_OWNER, delta)
        x = np.asarray(x)
        if x.ndim < 1:
            raise error(_OWNER, "an array of examples", f"{x.ndim} dimensions")
        with self._ledger as ledger:
            spent = ledger.spent
            first = sum(asked for asked, _ in spent.values())
            kind = f"{self.threshold} {self.selection_noise} {self.answer_noise}"
            names, known = fingerprints(x, apart=True), ledger.labels(kind)
            asked = np.array([name in known for name in names], bool)
            labels = np.array([known.get(name, -1) for name in names], "int64")
            new = np.flatnonzero(~asked)
            # Without room for one query nobody is asked.
            room = self._room(spent, len(new), max_epsilon, delta)
            counts = self._votes(x[new]) if room else np.zeros((len(new), 1))
            passes, noisy = self._noisy(counts, first)
            num_asked = 0
            while room:
                found = int(passes[num_asked : num_asked + room].sum())
                spent = _privacy.add(spent, (self.selection_noise, self.answer_noise), room, found)
                num_asked += room
                room = self._room(spent, len(new) - num_asked, max_epsilon, delta)
            paid = new[:num_asked]
            asked[paid] = True
            labels[paid] = np.where(passes, noisy.argmax(-1), -1)[:num_asked]
            ledger.write(spent, kind, {names[index]: int(labels[index]) for index in paid})
        return PrivateLabels(labels, labels >= 0, asked, _privacy.report(_OWNER, spent, delta))

    def _room(self, spent: _privacy.Spent, most: int, max_epsilon: float, delta: float) -> int:
        """Return how many more queries can be asked even if all of them are answered, at most ``most``."""
        low, high = 0, most
        while low < high:  # epsilon grows with the number of queries
            middle = (low + high + 1) // 2
            worst = _privacy.add(spent, (self.selection_noise, self.answer_noise), middle, middle)
            if _privacy.epsilon(_OWNER, worst, delta) <= max_epsilon:
                low = middle
            else:
                high = middle - 1
        return low

    def _votes(self, x: np.ndarray) -> np.ndarray:
        """Return (examples, classes) counts of votes."""
        rows, counts = np.arange(len(x)), None
        for index, teacher in enumerate(self.teachers):
            outputs = self._outputs(teacher, x)
            wanted = "(examples, classes)" if counts is None else f"{counts.shape}"
            same = outputs.ndim == 2 and len(outputs) == len(x) and outputs.shape[1] > 1
            if not same or (counts is not None and outputs.shape != counts.shape):
                raise error(_OWNER, f"outputs of shape {wanted} from teacher {index}", f"{outputs.shape}")
            if not np.isfinite(outputs.max(-1)).all():
                raise error(_OWNER, f"finite outputs from teacher {index}", "NaN or infinity")
            counts = np.zeros(outputs.shape) if counts is None else counts
            counts[rows, outputs.argmax(-1)] += 1
        return counts if counts is not None else np.zeros((len(x), 1))

    def _outputs(self, teacher: Any, x: np.ndarray) -> np.ndarray:
        if isinstance(teacher, keras.Model):
            return np.asarray(teacher.predict(x, batch_size=self.batch_size, verbose=0))
        return np.asarray(teacher(x))

    def _noisy(self, counts: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which queries pass the threshold, and the noisy counts.

        A seeded stream starts anew for each total of queries, so that no noise is used for two answers.
        """
        stream = None if self.seed is None else np.random.default_rng([self.seed, first])
        normal = secure_normal if stream is None else stream.standard_normal
        noisy = counts + self.answer_noise * normal(counts.shape)
        if self.threshold is None or self.selection_noise is None:
            return np.ones(len(counts), bool), noisy
        return counts.max(-1) + self.selection_noise * normal((len(counts),)) >= self.threshold, noisy
