"""What the metrics share: how labels, outputs and weights are read, and state that stays exact over any count."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill._checks import choice, error
from keras_distill._graphs import compiled, eager

TASKS = ("multiclass", "binary", "multilabel")
# A float16 softmax may exceed 1 by this much; anything further out is no probability.
PROBABILITY_SLACK = 1e-3
BLOCKS = (100, 50, 64, 80, 125, 128, 48, 40, 36, 32, 30, 25, 24, 20, 16)  # sizes of blocks of classes, best first
COMPILED_FROM_CLASSES = 512


class Examples(NamedTuple):
    """Labels, outputs and weights of one update, flattened to one row per example (or per entry)."""

    labels: Any  # (n,) int32; for binary and multilabel 0 or 1
    outputs: Any  # (n, classes) float; for binary and multilabel (n,)
    weights: Any  # (n,) float64
    targets: Any = None  # (n, classes) where y_true came as one-hot rows or soft labels


class StreamingMetric(keras.metrics.Metric):
    """Base of the metrics that keep sums: float64 state, so that no count is too large and batches may split anyhow.

    State is added up over replicas. A subclass adds its state with ``add_sums`` and defines ``update_state`` and
    ``value``. Before the first example the result is NaN: nothing is known yet.
    """

    def add_sums(self, shape: tuple[int, ...], name: str) -> Any:
        """Return a float64 variable of zeros that replicas sum."""
        return self.add_variable(shape=shape, initializer="zeros", dtype="float64", name=name)

    def value(self) -> Any:
        """Return the metric as a float64 scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define value().")

    def result(self) -> Any:
        """Return the metric of everything seen since the last reset, as a scalar of the metric's dtype."""
        return ops.cast(self.value(), self.dtype)


class MeanOverExamples(StreamingMetric):
    """Base of the metrics that are a weighted mean of one value per example."""

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.total = self.add_sums((), "total")
        self.weight = self.add_sums((), "weight")

    def add(self, values: Any, weights: Any) -> None:
        """Add ``values`` (n,) with ``weights`` (n,); a value whose weight is 0 does not count, even if it is NaN."""
        self.total.assign_add(weighted_sum(values, weights))
        self.weight.assign_add(ops.sum(weights))

    def value(self) -> Any:
        """Return total / weight."""
        return self.total / self.weight


def as_float(values: Any) -> Any:
    """Return ``values`` as a tensor of float32 or float64; half precision and integers become float32."""
    tensor = ops.convert_to_tensor(values)
    if keras.backend.standardize_dtype(tensor.dtype) in ("float32", "float64"):
        return tensor
    return ops.cast(tensor, "float32")


def float64(values: Any) -> Any:
    """Return ``values`` as a float64 tensor."""
    return ops.cast(values, "float64")


def weighted_sum(values: Any, weights: Any) -> Any:
    """Return sum(values * weights) in float64, where weight 0 removes even a NaN."""
    zero = ops.zeros((), dtype="float64")
    return ops.sum(ops.where(ops.equal(weights, 0.0), zero, float64(values) * weights))


def read(owner: str, task: str, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Examples:
    """Read the arguments of ``update_state`` for any of the tasks.

    Args:
        owner: who asks, for the error message.
        task: "multiclass", "binary" or "multilabel".
        y_true: labels; see ``read_classes`` and ``read_entries``.
        y_pred: outputs of the model.
        sample_weight: weights that broadcast from the left, or None.

    Returns:
        The flattened examples.
    """
    choice(owner, "task", task, TASKS)
    if task == "multiclass":
        return read_classes(owner, y_true, y_pred, sample_weight)
    return read_entries(owner, y_true, y_pred, sample_weight)


def read_classes(owner: str, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Examples:
    """Read ``y_pred`` (..., classes) with ``y_true`` (...,) or (..., 1) class ids, or (..., classes) distributions.

    Args:
        owner: who asks, for the error message.
        y_true: class ids, one-hot rows or soft labels (``labels`` are then their first largest class).
        y_pred: one row of outputs per example.
        sample_weight: (batch,) up to (...,), or None.

    Returns:
        The flattened examples; ``targets`` is None for class ids. A label out of range gives weight NaN, so that the
        result is NaN instead of a wrong number.
    """
    mask = keras_mask(y_pred)
    y_true, y_pred = ops.convert_to_tensor(y_true), as_float(y_pred)
    rank = len(y_pred.shape)
    classes = y_pred.shape[-1] if rank else None
    if rank < 2 or classes is None or classes < 2:
        raise error(
            owner,
            "y_pred of shape (..., classes) with at least 2 classes",
            f"shape {tuple(y_pred.shape)}",
            'For one probability per example use task="binary", where the metric has it',
        )
    lead = ops.shape(y_pred)[:-1]
    outputs = ops.reshape(y_pred, (-1, classes))
    targets = None
    if len(y_true.shape) == rank and y_true.shape[-1] == classes:
        targets = ops.reshape(as_float(y_true), (-1, classes))
        labels = ops.cast(ops.argmax(targets, axis=-1), "int32")
    elif len(y_true.shape) == rank - 1 or (len(y_true.shape) == rank and y_true.shape[-1] == 1):
        labels = ops.reshape(ops.cast(y_true, "int32"), (-1,))
    else:
        raise error(
            owner,
            f"y_true of class ids or of one-hot rows for y_pred of shape {tuple(y_pred.shape)}",
            f"shape {tuple(y_true.shape)}",
        )
    inside = ops.clip(labels, 0, classes - 1)
    weights = read_weights(owner, sample_weight, lead, rank - 1, mask, known=ops.equal(labels, inside))
    return Examples(inside, outputs, weights, targets)


def read_entries(owner: str, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Examples:
    """Read yes/no answers: ``y_pred`` of any shape, ``y_true`` of the same shape with entries 0 and 1.

    Args:
        owner: who asks, for the error message.
        y_true: 0 or 1 for each entry; a last axis of size 1 may be missing or extra.
        y_pred: one output per entry.
        sample_weight: (batch,) up to the shape of ``y_pred``, or None.

    Returns:
        The flattened entries. A label that is neither 0 nor 1 gives weight NaN.
    """
    mask = keras_mask(y_pred)
    y_true, y_pred = ops.convert_to_tensor(y_true), as_float(y_pred)
    if len(y_pred.shape) > 1 and y_pred.shape[-1] == 1:
        y_pred = ops.squeeze(y_pred, axis=-1)
    if len(y_true.shape) == len(y_pred.shape) + 1 and y_true.shape[-1] == 1:
        y_true = ops.squeeze(y_true, axis=-1)
    unequal = [a != b for a, b in zip(y_true.shape, y_pred.shape, strict=False) if None not in (a, b)]
    if len(y_true.shape) != len(y_pred.shape) or any(unequal):
        raise error(
            owner,
            f"y_true of 0 and 1 in the shape of y_pred, {tuple(y_pred.shape)}",
            f"shape {tuple(y_true.shape)}",
            'For class ids use task="multiclass", where the metric has it',
        )
    lead = ops.shape(y_pred)
    labels = ops.reshape(ops.cast(y_true, "int32"), (-1,))
    known = ops.logical_or(ops.equal(labels, 0), ops.equal(labels, 1))
    weights = read_weights(owner, sample_weight, lead, len(y_pred.shape), mask, known=known)
    return Examples(labels, ops.reshape(y_pred, (-1,)), weights)


def read_weights(owner: str, sample_weight: Any, lead: Any, rank: int, mask: Any = None, known: Any = None) -> Any:
    """Return float64 weights (n,) for examples of shape ``lead``: ones, times the sample weights, times the mask.

    Args:
        owner: who asks, for the error message.
        sample_weight: None, or weights whose shape is the first axes of ``lead``; a last axis of size 1 may be extra.
        lead: shape of the examples.
        rank: length of ``lead``.
        mask: None or (...,) bool; masked examples weigh nothing.
        known: None or (n,) bool; an example that is not known weighs NaN, unless its weight is 0.

    Returns:
        (n,), float64.
    """
    given = [float64(part) for part in (sample_weight, mask) if part is not None]
    if not given and known is not None:
        return ops.where(known, float64(1.0), float("nan"))
    weights = ops.ones(lead, dtype="float64")
    for part in given:
        if len(part.shape) == rank + 1 and part.shape[-1] == 1:
            part = ops.squeeze(part, axis=-1)
        if len(part.shape) > rank:
            raise error(owner, f"sample_weight of at most {rank} axes", f"shape {tuple(part.shape)}")
        while len(part.shape) < rank:
            part = ops.expand_dims(part, axis=-1)
        weights = weights * part
    weights = ops.reshape(weights, (-1,))
    if known is None:
        return weights
    return ops.where(ops.logical_or(known, ops.equal(weights, 0.0)), weights, float("nan"))


def keras_mask(y_pred: Any) -> Any:
    """Return the padding mask that Keras attached to a model's output, or None."""
    return getattr(y_pred, "_keras_mask", None)


def first_largest(outputs: Any) -> tuple[Any, Any]:
    """Return the largest of each row and the first index where it stands.

    On a CPU to search for an index takes several times as long as to read. Where the number of classes allows, each
    row is therefore cut in blocks: one fast pass gives the largest of every block, the search only sees few numbers,
    and is compiled where that is worth it.

    Args:
        outputs: (n, classes), float.

    Returns:
        (n,) values, NaN for a row with a NaN, and (n,) int32 indices. Where XLA compiles what is around this, as its
        largest passes over NaN: no finite value for a row of nothing but NaN.
    """
    classes = outputs.shape[-1]
    size = next((k for k in BLOCKS if classes % k == 0 and classes >= 2 * k), 0)
    if classes < 100 or not size:
        return ops.max(outputs, axis=-1), _argmax(outputs)
    blocks = ops.max(ops.reshape(outputs, (-1, classes // size, size)), axis=-1)
    if classes >= COMPILED_FROM_CLASSES and not eager():
        return compiled(functools.partial(_search, first=_first_equal))(outputs, blocks)
    return _search(outputs, blocks, _argmax)


def _search(outputs: Any, blocks: Any, first: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    """Return the largest of each row (n, classes) and its first index, given the largest of each block (n, count)."""
    count = blocks.shape[-1]
    size = outputs.shape[-1] // count
    largest = ops.max(blocks, axis=-1, keepdims=True)
    block = first(blocks, largest)
    rows = ops.take(ops.reshape(outputs, (-1, size)), _flat(block, count), axis=0)
    unknown = ops.any(ops.isnan(blocks), axis=-1)  # XLA's largest of numbers and NaN is a number
    return ops.where(unknown, float("nan"), largest[:, 0]), block * size + first(rows, largest)


def _argmax(rows: Any, largest: Any = None) -> Any:
    """Return the first index of each row's largest: (n,) int32; any index for a row with a NaN."""
    import tensorflow as tf  # Keras' own argmax copies the numbers before it looks at them, to tell -0.0 from 0.0

    return tf.argmax(rows, axis=-1, output_type=tf.int32)


def _first_equal(rows: Any, largest: Any) -> Any:
    """Return ``_argmax``, given the ``largest`` (n, 1): several times as fast, if it is compiled."""
    last = rows.shape[-1] - 1
    return ops.min(ops.where(ops.equal(rows, largest), ops.arange(last + 1, dtype="int32"), last), axis=-1)


def segment_sums_of_two(first: Any, second: Any, index: Any, num_segments: int) -> tuple[Any, Any]:
    """Sum two float64 rows (n,) in the segments ``index`` (n,) int32, as real and imaginary part of one sum.

    A segment sum costs per number, not per byte; rows of two numbers TensorFlow adds one row at a time.
    """
    import tensorflow as tf

    sums = ops.segment_sum(tf.complex(first, second), index, num_segments=num_segments)
    return ops.real(sums), ops.imag(sums)


def _flat(index: Any, width: int) -> Any:
    """Return where entry ``index[i]`` of row i stands in a flattened (n, width) table; int64, for large tables."""
    return ops.arange(ops.shape(index)[0], dtype="int64") * width + ops.cast(index, "int64")


def _pick(outputs: Any, index: Any) -> Any:
    """Return outputs[i, index[i]]: from the flat table, as take_along_axis would copy all of it."""
    return ops.take(ops.reshape(outputs, (-1,)), _flat(index, outputs.shape[-1]), axis=0)


def of_label(outputs: Any, labels: Any) -> Any:
    """Return each row's entry at its label: (n,)."""
    return _pick(outputs, labels)


def checked_probability(values: Any) -> Any:
    """Return probabilities clipped to [0, 1]; NaN where a value is further out than rounding explains."""
    good = ops.logical_and(values >= -PROBABILITY_SLACK, values <= 1.0 + PROBABILITY_SLACK)
    return ops.where(good, ops.clip(values, 0.0, 1.0), float("nan"))


def top_label(examples: Examples, from_logits: bool) -> tuple[Any, Any]:
    """Return each example's confidence (largest probability) and whether that class is the label (1.0 or 0.0).

    Args:
        examples: what ``read_classes`` gave.
        from_logits: whether the outputs are logits; else probabilities, used as given.

    Returns:
        (n,) confidence in the outputs' dtype, (n,) correctness as float64.
    """
    largest, predicted = first_largest(examples.outputs)
    if from_logits:
        confidence = 1.0 / ops.sum(ops.exp(examples.outputs - largest[:, None]), axis=-1)
    else:
        confidence = checked_probability(largest)
    return confidence, float64(ops.equal(predicted, examples.labels))


def distribution(outputs: Any, from_logits: bool) -> Any:
    """Return probabilities of rows of outputs, checked where they are given."""
    return ops.softmax(outputs, axis=-1) if from_logits else checked_probability(outputs)
