"""A model that answers from several depths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill._checks import error, integer, nearest


def with_exits(model: keras.Model, layer_names: Sequence[str], num_classes: int | None = None) -> keras.Model:
    """Return ``model`` with an exit at each named layer: its outputs are those of the exits, then the model's own.

    Choose it with ``teachers.DeepestExit``: one training gives the model and cheaper ones, each of them the model up to
    one exit (``keras.Model(made.input, made.outputs[0])``). The layers and their weights are the model's own: training
    the result trains the model.

    An exit is a global average over all positions, if there are any, and a dense layer of logits.

    Args:
        model: a built Functional or Sequential model with one output.
        layer_names: layers of the model itself, the shallowest first.
        num_classes: >= 1, outputs of each exit; those of the model if None.

    Returns:
        A Functional model with ``len(layer_names) + 1`` outputs. Exits are named ``exit_<layer>``.

    Raises:
        ValueError: if a layer does not exist or has no single output, or the model has not one output.

    Example:
        >>> import keras
        >>> hidden = [keras.layers.Dense(8, name="one"), keras.layers.Dense(8, name="two")]
        >>> model = keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(3)])
        >>> [output.shape for output in with_exits(model, ["one", "two"]).outputs]
        [(None, 3), (None, 3), (None, 3)]

    Reference:
        Zhang et al., "Be Your Own Teacher", ICCV 2019, arXiv:1905.08094, figure 2. Differs: an exit is a pooled linear
        head, without the paper's bottleneck.
    """
    owner = "with_exits"
    if not isinstance(model, keras.Model) or not getattr(model, "outputs", None) or len(model.outputs) != 1:
        raise error(owner, "a built Functional or Sequential model with one output", model)
    if isinstance(layer_names, str) or not layer_names:
        raise error(owner, "a list of layer names", layer_names)
    classes = model.output_shape[-1] if num_classes is None else integer(owner, "num_classes", num_classes, low=1)
    layers = {layer.name: layer for layer in model.layers}
    exits: list[Any] = []
    for name in layer_names:
        if name not in layers:
            raise error(owner, f"a layer of model {model.name!r}", repr(name), f"Nearest: {nearest(name, layers)}")
        output = layers[name].output
        if keras.tree.is_nested(output) or len(output.shape) < 2:
            raise error(owner, f"a single tensor from layer {name!r}", output)
        pool = {3: keras.layers.GlobalAveragePooling1D, 4: keras.layers.GlobalAveragePooling2D}.get(len(output.shape))
        pooled = output if pool is None else pool(name=f"pool_{name}")(output)
        exits.append(keras.layers.Dense(classes, name=f"exit_{name}")(pooled))
    return keras.Model(model.inputs, [*exits, model.outputs[0]], name=f"{model.name}_with_exits")
