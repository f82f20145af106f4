"""A model that exposes its attribution map as a tap, for a term to compare."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_distill import taps
from keras_distill._checks import choice, error
from keras_distill.explain._attributions import class_activation, no_gradient
from keras_distill.explain._models import explained_model

_OWNER = "explain.with_attribution"


@keras.saving.register_keras_serializable(package="keras_distill")
class WithAttribution(keras.Model):
    """A model with the outputs of the wrapped model and a layer ``"attribution"`` that holds its map.

    ``explain.with_attribution`` creates it. In a graph the map costs nothing unless it is tapped.

    Args:
        model: the wrapped Keras model; ``wrapped.model`` is the trained model to keep.
        method: ``"gradient"`` or ``"grad_cam"``.
        layer_name: the tap whose maps ``"grad_cam"`` uses.
        name: name of the model.
        **kwargs: as for ``keras.Model``.
    """

    def __init__(
        self,
        model: keras.Model,
        method: str = "gradient",
        layer_name: str | None = None,
        name: str = "with_attribution",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.model, self.method, self.layer_name = model, method, layer_name
        self.attribution = keras.layers.Identity(name="attribution", dtype="float32")
        self._tapped = taps.Taps(model, [] if layer_name is None else [layer_name], owner=_OWNER)
        self.built = bool(model.built)

    def call(self, x: Any, training: bool = False) -> Any:
        """Return the model's logits, and pass the map through the layer ``attribution``."""
        x = tf.cast(x, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits, found = self._tapped(x, training=training)
            wide = tf.cast(logits, tf.float32)
            picked = tf.gather(wide, tf.argmax(wide, axis=-1), axis=-1, batch_dims=1)
        watched = x if self.layer_name is None else found[self.layer_name]
        slope = tape.gradient(picked, watched)
        if slope is None:
            raise no_gradient(self.model)
        self.attribution(slope if self.layer_name is None else class_activation(slope, watched))
        return logits

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the logits."""
        return self.model.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        model = keras.saving.serialize_keras_object(self.model)
        return {"model": model, "method": self.method, "layer_name": self.layer_name, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> WithAttribution:
        """Recreate the model from ``get_config``."""
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"], custom_objects)})


def with_attribution(model: Any, method: str = "gradient", *, layer_name: str | None = None) -> WithAttribution:
    """Wrap a teacher or a student so that ``terms.AttributionMatching`` can compare their attributions.

    Args:
        model: a built Keras model with one numeric input and one output, logits; it is shared, not copied.
        method: ``"gradient"`` (of the model's own answer with respect to the input) or ``"grad_cam"``.
        layer_name: the tap whose maps ``"grad_cam"`` uses; None takes the last layer that outputs maps.

    Returns:
        The wrapped model; train it in a ``Distiller``, then use ``wrapped.model``.

    Raises:
        ValueError: if the model outputs probabilities, has no gradient, or has no layer with maps.

    Example:
        >>> import numpy as np
        >>> wrapped = with_attribution(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))
        >>> taps.Taps(wrapped, ["attribution"])(np.ones((4, 2), "float32"))[1]["attribution"].shape
        TensorShape([4, 2])
    """
    choice(_OWNER, "method", method, ("gradient", "grad_cam"))
    known = explained_model(_OWNER, model)
    if method == "gradient":
        return WithAttribution(known, method, None, name=f"{known.name}_with_attribution")
    shapes = taps.list_taps(known, print_fn=None)
    maps = [name for name, shape in shapes.items() if isinstance(shape, tuple) and len(shape) == 4]
    if layer_name is None and not maps:
        raise error(_OWNER, "a model with a layer that gives maps", f"{known.name!r}, where none is known")
    chosen = maps[-1] if layer_name is None else layer_name
    if chosen in shapes and chosen not in maps and shapes[chosen] is not None:
        raise error(_OWNER, "a layer that gives maps (examples, height, width, channels)", chosen)
    return WithAttribution(known, method, chosen, name=f"{known.name}_with_attribution")
