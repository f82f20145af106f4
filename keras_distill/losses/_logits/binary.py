"""Soft targets for sigmoid heads: several labels at once, or one logit for two classes."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._numerics import arguments, row_blocks
from keras_distill.losses._numerics.distributions import bernoulli_kl, inputs, per_row

_REDUCTIONS = ("sum", "mean")


def binary_soft_targets(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor = 1.0,
    label_reduction: str = "sum",
    mask: Tensor = None,
) -> Tensor:
    """Kullback-Leibler divergence between Bernoulli distributions, label by label (multi-label KD, sigmoid heads).

    Choose it when each label is predicted independently, and for a binary head with one logit.

    Formula: temperature**2 * sum over labels of KL(B(sigmoid(teacher / temperature)) || B(sigmoid(student /
    temperature))), from logits.

    Args:
        teacher_logits: (..., labels), float. No gradient reaches it.
        student_logits: same shape and meaning.
        temperature: as in ``soft_targets``.
        label_reduction: "sum" over the labels, or "mean".
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, nats, not reduced. Zero exactly when all probabilities are equal.

    Raises:
        ValueError: if the shapes differ, temperature is not a positive number, or label_reduction is unknown.

    Example:
        >>> import numpy as np
        >>> value = binary_soft_targets(teacher_logits=[[0.0]], student_logits=np.log([[3.0]]))[0]
        >>> round(float(value), 4)  # KL((1/2, 1/2) || (3/4, 1/4))
        0.1438

    Reference:
        Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023, arXiv:2308.06453, eq. 4. Differs: exact from
        logits, without clamping; times temperature**2.
    """
    owner = "binary_soft_targets"
    label_reduction = _checks.choice(owner, "label_reduction", label_reduction, _REDUCTIONS)
    teacher, student, t, mask = inputs(owner, teacher_logits, student_logits, temperature, mask)

    def rows(student: Tensor, t: Tensor, teacher: Tensor) -> Tensor:
        each = bernoulli_kl(teacher / t, student / t, arguments.gap(teacher, student) / t)
        return per_row(t) ** 2 * (ops.sum(each, axis=-1) if label_reduction == "sum" else ops.mean(each, axis=-1))

    return row_blocks.by_rows(rows, student, t, mask, teacher)


@keras.saving.register_keras_serializable(package="keras_distill")
class BinarySoftTargets(LogitsTwin):
    """Class twin of ``binary_soft_targets`` (multi-label KD); see that function.

    Args:
        label_reduction: "sum" or "mean".
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if label_reduction is unknown.
    """

    def __init__(
        self,
        label_reduction: str = "sum",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_soft_targets",
    ) -> None:
        super().__init__(
            binary_soft_targets,
            reduction,
            name,
            label_reduction=_checks.choice("BinarySoftTargets", "label_reduction", label_reduction, _REDUCTIONS),
        )
