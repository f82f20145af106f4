"""Folds batch normalisation into the layer before it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill.students import _graph

layers = keras.layers
#: Layers that a normalisation can be folded into, with the axis of their kernel that holds the outputs.
_KERNEL_AXIS = {
    layers.Conv1D: -1,
    layers.Conv2D: -1,
    layers.Conv3D: -1,
    layers.Dense: -1,
    layers.Conv2DTranspose: -2,
    layers.DepthwiseConv2D: None,
}


def fold_batch_normalization(model: keras.Model) -> keras.Model:
    """Return the model with each batch normalisation merged into the convolution or dense layer before it.

    Choose it before quantisation and before serving: the model computes the same with fewer operations. Further
    training runs without normalisation. A normalisation is kept if no linear layer is directly before it, if that layer
    has an activation, or if its output or the layer itself is also used elsewhere.

    Formula: s = gamma / sqrt(variance + epsilon); kernel * s, (bias - mean) * s + beta.

    Args:
        model: a built Functional or Sequential model; nested and shared layers too. It is not changed.

    Returns:
        A new model with the same outputs in inference, up to rounding.

    Raises:
        ValueError: if the model has no graph, is not built or is quantised already.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()])
        >>> [type(layer).__name__ for layer in fold_batch_normalization(model).layers]
        ['Dense']

    Reference:
        Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        2018, arXiv:1712.05877, section 3.2.
        Differs: folded once, with the moving statistics; they are not updated afterwards.
    """
    _graph.check_graph("fold_batch_normalization", model)
    folded: dict[int, Any] = {}
    _find(model, folded, _calls(model, {}))
    merged = {id(normal) for normal in folded.values()}

    def replace(builder: Any, path: str, node: Any, args: Any, kwargs: Any) -> Any:
        operation = node.operation
        if id(operation) in merged:
            return _graph.flat(args)[:1]
        if id(operation) not in folded:
            return None
        new = builder.once(operation, lambda: _graph.like(operation, use_bias=True))
        return builder.apply(operation, new, _weights(operation, folded[id(operation)]), args, kwargs)

    return _graph.Builder(model, replace).build()


def _calls(model: Any, counts: dict[int, int]) -> dict[int, int]:
    """Count the calls of each layer, over all calls of nested models."""
    for node in _graph.nodes(_graph.graph_of(model)):
        counts[id(node.operation)] = counts.get(id(node.operation), 0) + 1
        if _graph.graph_of(node.operation) is not None and counts[id(node.operation)] == 1:
            _calls(node.operation, counts)
    return counts


def _find(model: Any, folded: dict[int, Any], calls: dict[int, int]) -> None:
    graph = _graph.graph_of(model)
    readers = _graph.readers(graph)
    for node in _graph.nodes(graph):
        operation = node.operation
        if _graph.graph_of(operation) is not None:
            _find(operation, folded, calls)
        if type(operation) not in _KERNEL_AXIS or calls[id(operation)] > 1:
            continue
        after = readers.get(id(node.outputs[0]), [])
        linear = operation.activation is keras.activations.linear
        if not linear or len(after) != 1 or after[0] is None:
            continue
        normal = after[0].operation
        last = normal.axis if type(normal) is layers.BatchNormalization else None
        if last in (-1, len(node.outputs[0].shape) - 1) and calls[id(normal)] == 1:
            folded[id(operation)] = normal


def _weights(layer: Any, normal: Any) -> list[np.ndarray]:
    to_array = keras.ops.convert_to_numpy
    variance = to_array(normal.moving_variance).astype("float64")
    scale = 1 / np.sqrt(variance + normal.epsilon)
    if normal.gamma is not None:
        scale = scale * to_array(normal.gamma)
    kernel = layer.get_weights()[0].astype("float64")
    axis = _KERNEL_AXIS[type(layer)]
    if axis is None:
        kernel = kernel * scale.reshape(kernel.shape[-2:])
    else:
        kernel = kernel * (scale if axis == -1 else scale[:, None])
    bias = to_array(layer.bias) if layer.use_bias else 0.0
    offset = (bias - to_array(normal.moving_mean)) * scale
    return [kernel, offset + (to_array(normal.beta) if normal.beta is not None else 0.0)]
