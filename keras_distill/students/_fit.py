"""Finds the widest student within a budget by bisection, counting or measuring every limit on the real model."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable

import keras

from keras_distill._checks import error
from keras_distill.students import _litert
from keras_distill.students._built import Budget, Built

_ROUNDS = 9
_PARTS = 8
_STEPS = (8, 4, 2, 1)
#: The search ends once a limit is met to within this fraction: counted limits closely, a file or a time to two per
#: cent.
_CLOSE = {"parameters": 0.995, "macs": 0.995, "file_bytes": 0.99, "latency_ratio": 0.98}
_NEAR = 0.1


def fit_budget(
    owner: str,
    make: Callable[..., Built],
    budget: Budget,
    source: keras.Model,
    *,
    parts: int = 0,
    stop_watch: Callable[[bytes, bytes], float] = _litert.latency_ratio,
) -> Built:
    """Return the largest model from ``make`` within the budget.

    Args:
        owner: name shown in the error message.
        make: returns a model for a size in 0..1 and a mapping from part to additional channels; the cost must increase
            with both.
        budget: the limits.
        source: the model that latency is compared with.
        parts: number of parts.
        stop_watch: the time of one LiteRT file over that of another.

    Raises:
        ValueError: if the smallest model is over a limit.
    """
    gauge = _Gauge(budget, source, stop_watch)
    whole = make(1.0)
    if not gauge.over(whole):
        return whole
    best, low, high = make(1e-9), 0.0, 1.0
    over = gauge.over(best)
    if over:
        name, value = next(iter(over.items()))
        expected = f"a budget that some size meets: {name} <= {budget.limits[name]:g}"
        shown = f"{math.ceil(1000 * value) / 1000:.10g}"  # rounded up, to be valid as a limit
        raise error(owner, expected, f"{shown} for the smallest", f"Allow {name}={shown} or more, or reduce depth")
    for _ in range(_ROUNDS):
        size = (low + high) / 2
        built = make(size)
        if gauge.over(built):
            high = size
        else:
            best, low = built, size
            if gauge.close:
                return best
    wider: dict[int, int] = {}
    # For small layers one step of the width is large, so single channels fill the remainder; times are too coarse for
    # this.
    filled = set(budget.limits) != {"latency_ratio"}
    for part, more in itertools.product(range(min(parts, _PARTS) if filled else 0), _STEPS):
        larger = {**wider, part: wider.get(part, 0) + more}
        built = make(low, larger)
        if not gauge.over(built):
            wider, best = larger, built
            if gauge.close:
                break
    return best


class _Gauge:
    """Compares models with a budget, checking the cheapest limits first.

    Args:
        budget: the limits.
        source: the model that latency is compared with.
        stop_watch: the time of one LiteRT file over that of another.
    """

    def __init__(self, budget: Budget, source: keras.Model, stop_watch: Callable[[bytes, bytes], float]) -> None:
        self.limits, self.source, self.stop_watch = budget.limits, source, stop_watch
        self.close = False  # whether the last model was within the budget and near a limit
        self._reference: bytes | None = None

    def over(self, built: Built) -> dict[str, float]:
        """Return the first limits that a model exceeds, with its values; empty if it is within the budget."""
        found: dict[str, float] = {"parameters": built.cost.parameters, "macs": built.cost.macs}
        self.close = False
        exceeded = self._exceeded(found)
        if exceeded:
            return exceeded
        if {"file_bytes", "latency_ratio"} & set(self.limits):
            content = _litert.convert("from_teacher", built.model)
            found["file_bytes"] = len(content)
            if "latency_ratio" in self.limits and not self._exceeded(found):
                if self._reference is None:
                    self._reference = _litert.convert("from_teacher", self.source)
                found["latency_ratio"] = self._ratio(content, self._reference)
        exceeded = self._exceeded(found)
        self.close = not exceeded and any(found[name] >= _CLOSE[name] * limit for name, limit in self.limits.items())
        return exceeded

    def _ratio(self, content: bytes, reference: bytes) -> float:
        """Return the ratio of the times; near the limit, where noise matters, the median of three."""
        first = self.stop_watch(content, reference)
        if abs(first / self.limits["latency_ratio"] - 1) > _NEAR:
            return first
        return statistics.median([first, *(self.stop_watch(content, reference) for _ in range(2))])

    def _exceeded(self, found: dict[str, float]) -> dict[str, float]:
        return {name: found[name] for name, limit in self.limits.items() if found.get(name, 0) > limit}
