"""A supervised loss that leaves out the examples without a label."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._numerics import replicas


@keras.saving.register_keras_serializable(package="keras_distill")
class WhereLabelled(keras.losses.Loss):
    """A supervised loss over the labelled examples only; the student still learns from the teacher on all of them.

    Choose it when only part of the data has labels: pass it to ``compile(loss=...)``, for one output or for each of
    several. Mark an unlabelled example by a target of NaN, or -1 if targets are integers. It is left out of the mean
    exactly as if it were not in the batch: no gradient flows from it, and it is not counted. With several replicas the
    labelled examples of the global batch are counted, so that 2 replicas train as 1 does. An optimizer that accumulates
    gradients averages the means of its batches: pass ``labelled_fraction`` there, so that batches with few labels do
    not count as much as those with many.

    Formula: sum of the labelled values / number of labelled; with ``labelled_fraction``, sum of the labelled values /
        (number of all * labelled_fraction).

    Args:
        loss: a ``keras.losses.Loss`` with one value per example, or a name that Keras knows.
        labelled_fraction: the fraction of the data that has a label, above 0 and at most 1; None counts the labels of
            each batch.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if ``loss`` is not a loss, or ``labelled_fraction`` is out of bounds.

    Example:
        >>> loss = WhereLabelled("mean_squared_error")
        >>> float(loss([[1.0], [float("nan")], [5.0]], [[2.0], [9.0], [2.0]]))  # (1 + 9) / 2
        5.0
    """

    def __init__(
        self,
        loss: Any,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "where_labelled",
        labelled_fraction: float | None = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        loss = keras.saving.deserialize_keras_object(loss) if isinstance(loss, dict) else loss
        given = keras.losses.get(loss) if isinstance(loss, str) else loss
        if not isinstance(given, keras.losses.Loss) and (isinstance(given, type) or not callable(given)):
            raise _checks.error("WhereLabelled", "loss to be a keras.losses.Loss or its name", loss)
        if labelled_fraction is not None:
            advice = "Leave it out to count the labelled examples of each batch"
            labelled_fraction = _checks.number(
                "WhereLabelled", "labelled_fraction", labelled_fraction, above=0.0, high=1.0, advice=advice
            )
        self.loss = loss
        self.labelled_fraction = labelled_fraction
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
        possible = ops.ones_like(labelled) if own is None else ops.cast(own, "bool")
        labelled = ops.logical_and(labelled, possible)
        # Keras leaves masked positions out of the mean and rescales it by the unmasked ones.
        y_pred._keras_mask = labelled
        value = super().__call__(y_true, y_pred, sample_weight)
        if self.reduction not in ("sum_over_batch_size", "mean"):
            return value
        counted = ops.sum(ops.cast(labelled, value.dtype))
        if self.labelled_fraction is not None:
            expected = self.labelled_fraction * ops.sum(ops.cast(possible, value.dtype))
            return value * ops.divide_no_nan(counted, expected)
        # A trainer weights each replica's loss by its share of the examples; here it must be its share of the labels.
        examples = ops.cast(ops.shape(labelled)[0], value.dtype)
        return value * ops.divide_no_nan(replicas.share(counted), replicas.share(examples))

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the unreduced values of the loss; the mask on ``y_pred`` says which of them count."""
        return self._values(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        fraction = {} if self.labelled_fraction is None else {"labelled_fraction": self.labelled_fraction}
        return {**super().get_config(), "loss": keras.saving.serialize_keras_object(self.loss), **fraction}
