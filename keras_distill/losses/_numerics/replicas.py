"""The global batch under ``tf.distribute``, for losses that compare examples and for counts of positions."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_distill._typing import Tensor


def gather(features: Tensor) -> Tensor:
    """Return the features of all replicas, one after the other along the batch axis.

    The gradient of each replica's part is summed over the replicas, so that a loss averaged over the replicas equals
    the loss of one big batch. Outside a replica, or with one replica, the features are returned unchanged.

    Args:
        features: (batch, ...) of this replica.

    Returns:
        (batch of all replicas, ...).
    """
    context = _context()
    return features if context is None else context.all_gather(features, axis=0)


def share(count: Tensor) -> Tensor:
    """Return this replica's share of a count over all replicas: 1 with one replica, 0 if the total is 0.

    Args:
        count: scalar, float.
    """
    context = _context()
    return ops.ones_like(count) if context is None else ops.divide_no_nan(count, context.all_reduce("SUM", count))


def everywhere(*counts: Tensor) -> list[Tensor]:
    """Return the sum of each count over all replicas; outside a replica, or with one, the counts themselves.

    Args:
        *counts: float32 scalars.
    """
    context = _context()
    if context is None:
        return list(counts)
    sums = context.all_reduce("SUM", ops.stack(counts))
    return [sums[index] for index in range(len(counts))]


def _context() -> Any:
    """Return TensorFlow's replica context, or None unless there are several replicas."""
    # Keras has no collective operations. TensorFlow, the only backend, is imported only where one is needed.
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context
