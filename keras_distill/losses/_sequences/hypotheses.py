"""Sequence-level distillation for CTC: the teacher's best hypotheses, weighted by their posteriors."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._numerics import arguments
from keras_distill.losses._sequences.base import SequenceLoss
from keras_distill.losses._sequences.ctc import checked, negative_log_likelihood


def n_best_ctc(*, hypotheses: Tensor, weights: Tensor, logits: Tensor, mask: Tensor = None, blank: int = 0) -> Tensor:
    """Weighted CTC loss of a teacher's best hypotheses (sequence-level distillation for CTC, N-best).

    Choose it if teacher and student emit their labels at different frames: timing is not compared.
    ``teachers.n_best`` computes the hypotheses once; the cost is that of ``ctc`` times their number.

    Formula: -sum_n w_n log P_ctc(h_n | x).

    Args:
        hypotheses: (batch, hypotheses, labels), integers; ``blank`` and negative numbers are padding.
        weights: (batch, hypotheses), float, >= 0: the teacher's posteriors, renormalised. 0 removes a hypothesis.
        logits: the student's, (batch, frames, classes), float.
        mask: (batch, frames) bool or None.
        blank: the class that means "no label".

    Returns:
        (batch,), float32, nats.

    Raises:
        ValueError: as for ``ctc``, or if hypotheses and weights do not fit together.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> logits = np.zeros((1, 2, 2), "float32")  # P("1") = 3 / 4, P("") = 1 / 4
        >>> value = losses.n_best_ctc(hypotheses=[[[1], [-1]]], weights=[[0.5, 0.5]], logits=logits)
        >>> round(float(value[0]), 4)  # 0.5 log(4/3) + 0.5 log 4
        0.837

    Reference:
        Takashima, Sheng, Kawai, "Investigation of Sequence-level Knowledge Distillation Methods for CTC Acoustic
        Models", ICASSP 2019. Differs: nothing.
    """
    return _n_best_ctc("n_best_ctc", hypotheses, weights, logits, mask, blank)


def _n_best_ctc(owner: str, hypotheses: Tensor, weights: Tensor, logits: Tensor, mask: Tensor, blank: int) -> Tensor:
    hypotheses = _checks.tensor(owner, hypotheses, ops.convert_to_tensor)
    weights = arguments.float32(weights)
    logits = arguments.float32(logits)
    fits = len(hypotheses.shape) == 3 and tuple(hypotheses.shape[:2]) == tuple(weights.shape)
    if not fits:
        expected = "hypotheses of shape (batch, hypotheses, labels) and weights (batch, hypotheses)"
        raise _checks.error(owner, expected, f"{tuple(hypotheses.shape)} and {tuple(weights.shape)}")
    batch, number, length = ops.shape(hypotheses)
    flat = ops.reshape(hypotheses, (batch * number, length))
    repeated = ops.repeat(logits, hypotheses.shape[1], axis=0)
    repeated_mask = None if mask is None else ops.repeat(ops.convert_to_tensor(mask), hypotheses.shape[1], axis=0)
    flat, repeated, repeated_mask = checked(owner, flat, repeated, repeated_mask, blank)
    values = ops.reshape(negative_log_likelihood(flat, repeated, repeated_mask, blank), (batch, number))
    return ops.sum(ops.where(weights > 0.0, weights * values, 0.0), axis=1)


@keras.saving.register_keras_serializable(package="keras_distill")
class NBestCtc(SequenceLoss):
    """Class twin of ``n_best_ctc``, a loss for ``compile``: ``y`` is ``teachers.n_best(...).packed()``.

    Args:
        blank: the class that means "no label".
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> packed = np.array([[[0.5, 1], [0.5, -1]]])  # weight, then labels
        >>> round(float(losses.NBestCtc()(packed, np.zeros((1, 2, 2), "float32"))), 4)
        0.837
    """

    def __init__(
        self, blank: int = 0, reduction: str | None = "sum_over_batch_size", name: str | None = "n_best_ctc"
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.blank = _checks.integer("NBestCtc", "blank", blank, low=0)

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return ``n_best_ctc``; the first argument is (batch, hypotheses, 1 + labels): a weight, then the labels."""
        packed = arguments.float32(teacher_logits)
        if len(packed.shape) != 3:
            advice = "Give y=teachers.n_best(...).packed()"
            raise _checks.error(
                "NBestCtc", "y of shape (batch, hypotheses, 1 + labels)", str(tuple(packed.shape)), advice
            )
        hypotheses = ops.cast(ops.round(packed[..., 1:]), "int32")
        return _n_best_ctc("NBestCtc", hypotheses, packed[..., 0], student_logits, mask, self.blank)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "blank": self.blank}
