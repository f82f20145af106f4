"""Quantisation-aware students: training computes the same quantised values as the LiteRT file."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import keras

from keras_distill._checks import choice, error, optional
from keras_distill._typing import Tensor
from keras_distill.students import _graph, _litert
from keras_distill.students._fold import fold_batch_normalization
from keras_distill.students._inputs import check_inputs, input_batches
from keras_distill.students._quantizers import BITS, PLAIN, QUANTIZED, ActivationQuantizer

_OWNER = "quantization_aware"
layers = keras.layers
#: Layers whose result has the scale of their input, so they need no quantiser of their own.
_SAME_SCALE = (
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.Identity,
    layers.ZeroPadding2D,
    layers.Cropping2D,
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.Embedding,
    ActivationQuantizer,
)
#: LiteRT uses a fixed scale for these results.
_FIXED = {"sigmoid": (0.0, 255 / 256), "softmax": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}
_FUSED = ("linear", "relu", "relu6")


def quantization_aware(
    model: keras.Model, weight_bits: int = 8, activation_bits: int | None = 8, *, data: Any = None
) -> keras.Model:
    """Return a copy of a model that computes like its quantised LiteRT file, to be trained by distillation.

    Choose it for int8 when plain ``export.litert(..., quantize="int8")`` costs too much accuracy, and always for fewer
    bits. Distil it for some epochs with the float model as teacher and a small learning rate, call
    ``freeze_quantization`` before the last of them, then ``export.litert(student, path)``, which writes the trained
    quantisation and checks that the file agrees with the student.

    Batch normalisation is folded first. Conv2D, DepthwiseConv2D and Dense compute with weights of ``weight_bits`` bits,
    one scale per output channel, and a straight-through gradient. With ``activation_bits=8`` the inputs and the
    activations between layers are rounded to 8 bits within a moving range. Other layers with weights stay in float.

    Args:
        model: a built Functional or Sequential model; nested and shared layers too. It is not changed.
        weight_bits: 8, 4, 3 or 2. Files store 8, 4, 8 and 4 bits; 4 needs ``ai-edge-quantizer``.
        activation_bits: 8, or None to leave activations in float; a file of 4-bit weights needs None.
        data: some hundred inputs that set the initial ranges; without them, ranges start at -6 to 6 and the first
            training batch sets them.

    Returns:
        A trainable ``keras.Model`` that can be saved and loaded like any other.

    Raises:
        ValueError: if the bits are unknown, or the model has no graph, nothing to quantise, or is quantised already.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="only")])
        >>> [layer.name for layer in quantization_aware(model).layers]
        ['input_range', 'only', 'only_range']

    Reference:
        Jacob et al., 2018, arXiv:1712.05877; Polino et al., "Model compression via distillation and quantization",
        2018, arXiv:1802.05668 (the float model as teacher).
        Differs: weight ranges are symmetric per output channel and end at the largest absolute weight.
    """
    choice(_OWNER, "weight_bits", weight_bits, BITS)
    choice(_OWNER, "activation_bits", activation_bits, (8, None))
    _graph.check_graph(_OWNER, model)
    folded = fold_batch_normalization(model)
    if not any(type(layer) in QUANTIZED for layer in folded._flatten_layers(include_self=False)):
        got = f"{model.name!r}, which has none"
        raise error(_OWNER, "a model with Conv2D, DepthwiseConv2D or Dense layers", got)
    result = _Maker(folded, weight_bits, activation_bits).make()
    if data is not None and activation_bits is not None:
        for batch in input_batches(_OWNER, data):
            checked = check_inputs(_OWNER, result, batch)
            result(keras.tree.pack_sequence_as(_graph.graph_of(result)._inputs_struct, checked), training=True)
    return result


def freeze_quantization(model: keras.Model, frozen: bool = True) -> None:
    """Freeze (or release) the ranges of a quantisation-aware model, so that the last epochs train with fixed ones.

    Args:
        model: from ``quantization_aware``.
        frozen: False lets the ranges move again.

    Raises:
        ValueError: if the model has no moving ranges.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
        >>> freeze_quantization(quantization_aware(model))
    """
    found = [layer for layer in model._flatten_layers() if isinstance(layer, ActivationQuantizer)]
    if not found:
        advice = "Make it with quantization_aware(model, activation_bits=8)"
        raise error("freeze_quantization", "a model with quantised activations", repr(model.name), advice)
    for layer in found:
        if layer.fixed_range is None:
            layer.frozen.assign(float(frozen))


def quantized_bits(model: Any) -> tuple[int, int | None] | None:
    """Return the weight and activation bits of a model from ``quantization_aware``, or None for any other model.

    Args:
        model: any model.

    Returns:
        ``(weight_bits, activation_bits)``, the second None if activations are in float; or None.

    Example:
        >>> quantized_bits(quantization_aware(keras.Sequential([keras.Input((4,)), layers.Dense(3)]), 4, None))
        (4, None)
    """
    inner = list(model._flatten_layers()) if isinstance(model, keras.Model) else []
    weights = {layer.weight_bits for layer in inner if type(layer) in PLAIN}
    activations = {layer.bits for layer in inner if isinstance(layer, ActivationQuantizer)}
    return (min(weights), min(activations, default=None)) if weights else None


def quantized_litert(owner: str, model: keras.Model) -> bytes:
    """Return a quantisation-aware model as a LiteRT file with the trained quantisation.

    With 8-bit activations the converter's own fake-quantiser path is used. Weights alone are quantised by
    ai-edge-quantizer in the float file, whose weights already lie on the trained grid. ``export.litert`` does the same,
    and checks the file.

    Args:
        owner: name shown in the error message.
        model: from ``quantization_aware``.

    Returns:
        The content of the file.

    Raises:
        ValueError: if the model is not quantisation-aware, the converter fails, or ai-edge-quantizer is needed and
            missing.
    """
    found = quantized_bits(model)
    if found is None:
        raise error(owner, "a model from quantization_aware", repr(getattr(model, "name", model)))
    content = _litert.convert(owner, served_model(model), optimize=found[1] is not None)
    return content if found[1] is not None else edge_quantized(owner, content, found[0])


def served_model(model: keras.Model) -> keras.Model:
    """Return the model to pass to a converter for a quantisation-aware one.

    With 8-bit activations it keeps its fake quantisers: the converter reads their ranges and always stores weights in 8
    bits, so they quantise to 8 bits on the trained grid. Otherwise its layers are plain and their weights lie on the
    grid.

    Args:
        model: from ``quantization_aware``.

    Returns:
        A ``keras.Model`` with the same outputs.
    """
    weight_bits, activation_bits = quantized_bits(model) or (8, None)
    if activation_bits is None:
        return _on_grid(model, None)
    return model if weight_bits == 8 else _on_grid(model, 8)


def edge_quantized(owner: str, content: bytes, weight_bits: int) -> bytes:
    """Store the weights of a float LiteRT file in fewer bits, by ai-edge-quantizer.

    Args:
        owner: name shown in the error message.
        content: the float file.
        weight_bits: bits that the weights were trained with: 4 and 2 are stored in 4 bits, 8 and 3 in 8.

    Returns:
        The content of the smaller file.

    Raises:
        ValueError: if ai-edge-quantizer is missing.
    """
    with optional(owner, "ai-edge-quantizer", "quantization"):
        from ai_edge_quantizer import quantizer, recipe
    chosen = recipe.dynamic_wi4_afp32() if weight_bits in (4, 2) else recipe.dynamic_wi8_afp32()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.tflite", Path(folder) / "quantized.tflite"
        source.write_bytes(content)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a summary
            quantizer.Quantizer(str(source), chosen).quantize().export_model(str(target))
        return target.read_bytes()


def _on_grid(model: keras.Model, bits: int | None) -> keras.Model:
    """Return a copy with rounded kernels; its layers are plain, or quantise again with ``bits``."""

    def replace(builder: Any, path: str, node: Any, args: Any, kwargs: Any) -> Any:
        operation = node.operation
        if type(operation) not in PLAIN:
            return None

        def make() -> Any:
            config = operation.get_config()
            if bits is not None:
                return type(operation).from_config({**config, "weight_bits": bits})
            return PLAIN[type(operation)].from_config({k: v for k, v in config.items() if k != "weight_bits"})

        values = operation.get_weights()
        values[0] = keras.ops.convert_to_numpy(operation.served_kernel())
        return builder.apply(operation, builder.once(operation, make), values, args, kwargs)

    return _graph.Builder(model, replace).build()


class _Maker:
    """Inserts quantised layers and quantisers into a folded model."""

    def __init__(self, model: keras.Model, weight_bits: int, activation_bits: int | None) -> None:
        self.model, self.weight_bits, self.activation_bits = model, weight_bits, activation_bits
        self.readers: dict[int, Any] = {}
        self._collect(model)
        self._names: dict[str, int] = {}

    def make(self) -> keras.Model:
        entry = self._at_input if self.activation_bits is not None else None
        return _graph.Builder(self.model, self._replace, entry).build()

    def _collect(self, model: Any) -> None:
        graph = _graph.graph_of(model)
        self.readers.update(_graph.readers(graph))
        for node in _graph.nodes(graph):
            if _graph.graph_of(node.operation) is not None:
                self._collect(node.operation)

    def _at_input(self, tensor: Tensor) -> Any:
        return self._quantizer("input")(tensor) if _is_float(tensor) else tensor

    def _quantizer(self, name: str, fixed: Any = None) -> ActivationQuantizer:
        count = self._names[name] = self._names.get(name, -1) + 1
        suffix = f"_{count}" if count else ""
        return ActivationQuantizer(self.activation_bits or 8, fixed_range=fixed, name=f"{name}_range{suffix}")

    def _replace(self, builder: Any, path: str, node: Any, args: Any, kwargs: Any) -> Any:
        operation = node.operation
        if _graph.graph_of(operation) is not None:
            return None
        kind = QUANTIZED.get(type(operation))
        if kind is None:
            results = builder.copy(path, node, args, kwargs)
        else:
            results = self._quantized(builder, kind, operation, args, kwargs)
        quantizing = self.activation_bits is not None and isinstance(operation, layers.Layer | keras.Operation)
        if not quantizing or isinstance(operation, _SAME_SCALE) or not all(map(_is_float, results)):
            return results
        if self._fuses(node):
            return results
        fixed = _FIXED.get(_activation_name(operation))
        return [self._quantizer(operation.name, fixed)(result) for result in results]

    def _quantized(self, builder: Any, kind: Any, operation: Any, args: Any, kwargs: Any) -> list[Any]:
        name = _activation_name(operation)
        # An activation that LiteRT does not fuse into the layer reads quantised values there, so it does here too.
        apart = self.activation_bits is not None and name not in _FUSED
        config = {**operation.get_config(), "weight_bits": self.weight_bits}
        if apart:
            config["activation"] = "linear"
        new = builder.once(operation, lambda: kind.from_config(config))
        results = builder.apply(operation, new, operation.get_weights(), args, kwargs)
        if not apart:
            return results
        inside = [self._quantizer(f"{operation.name}_inside")(result) for result in results]
        count = self._names[f"{operation.name}_inside"]
        activation = layers.Activation(operation.activation, name=f"{operation.name}_activation{count or ''}")
        return [activation(value) for value in inside]

    def _fuses(self, node: Any) -> bool:
        """Return whether the only reader is a rectifier that LiteRT fuses into this operation."""
        if _activation_name(node.operation) != "linear" or isinstance(node.operation, layers.ReLU):
            return False
        after = self.readers.get(id(node.outputs[0]), [])
        return len(after) == 1 and after[0] is not None and _is_rectifier(after[0].operation)


def _is_float(tensor: Tensor) -> bool:
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


def _activation_name(operation: Any) -> str:
    by_class = {"Sigmoid": "sigmoid", "Softmax": "softmax", "Tanh": "tanh"}
    if type(operation).__name__ in by_class:
        return by_class[type(operation).__name__]
    return getattr(getattr(operation, "activation", None), "__name__", "linear")


def _is_rectifier(operation: Any) -> bool:
    if isinstance(operation, layers.ReLU):
        return operation.max_value in (None, 6, 6.0) and not operation.negative_slope and not operation.threshold
    name = type(operation).__name__
    return name in ("Relu", "Relu6") or (name == "Activation" and _activation_name(operation) in ("relu", "relu6"))
