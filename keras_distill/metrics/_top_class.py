"""The largest entry of each row and its class, and checked probabilities."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses._numerics.xla import compiled, eager
from keras_distill.metrics._examples import Examples
from keras_distill.metrics._streaming import float64

# A float16 softmax may exceed 1 by this much; anything further out is not a probability.
PROBABILITY_SLACK = 1e-3
BLOCKS = (100, 50, 64, 80, 125, 128, 48, 40, 36, 32, 30, 25, 24, 20, 16)  # sizes of blocks of classes, best first
COMPILED_FROM_CLASSES = 512


def first_largest(outputs: Any) -> tuple[Tensor, Tensor]:
    """Return the largest entry of each row and its first index.

    On a CPU, searching for an index takes several times as long as reading. If the number of classes allows, each row
    is therefore split into blocks: one fast pass finds the maximum of every block, and the search, compiled if that
    pays, runs over few numbers.

    Args:
        outputs: (n, classes), float.

    Returns:
        (n,) values, NaN for a row with a NaN, and (n,) int32 indices. XLA's maximum skips NaN: if XLA compiles the
        caller, only a row of nothing but NaN is guaranteed not to be finite.
    """
    import tensorflow as tf  # Keras' maximum refuses a batch without examples

    classes = outputs.shape[-1]
    size = next((k for k in BLOCKS if classes % k == 0 and classes >= 2 * k), 0)
    if classes < 100 or not size:
        return tf.reduce_max(outputs, axis=-1), _argmax(outputs)
    blocks = tf.reduce_max(ops.reshape(outputs, (-1, classes // size, size)), axis=-1)
    if classes >= COMPILED_FROM_CLASSES and not eager():
        return compiled(functools.partial(_search, first=_first_equal))(outputs, blocks)
    return _search(outputs, blocks, _argmax)


def _search(outputs: Any, blocks: Any, first: Callable[[Any, Any], Any]) -> tuple[Tensor, Tensor]:
    """Return the maximum of each row (n, classes) and its first index, given the maxima of its blocks (n, count)."""
    count = blocks.shape[-1]
    size = outputs.shape[-1] // count
    largest = ops.max(blocks, axis=-1, keepdims=True)
    block = first(blocks, largest)
    rows = ops.take(ops.reshape(outputs, (-1, size)), _flat(block, count), axis=0)
    unknown = ops.any(ops.isnan(blocks), axis=-1)  # XLA's maximum of numbers and NaN is a number
    return ops.where(unknown, float("nan"), largest[:, 0]), block * size + first(rows, largest)


def _argmax(rows: Any, largest: Any = None) -> Tensor:
    """Return the first index of each row's maximum, (n,) int32; an arbitrary index for a row with a NaN."""
    import tensorflow as tf  # Keras' argmax first copies its input, to distinguish -0.0 from 0.0

    return tf.argmax(rows, axis=-1, output_type=tf.int32)


def _first_equal(rows: Any, largest: Any) -> Tensor:
    """Return ``_argmax``, given the ``largest`` (n, 1); several times as fast when compiled."""
    last = rows.shape[-1] - 1
    return ops.min(ops.where(ops.equal(rows, largest), ops.arange(last + 1, dtype="int32"), last), axis=-1)


def _flat(index: Any, width: int) -> Tensor:
    """Return the position of entry ``index[i]`` of row i in a flattened (n, width) table; int64, for large tables."""
    return ops.arange(ops.shape(index)[0], dtype="int64") * width + ops.cast(index, "int64")


def _pick(outputs: Any, index: Any) -> Tensor:
    """Return outputs[i, index[i]] from the flattened table, because take_along_axis would copy all of it."""
    return ops.take(ops.reshape(outputs, (-1,)), _flat(index, outputs.shape[-1]), axis=0)


def of_label(outputs: Any, labels: Tensor) -> Tensor:
    """Return each row's entry at its label: (n,)."""
    return _pick(outputs, labels)


def checked_probability(values: Tensor) -> Tensor:
    """Return probabilities clipped to [0, 1]; NaN where a value is further outside than rounding explains."""
    good = ops.logical_and(values >= -PROBABILITY_SLACK, values <= 1.0 + PROBABILITY_SLACK)
    return ops.where(good, ops.clip(values, 0.0, 1.0), float("nan"))


def top_label(examples: Examples, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Return each example's confidence (largest probability) and whether that class is the label (1.0 or 0.0).

    Args:
        examples: the result of ``read_classes``.
        from_logits: whether the outputs are logits; otherwise probabilities, used as given.

    Returns:
        (n,) confidence in the outputs' dtype, (n,) correctness as float64.
    """
    largest, predicted = first_largest(examples.outputs)
    if from_logits:
        confidence = 1.0 / ops.sum(ops.exp(examples.outputs - largest[:, None]), axis=-1)
    else:
        confidence = checked_probability(largest)
    return confidence, float64(ops.equal(predicted, examples.labels))


def distribution(outputs: Any, from_logits: bool) -> Tensor:
    """Return rows of probabilities: the softmax of logits, or checked probabilities."""
    return ops.softmax(outputs, axis=-1) if from_logits else checked_probability(outputs)
