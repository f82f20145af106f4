"""Which positions of a sequence or a map count: masks of layers and inputs, void labels, and the mean over the rest."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error, nearest
from keras_distill._typing import Structure, Tensor
from keras_distill.losses._numerics import replicas

#: Names of the mask inputs of text models, in search order; outputs follow the decoder.
MASK_INPUTS = ("decoder_padding_mask", "padding_mask", "attention_mask")


def mask_of(tensor: Tensor) -> Any:
    """Return the padding mask that Keras layers have put on a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def weighted_mean(
    values: Tensor,
    sample_weight: Structure = None,
    mask: Tensor = None,
    masked: bool = False,
    fraction: float | None = None,
) -> Tensor:
    """Mean over examples as in Keras: the sum of weighted values, divided by the number of positions that count.

    Positions that are masked, or whose own weight is 0, do not count, so more padding changes nothing. An example's
    weight, as in Keras, leaves its positions in the count. Under several replicas the count is that of the global
    batch, per local position: the step weights each replica by its share of the examples.

    Args:
        values: (batch, ...) or a scalar, which is returned as it is (a loss that needs the whole batch).
        sample_weight: (batch,) or (batch, ...), or None.
        mask: (batch, ...) bool, or None; masked positions never count.
        masked: whether the mask is already applied to ``values``, as by ``arguments.apply_mask``.
        fraction: share of positions that count in all the data, to divide by instead of this batch's own count; None
            uses the batch's count. It does not affect values without positions.

    Returns:
        A scalar, float32; 0 where nothing counts.
    """
    values = ops.cast(values, "float32")
    rank = len(values.shape)
    if rank == 0:
        return values
    local = ops.cast(ops.prod(ops.shape(values)), "float32")
    kept = None
    if mask is not None and len(mask.shape) <= rank:
        kept = _to_rank(ops.cast(mask, "float32"), rank) * ops.ones_like(values)
        # Not `values * mask`: a masked NaN must not count either.
        values = ops.where(kept > 0, values, 0.0)
    per_position = False
    if sample_weight is not None:
        weight = _to_rank(ops.cast(sample_weight, "float32"), rank)
        while len(weight.shape) > rank:  # one weight per position, one value per example
            weight = ops.mean(weight, axis=-1)
        per_position = any(length != 1 for length in weight.shape[1:])
        values = values * weight
    total = ops.sum(values)
    fraction = fraction if rank > 1 else None
    if fraction is None and not per_position and (kept is None or masked):
        return ops.divide_no_nan(total, local)
    kept = ops.ones_like(values) if kept is None else kept
    counted = kept * ops.cast(ops.not_equal(weight, 0.0), "float32") if per_position else kept
    size, unmasked, count = replicas.everywhere(local, ops.sum(kept), ops.sum(counted))
    # Values with the mask already applied carry a factor of size / unmasked.
    count = count if fraction is None else fraction * size
    return ops.divide_no_nan(total * ((unmasked if masked else size) / ops.maximum(local, 1.0)), count)


def _to_rank(tensor: Tensor, rank: int) -> Tensor:
    while len(tensor.shape) > rank and tensor.shape[-1] == 1:
        tensor = ops.squeeze(tensor, -1)
    while len(tensor.shape) < rank:
        tensor = ops.expand_dims(tensor, -1)
    return tensor


# ---------------------------------------------------------------------- the mask among the inputs


def with_input_mask(owner: str, outputs: Structure, batch: Any, name: str | None) -> tuple[Any, bool]:
    """Return the outputs, with the inputs' mask on sequences that carry none.

    Args:
        owner: name shown in the error message.
        outputs: the student's outputs or features; a sequence is (batch, time, channels).
        batch: a ``training.Batch``, or None.
        name: name of the input; ``"auto"`` looks for those of ``MASK_INPUTS``; None uses no input.

    Returns:
        The outputs, and whether they include a sequence of tokens without any indication of padding.

    Raises:
        ValueError: if there is no input of this name.
    """
    if batch is None or name is None:
        return outputs, False
    inputs = batch.inputs
    if isinstance(inputs, dict) and isinstance(inputs.get("inputs"), dict):  # beside a stored teacher's answers
        inputs = inputs["inputs"]
    fields = inputs if isinstance(inputs, dict) else {}
    if name != "auto" and name not in fields:
        got = f"only {nearest(name, list(fields))}" if fields else "no dictionary of inputs"
        raise error(owner, f"an input {name!r} for mask_input", got, "mask_input=None counts every position")
    names = [each for each in MASK_INPUTS if each in fields] if name == "auto" else [name]
    leaves, unknown = [], False
    for tensor in keras.tree.flatten(outputs):
        fitting = [fields[each] for each in names if _is_mask_of(fields[each], tensor)]
        if mask_of(tensor) is None and fitting:
            tensor = ops.copy(tensor)
            tensor._keras_mask = ops.cast(fitting[0], "bool")
        unknown = unknown or (mask_of(tensor) is None and _follows_tokens(tensor, inputs))
        leaves.append(tensor)
    return keras.tree.pack_sequence_as(outputs, leaves), unknown


def _is_mask_of(mask: Any, tensor: Any) -> bool:
    shape = tuple(getattr(mask, "shape", ()))
    return len(tensor.shape) == 3 and len(shape) == 2 and (shape[1] == tensor.shape[1] or None in shape[1:])


def _follows_tokens(tensor: Any, inputs: Any) -> bool:
    """Return whether a tensor is a sequence as long as integer inputs (batch, time)."""
    return any(
        "int" in keras.backend.standardize_dtype(each.dtype) and _is_mask_of(each, tensor)
        for each in keras.tree.flatten(inputs)
        if hasattr(each, "dtype") and each.dtype != "string"
    )


def warn_of_padding(owner: str, name: str) -> None:
    """Warn once that a term counts every position of a sequence of tokens.

    Args:
        owner: class of the term.
        name: of the term.
    """
    warnings.warn(
        f"{owner}: {name!r} counts every position of the sequences, padding too: there is no mask on the student's "
        f"outputs, no input named {', '.join(MASK_INPUTS)}, no sample_weight. "
        "Name the mask with mask_input=..., or give mask_input=None where nothing is padded.",
        stacklevel=2,
    )


# ---------------------------------------------------------------------- labels of the void


def without_unlabelled(outputs: Structure, labels: Structure, ignored: tuple[int | None, ...]) -> tuple[Any, Any]:
    """Leave out positions whose label the supervised loss ignores, where labels have the positions of an output.

    Args:
        outputs: the student's outputs.
        labels: as given to ``fit``, one for each output or one for all.
        ignored: the ``ignore_class`` of the supervised loss of each output, or one for all.

    Returns:
        Outputs and labels, as from ``without_void``; outputs with one label per example are unchanged.
    """
    leaves, given = keras.tree.flatten(outputs), keras.tree.flatten(labels)
    if labels is None or len(given) != len(leaves):
        return outputs, labels
    classes = ignored if len(ignored) == len(leaves) else ignored[:1] * len(leaves)
    changed = [
        without_void("", tensor, label, void) if void is not None and _has_positions(label, tensor) else (tensor, label)
        for tensor, label, void in zip(leaves, given, classes, strict=True)
    ]
    return (
        keras.tree.pack_sequence_as(outputs, [tensor for tensor, _ in changed]),
        keras.tree.pack_sequence_as(labels, [label for _, label in changed]),
    )


def _has_positions(label: Any, tensor: Any) -> bool:
    """Return whether there is a label for each position of a sequence or a map, with or without a trailing axis."""
    column = len(label.shape) == len(tensor.shape) and label.shape[-1] == 1
    return len(tensor.shape) > 2 and (column or len(label.shape) == len(tensor.shape) - 1)


def without_void(owner: str, outputs: Structure, labels: Structure, ignore_label: int) -> tuple[Any, Any]:
    """Return the outputs with a mask of the labelled positions, and the labels with 0 in place of the void label.

    Args:
        owner: name shown in the error message.
        outputs: the student's outputs or features, (batch, ..., channels), or a structure of them.
        labels: (batch, ...), integer, one map for all outputs or one each.
        ignore_label: the label of void positions.

    Returns:
        Both, with unchanged structure.

    Raises:
        ValueError: if there are no labels, or their rank fits no output.
    """
    leaves, given = keras.tree.flatten(outputs), keras.tree.flatten(labels)
    if labels is None or len(given) not in (1, len(leaves)):
        got = "no labels" if labels is None else f"{len(given)} for {len(leaves)} outputs"
        raise error(owner, "one map of labels, or one for each output, for ignore_label", got)
    masked, maps = [], given * len(leaves) if len(given) == 1 else given
    for tensor, label in zip(leaves, maps, strict=True):
        label = ops.squeeze(label, -1) if len(label.shape) == len(tensor.shape) and label.shape[-1] == 1 else label
        if len(label.shape) < 2 or len(label.shape) != len(tensor.shape) - 1:
            advice = "Labels have one class id for each position"
            got = f"{tuple(label.shape)} for outputs {tuple(tensor.shape)}"
            raise error(owner, "a map of labels with the positions of the outputs for ignore_label", got, advice)
        kept = nearest_positions(ops.not_equal(label, ignore_label), tensor.shape[1:-1])
        own = mask_of(tensor)
        tensor = ops.copy(tensor)
        tensor._keras_mask = kept if own is None else ops.logical_and(kept, own)
        masked.append(tensor)
    clean = [ops.where(ops.equal(label, ignore_label), ops.zeros_like(label), label) for label in given]
    return keras.tree.pack_sequence_as(outputs, masked), keras.tree.pack_sequence_as(labels, clean)


def nearest_positions(positions: Any, size: Any) -> Any:
    """Return (batch, *size): the nearest entry of (batch, ...) for each new position; unknown sizes are kept."""
    for axis, (old, new) in enumerate(zip(positions.shape[1:], size, strict=True), start=1):
        if None not in (old, new) and old != new:
            index = np.minimum(((np.arange(new) + 0.5) * old / new).astype("int32"), old - 1)
            positions = ops.take(positions, index, axis=axis)
    return positions
