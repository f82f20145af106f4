"""A supervised loss that leaves out the examples without a label."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class WhereLabelled(keras.losses.Loss):
    """A supervised loss of the labelled examples alone; the teacher is still heard on all of them.

    Choose it where only a part of the data has labels: give it to ``compile(loss=...)``, for one output or for each of
    several. An unlabelled example has NaN as its target, or -1 where targets are integers. It is left out of the mean
    exactly as if it were not in the batch: no gradient flows from it, and it is not counted.

    Args:
        loss: a ``keras.losses.Loss`` with one value per example, or a name that Keras knows.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if ``loss`` is no loss.

    Example:
        >>> loss = WhereLabelled("mean_squared_error")
        >>> float(loss([[1.0], [float("nan")], [5.0]], [[2.0], [9.0], [2.0]]))  # (1 + 9) / 2
        5.0
    """

    def __init__(
        self, loss: Any, reduction: str | None = "sum_over_batch_size", name: str | None = "where_labelled"
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        loss = keras.saving.deserialize_keras_object(loss) if isinstance(loss, dict) else loss
        given = keras.losses.get(loss) if isinstance(loss, str) else loss
        if not isinstance(given, keras.losses.Loss) and (isinstance(given, type) or not callable(given)):
            raise _checks.error("WhereLabelled", "loss to be a keras.losses.Loss or its name", loss)
        self.loss = loss
        self._values = given.call if isinstance(given, keras.losses.Loss) else given

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Tensor:
        """Return the reduced loss of the examples that have a label."""
        y_true, given = ops.convert_to_tensor(y_true), y_pred
        y_pred = ops.copy(ops.convert_to_tensor(y_pred))
        void = ops.isnan(y_true) if "float" in keras.backend.standardize_dtype(y_true.dtype) else ops.equal(y_true, -1)
        y_true = ops.where(void, ops.zeros_like(y_true), y_true)
        if len(void.shape) == len(y_pred.shape):
            void = ops.any(void, axis=-1)
        labelled, own = ops.logical_not(void), getattr(given, "_keras_mask", None)
        # Keras leaves masked positions out of the mean, and rescales it by those that count.
        y_pred._keras_mask = labelled if own is None else ops.logical_and(labelled, ops.cast(own, "bool"))
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the values of the loss; the mask on ``y_pred`` says which of them count."""
        return self._values(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs."""
        return {**super().get_config(), "loss": keras.saving.serialize_keras_object(self.loss)}
