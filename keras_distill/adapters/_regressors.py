"""Regressors: mean and variance, factors, a bottleneck of convolutions."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.adapters._base import Adapter
from keras_distill.adapters._projections import Shape, two
from keras_distill.losses._features import maps


def normalization(policy: Any, name: str) -> keras.layers.BatchNormalization:
    """Return batch norm with the constants of the public codes."""
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=policy, name=name)


@keras.saving.register_keras_serializable(package="keras_distill")
class VariationalRegressor(Adapter):
    """Prediction of a teacher's features with a variance per channel: the student's side of ``VariationalInformation``.

    Three linear maps of the channels (1x1 convolutions on maps) with ReLU in between and without bias. It returns the
    pair [mean, raw variance] that the loss takes.

    Args:
        units: >= 1, the teacher's channels.
        hidden_units: >= 1, the hidden width; None takes ``units``.
        size: (height, width) of the teacher's map; a larger student map is first average-pooled to it.
        initial_variance: > ``min_variance``, initial variance of every channel, in squared units of the features.
        min_variance: > 0, as in the loss.
        **kwargs: as in ``keras.layers.Layer``.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> VariationalRegressor(16).compute_output_shape((None, 8, 8, 4))
        [(None, 8, 8, 16), (16,)]

    Reference:
        Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv:1904.05835,
        section 3. Differs: nothing.
    """

    def __init__(
        self,
        units: int,
        *,
        hidden_units: int | None = None,
        size: tuple[int, int] | None = None,
        initial_variance: float = 5.0,
        min_variance: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner = "VariationalRegressor"
        self.units = _checks.integer(owner, "units", units, low=1)
        self.hidden_units = _checks.integer(owner, "hidden_units", hidden_units or units, low=1)
        self.size = None if size is None else two(owner, size)
        self.min_variance = _checks.number(owner, "min_variance", min_variance, above=0.0)
        self.initial_variance = _checks.number(owner, "initial_variance", initial_variance, above=self.min_variance)
        widths = (self.hidden_units, self.hidden_units, self.units)
        self.maps = [
            keras.layers.Dense(width, use_bias=False, dtype=self.dtype_policy, name=f"map_{index}")
            for index, width in enumerate(widths)
        ]

    def build(self, input_shape: Shape) -> None:
        """Create the variables."""
        shape = tuple(input_shape)
        for layer in self.maps:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        start = math.log(math.expm1(self.initial_variance - self.min_variance))
        self.raw_variance = self.add_weight(
            name="raw_variance", shape=(self.units,), initializer=keras.initializers.Constant(start)
        )
        super().build(input_shape)

    def call(self, inputs: Tensor) -> list[Any]:
        """Return [mean, raw variance]."""
        outputs = inputs if self.size is None else maps.pool(inputs, _smaller(tuple(inputs.shape), self.size))
        for layer in self.maps[:-1]:
            outputs = ops.relu(layer(outputs))
        return [self.maps[-1](outputs), ops.reshape(self.raw_variance, (self.units,))]

    def compute_output_shape(self, input_shape: Shape) -> list[Shape]:
        """Return the shapes of mean and raw variance."""
        places = tuple(input_shape[1:-1])
        if self.size is not None:
            target = _smaller(tuple(input_shape), self.size)
            places = tuple(own if wanted is None else wanted for own, wanted in zip(places, target, strict=True))
        return [(input_shape[0], *places, self.units), (self.units,)]

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {
            **super().get_config(),
            "units": self.units,
            "hidden_units": self.hidden_units,
            "size": None if self.size is None else list(self.size),
            "initial_variance": self.initial_variance,
            "min_variance": self.min_variance,
        }


def _smaller(shape: Shape, size: tuple[int, int]) -> tuple[int | None, ...]:
    """Return the size to pool to, None for axes that are small enough."""
    return tuple(
        wanted if length is None or length > wanted else None for length, wanted in zip(shape[1:3], size, strict=True)
    )


@keras.saving.register_keras_serializable(package="keras_distill")
class Translator(Adapter):
    """Three 3x3 convolutions from a student's map to a factor, the student's side of ``FactorTransfer``.

    Args:
        filters: >= 1, the channels of the teacher's factor.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> Translator(8).compute_output_shape((None, 4, 4, 5))
        (None, 4, 4, 8)

    Reference:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
        arXiv:1802.04977, section 3.2. Differs: no batch norm.
    """

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = _checks.integer("Translator", "filters", filters, low=1)
        self.layers: list[keras.layers.Layer] = []

    def build(self, input_shape: Shape) -> None:
        """Create the variables."""
        widths = (input_shape[-1], self.filters, self.filters)
        self.layers = [_convolution(width, self.dtype_policy, f"encode_{i}") for i, width in enumerate(widths)]
        _build_chain(self.layers, input_shape)
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        """Return the factor: (batch, height, width, filters)."""
        return _run_chain(self.layers, inputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the factor."""
        return (*tuple(input_shape[:-1]), self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="keras_distill")
class Paraphraser(Adapter):
    """Autoencoder of a teacher's map; its code is the teacher's factor in ``FactorTransfer``.

    Train ``autoencoder(shape)`` on the teacher's features first (``fit(features, features)``, mean squared error), then
    set ``trainable = False``.

    Args:
        rate: > 0, the factor's channels as a fraction of the teacher's.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> Paraphraser(0.5).compute_output_shape((None, 4, 4, 16))
        (None, 4, 4, 8)

    Reference:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
        arXiv:1802.04977, section 3.1. Differs: no batch norm.
    """

    def __init__(self, rate: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = _checks.number("Paraphraser", "rate", rate, above=0.0)
        self.encoder: list[keras.layers.Layer] = []
        self.decoder: list[keras.layers.Layer] = []

    def _factors(self, shape: Shape) -> int:
        return max(1, int((shape[-1] or 0) * self.rate))

    def build(self, input_shape: Shape) -> None:
        """Create the variables of encoder and decoder."""
        channels, factors = input_shape[-1], self._factors(input_shape)
        policy = self.dtype_policy
        self.encoder = [_convolution(w, policy, f"encode_{i}") for i, w in enumerate((channels, factors, factors))]
        self.decoder = [_convolution(w, policy, f"decode_{i}") for i, w in enumerate((factors, channels, channels))]
        _build_chain(self.decoder, _build_chain(self.encoder, input_shape))
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        """Return the factor."""
        return _run_chain(self.encoder, inputs)

    def reconstruct(self, factor: Any) -> Tensor:
        """Return the teacher's features, decoded from a factor."""
        return _run_chain(self.decoder, factor)

    def autoencoder(self, shape: tuple[int | None, ...]) -> keras.Model:
        """Return a model from features to their reconstruction that shares this layer's weights.

        Args:
            shape: (height, width, channels) of the teacher's features.
        """
        inputs = keras.Input(shape)
        decode = _Decode(self, name="reconstruct")
        return keras.Model(inputs, decode(self(inputs)), name="paraphraser_autoencoder")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the factor."""
        return (*tuple(input_shape[:-1]), self._factors(input_shape))

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "rate": self.rate}


class _Decode(keras.layers.Layer):
    """The decoder of a paraphraser as a layer without variables of its own."""

    def __init__(self, paraphraser: Paraphraser, name: str) -> None:
        super().__init__(name=name, dtype=paraphraser.dtype_policy)
        self.paraphraser = paraphraser

    def call(self, inputs: Tensor) -> Tensor:
        return self.paraphraser.reconstruct(inputs)


def _convolution(filters: Any, policy: Any, name: str) -> keras.layers.Layer:
    leak = keras.layers.LeakyReLU(0.1, dtype=policy)
    return keras.layers.Conv2D(filters, 3, padding="same", activation=leak, dtype=policy, name=name)


def _build_chain(layers: list[keras.layers.Layer], shape: Shape) -> Shape:
    for layer in layers:
        layer.build(shape)
        shape = layer.compute_output_shape(shape)
    return shape


def _run_chain(layers: list[keras.layers.Layer], outputs: Any) -> Tensor:
    for layer in layers:
        outputs = layer(outputs)
    return outputs


@keras.saving.register_keras_serializable(package="keras_distill")
class BottleneckRegressor(Adapter):
    """1x1, 3x3 and 1x1 convolution, with batch norm and ReLU after the first two: SemCKD's adapter between layers.

    Args:
        filters: >= 1, the teacher's channels.
        hidden_filters: >= 1, the hidden width; None takes twice ``filters``.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> BottleneckRegressor(16).compute_output_shape((None, 8, 8, 4))
        (None, 8, 8, 16)

    Reference:
        Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, arXiv:2012.03236, section 3.
        Differs: nothing.
    """

    def __init__(self, filters: int, *, hidden_filters: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        owner = "BottleneckRegressor"
        self.filters = _checks.integer(owner, "filters", filters, low=1)
        self.hidden_filters = _checks.integer(owner, "hidden_filters", hidden_filters or 2 * filters, low=1)
        options = {"use_bias": False, "padding": "same", "dtype": self.dtype_policy}
        self.convolutions = [
            keras.layers.Conv2D(width, kernel, name=f"convolution_{index}", **options)
            for index, (width, kernel) in enumerate(
                ((self.hidden_filters, 1), (self.hidden_filters, 3), (self.filters, 1))
            )
        ]
        self.norms = [normalization(self.dtype_policy, f"normalization_{index}") for index in range(2)]

    def build(self, input_shape: Shape) -> None:
        """Create the variables."""
        shape = _build_chain(self.convolutions, tuple(input_shape))
        for norm in self.norms:
            norm.build((*shape[:-1], self.hidden_filters))
        super().build(input_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Return (batch, height, width, filters)."""
        outputs = inputs
        for convolution, norm in zip(self.convolutions[:2], self.norms, strict=True):
            outputs = ops.relu(norm(convolution(outputs), training=training))
        return self.convolutions[2](outputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the output."""
        return (*tuple(input_shape[:-1]), self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "filters": self.filters, "hidden_filters": self.hidden_filters}
