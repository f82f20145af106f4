"""Forced alignment: the likeliest assignment of labels to frames that CTC allows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_distill._checks import array, error, integer
from keras_distill.metrics._examples import keras_mask


class Alignment(NamedTuple):
    """The likeliest path of each sequence.

    Attributes:
        frames: (batch, frames), int32: the class of each frame, -1 where masked.
        log_probability: (batch,), float64: log-probability of that single path, in nats.
    """

    frames: np.ndarray
    log_probability: np.ndarray


def ctc_align(labels: Any, logits: Any, *, mask: Any = None, blank: int = 0) -> Alignment:
    """Return the likeliest class of each frame, given the labels (forced alignment by CTC Viterbi).

    Choose it to create targets for a frame classifier, as hybrid recognisers do (DNN-HMM): a CTC model aligns the
    training set once, and any frame-level model learns the result by cross-entropy, with -1 as the label to ignore. It
    also shows when each word was spoken. It runs on the host, in NumPy.

    Formula: argmax over the paths a that yield the labels when repeats are merged and blanks dropped, of
    sum_t log q_t(a_t), q = softmax(logits).

    Args:
        labels: (batch, labels), integers from 0 to classes - 1. ``blank`` and every negative number are padding.
        logits: (batch, frames, classes), float, unnormalised log-probabilities.
        mask: (batch, frames) bool, True for frames that count. None uses the mask that Keras attached to ``logits``.
        blank: the class that means "no label".

    Returns:
        The path and its log-probability, for each sequence.

    Raises:
        ValueError: if the shapes do not fit, a logit is NaN, a label is out of range, or labels need more frames than
            there are; the message names the sequence.

    Example:
        >>> import numpy as np
        >>> from keras_distill import metrics
        >>> logits = np.log([[[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.1, 0.4]]])
        >>> found = metrics.ctc_align([[1, 2]], logits)
        >>> found.frames.tolist(), round(float(np.exp(found.log_probability[0])), 3)  # 0.6 * 0.7 * 0.4
        ([[0, 1, 2]], 0.168)

    Reference:
        Kürzinger, Winkelbauer, Li, Watzel, Rigoll, "CTC-Segmentation of Large Corpora for German End-to-End Speech
        Recognition", 2020, arXiv:2007.09127, section 2. Differs: all frames belong to the labels, as in Viterbi
        training; nothing is skipped at the edges.
    """
    owner = "ctc_align"
    mask = keras_mask(logits) if mask is None else mask
    values = array(owner, logits)
    wanted = array(owner, labels)
    if (wanted != np.round(wanted)).any():
        raise error(owner, "integer class ids as labels", "other numbers", "Use -1 for padding")
    wanted = wanted.astype("int64")
    if values.ndim != 3:
        raise error(owner, "logits of shape (batch, frames, classes)", str(values.shape))
    if wanted.ndim != 2 or len(wanted) != len(values):
        raise error(owner, "labels of shape (batch, labels), one row per sequence", str(wanted.shape))
    classes, blank = values.shape[-1], integer(owner, "blank", blank, low=0)
    if blank >= classes:
        raise error(owner, f"blank from 0 to {classes - 1}", blank)
    kept = np.ones(values.shape[:2], bool) if mask is None else np.asarray(ops.convert_to_numpy(mask), bool)
    if np.isnan(values[kept]).any():
        raise error(owner, "logits without NaN", "NaN", "Check the model's weights and its input")
    frames, scores = np.full(kept.shape, -1, "int32"), np.zeros(len(values))
    for index, (row, each, keep) in enumerate(zip(wanted, values, kept, strict=True)):
        row = row[(row >= 0) & (row != blank)].astype(int)
        if row.size and row.max() >= classes:
            raise error(owner, f"labels from 0 to {classes - 1}", f"{row.max()} in sequence {index}")
        needed = len(row) + int(np.sum(row[1:] == row[:-1]))
        if needed > keep.sum():
            advice = "Drop the example, or reduce the subsampling of the model"
            got = f"{keep.sum()} in sequence {index}"
            raise error(owner, f"at least {needed} frames for {len(row)} labels", got, advice)
        log_q = each[keep] - np.logaddexp.reduce(each[keep], axis=-1, keepdims=True)
        frames[index, keep], scores[index] = _viterbi(row, log_q, blank)
    return Alignment(frames, scores)


def _viterbi(labels: np.ndarray, log_q: np.ndarray, blank: int) -> tuple[np.ndarray, float]:
    """Return the class of each frame of one sequence, and the path's log-probability."""
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    may_skip = np.zeros(len(states), bool)  # whether the blank between two labels may be skipped
    may_skip[3::2] = labels[1:] != labels[:-1]
    emitted = log_q[:, states]
    score = np.full(len(states), -np.inf)
    score[0] = 0.0  # as if a blank preceded the first frame; a label may follow at once
    came_by = np.zeros((len(log_q), len(states)), int)
    for time, row in enumerate(emitted):
        choices = np.full((3, len(states)), -np.inf)
        choices[0] = score
        choices[1, 1:] = score[:-1]
        choices[2, 2:] = np.where(may_skip[2:], score[:-2], -np.inf)
        came_by[time] = choices.argmax(0)
        score = choices.max(0) + row
    place = len(states) - 1
    if len(states) > 1 and score[-2] > score[-1]:
        place -= 1
    total, path = float(score[place]), np.empty(len(log_q), int)
    for time in range(len(log_q) - 1, -1, -1):
        path[time] = states[place]
        place -= came_by[time, place]
    return path, total
