"""Reads labels, outputs and weights of a metric, flattened to one row per example."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._checks import choice, error
from keras_distill._typing import Tensor
from keras_distill.metrics._streaming import float64

TASKS = ("multiclass", "binary", "multilabel")


class Examples(NamedTuple):
    """Labels, outputs and weights of one update, flattened to one row per example (or per entry)."""

    labels: Any  # (n,) int32; for binary and multilabel 0 or 1
    outputs: Any  # (n, classes) float; for binary and multilabel (n,)
    weights: Any  # (n,) float64
    targets: Any = None  # (n, classes) if y_true holds one-hot rows or soft labels


def as_float(values: Tensor) -> Tensor:
    """Return ``values`` as a tensor of float32 or float64; half precision and integers become float32."""
    tensor = _checks.tensor("metrics", values, ops.convert_to_tensor)
    if keras.backend.standardize_dtype(tensor.dtype) in ("float32", "float64"):
        return tensor
    return ops.cast(tensor, "float32")


def read(owner: str, task: str, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Examples:
    """Read the arguments of ``update_state`` for any of the tasks.

    Args:
        owner: name shown in the error message.
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


def read_classes(owner: str, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Examples:
    """Read ``y_pred`` (..., classes) with ``y_true`` (...,) or (..., 1) class ids, or (..., classes) distributions.

    Args:
        owner: name shown in the error message.
        y_true: class ids, one-hot rows or soft labels (``labels`` are then their first largest class).
        y_pred: one row of outputs per example.
        sample_weight: (batch,) up to (...,), or None.

    Returns:
        The flattened examples; ``targets`` is None for class ids. A label out of range gets weight NaN, so that the
        result is NaN instead of a wrong number.
    """
    mask = keras_mask(y_pred)
    y_true, y_pred = _checks.tensor(owner, y_true, ops.convert_to_tensor), as_float(y_pred)
    rank = len(y_pred.shape)
    classes = y_pred.shape[-1] if rank else None
    if rank < 2 or classes is None or classes < 2:
        raise error(
            owner,
            "y_pred of shape (..., classes) with at least 2 classes",
            f"shape {tuple(y_pred.shape)}",
            'For one probability per example use task="binary", if the metric has it',
        )
    one_batch(owner, y_true, y_pred)
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
            f"y_true of class ids or one-hot rows for y_pred of shape {tuple(y_pred.shape)}",
            f"shape {tuple(y_true.shape)}",
        )
    inside = ops.clip(labels, 0, classes - 1)
    weights = read_weights(owner, sample_weight, lead, rank - 1, mask, known=ops.equal(labels, inside))
    return Examples(inside, outputs, weights, targets)


def one_batch(owner: str, y_true: Tensor, y_pred: Tensor) -> None:
    """Raise unless there are as many labels as outputs, if both numbers are known."""
    labels, outputs = (each.shape[0] if len(each.shape) else None for each in (y_true, y_pred))
    if labels is not None and outputs is not None and labels != outputs:
        raise error(owner, f"labels for {outputs} examples, one for each output", str(labels))


def read_entries(owner: str, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> Examples:
    """Read yes/no answers: ``y_pred`` of any shape, ``y_true`` of the same shape with entries 0 and 1.

    Args:
        owner: name shown in the error message.
        y_true: 0 or 1 for each entry; a last axis of size 1 may be missing or extra.
        y_pred: one output per entry.
        sample_weight: (batch,) up to the shape of ``y_pred``, or None.

    Returns:
        The flattened entries. A label that is neither 0 nor 1 gets weight NaN.
    """
    mask = keras_mask(y_pred)
    y_true, y_pred = _checks.tensor(owner, y_true, ops.convert_to_tensor), as_float(y_pred)
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
            'For class ids use task="multiclass", if the metric has it',
        )
    lead = ops.shape(y_pred)
    labels = ops.reshape(ops.cast(y_true, "int32"), (-1,))
    known = ops.logical_or(ops.equal(labels, 0), ops.equal(labels, 1))
    weights = read_weights(owner, sample_weight, lead, len(y_pred.shape), mask, known=known)
    return Examples(labels, ops.reshape(y_pred, (-1,)), weights)


def read_weights(
    owner: str, sample_weight: Tensor, lead: Any, rank: int, mask: Tensor = None, known: Any = None
) -> Tensor:
    """Return float64 weights (n,) for examples of shape ``lead``: the sample weights times the mask.

    Args:
        owner: name shown in the error message.
        sample_weight: None, or weights whose shape is the first axes of ``lead``; a last axis of size 1 may be extra.
        lead: shape of the examples.
        rank: length of ``lead``.
        mask: None or (...,) bool; masked examples have weight 0.
        known: None or (n,) bool; False makes an example's weight NaN, unless it is 0.

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


def keras_mask(y_pred: Tensor) -> Tensor:
    """Return the padding mask that Keras attached to a model's output, or None."""
    return getattr(y_pred, "_keras_mask", None)
