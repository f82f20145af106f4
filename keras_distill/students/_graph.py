"""Walks a Keras graph node by node, to run it on values other than tensors or to rebuild it with layers replaced."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_distill._checks import error
from keras_distill.students._quantizers import PLAIN, ActivationQuantizer

#: ``visit(path, node, args, kwargs) -> results``, one for each output of the node.
Visit = Callable[[str, Any, Any, Any], Sequence[Any]]


@functools.cache
def _functional_class() -> Any:
    tensor = keras.Input((1,))
    return type(keras.Model(tensor, tensor))


def graph_of(model: Any) -> Any:
    """Return the Functional model behind a Functional or Sequential model, or None if it has no graph."""
    functional = _functional_class()
    if isinstance(model, keras.Sequential):
        return getattr(model, "_functional", None)
    kind: Any = type(model)
    if isinstance(model, functional) and kind.call is functional.call:
        return model
    return None


def check_graph(owner: str, model: Any) -> None:
    """Raise unless ``model`` is a built, unquantised Functional or Sequential model with weights."""
    if not isinstance(model, keras.Model):
        raise error(owner, "a keras.Model", model)
    if not model.built:
        advice = "Call it once on a batch, or give it an Input"
        raise error(owner, "a built model", f"{model.name!r}, which is not built", advice)
    if graph_of(model) is None:
        got = f"{model.name!r}, a subclassed model without a graph"
        raise error(owner, "a Functional or Sequential model", got, "Write it with keras.Input and keras.Model")
    if not model.weights:
        raise error(owner, "a model with weights", f"{model.name!r}, which has none")
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if getattr(layer, "quantization_mode", None) is not None:
            got = f"{layer.name!r}, which is quantised already"
            raise error(owner, "layers in floating point", got, "Start from the float model")
        if type(layer) in PLAIN or isinstance(layer, ActivationQuantizer):
            got = f"{model.name!r}, which is from quantization_aware already"
            raise error(owner, "a float model", got, "Start from the float model")


def run(model: Any, inputs: Sequence[Any], visit: Visit, prefix: str = "") -> list[Any]:
    """Visit every node in topological order, passing on the results of ``visit``.

    Args:
        model: a Functional or Sequential model.
        inputs: one value, of any type, for each of its inputs.
        visit: receives the layer's path, the node, and its arguments with values in place of tensors.
        prefix: prepended to each path.

    Returns:
        One value for each of the model's outputs.
    """
    graph = graph_of(model)
    values = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}
    for node in nodes(graph):
        args, kwargs = node.arguments.fill_in(values)
        results = visit(f"{prefix}{node.operation.name}", node, args, kwargs)
        values.update(zip(map(id, node.outputs), results, strict=True))
    return [values[id(tensor)] for tensor in graph.outputs]


def nodes(graph: Any) -> list[Any]:
    """Return the nodes of a Functional model in topological order, without inputs."""
    by_depth = graph._nodes_by_depth
    ordered = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in ordered if node.operation is not None and not node.is_input]


def readers(graph: Any) -> dict[int, list[Any]]:
    """Return for each tensor, by id, the nodes that read it; None denotes the model's outputs."""
    found: dict[int, list[Any]] = {}
    for node in nodes(graph):
        for tensor in node.input_tensors:
            found.setdefault(id(tensor), []).append(node)
    for tensor in graph.outputs:
        found.setdefault(id(tensor), []).append(None)
    return found


def flat(values: Any) -> list[Any]:
    """Return results of a call as a flat list."""
    return list(keras.tree.flatten(values))


def call(operation: Any, args: Any, kwargs: Any) -> list[Any]:
    """Call a layer or operation as its node did."""
    return flat(operation(*args, **kwargs))


def run_arrays(model: Any, inputs: Sequence[Any], see: Callable[[str, Any, Any, list[Any]], None]) -> list[Any]:
    """Run a model, nested ones included, on real tensors; ``see(path, layer, args, results)`` is called per layer."""

    def visit(prefix: str, path: str, node: Any, args: Any, kwargs: Any) -> Sequence[Any]:
        if graph_of(node.operation) is not None:
            nested = functools.partial(visit, f"{path}/")
            return run(node.operation, flat(args[0]), nested, f"{path}/")
        results = call(node.operation, args, kwargs)
        see(path, node.operation, args, results)
        return results

    return run(model, inputs, functools.partial(visit, ""))


class Builder:
    """Rebuilds a model layer by layer, with the weights of the old one.

    Args:
        source: the model to rebuild.
        replace: ``replace(builder, path, node, args, kwargs)`` returns the results of a node in the new graph, or None
            to copy the layer with its weights.
        entry: applied to each input of the model before anything reads it.

    A layer that was frozen with the whole model (as the teacher of a ``Distiller``) becomes trainable again; compile
    settings are not copied.
    """

    def __init__(self, source: keras.Model, replace: Callable[..., Sequence[Any] | None], entry: Any = None) -> None:
        self.source = source
        self.replace = replace
        self.entry = entry
        self._made: dict[int, Any] = {}
        self._given: set[int] = set()
        self._thaw = not source.trainable

    def build(self, name: str | None = None) -> keras.Model:
        """Return the new model."""
        model = self._model(self.source, "", None)
        if name is not None:
            model.name = name
        return model

    def once(self, layer: Any, make: Callable[[], Any]) -> Any:
        """Return the counterpart of ``layer`` in the new model, made at first use: shared layers stay shared."""
        if id(layer) not in self._made:
            self._made[id(layer)] = make()
        return self._made[id(layer)]

    def apply(self, layer: Any, new: keras.layers.Layer, weights: Sequence[Any], args: Any, kwargs: Any) -> list[Any]:
        """Call the counterpart of ``layer``; the first call assigns its weights."""
        results = call(new, args, kwargs)
        if id(new) not in self._given:
            self._given.add(id(new))
            give_weights(new, weights)
            self.pair(layer, new)
            if self._thaw:
                new.trainable = True
        return results

    def pair(self, layer: Any, new: Any) -> None:
        """Note which parts of a composite layer, as its embedding, correspond to those of its counterpart."""
        for part, own in zip(*(each._flatten_layers(include_self=False) for each in (layer, new)), strict=False):
            if type(part) is type(own):
                self._made.setdefault(id(part), own)

    def _model(self, model: Any, prefix: str, shapes: Sequence[Any] | None) -> keras.Model:
        graph = graph_of(model)
        structure = graph._inputs_struct
        given = iter(shapes) if shapes is not None else iter([tensor.shape for tensor in graph.inputs])
        inputs = keras.tree.map_structure(
            lambda tensor: keras.Input(batch_shape=next(given), dtype=tensor.dtype, name=tensor.name), structure
        )
        entered = [self.entry(tensor) for tensor in flat(inputs)] if self.entry and not prefix else flat(inputs)
        outputs = run(model, entered, self._visit, prefix)
        packed = keras.tree.pack_sequence_as(graph._outputs_struct, outputs)
        new = keras.Model(inputs, packed, name=model.name)
        if isinstance(model, keras.Sequential) and _is_chain(new):
            first = flat(inputs)[0]
            return keras.Sequential(
                [keras.Input(batch_shape=first.shape, dtype=first.dtype), *new.layers[1:]], name=model.name
            )
        return new

    def _visit(self, path: str, node: Any, args: Any, kwargs: Any) -> Sequence[Any]:
        results = self.replace(self, path, node, args, kwargs)
        if results is not None:
            return results
        return self.copy(path, node, args, kwargs)

    def copy(self, path: str, node: Any, args: Any, kwargs: Any) -> Sequence[Any]:
        """Copy a node: nested models are rebuilt, layers copied with their weights, operations used as they are."""
        operation = node.operation
        if graph_of(operation) is not None:
            shapes = [tensor.shape for tensor in flat(args[0])]
            new = self.once(operation, lambda: self._model(operation, f"{path}/", shapes))
            return call(new, args, kwargs)
        if not isinstance(operation, keras.layers.Layer):
            return call(operation, args, kwargs)
        new = self.once(operation, lambda: self._with_shared_parts(operation))
        return self.apply(operation, new, operation.get_weights(), args, kwargs)

    def _with_shared_parts(self, layer: Any) -> Any:
        """Return a layer like this one that shares the parts, as a tied embedding, that this one shares with others."""
        new = like(layer)
        for name, part in vars(layer).items():
            if isinstance(part, keras.layers.Layer) and id(part) in self._made and getattr(new, name, None) is not None:
                own, shared, parts = getattr(new, name), self._made[id(part)], new._layers
                position = next(index for index, each in enumerate(parts) if each is own)
                setattr(new, name, shared)
                new._tracker.untrack(own)
                parts.insert(position, parts.pop())  # weights are assigned in this order
        return new


def _is_chain(model: Any) -> bool:
    ordered = nodes(model)
    layers = [node.operation for node in ordered]
    single = all(isinstance(layer, keras.layers.Layer) for layer in layers) and len(set(map(id, layers))) == len(layers)
    return single and len(model.inputs) == 1 and layers == list(model.layers[1:])


def is_kernel_layer(operation: Any) -> bool:
    """Return whether an operation is a layer with a weight of two or more axes."""
    return isinstance(operation, keras.layers.Layer) and any(len(weight.shape) > 1 for weight in operation.weights)


def like(layer: Any, **changes: Any) -> Any:
    """Return a new, unbuilt layer of the same class and configuration, with some settings changed."""
    config = {**layer.get_config(), **changes}
    try:
        return type(layer).from_config(config)
    except (TypeError, ValueError) as problem:
        advice = "Give the layer a get_config that its constructor accepts"
        got = f"{layer.name!r}: {str(problem).splitlines()[0][:200]}"
        raise error("students", "layers that can be rebuilt from their configuration", got, advice) from problem


def give_weights(layer: Any, weights: Sequence[Any]) -> None:
    """Assign weights in order."""
    for variable, value in zip(layer.weights, weights, strict=True):
        variable.assign(value)
