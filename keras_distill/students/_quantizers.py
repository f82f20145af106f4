"""Layers that compute with quantised weights, and the quantiser of activations."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill._typing import Structure

_PACKAGE = "keras_distill"
BITS = (8, 4, 3, 2)


def quantized_kernel(kernel: Any, bits: int) -> Any:
    """Round a kernel to ``bits`` bits, symmetrically about 0, with one scale for each index of its last axis.

    The largest absolute weight of a channel ends its range of -(2**(bits-1) - 1) to 2**(bits-1) - 1 steps. The gradient
    is straight-through. (No stop_gradient around the range: the LiteRT converter could not fold it.)
    """
    kernel = tf.cast(kernel, tf.float32)
    largest = tf.reduce_max(tf.abs(kernel), axis=list(range(len(kernel.shape) - 1)))
    largest = tf.maximum(largest, 1e-8)
    return tf.quantization.fake_quant_with_min_max_vars_per_channel(
        kernel, -largest, largest, num_bits=bits, narrow_range=True
    )


class _Bits:
    """What the three layers share: the number of bits, also in the configuration."""

    weight_bits: int

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "weight_bits": self.weight_bits}  # type: ignore[misc]


@keras.saving.register_keras_serializable(package=_PACKAGE)
class QuantizedConv2D(_Bits, keras.layers.Conv2D):
    """A ``Conv2D`` that computes with a low-bit kernel and trains the underlying float kernel.

    Args:
        *args: as for ``keras.layers.Conv2D``.
        weight_bits: 8, 4, 3 or 2.
        **kwargs: as for ``keras.layers.Conv2D``.
    """

    def __init__(self, *args: Any, weight_bits: int = 8, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_bits = weight_bits

    def served_kernel(self) -> Any:
        """Return the kernel used in computation."""
        return quantized_kernel(self.kernel, self.weight_bits)

    def convolution_op(self, inputs: Structure, kernel: Any) -> Any:
        """Convolve with the quantised kernel."""
        return super().convolution_op(inputs, ops.cast(quantized_kernel(kernel, self.weight_bits), inputs.dtype))


@keras.saving.register_keras_serializable(package=_PACKAGE)
class QuantizedDepthwiseConv2D(_Bits, keras.layers.DepthwiseConv2D):
    """A ``DepthwiseConv2D`` that computes with a low-bit kernel and trains the underlying float kernel.

    Args:
        *args: as for ``keras.layers.DepthwiseConv2D``.
        weight_bits: 8, 4, 3 or 2.
        **kwargs: as for ``keras.layers.DepthwiseConv2D``.
    """

    def __init__(self, *args: Any, weight_bits: int = 8, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_bits = weight_bits

    def served_kernel(self) -> Any:
        """Return the kernel used in computation, with one scale for each output channel."""
        shape = self.kernel.shape
        flat = ops.reshape(self.kernel, (*shape[:2], shape[2] * shape[3]))
        return ops.reshape(quantized_kernel(flat, self.weight_bits), shape)

    def call(self, inputs: Structure) -> Any:
        """Convolve with the quantised kernel."""
        outputs = ops.depthwise_conv(
            inputs,
            ops.cast(self.served_kernel(), inputs.dtype),
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        if self.use_bias:
            outputs = ops.add(outputs, ops.cast(self.bias, outputs.dtype))
        return self.activation(outputs)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class QuantizedDense(_Bits, keras.layers.Dense):
    """A ``Dense`` layer that computes with a low-bit kernel and trains the underlying float kernel.

    It runs as a convolution of size 1, because the LiteRT converter keeps one scale per output only for convolutions.

    Args:
        *args: as for ``keras.layers.Dense``.
        weight_bits: 8, 4, 3 or 2.
        **kwargs: as for ``keras.layers.Dense``.
    """

    def __init__(self, *args: Any, weight_bits: int = 8, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_bits = weight_bits

    def served_kernel(self) -> Any:
        """Return the kernel used in computation."""
        return quantized_kernel(self.kernel, self.weight_bits)

    def call(self, inputs: Structure, training: bool | None = None) -> Any:
        """Multiply with the quantised kernel."""
        kernel = ops.cast(
            quantized_kernel(ops.reshape(self.kernel, (1, 1, *self.kernel.shape)), self.weight_bits), inputs.dtype
        )
        rows = ops.reshape(inputs, (-1, 1, 1, inputs.shape[-1]))
        outputs = ops.conv(rows, kernel, padding="valid", data_format="channels_last")
        outputs = ops.reshape(outputs, (-1, *inputs.shape[1:-1], self.units))
        if self.use_bias:
            outputs = ops.add(outputs, ops.cast(self.bias, outputs.dtype))
        return self.activation(outputs)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class ActivationQuantizer(keras.layers.Layer):
    """Rounds the activations between two layers to 8 bits, within a range that is tracked during training.

    The range is the exponential moving average of the least and largest value of each training batch; the first batch
    sets it. In inference, and once ``frozen`` is 1, it is fixed.

    Args:
        bits: 8.
        momentum: momentum of the moving average, 0 to 1.
        fixed_range: (least, largest) for values of known range, such as a sigmoid's; None follows the data.
        **kwargs: as for ``keras.layers.Layer``.
    """

    def __init__(
        self, bits: int = 8, momentum: float = 0.95, fixed_range: tuple[float, float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.bits, self.momentum = bits, momentum
        self.fixed_range = None if fixed_range is None else tuple(fixed_range)

    def build(self, input_shape: Any) -> None:
        """Create the range."""
        low, high = self.fixed_range or (-6.0, 6.0)
        for name, value in (("low", low), ("high", high), ("seen", 0.0), ("frozen", float(bool(self.fixed_range)))):
            weight = self.add_weight(
                name=name,
                shape=(),
                initializer=keras.initializers.Constant(value),
                trainable=False,
                dtype="float32",
                aggregation="mean",
            )
            setattr(self, name, weight)
        self.built = True

    def call(self, inputs: Structure, training: bool | None = None) -> Any:
        """Round the inputs; in training, update the range first."""
        values = ops.cast(inputs, "float32")
        low, high = ops.convert_to_tensor(self.low), ops.convert_to_tensor(self.high)
        if training and self.fixed_range is None:
            low, high = self._follow(ops.stop_gradient(values))
        rounded = tf.quantization.fake_quant_with_min_max_vars(values, low, high, num_bits=self.bits)
        return ops.cast(rounded, inputs.dtype)

    def _follow(self, values: Any) -> tuple[Any, Any]:
        # The range must contain 0, which zero padding adds.
        found = ops.minimum(ops.min(values), 0.0), ops.maximum(ops.max(values), 1e-6)
        keep = ops.where(self.seen > 0, self.momentum, 0.0)
        keep = ops.where(self.frozen > 0, 1.0, keep)
        for weight, value in zip((self.low, self.high), found, strict=True):
            weight.assign(keep * weight + (1 - keep) * value)
        self.seen.assign(ops.ones(()))
        return ops.convert_to_tensor(self.low), ops.convert_to_tensor(self.high)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the result."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        more = {"bits": self.bits, "momentum": self.momentum, "fixed_range": self.fixed_range}
        return {**super().get_config(), **more}


QUANTIZED = {
    keras.layers.Conv2D: QuantizedConv2D,
    keras.layers.DepthwiseConv2D: QuantizedDepthwiseConv2D,
    keras.layers.Dense: QuantizedDense,
}
PLAIN = {quantized: plain for plain, quantized in QUANTIZED.items()}
