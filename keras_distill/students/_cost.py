"""A model's cost, counted over its traced graph: parameters, bytes, multiply-accumulates, peak activations."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error
from keras_distill._typing import Structure
from keras_distill.students._graph import graph_of

Shape = tuple[int, ...]

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_BRANCHES = {"If": ("then_branch", "else_branch"), "StatelessIf": ("then_branch", "else_branch")}
_LOOPS = ("While", "StatelessWhile")
#: Operations that only reshape their input and take no memory.
_VIEWS = ("Identity", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient", "EnsureShape")
#: Results that are weights or small integers, not activations.
_NO_ACTIVATIONS = ("Const", "ReadVariableOp", "NoOp", "Shape", "ResourceGather")


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a model for one example.

    Args:
        parameters: number of entries in all weights, trainable or not, without random states.
        bytes: size of those weights in their own dtypes.
        macs: multiply-accumulates of matrix products, convolutions and einsums for one example; a loop counts once per
            iteration. Elementwise work is left out, as usual.
        peak_activations: the largest number of values alive between layers at one time, for one example, if each result
            is freed after its last reader and elementwise operations work in place.

    Example:
        >>> cost(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        Cost(parameters=15, bytes=60, macs=12, peak_activations=7)
    """

    parameters: int
    bytes: int
    macs: int
    peak_activations: int


def cost(model: keras.Model, inputs: Structure = None) -> Cost:
    """Count the cost of one example over the graph that TensorFlow traces for a batch of one.

    Every matrix product, convolution and einsum that the outputs depend on is counted with its real shape, including
    those inside nested models, functions and loops; TensorFlow's profiler fails on some of these or counts a loop once.

    Args:
        model: a built ``keras.Model``.
        inputs: an example or a batch, as the model takes it; only the shapes after the batch axis are used. Needed if
            the model leaves a size open (the length of a text) and for subclassed models.

    Returns:
        The ``Cost``.

    Raises:
        ValueError: if the model is not built, or a size is open and no ``inputs`` define it.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, padding="same")])
        >>> cost(model).macs == 8 * 8 * 4 * (3 * 3 * 3)
        True
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise error("cost", "a built keras.Model", _shown(model), "Call the model once on a batch, or give it an Input")
    parameters, size = weights_of(model)
    concrete = _trace(model, _specs(model, inputs))
    graph = concrete.graph.as_graph_def(add_shapes=True)
    functions = {function.signature.name: function for function in graph.library.function}
    outputs = [tensor.op.name for tensor in concrete.outputs]
    macs, peak = _Counter(functions).top(graph.node, outputs)
    return Cost(parameters, size, macs, peak)


def weights_of(model: keras.Model) -> tuple[int, int]:
    """Return the number of entries in the weights and their bytes, without random states."""
    kept = [weight for weight in model.weights if "seed_generator" not in weight.path]
    numbers = sum(math.prod(weight.shape) for weight in kept)
    size = sum(math.prod(weight.shape) * tf.as_dtype(weight.dtype).size for weight in kept)
    return int(numbers), int(size)


def _shown(model: Any) -> str:
    return f"{model.name!r}, which is not built" if isinstance(model, keras.Model) else repr(model)


def _specs(model: keras.Model, inputs: Structure) -> Any:
    if inputs is None:
        graph = graph_of(model)
        structure = None if graph is None else graph._inputs_struct
        if structure is None:
            advice = "Give a batch of them as inputs"
            raise error("cost", "inputs for a model without a graph of its own", "none", advice)
        specs = keras.tree.map_structure(
            lambda tensor: tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name=tensor.name), structure
        )
        open_sizes = [spec.shape for spec in keras.tree.flatten(specs) if not spec.shape.is_fully_defined()]
        if open_sizes:
            advice = "Give an example of the usual size as inputs"
            raise error("cost", "inputs of known sizes", f"an input of shape {open_sizes[0]}", advice)
        return specs
    return keras.tree.map_structure(_spec, inputs)


def _spec(value: Any) -> tf.TensorSpec:
    value = tf.convert_to_tensor(value)
    return tf.TensorSpec((1, *value.shape[1:]), value.dtype)


def _trace(model: keras.Model, specs: Any) -> Any:
    return tf.function(lambda given: model(given, training=False)).get_concrete_function(specs)


class _Counter:
    """Counts over graphs and the functions they call."""

    def __init__(self, functions: Mapping[str, Any]) -> None:
        self.functions = functions

    def top(self, nodes: Sequence[Any], outputs: Sequence[str]) -> tuple[int, int]:
        return self._count(nodes, outputs, {})

    def _count(self, nodes: Sequence[Any], outputs: Sequence[str], arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Return multiply-accumulates and peak activations of the nodes that the outputs depend on."""
        by_name = {node.name: node for node in nodes}
        needed = _ancestors(by_name, outputs)
        shapes: dict[str, list[Any]] = {name: [shape] for name, shape in arguments.items()}
        for node in nodes:
            shapes[node.name] = [_shape(proto) for proto in node.attr["_output_shapes"].list.shape]
        live = [node for node in nodes if node.name in needed]
        macs = 0
        inner: dict[str, int] = {}
        for node in live:
            rule = _RULES.get(node.op)
            if rule is not None:
                macs += rule(node, functools.partial(_input_shape, shapes, node), shapes[node.name][0])
            elif node.op in _CALLS:
                more, inner[node.name] = self._function(node.attr["f"].func.name)
                macs += more
            elif node.op in _BRANCHES:
                branches = [self._function(node.attr[name].func.name) for name in _BRANCHES[node.op]]
                macs += max(branch[0] for branch in branches)
                inner[node.name] = max(branch[1] for branch in branches)
            elif node.op in _LOOPS:
                more, inner[node.name] = self._function(node.attr["body"].func.name)
                macs += more * self._trips(node, by_name) if more else 0
        return macs, _peak(live, shapes, inner, set(outputs))

    def _function(self, name: str) -> tuple[int, int]:
        function = self.functions[name]
        arguments = {}
        for index, argument in enumerate(function.signature.input_arg):
            known = function.arg_attr[index].attr["_output_shapes"].list.shape if index in function.arg_attr else ()
            arguments[argument.name] = _shape(known[0]) if known else None
        outputs = [value.split(":")[0] for value in function.ret.values()]
        return self._count(function.node_def, outputs, arguments)

    def _trips(self, node: Any, outer: Mapping[str, Any]) -> int:
        """Return the iterations of a loop: the least constant that its condition compares a counter with."""
        condition = self.functions[node.attr["cond"].func.name]
        inner = {each.name: each for each in condition.node_def}
        position = {argument.name: index for index, argument in enumerate(condition.signature.input_arg)}
        limits = []
        for each in condition.node_def:
            if each.op != "Less":
                continue
            source = each.input[1].split(":")[0]
            constant = inner.get(source)
            if constant is None and source in position:
                constant = outer.get(node.input[position[source]].split(":")[0])
            if constant is not None and constant.op == "Const":
                limits.append(int(tf.make_ndarray(constant.attr["value"].tensor)))
        if not limits:
            raise error("cost", "loops of a known number of rounds", f"{node.name!r}", "Give sequences a fixed length")
        return min(limits)


def _ancestors(by_name: Mapping[str, Any], outputs: Sequence[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if name in found or name not in by_name:
            continue
        found.add(name)
        waiting += [source.split(":")[0] for source in by_name[name].input if not source.startswith("^")]
    return found


def _shape(proto: Any) -> Shape | None:
    if proto.unknown_rank or any(dim.size < 0 for dim in proto.dim):
        return None
    return tuple(int(dim.size) for dim in proto.dim)


def _source(text: str) -> tuple[str, int]:
    parts = text.split(":")
    return parts[0], int(parts[-1]) if len(parts) > 1 else 0


def _input_shape(shapes: Mapping[str, Any], node: Any, index: int) -> Shape:
    name, output = _source(node.input[index])
    known = shapes.get(name) or [None]
    shape = known[output] if output < len(known) else None
    if shape is None:
        advice = "Give an example of the usual size as inputs"
        raise error("cost", "shapes known to the graph", f"an unknown one at {node.name!r}", advice)
    return shape


# ---------------------------------------------------------------------- multiply-accumulates of one operation

Sizes = Callable[[int], Shape]


def _matmul(node: Any, sizes: Sizes, out: Shape) -> int:
    first = sizes(0)
    return math.prod((*first[:-2], first[-2], first[-1])) * _columns(node, sizes, "transpose_b")


def _columns(node: Any, sizes: Sizes, flag: str) -> int:
    return sizes(1)[-2] if node.attr[flag].b else sizes(1)[-1]


def _batch_matmul(node: Any, sizes: Sizes, out: Shape) -> int:
    first, second = sizes(0), sizes(1)
    rows, inner = (first[-1], first[-2]) if node.attr["adj_x"].b else (first[-2], first[-1])
    batch = np.broadcast_shapes(first[:-2], second[:-2])
    return math.prod(batch) * rows * inner * _columns(node, sizes, "adj_y")


def _einsum(node: Any, sizes: Sizes, out: Shape) -> int:
    left = node.attr["equation"].s.decode().split("->")[0].split(",")
    found: dict[str, int] = {}
    for index, labels in enumerate(left):
        found.update(_labelled(labels, sizes(index)))
    return math.prod(found.values())


def _labelled(labels: str, shape: Shape) -> Iterator[tuple[str, int]]:
    before, dots, after = labels.partition("...")
    tail = shape[len(shape) - len(after) :] if after else ()
    yield from zip(before, shape, strict=False)
    yield from zip(after, tail, strict=True)
    if dots:
        for index, size in enumerate(shape[len(before) : len(shape) - len(after)][::-1]):
            yield f"...{index}", size


def _convolution(node: Any, sizes: Sizes, out: Shape) -> int:
    kernel = sizes(1)
    return math.prod(out) * math.prod(kernel[:-1])


def _depthwise(node: Any, sizes: Sizes, out: Shape) -> int:
    return math.prod(out) * math.prod(sizes(1)[:2])


def _transposed(node: Any, sizes: Sizes, out: Shape) -> int:
    kernel = sizes(1)  # (height, width, out, in): each input value is multiplied by the kernel once
    return math.prod(sizes(2)) * math.prod(kernel[:-1])


_RULES: dict[str, Callable[[Any, Sizes, Shape], int]] = {
    "MatMul": _matmul,
    "BatchMatMul": _batch_matmul,
    "BatchMatMulV2": _batch_matmul,
    "BatchMatMulV3": _batch_matmul,
    "Einsum": _einsum,
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "Conv": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "Conv2DBackpropInput": _transposed,
    "Conv3DBackpropInputV2": _transposed,
}


# ---------------------------------------------------------------------- memory between operations


def _peak(live: Sequence[Any], shapes: Mapping[str, Any], inner: Mapping[str, int], outputs: set[str]) -> int:
    root: dict[str, str] = {}
    last: dict[str, int] = {}
    size: dict[str, int] = {}
    for index, node in enumerate(live):
        sources = [_source(text)[0] for text in node.input if not text.startswith("^")]
        roots = [root[source] for source in sources if source in root]
        for source in roots:
            last[source] = index
        if node.op in _VIEWS and roots:
            root[node.name] = roots[0]
        elif node.op not in _NO_ACTIVATIONS and not _is_resource(node):
            root[node.name] = node.name
            size[node.name] = sum(math.prod(shape) for shape in shapes[node.name] if shape)
            last[node.name] = index
        if node.name in outputs and node.name in root:
            last[root[node.name]] = len(live)
    alive: dict[str, int] = {}
    peak = 0
    for index, node in enumerate(live):
        own = size.get(node.name, 0) if root.get(node.name) == node.name else 0
        dying = [name for name in alive if last[name] <= index]
        before = sum(alive.values())
        # An elementwise operation overwrites an input of the same size that is not read later.
        in_place = own and node.op not in _RULES and any(alive[name] == own for name in dying)
        peak = max(peak, before + (0 if in_place else own) + inner.get(node.name, 0))
        if own:
            alive[node.name] = own
        for name in [name for name in alive if last[name] <= index]:
            del alive[name]
    return peak


def _is_resource(node: Any) -> bool:
    return node.op == "Placeholder" and node.attr["dtype"].type == tf.resource.as_datatype_enum
