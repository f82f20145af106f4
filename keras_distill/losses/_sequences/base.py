"""What losses on sequences share: the mask belongs to the loss, and each sequence has one value."""

from __future__ import annotations

import keras

from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsLoss


def mask_on(tensor: Tensor) -> Tensor:
    """Return the mask that Keras layers have put on ``tensor``, or None."""
    return getattr(tensor, "_keras_mask", None)


class _Reduce(keras.losses.Loss):
    """Reduces values that have been computed already, with Keras' own reductions and sample weights."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return y_pred


class SequenceLoss(LogitsLoss):
    """Base of the losses that give one value per sequence and read the mask of the logits themselves.

    ``keras.losses.Loss`` multiplies values by the mask on ``y_pred``, which has an axis of time that these values no
    longer have: it raises, or, where the batch is as long as the sequences, multiplies by wrong numbers silently.

    Attributes:
        uses_mask: True: a term passes the student's mask to ``values``.
    """

    uses_mask = True

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Tensor:
        """Return the reduced loss; positions masked on ``y_pred`` never count."""
        values = self.call(y_true, y_pred)
        reduce = _Reduce(name=self.name, reduction=self.reduction, dtype=self.dtype)
        return reduce(values, values, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return ``values`` with the mask that Keras layers have put on ``y_pred``."""
        return self.values(y_true, y_pred, mask=mask_on(y_pred))
