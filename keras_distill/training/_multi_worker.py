"""The one place that makes ``fit`` and ``evaluate`` work under ``tf.distribute.MultiWorkerMirroredStrategy``.

Keras 3's own ``fit`` fails there in two places, before the first step and after it (seen with 3.15.1):

- to build the model it takes the mean of the first batch over all workers as if it were one scalar;
- it averages the logs of a step over axis 0, which scalars do not have.

Here the model is built from this worker's part of the batch, and a step returns each log as a row, which the average
turns back into a scalar. Nothing else differs: gradients, the share of the global batch and the metrics' states go
through the same code as under ``MirroredStrategy``. With one worker, everything is Keras' own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_distill._typing import Structure


class TrainsOnManyWorkers(keras.Model):
    """Base of ``Distiller`` with two fixes for Keras' trainer, active only under several workers."""

    @property
    def _many_workers(self) -> bool:
        return _has_many_workers(self.distribute_strategy)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        if not self._many_workers or iterator is None:
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
            return
        _, _, batches = next(iter(iterator))
        strategy = self.distribute_strategy
        local = keras.tree.map_structure(lambda part: strategy.experimental_local_results(part)[0], next(batches))
        with strategy.scope():
            self._symbolic_build(data_batch=local)

    def _make_function(self, step_function: Callable[[Any], dict[str, Any]]) -> Any:
        if not self._many_workers:
            return super()._make_function(step_function)

        def step(data: Structure) -> dict[str, Any]:
            return {name: tf.reshape(value, [1]) for name, value in step_function(data).items()}

        return super()._make_function(step)


def _has_many_workers(strategy: Any) -> bool:
    many = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return many and strategy.cluster_resolver.cluster_spec().as_dict() != {}


def numbers_of_workers(strategy: Any, number: int) -> list[int]:
    """Return the number that every worker calls this with, one for each replica; each worker waits for all others.

    Without several workers it is this process's number alone.
    """
    if not _has_many_workers(strategy):
        return [number]
    replicas = strategy.num_replicas_in_sync

    def own(context: tf.distribute.ValueContext) -> tf.Tensor:
        return number * tf.one_hot(context.replica_id_in_sync_group, replicas)

    values = strategy.experimental_distribute_values_from_function(own)
    return list(map(int, strategy.reduce("sum", values, axis=None)))


def is_chief(strategy: Any) -> bool:
    """Return whether this process writes files for all: the only one, the chief, or worker 0 if there is no chief."""
    resolver = getattr(strategy, "cluster_resolver", None)
    if resolver is None or not resolver.task_type:
        return True
    first = ("worker", 0) if "chief" not in resolver.cluster_spec().as_dict() else ("chief", 0)
    return (resolver.task_type, resolver.task_id) == first
