"""The widest student within a budget: bisection over the width, every limit counted or measured on the real model."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import keras

from keras_distill._checks import error
from keras_distill.students import _litert
from keras_distill.students._built import Budget, Built

_ROUNDS = 9
_PARTS = 8
_STEPS = (8, 4, 2, 1)


def fit_budget(owner: str, make: Callable[..., Built], budget: Budget, source: keras.Model, *, parts: int = 0) -> Built:
    """Return the largest model that ``make`` gives within the budget.

    Args:
        owner: name shown in the error message.
        make: gives a model for a size in 0..1 and a mapping from a part to its additional channels; more costs more.
        budget: the limits.
        source: the model that latency is compared with.
        parts: how many parts there are.

    Raises:
        ValueError: if the smallest model is over a limit.
    """
    whole = make(1.0)
    if not _over(whole, budget, source):
        return whole
    least = make(1e-9)
    over = _over(least, budget, source)
    if over:
        name, value = next(iter(over.items()))
        expected = f"a budget that some size meets: {name} <= {budget.limits[name]:g}"
        raise error(owner, expected, f"{value:g} at the smallest", f"Allow {name}={value:g} or more, or reduce depth")
    best, low, high = least, 0.0, 1.0
    for _ in range(_ROUNDS):
        size = (low + high) / 2
        built = make(size)
        if _over(built, budget, source):
            high = size
        else:
            best, low = built, size
            if _close(built, budget):
                return best
    counted = {"parameters", "macs"} & set(budget.limits)
    wider: dict[int, int] = {}
    # Small layers: one step of the width is a big one, so single channels fill what is left.
    for part, more in itertools.product(range(min(parts, _PARTS) if counted else 0), _STEPS):
        larger = {**wider, part: wider.get(part, 0) + more}
        built = make(low, larger)
        if not _over(built, budget, source):
            wider, best = larger, built
            if _close(built, budget):
                break
    return best


def _close(built: Built, budget: Budget) -> bool:
    """Say whether a counted limit is met to within half a per cent."""
    counted = {"parameters": built.cost.parameters, "macs": built.cost.macs}
    return any(value >= 0.995 * budget.limits[name] for name, value in counted.items() if name in budget.limits)


def _over(built: Built, budget: Budget, source: keras.Model) -> dict[str, float]:
    """Return the limits that a model exceeds, with its values; what is cheap to find is looked at first."""
    limits = budget.limits
    counted = {"parameters": built.cost.parameters, "macs": built.cost.macs}
    over: dict[str, float] = {name: value for name, value in counted.items() if name in limits and value > limits[name]}
    if over or not {"file_bytes", "latency_ratio"} & set(limits):
        return over
    content = _litert.convert("from_teacher", built.model)
    if "file_bytes" in limits and len(content) > limits["file_bytes"]:
        return {"file_bytes": len(content)}
    if "latency_ratio" in limits:
        ratio = _litert.latency_ratio(content, _litert.convert("from_teacher", source))
        if ratio > limits["latency_ratio"]:
            return {"latency_ratio": round(ratio, 3)}
    return {}
