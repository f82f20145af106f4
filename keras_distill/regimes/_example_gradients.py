"""The sum of clipped per-example gradients, from one backward pass to the layers' outputs (ghost norms).

Kept apart from ``_dp_sgd.py``: it is a formula for each kind of layer and knows neither noise nor a budget.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_distill._checks import error
from keras_distill.taps import walk


class _Call(NamedTuple):
    """One call of a layer: its input, and its linear part before the activation."""

    layer: Any
    inputs: Any
    linear: Any


def clipped_sum(
    student: keras.Model,
    weights: Sequence[Any],
    inputs: Any,
    values_of: Callable[[Any], Any],
    clip: float,
    keep: Any = None,
) -> tuple[list[Any], Any]:
    """Return the sum of gradients, each scaled down to a norm of at most ``clip``, and the student's outputs.

    Args:
        student: a student that passed ``check_student``.
        weights: its trainable weights, in the order of the gradients.
        inputs: (batch, ...).
        values_of: maps outputs to (batch,) independent losses.
        clip: > 0.
        keep: (batch,), 1 for examples that count and 0 for others; None counts all.
    """
    calls: list[_Call] = []
    with tf.GradientTape() as tape:
        with _recorded(student, calls):
            outputs = student(inputs, training=True)
        total = ops.sum(values_of(outputs))
    slopes = tape.gradient(total, [call.linear for call in calls])
    parts = [_part(call, slope) for call, slope in zip(calls, slopes, strict=True)]
    norms = ops.sqrt(sum(squares for squares, _ in parts))
    scales = ops.minimum(1.0, clip / ops.maximum(norms, 1e-12))
    scales = scales if keep is None else scales * ops.cast(keep, "float32")
    found = {id(weight): value for _, scaled in parts for weight, value in scaled(scales)}
    return [found[id(weight)] for weight in weights], outputs


def _part(call: _Call, slope: Any) -> tuple[Any, Callable[[Any], list[tuple[Any, Any]]]]:
    """Return (batch,) squared norms of a layer's gradients, and a function from scales to the scaled gradient sums."""
    layer, inputs = call.layer, call.inputs
    flat = isinstance(layer, keras.layers.Dense) and len(inputs.shape) == 2
    if isinstance(layer, keras.layers.Conv2D):
        inputs = tf.image.extract_patches(
            inputs, [1, *layer.kernel_size, 1], [1, *layer.strides, 1], [1, *layer.dilation_rate, 1],
            layer.padding.upper(),
        )  # fmt: skip
    if not flat:  # positions become one axis
        inputs, slope = (ops.reshape(each, (ops.shape(each)[0], -1, each.shape[-1])) for each in (inputs, slope))
    each_bias = slope if flat else ops.sum(slope, axis=1)
    if flat:  # the gradient of one example is an outer product, whose norm is the product of norms
        squares = ops.sum(ops.square(inputs), axis=-1) * ops.sum(ops.square(slope), axis=-1)
    else:
        each_kernel = ops.einsum("bpi,bpo->bio", inputs, slope)
        squares = ops.sum(ops.square(each_kernel), axis=(1, 2))
    if layer.use_bias:
        squares = squares + ops.sum(ops.square(each_bias), axis=-1)

    def scaled(scales: Any) -> list[tuple[Any, Any]]:
        if flat:
            kernel = ops.matmul(ops.transpose(inputs), scales[:, None] * slope)
        else:
            kernel = ops.tensordot(scales, each_kernel, axes=1)
        sums = [(layer._kernel, ops.reshape(kernel, layer._kernel.shape))]
        return [*sums, (layer.bias, ops.matmul(scales[None], each_bias)[0])] if layer.use_bias else sums

    return squares, scaled


@contextlib.contextmanager
def _recorded(student: keras.Model, calls: list[_Call]) -> Iterator[None]:
    """Record the inputs and linear parts of every Dense and Conv2D in a pass."""
    with contextlib.ExitStack() as stack:
        for _, layer in walk(student):
            if isinstance(layer, (keras.layers.Dense, keras.layers.Conv2D)):
                object.__setattr__(layer, "call", _recording(layer, calls))
                stack.callback(object.__delattr__, layer, "call")
        yield


def _recording(layer: Any, calls: list[_Call]) -> Callable[..., Any]:
    def call(inputs: Any, training: Any = None) -> Any:
        convolves = isinstance(layer, keras.layers.Conv2D)
        linear = layer.convolution_op(inputs, layer.kernel) if convolves else ops.matmul(inputs, layer.kernel)
        linear = linear + layer.bias if layer.use_bias else linear
        calls.append(_Call(layer, inputs, linear))
        return linear if layer.activation is None else layer.activation(linear)

    return call


def check_student(owner: str, student: keras.Model) -> None:
    """Raise ``ValueError`` if per-example gradients cannot be separated.

    Args:
        owner: name shown in the error message.
        student: a built model.
    """
    advice = "GroupNormalization and LayerNormalization are not supported either; scale the inputs"
    for name, layer in walk(student):
        if isinstance(layer, keras.layers.BatchNormalization):
            raise error(owner, "a student without BatchNormalization, which mixes examples", repr(name), advice)
        if any(isinstance(each, keras.random.SeedGenerator) for each in vars(layer).values()):
            raise error(owner, "a student without stochastic layers", repr(name), "The noise regularises already")
        known = isinstance(layer, (keras.layers.Dense, keras.layers.Conv2D))
        odd = known and (getattr(layer, "groups", 1) != 1 or getattr(layer, "data_format", "") == "channels_first")
        if odd or (layer._trainable_variables and not known) or getattr(layer, "lora_enabled", False):
            raise error(owner, "a student of plain Dense and Conv2D layers", f"{type(layer).__name__} {name!r}")
    if student.dtype_policy.name != "float32" or student.losses:
        got = f"dtype {student.dtype_policy.name}" if not student.losses else f"{len(student.losses)} losses of its own"
        raise error(owner, "a student in float32, without losses of its own", got, "Use the optimizer's weight_decay")
    if len(getattr(student, "inputs", None) or [None]) != 1 or len(student.outputs) != 1:
        raise error(owner, "a student with one input and one output", f"{len(student.inputs)}, {len(student.outputs)}")
    calls: list[_Call] = []
    with _recorded(student, calls):
        student(ops.zeros((1, *student.inputs[0].shape[1:]), dtype=student.inputs[0].dtype), training=False)
    counts = [sum(call.layer is layer for call in calls) for layer in {id(c.layer): c.layer for c in calls}.values()]
    if any(count > 1 for count in counts):
        raise error(owner, "a student whose layers are each called once", "one that is called several times")
