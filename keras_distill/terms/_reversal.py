"""Gradient reversal, and the strength shared by terms with an adversary."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill._checks import integer, number
from keras_distill._typing import Tensor
from keras_distill.settings import Setting
from keras_distill.terms._base import DistillationLoss


def against(tensor: Tensor, strength: Any) -> Any:
    """Return ``tensor`` unchanged; the backward pass multiplies its gradient by -``strength``."""

    @ops.custom_gradient
    def identity(tensor: Tensor) -> Any:
        def grad(*args: Any, upstream: Tensor = None) -> Any:
            (upstream,) = args or (upstream,)
            return -strength * upstream

        return tensor, grad

    return identity(tensor)


class Ramp(LearningRateSchedule, abc.ABC):
    """Base of schedules that rise from 0 to ``height`` over ``ramp_steps`` optimizer steps, then stay."""

    def __init__(self, height: float = 1.0, ramp_steps: int = 1000) -> None:
        self.height, self.ramp_steps = height, ramp_steps

    def __call__(self, step: Any) -> Any:
        """Return the value at an optimizer's step."""
        return self.height * self._risen(ops.minimum(ops.cast(step, "float32") / self.ramp_steps, 1.0))

    @abc.abstractmethod
    def _risen(self, done: Any) -> Any:
        """Return the share of the height, 0 to 1, after the share ``done`` of the steps."""

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"height": self.height, "ramp_steps": self.ramp_steps}


class ReversesGradient(DistillationLoss):
    """Base of terms with ``reversal_strength``, a number that follows a ramp until the user assigns one."""

    def _set_reversal(self, strength: float, ramp_steps: int, ramp: Callable[[float, int], Ramp]) -> None:
        owner = type(self).__name__
        self.ramp_steps = integer(owner, "ramp_steps", ramp_steps, low=0)
        self._full_strength = number(owner, "reversal_strength", strength, low=0.0)
        follows = ramp(self._full_strength, self.ramp_steps) if self.ramp_steps else self._full_strength
        self._strength = Setting(follows, lambda value: number(owner, "reversal_strength", value, low=0.0))

    @property
    def settings(self) -> dict[str, Setting]:
        """The strength of the reversal, which follows the ramp."""
        return {"reversal_strength": self._strength}

    @property
    def reversal_strength(self) -> float:
        """The current strength, >= 0. Assigning a number ends the ramp."""
        return self._strength.number

    @reversal_strength.setter
    def reversal_strength(self, value: float) -> None:
        self._strength.assign(value)

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {**super().get_config(), "ramp_steps": self.ramp_steps, "reversal_strength": self._full_strength}
