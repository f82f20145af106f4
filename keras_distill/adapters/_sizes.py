"""Adapters that change the number of positions: pooling, resizing, interpolation."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.adapters._base import Adapter
from keras_distill.adapters._projections import Shape, two
from keras_distill.losses._features import maps


@keras.saving.register_keras_serializable(package="keras_distill")
class AdaptiveAveragePool(Adapter):
    """Average pooling of maps to a given size from any larger size.

    Cell i of n covers rows floor(i * height / n) to ceil((i + 1) * height / n) - 1; windows overlap if n does not
    divide the height. A smaller student map keeps its size: the losses then pool the teacher's.

    Args:
        size: (height, width), >= 1.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> import numpy as np
        >>> pool = AdaptiveAveragePool((1, 2))
        >>> pool(np.arange(3.0).reshape(1, 1, 3, 1)).numpy().ravel()  # windows (0, 1) and (1, 2)
        array([0.5, 1.5], dtype=float32)
    """

    def __init__(self, size: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = two("AdaptiveAveragePool", size)

    def _target(self, shape: Shape) -> tuple[int | None, ...]:
        return tuple(
            None if length is not None and length <= wanted else wanted
            for length, wanted in zip(shape[1:3], self.size, strict=True)
        )

    def call(self, inputs: Tensor) -> Tensor:
        """Return the pooled map."""
        return maps.pool(inputs, self._target(tuple(inputs.shape)))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the output."""
        target = self._target(tuple(input_shape))
        size = (length if wanted is None else wanted for length, wanted in zip(input_shape[1:3], target, strict=True))
        return (input_shape[0], *size, input_shape[3])

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "size": list(self.size)}


@keras.saving.register_keras_serializable(package="keras_distill")
class Resize(Adapter):
    """Interpolation of maps to a given size, larger or smaller.

    Prefer ``AdaptiveAveragePool`` to shrink a map. Enlarging a student's map asks for detail that it does not have.

    Args:
        size: (height, width), >= 1.
        interpolation: "bilinear" or "nearest".
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> Resize((8, 8)).compute_output_shape((None, 4, 4, 3))
        (None, 8, 8, 3)
    """

    def __init__(self, size: tuple[int, int], interpolation: str = "bilinear", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = two("Resize", size)
        self.interpolation = _checks.choice("Resize", "interpolation", interpolation, ("bilinear", "nearest"))

    def call(self, inputs: Tensor) -> Tensor:
        """Return the resized map."""
        return ops.image.resize(inputs, self.size, interpolation=self.interpolation, data_format="channels_last")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the output."""
        return (input_shape[0], *self.size, input_shape[3])

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "size": list(self.size), "interpolation": self.interpolation}


@keras.saving.register_keras_serializable(package="keras_distill")
class SequenceInterpolation(Adapter):
    """Linear interpolation of a sequence to another length: (batch, time, channels) to (batch, length, channels).

    New step i is interpolated at position (i + 1/2) * time / length - 1/2 of the old sequence. Masked steps are left
    out; a new step is masked if all steps it depends on are.

    Args:
        length: >= 1, the teacher's number of steps.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> import numpy as np
        >>> layer = SequenceInterpolation(2)
        >>> layer(np.array([[[0.0], [1.0], [2.0], [3.0]]])).numpy().ravel()
        array([0.5, 2.5], dtype=float32)
    """

    def __init__(self, length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length = _checks.integer("SequenceInterpolation", "length", length, low=1)
        self.supports_masking = True

    def _weights(self, time: int | None) -> np.ndarray:
        if time is None:
            raise _checks.error("SequenceInterpolation", "sequences of known length", "an unknown one")
        place = np.clip((np.arange(self.length) + 0.5) * time / self.length - 0.5, 0, time - 1)
        return np.maximum(1.0 - np.abs(place[:, None] - np.arange(time)), 0.0).astype("float32")

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """Return (batch, length, channels)."""
        weights = ops.convert_to_tensor(self._weights(inputs.shape[1]), dtype=inputs.dtype)
        if mask is None:
            return ops.einsum("btc,lt->blc", inputs, weights)
        seen = ops.cast(mask, inputs.dtype)
        total = ops.einsum("bt,lt->bl", seen, weights)[..., None]
        outputs = ops.einsum("btc,lt->blc", ops.where(mask[..., None], inputs, 0), weights)
        return ops.where(total > 0, outputs / ops.where(total > 0, total, 1), 0)

    def compute_mask(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """Return the mask of the new steps."""
        if mask is None:
            return None
        return ops.einsum("bt,lt->bl", ops.cast(mask, "float32"), self._weights(mask.shape[1])) > 0

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the output."""
        return (input_shape[0], self.length, input_shape[2])

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "length": self.length}


@keras.saving.register_keras_serializable(package="keras_distill")
class AttentionPool(Adapter):
    """Weighted mean over the positions of a sequence or map, with learned weights, followed by a linear map.

    Formula: y = W * sum_i a_i x_i + b, a = softmax_i(query . x_i / sqrt(channels)); masked positions have weight 0. It
    starts as the plain mean (query = 0).

    Args:
        units: >= 1, the teacher's width; None leaves out the linear map.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> AttentionPool(16).compute_output_shape((None, 8, 8, 4))
        (None, 16)
    """

    def __init__(self, units: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = None if units is None else _checks.integer("AttentionPool", "units", units, low=1)
        self.linear = None
        if self.units is not None:
            self.linear = keras.layers.Dense(self.units, dtype=self.dtype_policy, name="linear")

    def build(self, input_shape: Shape) -> None:
        """Create the variables."""
        self.query = self.add_weight(name="query", shape=(input_shape[-1],), initializer="zeros")
        if self.linear is not None:
            self.linear.build((input_shape[0], input_shape[-1]))
        super().build(input_shape)

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """Return (batch, units)."""
        places = maps.positions(inputs)
        scores = ops.matmul(places, self.query[:, None])[..., 0] / (inputs.shape[-1] ** 0.5)
        if mask is not None:
            mask = ops.reshape(ops.cast(mask, "bool"), ops.shape(scores))
            scores = ops.where(mask, scores, -1e9)
            places = ops.where(mask[..., None], places, 0)
        outputs = ops.einsum("bi,bic->bc", ops.softmax(scores, axis=-1), places)
        return outputs if self.linear is None else self.linear(outputs)

    def compute_mask(self, inputs: Tensor, mask: Tensor = None) -> None:
        """Return None, because the output has no positions."""
        return None

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the output."""
        return (input_shape[0], input_shape[-1] if self.units is None else self.units)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "units": self.units}
