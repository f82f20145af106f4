"""The smallest change to an input that flips a model's answer, and whether it flips another model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error, integer, number
from keras_distill.explain._attributions import no_gradient
from keras_distill.explain._models import explained_model, logits_of, numeric_inputs, traced

_OWNER = "explain.counterfactuals"


@dataclasses.dataclass(frozen=True, eq=False)
class Counterfactuals:
    """Inputs changed as little as possible to flip a model's answer.

    Args:
        inputs: (examples, ...), the changed inputs; the original ones where no change was found.
        distance: (examples,), Euclidean length of the change; NaN where none was found.
        before: (examples,), the model's answers to the original inputs.
        after: (examples,), its answers to the changed ones.

    Example:
        >>> found = Counterfactuals(np.zeros((2, 3)), np.ones(2), np.array([0, 1]), np.array([1, 1]))
        >>> found.flipped
        array([ True, False])
    """

    inputs: np.ndarray
    distance: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def flipped(self) -> np.ndarray:
        """Whether the answer changed, (examples,)."""
        return self.before != self.after


def counterfactuals(
    model: Any,
    x: Any,
    *,
    max_steps: int = 50,
    overshoot: float = 0.02,
    num_classes: int = 10,
    batch_size: int = 64,
) -> Counterfactuals:
    """Find, for each example, a small change that changes a model's answer (DeepFool).

    Formula: repeat x <- x + (|f_k| + 1e-4) * w_k / |w_k|**2 for the class k with the least |f_k| / |w_k|, where
    f_k = logit_k - logit_first and w_k its gradient, until (1 + overshoot) times the sum of the changes flips.

    Args:
        model: a Keras model with one numeric input and logits; it must have gradients.
        x: (examples, ...), at least one.
        max_steps: >= 1, steps of the search, after which an example counts as not flipped.
        overshoot: >= 0, distance beyond the boundary, relative to the change.
        num_classes: >= 2, number of the likeliest classes to try; one gradient each.
        batch_size: >= 1, examples per pass.

    Returns:
        The changed inputs and their distances. For a linear model it is the distance to the nearest boundary.

    Raises:
        ValueError: if there are no examples or gradients, or an argument is out of range.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
        >>> model.set_weights([np.array([[1.0, -1.0], [0.0, 0.0]])])
        >>> float(counterfactuals(model, np.array([[3.0, 7.0]]), overshoot=0.0).distance[0].round(2))
        3.0

    Reference:
        Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool", CVPR 2016, arXiv:1511.04599. Differs: nothing.
    """
    known = explained_model(_OWNER, model)
    x = numeric_inputs(_OWNER, x)
    integer(_OWNER, "max_steps", max_steps, low=1)
    number(_OWNER, "overshoot", overshoot, low=0)
    integer(_OWNER, "batch_size", batch_size, low=1)
    logits = logits_of(_OWNER, known, x, batch_size)
    if logits.shape[1] < 2:
        raise error(_OWNER, "at least two classes", f"{logits.shape[1]}")
    order = np.argsort(-logits, axis=-1)[:, : integer(_OWNER, "num_classes", num_classes, low=2)].astype("int32")
    search = _search_function(known, max_steps, overshoot)
    parts = []
    for start in range(0, len(x), batch_size):
        batch = slice(start, start + batch_size)
        parts.append(np.asarray(search(tf.constant(x[batch]), tf.constant(order[batch]))))
    changed = np.concatenate(parts)
    before, after = order[:, 0], logits_of(_OWNER, known, changed, batch_size).argmax(-1)
    flipped = before != after
    changed = np.where(flipped.reshape(-1, *(1,) * (x.ndim - 1)), changed, x)
    distance = np.sqrt(((changed - x).reshape(len(x), -1).astype("float64") ** 2).sum(-1))
    return Counterfactuals(changed, np.where(flipped, distance, np.nan), before, np.where(flipped, after, before))


def _search_function(model: keras.Model, max_steps: int, overshoot: float) -> Callable[[Any, Any], Any]:
    @traced
    def search(x: Any, order: Any) -> Any:
        shape = tf.concat([tf.shape(x)[:1], tf.ones(len(x.shape) - 1, tf.int32)], 0)
        change = tf.zeros_like(x)
        for _ in tf.range(max_steps):
            here = x + (1.0 + overshoot) * change
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(here)
                logits = tf.gather(tf.cast(model(here, training=False), tf.float32), order, axis=-1, batch_dims=1)
                gaps = [logits[:, k] - logits[:, 0] for k in range(1, order.shape[1])]
            slopes = [tape.gradient(gap, here) for gap in gaps]
            if slopes[0] is None:
                raise no_gradient(model)
            flat = tf.stack([tf.reshape(slope, (tf.shape(x)[0], -1)) for slope in slopes], axis=1)
            gap, square = tf.stack(gaps, axis=1), tf.reduce_sum(tf.square(flat), axis=-1)
            nearest = tf.argmin(tf.abs(gap) / tf.sqrt(square + 1e-24), axis=-1)
            pick = [tf.gather(each, nearest, axis=1, batch_dims=1) for each in (flat, tf.abs(gap), square)]
            step = pick[0] * ((pick[1] + 1e-4) / (pick[2] + 1e-24))[:, None]
            waits = tf.reduce_all(gap <= 0.0, axis=1)  # the first answer still holds
            change += tf.where(tf.reshape(waits, shape), tf.reshape(step, tf.shape(x)), 0.0)
            if not tf.reduce_any(waits):
                break
        return x + (1.0 + overshoot) * change

    return search


def transferred(found: Counterfactuals, x: Any, other: keras.Model, stretch: float = 1.5) -> np.ndarray:
    """Return for each example whether the change that flipped one model flips another.

    Args:
        found: the result of ``counterfactuals`` for the first model and ``x``.
        x: the original inputs.
        other: the other model, with logits.
        stretch: > 0, factor on the changes: 1 stops just beyond the first model's boundary.

    Returns:
        (examples,), bool; False where the first model was not flipped.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> x = np.ones((4, 2), "float32")
        >>> bool(transferred(counterfactuals(model, x), x, model).all())
        True
    """
    number("explain.transferred", "stretch", stretch, above=0)
    start = numeric_inputs("explain.transferred", x)
    moved = start + np.float32(stretch) * (found.inputs - start)
    before, after = (logits_of("explain.transferred", other, each).argmax(-1) for each in (start, moved))
    return (before != after) & found.flipped
