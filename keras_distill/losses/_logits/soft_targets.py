"""Hinton's soft targets: Kullback-Leibler divergence from teacher to student, exact even where softmax rounds."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._numerics import log_ratio


def _value(pair: log_ratio.Pair) -> Tensor:
    """KL(p || q) summed as p * (exp(x) - 1 - x), x = log(q / p): every summand is >= 0."""
    far = pair.difference - log_ratio.times(pair.p, pair.log_ratio)
    return ops.sum(ops.where(pair.near, pair.p * log_ratio.bregman(pair.small), far), axis=-1)


def _to_teacher(pair: log_ratio.Pair) -> Tensor:
    return -log_ratio.times(pair.p, pair.log_ratio) - pair.p * _value(pair)[..., None]


KERNEL = log_ratio.Kernel(
    _value, lambda pair: ops.zeros_like(pair.q[..., :1]), lambda pair, level: pair.difference, _to_teacher
)


def soft_targets(
    *, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor = 1.0, mask: Tensor = None
) -> Tensor:
    """Temperature-scaled Kullback-Leibler divergence from teacher to student (KD, soft targets).

    Choose it first: no state, no labels, any number of classes. Prefer ``logit_matching`` when only logits of unknown
    scale are stored, and another divergence when the student is too small to cover all the teacher's modes.

    Formula: temperature**2 * sum_k p_k * (log p_k - log q_k), p, q = softmax(logits / temperature) of teacher, student.

    Args:
        teacher_logits: (..., classes), float. Unnormalised log-probabilities; -inf marks a class that cannot occur.
            No gradient reaches it.
        student_logits: same shape and meaning. A class impossible for the teacher adds nothing to the loss; one
            impossible for the student alone makes it inf, which is the true value.
        temperature: > 0, no unit: a number, or a tensor of shape (), (batch,), (batch, 1) or (...,). 1.0 compares the
            plain distributions; 2 to 8 are usual. The loss is differentiable in a tensor.
        mask: (...,) bool or None. Masked positions give 0 and no gradient, whatever their logits; the others are
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
        >>> round(float(value[0]), 4)  # 0.5 log 2 + 0.5 log(2/3)
        0.1438

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, eq. 1 and
        section 2. Differs: nothing.
    """
    return log_ratio.compare(KERNEL, "soft_targets", teacher_logits, student_logits, temperature, mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class SoftTargets(LogitsTwin):
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
        super().__init__(soft_targets, reduction, name)
