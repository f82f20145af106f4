"""Pinball loss of labels, or of a teacher's members, under predicted quantiles."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._numerics import arguments


def check_levels(owner: str, levels: Any) -> list[float]:
    """Return quantile levels as floats, strictly increasing within (0, 1), or raise."""
    found = [float(level) for level in np.atleast_1d(np.asarray(levels, "float64"))]
    inside = all(0.0 < level < 1.0 for level in found)
    if not found or not inside or any(a >= b for a, b in itertools.pairwise(found)):
        advice = "0.05, 0.5 and 0.95 give a median and an interval of 90%"
        raise _checks.error(owner, "levels that increase, each between 0 and 1", found, advice)
    return found


def quantile_targets(
    *, labels: Tensor, student_quantiles: Any, levels: Sequence[float] = (0.05, 0.5, 0.95), mask: Tensor = None
) -> Tensor:
    """Pinball loss of values under predicted quantiles (quantile regression), for intervals and fan charts.

    Choose it for a student that predicts quantiles. The values are labels or an ensemble's predictions: with members on
    the last axis, the student learns the quantiles of the ensemble's mixture of point forecasts.

    Formula: mean over levels (and members) of max(level * (y - q), (level - 1) * (y - q)).

    Args:
        labels: (...,), or (..., members), where all members count equally. No gradient reaches it.
        student_quantiles: (..., levels), in the order of ``levels``.
        levels: increasing numbers between 0 and 1.
        mask: (...,) bool or None, as in ``soft_targets``.

    Returns:
        (...,), float32, in the unit of the values, not reduced.

    Raises:
        ValueError: if the levels do not increase within (0, 1), or the shapes do not fit.

    Example:
        >>> value = quantile_targets(labels=[2.0], student_quantiles=[[0.0]], levels=[0.9])
        >>> round(float(value[0]), 4)  # 0.9 * 2
        1.8

    Reference:
        Koenker, Bassett, "Regression Quantiles", Econometrica 46(1), 1978. Differs: a mean over levels.
    """
    owner = "quantile_targets"
    levels = check_levels(owner, levels)
    labels, student = ops.stop_gradient(arguments.float32(labels)), arguments.float32(student_quantiles)
    _checks.with_axes(owner, student, "student_quantiles of shape (..., levels)")
    _checks.with_axes(owner, labels, "labels of shape (...)")
    if student.shape[-1] != len(levels):
        raise _checks.error(owner, f"{len(levels)} quantiles on the last axis, one per level", student.shape[-1])
    if len(labels.shape) == len(student.shape) - 1:
        labels = labels[..., None]
    arguments.check_same_shape(owner, labels[..., :1], student[..., :1], "labels and quantiles")
    mask = arguments.check_mask(owner, mask, student)
    labels, student = arguments.clean(labels, mask), arguments.clean(student, mask)
    gaps = labels[..., None, :] - student[..., :, None]
    level = ops.convert_to_tensor(np.asarray(levels, "float32"))[:, None]
    each = ops.maximum(level * gaps, (level - 1.0) * gaps)
    return arguments.apply_mask(ops.mean(each, axis=(-2, -1)), mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class QuantileTargets(keras.losses.Loss):
    """Class twin of ``quantile_targets`` (pinball loss), for ``compile``: ``y_true`` values, ``y_pred`` quantiles.

    Args:
        levels: increasing numbers between 0 and 1, in the order of the student's outputs.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if the levels do not increase within (0, 1).
    """

    def __init__(
        self,
        levels: Sequence[float] = (0.05, 0.5, 0.95),
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "quantile_targets",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.levels = check_levels("QuantileTargets", levels)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return ``quantile_targets`` of each position."""
        return quantile_targets(labels=y_true, student_quantiles=y_pred, levels=self.levels)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "levels": self.levels}
