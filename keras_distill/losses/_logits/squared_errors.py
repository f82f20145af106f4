"""Squared errors between logits, and between probabilities."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._numerics import row_blocks
from keras_distill.losses._numerics.distributions import inputs
from keras_distill.losses._numerics.log_ratio import Kernel, Pair, compare, row_sum


def _matching_to_teacher(pair: Pair) -> Tensor:
    pull = -2.0 * pair.p * pair.difference
    return pull - pair.p * row_sum(pull)


_PROBABILITY_MATCHING = Kernel(
    lambda pair: ops.sum(ops.square(pair.difference), axis=-1),
    lambda pair: row_sum(2.0 * pair.q * pair.difference),
    lambda pair, level: pair.q * (2.0 * pair.difference - level),
    _matching_to_teacher,
)


def logit_matching(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor = 1.0,
    center: bool = False,
    mask: Tensor = None,
) -> Tensor:
    """Half the squared distance between logits (logit regression, "do deep nets really need to be deep").

    Choose it when only logits are stored and they have the student's scale. Centred, it is ``soft_targets`` at a very
    high temperature, times the number of classes.

    Formula: sum_k (student_k - teacher_k)**2 / 2. Dividing both by a temperature and multiplying by its square changes
    nothing, so ``temperature`` has no effect here.

    Args:
        teacher_logits: (..., classes), float. No gradient reaches it. A class that is -inf for both adds nothing.
        student_logits: same shape and meaning.
        temperature: as in ``soft_targets``; checked, but without effect.
        center: subtract each row's mean first, so that a constant added to the logits changes nothing.
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, not reduced. Zero exactly when the (centred) logits are equal.

    Raises:
        ValueError: if the shapes differ, or temperature is not a positive number.

    Example:
        >>> float(logit_matching(teacher_logits=[[1.0, 2.0]], student_logits=[[2.0, 4.0]])[0])
        2.5

    Reference:
        Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, arXiv:1312.6184, eq. 1. Differs: nothing.
    """
    teacher, student, _, mask = inputs("logit_matching", teacher_logits, student_logits, temperature, mask)

    def rows(student: Tensor, t: Tensor, teacher: Tensor) -> Tensor:
        both = ops.logical_and(teacher == -float("inf"), student == -float("inf"))
        gap = ops.where(both, 0.0, student) - ops.where(both, 0.0, teacher)
        if center:
            gap = gap - ops.mean(gap, axis=-1, keepdims=True)
        return 0.5 * ops.sum(ops.square(gap), axis=-1)

    return row_blocks.by_rows(rows, student, 1.0, mask, teacher)


def probability_matching(
    *, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor = 1.0, mask: Tensor = None
) -> Tensor:
    """Squared distance between the two distributions (Brier score against the teacher).

    Choose it when the penalty for a single class must stay bounded. Its gradient vanishes where the student is
    confident and wrong, so it is rarely used alone.

    Formula: temperature**2 * sum_k (p_k - q_k)**2, p, q = softmax(logits / temperature).

    Args:
        teacher_logits: (..., classes), float. No gradient reaches it.
        student_logits: same shape and meaning.
        temperature: as in ``soft_targets``.
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, 0 to 2 * temperature**2, not reduced. Zero exactly when the two distributions are equal.

    Raises:
        ValueError: if the shapes differ, or temperature is not a positive number.

    Example:
        >>> import numpy as np
        >>> teacher, student = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
        >>> round(float(probability_matching(teacher_logits=teacher, student_logits=student)[0]), 4)
        0.125

    Reference:
        Kim et al., "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation", IJCAI
        2021, arXiv:2105.08919, compares such losses. Differs: between probabilities.
    """
    return compare(_PROBABILITY_MATCHING, "probability_matching", teacher_logits, student_logits, temperature, mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class LogitMatching(LogitsTwin):
    """Class twin of ``logit_matching`` (logit regression); see that function.

    Args:
        center: subtract each row's mean first.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
    """

    def __init__(
        self,
        center: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "logit_matching",
    ) -> None:
        super().__init__(logit_matching, reduction, name, center=bool(center))


@keras.saving.register_keras_serializable(package="keras_distill")
class ProbabilityMatching(LogitsTwin):
    """Class twin of ``probability_matching``; see that function.

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "probability_matching"
    ) -> None:
        super().__init__(probability_matching, reduction, name)
