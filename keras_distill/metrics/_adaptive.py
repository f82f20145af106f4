"""Calibration errors with adaptive bins or without bins: equal-mass ECE, MMCE, Kolmogorov-Smirnov."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import choice, integer
from keras_distill._typing import Tensor
from keras_distill.metrics._bins import NORMS, error_of_sums
from keras_distill.metrics._examples import read_classes
from keras_distill.metrics._histogram import CELLS, HistogramMetric, cell_sums, errors_and_scores
from keras_distill.metrics._streaming import StreamingMetric, float64
from keras_distill.metrics._top_class import top_label

MMCE_CELLS = 1024


def equal_mass_sums(confidence: np.ndarray, accuracy: np.ndarray, weights: np.ndarray, num_bins: int) -> np.ndarray:
    """Sum weight, confidence and accuracy in groups of equal weight, in ascending confidence (stable sort).

    Args:
        confidence: (n,), float64.
        accuracy: (n,), float64.
        weights: (n,), float64. If all are equal, groups consist of whole examples and the first may be one larger.
        num_bins: number of groups.

    Returns:
        (3, num_bins + 1), float64; the last column is 0.
    """
    keep = weights != 0
    confidence, accuracy, weights = confidence[keep], accuracy[keep], weights[keep]
    order = np.argsort(confidence, kind="stable")
    table = np.stack([weights, weights * confidence, weights * accuracy])[:, order]
    sums = np.zeros((3, num_bins + 1))
    if table.shape[1] == 0:
        return sums
    if np.ptp(weights) == 0:
        for group, members in enumerate(np.array_split(np.arange(table.shape[1]), num_bins)):
            sums[:, group] = table[:, members].sum(axis=1)
        return sums
    running = np.concatenate([np.zeros((3, 1)), np.cumsum(table, axis=1)], axis=1)
    cuts = np.linspace(0.0, running[0, -1], num_bins + 1)
    at_cuts = np.stack([np.interp(cuts, running[0], row) for row in running])
    sums[:, :-1] = np.diff(at_cuts, axis=1)
    return sums


@keras.saving.register_keras_serializable(package="keras_distill")
class AdaptiveCalibrationError(HistogramMetric):
    """Adaptive calibration error: ECE of the top label over bins with equally many examples (equal mass).

    Choose it beside ``ExpectedCalibrationError`` for confident models, whose confidences all fall into one or two bins
    of equal width. Streams over a histogram of confidence, fine near 1, with 0.75 MB of state; a group that ends within
    a cell takes a share of it. ``adaptive_calibration_error`` is exact.

    Formula: as ``ExpectedCalibrationError``, with bins that cut the sorted confidences into equal weights.

    Args:
        num_bins: >= 1, number of bins.
        norm: "l1", "l2", "max" or "average".
        from_logits: False (as in Keras): ``y_pred`` are probabilities. True: logits.
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> ace = AdaptiveCalibrationError(num_bins=2)
        >>> ace.update_state([0, 0], [[0.9, 0.1], [0.3, 0.7]])  # |0.9 - 1| and |0.7 - 0|, half each
        >>> print(f"{float(ace.result()):.2f}")
        0.40

    Reference:
        Nguyen, O'Connor, "Posterior calibration and exploratory analysis for natural language processing models", 2015,
        arXiv:1508.05154. Differs: what netcal calls ACE is ``ExpectedCalibrationError(norm="average")``.
    """

    def __init__(
        self,
        num_bins: int = 15,
        norm: str = "l1",
        from_logits: bool = False,
        name: str = "adaptive_ece",
        dtype: Any = None,
    ) -> None:
        super().__init__(3, name=name, dtype=dtype)
        owner = type(self).__name__
        self.num_bins = integer(owner, "num_bins", num_bins, low=1)
        self.norm = choice(owner, "norm", norm, NORMS)
        self.from_logits = bool(from_logits)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch."""
        examples = read_classes(type(self).__name__, y_true, y_pred, sample_weight)
        errors, scores = errors_and_scores(examples, "max_probability", self.from_logits)
        confidence = ops.sigmoid(-float64(scores))
        self.cells.assign_add(cell_sums(-scores, examples.weights, confidence, 1.0 - errors))

    def value(self) -> Tensor:
        """Return the calibration error."""
        running = ops.pad(ops.cumsum(self.cells, axis=-1), ((0, 0), (1, 0)))
        cuts = ops.arange(self.num_bins + 1, dtype="float64") / self.num_bins * running[0, -1]
        cuts = ops.minimum(cuts, running[0, -1])
        cell = ops.clip(ops.searchsorted(running[0], cuts, side="left") - 1, 0, CELLS - 1)
        low, high = ops.take(running, cell, axis=1), ops.take(running, cell + 1, axis=1)
        width = high[0] - low[0]
        share = (cuts - low[0]) / ops.where(width > 0, width, ops.ones_like(width))
        at_cuts = low + share * (high - low)
        groups = at_cuts[:, 1:] - at_cuts[:, :-1]
        return error_of_sums(ops.pad(groups, ((0, 0), (0, 1))), self.norm)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        names = ("num_bins", "norm", "from_logits")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="keras_distill")
class MaximumMeanCalibrationError(StreamingMetric):
    """Maximum-mean calibration error (MMCE): calibration without bins, by a kernel over confidences.

    Choose it when the choice of bins is in doubt; its magnitude has no direct meaning. Streams over 1024 cells of
    confidence and places each example at the mean of its cell: the square of the result is off by less than 0.003.
    ``maximum_mean_calibration_error`` is exact.

    Formula: sqrt(sum_ij r_i r_j exp(-2.5 |c_i - c_j|)) / n, with confidence c and residual r = right - c.

    Args:
        from_logits: False (as in Keras): ``y_pred`` are probabilities. True: logits.
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> mmce = MaximumMeanCalibrationError()
        >>> mmce.update_state([0, 1], [[0.8, 0.2], [0.8, 0.2]])  # residuals 0.2 and -0.8 at one confidence
        >>> print(f"{float(mmce.result()):.2f}")
        0.30

    Reference:
        Kumar, Sarawagi, Jain, "Trainable Calibration Measures for Neural Networks from Kernel Mean Embeddings", 2018,
        eq. 4. Differs: kernel exp(-2.5 |difference|), as netcal's.
    """

    def __init__(self, from_logits: bool = False, name: str = "mmce", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.from_logits = bool(from_logits)
        self.cells = self.add_sums((3, MMCE_CELLS), "cells")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch."""
        examples = read_classes(type(self).__name__, y_true, y_pred, sample_weight)
        confidence, accuracy = top_label(examples, self.from_logits)
        confidence = float64(confidence)
        none = ops.equal(examples.weights, 0.0)
        inside = ops.where(ops.isnan(confidence), ops.zeros_like(confidence), confidence)
        cell = ops.minimum(ops.cast(ops.floor(inside * MMCE_CELLS), "int32"), MMCE_CELLS - 1)
        values = (ops.ones_like(confidence), confidence, accuracy - confidence)
        parts = [ops.where(none, ops.zeros_like(confidence), examples.weights * value) for value in values]
        sums = ops.segment_sum(ops.stack(parts, axis=-1), cell, num_segments=MMCE_CELLS)
        self.cells.assign_add(ops.transpose(sums))

    def value(self) -> Tensor:
        """Return the error."""
        weight, confidence, residual = self.cells[0], self.cells[1], self.cells[2]
        place = confidence / ops.where(weight > 0, weight, ops.ones_like(weight))
        kernel = ops.exp(-2.5 * ops.abs(place[:, None] - place[None, :]))
        square = ops.sum(residual * ops.sum(kernel * residual, axis=-1))
        return ops.sqrt(ops.maximum(square, 0.0)) / ops.sum(weight)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "from_logits": self.from_logits}


def _top_label_arrays(
    owner: str, y_true: Tensor, y_pred: Tensor, from_logits: bool, sample_weight: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return confidence, accuracy and weights in float64, without examples of weight 0."""
    examples = read_classes(owner, y_true, y_pred, sample_weight)
    parts = (*top_label(examples, from_logits), examples.weights)
    confidence, accuracy, weights = (np.asarray(ops.convert_to_numpy(part), np.float64) for part in parts)
    keep = weights != 0
    return confidence[keep], accuracy[keep], weights[keep]


def adaptive_calibration_error(
    y_true: Tensor,
    y_pred: Tensor,
    *,
    num_bins: int = 15,
    norm: str = "l1",
    from_logits: bool = False,
    sample_weight: Tensor = None,
) -> float:
    """Exact equal-mass calibration error of the top label of arrays; see ``AdaptiveCalibrationError``.

    Args:
        y_true: class ids or one-hot rows.
        y_pred: (n, classes), probabilities, or logits with ``from_logits``.
        num_bins: >= 1, number of groups; sizes differ by at most one, the first ones being larger. Empty groups (if
            there are fewer examples than groups) do not count.
        norm: "l1", "l2", "max" or "average".
        from_logits: whether ``y_pred`` are logits.
        sample_weight: (n,) or None; with unequal weights, groups have equal weight and may share an example.

    Returns:
        The error, in 0..1; equal confidences keep their order in the data (torch-uncertainty).

    Raises:
        ValueError: if a shape or an option does not fit.

    Example:
        >>> print(f"{adaptive_calibration_error([0, 0], [[0.9, 0.1], [0.3, 0.7]], num_bins=2):.2f}")
        0.40
    """
    owner = "adaptive_calibration_error"
    choice(owner, "norm", norm, NORMS)
    integer(owner, "num_bins", num_bins, low=1)
    parts = _top_label_arrays(owner, y_true, y_pred, from_logits, sample_weight)
    return float(error_of_sums(ops.convert_to_tensor(equal_mass_sums(*parts, num_bins)), norm))


def maximum_mean_calibration_error(
    y_true: Tensor, y_pred: Tensor, *, from_logits: bool = False, sample_weight: Tensor = None
) -> float:
    """Exact maximum-mean calibration error (MMCE) of arrays; see ``MaximumMeanCalibrationError``.

    Sorting reduces the cost from n**2 to n log n, because the kernel decays by a factor between neighbours.

    Args:
        y_true: class ids or one-hot rows.
        y_pred: (n, classes), probabilities, or logits with ``from_logits``.
        from_logits: whether ``y_pred`` are logits.
        sample_weight: (n,) or None.

    Returns:
        The error.

    Raises:
        ValueError: if a shape does not fit.

    Example:
        >>> print(f"{maximum_mean_calibration_error([0, 1], [[0.8, 0.2], [0.8, 0.2]]):.2f}")
        0.30
    """
    owner = "maximum_mean_calibration_error"
    confidence, accuracy, weights = _top_label_arrays(owner, y_true, y_pred, from_logits, sample_weight)
    order = np.argsort(confidence)
    confidence, residual = confidence[order], (weights * (accuracy - confidence))[order]
    # sum over j < i of r_j exp(-2.5 (c_i - c_j)), as a running sum of r_j exp(2.5 c_j)
    grown = np.exp(2.5 * confidence)
    lower = (np.cumsum(residual * grown) - residual * grown) / grown
    square = np.sum(residual * residual) + 2.0 * np.sum(residual * lower)
    return float(np.sqrt(max(square, 0.0)) / weights.sum()) if weights.size else float("nan")


def kolmogorov_smirnov_calibration_error(
    y_true: Tensor, y_pred: Tensor, *, from_logits: bool = False, sample_weight: Tensor = None
) -> float:
    """Kolmogorov-Smirnov calibration error of the top label: the largest gap between two running sums, without bins.

    Formula: max over thresholds t of |sum over examples with confidence <= t of (confidence - right)| / n.

    Args:
        y_true: class ids or one-hot rows.
        y_pred: (n, classes), probabilities, or logits with ``from_logits``.
        from_logits: whether ``y_pred`` are logits.
        sample_weight: (n,) or None.

    Returns:
        The error, in 0..1.

    Raises:
        ValueError: if a shape does not fit.

    Example:
        >>> print(f"{kolmogorov_smirnov_calibration_error([0, 1], [[0.9, 0.1], [0.7, 0.3]]):.2f}")  # 0.7 / 2
        0.35

    Reference:
        Gupta et al., "Calibration of Neural Networks using Splines", 2021, arXiv:2006.12800, eq. 5. Differs: nothing.
    """
    owner = "kolmogorov_smirnov_calibration_error"
    confidence, accuracy, weights = _top_label_arrays(owner, y_true, y_pred, from_logits, sample_weight)
    _, group = np.unique(confidence, return_inverse=True)
    gaps = np.cumsum(np.bincount(group, weights * (confidence - accuracy)))
    return float(np.abs(gaps).max() / weights.sum()) if weights.size else float("nan")
