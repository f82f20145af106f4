"""The global batch under ``tf.distribute``, for losses that compare examples with each other."""

from __future__ import annotations

from keras_distill._typing import Tensor


def gather(features: Tensor) -> Tensor:
    """Return the features of all replicas, one after the other along the batch axis.

    The gradient of each replica's part is summed over the replicas, so that a loss averaged over the replicas equals
    the loss of one big batch. Outside a replica, or with one replica, the features come back as they are.

    Args:
        features: (batch, ...) of this replica.

    Returns:
        (batch of all replicas, ...).
    """
    # Keras has no collective operations; TensorFlow is the one backend, and is imported only where one is asked for.
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return features
    return context.all_gather(features, axis=0)
