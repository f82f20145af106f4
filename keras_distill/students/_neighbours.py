"""Serves two-tower models: exact nearest neighbours among many items, with scores computed in blocks."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error, integer
from keras_distill._typing import Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class NearestItems(keras.layers.Layer):
    """The k items with the greatest inner product with a query, found exactly, block by block.

    Besides the items' embeddings it needs memory for one block of scores: batch times block_size numbers.

    Args:
        num_items: >= 1.
        units: >= 1, the width of the embeddings.
        k: >= 1, at most num_items.
        block_size: >= 1, number of items scored at once.
        **kwargs: as in ``keras.layers.Layer``.

    Raises:
        ValueError: if k exceeds the number of items, or a number is below 1.

    Example:
        >>> layer = NearestItems(3, 2, k=2)
        >>> layer.assign([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
        >>> layer(np.float32([[1.0, 0.0]]))["items"].numpy().tolist()
        [[2, 0]]
    """

    def __init__(self, num_items: int, units: int, k: int = 10, block_size: int = 65536, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        owner = "NearestItems"
        self.num_items = integer(owner, "num_items", num_items, low=1)
        self.units = integer(owner, "units", units, low=1)
        self.k = integer(owner, "k", k, low=1)
        self.block_size = integer(owner, "block_size", block_size, low=1)
        if self.k > self.num_items:
            raise error(owner, f"k of at most {self.num_items} items", self.k)
        self.embeddings = self.add_weight(
            shape=(self.num_items, self.units), initializer="zeros", trainable=False, name="embeddings"
        )

    def assign(self, embeddings: Any) -> None:
        """Set the items' embeddings, (num_items, units).

        Raises:
            ValueError: if the shape does not fit, or a number is not finite.
        """
        embeddings = np.asarray(embeddings, "float32")
        if embeddings.shape != (self.num_items, self.units):
            raise error("NearestItems", f"embeddings of shape {(self.num_items, self.units)}", embeddings.shape)
        if not np.isfinite(embeddings).all():
            raise error("NearestItems", "finite embeddings", "NaN or infinity")
        self.embeddings.assign(embeddings)

    def call(self, queries: Tensor) -> dict[str, Any]:
        """Return "scores" (batch, k), descending, and "items" (batch, k), int32; ties go to the smaller index."""
        best, index = None, None
        for start in range(0, self.num_items, self.block_size):
            stop = min(start + self.block_size, self.num_items)
            scores = ops.matmul(queries, ops.transpose(self.embeddings[start:stop]))
            top, place = ops.top_k(scores, min(self.k, stop - start))
            place = ops.cast(place, "int32") + start
            if best is not None:
                top, place = ops.concatenate([best, top], axis=-1), ops.concatenate([index, place], axis=-1)
                top, chosen = ops.top_k(top, min(self.k, top.shape[-1]))
                place = ops.take_along_axis(place, chosen, axis=-1)
            best, index = top, place
        return {"scores": best, "items": index}

    def compute_output_shape(self, input_shape: Any) -> dict[str, Any]:
        """Return the shapes of the outputs."""
        return {"scores": (input_shape[0], self.k), "items": (input_shape[0], self.k)}

    def compute_output_spec(self, queries: Tensor) -> dict[str, Any]:
        """Return the outputs' shapes and dtypes."""
        shape = (queries.shape[0], self.k)
        return {"scores": keras.KerasTensor(shape, queries.dtype), "items": keras.KerasTensor(shape, "int32")}

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs."""
        names = ("num_items", "units", "k", "block_size")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def retriever(query_tower: keras.Model, item_embeddings: Any, *, k: int = 10, block_size: int = 65536) -> keras.Model:
    """Put exact retrieval behind a query tower: one Keras model from a query to its k best items.

    It is saved, exported and served like any other (``export.saved_model``); the items' embeddings are part of it.

    Args:
        query_tower: a model with output (batch, units), such as the user tower of a distilled two-tower student.
        item_embeddings: (items, units), computed once by the other tower.
        k: >= 1, number of items to return.
        block_size: >= 1; see ``NearestItems``.

    Returns:
        A model with outputs {"scores": (batch, k), "items": (batch, k)}.

    Raises:
        ValueError: if the widths differ, k exceeds the number of items, or an embedding is not finite.

    Example:
        >>> tower = keras.Sequential([keras.Input((2,)), keras.layers.Identity()])
        >>> model = retriever(tower, [[1.0, 0.0], [0.0, 1.0]], k=1)
        >>> int(model(np.float32([[0.0, 3.0]]))["items"][0, 0])
        1
    """
    item_embeddings = np.asarray(item_embeddings, "float32")
    width = query_tower.outputs[0].shape[-1]
    if item_embeddings.ndim != 2 or item_embeddings.shape[1] != width:
        raise error("retriever", f"item_embeddings of shape (items, {width})", item_embeddings.shape)
    nearest = NearestItems(len(item_embeddings), width, k=k, block_size=block_size)
    nearest.assign(item_embeddings)
    inputs = query_tower.inputs[0] if len(query_tower.inputs) == 1 else query_tower.inputs
    return keras.Model(inputs, nearest(query_tower.outputs[0]), name=f"{query_tower.name}_retriever")
