"""The adapter from queries and keys to the attention scores of a transformer layer."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.adapters._base import Adapter
from keras_distill.adapters._projections import Shape


@keras.saving.register_keras_serializable(package="keras_distill")
class AttentionScores(Adapter):
    """Attention scores before the softmax, computed from queries and keys, for ``losses.AttentionMaps``.

    Tap queries and keys of ``keras.layers.MultiHeadAttention`` (``"block/self_attention_layer/query"`` and
    ``".../key"``), even if the layer itself never materialises the scores. It has no weights; use it on both sides of
    a term.

    Formula: scores_hij = query_ih . key_jh / sqrt(head size).

    Args:
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> import numpy as np
        >>> queries, keys = np.ones((1, 3, 2, 4), "float32"), np.ones((1, 3, 2, 4), "float32")
        >>> AttentionScores()([queries, keys]).numpy()[0, :, 0, 0]  # 4 / sqrt(4), for each head
        array([2., 2.], dtype=float32)

    Reference:
        Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, eq. 1.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape: list[Shape]) -> None:
        """Check the two shapes."""
        self.compute_output_shape(input_shape)
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        """Return (batch, heads, queries, keys)."""
        queries, keys = inputs
        return ops.einsum("bqhd,bkhd->bhqk", queries, keys) / queries.shape[-1] ** 0.5

    def compute_mask(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """Return the mask of the tokens."""
        return mask[0] if isinstance(mask, (list, tuple)) else mask

    def compute_output_shape(self, input_shape: list[Shape]) -> Shape:
        """Return (batch, heads, queries, keys)."""
        shapes = [tuple(shape) for shape in input_shape if isinstance(shape, (list, tuple))]
        if len(shapes) != 2 or any(len(shape) != 4 for shape in shapes) or shapes[0][2:] != shapes[1][2:]:
            expected = "[queries, keys], each (batch, tokens, heads, head size)"
            raise _checks.error("AttentionScores", expected, f"shapes {input_shape}")
        (batch, queries, heads, _), (_, keys, _, _) = shapes
        return (batch, heads, queries, keys)
