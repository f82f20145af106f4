"""CTC decoding, from frame distributions to labels: best path and prefix beam search."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_distill._checks import array, error, integer, tensor
from keras_distill._typing import Tensor
from keras_distill.metrics._examples import keras_mask


def ctc_greedy_decode(logits: Tensor, *, mask: Tensor = None, blank: int = 0) -> Tensor:
    """Return the labels of the likeliest path: repeats merged, blanks dropped (best path decoding).

    Choose it for scores during training and for serving; it works inside a graph. ``ctc_beam_decode`` sums over paths.

    Args:
        logits: (batch, frames, classes), float; probabilities give the same result.
        mask: (batch, frames) bool, True for frames that count. None uses the mask that Keras attached to ``logits``.
        blank: the class that means "no label".

    Returns:
        (batch, frames), int32, labels from the left, then -1.

    Raises:
        ValueError: if ``logits`` has another rank.

    Example:
        >>> from keras_distill import metrics
        >>> logits = [[[0, 9, 0], [0, 9, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]]]  # 1 1 blank 1 2
        >>> metrics.ctc_greedy_decode(logits).numpy().tolist()
        [[1, 1, 2, -1, -1]]
    """
    owner = "ctc_greedy_decode"
    mask = keras_mask(logits) if mask is None else mask
    logits = tensor(owner, logits, ops.convert_to_tensor)
    if len(logits.shape) != 3:
        raise error(owner, "logits of shape (batch, frames, classes)", str(tuple(logits.shape)))
    blank = integer(owner, "blank", blank, low=0)
    best = ops.cast(ops.argmax(logits, axis=-1), "int32")
    kept = ops.ones_like(best, dtype="bool") if mask is None else ops.cast(mask, "bool")
    best = pack_left(best, kept, fill=blank)
    before = ops.concatenate([ops.full_like(best[:, :1], blank), best[:, :-1]], axis=1)
    return pack_left(best, ops.logical_and(best != blank, best != before), fill=-1)


def pack_left(values: Tensor, kept: Any, fill: int) -> Tensor:
    """Move the ``kept`` entries of ``values``, (batch, time), to the left in order and put ``fill`` after them."""
    time = ops.shape(values)[1]
    place = ops.arange(time, dtype="int32")
    order = ops.argsort(ops.where(kept, place, place + time), axis=1)
    count = ops.sum(ops.cast(kept, "int32"), axis=1, keepdims=True)
    return ops.where(place < count, ops.take_along_axis(values, order, axis=1), fill)


class Hypothesis(NamedTuple):
    """One decoded sequence.

    Attributes:
        labels: the labels, without blanks.
        log_probability: log of the summed probability of the paths that the search kept; at most the exact value.
    """

    labels: tuple[int, ...]
    log_probability: float


def ctc_beam_decode(
    logits: Tensor, *, mask: Tensor = None, blank: int = 0, beam_width: int = 16, num_hypotheses: int = 1
) -> list[list[Hypothesis]]:
    """Return the likeliest label sequences, summed over their paths (prefix beam search).

    Choose it for N-best lists and for final scores. It runs on the host in NumPy: about 1 ms per frame at width 16.

    Args:
        logits: (batch, frames, classes), float, unnormalised log-probabilities.
        mask: (batch, frames) bool, True for frames that count. None uses the mask that Keras attached to ``logits``.
        blank: the class that means "no label".
        beam_width: >= 1, number of prefixes kept after each frame. With all prefixes kept, the result is exact.
        num_hypotheses: >= 1 and <= beam_width.

    Returns:
        For each sequence at most ``num_hypotheses``, the likeliest first.

    Raises:
        ValueError: if the shape does not fit, a logit is NaN, or a number is out of bounds.

    Example:
        >>> import numpy as np
        >>> from keras_distill import metrics
        >>> logits = np.log([[[0.6, 0.4], [0.6, 0.4]]])  # the best path says nothing, 0.36; "1" has 0.64
        >>> metrics.ctc_beam_decode(logits)[0][0].labels
        (1,)

    Reference:
        Hannun et al., "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent DNNs",
        2014, arXiv:1408.2873, algorithm 1. Differs: no language model.
    """
    owner = "ctc_beam_decode"
    mask = keras_mask(logits) if mask is None else mask
    values = array(owner, logits)
    if values.ndim != 3:
        raise error(owner, "logits of shape (batch, frames, classes)", str(values.shape))
    width = integer(owner, "beam_width", beam_width, low=1)
    number = integer(owner, "num_hypotheses", num_hypotheses, low=1)
    if number > width:
        raise error(owner, f"num_hypotheses of at most beam_width = {width}", number)
    if not 0 <= blank < values.shape[-1]:
        raise error(owner, f"blank from 0 to {values.shape[-1] - 1}", blank)
    kept = np.ones(values.shape[:2], bool) if mask is None else np.asarray(ops.convert_to_numpy(mask), bool)
    if np.isnan(values[kept]).any():
        raise error(owner, "logits without NaN", "NaN", "Check the model's weights and its input")
    log_q = values - np.logaddexp.reduce(values, axis=-1, keepdims=True)
    return [_search(frames[keep], blank, width)[:number] for frames, keep in zip(log_q, kept, strict=True)]


def _search(log_q: np.ndarray, blank: int, width: int) -> list[Hypothesis]:
    """Return at most ``width`` hypotheses of one sequence, (frames, classes), the likeliest first."""
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}  # paths ending in a blank, in a label
    for row in log_q:
        # Only these classes can enter a beam of this width.
        classes = np.argsort(-row, kind="stable")[: width + 1].tolist()
        frame = row.tolist()
        found: dict[tuple[int, ...], list[float]] = {}

        def add(prefix: tuple[int, ...], slot: int, value: float, found: dict = found) -> None:
            pair = found.setdefault(prefix, [-math.inf, -math.inf])
            pair[slot] = _add(pair[slot], value)

        for prefix, (ends_blank, ends_label) in beams.items():
            total = _add(ends_blank, ends_label)
            add(prefix, 0, total + frame[blank])
            if prefix:
                add(prefix, 1, ends_label + frame[prefix[-1]])
            for label in classes:
                if label != blank:
                    again = prefix and label == prefix[-1]
                    add((*prefix, label), 1, (ends_blank if again else total) + frame[label])
        best = sorted(found.items(), key=lambda item: -_add(*item[1]))[:width]
        beams = {prefix: (pair[0], pair[1]) for prefix, pair in best if max(pair) > -math.inf}
    return [Hypothesis(prefix, _add(*pair)) for prefix, pair in beams.items()]


def _add(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b)) of two floats, ten times as fast as NumPy."""
    low, high = (a, b) if a < b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
