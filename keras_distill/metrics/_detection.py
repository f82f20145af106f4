"""Out-of-distribution detection: how well a score separates foreign inputs (positive) from known ones."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill._checks import choice, number
from keras_distill._typing import Tensor
from keras_distill.metrics._examples import read_entries
from keras_distill.metrics._histogram import HistogramMetric, cell_sums, exact_groups

# In this file "groups" are the weights of the negative and the positive examples of equal score, lowest score first.


def auroc_of_groups(negative: Any, positive: Any) -> Tensor:
    """Return P(positive scores higher than negative) + P(equal) / 2."""
    below = ops.cumsum(negative) - negative
    return ops.sum(positive * (below + negative / 2.0)) / (ops.sum(positive) * ops.sum(negative))


def _average_precision(negative: Any, positive: Any) -> Tensor:
    """Return the sum over thresholds of precision times the increase in recall."""
    found, alarms = ops.cumsum(ops.flip(positive)), ops.cumsum(ops.flip(negative))
    called = found + alarms
    precision = ops.where(called > 0, found, 0.0) / ops.where(called > 0, called, ops.ones_like(called))
    return ops.sum(ops.flip(positive) * precision) / ops.sum(positive)


def _fpr_at(negative: Any, positive: Any, recall: float, convention: str) -> Tensor:
    """Return the false positive rate at the threshold chosen by the convention."""
    found, alarms = ops.cumsum(ops.flip(positive)), ops.cumsum(ops.flip(negative))
    rates = found / ops.sum(positive)
    if convention == "first":
        pick = ops.argmax(ops.cast(rates >= recall, "int32"))
    else:
        group = ops.flip(positive + negative) > 0
        pick = ops.argmin(ops.where(group, ops.abs(rates - recall), float("inf")))
    return ops.take(alarms, pick) / ops.sum(negative) + ops.sum(positive) * 0.0 / ops.sum(positive)


class _DetectionMetric(HistogramMetric):
    """Base: a histogram of the scores of negatives and positives."""

    def __init__(self, name: str, dtype: Any) -> None:
        super().__init__(2, name=name, dtype=dtype)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch: ``y_true`` 1 for positive (foreign, or wrong), ``y_pred`` the scores, higher for positive."""
        entries = read_entries(type(self).__name__, y_true, y_pred, sample_weight)
        self.cells.assign_add(cell_sums(entries.outputs, entries.weights, entries.labels))

    @property
    def groups(self) -> tuple[Tensor, Tensor]:
        """Weight of the negatives and of the positives in each cell."""
        return self.cells[0] - self.cells[1], self.cells[1]


@keras.saving.register_keras_serializable(package="keras_distill")
class DetectionAUROC(_DetectionMetric):
    """Area under the ROC curve of any score, for out-of-distribution detection.

    Choose it first: it needs no threshold and does not depend on the number of foreign inputs. Unlike
    ``keras.metrics.AUC``, it takes scores of any size. Streams over a histogram with 0.5 MB of state: scores closer
    than 0.28 % count as equal, so the error is at most half the fraction of pairs in one cell. ``auroc`` is exact.

    Formula: P(score of a positive > score of a negative) + P(equal) / 2.

    Args:
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> metric = DetectionAUROC()
        >>> metric.update_state([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])  # 3 of 4 pairs in order
        >>> print(float(metric.result()))
        0.75
    """

    def __init__(self, name: str = "auroc", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def value(self) -> Tensor:
        """Return the area; NaN without positives or negatives."""
        return auroc_of_groups(*self.groups)


@keras.saving.register_keras_serializable(package="keras_distill")
class DetectionAUPR(_DetectionMetric):
    """Area under the precision-recall curve (average precision) of any score, positives being the foreign inputs.

    Choose it if foreign inputs are rare; it depends on how rare they are. Streams as ``DetectionAUROC`` does;
    ``average_precision`` is exact and equals scikit-learn's.

    Formula: sum over thresholds of precision * increase in recall.

    Args:
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> metric = DetectionAUPR()
        >>> metric.update_state([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        >>> print(f"{float(metric.result()):.4f}")  # 1/2 * 1 + 1/2 * 2/3
        0.8333
    """

    def __init__(self, name: str = "aupr", dtype: Any = None) -> None:
        super().__init__(name, dtype)

    def value(self) -> Tensor:
        """Return the area; NaN without positives."""
        return _average_precision(*self.groups)


@keras.saving.register_keras_serializable(package="keras_distill")
class DetectionFPR(_DetectionMetric):
    """False positive rate at the threshold that finds 95 % of the positives (FPR95).

    Choose it when foreign inputs must be rejected: it is the fraction of known inputs rejected with them. Streams as
    ``DetectionAUROC`` does; the error is at most the fraction of known inputs in the threshold's cell.
    ``fpr_at_recall`` is exact.

    Args:
        recall: above 0, at most 1: fraction of the positives to be found.
        convention: "first": the highest threshold with at least that recall. "nearest": the threshold with the nearest
            recall (torch-uncertainty).
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> metric = DetectionFPR()
        >>> metric.update_state([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])  # threshold 0.35 also takes the 0.4
        >>> print(float(metric.result()))
        0.5
    """

    def __init__(self, recall: float = 0.95, convention: str = "first", name: str = "fpr95", dtype: Any = None) -> None:
        super().__init__(name, dtype)
        self.recall = number(type(self).__name__, "recall", recall, above=0.0, high=1.0)
        self.convention = choice(type(self).__name__, "convention", convention, ("first", "nearest"))

    def value(self) -> Tensor:
        """Return the rate; NaN without positives or negatives."""
        return _fpr_at(*self.groups, self.recall, self.convention)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "recall": self.recall, "convention": self.convention}


def _groups(is_positive: Tensor, scores: Tensor, sample_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return exact groups as float64 tensors."""
    weight, positive = exact_groups(scores, sample_weight, is_positive)
    return ops.convert_to_tensor(weight - positive), ops.convert_to_tensor(positive)


def auroc(is_positive: Tensor, scores: Tensor, *, sample_weight: Tensor = None) -> float:
    """Exact area under the ROC curve of arrays; see ``DetectionAUROC``.

    Args:
        is_positive: (n,), 1 for foreign (or wrong), 0 for known (or correct).
        scores: (n,), higher for positive.
        sample_weight: (n,) or None.

    Returns:
        The area; NaN without positives or negatives.

    Example:
        >>> print(auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]))
        0.75
    """
    return float(auroc_of_groups(*_groups(is_positive, scores, sample_weight)))


def average_precision(is_positive: Tensor, scores: Tensor, *, sample_weight: Tensor = None) -> float:
    """Exact area under the precision-recall curve (AUPR) of arrays; see ``DetectionAUPR``.

    Args:
        is_positive: (n,), 1 for foreign, 0 for known.
        scores: (n,), higher for positive.
        sample_weight: (n,) or None.

    Returns:
        The area; NaN without positives.

    Example:
        >>> print(f"{average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]):.4f}")
        0.8333
    """
    return float(_average_precision(*_groups(is_positive, scores, sample_weight)))


def fpr_at_recall(
    is_positive: Tensor,
    scores: Tensor,
    *,
    recall: float = 0.95,
    convention: str = "first",
    sample_weight: Tensor = None,
) -> float:
    """Exact false positive rate at a recall (FPR95) of arrays; see ``DetectionFPR``.

    Args:
        is_positive: (n,), 1 for foreign, 0 for known.
        scores: (n,), higher for positive.
        recall: above 0, at most 1.
        convention: "first" or "nearest".
        sample_weight: (n,) or None.

    Returns:
        The rate; NaN without positives or negatives.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> print(fpr_at_recall([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], recall=0.5))
        0.0
    """
    number("fpr_at_recall", "recall", recall, above=0.0, high=1.0)
    choice("fpr_at_recall", "convention", convention, ("first", "nearest"))
    return float(_fpr_at(*_groups(is_positive, scores, sample_weight), recall, convention))
