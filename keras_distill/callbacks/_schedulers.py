"""Numbers as functions of the epoch: temperatures and weights, as LearningRateScheduler does for the learning rate."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable
from typing import Any

import keras

from keras_distill._checks import choice, error, number
from keras_distill.callbacks import _steering
from keras_distill.settings import Setting

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _num_arguments(owner: str, schedule: Any) -> int:
    """Return 1 for a function of the epoch, 2 for one of the epoch and the current value."""
    if not callable(schedule):
        raise error(owner, "schedule to be a function of the epoch", schedule)
    try:
        parameters = list(inspect.signature(schedule).parameters.values())
    except ValueError:  # some built-in functions have no signature
        return 1
    needed = [each for each in parameters if each.kind in _POSITIONAL and each.default is inspect.Parameter.empty]
    takes_any = any(each.kind in (*_POSITIONAL, inspect.Parameter.VAR_POSITIONAL) for each in parameters)
    if len(needed) > 2 or not takes_any:
        got = f"{len(needed)} arguments"
        raise error(owner, "schedule to be a function of the epoch, or of the epoch and the current value", got)
    return max(len(needed), 1)


class _Scheduler(keras.callbacks.Callback, abc.ABC):
    """Sets numbers at the beginning of every epoch, and adds them to ``logs`` at its end."""

    def __init__(self, schedule: Callable[..., Any], verbose: int = 0, term: Any = None) -> None:
        super().__init__()
        self._owner = type(self).__name__
        self._num_arguments = _num_arguments(self._owner, schedule)
        self.schedule = schedule
        self.verbose = verbose
        self.term = term
        self._targets: dict[str, Setting] = {}

    @abc.abstractmethod
    def _find(self, distiller: Any) -> dict[str, Setting]:
        """Return the numbers to set, by log name."""

    @abc.abstractmethod
    def _checked(self, what: str, value: Any) -> float:
        """Return the value, or raise the error that says which values ``what`` may have."""

    def set_model(self, model: Any) -> None:
        """Look up the numbers to set; Keras calls this before training."""
        super().set_model(model)
        self._targets = self._find(_steering.as_distiller(self._owner, model))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the numbers of this epoch.

        Args:
            epoch: number of the epoch, from 0.
            logs: not used.

        Raises:
            ValueError: if the schedule gives a number out of bounds; nothing is then set.
        """
        wanted = {}
        for name, setting in self._targets.items():
            shown = f"schedule({epoch})" if self._num_arguments == 1 else f"schedule({epoch}, {setting.number:g})"
            arguments = (epoch, setting.number)[: self._num_arguments]
            wanted[name] = self._checked(shown, _steering.plain(self.schedule(*arguments)))
        for name, value in wanted.items():
            self._targets[name].assign(value)
            if self.verbose:
                _steering.say(f"Epoch {epoch + 1}: {self._owner} sets {name} to {value:g}.")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the numbers of this epoch to ``logs``."""
        if logs is not None:
            logs.update({name: setting.number for name, setting in self._targets.items()})


class TemperatureScheduler(_Scheduler):
    """Sets the temperature at the beginning of every epoch, from a function of the epoch.

    Choose it for temperatures that change between epochs by a rule of your own. For a curve over steps, give the term a
    ``LearningRateSchedule`` as ``temperature=``; for a rule based on results, use ``AdaptiveTemperature``. Nothing is
    retraced. The value is in ``logs``, so ``History``, ``CSVLogger`` and ``TensorBoard`` see it: as ``temperature``, or
    with several temperatures as ``temperature_of_term_0`` and so on. A resumed run needs only the epoch's number (the
    current value, if used, is saved with the weights).

    Args:
        schedule: epoch (int, from 0) -> temperature > 0; or, if it has a second argument without a default,
            (epoch, current temperature) -> temperature.
        verbose: 0 is silent, 1 prints a line per epoch.
        term: the term to act on (index, name or the term itself); None: every temperature of every term.

    Raises:
        ValueError: if the schedule is not such a function, the model has no such temperature, or, before an epoch is
            trained, the schedule gives no finite number above 0.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import Distiller, LogitsDistillation
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> distiller = Distiller(teacher, student, LogitsDistillation(8.0), student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> halve = TemperatureScheduler(lambda epoch, temperature: temperature / 2 if epoch else temperature)
        >>> history = distiller.fit(np.ones((8, 4), "float32"), epochs=3, verbose=0, callbacks=[halve])
        >>> history.history["temperature"]
        [8.0, 4.0, 2.0]
    """

    def _find(self, distiller: Any) -> dict[str, Setting]:
        return _steering.temperatures(self._owner, distiller, self.term)

    def _checked(self, what: str, value: Any) -> float:
        return number(self._owner, what, value, above=0.0, advice="Use 1.0 for the plain distributions")


class WeightScheduler(_Scheduler):
    """Sets a weight of the loss at the beginning of every epoch, from a function of the epoch.

    Choose it to warm distillation up, to fade it out, or to move from the teacher to the labels (teacher annealing):
    ``WeightScheduler(lambda epoch: 4 - 3 * epoch / 50)`` is the second stage of FitNets. Nothing is retraced. The value
    is in ``logs`` as ``distillation_loss_weight`` (``distillation_loss_weight_0`` and so on for several terms) or
    ``student_loss_weight``. For a curve over steps, give the distiller itself a ``LearningRateSchedule``.

    Args:
        schedule: epoch (int, from 0) -> weight; or, if it has a second argument without a default,
            (epoch, current weight) -> weight. >= 0; for ``student_loss_weight`` 0 to 1.
        verbose: 0 is silent, 1 prints a line per epoch.
        term: the term to act on (index, name or the term itself); None: the weight of every term.
        weight: ``"distillation_loss_weight"`` or ``"student_loss_weight"``.

    Raises:
        ValueError: if the schedule is not such a function, there is no such term, or, before an epoch is trained, the
            schedule gives a number out of bounds.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import Distiller, LogitsDistillation
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> distiller = Distiller(teacher, student, LogitsDistillation(), student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> warm_up = WeightScheduler(lambda epoch: min(epoch / 2, 1.0))
        >>> history = distiller.fit(np.ones((8, 4), "float32"), epochs=4, verbose=0, callbacks=[warm_up])
        >>> history.history["distillation_loss_weight"]
        [0.0, 0.5, 1.0, 1.0]

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, arXiv:1412.6550 (weight annealed from 4 to 1); Clark
        et al., "BAM! Born-Again Multi-Task Networks", 2019, arXiv:1907.04829 (teacher annealing).
        Differs: BAM mixes the targets, ``student_loss_weight`` the losses: the same gradient for cross-entropies.
    """

    def __init__(
        self,
        schedule: Callable[..., Any],
        verbose: int = 0,
        term: Any = None,
        weight: str = "distillation_loss_weight",
    ) -> None:
        super().__init__(schedule, verbose, term)
        options = ("distillation_loss_weight", "student_loss_weight")
        self.weight = choice(self._owner, "weight", weight, options)
        if term is not None and weight == "student_loss_weight":
            raise error(self._owner, "term only with weight='distillation_loss_weight'", repr(term))

    def _find(self, distiller: Any) -> dict[str, Setting]:
        if self.weight == "student_loss_weight":
            return _steering.student_weight(distiller)
        return _steering.distillation_weights(self._owner, distiller, self.term)

    def _checked(self, what: str, value: Any) -> float:
        if self.weight == "distillation_loss_weight":
            return number(self._owner, what, value, low=0.0)
        share = number(self._owner, what, value, low=0.0, high=1.0)
        if share > 0 and not self.model.is_supervised:
            advice = "Give compile(loss=...), or keep student_loss_weight at 0"
            raise error(self._owner, f"a loss while {what} is {share:g}", "None", advice)
        return share
