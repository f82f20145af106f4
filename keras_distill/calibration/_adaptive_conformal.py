"""Prediction intervals for drifting series, with a margin that adapts to the misses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_distill._checks import choice, error, integer, number
from keras_distill.calibration._conformal import KINDS, ConformalIntervals, conformal_scores


class AdaptiveConformal:
    """Intervals whose miss rate converges to the nominal one over time, for any series (ACI).

    Choose it if examples arrive in order, followed by their labels: a series whose noise grows breaks the guarantee of
    ``SplitConformal``, which assumes exchangeable examples. The cost is a state that changes with every label, so these
    intervals cannot be part of a served model.

    Formula: after each label level <- level + rate * ((1 - coverage) - missed); margin = the ceil((n + 1) *
    (1 - level))-th smallest of the last ``window`` scores, infinite for a level below 1 / (n + 1), minus infinity
    (an empty interval) for a level of at least 1. Over any T labels that arrive without delay, the miss rate differs
    from 1 - coverage by at most (max(level_1, 1 - level_1) + rate) / (rate * T). Scores are those of
    ``SplitConformal``.

    Args:
        coverage: between 0 and 1.
        kind: as in ``SplitConformal``.
        rate: > 0, step size of the level; large values adapt faster and fluctuate more.
        window: >= 10, number of latest scores that are used.

    Attributes:
        levels: (outputs,), the level of each output; initially ``1 - coverage``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = rng.normal(size=2000) * np.linspace(1, 4, 2000)
        >>> adaptive = AdaptiveConformal(0.9, window=200).fit(np.zeros(200), y[:200])
        >>> low, high = adaptive.follow(np.zeros(1800), y[200:])
        >>> inside = (low[:, 0] <= y[200:]) & (y[200:] <= high[:, 0])
        >>> print(f"{inside.mean():.2f}")
        0.90

    Reference:
        Gibbs, Candès, "Adaptive Conformal Inference Under Distribution Shift", NeurIPS 2021, arXiv:2106.00170.
        Differs: scores come from a sliding window; labels may arrive with a delay.
    """

    def __init__(self, coverage: float = 0.9, kind: str = "absolute", *, rate: float = 0.01, window: int = 500) -> None:
        owner = "AdaptiveConformal"
        self.coverage = number(owner, "coverage", coverage, above=0.0, high=1.0 - 1e-9)
        self.kind = choice(owner, "kind", kind, KINDS)
        self.rate = number(owner, "rate", rate, above=0.0)
        self.window = integer(owner, "window", window, low=10)
        self.levels: np.ndarray | None = None
        self._scores: list[np.ndarray] = []

    def fit(self, outputs: Any, labels: Any) -> AdaptiveConformal:
        """Initialise from held-out examples that precede the series.

        Args:
            outputs: the model's outputs for them; see ``SplitConformal``.
            labels: (examples,) or (examples, outputs).

        Returns:
            This object.

        Raises:
            ValueError: if there are fewer than ten examples, or the shapes do not fit.
        """
        scores = conformal_scores("AdaptiveConformal.fit", self.kind, outputs, labels)
        if len(scores) < 10:
            raise error("AdaptiveConformal.fit", "at least ten examples", f"{len(scores)}")
        self._scores = list(scores[-self.window :].T)
        self.levels = np.full(len(self._scores), 1.0 - self.coverage)
        return self

    @property
    def margins(self) -> np.ndarray:
        """The margins of the next intervals, (outputs,)."""
        return np.array([_margin(own, level) for own, level in zip(self._scores, self._known(), strict=True)])

    def intervals(self, outputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return lower and upper bounds, each (examples, outputs), with the current margins.

        Args:
            outputs: as in ``fit``.

        Raises:
            ValueError: if ``fit`` was not called.
        """
        outputs = np.asarray(outputs, "float32")
        found = ConformalIntervals(self.kind, self.margins)(outputs[:, None] if outputs.ndim == 1 else outputs)
        low, high = (np.asarray(ops.convert_to_numpy(found[name])) for name in ("low", "high"))
        return (low, high) if low.ndim == 2 else (low[:, None], high[:, None])

    def follow(self, outputs: Any, labels: Any, delays: int | Sequence[int] = 0) -> tuple[np.ndarray, np.ndarray]:
        """Process a series: return each interval before its label is known, and adapt when the label arrives.

        Args:
            outputs: the model's outputs in order of time; as in ``fit``.
            labels: (steps,) or (steps, outputs).
            delays: >= 0, number of steps by which a label is late; one number, or one for each output. The label of a
                forecast h steps ahead arrives h - 1 steps after the next forecast: use ``range(horizons)``.

        Returns:
            Lower and upper bounds, each (steps, outputs). Labels that have not arrived by the end are not used.

        Raises:
            ValueError: if ``fit`` was not called, the number of outputs differs, or a delay does not fit.
        """
        owner = "AdaptiveConformal.follow"
        levels = self._known()
        scores = conformal_scores(owner, self.kind, outputs, labels)
        wait = np.broadcast_to(np.asarray(delays), levels.shape) if np.ndim(delays) == 0 else np.asarray(delays)
        if scores.shape[1] != len(levels):
            raise error(owner, f"{len(levels)} outputs, as in fit", f"{scores.shape[1]}")
        if wait.shape != levels.shape or wait.dtype.kind not in "iu" or wait.min() < 0:
            raise error(owner, f"delays >= 0, one number or {len(levels)}", str(delays))
        margins = np.empty(scores.shape)
        for step in range(len(scores)):
            margins[step] = self.margins
            for output in np.flatnonzero(wait <= step):
                told = step - int(wait[output])
                missed = scores[told, output] > margins[told, output]
                levels[output] += self.rate * ((1.0 - self.coverage) - missed)
                self._scores[output] = np.append(self._scores[output], scores[told, output])[-self.window :]
        outputs = np.asarray(outputs, "float64")
        outputs = outputs[:, None] if outputs.ndim == 1 else outputs
        if self.kind == "quantiles":
            outputs = outputs[:, None] if outputs.ndim == 2 else outputs
            return outputs[..., 0] - margins, outputs[..., -1] + margins
        if self.kind == "gaussian":
            outputs, log_variance = np.split(outputs, 2, axis=1)
            margins = margins * np.exp(0.5 * log_variance)
        return outputs - margins, outputs + margins

    def _known(self) -> np.ndarray:
        if self.levels is None:
            raise error("AdaptiveConformal", "initial scores", "none", "Call fit(outputs, labels) first")
        return self.levels


def _margin(scores: np.ndarray, level: float) -> float:
    place = math.ceil((len(scores) + 1) * (1.0 - level) - 1e-9)
    if place > len(scores):
        return math.inf
    return float(np.partition(scores, place - 1)[place - 1]) if place >= 1 else -math.inf
