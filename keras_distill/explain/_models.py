"""Checks of the models to explain, which have one numeric input and one output of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_distill import heads, teachers
from keras_distill._checks import error

_SCALARS = "biuf"


def explained_model(owner: str, model: Any, *, gradients: bool = True) -> keras.Model:
    """Return the Keras model to explain, or raise if it cannot be explained.

    Args:
        owner: name shown in the error message.
        model: a Keras model, or a teacher.
        gradients: whether the gradient with respect to the input is needed.

    Returns:
        The model; for a ``teachers.Single`` the wrapped model.

    Raises:
        ValueError: if it is not a model, outputs probabilities, or is a teacher without gradients.
    """
    if isinstance(model, teachers.Single):
        model = model.model
    if not isinstance(model, keras.Model):
        raise error(owner, "a keras.Model or a teacher", type(model).__name__)
    if gradients and isinstance(model, teachers.Teacher):
        advice = "Use method='occlusion', or explain one of its models"
        raise error(owner, "a model with gradients", f"the teacher {type(model).__name__}", advice)
    if hasattr(model, "student") and hasattr(model, "distillation_losses"):
        raise error(owner, "the student alone", f"a {type(model).__name__}", "Pass distiller.student")
    if "softmax" in heads.final_activation(model):
        advice = "Use taps.without_softmax(model)"
        raise error(owner, "a model that gives logits", f"{model.name!r}, which ends in softmax", advice)
    return model


def numeric_inputs(owner: str, x: Any) -> np.ndarray:
    """Return inputs as a float32 array of at least one example, or raise if they are not numeric.

    Args:
        owner: name shown in the error message.
        x: (examples, ...).

    Returns:
        The array.

    Raises:
        ValueError: if there are several inputs or no examples, or inputs are texts.
    """
    if isinstance(x, (dict, tuple)) or (isinstance(x, list) and x and hasattr(x[0], "shape") and np.ndim(x[0]) > 1):
        raise error(owner, "one array of inputs", type(x).__name__, "Explain one input with the others fixed")
    array = np.asarray(x)
    if array.dtype.kind not in _SCALARS:
        advice = "Explain a model that starts at the embedded texts"
        raise error(owner, "images or other numeric inputs", "texts", advice)
    if array.ndim < 2 or not len(array):
        raise error(owner, "at least one example of shape (examples, ...)", f"inputs of shape {array.shape}")
    return array.astype("float32")


def logits_of(owner: str, model: keras.Model, x: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """Return the model's output for inputs, (examples, classes) float32."""
    call = compiled_call(model)
    parts = [np.asarray(call(x[i : i + batch_size])) for i in range(0, len(x), batch_size)]
    if parts[0].ndim != 2:
        raise error(owner, "one output of shape (examples, classes)", f"one of shape {parts[0].shape}")
    return np.concatenate(parts).astype("float32")


def traced(function: Callable[..., Any]) -> Any:
    """Return ``tf.function(function)`` for any batch size, without the warning about frequent tracing.

    A new function is created for each model and call, because the model may have changed in between; TensorFlow counts
    their traces as those of one function.
    """
    import tensorflow as tf

    made = tf.function(function, reduce_retracing=True)
    made._omit_frequent_tracing_warning = True
    return made


def compiled_call(model: keras.Model) -> Callable[[Any], Any]:
    """Return a traced function from a batch to the model's output, in inference mode."""
    import tensorflow as tf

    @traced
    def call(x: Any) -> Any:
        output = model(x, training=False)
        if keras.tree.is_nested(output):
            raise error("explain", "a model with one output", f"{len(keras.tree.flatten(output))} outputs")
        return tf.cast(output, tf.float32)

    return call


def targets_of(owner: str, target: Any, logits: np.ndarray) -> np.ndarray:
    """Return the class to explain for each example: the predicted one if ``target`` is None.

    Args:
        owner: name shown in the error message.
        target: None, a class id, or one per example.
        logits: (examples, classes).

    Returns:
        (examples,), int32.

    Raises:
        ValueError: if a class does not exist, or there is not one class per example.
    """
    if target is None:
        return logits.argmax(-1).astype("int32")
    chosen = np.asarray(target)
    if chosen.dtype.kind not in "iu" or chosen.shape not in ((), (len(logits),)):
        expected = f"target to be a class id, or {len(logits)} of them"
        raise error(owner, expected, f"{chosen.dtype} of shape {chosen.shape}")
    if chosen.min() < 0 or chosen.max() >= logits.shape[1]:
        raise error(owner, f"target from 0 to {logits.shape[1] - 1}", f"{chosen.min()} to {chosen.max()}")
    return np.broadcast_to(chosen, (len(logits),)).astype("int32")
