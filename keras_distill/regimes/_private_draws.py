"""What private learning draws: noise that nobody can repeat, and the examples of each step."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


def secure_uniform(count: int) -> np.ndarray:
    """Draw uniform numbers in 0..1, exclusive, from the operating system's random bytes.

    Args:
        count: how many.
    """
    bits = np.frombuffer(os.urandom(8 * count), "uint64") >> np.uint64(11)
    return (bits.astype("float64") + 0.5) / 2.0**53


def secure_normal(shape: tuple[int, ...]) -> np.ndarray:
    """Draw standard normal numbers from the operating system's random bytes (Box and Muller).

    Args:
        shape: of the result.
    """
    size = int(np.prod(shape))
    uniform = secure_uniform(2 * size).reshape(2, size)
    return (np.sqrt(-2.0 * np.log(uniform[0])) * np.cos(2.0 * np.pi * uniform[1])).reshape(shape)


def poisson_batches(
    x: np.ndarray, y: np.ndarray, batch_size: int, source: Callable[[], Callable[[int], np.ndarray]]
) -> tf.data.Dataset:
    """Return the batches of an epoch: Poisson samples, and a row of weight 0, so that none of them is empty.

    Args:
        x: (examples, ...), all inputs.
        y: (examples,), their labels.
        batch_size: mean number of examples in a batch.
        source: called at the start of each epoch; gives what draws so many numbers in 0..1.
    """
    count = len(x)
    rate, steps = batch_size / count, -(-count // batch_size)

    def batches() -> Any:
        draw = source()
        for _ in range(steps):
            rows = np.append(np.flatnonzero(draw(count) < rate), 0)
            yield x[rows], y[rows], np.append(np.ones(len(rows) - 1, "float32"), np.float32(0.0))

    spec = [tf.TensorSpec((None, *each.shape[1:]), each.dtype) for each in (x, y)]
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_generator(batches, output_signature=(*spec, tf.TensorSpec((None,), "float32")))
    return dataset.apply(tf.data.experimental.assert_cardinality(steps)).with_options(options)
