"""A decision tree of scikit-learn as a Keras layer, for serving."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._typing import Tensor


def float32_at_most(values: Any) -> np.ndarray:
    """Return the largest float32 not above each float64, which gives the same comparisons with float32 values."""
    wide = np.asarray(values, "float64")
    narrow = wide.astype("float32")
    return np.where(narrow > wide, np.nextafter(narrow, np.float32("-inf")), narrow).astype("float32")


@keras.saving.register_keras_serializable(package="keras_distill")
class HardTree(keras.layers.Layer):
    """A decision tree with one column and one threshold per node; returns the logits of a leaf.

    ``Surrogate.to_model`` creates it; it has no trainable weights.

    Args:
        feature: (nodes,), the column that each node compares; -1 for a leaf.
        threshold: (nodes,), rows with a value up to this threshold go left.
        left: (nodes,), index of the left child.
        right: (nodes,), index of the right child.
        logits: (nodes, classes), logits of each node.
        **kwargs: as for ``keras.layers.Layer``; float32 by default.

    Example:
        >>> tree = HardTree([0, -1, -1], [0.5, 0, 0], [1, 1, 2], [2, 1, 2], [[0, 0], [1, 0], [0, 1]])
        >>> np.asarray(tree(np.array([[0.4], [0.6]]))).argmax(-1)
        array([0, 1])
    """

    def __init__(self, feature: Any, threshold: Any, left: Any, right: Any, logits: Tensor, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "trainable": False, **kwargs})
        self._arrays = {
            "feature": np.asarray(feature, "int32"),
            "threshold": float32_at_most(threshold),
            "left": np.asarray(left, "int32"),
            "right": np.asarray(right, "int32"),
            "logits": np.asarray(logits, "float32"),
        }
        self.depth = self._depth()

    def _depth(self) -> int:
        depth, here = 0, [0]
        while True:
            inner = [node for node in here if self._arrays["feature"][node] >= 0]
            if not inner:
                return depth
            here = [int(self._arrays[side][node]) for node in inner for side in ("left", "right")]
            depth += 1

    def call(self, x: Any) -> Any:
        """Return the logits of each row's leaf, (rows, classes)."""
        feature, threshold, left, right, logits = (ops.convert_to_tensor(each) for each in self._arrays.values())
        node = ops.zeros_like(x[:, 0], dtype="int32")
        for _ in range(self.depth):
            column = ops.take(feature, node)
            value = ops.take_along_axis(x, ops.expand_dims(ops.maximum(column, 0), -1), axis=-1)[:, 0]
            below = ops.where(value <= ops.take(threshold, node), ops.take(left, node), ops.take(right, node))
            node = ops.where(column >= 0, below, node)
        return ops.take(logits, node, axis=0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return (rows, classes)."""
        return (input_shape[0], self._arrays["logits"].shape[1])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), **{name: value.tolist() for name, value in self._arrays.items()}}
