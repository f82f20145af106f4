"""Base of the scalers, the model that a scaler returns, and checks of the data it is fitted on."""

from __future__ import annotations

from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error, optional
from keras_distill._typing import Tensor
from keras_distill.heads import final_activation

_PACKAGE = "keras_distill"


class Scaler:
    """Base of the scalers: fitted constants, and the layer that applies them."""

    _fitted = False

    def layer(self) -> keras.layers.Layer:
        """Return a new layer that applies this scaler to logits."""
        raise NotImplementedError(f"{type(self).__name__} must define layer().")

    def scale(self, logits: Tensor) -> Any:
        """Scale logits.

        Args:
            logits: (..., classes), array or tensor.

        Returns:
            The calibrated logits, a float32 tensor of the same shape.
        """
        return self.fitted_layer()(ops.convert_to_tensor(logits))

    def wrap(self, student: keras.Model) -> keras.Model:
        """Append the scaling to a model that outputs logits: one Keras model, saved and exported like any other.

        Args:
            student: a model with one output, the logits for which this scaler was fitted.

        Returns:
            A new model that shares the student's layers and outputs calibrated logits.

        Raises:
            ValueError: if this scaler is not fitted, or the model is known to end in softmax or sigmoid, or has several
                outputs.
        """
        owner = f"{type(self).__name__}.wrap"
        if not isinstance(student, keras.Model):
            raise error(owner, "a keras.Model", type(student).__name__)
        ends = [end for end in final_activation(student) if end]
        if ends:
            raise error(
                owner, "a model that gives logits", f"one that ends in {ends[0]}", "Use taps.without_softmax(model)"
            )
        layer = self.fitted_layer()
        name = f"{student.name}_calibrated"
        inputs = getattr(student, "inputs", None)
        if not inputs:
            return CalibratedModel(student, layer, name=name)
        if len(student.outputs) != 1:
            raise error(owner, "a model with one output", f"{len(student.outputs)} outputs")
        structure = inputs[0] if isinstance(student, keras.Sequential) else student.input
        return keras.Model(structure, layer(student.outputs[0]), name=name)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration, including the fitted constants."""
        raise NotImplementedError(f"{type(self).__name__} must define get_config().")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Recreate the scaler, fitted if it was."""
        return cls(**config)

    def fitted_layer(self) -> keras.layers.Layer:
        """Return ``layer()``; raise ``ValueError`` if ``fit`` was not called."""
        if not self._fitted:
            raise error(type(self).__name__, "a fitted scaler", "an unfitted one", "Call fit(logits, labels) first")
        return self.layer()


@keras.saving.register_keras_serializable(package=_PACKAGE)
class CalibratedModel(keras.Model):
    """A subclassed model followed by a scaling layer; ``wrap`` returns it if there is no graph of layers to extend.

    Args:
        student: any model that outputs logits.
        scaling: layer from logits to logits.
        **kwargs: passed on to ``keras.Model``.
    """

    def __init__(self, student: keras.Model, scaling: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.student = student
        self.scaling = scaling

    def build(self, input_shape: Any) -> None:
        """Do nothing: student and scaling are built when they are first called."""
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the student's logits, scaled."""
        return self.scaling(self.student(inputs, training=training))

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        parts = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in ("student", "scaling")}
        return {"name": self.name, **parts}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> CalibratedModel:
        """Recreate the model from its configuration."""
        for name in ("student", "scaling"):
            config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        return cls(**config)


def scipy_optimize(owner: str) -> Any:
    """Import ``scipy.optimize``, or raise the error that names the extra."""
    with optional(owner, "scipy", "calibration"):
        from scipy import optimize
    return optimize


def softmax(z: np.ndarray) -> np.ndarray:
    """Return the softmax of each row."""
    grown = np.exp(z - z.max(axis=-1, keepdims=True))
    return grown / grown.sum(axis=-1, keepdims=True)


def nll(z: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    """Return the weighted mean NLL; ``w`` sums to 1."""
    top = z.max(axis=-1)
    return float(np.sum(w * (top + np.log(np.exp(z - top[:, None]).sum(-1)) - z[np.arange(len(z)), y])))


def fitting_data(
    owner: str, logits: Tensor, labels: Tensor, sample_weight: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return float64 logits (n, classes), class ids (n,) and weights (n,) that sum to 1, without rows of weight 0."""
    z = np.asarray(ops.convert_to_numpy(logits), np.float64)
    y = np.asarray(ops.convert_to_numpy(labels))
    if z.ndim >= 2 and z.shape[-1] > 1 and y.shape == z.shape:
        y = y.argmax(-1)
    if z.ndim >= 2 and z.shape[-1] > 1 and z.size > z.shape[-1]:
        # Two or more rows of logits would hardly be all >= 0 and sum to 1 by chance.
        if (z >= 0).all() and np.allclose(z.sum(-1), 1.0, rtol=0.0, atol=1e-3):
            advice = "Give the model's outputs before its softmax (taps.without_softmax), or np.log(probabilities)"
            raise error(owner, "logits", "rows of probabilities, which sum to 1", advice)
    if z.ndim == 1 or z.shape[-1] == 1:  # one logit: class 1 against class 0
        z = z.reshape(-1, 1)
        z = np.concatenate([np.zeros_like(z), z], axis=-1)
    classes = z.shape[-1]
    z, y = z.reshape(-1, classes), y.reshape(-1).astype(int)
    if len(y) != len(z) or not len(z):
        raise error(owner, "one label per row of logits, and at least one", f"{len(y)} labels for {len(z)} rows")
    w = np.ones(len(z)) if sample_weight is None else np.asarray(ops.convert_to_numpy(sample_weight), float).reshape(-1)
    if len(w) != len(z) or (w < 0).any() or not w.sum() > 0:
        raise error(owner, "one weight >= 0 per label, not all 0", f"{len(w)} weights that sum to {w.sum():g}")
    z, y, w = z[w > 0], y[w > 0], w[w > 0] / w.sum()
    if y.min() < 0 or y.max() >= classes:
        raise error(owner, f"labels from 0 to {classes - 1}", int(y.min() if y.min() < 0 else y.max()))
    if np.isnan(z).any() or (z == np.inf).any() or not np.isfinite(z[np.arange(len(z)), y]).all():
        raise error(owner, "logits that are finite, or -inf for classes that are not the label", "others")
    return z, y, w
