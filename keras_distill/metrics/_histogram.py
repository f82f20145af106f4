"""A histogram of scores of any magnitude, with which ranking metrics stream in a state of fixed size."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_distill._checks import array, choice, error, with_axes
from keras_distill._typing import Tensor
from keras_distill.metrics._examples import Examples, as_float
from keras_distill.metrics._streaming import StreamingMetric, float64
from keras_distill.metrics._top_class import first_largest

# Cells of equal width in log2 |score|: 256 per doubling from 2**-40 to 2**20 on either side of zero, so that scores
# are distinguished if they differ by more than 0.28 %.
LOWEST, HIGHEST, PER_DOUBLING = -40, 20, 256
HALF = (HIGHEST - LOWEST) * PER_DOUBLING
CELLS = 2 * HALF + 1

SCORES = ("max_probability", "entropy", "margin", "energy")


def score_cell(scores: Tensor) -> Tensor:
    """Return the cell of each score, 0 .. CELLS - 1, in the order of the scores; NaN goes to the middle."""
    scores = float64(scores)
    zero = ops.logical_or(ops.isnan(scores), ops.equal(scores, 0.0))
    octave = ops.log2(ops.abs(ops.where(zero, ops.ones_like(scores), scores)))
    step = ops.floor((octave - LOWEST) * PER_DOUBLING) + 1.0
    step = ops.cast(ops.clip(step, 0.0, float(HALF)), "int32")
    step = ops.where(zero, ops.zeros_like(step), step)
    return HALF + ops.where(scores < 0, -step, step)


def cell_sums(scores: Tensor, weights: Tensor, *values: Tensor) -> Tensor:
    """Sum the weights and each weighted value in the cell of its score; a score of NaN makes the sums NaN.

    Args:
        scores: (n,).
        weights: (n,) float64; weight 0 removes an example.
        *values: (n,) each.

    Returns:
        (1 + number of values, CELLS), float64.
    """
    none = ops.equal(weights, 0.0)
    weights = ops.where(ops.logical_and(ops.isnan(float64(scores)), ops.logical_not(none)), float("nan"), weights)
    parts = [weights] + [ops.where(none, ops.zeros_like(weights), weights * float64(v)) for v in values]
    return ops.transpose(ops.segment_sum(ops.stack(parts, axis=-1), score_cell(scores), num_segments=CELLS))


class HistogramMetric(StreamingMetric):
    """Base of the metrics that need an order of all examples: sums in the cells of a histogram of scores.

    Exact except for ties: scores closer than 0.28 % share a cell and count as equal, and magnitudes below 1e-12 or
    above 1e6 are not distinguished. The state is about 0.25 megabytes per summed quantity, for any number of examples.
    """

    def __init__(self, channels: int, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.cells = self.add_sums((channels, CELLS), "cells")


def exact_groups(scores: Tensor, sample_weight: Tensor, *values: Tensor) -> tuple[np.ndarray, ...]:
    """Group equal scores, lowest first, in float64: the exact counterpart of the histogram.

    Args:
        scores: (n,).
        sample_weight: (n,) or None.
        *values: (n,) each.

    Returns:
        The weight and each weighted value summed per distinct score, each (groups,). A NaN score makes all of them NaN.
    """
    scores = to_float64(scores)
    sizes = [to_float64(each).size for each in (*values, *(() if sample_weight is None else (sample_weight,)))]
    if any(size != scores.size for size in sizes):
        raise error("metrics", f"one value for each of {scores.size} scores", f"{sizes} values")
    weights = np.ones_like(scores) if sample_weight is None else to_float64(sample_weight)
    keep = weights != 0
    scores, weights = scores[keep], weights[keep]
    if np.isnan(scores).any():
        return tuple(np.full(1, np.nan) for _ in range(1 + len(values)))
    distinct, group = np.unique(scores, return_inverse=True)
    parts = [weights] + [weights * to_float64(v)[keep] for v in values]
    return tuple(np.bincount(group, part, minlength=len(distinct)) for part in parts)


def to_float64(values: Tensor) -> np.ndarray:
    """Return an array, tensor or list as a flat float64 array."""
    return array("metrics", values).reshape(-1)


def uncertainty_score(y_pred: Tensor, *, kind: str = "max_probability", from_logits: bool = False) -> Tensor:
    """Uncertainty of single predictions, higher for less certain, for rejection and detection of foreign inputs.

    Choose "max_probability" first. "energy" needs logits and depends on their scale. For the knowledge uncertainty of
    several members see ``ensemble_uncertainty``.

    Formula: "max_probability": log((1 - p_max) / p_max), which orders examples as 1 - p_max does but, from logits,
    still separates those whose p_max rounds to 1; "entropy": -sum_k p_k log p_k; "margin": log p_2 - log p_1 of the
    two largest probabilities; "energy": -log sum_k exp(logit_k).

    Args:
        y_pred: (..., classes): probabilities, or logits with ``from_logits``.
        kind: "max_probability", "entropy", "margin" or "energy".
        from_logits: whether ``y_pred`` are logits; needed for "energy".

    Returns:
        (...,), in the dtype of ``y_pred`` (at least float32); -inf where ``p_max`` is exactly 1.

    Raises:
        ValueError: if ``kind`` is unknown, or "energy" is requested for probabilities.

    Example:
        >>> print(f"{float(uncertainty_score([[0.75, 0.25]])[0]):.4f}")  # -log 3
        -1.0986

    Reference:
        Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples", 2017,
        arXiv:1610.02136; Liu et al., "Energy-based Out-of-distribution Detection", 2020, arXiv:2010.03759, eq. 4.
        Differs: "max_probability" as log odds.
    """
    check_score("uncertainty_score", kind, from_logits)
    outputs = with_axes("uncertainty_score", as_float(y_pred), "y_pred of shape (..., classes)")
    classes = outputs.shape[-1]
    rows = ops.reshape(outputs, (-1, classes))
    return ops.reshape(_score_rows(rows, kind, from_logits), ops.shape(outputs)[:-1])


def check_score(owner: str, kind: str, from_logits: bool) -> str:
    """Return ``kind`` if it can be computed, otherwise raise."""
    choice(owner, "score", kind, SCORES)
    if kind == "energy" and not from_logits:
        raise error(owner, 'from_logits=True for score "energy"', "False", "Pass logits: probabilities have no energy")
    return kind


def _score_rows(outputs: Any, kind: str, from_logits: bool) -> Tensor:
    if kind == "energy":
        return -ops.logsumexp(outputs, axis=-1)
    if kind == "entropy":
        logs = ops.log_softmax(outputs, axis=-1) if from_logits else ops.log(outputs)
        probabilities = ops.exp(logs) if from_logits else outputs
        zero = ops.equal(probabilities, 0.0)
        return -ops.sum(ops.where(zero, ops.zeros_like(logs), probabilities * logs), axis=-1)
    largest, index = first_largest(outputs)
    if kind == "max_probability" and not from_logits:
        return ops.log(1.0 - largest) - ops.log(largest)
    others = ops.not_equal(ops.arange(outputs.shape[-1], dtype="int32"), index[:, None])
    if kind == "max_probability":
        odds = ops.where(others, ops.exp(outputs - largest[:, None]), ops.zeros_like(outputs))
        return ops.log(ops.sum(odds, axis=-1))
    second = ops.max(ops.where(others, outputs, -float("inf")), axis=-1)
    return second - largest if from_logits else ops.log(second) - ops.log(largest)


def errors_and_scores(examples: Examples, kind: str, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Return 1.0 for each wrong prediction (first largest class), and the uncertainty scores."""
    _, predicted = first_largest(examples.outputs)
    return float64(ops.not_equal(predicted, examples.labels)), _score_rows(examples.outputs, kind, from_logits)
