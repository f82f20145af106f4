"""Cross-entropy to the teacher's most likely class."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._numerics import row_blocks
from keras_distill.losses._numerics.distributions import inputs, log_softmax, per_row, surprise


def hard_targets(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor = 1.0,
    label_smoothing: float = 0.0,
    mask: Tensor = None,
) -> Tensor:
    """Cross-entropy to the teacher's most likely class (hard distillation, DeiT).

    Choose it for very long training with strong augmentation, or when only the teacher's decisions are known.

    Formula: -temperature**2 * sum_k h_k log q_k, h = one-hot(argmax teacher), smoothed by ``label_smoothing``.

    Args:
        teacher_logits: (..., classes), float; of equal largest logits the first is taken.
        student_logits: same shape.
        temperature: as in ``soft_targets``; divides the student's logits. The teacher's choice does not depend on it.
        label_smoothing: 0 to 1, the part of the target that is spread evenly over all classes.
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, nats, not reduced.

    Raises:
        ValueError: if the shapes differ, or temperature or label_smoothing are out of bounds.

    Example:
        >>> import numpy as np
        >>> value = hard_targets(teacher_logits=[[0.0, 9.0]], student_logits=np.log([[0.75, 0.25]]))[0]
        >>> round(float(value), 4) == round(float(np.log(4.0)), 4)
        True

    Reference:
        Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021,
        arXiv:2012.12877, eq. 3. Differs: optional label smoothing, temperature.
    """
    owner = "hard_targets"
    label_smoothing = _checks.number(owner, "label_smoothing", label_smoothing, low=0.0, high=1.0)
    teacher, student, t, mask = inputs(owner, teacher_logits, student_logits, temperature, mask)
    # Computed beforehand, because the backward pass does not need the teacher's logits.
    chosen = row_blocks.of_rows(lambda logits: ops.cast(ops.argmax(logits, axis=-1), "int32"), teacher, mask)

    def rows(student: Tensor, t: Tensor, chosen: Any) -> Tensor:
        value = surprise(student, chosen, t)
        if label_smoothing:
            smooth = -ops.mean(log_softmax(student, t), axis=-1)
            value = (1.0 - label_smoothing) * value + label_smoothing * smooth
        return per_row(t) ** 2 * value

    return row_blocks.by_rows(rows, student, t, mask, chosen)


@keras.saving.register_keras_serializable(package="keras_distill")
class HardTargets(LogitsTwin):
    """Class twin of ``hard_targets`` (hard distillation, DeiT); see that function.

    Args:
        label_smoothing: 0 to 1.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if label_smoothing is outside 0..1.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "hard_targets",
    ) -> None:
        super().__init__(
            hard_targets,
            reduction,
            name,
            label_smoothing=_checks.number("HardTargets", "label_smoothing", label_smoothing, low=0.0, high=1.0),
        )
