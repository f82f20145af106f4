"""Repeatable random augmentation: each view of each example has its own seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Augment = Callable[[Any, tf.Tensor], Any]


def view_of(
    dataset: tf.data.Dataset, augment: Augment, view: Any, seed: int, batched: bool, several: int = 0
) -> tf.data.Dataset:
    """Return ``dataset`` with ``augment(example, seed)`` in place of each example, for any batch size.

    Args:
        dataset: x, (x, y) or (x, y, sample_weight), batched or not.
        augment: maps one example and a (2,) int32 seed, for ``tf.image.stateless_*`` and similar, to the input of both
            networks.
        view: number of the view, an int or a scalar tensor.
        seed: the store's seed.
        batched: whether the dataset is batched.
        several: if above 0, the number of views, from ``view`` on, made from each element once it has been read.

    Returns:
        A dataset of the same structure, or of tuples of that many such elements.
    """
    start_of_seeds = tf.cast((seed * 1_000_003) % (2**30), tf.int32) + tf.cast(view, tf.int32)

    def number(start: tf.Tensor, *element: Any) -> tuple[tf.Tensor, Any]:
        element = element[0] if len(element) == 1 else element
        count = tf.shape(leaves(element)[0], out_type=tf.int64)[0] if batched else tf.constant(1, tf.int64)
        return start + count, (start, element)

    def all_of(start: tf.Tensor, element: Any) -> Any:
        if not several:
            return apply(start, element, start_of_seeds)
        return tuple(apply(start, element, start_of_seeds + index) for index in range(several))

    def apply(start: tf.Tensor, element: Any, first: tf.Tensor) -> Any:
        x, rest = (element[0], element[1:]) if isinstance(element, tuple) else (element, None)

        def one(each: tuple[Any, tf.Tensor]) -> Any:
            return augment(each[0], tf.stack([first, tf.cast(each[1], tf.int32)]))

        if not batched:
            seen = one((x, start))
        else:
            rows = start + tf.range(tf.shape(keras.tree.flatten(x)[0], out_type=tf.int64)[0])
            # The structure that augment returns is only known by calling it.
            spec = tf.function(one).get_concrete_function(
                keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), (x, rows))
            )
            signature = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), spec.structured_outputs)
            seen = tf.map_fn(one, (x, rows), fn_output_signature=signature)
        return seen if rest is None else (seen, *rest)

    def leaves(element: Any) -> list[Any]:
        return keras.tree.flatten(element[0] if isinstance(element, tuple) else element)

    numbered = dataset.scan(tf.constant(0, tf.int64), number)
    return numbered.map(all_of, num_parallel_calls=tf.data.AUTOTUNE)
