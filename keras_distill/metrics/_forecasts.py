"""Scores of predicted distributions of numbers: CRPS, quantile scores, and the coverage of intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_distill._checks import array, error, number
from keras_distill._typing import Tensor


def _arrays(owner: str, **given: Any) -> list[np.ndarray]:
    """Return float64 arrays of one shape without NaN."""
    arrays = {name: array(owner, each) for name, each in given.items()}
    shapes = {each.shape for each in arrays.values()}
    if len(shapes) > 1:
        raise error(owner, f"{' and '.join(arrays)} of one shape", " and ".join(str(s.shape) for s in arrays.values()))
    for name, each in arrays.items():
        if np.isnan(each).any():
            raise error(owner, f"{name} without NaN", f"{int(np.isnan(each).sum())} of them")
    return list(arrays.values())


def _normal_cdf(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2.0)))


def gaussian_crps(labels: Tensor, means: Any, standard_deviations: Any) -> np.ndarray:
    """Continuous ranked probability score of Gaussian forecasts: the integral of (CDF - [x >= label])**2.

    Args:
        labels: (...,).
        means: (...,).
        standard_deviations: (...,), > 0.

    Returns:
        (...,), float64, in the unit of the labels; 0 is best. The mean over examples is the score.

    Raises:
        ValueError: if the shapes differ, a number is NaN, or a standard deviation is not above 0.

    Example:
        >>> round(float(gaussian_crps(0.0, 0.0, 1.0)), 4)
        0.2337

    Reference:
        Gneiting, Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", JASA 2007, section 4.2.
        Differs: nothing except the sign: smaller is better.
    """
    labels, means, spread = _arrays(
        "gaussian_crps", labels=labels, means=means, standard_deviations=standard_deviations
    )
    if (spread <= 0).any():
        raise error("gaussian_crps", "standard_deviations > 0", float(spread.min()))
    z = (labels - means) / spread
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return spread * (z * (2 * _normal_cdf(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))


def ensemble_crps(labels: Tensor, members: Tensor) -> np.ndarray:
    """Continuous ranked probability score of forecasts given as members or samples.

    Formula: mean_m |x_m - y| - mean_{m, n} |x_m - x_n| / 2.

    Args:
        labels: (...,).
        members: (..., members).

    Returns:
        (...,), float64, in the unit of the labels; 0 is best.

    Raises:
        ValueError: if the shapes do not fit or a number is NaN.

    Example:
        >>> float(ensemble_crps(0.0, [-1.0, 1.0]))
        0.5

    Reference:
        Gneiting, Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", JASA 2007, eq. 20.
        Differs: nothing except the sign.
    """
    owner = "ensemble_crps"
    labels, members = array(owner, labels), array(owner, members)
    if members.ndim == 0 or members.shape[:-1] != labels.shape:
        raise error(owner, f"members of shape {(*labels.shape, 'members')}", members.shape)
    members = np.sort(members, axis=-1)
    _arrays(owner, labels=labels)
    _arrays(owner, members=members)
    count = members.shape[-1]
    # The sum over pairs of |x_m - x_n|, computed from sorted members without forming the pairs.
    weights = 2 * np.arange(count) - count + 1
    spread = 2 * (members @ weights) / count**2
    return np.abs(members - labels[..., None]).mean(-1) - 0.5 * spread


def quantile_score(labels: Tensor, quantiles: Any, levels: Sequence[float]) -> np.ndarray:
    """Pinball score of each quantile: max(level * (y - q), (level - 1) * (y - q)).

    Twice its mean over many even levels approaches the CRPS.

    Args:
        labels: (...,).
        quantiles: (..., levels).
        levels: numbers between 0 and 1.

    Returns:
        (..., levels), float64, in the unit of the labels.

    Raises:
        ValueError: if the shapes do not fit, or a level is not between 0 and 1.

    Example:
        >>> quantile_score([2.0], [[0.0, 3.0]], [0.5, 0.9]).round(3)
        array([[1. , 0.1]])
    """
    owner = "quantile_score"
    labels, quantiles, level = (array(owner, each) for each in (labels, quantiles, levels))
    if level.ndim != 1:
        raise error(owner, "levels, a list of numbers", levels)
    if quantiles.shape != (*labels.shape, len(level)):
        raise error(owner, f"quantiles of shape {(*labels.shape, len(level))}", quantiles.shape)
    if (level <= 0).any() or (level >= 1).any():
        raise error(owner, "levels between 0 and 1", level.tolist())
    gaps = labels[..., None] - quantiles
    return np.maximum(level * gaps, (level - 1) * gaps)


class Coverage(NamedTuple):
    """Coverage and width of predicted intervals.

    Attributes:
        coverage: fraction of the labels within their intervals, bounds included.
        width: mean width.
        below: fraction of the labels below their intervals.
        above: fraction of the labels above their intervals.
        score: mean interval score, width + 2 / (1 - nominal) * distance of labels outside; smaller is better.
    """

    coverage: float
    width: float
    below: float
    above: float
    score: float


def interval_coverage(labels: Tensor, low: Any, high: Any, *, nominal: float = 0.9) -> Coverage:
    """Measure how many labels lie within their predicted intervals, and how wide the intervals are.

    Args:
        labels: (...,).
        low: (...,), lower bounds; -inf is allowed.
        high: (...,), upper bounds.
        nominal: between 0 and 1, the nominal coverage; used by the interval score.

    Returns:
        A ``Coverage`` over all labels.

    Raises:
        ValueError: if the shapes differ, a number is NaN, or a lower bound exceeds its upper bound.

    Example:
        >>> interval_coverage([0.0, 5.0], [-1.0, 0.0], [1.0, 4.0]).coverage
        0.5
    """
    owner = "interval_coverage"
    nominal = number(owner, "nominal", nominal, above=0.0, high=1.0 - 1e-9)
    labels, low, high = _arrays(owner, labels=labels, low=low, high=high)
    if (low > high).any():
        raise error(owner, "low <= high", f"{int((low > high).sum())} crossed intervals", "Sort the quantiles first")
    below, above = labels < low, labels > high
    outside = np.where(below, low - labels, np.where(above, labels - high, 0.0))
    score = high - low + 2 / (1 - nominal) * outside
    inside = 1.0 - below.mean() - above.mean()
    return Coverage(
        float(inside), float(np.mean(high - low)), float(below.mean()), float(above.mean()), float(score.mean())
    )


def mixture_quantiles(means: Any, standard_deviations: Any, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> np.ndarray:
    """Quantiles of an equal mixture of Gaussians, such as an ensemble of heteroscedastic regressors predicts.

    Args:
        means: (..., members).
        standard_deviations: (..., members), > 0.
        levels: numbers between 0 and 1.

    Returns:
        (..., levels), float64, exact to 1e-9 of the spread of the mixture.

    Raises:
        ValueError: if the shapes differ, a number is NaN, or a level or standard deviation is out of range.

    Example:
        >>> mixture_quantiles([-1.0, 1.0], [0.5, 0.5], [0.5]).round(6) + 0.0
        array([0.])
    """
    owner = "mixture_quantiles"
    means, spread = _arrays(owner, means=means, standard_deviations=standard_deviations)
    wanted = array(owner, levels)
    if (spread <= 0).any():
        raise error(owner, "standard_deviations > 0", float(spread.min()))
    if wanted.ndim != 1 or (wanted <= 0).any() or (wanted >= 1).any():
        raise error(owner, "levels between 0 and 1", wanted.tolist())
    far = 9 * spread.max(-1, keepdims=True)
    low = np.repeat(means.min(-1, keepdims=True) - far, len(wanted), -1)
    high = np.repeat(means.max(-1, keepdims=True) + far, len(wanted), -1)
    for _ in range(45):  # bisection: each step halves the bracket
        middle = 0.5 * (low + high)
        reached = _normal_cdf((middle[..., None, :] - means[..., :, None]) / spread[..., :, None]).mean(-2) < wanted
        low, high = np.where(reached, middle, low), np.where(reached, high, middle)
    return 0.5 * (low + high)
