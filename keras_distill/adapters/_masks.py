"""A layer that restores the padding mask of positions."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill._checks import error, integer
from keras_distill._typing import Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class WithMask(keras.layers.Layer):
    """Returns its first input with the padding mask of its second, and zeros where that mask is False.

    Put it after convolutions over frames or tokens: Keras' convolutions and paddings drop the mask, and so does a sum
    with an unmasked tensor. Losses then count the padding, and a teacher's frames do not match the student's. Before a
    convolution it also keeps the padding from leaking into real frames.

    Args:
        stride: >= 1, the factor by which the first input has fewer positions than the second.
        **kwargs: as for ``keras.layers.Layer``.

    Call:
        [x, masked]: x (batch, positions, ...), and a tensor (batch, stride * positions, ...) that still has its mask.
        Returns x, with the mask of every ``stride``-th position. Without a mask x is returned unchanged.

    Raises:
        ValueError: if ``stride`` is out of bounds, or the layer is not called with two tensors.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import adapters
        >>> frames = keras.layers.Masking()(np.array([[[1.0], [2.0], [0.0]]], "float32"))
        >>> heard = adapters.WithMask()([keras.layers.Conv1D(2, 3, padding="same")(frames), frames])
        >>> heard._keras_mask.numpy().tolist()
        [[True, True, False]]
    """

    def __init__(self, stride: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stride = integer(type(self).__name__, "stride", stride, low=1)
        self.supports_masking = True

    def call(self, inputs: list[Tensor], mask: Any = None) -> Tensor:
        """Return the first input, 0 where it is masked."""
        if not isinstance(inputs, (list, tuple)) or len(inputs) != 2:
            raise error(type(self).__name__, "two tensors, [x, masked]", f"{len(keras.tree.flatten(inputs))}")
        kept = self.compute_mask(inputs, mask)
        if kept is None:
            return inputs[0]
        while len(kept.shape) < len(inputs[0].shape):
            kept = ops.expand_dims(kept, -1)
        return ops.where(kept, inputs[0], ops.zeros_like(inputs[0]))

    def compute_mask(self, inputs: list[Tensor], previous_mask: Any = None) -> Any:
        """Return the second input's mask, every ``stride``-th position."""
        mask = None if previous_mask is None else previous_mask[1]
        return None if mask is None else mask[:, :: self.stride]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the first input."""
        return input_shape[0]

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "stride": self.stride}
