"""A teacher whose confidence is corrected before a student learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill._checks import error
from keras_distill.teachers._base import Around, gradient, refuse_probabilities, resolved


@keras.saving.register_keras_serializable(package="keras_distill")
class Calibrated(Around):
    """A teacher behind a fitted scaler: the student learns from calibrated logits.

    Choose it where the teacher is over-confident, as most large ones are: its soft targets then state what it really
    knows, and the student inherits that. An ensemble is scaled as a single teacher; to keep its members separate (for
    ``losses.DirichletDistillation``), calibrate each: ``Ensemble([Calibrated(m, s), ...])``.

    Args:
        teacher: a Keras model or a teacher with one output, logits.
        scaler: a fitted scaler of ``keras_distill.calibration``, or a Keras layer from logits to logits.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Raises:
        ValueError: if the teacher ends in softmax or sigmoid, or the scaler is not one or is not fitted.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill.calibration import TemperatureScaler
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("linear")])
        >>> teacher = Calibrated(model, TemperatureScaler(temperature=2.0))
        >>> teacher(np.array([[4.0, 1.0]])).numpy()
        array([[2. , 0.5]], dtype=float32)

    Reference:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599.
        Differs: applied to a teacher.
    """

    def __init__(self, teacher: keras.Model, scaler: Any, **kwargs: Any) -> None:
        super().__init__(teacher, **kwargs)
        refuse_probabilities("Calibrated", self.model)
        if not isinstance(scaler, keras.layers.Layer):
            # Import contracts keep `calibration` out of this package, so the scaler is asked for its layer.
            make = getattr(scaler, "fitted_layer", None)
            if make is None:
                advice = "Use calibration.TemperatureScaler().fit(logits, labels)"
                raise error("Calibrated", "a fitted scaler or a layer", type(scaler).__name__, advice)
            scaler = make()
        self.scaling = scaler

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Run the inner teacher and scale its combined logits; see ``Teacher.listen``."""
        outputs, tapped = self.model.listen(teacher_x, taps, **gradient(differentiable))
        outputs = resolved(outputs)
        if keras.tree.is_nested(outputs):
            raise error("Calibrated", "a teacher with one output", f"{len(keras.tree.flatten(outputs))} outputs")
        return self.scaling(outputs), tapped

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        serialize = keras.saving.serialize_keras_object
        return {"name": self.name, "teacher": serialize(self.model), "scaler": serialize(self.scaling)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Calibrated:
        """Rebuild the teacher from ``get_config``."""
        made = {k: keras.saving.deserialize_keras_object(config[k], custom_objects) for k in ("teacher", "scaler")}
        return cls(**{**config, **made})
