"""Named tensors from one forward pass of any model, which is left unmodified.

A tap is named by the path of a layer: ``"block3"`` for a layer of the model itself, ``"backbone/block3/out"`` for one
inside nested models or layers. ``"block3:input"`` is what the layer receives instead of what it returns,
``"layer_0:padding_mask"`` is the argument of that name in its call, and ``"shared#1"`` the second call of a layer that
is called more than once (``"shared"`` means the last call). The name of a model's input taps that input.

Inside ``keras.layers.MultiHeadAttention`` (each block of a keras-hub encoder has one, ``"self_attention_layer"``) the
layers ``"query"``, ``"key"`` and ``"value"`` can be tapped, each (batch, tokens, heads, head size). Attention scores
are not tapped: ``adapters.AttentionScores`` computes them from the first two, because whether the layer materialises
them depends on its dropout and on the machine.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_distill._checks import error, nearest
from keras_distill._typing import Structure
from keras_distill.heads import final_activation, gives_logits, without_softmax

__all__ = ["Taps", "final_activation", "gives_logits", "list_taps", "own_inputs", "walk", "without_softmax"]

_NAME = re.compile(r"^(?P<path>.+?)(?:#(?P<call>\d+))?(?::(?P<argument>\w+))?$")


def walk(model: keras.layers.Layer, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yield the path and the layer of everything inside ``model``, outer layers before inner ones.

    Args:
        model: any Keras model or layer.
        prefix: prepended to each path; used by the recursion.

    Yields:
        Pairs of path (``"backbone/conv1"``) and layer. The model's input layers are left out.
    """
    for layer in model._flatten_layers(include_self=False, recursive=False):
        if isinstance(layer, keras.layers.InputLayer) or layer is getattr(model, "_functional", None):
            continue
        path = f"{prefix}{layer.name}"
        yield path, layer
        yield from walk(layer, f"{path}/")


class Taps:
    """A model that also gives the tensors of named layers, from the same single forward pass.

    The layers' ``call`` is intercepted for that one pass by an attribute of the instance, which is removed before the
    pass returns: the user's model is unchanged and no layer runs twice. Works in eager mode, ``tf.function`` and XLA.
    A layer that runs inside a loop (an RNN's cell) cannot be tapped, because its tensors never leave the loop.

    Args:
        model: any built or unbuilt ``keras.Model``: Functional, Sequential, nested or subclassed.
        names: what to tap, see the module's first paragraph; ``list_taps(model)`` shows what there is.
        owner: name shown in error messages.

    Raises:
        ValueError: if a name is unknown (the message lists the nearest ones) or names two different layers.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(1)])
        >>> outputs, tapped = Taps(model, ["hidden"])(np.ones((4, 2), "float32"))
        >>> outputs.shape[1], tapped["hidden"].shape[1]
        (1, 3)
    """

    def __init__(self, model: keras.Model, names: Sequence[str] = (), *, owner: str = "Taps") -> None:
        self.model = model
        self.names = tuple(dict.fromkeys(names))
        self.owner = owner
        # Looked up again at each use while the model may still grow (unbuilt models).
        self._layers: dict[str, keras.layers.Layer] | None = None
        if self.names and (model.built or next(walk(model), None) is not None):
            self._find()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that one pass returns: the final output, then each tap."""
        return ("final_output", *self.names)

    def _find(self) -> dict[str, keras.layers.Layer]:
        if self._layers is None:
            known: dict[str, list[keras.layers.Layer]] = {}
            for path, layer in walk(self.model):
                known.setdefault(path, []).append(layer)
            found = {}
            for name in self.names:
                path = _parse(self.owner, name)[0]
                if path not in known and path in _input_names(self.model) and name == path:
                    continue  # taken from the inputs of each pass
                if path not in known:
                    raise error(
                        self.owner,
                        f"a layer of model {self.model.name!r}",
                        repr(name),
                        f"Nearest: {nearest(path, known)}; see keras_distill.taps.list_taps(model)",
                    )
                if len({id(layer) for layer in known[path]}) > 1:
                    raise error(
                        self.owner,
                        f"a name of one layer of model {self.model.name!r}",
                        f"{name!r}, the name of {len(known[path])} layers",
                        "Give these layers distinct names",
                    )
                found[name] = known[path][0]
            self._layers = found
        return self._layers

    def __call__(self, inputs: Structure, training: bool | None = None) -> tuple[Any, dict[str, Any]]:
        """Run the model once.

        Args:
            inputs: what the model takes.
            training: as in ``keras.Model.__call__``.

        Returns:
            The model's outputs, and a dict from tap name to tensor (or structure, where a layer returns several).

        Raises:
            ValueError: if a tapped layer was not called in this pass, or not often enough.
        """
        inputs = own_inputs(self.model, inputs)
        if not self.names:
            return self.model(inputs, training=training), {}
        layers = self._find()
        calls: dict[int, list[tuple[dict[str, Any], Any]]] = {id(layer): [] for layer in layers.values()}
        with contextlib.ExitStack() as stack:
            for layer in {id(layer): layer for layer in layers.values()}.values():
                stack.enter_context(_intercepted(layer, calls[id(layer)]))
            outputs = self.model(inputs, training=training)
        return outputs, {
            name: self._pick(name, calls[id(layers[name])]) if name in layers else _input(self.model, name, inputs)
            for name in self.names
        }

    def _pick(self, name: str, calls: list[tuple[dict[str, Any], Any]]) -> Any:
        path, index, argument = _parse(self.owner, name)
        if not calls:
            raise error(self.owner, f"layer {path!r} to be called in the forward pass", "no call")
        if index is not None and index >= len(calls):
            raise error(self.owner, f"a call number below {len(calls)} for layer {path!r}", repr(name))
        received, returned = calls[-1 if index is None else index]
        if argument is None:
            return returned
        if received.get(argument) is None:
            given = ", ".join(key for key, value in received.items() if value is not None)
            raise error(self.owner, f"an argument {argument!r} in the call of layer {path!r}", f"only {given}")
        return received[argument]


def own_inputs(model: keras.Model, inputs: Structure) -> Any:
    """Return the entries that ``model`` takes as inputs from a dictionary with more fields (boxes, domains).

    Args:
        model: any Keras model; only a Functional one has inputs with names.
        inputs: inputs of a batch; returned unchanged unless they are a dictionary with every input of the model and
            more.

    Returns:
        The inputs in the model's own structure.

    Example:
        >>> import keras
        >>> x = keras.Input((2,), name="image")
        >>> own_inputs(keras.Model(x, x), {"image": "pixels", "boxes": "corners"})
        'pixels'
    """
    if not isinstance(inputs, dict) or not getattr(model, "inputs", None):
        return inputs
    structure = getattr(model, "input", None)  # a Sequential that was built by its first call has none
    if isinstance(structure, dict):
        more = set(inputs) > set(structure)
        return {name: inputs[name] for name in structure} if more else inputs
    names = [tensor.name for tensor in model.inputs]
    if set(inputs) > set(names):
        structure = model.inputs[0] if structure is None else structure
        return keras.tree.map_structure(lambda tensor: inputs[tensor.name], structure)
    return inputs


def _input_names(model: keras.Model) -> list[str]:
    return [tensor.name for tensor in getattr(model, "inputs", None) or []]


def _input(model: keras.Model, name: str, inputs: Structure) -> Any:
    """Return the input of that name from the inputs of a pass."""
    if isinstance(inputs, dict) and name in inputs:
        return inputs[name]
    return keras.tree.flatten(inputs)[_input_names(model).index(name)]


def _parse(owner: str, name: str) -> tuple[str, int | None, str | None]:
    match = _NAME.match(name) if isinstance(name, str) else None
    if match is None:
        raise error(owner, "a layer name such as 'block3' or 'backbone/block3:input'", name)
    call = match["call"]
    return match["path"], None if call is None else int(call), match["argument"]


@contextlib.contextmanager
def _intercepted(layer: keras.layers.Layer, calls: list[tuple[dict[str, Any], Any]]) -> Iterator[None]:
    # A quantised layer runs `quantized_call` instead of `call`; an instance attribute hides either one.
    method = "quantized_call" if getattr(layer, "quantization_mode", None) is not None else "call"
    original = getattr(layer, method)

    def record(*args: Any, **kwargs: Any) -> Any:
        returned = original(*args, **kwargs)
        named = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        first = args[0] if args else next(iter(kwargs.values()), None)
        calls.append(({**named, **kwargs, "input": first}, returned))
        return returned

    earlier = vars(layer).get(method)
    object.__setattr__(layer, method, record)
    try:
        yield
    finally:
        if earlier is None:
            object.__delattr__(layer, method)
        else:  # an outer pass over the same layer is under way
            object.__setattr__(layer, method, earlier)


def list_taps(model: keras.Model, print_fn: Callable[[str], Any] | None = builtins.print) -> dict[str, Any]:
    """Show every name that can be tapped, with the shape of its output.

    Args:
        model: any Keras model.
        print_fn: called with each line of the table; ``None`` shows nothing.

    Returns:
        A dict from name to output shape (a structure of shapes for layers with several outputs; ``None`` where the
        shape is not known before the model runs, as in subclassed models).

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="hidden")])
        >>> list_taps(model, print_fn=None)
        {'hidden': (None, 3)}
    """
    shapes = {path: _known_shape(layer) for path, layer in walk(model)}
    if print_fn is not None:
        width = max([len(name) for name in shapes] + [4])
        print_fn(f"{'name':<{width}}  output shape")
        for name, shape in shapes.items():
            print_fn(f"{name:<{width}}  {'known when the model runs' if shape is None else shape}")
    return shapes


def _known_shape(layer: keras.layers.Layer) -> Any:
    try:
        output = layer.output
    except (AttributeError, ValueError):  # never called symbolically, or called several times
        return None
    return keras.tree.map_structure(lambda tensor: tuple(tensor.shape), output)
