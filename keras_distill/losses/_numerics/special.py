"""Special functions missing from ``keras.ops``, built on ``keras.ops`` so that XLA and higher derivatives work."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

from keras_distill._typing import Tensor

_SHIFT = 8  # below this the argument is raised by recurrence; above it the series in 1/x is exact to 1e-13
_LOG_GAMMA = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
_DIGAMMA = (-1 / 12, 1 / 120, -1 / 252, 1 / 240, -1 / 132, 691 / 32760)


def _series(coefficients: tuple[float, ...], square: Any) -> Tensor:
    """Return c0 + c1 * square + c2 * square**2 + ... by Horner's rule."""
    total = coefficients[-1] * ops.ones_like(square)
    for coefficient in reversed(coefficients[:-1]):
        total = total * square + coefficient
    return total


def digamma(x: Tensor) -> Tensor:
    """Digamma function, the derivative of log gamma.

    Args:
        x: > 0, float32 or float64, any shape.

    Returns:
        Same shape and dtype; accurate to 1e-13 * max(1, |value|) in float64, 4e-6 in float32.

    Example:
        >>> import numpy as np
        >>> print(f"{float(digamma(np.array(1.0))):.6f}")  # minus Euler's constant
        -0.577216
    """
    x = ops.convert_to_tensor(x)
    small = x < _SHIFT
    near = ops.where(small, x, ops.ones_like(x))
    moved = ops.zeros_like(x)
    for step in range(_SHIFT):
        moved = moved + 1.0 / (near + step)
    far = ops.where(small, x + _SHIFT, x)
    inverse = 1.0 / far
    square = inverse * inverse
    value = ops.log(far) - 0.5 * inverse + square * _series(_DIGAMMA, square)
    return ops.where(small, value - moved, value)


def log_gamma(x: Tensor) -> Tensor:
    """Logarithm of the gamma function; its gradient is ``digamma``.

    Args:
        x: > 0, float32 or float64, any shape.

    Returns:
        Same shape and dtype; accurate to 1e-13 * max(1, |value|) in float64, 4e-6 in float32.

    Example:
        >>> import numpy as np
        >>> print(f"{float(log_gamma(np.array(5.0))):.6f}")  # log(4!) = log 24
        3.178054
    """
    x = ops.convert_to_tensor(x)
    small = x < _SHIFT
    near = ops.where(small, x, ops.ones_like(x))
    moved = ops.zeros_like(x)
    for step in range(_SHIFT):
        moved = moved + ops.log(near + step)
    far = ops.where(small, x + _SHIFT, x)
    inverse = 1.0 / far
    value = (far - 0.5) * ops.log(far) - far + 0.5 * math.log(2 * math.pi)
    value = value + inverse * _series(_LOG_GAMMA, inverse * inverse)
    return ops.where(small, value - moved, value)
