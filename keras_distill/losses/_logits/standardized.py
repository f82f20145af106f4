"""Logits standardised to mean 0 and standard deviation 1, and selection of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._logits.soft_targets import KERNEL
from keras_distill.losses._numerics import arguments, log_ratio, row_blocks
from keras_distill.losses._numerics.distributions import inputs, per_row
from keras_distill.losses._numerics.log_ratio import row_sum


def standardize_logits(logits: Tensor) -> Tensor:
    """Subtract each row's mean and divide by its standard deviation (logit standardisation, before any logit loss).

    Args:
        logits: (..., classes), float, at least 2 classes. -inf is kept and left out of mean and standard deviation.

    Returns:
        (..., classes), float32: (z - mean) / (std + 1e-7), std with the divisor classes - 1. A constant row gives 0.

    Raises:
        ValueError: if there are fewer than 2 classes.

    Example:
        >>> [round(float(value), 4) for value in standardize_logits([[1.0, 2.0, 3.0]])[0]]
        [-1.0, 0.0, 1.0]

    Reference:
        Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv:2403.01427, algorithm 1.
        Differs: nothing.
    """
    logits = _checks.with_axes("standardize_logits", arguments.float32(logits), "logits of shape (..., classes)")
    if logits.shape[-1] is not None and logits.shape[-1] < 2:
        raise _checks.error("standardize_logits", "at least 2 classes", f"{logits.shape[-1]}")

    @ops.custom_gradient
    def compute(logits: Tensor) -> Tensor:
        impossible = ops.equal(logits, -math.inf)
        total = row_sum(logits)
        # Few batches have an impossible class, and handling one in every batch costs a fifth of the time.
        some = ops.any(ops.equal(total, -math.inf))

        def of_possible() -> tuple[Tensor, Tensor, Tensor]:
            count = row_sum(ops.cast(ops.logical_not(impossible), "float32"))
            mean = row_sum(ops.where(impossible, 0.0, logits)) / count
            return mean, count, row_sum(ops.square(ops.where(impossible, 0.0, logits - mean)))

        def of_all() -> tuple[Tensor, Tensor, Tensor]:
            mean = total / logits.shape[-1]
            return mean, ops.full_like(total, logits.shape[-1]), row_sum(ops.square(logits - mean))

        mean, count, squares = ops.cond(some, of_possible, of_all)
        spread = ops.sqrt(squares / ops.maximum(count - 1.0, 1.0))
        scale = 1.0 / (spread + 1e-7)

        def grad(*args: Any, upstream: Tensor = None) -> Tensor:
            upstream = args[0] if args else upstream

            def slope(upstream: Tensor, gap: Tensor) -> Tensor:
                # The derivative of a square root is infinite at 0, so a spread of 0 is taken as constant.
                pull = row_sum(upstream * gap) / (ops.maximum(count - 1.0, 1.0) * spread)
                pull = ops.where(spread > 0.0, pull, 0.0)
                each = scale * (upstream - gap * (pull * scale))
                return each - row_sum(each) / count

            def to_possible() -> Tensor:
                parts = (ops.where(impossible, 0.0, each) for each in (upstream, logits - mean))
                return ops.where(impossible, 0.0, slope(*parts))

            return ops.cond(some, to_possible, lambda: slope(upstream, logits - mean))

        return (logits - mean) * scale, grad

    return compute(logits)


def select_classes(logits: Tensor, class_map: Sequence[int]) -> Tensor:
    """Select classes of the logits, in the given order, for a teacher that knows more classes than the student.

    Args:
        logits: (..., classes), float.
        class_map: the indices of the wanted classes.

    Returns:
        (..., len(class_map)); its softmax is the distribution given that one of these classes is true.

    Raises:
        ValueError: if an entry is not an integer, out of range, or occurs twice.

    Example:
        >>> select_classes([[1.0, 2.0, 3.0]], [2, 0]).numpy()
        array([[3., 1.]], dtype=float32)
    """
    owner = "select_classes"
    logits = _checks.with_axes(owner, arguments.float32(logits), "logits of shape (..., classes)")
    if not hasattr(class_map, "__iter__"):
        raise _checks.error(owner, "class_map, a list of class indices", class_map)
    picked = [_checks.integer(owner, "each of class_map", index, low=0) for index in class_map]
    if not picked or max(picked) >= logits.shape[-1]:
        raise _checks.error(owner, f"class_map within the {logits.shape[-1]} classes", picked)
    if len(set(picked)) < len(picked):
        raise _checks.error(owner, "each class once in class_map", picked)
    return ops.take(logits, ops.convert_to_tensor(picked, "int32"), axis=-1)


def standardized_soft_targets(
    *, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor = 1.0, mask: Tensor = None
) -> Tensor:
    """Soft targets between standardised logits (logit standardisation), which teach relations only.

    Choose it when a small student cannot reach the teacher's range of logits; the published temperature is 2 and the
    weight 9. The absolute scale is not taught, so calibration is not transferred: monitor the ECE.

    Formula: soft_targets of (z - mean) / (std + 1e-7), std with the divisor classes - 1, for teacher and student.

    Args:
        teacher_logits: (..., classes), float, at least 3 classes. No gradient reaches it.
        student_logits: same shape and meaning; the gradient flows through mean and standard deviation.
        temperature: as in ``soft_targets``.
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, nats, not reduced. Zero exactly when the logits are equal up to a shift and a positive factor.

    Raises:
        ValueError: if the shapes differ, temperature is not a positive number, or there are 2 classes: any two logits
            become +0.7 and -0.7, so there is nothing to learn.

    Example:
        >>> value = standardized_soft_targets(teacher_logits=[[1.0, 2.0, 4.0]], student_logits=[[10.0, 20.0, 40.0]])
        >>> abs(round(float(value[0]), 6))
        0.0

    Reference:
        Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv:2403.01427, algorithm 1.
        Differs: nothing.
    """
    owner = "standardized_soft_targets"
    teacher, student, t, mask = inputs(owner, teacher_logits, student_logits, temperature, mask)
    if student.shape[-1] == 2:
        advice = "2 standardised logits are always 0.7 and -0.7: use soft_targets"
        raise _checks.error(owner, "at least 3 classes", "2", advice)

    def rows(student: Tensor, t: Tensor, teacher: Tensor) -> Tensor:
        both = standardize_logits(teacher), standardize_logits(student)
        return log_ratio.divergence(KERNEL, *both, per_row(t))

    return row_blocks.by_rows(rows, student, t, mask, teacher)


@keras.saving.register_keras_serializable(package="keras_distill")
class StandardizedSoftTargets(LogitsTwin):
    """Class twin of ``standardized_soft_targets`` (logit standardisation); see that function.

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "standardized_soft_targets"
    ) -> None:
        super().__init__(standardized_soft_targets, reduction, name)
