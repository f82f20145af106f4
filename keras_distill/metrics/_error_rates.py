"""Error rates of words, characters and tokens: by jiwer for texts, by an edit distance in the graph for labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import choice, error, integer, optional, tensor
from keras_distill._typing import Tensor
from keras_distill.metrics._decoding import ctc_greedy_decode, pack_left
from keras_distill.metrics._examples import keras_mask
from keras_distill.metrics._streaming import StreamingMetric, float64

_UNITS = ("token", "word", "character")


def _jiwer(owner: str) -> Tensor:
    with optional(owner, "jiwer", "sequences"):
        import jiwer
    return jiwer


def _counts(owner: str, references: Sequence[str], hypotheses: Sequence[str], unit: str) -> tuple[int, int]:
    """Return errors and reference units of texts, counted by jiwer."""
    for name, texts in (("references", references), ("hypotheses", hypotheses)):
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence | np.ndarray):
            raise error(owner, f"{name} to be a list of texts", type(texts).__name__)
    references, hypotheses = [str(text) for text in references], [str(text) for text in hypotheses]
    if len(references) != len(hypotheses):
        raise error(owner, f"one hypothesis for each of the {len(references)} references", f"{len(hypotheses)}")
    if not references:
        return 0, 0
    library = _jiwer(owner)
    found = (library.process_words if unit == "word" else library.process_characters)(references, hypotheses)
    wrong = found.substitutions + found.deletions + found.insertions
    return wrong, found.substitutions + found.deletions + found.hits


def _rate(owner: str, references: Sequence[str], hypotheses: Sequence[str], unit: str) -> float:
    wrong, total = _counts(owner, references, hypotheses, unit)
    if not total:
        raise error(owner, f"at least one {unit} in the references", "none")
    return wrong / total


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return word errors per word of the references, over all texts together (WER), counted by jiwer.

    Args:
        references: the correct texts.
        hypotheses: as many recognised texts; in an empty one all words count as deleted.

    Returns:
        >= 0; above 1 if errors, including insertions, outnumber the words of the references.

    Raises:
        ValueError: if the numbers of texts differ, no reference has a word, or jiwer is missing.

    Example:
        >>> from keras_distill import metrics
        >>> metrics.word_error_rate(["go to page five"], ["go page nine"])  # one word lost, one wrong
        0.5
    """
    return _rate("word_error_rate", references, hypotheses, "word")


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return character errors per character of the references, over all texts together (CER), counted by jiwer.

    Args:
        references: the correct texts.
        hypotheses: as many recognised texts.

    Returns:
        >= 0.

    Raises:
        ValueError: if the numbers of texts differ, the references are empty, or jiwer is missing.

    Example:
        >>> from keras_distill import metrics
        >>> metrics.character_error_rate(["five"], ["hive"])
        0.25
    """
    return _rate("character_error_rate", references, hypotheses, "character")


def edit_distance(references: Any, hypotheses: Any) -> Tensor:
    """Return the minimum number of insertions, deletions and substitutions; works in graphs as well.

    Args:
        references: (batch, labels), integers from the left; negative numbers after them are padding.
        hypotheses: (batch, other labels), the same.

    Returns:
        (batch,), int32.

    Example:
        >>> from keras_distill import metrics
        >>> metrics.edit_distance([[1, 2, 3]], [[1, 3, -1]]).numpy().tolist()
        [1]
    """
    owner = "edit_distance"
    references, hypotheses = (
        ops.cast(tensor(owner, each, ops.convert_to_tensor), "int32") for each in (references, hypotheses)
    )
    shapes = tuple(references.shape), tuple(hypotheses.shape)
    if any(len(shape) != 2 for shape in shapes) or (None not in (a := shapes[0][0], b := shapes[1][0]) and a != b):
        raise error(owner, "references and hypotheses of shape (batch, labels)", f"{shapes[0]} and {shapes[1]}")
    if shapes[0][0] == 0:
        return ops.zeros((0,), dtype="int32")
    place = ops.arange(ops.shape(references)[1] + 1, dtype="int32")
    earlier, far = place <= place[:, None], 1 << 30  # XLA has no running minimum within a loop
    start = ops.broadcast_to(place, (ops.shape(references)[0], ops.shape(references)[1] + 1))

    def step(row: Any, label: Any) -> tuple[Tensor, Tensor]:
        replaced = row[:, :-1] + ops.cast(references != label[:, None], "int32")
        candidate = ops.concatenate([row[:, :1] + 1, ops.minimum(row[:, 1:] + 1, replaced)], axis=1)
        # Deletions run along the row: the minimum of candidate[k] + (j - k) over k <= j.
        least = ops.min(ops.where(earlier, (candidate - place)[:, None, :], far), axis=2) + place
        row = ops.where(label[:, None] >= 0, least, row)
        return row, row

    last, _ = ops.scan(step, start, ops.transpose(hypotheses))
    length = ops.sum(ops.cast(references >= 0, "int32"), axis=1)
    return ops.take_along_axis(last, length[:, None], axis=1)[:, 0]


def _groups(sample_weight: Any, references: int, hypotheses: int) -> list[tuple[float, np.ndarray]]:
    """Return each weight with the rows that have it."""
    weights = np.ones(references) if sample_weight is None else np.asarray(sample_weight, "float64").ravel()
    if not references == hypotheses == len(weights):
        got = f"{hypotheses} hypotheses and {len(weights)} weights"
        raise error("TokenErrorRate", f"one hypothesis and one weight for each of {references} references", got)
    return [(float(weight), np.flatnonzero(weights == weight)) for weight in np.unique(weights)]


@keras.saving.register_keras_serializable(package="keras_distill")
class TokenErrorRate(StreamingMetric):
    """Edit errors per reference token, over all sequences together (WER, CER, phone error rate).

    Choose it as a metric in ``compile`` for a CTC model: logits are decoded greedily and compared with labels in the
    graph. For texts, jiwer counts words or characters on the host.

    Args:
        unit: ``"token"`` for labels; ``"word"`` or ``"character"`` for texts.
        blank: the class that means "no label" in logits, and padding in labels.
        name: name in the logs; None: ``"token_error_rate"`` and so on.
        dtype: dtype of the result; the sums are float64.

    Raises:
        ValueError: if ``unit`` is unknown.

    Example:
        >>> from keras_distill import metrics
        >>> rate = metrics.TokenErrorRate()
        >>> rate.update_state([[1, 2, 0]], [[[0, 9, 0], [0, 0, 9], [0, 9, 0]]])  # recognised: 1 2 1
        >>> print(float(rate.result()))
        0.5
        >>> rate = metrics.TokenErrorRate("word")
        >>> rate.update_state(["go to page five"], ["go page nine"])
        >>> print(float(rate.result()))
        0.5
    """

    def __init__(self, unit: str = "token", blank: int = 0, name: str | None = None, dtype: Any = None) -> None:
        self.unit = choice("TokenErrorRate", "unit", unit, _UNITS)
        self.blank = integer("TokenErrorRate", "blank", blank, low=0)
        super().__init__(name=name or f"{unit}_error_rate", dtype=dtype)
        self.errors = self.add_sums((), "errors")
        self.total = self.add_sums((), "total")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch.

        Args:
            y_true: (batch, labels) integers, padded with ``blank`` or negative numbers; or texts.
            y_pred: (batch, frames, classes) logits, masked by Keras; or (batch, labels) decoded integers; or texts.
            sample_weight: (batch,) or None; 0 leaves a sequence out.

        Raises:
            ValueError: if ``unit`` and what is compared do not belong together, or shapes do not.
        """
        if _is_text(y_true):
            if self.unit == "token":
                raise error("TokenErrorRate", "unit='word' or unit='character' for texts", "unit='token'")
            texts, found = _texts(y_true), _texts(y_pred)
            for weight, rows in _groups(sample_weight, len(texts), len(found)):
                pairs = [texts[row] for row in rows], [found[row] for row in rows]
                wrong, total = _counts("TokenErrorRate", *pairs, self.unit)
                self.errors.assign_add(float(weight * wrong))
                self.total.assign_add(float(weight * total))
            return
        if self.unit != "token":
            advice = "Decode to texts first, or use unit='token' for labels"
            raise error("TokenErrorRate", f"texts for unit={self.unit!r}", "numbers", advice)
        mask = keras_mask(y_pred)
        labels, found = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        if len(labels.shape) != 2 or len(found.shape) not in (2, 3):
            expected = "labels of shape (batch, labels) and logits (batch, frames, classes) or decoded labels"
            raise error("TokenErrorRate", expected, f"{tuple(labels.shape)} and {tuple(found.shape)}")
        if len(found.shape) == 3:
            found = ctc_greedy_decode(found, mask=mask, blank=self.blank)
        labels, found = self._packed(labels), self._packed(found)
        weight = float64(ops.ones_like(labels[:, 0])) if sample_weight is None else float64(sample_weight)
        self.errors.assign_add(ops.sum(float64(edit_distance(labels, found)) * weight))
        self.total.assign_add(ops.sum(float64(ops.sum(ops.cast(labels >= 0, "int32"), axis=1)) * weight))

    def _packed(self, labels: Tensor) -> Tensor:
        labels = ops.cast(labels, "int32")
        return pack_left(labels, ops.logical_and(labels >= 0, labels != self.blank), fill=-1)

    def value(self) -> Tensor:
        """Return errors / reference tokens; NaN before the first token."""
        return self.errors / self.total

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "unit": self.unit, "blank": self.blank}


def _is_text(values: Tensor) -> bool:
    if isinstance(values, str):
        return True
    if isinstance(values, (list, tuple)):
        return bool(values) and isinstance(values[0], (str, bytes))
    return (
        keras.backend.standardize_dtype(values.dtype) == "string"
        if ops.is_tensor(values)
        else (isinstance(values, np.ndarray) and values.dtype.kind in "UOS")
    )


def _texts(values: Tensor) -> list[str]:
    array = np.asarray(ops.convert_to_numpy(values) if ops.is_tensor(values) else values).reshape(-1)
    return [text.decode() if isinstance(text, bytes) else str(text) for text in array.tolist()]
