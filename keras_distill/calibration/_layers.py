"""Layers of fitted constants, from logits to calibrated logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import number
from keras_distill._typing import Tensor

_PACKAGE = "keras_distill"
_SMALLEST = 1e-12  # an isotonic probability of 0 becomes this, so that its logit is finite


class _ScalingLayer(keras.layers.Layer):
    """Base: a layer of constants from logits to logits of the same shape, in float32 by default."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "trainable": False, **kwargs})

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the input's shape."""
        return input_shape


@keras.saving.register_keras_serializable(package=_PACKAGE)
class TemperatureScaling(_ScalingLayer):
    """Divides logits by one temperature, kept as a weight.

    Args:
        temperature: > 0, no unit.
        **kwargs: passed on to ``keras.layers.Layer``.

    Example:
        >>> print(np.asarray(TemperatureScaling(2.0)(np.array([[4.0, 1.0]]))))
        [[2.  0.5]]
    """

    def __init__(self, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._start = number("TemperatureScaling", "temperature", temperature, above=0.0)

    def build(self, input_shape: Any) -> None:
        """Create the weight."""
        self.temperature = self.add_weight(
            name="temperature", shape=(), initializer=keras.initializers.Constant(self._start), trainable=False
        )

    def call(self, logits: Tensor) -> Any:
        """Return ``logits / temperature``."""
        return logits / self.temperature

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        temperature = float(self.temperature.numpy()) if self.built else self._start
        return {**super().get_config(), "temperature": temperature}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class VectorScaling(_ScalingLayer):
    """Multiplies each class's logit by a factor and adds an offset, kept as weights.

    Args:
        factors: (classes,).
        offsets: (classes,).
        **kwargs: passed on to ``keras.layers.Layer``.

    Example:
        >>> print(np.asarray(VectorScaling([0.5, 2.0], [0.0, 1.0])(np.array([[4.0, 1.0]]))))
        [[2. 3.]]
    """

    def __init__(self, factors: Any, offsets: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._start = (np.asarray(factors, float), np.asarray(offsets, float))

    def build(self, input_shape: Any) -> None:
        """Create the weights."""
        self.factors, self.offsets = (
            self.add_weight(name=name, shape=start.shape, initializer=_constant(start), trainable=False)
            for name, start in zip(("factors", "offsets"), self._start, strict=True)
        )

    def call(self, logits: Tensor) -> Any:
        """Return ``logits * factors + offsets``."""
        return logits * self.factors + self.offsets

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        factors, offsets = (each.tolist() for each in self._start)
        return {**super().get_config(), "factors": factors, "offsets": offsets}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class IsotonicScaling(_ScalingLayer):
    """Maps each class's probability through an increasing piecewise-linear curve, normalises, and returns logs.

    Args:
        inputs: (curves, points), increasing along each row: probabilities before. Two classes: one curve, for class 1.
        outputs: (curves, points), increasing along each row: probabilities after; constant outside.
        **kwargs: passed on to ``keras.layers.Layer``.

    Example:
        >>> layer = IsotonicScaling([[0.0, 1.0]], [[0.25, 0.75]])  # class 1: p -> 0.25 + 0.5 p
        >>> print(np.exp(np.asarray(layer(np.log([[0.5, 0.5], [0.9, 0.1]])))).round(3))
        [[0.5 0.5]
         [0.7 0.3]]
    """

    def __init__(self, inputs: Any, outputs: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._start = (np.asarray(inputs, float), np.asarray(outputs, float))

    def build(self, input_shape: Any) -> None:
        """Create the weights."""
        self.inputs, self.outputs = (
            self.add_weight(name=name, shape=start.shape, initializer=_constant(start), trainable=False)
            for name, start in zip(("inputs", "outputs"), self._start, strict=True)
        )

    def call(self, logits: Tensor) -> Any:
        """Return logs of the calibrated probabilities."""
        probabilities = ops.softmax(logits, axis=-1)
        curves, points = self._start[0].shape
        if curves == 1:
            second = self._curve(probabilities[..., 1:], points)
            after = ops.concatenate([1.0 - second, second], axis=-1)
        else:
            after = self._curve(probabilities, points)
            total = ops.sum(after, axis=-1, keepdims=True)
            after = ops.where(total > 0, after / ops.where(total > 0, total, 1.0), 1.0 / curves)
        return ops.log(ops.maximum(after, _SMALLEST))

    def _curve(self, values: Any, points: int) -> Any:
        """Interpolate (..., curves) values, each on its curve, by bisection, which runs in every runtime and in XLA."""
        xs, ys = ops.reshape(self.inputs, (-1,)), ops.reshape(self.outputs, (-1,))
        first = points * ops.arange(values.shape[-1], dtype="int32")
        low = ops.zeros_like(values, dtype="int32") + first
        high = low + points - 1
        for _ in range(max(1, math.ceil(math.log2(points)))):
            middle = (low + high) // 2
            above = values >= ops.take(xs, middle)
            low, high = ops.where(above, middle, low), ops.where(above, high, middle)
        x0, x1, y0, y1 = ops.take(xs, low), ops.take(xs, high), ops.take(ys, low), ops.take(ys, high)
        share = ops.clip((values - x0) / ops.where(x1 > x0, x1 - x0, 1.0), 0.0, 1.0)
        return y0 + share * (y1 - y0)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        inputs, outputs = (each.tolist() for each in self._start)
        return {**super().get_config(), "inputs": inputs, "outputs": outputs}


def _constant(values: np.ndarray) -> Callable[..., Any]:
    """Return an initializer that returns ``values``."""
    return lambda shape, dtype=None: ops.convert_to_tensor(values, dtype=dtype)
