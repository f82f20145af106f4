"""Hinton's soft targets: the Kullback-Leibler divergence from teacher to student, exact where softmax rounds."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.losses import _common
from keras_distill.losses._base import LogitsLoss

# (exp(x) - 1 - x) / x**2 for |x| <= _SERIES_LIMIT: a Chebyshev fit of degree 6, relative error below 3e-8.
_SERIES = (2.5113472e-05, 0.00020114328, 0.001388779, 0.0083325636, 0.04166668, 0.16666672, 0.5)
_SERIES_LIMIT = 0.75


def bregman(x: Any) -> Any:
    """Return exp(x) - 1 - x for |x| <= 0.75, to float32 precision relative to the result itself."""
    series = ops.full_like(x, _SERIES[0])
    for coefficient in _SERIES[1:]:
        series = series * x + coefficient
    return x * x * series


def softened(logits: Any, temperature: Any) -> tuple[Any, Any, Any]:
    """Return softmax(logits / temperature), the log of its normaliser above the maximum, and the maximum.

    The maximum leaves before the division: near ties between logits of 1e4 survive in float32.
    """
    top = ops.max(logits, axis=-1, keepdims=True)
    weights = ops.exp((logits - top) / temperature)
    total = ops.sum(weights, axis=-1, keepdims=True)
    return weights / total, ops.log(total), top


def log_ratio(teacher: Any, student: Any, temperature: Any) -> tuple[Any, Any, Any]:
    """Return p, q and log(q / p), the last with an error relative to itself even where p and q nearly agree.

    The logits are subtracted from each other first (exact for neighbours in float32), after a whole number that removes
    a common offset; what is then taken off is one constant per row.
    """
    p, log_total_p, top_p = softened(teacher, temperature)
    q, log_total_q, top_q = softened(student, temperature)
    offset = ops.round(top_q - top_p)
    constant = ((top_q - offset) - top_p) / temperature + (log_total_q - log_total_p)
    return p, q, ((student - offset) - teacher) / temperature - constant


def _kl(teacher: Any, student: Any, temperature: Any) -> tuple[Any, Any, Any, Any]:
    """Return KL(p || q) per row, then q - p, p and log(q / p), all for one temperature per row (..., 1).

    KL is summed as p * (exp(x) - 1 - x), x = log(q / p): every summand is >= 0, nothing cancels.
    """
    p, q, x = log_ratio(teacher, student, temperature)
    near = ops.abs(x) <= _SERIES_LIMIT
    small = ops.where(near, x, 0.0)
    series = bregman(small)
    difference = ops.where(near, p * (small + series), q - p)
    linear = ops.where(p > 0.0, p * x, 0.0)
    summand = ops.where(near, p * series, difference - linear)
    return ops.sum(summand, axis=-1), difference, p, linear


def soft_targets(*, teacher_logits: Any, student_logits: Any, temperature: Any = 1.0, mask: Any = None) -> Any:
    """Temperature-scaled Kullback-Leibler divergence from teacher to student (KD, soft targets).

    Choose it first: no state, no labels, any number of classes. Prefer ``logit_matching`` when only logits of unknown
    scale are stored, and a divergence of this room when the student is too small to cover all the teacher's modes.

    Formula: temperature**2 * sum_k p_k * (log p_k - log q_k), p, q = softmax(logits / temperature) of teacher, student.

    Args:
        teacher_logits: (..., classes), float. Unnormalised log-probabilities; -inf marks a class that cannot occur.
            No gradient reaches it.
        student_logits: same shape and meaning. A class impossible for the teacher costs nothing; one impossible for the
            student alone makes the value inf, which is its true value.
        temperature: > 0, no unit: a number, or a tensor of shape (), (batch,), (batch, 1) or (...,). 1.0 compares the
            plain distributions; 2 to 8 are usual. A tensor gets its gradient.
        mask: (...,) bool or None. Masked positions give 0 and no gradient, whatever their logits hold; the others are
            scaled by positions / unmasked, so that the plain mean is the mean over unmasked positions.

    Returns:
        (...,), float32, nats, not reduced. Zero exactly when the two distributions are equal. NaN where logits are NaN
        or a whole row is -inf.

    Raises:
        ValueError: if the shapes differ, or temperature is not a positive number.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> teacher, student = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
        >>> value = losses.soft_targets(teacher_logits=teacher, student_logits=student)
        >>> round(float(value[0]), 5) == round(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75), 5)
        True

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, eq. 1 and
        section 2. Differs: nothing.
    """
    owner = "soft_targets"
    teacher, student = _common.check_pair(owner, teacher_logits, student_logits)
    temperature = _common.temperature_like(owner, temperature, student)
    mask = _common.check_mask(owner, mask, student)
    teacher, student = _common.clean(teacher, mask), _common.clean(student, mask)
    if isinstance(temperature, float):
        temperature = ops.full(_common.leading_shape(student), temperature, dtype="float32")

    @ops.custom_gradient
    def divergence(student: Any, temperature: Any) -> Any:
        column = temperature[..., None]
        value, difference, p, linear = _kl(teacher, student, column)

        def grad(*args: Any, upstream: Any = None) -> tuple[Any, Any]:
            (upstream,) = args or (upstream,)
            to_student = (upstream * temperature)[..., None] * difference
            centred = teacher - ops.sum(ops.where(p > 0.0, p * teacher, 0.0), axis=-1, keepdims=True)
            pull = ops.where(p > 0.0, linear * centred, 0.0) - ops.where(
                ops.equal(difference, 0.0), 0.0, difference * student
            )
            return to_student, upstream * (2.0 * temperature * value + ops.sum(pull, axis=-1))

        return temperature * temperature * value, grad

    return _common.apply_mask(divergence(student, temperature), mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class SoftTargets(LogitsLoss):
    """Class twin of ``soft_targets`` (KD): the loss that ``LogitsDistillation`` uses by default.

    Args:
        reduction: as in ``keras.losses.Loss``; terms use ``values`` and reduce on their own.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.SoftTargets()([[2.0, 1.0]], [[5.0, 4.0]]))
        0.0
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "soft_targets") -> None:
        super().__init__(reduction=reduction, name=name)

    def values(
        self,
        teacher_logits: Any,
        student_logits: Any,
        *,
        temperature: Any = 1.0,
        labels: Any = None,
        mask: Any = None,
    ) -> Any:
        """Return ``soft_targets`` of each example; ``labels`` are not used."""
        return soft_targets(
            teacher_logits=teacher_logits, student_logits=student_logits, temperature=temperature, mask=mask
        )
