"""A teacher that answers with the representative of its output's cluster."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error, integer
from keras_distill._typing import Tensor
from keras_distill.teachers._order import _Reworded

_NAME = "ClusterTargets"


@keras.saving.register_keras_serializable(package="keras_distill")
class ClusterTargets(_Reworded):
    """A teacher whose answers are clustered and replaced by their cluster's representative (cluster targets).

    Choose it for targets that a person can read as a short list: "this is one of the 7s that look like a 1". The
    outputs are encoded as square roots of their probabilities (which makes distances Hellinger's) and clustered by
    k-means; the representative of a cluster is the mean of its members' probabilities. ``ClusterTargets.fit`` finds the
    clusters. This is the package's own definition, not a published one.

    Args:
        model: a Keras model or a teacher with one output, logits.
        representatives: (clusters, classes), probabilities of each cluster; rows sum to 1.
        centers: (clusters, classes), centres among the encoded outputs; None encodes the representatives.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Raises:
        ValueError: if the teacher ends in softmax or sigmoid, or the representatives are not distributions.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("linear")])
        >>> teacher = ClusterTargets(model, representatives=[[0.9, 0.1], [0.2, 0.8]])
        >>> np.exp(teacher(np.array([[5.0, 0.0], [0.0, 0.5]])).numpy()).round(2)
        array([[0.9, 0.1],
               [0.2, 0.8]], dtype=float32)
    """

    def __init__(self, model: keras.Model, representatives: Any, centers: Any = None, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        table = np.asarray(representatives, "float64")
        if table.ndim != 2 or not len(table) or table.min() < 0 or not np.allclose(table.sum(-1), 1.0, atol=1e-4):
            got = f"an array of shape {table.shape}"
            raise error(_NAME, "representatives: (clusters, classes) probabilities whose rows sum to 1", got)
        self.representatives = table
        self.centers = np.sqrt(table) if centers is None else np.asarray(centers, "float64")
        if self.centers.shape != table.shape:
            raise error(_NAME, f"centers of shape {table.shape}", str(self.centers.shape))

    @classmethod
    def fit(cls, model: keras.Model, x: Any, clusters: int, seed: int = 0, batch_size: int = 256) -> ClusterTargets:
        """Cluster a teacher's answers to some inputs, and return the teacher that answers with the clusters.

        Args:
            model: a Keras model or a teacher with one output, logits.
            x: the inputs, an array with at least ``clusters`` examples.
            clusters: >= 1, largest number of clusters; there are fewer if the answers have fewer distinct values.
            seed: seed of the initial centres (k-means++).
            batch_size: >= 1, batch size of the predictions.

        Returns:
            The teacher.

        Raises:
            ValueError: if there are fewer examples than clusters.
        """
        owner = f"{_NAME}.fit"
        integer(owner, "clusters", clusters, low=1)
        if len(x) < clusters:
            raise error(owner, f"at least {clusters} examples", f"{len(x)}", "Ask for fewer clusters")
        logits = np.asarray(model.predict(x, batch_size=batch_size, verbose=0), "float64")
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        probabilities = probabilities.reshape(-1, probabilities.shape[-1])
        centers, group = _k_means(np.sqrt(probabilities), clusters, np.random.default_rng(seed))
        representatives = np.stack([probabilities[group == index].mean(0) for index in range(len(centers))])
        return cls(model, representatives, centers)

    def groups(self, logits: Tensor) -> Any:
        """Return the index of the cluster that each row of logits belongs to, (...,)."""
        encoded = ops.sqrt(ops.softmax(ops.cast(logits, "float32"), axis=-1))
        centers = ops.convert_to_tensor(self.centers.astype("float32"))
        near = ops.matmul(encoded, ops.transpose(centers)) - 0.5 * ops.sum(ops.square(centers), axis=-1)
        return ops.argmax(near, axis=-1)

    def reword(self, logits: Tensor) -> Any:
        """Return the logarithm of the representative of each row's cluster."""
        with np.errstate(divide="ignore"):
            table = np.log(self.representatives).astype("float32")
        return ops.take(ops.convert_to_tensor(table), self.groups(logits), axis=0)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        tables = {"representatives": self.representatives.tolist(), "centers": self.centers.tolist()}
        return {**super().get_config(), **tables}


def _k_means(points: np.ndarray, clusters: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Run Lloyd's algorithm from k-means++ centres; return the centres of non-empty clusters, and the clusters."""
    chosen = [points[rng.integers(len(points))]]
    nearest = ((points - chosen[0]) ** 2).sum(-1)
    while len(chosen) < clusters and nearest.max() > 1e-24:
        chosen.append(points[rng.choice(len(points), p=nearest / nearest.sum())])
        nearest = np.minimum(nearest, ((points - chosen[-1]) ** 2).sum(-1))
    centers = np.stack(chosen)
    group = np.full(len(points), -1)
    for _ in range(300):
        near = points @ centers.T - 0.5 * (centers**2).sum(-1)
        moved = near.argmax(-1)
        if np.array_equal(moved, group):
            break
        group = moved
        kept = np.unique(group)
        centers = np.stack([points[group == index].mean(0) for index in kept])
        group = np.searchsorted(kept, group)
    return centers, group
