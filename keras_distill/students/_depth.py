"""Removes blocks from a model: residual branches, and layers of a chain that keep the shape."""

from __future__ import annotations

import itertools
import math
from typing import Any

import keras

from keras_distill._checks import error
from keras_distill.students import _graph


def shallower(teacher: keras.Model, depth: Any) -> tuple[keras.Model, list[str]]:
    """Return the model with some of its blocks, evenly spaced, and the names of the removed ones.

    A block is the branch of a residual sum whose other summand is the block's own input. In a model without residual
    sums it is a layer of a chain that keeps the shape, with everything up to the next layer with weights. Student block
    i of d is teacher block floor(i * n / d).
    """
    found = _residual(teacher) or _chain(teacher)
    if not found:
        got = f"{teacher.name!r}, which has none"
        raise error(
            "from_teacher", "a model with residual blocks or layers that keep the shape", got, "Leave depth out"
        )
    count = wanted_depth(depth, len(found))
    kept = {math.floor(index * len(found) / count) for index in range(count)}
    dropped = [block for index, block in enumerate(found) if index not in kept]
    past = {node: skip for block in dropped for node, skip in block[1].items()}

    def replace(builder: Any, path: str, node: Any, args: Any, kwargs: Any) -> Any:
        if id(node) not in past:
            return None
        position = past[id(node)]
        return [_graph.flat((args, kwargs))[position]]

    return _graph.Builder(teacher, replace).build(), [block[0] for block in dropped]


def wanted_depth(depth: Any, available: int) -> int:
    """Return how many of ``available`` blocks ``depth`` denotes: a count (int), or a fraction up to 1.0."""
    expected = f"depth to be a fraction in 0..1 or a count from 1 to {available}"
    if isinstance(depth, bool) or not isinstance(depth, (int, float)):
        raise error("from_teacher", expected, depth)
    if isinstance(depth, float):
        if not 0 < depth <= 1:
            raise error("from_teacher", expected, depth)
        return max(1, round(depth * available))
    if not 1 <= depth <= available:
        raise error("from_teacher", expected, depth)
    return depth


def _all_nodes(model: Any) -> list[Any]:
    result = []
    for node in _graph.nodes(_graph.graph_of(model)):
        if _graph.graph_of(node.operation) is not None:
            result += _all_nodes(node.operation)
        result.append(node)
    return result


def _residual(model: Any) -> list[tuple[str, dict[int, int]]]:
    """Return for each block its name and, by node, which argument replaces the node's result."""
    found: list[tuple[str, dict[int, int]]] = []
    ordered = _all_nodes(model)
    maker = {id(tensor): node for node in ordered for tensor in node.outputs}
    inside: set[int] = set()
    for node in reversed(ordered):  # outer sums first
        if type(node.operation).__name__ != "Add" or len(node.input_tensors) != 2 or id(node) in inside:
            continue
        for position in (0, 1):
            skip, branch = node.input_tensors[position], node.input_tensors[1 - position]
            between = _between(maker, skip, branch)
            if between and skip.shape == node.outputs[0].shape:
                found.append((node.operation.name, {id(node): position}))
                inside |= between
                break
    return found[::-1]


def _between(maker: dict[int, Any], skip: Any, branch: Any) -> set[int]:
    """Return the nodes between ``skip`` and ``branch`` if every path into the branch begins at ``skip``."""
    found: set[int] = set()
    waiting = [branch]
    while waiting:
        tensor = waiting.pop()
        if tensor is skip:
            continue
        node = maker.get(id(tensor))
        if node is None:
            return set()
        if id(node) not in found:
            found.add(id(node))
            waiting += node.input_tensors
    return found


def _chain(model: Any) -> list[tuple[str, dict[int, int]]]:
    ordered = _graph.nodes(_graph.graph_of(model))
    if any(len(node.input_tensors) != 1 or len(node.outputs) != 1 for node in ordered):
        return []
    heads = [index for index, node in enumerate(ordered) if _graph.is_kernel_layer(node.operation)]
    found = []
    for start, end in itertools.pairwise(heads):  # the last layer is the head
        if ordered[start].input_tensors[0].shape == ordered[end - 1].outputs[0].shape:
            found.append((ordered[start].operation.name, {id(node): 0 for node in ordered[start:end]}))
    return found
