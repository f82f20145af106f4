"""A number that training reads: constant, assigned by the user at any time, or a schedule of the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill.schedules import bounds

__all__ = ["Setting", "from_config"]

Check = Callable[[Any], float]


class Setting:
    """A scalar behind an ordinary attribute; once its owner is built, a float32 variable, so that no trace freezes it.

    Args:
        value: a number, a ``LearningRateSchedule`` that gives the number from the optimizer's step, or what ``config``
            returned for one.
        check: returns the number as a float, or raises the error that says what was expected.
    """

    def __init__(self, value: Any, check: Check) -> None:
        self._check = check
        self._variable: Any = None
        self._follows: Any = None
        self.schedule: LearningRateSchedule | None = None
        self._number = 0.0
        self.assign(value)

    def assign(self, value: Any) -> None:
        """Set a number (which ends a schedule) or a schedule; the next step uses it, without retracing."""
        value = from_config(value)
        if isinstance(value, LearningRateSchedule):
            if self._variable is not None:
                raise ValueError(
                    "A schedule cannot be assigned once the distiller is built: the traced step would not see it. "
                    "Give the schedule to the constructor, or use a callback such as callbacks.TemperatureScheduler."
                )
            self._number = self._check(float(np.asarray(value(0))))
            for end in bounds(value) or ():
                try:
                    self._check(end)
                except ValueError as problem:
                    raise ValueError(f"{problem} The schedule reaches {end:g}: change its bounds.") from None
            self.schedule = value
            return
        self._number = self._check(value)
        if self._variable is None:
            self.schedule = None
            return
        self._variable.assign(self._number)
        if self._follows is not None:
            self._follows.assign(False)

    def create(self, owner: keras.layers.Layer, name: str) -> None:
        """Make the variable, owned and saved by ``owner``."""
        if self._variable is None:
            self._variable = owner.add_weight(
                name=name,
                shape=(),
                dtype="float32",
                initializer=keras.initializers.Constant(self._number),
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
            )
            if self.schedule is not None:
                self._follows = owner.add_weight(
                    name=f"{name}_follows_schedule",
                    shape=(),
                    dtype="bool",
                    initializer="ones",
                    trainable=False,
                    aggregation="only_first_replica",
                )

    def advance(self, step: Any) -> None:
        """Update a scheduled number to ``step``, inside the traced step; an assigned number stays as it is."""
        if self._follows is not None and self.schedule is not None:
            value = ops.cast(self.schedule(step), "float32")
            self._variable.assign(ops.where(self._follows, value, self._variable))

    @property
    def tensor(self) -> Any:
        """The value that the traced step reads: the variable's, or the plain number before there is a variable."""
        return self._number if self._variable is None else ops.convert_to_tensor(self._variable)

    @property
    def number(self) -> float:
        """The current value as the shortest float that rounds to it (0.7, not 0.699999988)."""
        return (
            self._number
            if self._variable is None
            else float(str(np.float32(ops.convert_to_tensor(self._variable).numpy())))
        )

    @property
    def config(self) -> Any:
        """The number, or the schedule in serialised form."""
        return self.number if self.schedule is None else keras.saving.serialize_keras_object(self.schedule)


def from_config(config: Any) -> Any:
    """Restore what ``Setting.config`` described.

    Args:
        config: a number, or a schedule in serialised form.

    Returns:
        A number or a schedule.
    """
    return keras.saving.deserialize_keras_object(config) if isinstance(config, dict) else config
