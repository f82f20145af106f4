"""``SoftDecisionTree``: a Keras model that is a full binary tree of linear decisions."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import choice, error, integer, number
from keras_distill._typing import Tensor
from keras_distill.students._soft_tree import _maths
from keras_distill.students._soft_tree._paths import TreePaths, nodes_of
from keras_distill.students._soft_tree._rules import Rule, rules_of

_NAME = "SoftDecisionTree"
_DEEPEST = 12


@keras.saving.register_keras_serializable(package="keras_distill")
class SoftDecisionTree(keras.Model):
    """A tree of linear decisions whose answers are each explained by one path of filters (soft decision tree).

    Choose it where decisions must be explained: each answer is that of one leaf, reached through ``depth`` filters that
    can be inspected. It is weaker than a network of the same size, and gains most from a teacher when labels are few.
    Its outputs are log-probabilities, so it trains in ``Distiller`` with ``LogitsDistillation`` like any student, or in
    a plain ``fit`` with a cross-entropy from logits.

    Formula: node i sends an example right with p_i = sigmoid(b_i * (w_i . x + c_i)), with a learned inverse
    temperature b_i > 0; leaf l is reached with P_l, the product along its path, and answers Q_l = softmax(leaves_l).
    ``loss="leafwise"`` minimises sum_l P_l * CE(target, Q_l) and ``"mixture"`` CE(target, sum_l P_l Q_l), which is
    never larger. A penalty keeps the two sides of node i in balance: -sum_i lambda * 2**-level_i *
    (log a_i + log(1 - a_i)) / 2, where a_i is the moving average of the share that goes right, with a window of
    2**level_i batches.

    In training the output is what makes a cross-entropy from logits, with targets that sum to 1, equal to the chosen
    loss: for ``"leafwise"`` the normalised mean of the leaves' log-probabilities, whose normaliser is an
    ``add_loss`` term. Sample weights scale the cross-entropy, but neither that normaliser nor the penalty: use
    ``"mixture"`` where weights matter. In a ``Distiller`` a leafwise tree therefore expects
    ``LogitsDistillation(temperature=1.0)`` and weights that sum to 1, as the defaults do.

    Args:
        depth: 1 to 12, levels of decisions; there are ``2**depth`` leaves.
        classes: >= 2, number of classes.
        loss: ``"leafwise"`` (the paper's, for single-leaf answers) or ``"mixture"``.
        inference: ``"greatest_path"`` (the answer of the leaf with the greatest P_l, explained by its path) or
            ``"mean"`` (of all leaves, weighted by P_l; a little more accurate, but not explained by one path).
        penalty: >= 0, lambda at the root; 0 turns the balance penalty off.
        inverse_temperature: > 0, initial b_i.
        learn_inverse_temperature: whether each node learns its own inverse temperature.
        name: name of the model.
        **kwargs: as for ``keras.Model``; float32 unless ``dtype`` says otherwise.

    Raises:
        ValueError: if depth is not 1 to 12, there are fewer than two classes, or another argument does not fit.

    Example:
        >>> import numpy as np
        >>> tree = SoftDecisionTree(depth=2, classes=3)
        >>> logits = tree(np.ones((4, 5), "float32"))
        >>> logits.shape, len(tree.explain(np.ones((1, 5)))[0].nodes)
        (TensorShape([4, 3]), 2)

    Reference:
        Frosst, Hinton, "Distilling a Neural Network Into a Soft Decision Tree", 2017, arXiv:1711.09784.
        Differs: the mixture and the mean are additions; windows are 2**level batches.
    """

    def __init__(
        self,
        depth: int,
        classes: int,
        loss: str = "leafwise",
        inference: str = "greatest_path",
        penalty: float = 0.1,
        inverse_temperature: float = 1.0,
        learn_inverse_temperature: bool = True,
        name: str = "soft_decision_tree",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **{"dtype": "float32", **kwargs})
        if integer(_NAME, "depth", depth, low=1, advice="A tree of depth 1 has two leaves") > _DEEPEST:
            raise error(_NAME, f"depth <= {_DEEPEST}", depth, f"A tree of depth {depth} has {2**depth} leaves")
        self.depth = int(depth)
        self.classes = integer(_NAME, "classes", classes, low=2, advice="A single class leaves nothing to decide")
        self.tree_loss = choice(_NAME, "loss", loss, _maths.LOSSES)
        self.inference = choice(_NAME, "inference", inference, ("greatest_path", "mean"))
        self.penalty = number(_NAME, "penalty", penalty, low=0)
        self.inverse_temperature = number(_NAME, "inverse_temperature", inverse_temperature, above=0)
        self.learn_inverse_temperature = bool(learn_inverse_temperature)

    @property
    def num_nodes(self) -> int:
        """Number of inner nodes."""
        return 2**self.depth - 1

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of this shape, (batch, ...)."""
        sizes = tuple(input_shape[1:]) if not isinstance(input_shape, dict) else (None,)
        if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
            advice = "Concatenate several inputs, and turn texts into vectors of one length first"
            raise error(_NAME, "one input of known size", str(input_shape), advice)
        self.sizes = sizes
        nodes, features = self.num_nodes, math.prod(sizes)
        normal = keras.initializers.RandomNormal(stddev=1.0 / math.sqrt(features))
        self.kernel = self.add_weight(name="kernel", shape=(nodes, features), initializer=normal)
        self.bias = self.add_weight(name="bias", shape=(nodes,), initializer="zeros")
        self.log_inverse_temperature = self.add_weight(
            name="log_inverse_temperature",
            shape=(nodes,),
            initializer=keras.initializers.Constant(math.log(self.inverse_temperature)),
            trainable=self.learn_inverse_temperature,
        )
        self.leaves = self.add_weight(
            name="leaves", shape=(2**self.depth, self.classes), initializer=keras.initializers.RandomNormal(stddev=0.01)
        )
        settings = {"shape": (nodes,), "initializer": "zeros", "trainable": False, "aggregation": "mean"}
        self.went_right = self.add_weight(name="went_right", **settings)
        self.reached = self.add_weight(name="reached", **settings)
        level = np.floor(np.log2(np.arange(nodes) + 1.0))
        self._decay = (1.0 - 2.0**-level).astype("float32")
        self._penalties = (self.penalty * 2.0**-level).astype("float32")
        self.built = True

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return (batch, classes)."""
        return (input_shape[0], self.classes)

    def scores(self, x: Any) -> Any:
        """Return the log-odds of the right branch of each inner node, (batch, nodes)."""
        if keras.backend.standardize_dtype(getattr(x, "dtype", "float32")) == "string":
            advice = "Put a TextVectorization(output_mode='multi_hot') layer or an encoder before it"
            raise error(_NAME, "numbers", "texts", advice)
        flat = ops.reshape(ops.cast(x, self.compute_dtype), (-1, self.kernel.shape[1]))
        linear = ops.matmul(flat, ops.transpose(self.kernel)) + self.bias
        return ops.exp(ops.convert_to_tensor(self.log_inverse_temperature)) * linear

    def call(self, x: Any, training: bool = False) -> Any:
        """Return log-probabilities, (batch, classes)."""
        scores = self.scores(x)
        levels = _maths.path_log_probabilities(scores, self.depth)
        log_leaves = ops.log_softmax(self.leaves, axis=-1)
        if not training:
            if self.inference == "mean":
                return _maths.mixture(levels[-1], log_leaves)
            return ops.take(log_leaves, ops.argmax(levels[-1], axis=-1), axis=0)
        self._keep_balance(scores, levels)
        if self.tree_loss == "mixture":
            return _maths.mixture(levels[-1], log_leaves)
        answers = _maths.leafwise(levels[-1], log_leaves)
        normaliser = ops.logsumexp(answers, axis=-1, keepdims=True)
        self.add_loss(-ops.mean(normaliser))
        return answers - normaliser

    def _keep_balance(self, scores: Tensor, levels: list[Any]) -> None:
        right, reached = _maths.right_shares(scores, levels)
        decay = ops.convert_to_tensor(self._decay)
        right = decay * self.went_right + (1.0 - decay) * right
        reached = decay * self.reached + (1.0 - decay) * reached
        self.went_right.assign(ops.stop_gradient(right))
        self.reached.assign(ops.stop_gradient(reached))
        if self.penalty:
            shares = right / ops.maximum(reached, 1e-12)
            self.add_loss(_maths.balance_penalty(shares, ops.convert_to_tensor(self._penalties)))

    # ------------------------------------------------------------------ what it says of itself

    def path_probabilities(self, x: Any) -> Any:
        """Return the probability of each leaf, (batch, 2**depth); rows sum to 1."""
        self._known("path_probabilities", x)
        return ops.exp(_maths.path_log_probabilities(self.scores(x), self.depth)[-1])

    @property
    def shares(self) -> np.ndarray | None:
        """Share of the training examples that reach each node, inner nodes then leaves; None before training."""
        if not self.built or not float(ops.max(self.reached)) > 0:
            return None
        right, reached = (ops.convert_to_numpy(v).astype("float64") for v in (self.went_right, self.reached))
        return self._shares(right / np.maximum(reached, 1e-12))

    def _shares(self, goes_right: np.ndarray) -> np.ndarray:
        shares = np.ones(2 ** (self.depth + 1) - 1)
        for node in range(self.num_nodes):
            shares[2 * node + 1 : 2 * node + 3] = shares[node] * np.array([1 - goes_right[node], goes_right[node]])
        return shares

    def shares_of(self, x: Any) -> np.ndarray:
        """Return the share of the examples ``x`` whose most probable path visits each node, inner nodes then leaves.

        Args:
            x: inputs, at least one.

        Returns:
            (2**(depth + 1) - 1,), 1 at the root.
        """
        leaf = self.explain(x).leaf
        counts = [np.bincount(leaf, minlength=2**self.depth) / len(leaf)]
        while len(counts[0]) > 1:
            counts.insert(0, counts[0].reshape(-1, 2).sum(axis=1))
        return np.concatenate(counts)

    def explain(self, x: Any, batch_size: int = 1024) -> TreePaths:
        """Return the most probable path of each example: nodes, directions, probabilities, filters, leaf.

        Args:
            x: inputs, (examples, ...), at least one.
            batch_size: >= 1, examples per pass.

        Returns:
            The paths; ``paths[i]`` is that of one example.

        Raises:
            ValueError: if there are no examples, they do not fit the tree, or the tree has no weights yet.
        """
        self._known("explain", x)
        integer(f"{_NAME}.explain", "batch_size", batch_size, low=1)
        x = np.asarray(x)
        parts = [ops.convert_to_numpy(self.scores(x[i : i + batch_size])) for i in range(0, len(x), batch_size)]
        scores = np.concatenate(parts)
        paths = ops.convert_to_numpy(_maths.path_log_probabilities(scores, self.depth)[-1])
        leaf = paths.argmax(-1)
        nodes, directions = (np.stack(each, axis=-1) for each in nodes_of(leaf, self.depth))
        taken = np.take_along_axis(scores, nodes, axis=-1) * np.where(directions, 1.0, -1.0)
        kernel = ops.convert_to_numpy(ops.convert_to_tensor(self.kernel)).reshape(-1, *self.sizes)
        return TreePaths(
            nodes=nodes,
            directions=directions,
            probabilities=np.exp(-np.logaddexp(0.0, -taken.astype("float64"))),
            filters=kernel[nodes],
            leaf=leaf,
            path_probability=np.exp(paths.max(-1).astype("float64")),
            distribution=self.leaf_distributions()[leaf],
        )

    def leaf_distributions(self) -> np.ndarray:
        """Return the class probabilities of each leaf, (2**depth, classes)."""
        self._known("leaf_distributions")
        return ops.convert_to_numpy(ops.softmax(ops.convert_to_tensor(self.leaves), axis=-1))

    def to_rules(
        self,
        threshold: float = 0.1,
        feature_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        data: Any = None,
    ) -> list[Rule]:
        """Write the tree as one rule per leaf, for tables: weighted sums of columns compared with a bound.

        Args:
            threshold: 0 to 1; columns whose weight is below this fraction of the node's largest are left out of the
                text. 0 writes every column, and the rules are then exactly the tree's greedy path.
            feature_names: one per column.
            class_names: one per class.
            data: inputs for counting each rule's share; by default, the shares of the training examples.

        Returns:
            The rules, leaves from left to right; ``str(rule)`` is the sentence.

        Raises:
            ValueError: if the inputs are not a table, the threshold is out of range, or a list of names has another
                length.
        """
        self._known("to_rules")
        return rules_of(self, threshold, feature_names, class_names, data)

    def draw(
        self,
        path: str | os.PathLike[str],
        data: Any = None,
        levels: int | None = None,
        feature_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> pathlib.Path:
        """Draw the tree to a file: the filter of each node, the distribution of each leaf, shares of examples.

        Args:
            path: output file; the extension (``.svg``, ``.png``, ``.pdf``) sets the format.
            data: inputs for counting shares; by default, the shares of the training examples.
            levels: number of levels of filters to draw; 4 at most by default. Below the last one, the expected
                distribution of the subtree is shown instead of its leaves.
            feature_names: one per column, for tables.
            class_names: one per class.

        Returns:
            The path.

        Raises:
            ValueError: if matplotlib is missing, or an argument does not fit.
        """
        self._known("draw")
        from keras_distill.students._soft_tree._drawing import draw_tree

        return draw_tree(self, path, data, levels, feature_names, class_names)

    def picture(self, data: Any = None, levels: int | None = None) -> Any:
        """Return the arrays that ``draw`` draws, a ``TreePicture``; the arguments are those of ``draw``."""
        self._known("picture")
        from keras_distill.students._soft_tree._drawing import picture_of

        return picture_of(self, data, levels)

    @property
    def served_tasks(self) -> dict[str, str]:
        """The task of each output, for ``export.saved_model(tree.with_path(), ..., task=tree.served_tasks)``."""
        path = ("leaf", "nodes", "directions", "probabilities")
        return {"logits": "classification", **dict.fromkeys(path, "regression")}

    def with_path(self) -> keras.Model:
        """Return a model for export: log-probabilities, and the path that explains them.

        Returns:
            A Keras model with the outputs ``logits`` (batch, classes), ``leaf`` (batch, 1), ``nodes`` (batch, depth),
            ``directions`` (batch, depth) and ``probabilities`` (batch, depth), which shares this tree's weights.
        """
        self._known("with_path")
        from keras_distill.students._soft_tree._served import TreeWithPath

        inputs = keras.Input(self.sizes, name="inputs")
        outputs = TreeWithPath(self, name="path")(inputs)
        return keras.Model(inputs, outputs, name=f"{self.name}_with_path")

    def _known(self, method: str, x: Any = None) -> None:
        owner = f"{_NAME}.{method}"
        if not self.built:
            raise error(owner, "a tree with weights", "one that has not seen an input", "Train it or call it once")
        if x is None:
            return
        shape = tuple(np.shape(x))
        if not shape or not shape[0]:
            raise error(owner, "at least one example", f"inputs of shape {shape}")
        if np.asarray(x[:1]).dtype.kind in "OSU":
            raise error(owner, "numbers", "texts", "Pass what the tree was trained on")
        if shape[1:] != self.sizes:
            raise error(owner, f"inputs of shape (examples, {', '.join(map(str, self.sizes))})", str(shape))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **{key: value for key, value in super().get_config().items() if key in ("name", "trainable", "dtype")},
            "depth": self.depth,
            "classes": self.classes,
            "loss": self.tree_loss,
            "inference": self.inference,
            "penalty": self.penalty,
            "inverse_temperature": self.inverse_temperature,
            "learn_inverse_temperature": self.learn_inverse_temperature,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> SoftDecisionTree:
        """Rebuild the tree from ``get_config``."""
        config = dict(config)
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = keras.saving.deserialize_keras_object(config["dtype"])
        return cls(**config)
