"""A soft tree for serving: the answer and the path that explains it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill.students._soft_tree import _maths
from keras_distill.students._soft_tree._model import SoftDecisionTree
from keras_distill.students._soft_tree._paths import nodes_of


@keras.saving.register_keras_serializable(package="keras_distill")
class TreeWithPath(keras.layers.Layer):
    """The outputs of a tree with the path that explains them, for ``with_path``.

    Args:
        tree: a built ``SoftDecisionTree``.
        **kwargs: as for ``keras.layers.Layer``.
    """

    def __init__(self, tree: SoftDecisionTree, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.tree = tree

    def build(self, input_shape: Any) -> None:
        """Create the tree's weights if it has none yet."""
        if not self.tree.built:
            self.tree.build(input_shape)
        self.built = True

    def call(self, x: Any) -> dict[str, Any]:
        """Return ``logits``, ``leaf``, ``nodes``, ``directions`` and ``probabilities``."""
        tree = self.tree
        scores = tree.scores(x)
        log_paths = _maths.path_log_probabilities(scores, tree.depth)[-1]
        log_leaves = ops.log_softmax(tree.leaves, axis=-1)
        leaf = ops.cast(ops.argmax(log_paths, axis=-1), "int32")
        nodes, directions = (ops.stack(each, axis=-1) for each in nodes_of(leaf, tree.depth))
        right = ops.take_along_axis(ops.sigmoid(scores), nodes, axis=-1)
        if tree.inference == "mean":
            logits = _maths.mixture(log_paths, log_leaves)
        else:
            logits = ops.take(log_leaves, leaf, axis=0)
        return {
            "logits": logits,
            "leaf": ops.expand_dims(leaf, -1),
            "nodes": nodes,
            "directions": directions,
            "probabilities": ops.where(directions > 0, right, 1.0 - right),
        }

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "tree": keras.saving.serialize_keras_object(self.tree)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TreeWithPath:
        """Rebuild the layer from ``get_config``."""
        return cls(**{**config, "tree": keras.saving.deserialize_keras_object(config["tree"])})
