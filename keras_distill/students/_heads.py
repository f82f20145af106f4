"""Output layers for distributions: for regressions, or one set of logits per member of an ensemble."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill._checks import integer

_PACKAGE = "keras_distill"
_LEAST = 1e-6  # added to a softplus, so that its logarithm is finite


class _Head(keras.layers.Layer):
    """Base: a dense layer with several values per output, whose result is always float32."""

    _numbers = 1

    def __init__(self, outputs: int, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.outputs = integer(type(self).__name__, "outputs", outputs, low=1)

    def build(self, input_shape: Any) -> None:
        """Create the weights."""
        self.dense = keras.layers.Dense(self._numbers * self.outputs, dtype=self.dtype_policy, name="dense")
        self.dense.build(input_shape)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the result."""
        return (*input_shape[:-1], self._numbers * self.outputs)

    def _parts(self, x: Any) -> list[Any]:
        return ops.split(self.dense(x), self._numbers, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "outputs": self.outputs}


def _log_positive(raw: Any) -> Any:
    return ops.log(ops.softplus(raw) + _LEAST)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class GaussianHead(_Head):
    """A mean and a variance for each output of a regression; the variance is softplus(.) + 1e-6.

    Choose it for ``losses.GaussianLikelihood`` (labels), ``losses.GaussianKL`` and ``losses.EnsembleGaussianKL``.

    Args:
        outputs: number of predicted values.
        **kwargs: as for ``keras.layers.Layer``; float32 unless ``dtype`` says otherwise.

    Example:
        >>> import numpy as np
        >>> GaussianHead(3)(np.ones((2, 5))).shape  # means, then log-variances
        TensorShape([2, 6])
    """

    _numbers = 2

    def call(self, x: Any) -> Any:
        """Return (..., 2 * outputs): means, then log-variances."""
        mean, raw = self._parts(x)
        return ops.concatenate([mean, _log_positive(raw)], axis=-1)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class NormalInverseGammaHead(_Head):
    """A distribution over Gaussians for each output of a regression: evidence for its mean and variance.

    Choose it for ``losses.NormalInverseGamma`` (an ensemble) and ``losses.EvidentialRegression`` (labels).

    Args:
        outputs: number of predicted values.
        **kwargs: as for ``keras.layers.Layer``; float32 unless ``dtype`` says otherwise.

    Example:
        >>> import numpy as np
        >>> NormalInverseGammaHead(3)(np.ones((2, 5))).shape
        TensorShape([2, 12])
    """

    _numbers = 4

    def call(self, x: Any) -> Any:
        """Return (..., 4 * outputs): all means, all log v, all log(a - 1), all log b."""
        mean, *raw = self._parts(x)
        return ops.concatenate([mean, *(_log_positive(each) for each in raw)], axis=-1)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class MixtureHead(_Head):
    """A Gaussian mixture for each output of a regression (mixture density network).

    Choose it for ``losses.GaussianMixture``, when an ensemble's means lie far apart.

    Args:
        outputs: number of predicted values.
        components: number of Gaussians in each mixture.
        **kwargs: as for ``keras.layers.Layer``; float32 unless ``dtype`` says otherwise.

    Example:
        >>> import numpy as np
        >>> MixtureHead(3, components=2)(np.ones((2, 5))).shape
        TensorShape([2, 18])

    Reference:
        Bishop, "Mixture Density Networks", 1994. Differs: the variance is softplus(.) + 1e-6.
    """

    _numbers = 3

    def __init__(self, outputs: int, components: int = 3, **kwargs: Any) -> None:
        super().__init__(outputs, **kwargs)
        self.components = integer("MixtureHead", "components", components, low=1)

    def build(self, input_shape: Any) -> None:
        """Create the weights."""
        units = self._numbers * self.components * self.outputs
        self.dense = keras.layers.Dense(units, dtype=self.dtype_policy, name="dense")
        self.dense.build(input_shape)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the result."""
        return (*input_shape[:-1], self._numbers * self.components * self.outputs)

    def call(self, x: Any) -> Any:
        """Return (..., 3 * components * outputs): logits of the weights, means, log-variances."""
        weights, means, raw = self._parts(x)
        return ops.concatenate([weights, means, _log_positive(raw)], axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "components": self.components}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class MemberHeads(keras.layers.Layer):
    """One dense head for each member of an ensemble, on shared features (the heads of Hydra).

    Args:
        num_members: number of heads.
        units: number of logits per head.
        **kwargs: as for ``keras.layers.Layer``.

    Example:
        >>> import numpy as np
        >>> MemberHeads(5, units=10)(np.ones((2, 8))).shape
        TensorShape([2, 5, 10])
    """

    def __init__(self, num_members: int, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_members = integer("MemberHeads", "num_members", num_members, low=1)
        self.units = integer("MemberHeads", "units", units, low=1)

    def build(self, input_shape: Any) -> None:
        """Create the weights of all heads."""
        width = input_shape[-1]
        draw = keras.initializers.GlorotUniform(keras.random.SeedGenerator())

        def start(shape: Any, dtype: Any = None) -> Any:
            # Each head is initialised like a dense layer of its size.
            return ops.stack([draw(shape[1:], dtype) for _ in range(shape[0])])

        self.kernel = self.add_weight(name="kernel", shape=(self.num_members, width, self.units), initializer=start)
        self.bias = self.add_weight(name="bias", shape=(self.num_members, self.units), initializer="zeros")

    def call(self, x: Any) -> Any:
        """Return (batch, members, ..., units) from features (batch, ..., width)."""
        heads = ops.moveaxis(ops.tensordot(x, self.kernel, axes=[[-1], [1]]), -2, 1)
        bias = ops.reshape(self.bias, (1, self.num_members, *([1] * (len(x.shape) - 2)), self.units))
        return heads + bias

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the result."""
        return (input_shape[0], self.num_members, *input_shape[1:-1], self.units)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "num_members": self.num_members, "units": self.units}
