"""Inputs in the forms that users pass: arrays, structures of arrays, datasets of batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error
from keras_distill.data import Data, Examples

_BATCH = 64


def input_batches(owner: str, data: Any, most: int = 512) -> Iterator[Any]:
    """Yield batches of inputs, at most ``most`` examples in all.

    Args:
        owner: name shown in the error message.
        data: arrays as the model takes them (not ``(inputs, labels)``); a ``tf.data.Dataset`` of batches of inputs or
            of ``(inputs, labels)``; ``data.Examples`` or ``data.Data``.
        most: the largest number of examples to read.

    Yields:
        Batches in the model's structure.
    """
    if isinstance(data, Data):
        data = data.train
    if isinstance(data, Examples):
        data = data.inputs
    if isinstance(data, tf.data.Dataset):
        seen = 0
        for batch in data:
            inputs = batch[0] if isinstance(batch, tuple) else batch
            yield inputs
            seen += len(keras.tree.flatten(inputs)[0])
            if seen >= most:
                return
        if not seen:
            raise error(owner, "data with examples", "an empty dataset")
        return
    arrays = keras.tree.flatten(data)
    count = {len(array) for array in arrays if np.ndim(array)}
    if len(count) != 1 or 0 in count:
        got = f"{sorted(count)}" if count else type(data).__name__
        raise error(owner, "data as arrays of equally many examples", got)
    for start in range(0, min(most, count.pop()), _BATCH):
        yield keras.tree.map_structure(lambda array, at=start: array[at : min(at + _BATCH, most)], data)


def check_inputs(owner: str, model: Any, batch: Any) -> list[Any]:
    """Return the batch as a flat list of tensors in the order of the model's inputs, or raise if it does not fit."""
    wanted = model.inputs
    if isinstance(batch, dict):
        batch = [batch[tensor.name] for tensor in wanted if tensor.name in batch]
    given = keras.tree.flatten(batch)
    if len(given) != len(wanted):
        raise error(owner, f"data for {len(wanted)} inputs of {model.name!r}", f"{len(given)}")
    for tensor, value in zip(wanted, given, strict=True):
        shape = tuple(np.shape(value))
        fits = len(shape) == len(tensor.shape) and all(
            size is None or size == actual for size, actual in zip(tensor.shape[1:], shape[1:], strict=True)
        )
        if not fits:
            expected = f"data of shape {tuple(tensor.shape)} for input {tensor.name!r}"
            raise error(owner, expected, f"{shape}")
    return [keras.ops.convert_to_tensor(value, t.dtype) for value, t in zip(given, wanted, strict=True)]
