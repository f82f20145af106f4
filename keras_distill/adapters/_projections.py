"""Adapters that change the channels: linear maps, convolutions, embeddings."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.adapters._base import Adapter
from keras_distill.losses._features import maps

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="keras_distill")
class Dense(keras.layers.Dense):
    """Linear map of the last axis, for vectors and sequences: ``keras.layers.Dense`` in float32.

    Args:
        units: >= 1, the teacher's channels.
        dtype: float32 by default, whatever the global policy.
        **kwargs: as in ``keras.layers.Dense``.

    Example:
        >>> Dense(3).compute_output_shape((None, 7, 2))
        (None, 7, 3)
    """

    def __init__(self, units: int, *, dtype: Any = "float32", **kwargs: Any) -> None:
        super().__init__(_checks.integer("Dense", "units", units, low=1), dtype=dtype, **kwargs)


@keras.saving.register_keras_serializable(package="keras_distill")
class Conv1x1(keras.layers.Conv2D):
    """Convolution with a 1x1 kernel in float32, for maps (batch, height, width, channels).

    Args:
        filters: >= 1, the teacher's channels.
        use_bias: whether a bias is added.
        kernel_initializer: as in ``keras.layers.Conv2D``.
        bias_initializer: as in ``keras.layers.Conv2D``.
        kernel_regularizer: as in ``keras.layers.Conv2D``.
        dtype: float32 by default, whatever the global policy.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> Conv1x1(16).compute_output_shape((None, 8, 8, 4))
        (None, 8, 8, 16)
    """

    def __init__(
        self,
        filters: int,
        *,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        dtype: Any = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            _checks.integer("Conv1x1", "filters", filters, low=1),
            1,
            data_format="channels_last",
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            dtype=dtype,
            **kwargs,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        kept = {
            "name", "trainable", "dtype", "filters", "use_bias",
            "kernel_initializer", "bias_initializer", "kernel_regularizer",
        }  # fmt: skip
        return {key: value for key, value in super().get_config().items() if key in kept}


@keras.saving.register_keras_serializable(package="keras_distill")
class ConvRegressor(Adapter):
    """FitNet's regressor as in public codes: a convolution to the teacher's size, batch norm, ReLU.

    It is a 3x3 convolution of stride 2 if the student's map is twice the teacher's, a transposed 4x4 convolution if it
    is half, and otherwise a valid convolution with the kernel that gives the size. ``Conv1x1`` is an adequate default;
    with the ReLU, negative teacher activations cannot be matched.

    Args:
        filters: >= 1, the teacher's channels.
        size: (height, width) of the teacher's map.
        relu: whether the output passes a ReLU; False for teacher features before their activation.
        **kwargs: as in ``keras.layers.Layer``.

    Raises:
        ValueError: at build, if no such convolution maps the student's size to ``size``.

    Example:
        >>> ConvRegressor(16, (4, 4)).compute_output_shape((None, 8, 8, 4))
        (None, 4, 4, 16)

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.
        Differs: batch norm and ReLU, as in RepDistiller; no bias, which batch norm would cancel.
    """

    def __init__(self, filters: int, size: tuple[int, int], *, relu: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = _checks.integer("ConvRegressor", "filters", filters, low=1)
        self.size = two("ConvRegressor", size)
        self.relu = bool(relu)

    def build(self, input_shape: Shape) -> None:
        """Choose the convolution from the student's shape and create its variables."""
        here = tuple(input_shape[1:3])
        options = {"use_bias": False, "dtype": self.dtype_policy, "name": "convolution"}
        self.padding = None
        shape = tuple(input_shape)
        if here == tuple(2 * length for length in self.size):
            # Zeros on all sides; "same" would put them on two sides only.
            self.padding = keras.layers.ZeroPadding2D(1, dtype=self.dtype_policy)
            self.convolution = keras.layers.Conv2D(self.filters, 3, strides=2, **options)
            shape = self.padding.compute_output_shape(shape)
        elif tuple(2 * (length or 0) for length in here) == self.size:
            self.convolution = keras.layers.Conv2DTranspose(self.filters, 4, strides=2, padding="same", **options)
        elif all(length is not None and length >= wanted for length, wanted in zip(here, self.size, strict=True)):
            kernel = tuple(1 + (length or 0) - wanted for length, wanted in zip(here, self.size, strict=True))
            self.convolution = keras.layers.Conv2D(self.filters, kernel, **options)
        else:
            expected = f"a student map of twice, half or more than {self.size}"
            raise _checks.error(
                "ConvRegressor", expected, f"{here}", "Use adapters.Conv1x1: the loss pools the teacher"
            )
        self.normalization = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=self.dtype_policy)
        self.convolution.build(shape)
        self.normalization.build((*tuple(input_shape[:1]), *self.size, self.filters))
        super().build(input_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Return (batch, *size, filters)."""
        outputs = inputs if self.padding is None else self.padding(inputs)
        outputs = self.normalization(self.convolution(outputs), training=training)
        return ops.relu(outputs) if self.relu else outputs

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the output."""
        return (input_shape[0], *self.size, self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "filters": self.filters, "size": list(self.size), "relu": self.relu}


@keras.saving.register_keras_serializable(package="keras_distill")
class Embedding(Adapter):
    """Linear embedding of flattened features, scaled to length 1, for CC and CRD.

    Args:
        units: >= 1, the width of the embedding, the same for teacher and student.
        normalize: False does not scale the length.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> Embedding(128).compute_output_shape((None, 4, 4, 64))
        (None, 128)

    Reference:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699, section 4.
        Differs: nothing.
    """

    def __init__(self, units: int = 128, *, normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = _checks.integer("Embedding", "units", units, low=1)
        self.normalize = bool(normalize)
        self.linear = keras.layers.Dense(self.units, dtype=self.dtype_policy, name="linear")

    def build(self, input_shape: Shape) -> None:
        """Create the variables."""
        if None in input_shape[1:]:
            raise _checks.error("Embedding", "features of known shape", f"{tuple(input_shape)}", "Pool them first")
        width = 1
        for length in input_shape[1:]:
            width *= length or 1
        self.linear.build((input_shape[0], width))
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        """Return (batch, units)."""
        outputs = self.linear(maps.flat(inputs))
        return maps.unit(outputs) if self.normalize else outputs

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the output."""
        return (input_shape[0], self.units)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "units": self.units, "normalize": self.normalize}


def two(owner: str, size: Any) -> tuple[int, int]:
    """Return a size as (height, width), or raise if it is not one."""
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise _checks.error(owner, "size to be (height, width)", size)
    height, width = (_checks.integer(owner, "size", each, low=1) for each in size)
    return height, width
