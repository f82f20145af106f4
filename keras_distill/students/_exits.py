"""Models with several outputs: exits at several depths, branches with a gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill._checks import error, integer, nearest
from keras_distill.teachers import GatedPeers


def with_exits(
    model: keras.Model, layer_names: Sequence[str], num_classes: int | None = None, bottleneck: str | None = None
) -> keras.Model:
    """Return ``model`` with an exit at each named layer: outputs of the exits, then the model's own (BYOT).

    Choose it with ``teachers.DeepestExit``: a single training run gives the model and cheaper ones, each of them the
    model up to one exit (``keras.Model(made.input, made.outputs[0])``). Layers and weights are shared: training the
    result trains the model.

    An exit is a global average over all positions, if any, and a dense layer of logits. With ``bottleneck``, as in the
    paper, convolutions come first: they reduce a shallow map to the shape of the deepest one, so that the exit sees
    more of the image and its features can be compared with the deepest (a hint from ``"<bottleneck>"`` to
    ``"features_<layer>"``).

    Args:
        model: a built Functional or Sequential model with one output.
        layer_names: layers of the model itself, shallowest first.
        num_classes: >= 1, outputs of each exit; those of the model if None.
        bottleneck: name of the layer that gives the deepest map, (batch, height, width, channels); None for plain
            exits. A bottleneck is one separable convolution with BatchNormalization and ReLU for each halving.

    Returns:
        A Functional model with ``len(layer_names) + 1`` outputs. Exits are named ``exit_<layer>``, the bottlenecks'
        outputs ``features_<layer>``.

    Raises:
        ValueError: if a layer does not exist or has no single output, the model has not one output, or a layer's map
            cannot be halved to the bottleneck's size.

    Example:
        >>> import keras
        >>> hidden = [keras.layers.Dense(8, name="one"), keras.layers.Dense(8, name="two")]
        >>> model = keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(3)])
        >>> [output.shape for output in with_exits(model, ["one", "two"]).outputs]
        [(None, 3), (None, 3), (None, 3)]

    Reference:
        Zhang et al., "Be Your Own Teacher", ICCV 2019, arXiv:1905.08094, figure 2. Differs: without ``bottleneck`` an
        exit is a pooled linear head.
    """
    owner = "with_exits"
    if not isinstance(model, keras.Model) or not getattr(model, "outputs", None) or len(model.outputs) != 1:
        raise error(owner, "a built Functional or Sequential model with one output", model)
    if isinstance(layer_names, str) or not layer_names:
        raise error(owner, "a list of layer names", layer_names)
    classes = model.output_shape[-1] if num_classes is None else integer(owner, "num_classes", num_classes, low=1)
    layers = {layer.name: layer for layer in model.layers}
    deepest = None if bottleneck is None else _output(owner, model, layers, bottleneck)
    exits: list[Any] = []
    for name in layer_names:
        output = _output(owner, model, layers, name)
        if deepest is not None:
            output = _bottleneck(owner, name, output, deepest.shape)
        exits.append(keras.layers.Dense(classes, name=f"exit_{name}")(_pooled(output, f"pool_{name}")))
    return keras.Model(model.inputs, [*exits, model.outputs[0]], name=f"{model.name}_with_exits")


def with_gate(model: keras.Model, layer_name: str) -> keras.Model:
    """Return a model of several branches with two more outputs: their gated mixture, and the gate.

    Choose it with ``teachers.GatedPeers`` (on-the-fly native ensemble, ONE): the mixture teaches the branches, and
    itself learns from the labels, which trains the gate. Give the mixture the supervised loss and the gate none:
    ``compile(loss=[loss] * (branches + 1) + [None])``. Give the term a loss for each branch and ``None`` for both.

    Formula: mixture = log sum_m softmax(gate)_m softmax(logits_m), gate = Dense(mean of the layer over positions).

    Args:
        model: a built Functional model whose outputs, two or more, are logits of the same classes.
        layer_name: layer of the common trunk that the gate reads.

    Returns:
        A Functional model with the outputs of the branches, then ``mixture`` and ``gate``. Layers and weights of the
        branches are shared with the model.

    Raises:
        ValueError: if the layer does not exist, or the model has fewer than two outputs of one shape.

    Example:
        >>> import keras
        >>> x = keras.Input((4,))
        >>> trunk = keras.layers.Dense(8, name="trunk")(x)
        >>> branches = keras.Model(x, [keras.layers.Dense(3)(trunk) for _ in range(2)])
        >>> [output.shape for output in with_gate(branches, "trunk").outputs]
        [(None, 3), (None, 3), (None, 3), (None, 2)]

    Reference:
        Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv:1806.04606, eq. 5.
        Differs: probabilities are mixed instead of logits, and the gate has no BatchNormalization.
    """
    owner = "with_gate"
    outputs = list(getattr(model, "outputs", None) or []) if isinstance(model, keras.Model) else []
    if len(outputs) < 2 or len({tuple(each.shape) for each in outputs}) > 1:
        raise error(owner, "a Functional model with two or more outputs of one shape", model)
    trunk = _output(owner, model, {layer.name: layer for layer in model.layers}, layer_name)
    gate = keras.layers.Dense(len(outputs), dtype="float32", name="gate")(_pooled(trunk, "pool_of_gate"))
    mixture = GatedMixture(name="mixture")([*outputs, gate])
    return keras.Model(model.inputs, [*outputs, mixture, gate], name=f"{model.name}_with_gate")


@keras.saving.register_keras_serializable(package="keras_distill")
class GatedMixture(keras.layers.Layer):
    """The logits of a gated mixture of branches; the last input is the gate. See ``with_gate``."""

    def call(self, inputs: Any) -> Any:
        """Return the logarithms of the mixture's probabilities.

        Args:
            inputs: the branches' logits, each (batch, classes), and the gate's, (batch, branches).
        """
        *branches, gate = inputs
        return GatedPeers.ensemble(branches, gate)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of one branch."""
        return input_shape[0]


def _output(owner: str, model: keras.Model, layers: dict[str, Any], name: str) -> Any:
    if name not in layers:
        raise error(owner, f"a layer of model {model.name!r}", repr(name), f"Nearest: {nearest(str(name), layers)}")
    output = layers[name].output
    if keras.tree.is_nested(output) or len(output.shape) < 2:
        raise error(owner, f"a single tensor from layer {name!r}", output)
    return output


def _pooled(output: Any, name: str) -> Any:
    pool = {3: keras.layers.GlobalAveragePooling1D, 4: keras.layers.GlobalAveragePooling2D}.get(len(output.shape))
    return output if pool is None else pool(name=name)(output)


def _bottleneck(owner: str, name: str, output: Any, wanted: Any) -> Any:
    """Halve a map by separable convolutions, at least one, until it has the wanted size."""
    if len(output.shape) != 4 or len(wanted) != 4 or None in (*output.shape[1:], *wanted[1:]):
        raise error(owner, "maps (batch, height, width, channels) of known size for bottleneck", output.shape)
    sizes = [tuple(output.shape[1:3])]
    while sizes[-1][0] > wanted[1]:
        sizes.append(tuple(-(-size // 2) for size in sizes[-1]))
    if sizes[-1] != tuple(wanted[1:3]):
        got = f"{sizes[0]} of {name!r} and {tuple(wanted[1:3])}"
        raise error(owner, "a bottleneck's map reached by halving the layer's", got)
    steps = [2] * (len(sizes) - 1) or [1]
    for number, stride in enumerate(steps):
        last = number == len(steps) - 1
        filters = wanted[-1] if last else output.shape[-1]
        output = keras.layers.SeparableConv2D(filters, 3, stride, "same", use_bias=False)(output)
        output = keras.layers.BatchNormalization()(output)
        output = keras.layers.ReLU(name=f"features_{name}" if last else None)(output)
    return output
