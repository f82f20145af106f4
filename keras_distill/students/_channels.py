"""Groups the channels of a Keras graph: one slot per producer's channel, united where they must agree."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.students import _graph

layers = keras.layers


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """The channels of one tensor: a slot for each index of its last axis; None if the size of that axis is unknown."""

    slots: Any


@dataclasses.dataclass(eq=False)
class Record:
    """How a layer changes when slots are removed.

    Args:
        path: of the layer.
        layer: the layer.
        inputs: the slots it reads.
        outputs: the slots it creates or passes on.
        axes: for each weight, in the layer's order: the slots along its axes.
        produces: whether it creates the output slots.
        consumes: index of the weight that reads the inputs, and its axis; None if each channel stays separate.
        changes: new values of the layer's settings, as functions of the kept output indices.
    """

    path: str
    layer: Any
    inputs: np.ndarray
    outputs: np.ndarray
    axes: list[dict[int, np.ndarray]]
    produces: bool = False
    consumes: tuple[int, int] | None = None
    changes: Callable[[np.ndarray], dict[str, Any]] = lambda kept: {}


class Channels:
    """The dependency graph of a model's channels.

    Args:
        model: a Functional or Sequential model; nested and shared ones too.
        opaque: returns True for an operation to leave alone although it is a model with a graph.

    An unknown layer keeps all its channels, and those it reads; ``frozen`` says which and why.
    """

    def __init__(self, model: keras.Model, opaque: Callable[[Any], bool] = lambda operation: False) -> None:
        self.records: dict[int, Record] = {}
        self._opaque = opaque
        self._parent: list[int] = []
        self._reason: dict[int, str] = {}
        graph = _graph.graph_of(model)
        inputs = [self._fresh(tensor.shape, "it is an input of the model") for tensor in graph.inputs]
        outputs = _graph.run(model, inputs, functools.partial(self._visit, ""))
        for flow in outputs:
            self.freeze(flow, "it is an output of the model")
        self.roots = np.array([self._find(slot) for slot in range(len(self._parent))], int)
        self.reasons: dict[int, str] = {}
        for slot, reason in self._reason.items():
            self.reasons.setdefault(int(self.roots[slot]), reason)

    # ------------------------------------------------------------------ what removing slots means

    def classes(self) -> list[tuple[tuple[str, ...], np.ndarray]]:
        """Return the free groups by their producers: the producers' paths, and the roots of the groups."""
        producers: dict[int, set[str]] = {}
        for record in self.records.values():
            if record.produces:
                for root in self.roots[record.outputs]:
                    producers.setdefault(int(root), set()).add(record.path)
        found: dict[tuple[str, ...], list[int]] = {}
        for root, paths in sorted(producers.items()):
            if root not in self.reasons:
                found.setdefault(tuple(sorted(paths)), []).append(root)
        return [(paths, np.array(roots)) for paths, roots in found.items()]

    def frozen(self) -> dict[str, str]:
        """Return the producers without removable channels, each with the reason."""
        result = {}
        for record in self.records.values():
            reasons = [self.reasons.get(int(root)) for root in self.roots[record.outputs]]
            if record.produces and all(reasons):
                result[record.path] = str(reasons[0])
        return result

    def left(self, slots: np.ndarray, removed: np.ndarray) -> np.ndarray:
        """Return the indices of ``slots`` that are kept, given a flag ``removed`` for each root."""
        return np.flatnonzero(~removed[self.roots[slots]])

    def weights(self, record: Record, removed: np.ndarray) -> list[np.ndarray]:
        """Return the layer's weights without the removed slots."""
        values = record.layer.get_weights()
        for index, axes in enumerate(record.axes):
            for axis, slots in axes.items():
                values[index] = np.take(values[index], self.left(slots, removed), axis=axis)
        return values

    def parameters(self, removed: np.ndarray) -> int:
        """Return how many parameters the removal of those channels saves."""
        fewer = 0
        for record in self.records.values():
            for weight, axes in zip(record.layer.weights, record.axes, strict=True):
                shape = list(weight.shape)
                for axis, slots in axes.items():
                    shape[axis] = len(self.left(slots, removed))
                fewer += math.prod(weight.shape) - math.prod(shape)
        return fewer

    # ------------------------------------------------------------------ union of slots

    def freeze(self, flow: Flow, reason: str) -> None:
        """Mark every slot of a tensor as not removable."""
        for slot in () if flow.slots is None else flow.slots:
            self._reason.setdefault(int(slot), reason)

    def _fresh(self, shape: Sequence[int | None], reason: str | None = None) -> Flow:
        count = shape[-1] if len(shape) > 1 else None
        if count is None:
            return Flow(None)
        flow = Flow(np.arange(len(self._parent), len(self._parent) + count))
        self._parent.extend(flow.slots.tolist())
        if reason is not None:
            self.freeze(flow, reason)
        return flow

    def _find(self, slot: int) -> int:
        while self._parent[slot] != slot:
            self._parent[slot] = self._parent[self._parent[slot]]
            slot = self._parent[slot]
        return slot

    def _unite(self, first: np.ndarray, second: np.ndarray) -> None:
        for a, b in zip(first, second, strict=True):
            self._parent[self._find(int(a))] = self._find(int(b))

    # ------------------------------------------------------------------ one node

    def _visit(self, prefix: str, path: str, node: Any, args: Any, kwargs: Any) -> Sequence[Flow]:
        operation = node.operation
        if _graph.graph_of(operation) is not None and not self._opaque(operation):
            nested = functools.partial(self._visit, f"{path}/")
            return _graph.run(operation, _graph.flat(args[0]), nested, f"{path}/")
        flows = [value for value in _graph.flat((args, kwargs)) if isinstance(value, Flow)]
        shapes = [tuple(tensor.shape) for tensor in node.outputs]
        if id(operation) in self.records:  # a layer called again: its inputs have the same channels
            record = self.records[id(operation)]
            if len(flows) == 1 and flows[0].slots is not None and len(flows[0].slots) == len(record.inputs):
                self._unite(flows[0].slots, record.inputs)
                if record.produces or type(operation) is not layers.Reshape:
                    return [Flow(record.outputs)]
            self.freeze(Flow(record.inputs), f"{path} is called on tensors of different sizes")
            self.freeze(Flow(record.outputs), f"{path} is called on tensors of different sizes")
        elif all(flow.slots is not None for flow in flows) and _last_axis(operation):
            known = _LAYERS.get(type(operation))
            if known is not None and len(flows) == 1:
                made = known(self, path, operation, flows[0].slots, node)
                if made is not None:
                    self.records[id(operation)] = made
                    return [Flow(made.outputs)]
            else:
                slots = self._without_weights(operation, flows, args, kwargs, node)
                if slots is not None:
                    return [Flow(slots)]
        if type(operation) is layers.Embedding and id(operation) not in self.records:
            outputs = self._fresh(shapes[0])
            record = Record(path, operation, np.array([], int), outputs.slots, [{1: outputs.slots}], True)
            record.changes = lambda kept: {"output_dim": len(kept)}
            self.records[id(operation)] = record
            return [outputs]
        for flow in flows:
            self.freeze(flow, f"{path} ({type(operation).__name__}) reads all its channels together")
        return [self._fresh(shape, f"{path} ({type(operation).__name__}) makes them together") for shape in shapes]

    def _without_weights(
        self, operation: Any, flows: Sequence[Flow], args: Any, kwargs: Any, node: Any
    ) -> np.ndarray | None:
        """Return the slots of the result, or None if the operation is unknown."""
        name = type(operation).__name__
        constants = [v for v in _graph.flat((args, kwargs)) if not isinstance(v, Flow) and np.ndim(_number(v)) > 0]
        if constants or operation_weights(operation):
            return None
        if name in _PER_CHANNEL and len(flows) == 1 and len(node.outputs) == 1 and _keeps_apart(operation):
            same = len(flows[0].slots) == node.outputs[0].shape[-1]
            return flows[0].slots if same else None
        if name in _PAIRWISE and (isinstance(operation, layers.Layer) or name != "Average"):
            wide = max(flows, key=lambda flow: len(flow.slots))
            for flow in flows:
                if len(flow.slots) == len(wide.slots):
                    self._unite(flow.slots, wide.slots)
                else:
                    self.freeze(flow, f"{operation.name} broadcasts it")
            return wide.slots
        if name == "Concatenate":
            rank = len(node.outputs[0].shape)
            if operation.axis in (-1, rank - 1):
                return np.concatenate([flow.slots for flow in flows])
            for flow in flows[1:]:
                self._unite(flow.slots, flows[0].slots)
            return flows[0].slots
        if isinstance(operation, layers.Flatten):
            shape = node.input_tensors[0].shape
            if None in shape[1:]:
                return None
            return np.tile(flows[0].slots, math.prod(shape[1:-1]))
        return None


def operation_weights(operation: Any) -> bool:
    """Return whether an operation has weights."""
    return isinstance(operation, layers.Layer) and bool(operation.weights)


def _number(value: Any) -> Any:
    return value if isinstance(value, (np.ndarray, keras.Variable)) else 0


def _last_axis(operation: Any) -> bool:
    return getattr(operation, "data_format", None) != "channels_first"


_MIXING = ("softmax", "log_softmax", "glu", "sparsemax", "sparse_plus")


def _keeps_apart(operation: Any) -> bool:
    """Return whether an activation or scaling treats each channel separately."""
    scales = (getattr(operation, "scale", 0), getattr(operation, "offset", 0))
    plain = not isinstance(operation, layers.Rescaling) or all(np.ndim(value) == 0 for value in scales)
    return plain and getattr(getattr(operation, "activation", None), "__name__", "") not in _MIXING


_PER_CHANNEL = frozenset(
    """Activation ReLU LeakyReLU ELU Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D GaussianNoise
    GaussianDropout AlphaDropout Identity ActivityRegularization Rescaling MaxPooling1D MaxPooling2D MaxPooling3D
    AveragePooling1D AveragePooling2D AveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    Cropping1D Cropping2D Cropping3D UpSampling1D UpSampling2D UpSampling3D Relu Relu6 Sigmoid HardSigmoid HardSilu Silu
    Tanh HardTanh Gelu Elu LeakyRelu Softplus Softsign Selu Celu Cast Negative Square Sqrt Absolute Exp
    Log Sin Cos""".split()
)
_PAIRWISE = frozenset("Add Subtract Multiply Maximum Minimum Average Divide TrueDivide".split())


# ---------------------------------------------------------------------- layers with weights


def _activated(layer: Any) -> bool:
    return getattr(layer.activation, "__name__", "") not in _MIXING


def _convolution(graph: Channels, path: str, layer: Any, slots: np.ndarray, node: Any) -> Record | None:
    if layer.groups != 1 or not _activated(layer):
        return None
    return _kernel(graph, path, layer, slots, node, "filters", layer.rank, layer.rank + 1)


def _transposed(graph: Channels, path: str, layer: Any, slots: np.ndarray, node: Any) -> Record | None:
    return (
        _kernel(graph, path, layer, slots, node, "filters", layer.rank + 1, layer.rank) if _activated(layer) else None
    )


def _dense(graph: Channels, path: str, layer: Any, slots: np.ndarray, node: Any) -> Record | None:
    return _kernel(graph, path, layer, slots, node, "units", 0, 1) if _activated(layer) else None


def _einsum(graph: Channels, path: str, layer: Any, slots: np.ndarray, node: Any) -> Record | None:
    left, kernel, right = layer.equation.replace("->", ",").replace(" ", "").split(",")
    plain = len(kernel) == 2 and left[-1] == kernel[0] and right == left[:-1] + kernel[1]
    if not plain or not _activated(layer) or (layer.bias is not None and len(layer.bias.shape) != 1):
        return None
    return _kernel(graph, path, layer, slots, node, "output_shape", 0, 1)


def _kernel(
    graph: Channels, path: str, layer: Any, slots: np.ndarray, node: Any, setting: str, rows: int, columns: int
) -> Record:
    made = graph._fresh(node.outputs[0].shape).slots
    axes: list[dict[int, np.ndarray]] = [{rows: slots, columns: made}]
    if len(layer.weights) > 1:
        axes.append({0: made})
    record = Record(path, layer, slots, made, axes, True, (0, rows))
    if setting == "output_shape":
        shape = layer.get_config()["output_shape"]
        before = tuple(shape)[:-1] if isinstance(shape, (tuple, list)) else ()
        record.changes = lambda kept: {"output_shape": (*before, len(kept))}
    else:
        record.changes = lambda kept: {setting: len(kept)}
    return record


def _depthwise(graph: Channels, path: str, layer: Any, slots: np.ndarray, node: Any) -> Record | None:
    if not _activated(layer):
        return None
    made = np.repeat(slots, layer.depth_multiplier)
    return Record(path, layer, slots, made, [{layer.rank: slots}, {0: made}][: len(layer.weights)])


def _separable(graph: Channels, path: str, layer: Any, slots: np.ndarray, node: Any) -> Record | None:
    if not _activated(layer):
        return None
    made = graph._fresh(node.outputs[0].shape).slots
    between = np.repeat(slots, layer.depth_multiplier)
    axes: Any = [{layer.rank: slots}, {layer.rank: between, layer.rank + 1: made}, {0: made}][: len(layer.weights)]
    record = Record(path, layer, slots, made, axes, True, (1, layer.rank))
    record.changes = lambda kept: {"filters": len(kept)}
    return record


def _normalization(graph: Channels, path: str, layer: Any, slots: np.ndarray, node: Any) -> Record | None:
    if layer.axis not in (-1, len(node.outputs[0].shape) - 1):
        return None
    return Record(path, layer, slots, slots, [{0: slots} for _ in layer.weights])


def _prelu(graph: Channels, path: str, layer: Any, slots: np.ndarray, node: Any) -> Record | None:
    last = len(layer.alpha.shape) - 1
    return Record(path, layer, slots, slots, [{last: slots}]) if layer.alpha.shape[last] == len(slots) else None


def _reshape(graph: Channels, path: str, layer: Any, slots: np.ndarray, node: Any) -> Record | None:
    before, after = node.input_tensors[0].shape[1:], node.outputs[0].shape[1:]
    if None in before or None in after:
        return None
    table = np.tile(slots, math.prod(before[:-1])).reshape(-1, after[-1])
    if (table != table[0]).any():
        return None
    record = Record(path, layer, slots, table[0], [])
    record.changes = lambda kept: {"target_shape": (*after[:-1], len(kept))}
    return record


_LAYERS: Mapping[type, Callable[..., Record | None]] = {
    layers.Conv1D: _convolution,
    layers.Conv2D: _convolution,
    layers.Conv3D: _convolution,
    layers.Conv1DTranspose: _transposed,
    layers.Conv2DTranspose: _transposed,
    layers.Conv3DTranspose: _transposed,
    layers.DepthwiseConv1D: _depthwise,
    layers.DepthwiseConv2D: _depthwise,
    layers.SeparableConv1D: _separable,
    layers.SeparableConv2D: _separable,
    layers.Dense: _dense,
    layers.EinsumDense: _einsum,
    layers.BatchNormalization: _normalization,
    layers.PReLU: _prelu,
    layers.Reshape: _reshape,
}
