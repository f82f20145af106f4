"""The likeliest label sequences of a CTC teacher, decoded once, for sequence-level distillation."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import losses, metrics
from keras_distill._checks import error, integer
from keras_distill._typing import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class NBest:
    """A teacher's best hypotheses for each example.

    Args:
        labels: (examples, hypotheses, labels), int32, padded with -1.
        weights: (examples, hypotheses), float32: the posteriors, renormalised over the list; 0 for a missing
            hypothesis.
        log_probabilities: (examples, hypotheses), float32, exact; -inf for a missing hypothesis.

    Example:
        >>> found = NBest(np.array([[[1], [-1]]]), np.array([[0.75, 0.25]]), np.log([[0.6, 0.2]]))
        >>> found.packed().tolist()
        [[[0.75, 1.0], [0.25, -1.0]]]
    """

    labels: np.ndarray
    weights: np.ndarray
    log_probabilities: np.ndarray

    def packed(self) -> np.ndarray:
        """Return (examples, hypotheses, 1 + labels), float32: weight, then labels: ``y`` for ``losses.NBestCtc``."""
        return np.concatenate([self.weights[..., None], self.labels], axis=-1).astype("float32")


def n_best(
    teacher: keras.Model,
    x: Any,
    *,
    num_hypotheses: int = 5,
    beam_width: int = 16,
    blank: int = 0,
    batch_size: int = 32,
) -> NBest:
    """Decode a CTC teacher's N best label sequences and their posteriors (sequence-level CTC distillation).

    Prefix beam search finds the hypotheses; their probabilities are then computed exactly, over all paths.

    Args:
        teacher: a trained model whose output is logits (batch, frames, classes); a mask on them is respected.
        x: the inputs: an array or a structure of arrays, with the examples on the first axis.
        num_hypotheses: >= 1, hypotheses per example.
        beam_width: >= num_hypotheses, prefixes kept after each frame.
        blank: the class that means "no label".
        batch_size: >= 1.

    Returns:
        The hypotheses, the likeliest first.

    Raises:
        ValueError: if there is no example, the teacher's output has another rank or is NaN, or a number is out of
            bounds.

    Example:
        >>> import keras
        >>> teacher = keras.Sequential([keras.Input((None, 2)), keras.layers.Activation("linear")])
        >>> found = n_best(teacher, np.log([[[0.6, 0.4], [0.6, 0.4]]]), num_hypotheses=2)
        >>> found.labels[0].tolist(), [round(float(weight), 2) for weight in found.weights[0]]
        ([[1], [-1]], [0.64, 0.36])

    Reference:
        Takashima, Sheng, Kawai, "Investigation of Sequence-level Knowledge Distillation Methods for CTC Acoustic
        Models", ICASSP 2019. Differs: nothing.
    """
    integer("n_best", "batch_size", batch_size, low=1)
    number = integer("n_best", "num_hypotheses", num_hypotheses, low=1)
    count = len(keras.tree.flatten(x)[0])
    if not count:
        raise error("n_best", "at least one example", "none")
    lists, scores = [], []
    for start in range(0, count, batch_size):
        batch = keras.tree.map_structure(lambda array, start=start: array[start : start + batch_size], x)
        logits = teacher(batch, training=False)
        mask = getattr(logits, "_keras_mask", None)
        found = metrics.ctc_beam_decode(logits, mask=mask, blank=blank, beam_width=beam_width, num_hypotheses=number)
        labels = _padded([[each.labels for each in row] for row in found], number)
        lists.append(labels)
        scores.append(_exact(logits, labels, mask, blank, [len(row) for row in found]))
    longest = max(part.shape[-1] for part in lists)
    padded = [np.pad(p, ((0, 0), (0, 0), (0, longest - p.shape[-1])), constant_values=-1) for p in lists]
    log_probabilities = np.concatenate(scores)
    weights = np.exp(log_probabilities - log_probabilities.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    order = np.argsort(-log_probabilities, axis=1, kind="stable")  # sort by exact probability
    return NBest(
        np.take_along_axis(np.concatenate(padded), order[..., None], axis=1),
        np.take_along_axis(weights, order, axis=1).astype("float32"),
        np.take_along_axis(log_probabilities, order, axis=1).astype("float32"),
    )


def _padded(rows: list[list[tuple[int, ...]]], number: int) -> np.ndarray:
    longest = max([1, *(len(labels) for row in rows for labels in row)])
    out = np.full((len(rows), number, longest), -1, "int32")
    for i, row in enumerate(rows):
        for j, labels in enumerate(row):
            out[i, j, : len(labels)] = labels
    return out


def _exact(logits: Tensor, labels: np.ndarray, mask: Tensor, blank: int, found: list[int]) -> np.ndarray:
    """Return the log-probability of each hypothesis, -inf where the list is shorter."""
    kept = tf.ones(tf.shape(logits)[:2], bool) if mask is None else tf.cast(mask, bool)
    columns = [_log_likelihood(labels[:, n], logits, kept, blank).numpy() for n in range(labels.shape[1])]
    there = np.arange(labels.shape[1]) < np.array(found)[:, None]
    return np.where(there, np.stack(columns, axis=1).astype("float64"), -np.inf)


@tf.function(reduce_retracing=True, autograph=False)
def _log_likelihood(labels: Any, logits: Tensor, mask: Tensor, blank: int) -> Any:
    return -losses.ctc(labels=labels, logits=logits, mask=mask, blank=blank)
