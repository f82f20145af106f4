"""Spans of tags (entities, slots): F1 by seqeval, and calibration of the confidence in whole spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_distill._checks import array, error, integer, optional
from keras_distill._typing import Tensor
from keras_distill.metrics._bins import bin_index, bin_sums, error_of_sums

_ROWS = (list, tuple, np.ndarray)


def _seqeval(owner: str) -> Tensor:
    with optional(owner, "seqeval", "sequences"):
        import seqeval.metrics
        import seqeval.metrics.sequence_labeling
    return seqeval.metrics


def span_f1(references: Any, predictions: Any, *, tag_names: Sequence[str] | None = None, mask: Tensor = None) -> float:
    """Return the micro-averaged F1 of whole spans with their types, as CoNLL counts them, by seqeval.

    Args:
        references: lists of tags such as ``"B-city"``, ``"I-city"``, ``"O"``; or (batch, tokens) integers with
            ``tag_names``, negative where there is no token.
        predictions: the same; or logits (batch, tokens, tags), of which the likeliest tag is taken.
        tag_names: one name per tag, for integers.
        mask: (batch, tokens) bool, True for tokens that count, or None; for integers.

    Returns:
        0 to 1; 0 if there is no span at all.

    Raises:
        ValueError: if shapes or lengths differ, a tag is out of range, or seqeval is missing.

    Example:
        >>> from keras_distill import metrics
        >>> right = [["B-city", "I-city", "O", "B-date"]]
        >>> metrics.span_f1(right, [["B-city", "O", "O", "B-date"]])  # the city's end is wrong
        0.5
    """
    owner = "span_f1"
    references, predictions = _tags(owner, references, predictions, tag_names, mask)
    return float(_seqeval(owner).f1_score(references, predictions, zero_division=0))


class SpanConfidences(NamedTuple):
    """Confidence and correctness of every predicted span.

    Attributes:
        confidence: (spans,), the product of the probabilities of its tags.
        correct: (spans,) bool, whether the same span with the same type is in the references.
    """

    confidence: np.ndarray
    correct: np.ndarray


def span_confidences(
    references: Any, probabilities: Tensor, *, tag_names: Sequence[str], mask: Tensor = None
) -> SpanConfidences:
    """Return the confidence and the correctness of each span that the model predicts.

    Args:
        references: (batch, tokens) integers; negative where there is no token.
        probabilities: (batch, tokens, tags).
        tag_names: one name per tag.
        mask: (batch, tokens) bool, or None.

    Returns:
        Confidences and correctness, for risk-coverage curves and calibration.

    Example:
        >>> from keras_distill import metrics
        >>> probabilities = np.array([[[0.1, 0.8, 0.1], [0.2, 0.3, 0.5]]])  # of O, B-city, I-city
        >>> metrics.span_confidences([[1, 2]], probabilities, tag_names=["O", "B-city", "I-city"])
        SpanConfidences(confidence=array([0.4]), correct=array([ True]))
    """
    owner = "span_confidences"
    values = array(owner, probabilities)
    if values.ndim != 3:
        raise error(owner, "probabilities of shape (batch, tokens, tags)", str(values.shape))
    right, found = _tags(owner, references, values, tag_names, mask)
    entities = _seqeval(owner).sequence_labeling.get_entities
    kept = _kept(np.asarray(references), mask)
    confidence, correct = [], []
    for row, (truth, tags) in enumerate(zip(right, found, strict=True)):
        best = values[row][kept[row]].max(axis=-1)
        there = set(entities(truth))
        for span in entities(tags):
            confidence.append(float(np.prod(best[span[1] : span[2] + 1])))
            correct.append(span in there)
    return SpanConfidences(np.array(confidence, "float64"), np.array(correct, bool))


def span_calibration_error(
    references: Any, probabilities: Tensor, *, tag_names: Sequence[str], mask: Tensor = None, num_bins: int = 15
) -> float:
    """Return the expected calibration error of whole predicted spans (entity-level ECE).

    Tokens may be calibrated while entities are not: a span is correct only if all its tags are.

    Args:
        references: (batch, tokens) integers; negative where there is no token.
        probabilities: (batch, tokens, tags).
        tag_names: one name per tag.
        mask: (batch, tokens) bool, or None.
        num_bins: >= 1 bins of equal width, closed on the right.

    Returns:
        0 to 1; NaN if no span is predicted.

    Example:
        >>> from keras_distill import metrics
        >>> probabilities = np.array([[[0.1, 0.8, 0.1], [0.2, 0.3, 0.5]]])  # right, with a confidence of 0.4
        >>> metrics.span_calibration_error([[1, 2]], probabilities, tag_names=["O", "B-city", "I-city"])
        0.6
    """
    count = integer("span_calibration_error", "num_bins", num_bins, low=1)
    found = span_confidences(references, probabilities, tag_names=tag_names, mask=mask)
    if not len(found.correct):
        return float("nan")
    scores = ops.convert_to_tensor(found.confidence)
    index = bin_index(scores, count, "right_closed")
    sums = bin_sums(index, count, ops.ones_like(scores), scores, found.correct)
    return float(error_of_sums(sums, convention="right_closed"))


def _kept(references: np.ndarray, mask: Tensor) -> np.ndarray:
    kept = references >= 0
    return kept if mask is None else kept & np.asarray(ops.convert_to_numpy(mask), bool)


def _tags(
    owner: str, references: Any, predictions: Any, tag_names: Sequence[str] | None, mask: Tensor
) -> tuple[list[list[str]], list[list[str]]]:
    """Return references and predictions as lists of lists of names, without masked positions."""
    if tag_names is None:
        for side in (references, predictions):
            if not isinstance(side, (list, tuple, np.ndarray)) or not all(isinstance(row, _ROWS) for row in side):
                advice = "Give tag_names=[...] for integer tags"
                raise error(owner, "lists of lists of tag names", type(side).__name__, advice)
        lists = [[list(map(str, row)) for row in side] for side in (references, predictions)]
        if [len(row) for row in lists[0]] != [len(row) for row in lists[1]]:
            got = "lists of different lengths"
            raise error(owner, "one predicted tag for each reference tag", got, "Give tag_names=[...] for integer tags")
        return lists[0], lists[1]
    right, found = (array(owner, side, "float64") for side in (references, predictions))
    if (right != np.round(right)).any():
        raise error(owner, "references of integer tags", "other numbers", "tag_names[i] is the name of tag i")
    right = right.astype("int64")
    found = found.argmax(axis=-1) if found.ndim == right.ndim + 1 else found.astype("int64")
    if right.ndim != 2 or right.shape != found.shape:
        raise error(owner, "references and predictions of shape (batch, tokens)", f"{right.shape} and {found.shape}")
    kept = _kept(right, mask)
    for side in (right, found):
        if kept.any() and (side[kept].min() < 0 or side[kept].max() >= len(tag_names)):
            bad = side[kept][(side[kept] < 0) | (side[kept] >= len(tag_names))][0]
            raise error(owner, f"tags from 0 to {len(tag_names) - 1}", int(bad))
    names = np.array(list(tag_names), dtype=object)
    named = [[names[row[keep]].tolist() for row, keep in zip(side, kept, strict=True)] for side in (right, found)]
    return named[0], named[1]
