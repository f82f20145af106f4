"""Base of the losses on sequences, which apply the mask themselves and return one value per sequence."""

from __future__ import annotations

import keras

from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsLoss


def mask_on(tensor: Tensor) -> Tensor:
    """Return the mask that Keras layers attached to ``tensor``, or None."""
    return getattr(tensor, "_keras_mask", None)


class _Reduce(keras.losses.Loss):
    """Reduces precomputed values with Keras' reductions and sample weights."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return y_pred


class SequenceLoss(LogitsLoss):
    """Base of the losses that return one value per sequence and apply the mask of the logits themselves.

    ``keras.losses.Loss`` multiplies values by the mask on ``y_pred``, whose time axis these values no longer have: it
    raises or, if the batch is as long as the sequences, silently multiplies by the wrong numbers.

    Attributes:
        uses_mask: True, so that a term passes the student's mask to ``values``.
    """

    uses_mask = True

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Tensor:
        """Return the reduced loss; positions masked on ``y_pred`` never count."""
        values = self.call(y_true, y_pred)
        reduce = _Reduce(name=self.name, reduction=self.reduction, dtype=self.dtype)
        return reduce(values, values, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return ``values`` with the mask that Keras layers attached to ``y_pred``."""
        return self.values(y_true, y_pred, mask=mask_on(y_pred))
