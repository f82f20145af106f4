"""Small pieces of the training step: checks of models, taps by name, shares of replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_distill._checks import error


def nan_or_zero(tensor: tf.Tensor) -> tf.Tensor:
    """NaN if there is a NaN in ``tensor``, else 0: an infinite logit is a class that cannot occur, and allowed."""
    return tf.where(tf.reduce_any(tf.math.is_nan(tensor)), float("nan"), 0.0)


def add_to_mean(mean: keras.metrics.Mean, value: tf.Tensor, count: tf.Tensor) -> None:
    """Let ``count`` examples of mean ``value`` count: ``mean.update_state`` for two scalars, in a third of its ops."""
    mean.total.assign(mean.total + value * count)
    mean.count.assign(mean.count + count)


def check_models(teacher: Any, student: Any) -> None:
    """Raise ``ValueError`` unless these are two models without common weights."""
    for role, model in (("teacher", teacher), ("student", student)):
        if not isinstance(model, keras.Model):
            raise error("Distiller", f"a keras.Model as {role}", f"{type(model).__name__}: {model!r}"[:120])
    if teacher is student:
        advice = "Make a second model: keras.models.clone_model(model)"
        raise error("Distiller", "teacher and student to be two models", "one object for both", advice)
    shared = {id(v) for v in teacher.variables} & {id(v) for v in student.trainable_variables}
    if shared:
        advice = "Training the student would change the teacher: give it layers of its own"
        raise error("Distiller", "a student that shares no weights with its teacher", f"{len(shared)} shared", advice)


def tap_names(terms: Sequence[Any], role: str) -> list[str]:
    """Names of all layers that the terms want from one of the models, each once."""
    found: list[str] = []
    for term in terms:
        name = getattr(term, f"{role}_layer_name", None)
        found += [name] if isinstance(name, str) else list(name or ())
    return list(dict.fromkeys(found))


def pick(name: Any, outputs: Any, features: dict[str, Any]) -> Any:
    """Return what a term compares: the outputs, one tap, or a list of taps."""
    if name is None:
        return outputs
    return features[name] if isinstance(name, str) else [features[each] for each in name]


def spec_of_array(array: Any) -> tf.TensorSpec:
    """Return what a batch of ``array`` will look like: Keras casts floating numbers to its own precision."""
    dtype = keras.backend.standardize_dtype(array.dtype)
    return tf.TensorSpec((None, *array.shape[1:]), keras.config.floatx() if "float" in dtype else dtype)


def num_replicas() -> int:
    """Return how many replicas train together; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def replica_share(outputs: Any) -> Any:
    """This replica's part of the global batch: its gradients are summed with those of the others, so means must not be.

    With one replica 1; with more, the local number of examples over the global one, right for a ragged last batch.
    """
    if num_replicas() == 1 or tf.distribute.in_cross_replica_context():
        return 1.0
    local = tf.cast(tf.shape(keras.tree.flatten(outputs)[0])[0], tf.float32)
    everywhere = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, local)
    return tf.math.divide_no_nan(local, everywhere)
