"""Directions in a layer that represent a concept, and whether a class depends on them (TCAV)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import taps
from keras_distill._checks import error, integer, optional
from keras_distill.explain._models import explained_model, numeric_inputs, traced

_OWNER = "explain.concept_direction"


@dataclasses.dataclass(frozen=True, eq=False)
class ConceptDirection:
    """A concept in one layer of a model: whether it is decodable, and whether the class's logit increases along it.

    Args:
        direction: the unit vector of the flattened layer that points to the concept.
        accuracy: held-out accuracy of separating the concept's examples from others, 0 to 1.
        score: fraction of the class's examples whose logit increases along the direction, 0 to 1.
        floor_accuracy: mean accuracy with shuffled concept labels.
        floor_scores: the scores of these random directions.

    Example:
        >>> ConceptDirection(np.ones(1), 0.9, 1.0, 0.5, np.array([0.4, 0.6])).used
        True
    """

    direction: np.ndarray
    accuracy: float
    score: float
    floor_accuracy: float
    floor_scores: np.ndarray

    @property
    def used(self) -> bool:
        """Whether the score lies outside the range of the random directions."""
        return bool(self.score > self.floor_scores.max() or self.score < self.floor_scores.min())


def concept_direction(
    model: Any,
    layer_name: str,
    concept: Any,
    others: Any,
    x: Any,
    target: int,
    *,
    runs: int = 10,
    seed: int = 0,
) -> ConceptDirection:
    """Find a concept in a layer and test whether a class depends on it (TCAV).

    Test the teacher, a second teacher (the ceiling) and the student alike: a concept whose ``accuracy`` falls to its
    floor in the student was lost; one whose ``score`` is kept was transferred.

    Args:
        model: a Keras model with gradients and logits.
        layer_name: the tap in which to find the concept.
        concept: (examples, ...), inputs that show the concept; at least four.
        others: (examples, ...), inputs that do not; at least four.
        x: (examples, ...), inputs of the tested class.
        target: id of the tested class.
        runs: >= 2, number of directions fitted to shuffled labels, for the floor.
        seed: seed of the split and the shuffling.

    Returns:
        The direction with its accuracy and score, and their floors.

    Raises:
        ValueError: if there are too few examples, the layer is unknown, or the class does not exist.

    Reference:
        Kim et al., "Interpretability Beyond Feature Attribution: Quantitative Testing with Concept Activation Vectors",
        ICML 2018, arXiv:1711.11279. Differs: the floor uses shuffled labels.
    """
    known = explained_model(_OWNER, model)
    concept, others, x = (numeric_inputs(_OWNER, each) for each in (concept, others, x))
    integer(_OWNER, "runs", runs, low=2)
    integer(_OWNER, "target", target, low=0)
    if min(len(concept), len(others)) < 4:
        raise error(
            _OWNER, "at least four examples with the concept and four without", f"{len(concept)}, {len(others)}"
        )
    ask = _slopes_function(known, layer_name)
    inputs = np.concatenate([concept, others])
    activations, logits = ask(tf.constant(inputs), tf.constant(0))[0], known(inputs[:1], training=False)
    if target >= logits.shape[-1]:
        raise error(_OWNER, f"target from 0 to {logits.shape[-1] - 1}", target)
    slopes = np.asarray(ask(tf.constant(x), tf.constant(target))[1]).reshape(len(x), -1)
    activations = np.asarray(activations).reshape(len(inputs), -1)
    labels = np.repeat([1, 0], [len(concept), len(others)])
    rng = np.random.default_rng(seed)
    direction, accuracy = _direction(activations, labels, rng)
    floor = [_direction(activations, rng.permutation(labels), rng) for _ in range(runs)]
    return ConceptDirection(
        direction,
        accuracy,
        float((slopes @ direction > 0).mean()),
        float(np.mean([each for _, each in floor])),
        np.array([(slopes @ each > 0).mean() for each, _ in floor]),
    )


def _direction(activations: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return the normal of a linear classifier fitted on three quarters, and its accuracy on the rest."""
    order = rng.permutation(len(labels))
    held = order[: max(2, len(order) // 4)]
    rest = order[len(held) :]
    if len(np.unique(labels[rest])) < 2:
        raise error(_OWNER, "enough examples of both kinds", f"{len(labels)} in all", "Give more examples")
    scale = activations[rest].std() or 1.0
    with optional(_OWNER, "scikit-learn", "explain"):
        from sklearn.linear_model import LogisticRegression
    fitted = LogisticRegression(max_iter=1000).fit(activations[rest] / scale, labels[rest])
    normal = fitted.coef_[0]
    accuracy = float((fitted.predict(activations[held] / scale) == labels[held]).mean())
    return normal / max(float(np.linalg.norm(normal)), 1e-30), accuracy


def _slopes_function(model: keras.Model, layer_name: str) -> Callable[[Any, Any], Any]:
    tapped = taps.Taps(model, [layer_name], owner=_OWNER)

    @traced
    def ask(x: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits, found = tapped(x, training=False)
            picked = tf.cast(logits, tf.float32)[:, target]
        features = found[layer_name]
        if keras.tree.is_nested(features):
            raise error(_OWNER, "a layer with one output", layer_name)
        slope = tape.gradient(picked, features)
        if slope is None:
            raise error(_OWNER, "a layer that the output depends on", layer_name)
        return features, slope

    return ask
