"""Correlation of the two models' probabilities, within examples and within classes."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill.losses._base import LogitsLoss
from keras_distill.losses._distributions import inputs, log_softmax

_EPSILON = 1e-8


def _mean_correlation(p: Any, q: Any, axis: int, weight: Any, along: Any) -> Any:
    """Return the mean Pearson correlation of p and q along ``axis``; ``weight`` counts entries, ``along`` vectors."""
    total = ops.sum(weight, axis=axis, keepdims=True)
    p, q = (weight * (x - ops.divide_no_nan(ops.sum(weight * x, axis=axis, keepdims=True), total)) for x in (p, q))
    squares = ops.sum(ops.square(p), axis=axis) * ops.sum(ops.square(q), axis=axis)
    # The slope of a root is infinite at 0, where a constant vector has no correlation to speak of.
    norms = ops.where(squares > 0, ops.sqrt(ops.where(squares > 0, squares, 1.0)), 0.0)
    each = ops.sum(p * q, axis=axis) / (norms + _EPSILON)
    return ops.divide_no_nan(ops.sum(each * along), ops.sum(along))


def class_correlation(
    *,
    teacher_logits: Any,
    student_logits: Any,
    temperature: Any = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    mask: Any = None,
) -> Any:
    """One minus the correlation of the probabilities, per example and per class (DIST, from a stronger teacher).

    Choose it when the teacher is much stronger than the student: relations are asked for, not exact values. It sees the
    local batch only; below 32 examples the part within classes says little.

    Formula: temperature**2 * (inter_weight * (1 - mean_i r(p_i, q_i)) + intra_weight * (1 - mean_k r(p_k, q_k))), r =
    Pearson's correlation, p_i an example's probabilities, p_k a class' over the batch; 1e-8 added to products of norms.

    Args:
        teacher_logits: (..., classes), float; all leading positions are examples. No gradient reaches it.
        student_logits: same shape and meaning.
        temperature: > 0; a number or a scalar tensor.
        inter_weight: >= 0, of the correlation within each example.
        intra_weight: >= 0, of the correlation within each class.
        mask: (...,) bool or None; masked positions are left out.

    Returns:
        A scalar, float32. About 0 (1e-6) when the distributions are equal.

    Raises:
        ValueError: if the shapes differ, or temperature or weights are out of bounds.

    Example:
        >>> import numpy as np
        >>> logits = np.log([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
        >>> round(float(class_correlation(teacher_logits=logits, student_logits=logits)), 4)
        0.0

    Reference:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536, eq. 5-9.
        Differs: nothing.
    """
    owner = "class_correlation"
    inter_weight = _checks.number(owner, "inter_weight", inter_weight, low=0.0)
    intra_weight = _checks.number(owner, "intra_weight", intra_weight, low=0.0)
    teacher, student, t, mask = inputs(owner, teacher_logits, student_logits, temperature, mask)
    if not isinstance(t, float) and len(ops.convert_to_tensor(temperature).shape) > 0:
        raise _checks.error(owner, "one temperature for the batch", f"shape {tuple(temperature.shape)}")
    classes = student.shape[-1]
    p, q = (ops.reshape(ops.exp(log_softmax(logits, t)), (-1, classes)) for logits in (teacher, student))
    kept = ops.ones_like(q[:, :1]) if mask is None else ops.cast(ops.reshape(mask, (-1, 1)), "float32")
    inter = 1.0 - _mean_correlation(p, q, 1, ops.ones_like(q), kept[:, 0])
    intra = 1.0 - _mean_correlation(p, q, 0, kept * ops.ones_like(q), ops.ones_like(q[0]))
    scale = t**2 if isinstance(t, float) else ops.mean(t**2)
    value = scale * (inter_weight * inter + intra_weight * intra)
    return ops.where(ops.sum(kept) > 0, value, 0.0)


@keras.saving.register_keras_serializable(package="keras_distill")
class ClassCorrelation(LogitsLoss):
    """Class twin of ``class_correlation`` (DIST), which explains it.

    Args:
        inter_weight: >= 0.
        intra_weight: >= 0.
        reduction: as in ``keras.losses.Loss``; the value is a scalar already.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if a weight is negative.
    """

    needs_batch = True

    def __init__(
        self,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "class_correlation",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.inter_weight = _checks.number("ClassCorrelation", "inter_weight", inter_weight, low=0.0)
        self.intra_weight = _checks.number("ClassCorrelation", "intra_weight", intra_weight, low=0.0)

    def values(
        self, teacher_logits: Any, student_logits: Any, *, temperature: Any = 1.0, labels: Any = None, mask: Any = None
    ) -> Any:
        """Return ``class_correlation`` of the batch; ``labels`` are not used."""
        return class_correlation(
            teacher_logits=teacher_logits,
            student_logits=student_logits,
            temperature=temperature,
            inter_weight=self.inter_weight,
            intra_weight=self.intra_weight,
            mask=mask,
        )

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs."""
        return {**super().get_config(), "inter_weight": self.inter_weight, "intra_weight": self.intra_weight}
