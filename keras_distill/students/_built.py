"""The budget of a small model, and the result of a builder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from keras_distill._checks import error, integer, number
from keras_distill.students._cost import Cost


@dataclasses.dataclass(frozen=True)
class Budget:
    """Upper limits on a student's cost; None means no limit.

    Args:
        parameters: number of entries in all weights.
        macs: multiply-accumulates of one example.
        file_bytes: size of the float32 LiteRT file.
        latency_ratio: time of the student over that of the teacher, both as LiteRT files on one thread in the same
            rounds; above 0, at most 1. It is measured, never predicted.

    Raises:
        ValueError: if nothing is limited, or a limit is out of range.

    Example:
        >>> Budget(parameters=40_000)
        Budget(parameters=40000, macs=None, file_bytes=None, latency_ratio=None)
    """

    parameters: int | None = None
    macs: int | None = None
    file_bytes: int | None = None
    latency_ratio: float | None = None

    def __post_init__(self) -> None:
        """Check the limits."""
        for name in ("parameters", "macs", "file_bytes"):
            value = getattr(self, name)
            if value is not None:
                advice = "Give a number, not a fraction of the teacher's"
                whole = int(value) if isinstance(value, float) and value.is_integer() else value
                object.__setattr__(self, name, integer("Budget", name, whole, low=1, advice=advice))
        if self.latency_ratio is not None:
            advice = "0.25 means four times as fast as the teacher"
            number("Budget", "latency_ratio", self.latency_ratio, above=0, high=1, advice=advice)
        if not self.limits:
            raise error("Budget", "at least one of parameters, macs, file_bytes and latency_ratio", "none")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True, eq=False)
class Built:
    """A model made from another one, and a record of the changes.

    Args:
        model: the new model; trainable, not compiled.
        fraction_initialised: the fraction of its weights that come from the source, 0 to 1; the rest is random.
        kept: by layer, the indices of the source's kept channels (``from_teacher``), or the rank (``factorize``).
        frozen: by layer, why nothing could be removed from it.
        cost: cost of the new model.
    """

    model: keras.Model
    fraction_initialised: float
    kept: Mapping[str, Any]
    frozen: Mapping[str, str]
    cost: Cost
