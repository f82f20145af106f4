"""Schedules that Keras lacks: numbers as functions of the training step, each a ``LearningRateSchedule``.

Pass one as ``temperature``, ``student_loss_weight`` or a term's weight: it is evaluated inside the traced step, so
nothing is retraced. Decays (polynomial, exponential, cosine, piecewise) are in ``keras.optimizers.schedules``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import (
    CosineDecay,
    CosineDecayRestarts,
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

from keras_distill import _checks

__all__ = ["Join", "Linear", "WarmUp", "annealing", "bounds"]


@keras.saving.register_keras_serializable(package="keras_distill")
class Linear(LearningRateSchedule):
    """A linear ramp from one value to another, up or down, then constant.

    Args:
        start: value at step 0.
        end: value from step ``num_steps`` on.
        num_steps: length of the ramp in steps, >= 1.

    Raises:
        ValueError: if a value is not a finite number, or num_steps is below 1.

    Example:
        >>> temperature = Linear(8.0, 2.0, num_steps=3)
        >>> [float(temperature(step)) for step in range(5)]
        [8.0, 6.0, 4.0, 2.0, 2.0]
    """

    def __init__(self, start: float, end: float, num_steps: int) -> None:
        self.start = _checks.number("Linear", "start", start)
        self.end = _checks.number("Linear", "end", end)
        self.num_steps = _checks.integer("Linear", "num_steps", num_steps, low=1)

    def __call__(self, step: Any) -> Any:
        """Return the value at ``step``, float32."""
        done = _fraction(step, self.num_steps)
        between = self.start + (self.end - self.start) * done
        return ops.where(done < 1.0, between, self.end)  # both ends are met exactly

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value that it ever takes."""
        return min(self.start, self.end), max(self.start, self.end)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"start": self.start, "end": self.end, "num_steps": self.num_steps}


@keras.saving.register_keras_serializable(package="keras_distill")
class WarmUp(LearningRateSchedule):
    """A number or schedule that is faded in over the first steps, as decoupled distillation (DKD) needs for its weight.

    Args:
        target: number, or ``LearningRateSchedule`` that counts the same steps, reached at step ``num_steps``.
        num_steps: length of the warm-up in steps, >= 1. DKD on CIFAR-100: those of the first 20 epochs.
        start: value at step 0.

    Raises:
        ValueError: if target is neither a finite number nor a schedule, start is not a finite number, or num_steps is
            below 1.

    Example:
        >>> weight = WarmUp(0.8, num_steps=4)
        >>> [round(float(weight(step)), 3) for step in range(6)]
        [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
    """

    def __init__(self, target: float | LearningRateSchedule, num_steps: int, start: float = 0.0) -> None:
        self.target = _part("WarmUp", "target", target)
        self.num_steps = _checks.integer("WarmUp", "num_steps", num_steps, low=1)
        self.start = _checks.number("WarmUp", "start", start)

    def __call__(self, step: Any) -> Any:
        """Return the value at ``step``, float32."""
        done = _fraction(step, self.num_steps)
        return self.start * (1.0 - done) + _at(self.target, step) * done

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The least and the greatest value that it ever takes; None where the target's are unknown."""
        return _hull([self.start, self.target])

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, with a schedule in serialised form."""
        return {"target": _serialized(self.target), "num_steps": self.num_steps, "start": self.start}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WarmUp:
        """Build it from ``get_config``."""
        return cls(**{**config, "target": _deserialized(config["target"])})


@keras.saving.register_keras_serializable(package="keras_distill")
class Join(LearningRateSchedule):
    """Several schedules or numbers in sequence, each counting its steps from its own start.

    Args:
        schedules: at least one number or ``LearningRateSchedule``.
        boundaries: the steps at which the second, third, ... takes over: one fewer than the schedules, increasing, > 0.

    Raises:
        ValueError: if there is no schedule, or the boundaries do not fit.

    Example:
        >>> temperature = Join([8.0, Linear(8.0, 2.0, num_steps=3)], boundaries=[2])
        >>> [float(temperature(step)) for step in range(6)]
        [8.0, 8.0, 8.0, 6.0, 4.0, 2.0]
    """

    def __init__(self, schedules: Sequence[float | LearningRateSchedule], boundaries: Sequence[int]) -> None:
        if not isinstance(schedules, (list, tuple)) or not schedules:
            raise _checks.error("Join", "a list of at least one schedule or number", schedules)
        self.schedules = [_part("Join", f"schedules[{i}]", part) for i, part in enumerate(schedules)]
        if not isinstance(boundaries, (list, tuple)) or len(boundaries) != len(schedules) - 1:
            raise _checks.error("Join", f"{len(schedules) - 1} boundaries for {len(schedules)} schedules", boundaries)
        self.boundaries = [_checks.integer("Join", f"boundaries[{i}]", b, low=1) for i, b in enumerate(boundaries)]
        if any(a >= b for a, b in itertools.pairwise(self.boundaries)):
            raise _checks.error("Join", "increasing boundaries", self.boundaries)

    def __call__(self, step: Any) -> Any:
        """Return the value at ``step``, float32."""
        step = ops.cast(step, "float32")
        value = _at(self.schedules[0], step)
        for begin, part in zip(self.boundaries, self.schedules[1:], strict=True):
            later = _at(part, ops.maximum(step - begin, 0.0))
            value = ops.where(step >= begin, later, value)
        return value

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The least and the greatest value of all parts; None where those of one are unknown."""
        return _hull(self.schedules)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, with schedules in serialised form."""
        return {"schedules": [_serialized(part) for part in self.schedules], "boundaries": self.boundaries}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Join:
        """Build it from ``get_config``."""
        return cls(**{**config, "schedules": [_deserialized(part) for part in config["schedules"]]})


def annealing(max_temperature: int, num_steps: int) -> PiecewiseConstantDecay:
    """Integer temperatures from ``max_temperature`` down to 1, each for the same number of steps (Annealing-KD).

    In the paper's first stage the student imitates teacher_logits * (1 - (temperature - 1) / max_temperature), so that
    targets grow to the full logits; the second stage learns from labels alone.

    Args:
        max_temperature: integer >= 2: 7 for GLUE and 10 for CIFAR in the paper.
        num_steps: steps of the stage, >= max_temperature. Where they do not divide evenly, lengths differ by one step.

    Returns:
        Keras' own piecewise constant schedule; 1.0 after the stage.

    Raises:
        ValueError: if an argument is not an integer of that range.

    Example:
        >>> temperature = annealing(3, num_steps=6)
        >>> [float(temperature(step)) for step in range(7)]
        [3.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0]

    Reference:
        Jafari et al., "Annealing Knowledge Distillation", EACL 2021, arXiv:2104.07163, section 3. Differs: nothing.
    """
    count = _checks.integer("annealing", "max_temperature", max_temperature, low=2)
    advice = "Give every temperature at least one step"
    num_steps = _checks.integer("annealing", "num_steps", num_steps, low=count, advice=advice)
    # Keras' boundaries are the last steps of their pieces.
    last_steps = [-(-num_steps * piece // count) - 1 for piece in range(1, count)]
    return PiecewiseConstantDecay(last_steps, [float(count - piece) for piece in range(count)])


def bounds(value: float | LearningRateSchedule) -> tuple[float, float] | None:
    """Return the least and the greatest value that a number or schedule ever takes, where that is known.

    A temperature must stay above 0: a schedule whose lower bound is 0 or less reaches a step at which the loss is
    undefined.

    Args:
        value: a number, a schedule of this module, or any ``LearningRateSchedule``.

    Returns:
        (least, greatest), or None where they are unknown: Keras' exponential and inverse-time decays, and the user's
        own classes.

    Example:
        >>> bounds(Linear(4.0, 0.0, num_steps=100))
        (0.0, 4.0)
    """
    if isinstance(value, (Linear, WarmUp, Join)):
        return value.bounds
    if isinstance(value, PolynomialDecay):
        config = value.get_config()
        ends = float(config["initial_learning_rate"]), float(config["end_learning_rate"])
        return min(ends), max(ends)
    if isinstance(value, PiecewiseConstantDecay):
        values = [float(each) for each in value.get_config()["values"]]
        return min(values), max(values)
    if isinstance(value, (CosineDecay, CosineDecayRestarts)):
        config = value.get_config()
        start, top = float(config["initial_learning_rate"]), config.get("warmup_target")
        top = start if top is None else float(top)
        end = float(config["alpha"]) * top
        return min(start, top, end), max(start, top, end)
    if isinstance(value, LearningRateSchedule):
        return None
    number = _checks.number("bounds", "value", value)
    return number, number


def _fraction(step: Any, num_steps: int) -> Any:
    return ops.clip(ops.cast(step, "float32") / float(num_steps), 0.0, 1.0)


def _part(owner: str, name: str, value: Any) -> Any:
    if isinstance(value, LearningRateSchedule):
        return value
    return _checks.number(owner, name, value, advice="Or give a LearningRateSchedule")


def _at(part: Any, step: Any) -> Any:
    return ops.cast(part(step) if isinstance(part, LearningRateSchedule) else part, "float32")


def _hull(parts: Sequence[Any]) -> tuple[float, float] | None:
    known = [bounds(part) for part in parts]
    if any(each is None for each in known):
        return None
    return min(each[0] for each in known if each), max(each[1] for each in known if each)


def _serialized(part: Any) -> Any:
    return keras.saving.serialize_keras_object(part) if isinstance(part, LearningRateSchedule) else part


def _deserialized(part: Any) -> Any:
    return keras.saving.deserialize_keras_object(part) if isinstance(part, dict) else part
