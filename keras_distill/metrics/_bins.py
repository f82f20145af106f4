"""Bins of confidence: the bin of a score, the sums in each bin, and the calibration errors of those sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_distill._typing import Tensor
from keras_distill.metrics._streaming import float64

CONVENTIONS = ("torchmetrics", "left_closed", "right_closed", "guo")
NORMS = ("l1", "l2", "max", "average")
SIDES = ("both", "over", "under")


def torch_edges(num_bins: int, dtype: Any = np.float32) -> np.ndarray:
    """Return the edges i / num_bins as torch's linspace rounds them: from both ends, with fused products."""
    step = float(dtype(1) / dtype(num_bins))
    index = np.arange(num_bins + 1)
    return np.where(index < (num_bins + 1) // 2, step * index, 1.0 - step * (num_bins - index)).astype(dtype)


def bin_index(scores: Tensor, num_bins: int, convention: str) -> Tensor:
    """Return the bin of each score in [0, 1]: 0 .. num_bins - 1, or num_bins for the extra slot.

    The extra slot holds the scores of exactly 1.0 for "torchmetrics" (a separate bin) and those of exactly 0.0 for
    "guo" (counted, but in no bin); otherwise it stays empty.

    Args:
        scores: any shape, float32 or float64; NaN goes to bin 0.
        num_bins: number of bins of equal width.
        convention: one of ``CONVENTIONS``.

    Returns:
        The same shape, int32.
    """
    scores = ops.where(ops.isnan(scores), ops.zeros_like(scores), scores)
    if convention == "left_closed":
        return ops.minimum(ops.cast(ops.floor(float64(scores) * num_bins), "int32"), num_bins - 1)
    dtype = np.dtype(scores.dtype.name).type if convention == "torchmetrics" else np.float64
    edges = torch_edges(num_bins, dtype) if convention == "torchmetrics" else np.linspace(0.0, 1.0, num_bins + 1)
    side = "right" if convention == "torchmetrics" else "left"
    flat = ops.reshape(ops.cast(scores, edges.dtype.name), (-1,))
    index = ops.reshape(ops.searchsorted(ops.convert_to_tensor(edges), flat, side=side) - 1, ops.shape(scores))
    if convention == "guo":
        return ops.where(index < 0, num_bins, index)
    return index if convention == "torchmetrics" else ops.maximum(index, 0)


def bin_sums(index: Any, num_bins: int, weights: Tensor, confidence: Tensor, accuracy: Any) -> Tensor:
    """Sum weight, weighted confidence and weighted accuracy in each bin and the extra slot.

    Args:
        index: (n,) int32 from ``bin_index``.
        num_bins: number of bins.
        weights: (n,) float64.
        confidence: (n,).
        accuracy: (n,), 1 or 0.

    Returns:
        (3, num_bins + 1), float64.
    """
    zero = ops.zeros((), dtype="float64")
    weighted = ops.where(ops.equal(weights, 0.0), zero, weights * float64(confidence))
    # Wrong and right examples go to separate slots, so that one sum gives weight, confidence and accuracy.
    apart = index * 2 + ops.cast(accuracy, "int32")
    counts, confidences = (
        ops.reshape(sums, (-1, 2)) for sums in segment_sums_of_two(weights, weighted, apart, 2 * num_bins + 2)
    )
    return ops.stack([ops.sum(counts, axis=-1), ops.sum(confidences, axis=-1), counts[:, 1]])


def error_of_sums(sums: Any, norm: str = "l1", convention: str = "torchmetrics", side: str = "both") -> Tensor:
    """Return the calibration error of sums from ``bin_sums``.

    Args:
        sums: (..., 3, bins + 1), float64.
        norm: "l1" (ECE), "l2" (root mean square), "max" (MCE), "average" (unweighted mean over non-empty bins).
        convention: "guo" leaves the extra slot out of the error, but not out of the total.
        side: "both"; "over" counts only bins with confidence above accuracy, "under" only the others.

    Returns:
        (...,), float64; NaN before the first example.
    """
    weight, confidence, accuracy = sums[..., 0, :], sums[..., 1, :], sums[..., 2, :]
    total = ops.sum(weight, axis=-1)
    if convention == "guo":
        weight, confidence, accuracy = weight[..., :-1], confidence[..., :-1], accuracy[..., :-1]
    signed = confidence - accuracy
    if side == "over":
        signed = ops.maximum(signed, 0.0)
    elif side == "under":
        signed = ops.maximum(-signed, 0.0)
    mass = ops.abs(signed)
    if norm == "l1":
        return ops.sum(mass, axis=-1) / total
    filled = weight > 0
    gap = ops.where(filled, mass / ops.where(filled, weight, ops.ones_like(weight)), mass)
    if norm == "l2":
        return ops.sqrt(ops.sum(weight * ops.square(gap), axis=-1) / total)
    empty = ops.sum(mass, axis=-1) * 0.0 / total  # 0; NaN before the first example or after a NaN
    if norm == "max":
        return ops.max(gap, axis=-1) + empty
    return ops.sum(gap, axis=-1) / ops.sum(ops.cast(filled, "float64"), axis=-1) + empty


@dataclass(frozen=True)
class ReliabilityBins:
    """Data of a reliability diagram: for each bin, the model's mean confidence and its accuracy.

    Attributes:
        edges: (bins + 1,), float64, from 0 to 1.
        weight: (bins,), float64: number of examples, or the sum of their weights.
        confidence: (bins,), float64: mean confidence; NaN where the bin is empty.
        accuracy: (bins,), float64: fraction correct ("binary": fraction positive); NaN where the bin is empty.
    """

    edges: np.ndarray
    weight: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @classmethod
    def from_sums(cls, sums: Any) -> ReliabilityBins:
        """Make the bins from the (3, bins + 1) sums of a metric; a bin for exactly 1.0 is merged into the last."""
        table = np.array(ops.convert_to_numpy(sums), np.float64)
        table[:, -2] += table[:, -1] if table[1, -1] > 0 else 0.0
        table[:, 0] += table[:, -1] if not table[1, -1] > 0 else 0.0
        weight, confidence, accuracy = table[:, :-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return cls(np.linspace(0.0, 1.0, len(weight) + 1), weight, confidence / weight, accuracy / weight)


def segment_sums_of_two(first: Any, second: Any, index: Any, num_segments: int) -> tuple[Tensor, Tensor]:
    """Sum two float64 arrays (n,) over the segments ``index`` (n,) int32, as real and imaginary part of one sum.

    The cost of a segment sum depends on the number of elements, not on their size; for rows of two numbers TensorFlow
    adds one row at a time.
    """
    import tensorflow as tf

    sums = ops.segment_sum(tf.complex(first, second), index, num_segments=num_segments)
    return ops.real(sums), ops.imag(sums)
