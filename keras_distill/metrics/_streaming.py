"""Metrics with float64 sums as state, which are accurate for any number of examples."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill._typing import Tensor


class StreamingMetric(keras.metrics.Metric):
    """Base of the metrics that keep float64 sums, accurate for any number of examples and any batch size.

    The state is summed over replicas. A subclass creates it with ``add_sums`` and defines ``update_state`` and
    ``value``. Before the first example the result is NaN.
    """

    def add_sums(self, shape: tuple[int, ...], name: str) -> Tensor:
        """Return a float64 variable of zeros that is summed over replicas."""
        return self.add_variable(shape=shape, initializer="zeros", dtype="float64", name=name)

    def value(self) -> Tensor:
        """Return the metric as a float64 scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define value().")

    def result(self) -> Tensor:
        """Return the metric of everything seen since the last reset, as a scalar of the metric's dtype."""
        return ops.cast(self.value(), self.dtype)


class MeanOverExamples(StreamingMetric):
    """Base of the metrics that are a weighted mean of one value per example."""

    def __init__(self, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.total = self.add_sums((), "total")
        self.weight = self.add_sums((), "weight")

    def add(self, values: Tensor, weights: Tensor) -> None:
        """Add ``values`` (n,) with ``weights`` (n,); a value of weight 0 does not count, even if it is NaN."""
        self.total.assign_add(weighted_sum(values, weights))
        self.weight.assign_add(ops.sum(weights))

    def value(self) -> Tensor:
        """Return total / weight."""
        return self.total / self.weight


def float64(values: Tensor) -> Tensor:
    """Return ``values`` as a float64 tensor."""
    return ops.cast(values, "float64")


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Return sum(values * weights) in float64, where weight 0 removes even a NaN."""
    zero = ops.zeros((), dtype="float64")
    return ops.sum(ops.where(ops.equal(weights, 0.0), zero, float64(values) * weights))
