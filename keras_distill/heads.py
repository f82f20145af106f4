"""The last layer of a model: whether it gives logits or probabilities, and how to take a softmax off."""

from __future__ import annotations

import copy

import keras
import numpy as np

from keras_distill._checks import error
from keras_distill._typing import Tensor

__all__ = ["activation_of", "final_activation", "gives_logits", "without_softmax"]


def _head_layers(model: keras.Model) -> list[keras.layers.Layer] | None:
    """Layers that give the outputs of ``model``, one for each output; None where that is not known for certain."""
    if isinstance(model, keras.Sequential):
        return [model.layers[-1]] if model.layers else None
    if not getattr(model, "outputs", None):
        return None
    history = [getattr(tensor, "_keras_history", None) for tensor in model.outputs]
    return None if None in history else [entry.operation for entry in history if entry is not None]


def final_activation(model: keras.Model) -> list[str | None]:
    """Return whether each output of ``model`` ends in ``"softmax"`` or ``"sigmoid"``, where that is certain.

    Args:
        model: any Keras model.

    Returns:
        A list with ``"softmax"``, ``"sigmoid"`` or ``None`` (neither, or not known: subclassed models) per output.

    Example:
        >>> import keras
        >>> final_activation(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")]))
        ['softmax']
    """
    heads = _head_layers(model)
    if heads is None:
        return [None]
    found: list[str | None] = []
    for head in heads:
        if isinstance(head, keras.Model):
            found.append(final_activation(head)[0])
        elif isinstance(head, keras.layers.Softmax):
            found.append("softmax")
        else:
            # Operations of keras.ops ("Softmax", "Sigmoid") in a functional graph have no `activation`.
            activation = getattr(head, "activation", None)
            name = getattr(activation, "__name__", type(head).__name__.lower())
            found.append(name if name in ("softmax", "sigmoid") else None)
    return found


_PASSING = ("Cast", "EnsureShape", "Identity", "PreventGradient", "Reshape", "StopGradient")


def activation_of(tensor: Tensor) -> str | None:
    """Return whether a model's output comes from a softmax or a sigmoid, for any kind of model.

    A graph tensor is judged by the operation that made it; an eager value with several classes counts as softmax if no
    entry is negative and every row sums to 1.

    Args:
        tensor: (..., classes), an output.

    Returns:
        ``"softmax"``, ``"sigmoid"``, or None: neither, or not known.

    Example:
        >>> from keras import ops
        >>> activation_of(ops.softmax(ops.convert_to_tensor([[2.0, 1.0], [0.0, 3.0]])))
        'softmax'
    """
    if hasattr(tensor, "numpy") and not hasattr(tensor, "_keras_history"):
        rows = (
            np.asarray(tensor, "float64").reshape(-1, tensor.shape[-1]) if len(tensor.shape) > 1 else np.zeros((0, 1))
        )
        likely = len(rows) > 1 and rows.shape[1] > 1 and (rows >= 0).all() and (rows.max(-1) < 1).any()
        return "softmax" if likely and np.allclose(rows.sum(-1), 1.0, rtol=0.0, atol=1e-3) else None
    operation = getattr(tensor, "op", None)
    while operation is not None and operation.type in _PASSING:
        operation = operation.inputs[0].op
    return {"Softmax": "softmax", "Sigmoid": "sigmoid"}.get(getattr(operation, "type", ""))


def gives_logits(model: keras.Model) -> bool:
    """Return whether every output of ``model`` certainly comes from a layer with weights and no activation.

    Args:
        model: any Keras model.

    Returns:
        True where it is certain; False where the last layer has an activation, or is not known.

    Example:
        >>> import keras
        >>> gives_logits(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))
        True
    """
    heads = _head_layers(model)
    if heads is None:
        return False
    return all(
        gives_logits(head)
        if isinstance(head, keras.Model)
        else bool(getattr(head, "weights", None)) and getattr(head, "activation", None) is keras.activations.linear
        for head in heads
    )


def without_softmax(model: keras.Model) -> keras.Model:
    """Return a model with the same weights whose last layer gives logits instead of softmax or sigmoid probabilities.

    Most published classifiers need this before distillation (``keras.applications`` among them), because a temperature
    divides logits. The weights are copied; the given model is unchanged.

    Args:
        model: a Functional or Sequential model, possibly nested, with softmax or sigmoid as its last activation.

    Returns:
        A new model of the same class; ``softmax(new(x))`` equals ``model(x)``.

    Raises:
        ValueError: if the model does not end in softmax or sigmoid, or is subclassed so that this is not certain.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="softmax")])
        >>> final_activation(without_softmax(model))
        [None]
    """
    heads = _head_layers(model)
    if heads is None or not any(final_activation(model)):
        raise error(
            "without_softmax",
            "a Functional or Sequential model that ends in softmax or sigmoid",
            f"{type(model).__name__} {model.name!r}",
            "A subclassed model cannot be converted: change its call() to return logits",
        )
    head_ids = {id(head) for head in heads}

    def replace(layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) not in head_ids:
            if isinstance(layer, keras.Model):
                inner = keras.models.clone_model(layer)
                inner.set_weights(layer.get_weights())
                return inner
            return layer.__class__.from_config(layer.get_config())
        if isinstance(layer, keras.Model):
            return without_softmax(layer) if any(final_activation(layer)) else keras.models.clone_model(layer)
        if isinstance(layer, keras.layers.Softmax):
            return keras.layers.Activation("linear", name=layer.name, dtype=layer.dtype_policy)
        config = copy.deepcopy(layer.get_config())
        if config.get("activation") in ("softmax", "sigmoid"):
            config["activation"] = "linear"
        return layer.__class__.from_config(config)

    clone = keras.models.clone_model(model, clone_function=replace)
    if not clone.built and isinstance(model, keras.Sequential) and model.built:
        clone.build(model.input_shape)
    clone.set_weights(model.get_weights())
    return clone
