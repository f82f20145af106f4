"""Base of the adapters: small float32 layers, channels-last."""

from __future__ import annotations

from typing import Any

import keras


class Adapter(keras.layers.Layer):
    """Base of the adapters: a layer that computes in float32, whatever the global dtype policy.

    Args:
        dtype: as in ``keras.layers.Layer``; float32 by default.
        **kwargs: as in ``keras.layers.Layer``.
    """

    def __init__(self, *, dtype: Any = "float32", **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)
