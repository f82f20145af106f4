"""A confidence filter around any loss on logits (pseudo-labels)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsLoss
from keras_distill.losses._logits.soft_targets import SoftTargets
from keras_distill.losses._numerics import arguments


def confident(*, teacher_logits: Tensor, min_confidence: float = 0.9) -> Tensor:
    """Mark the examples on which the teacher is confident (the filter of pseudo-labels).

    Args:
        teacher_logits: (..., classes), float.
        min_confidence: 0 to 1, the threshold for the probability of the likeliest class at temperature 1.

    Returns:
        (...,), bool.

    Raises:
        ValueError: if ``min_confidence`` is out of range.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> losses.confident(teacher_logits=np.log([[0.95, 0.05], [0.6, 0.4]]), min_confidence=0.9).numpy().tolist()
        [True, False]
    """
    least = _checks.number("confident", "min_confidence", min_confidence, low=0.0, high=1.0)
    teacher = ops.stop_gradient(arguments.float32(teacher_logits))
    _checks.with_axes("confident", teacher, "teacher_logits of shape (..., classes)")
    # Not `>=`: a NaN must pass the filter, so that it is noticed.
    return ops.logical_not(ops.max(ops.softmax(teacher, axis=-1), axis=-1, initial=0.0) < least)


@keras.saving.register_keras_serializable(package="keras_distill")
class ConfidentTargets(LogitsLoss):
    """Any loss on logits where the teacher is confident, and 0 elsewhere (the confidence filter of pseudo-labels).

    Choose it for data on which the teacher often errs: another domain, unlabelled examples. The mean is still over all
    examples, so the fewer of them pass the filter, the weaker the term. ``TrustWeighted`` weights examples instead.

    Formula: loss where max softmax(teacher) >= min_confidence at temperature 1, else 0.

    Args:
        min_confidence: 0 to 1.
        loss: a ``LogitsLoss`` with one value per example; None means ``SoftTargets()``.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if ``min_confidence`` is out of range, or ``loss`` needs the whole batch or an ensemble's members.

    Example:
        >>> import numpy as np
        >>> teacher, student = np.log([[0.95, 0.05], [0.6, 0.4]]), np.log([[0.5, 0.5], [0.5, 0.5]])
        >>> ConfidentTargets(0.9).values(teacher, student).numpy().round(4)
        array([0.4946, 0.    ], dtype=float32)

    Reference:
        Sohn et al., "FixMatch", NeurIPS 2020, arXiv:2001.07685, eq. 4. Differs: soft targets, and one view.
    """

    def __init__(
        self,
        min_confidence: float = 0.9,
        loss: LogitsLoss | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "confident_targets",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        owner = "ConfidentTargets"
        self.min_confidence = _checks.number(owner, "min_confidence", min_confidence, low=0.0, high=1.0)
        loss = keras.saving.deserialize_keras_object(loss) if isinstance(loss, dict) else loss
        self.loss = SoftTargets() if loss is None else loss
        if not isinstance(self.loss, LogitsLoss) or self.loss.needs_batch or self.loss.needs_members:
            raise _checks.error(owner, "a loss on logits with one value per example", type(loss).__name__)
        self.needs_labels = self.loss.needs_labels
        self.same_outputs = self.loss.same_outputs

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return the values of ``loss`` where the teacher is confident, and 0 elsewhere."""
        values = self.loss.values(teacher_logits, student_logits, temperature=temperature, labels=labels, mask=mask)
        sure = confident(teacher_logits=teacher_logits, min_confidence=self.min_confidence)
        return ops.where(ops.logical_or(sure, ops.isnan(values)), values, 0.0)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        loss = keras.saving.serialize_keras_object(self.loss)
        return {**super().get_config(), "min_confidence": self.min_confidence, "loss": loss}
