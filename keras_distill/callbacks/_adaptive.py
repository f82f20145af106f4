"""Policies driven by results: a temperature that follows the student, and distillation that stops early."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from keras_distill._checks import choice, error, integer, number
from keras_distill.callbacks import _steering
from keras_distill.callbacks._policy import Plateau, Policy, Probe, read
from keras_distill.settings import Setting
from keras_distill.training import Trainer


class AdaptiveTemperature(Policy):
    """Adapts the temperature as the student learns, by a validation metric or by its distance from the teacher.

    Choose it where the right curve is unknown beforehand; a fixed curve costs nothing and is easier to repeat
    (``TemperatureScheduler``). The two rules are the package's own, not a paper's:

    * ``rule="plateau"``: when ``monitor`` has not improved for ``patience`` epochs, the temperature is multiplied by
      ``factor``.
    * ``rule="progress"``: temperature = max - (max - min) * progress; training starts at ``max_temperature``. Progress,
      0 to 1, is 1 - monitor / its first value where less is better, and ``monitor`` itself where more is better
      (accuracy, agreement), clipped, and smoothed as an exponential moving average that starts at 0.

    The default monitor, ``"gap"``, is the term's own loss on ``validation_data`` at temperature 1, so that changing the
    temperature does not change the monitor (``val_distillation_loss`` does depend on it). It costs one pass of teacher
    and student over the data per epoch and is logged as ``gap``; ``logs`` also get ``temperature``.

    A killed run resumes exactly: the callback's ``state`` is saved with the distiller's weights by
    ``BackupAndRestore``, ``ModelCheckpoint`` and ``save_weights``. Put the callback before those in the list. A ``fit``
    from epoch 0 resets the state, one with ``initial_epoch`` continues from it.

    Args:
        monitor: ``"gap"``, or a name in the logs, such as ``"val_accuracy"``.
        rule: ``"plateau"`` or ``"progress"``.
        validation_data: the data for measuring the gap: (x,), (x, y) or (x, y, sample_weight) of arrays, or a
            ``tf.data.Dataset`` or ``PyDataset`` of such batches. Needed for ``"gap"`` only.
        mode: ``"min"``, ``"max"`` or ``"auto"``: ``"max"`` for accuracies, agreement, AUC, precision, recall and F1.
        min_temperature: > 0, lower bound.
        max_temperature: upper bound.
        factor: > 0 and not 1, for plateaus.
        patience: >= 1. Plateau: epochs without improvement. Progress: consecutive epochs that must call for a change.
        min_delta: >= 0, smallest change of ``monitor`` (plateau) or of progress that counts.
        cooldown: >= 0, epochs to wait after a change, as in ``keras.callbacks.ReduceLROnPlateau``.
        smoothing: 0 to 1, for progress: weight of the past per epoch.
        monotone: for progress: whether the temperature may only fall.
        term: the term to act on (index, name or the term itself); None: every temperature of every term.
        batch_size: >= 1, for arrays.
        steps: number of batches to use; None uses all.
        verbose: 0 is silent, 1 prints a line when the temperature changes.

    Attributes:
        state: the callback's state, a JSON-ready dictionary; may be assigned.

    Raises:
        ValueError: if an argument is out of bounds, the temperature at the start lies outside the bounds, ``monitor``
            is not in the logs or is not finite.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import Distiller, LogitsDistillation
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> distiller = Distiller(teacher, student, LogitsDistillation(8.0), student_loss_weight=0.0)
        >>> distiller.compile(keras.optimizers.SGD(0.0))  # a student that does not learn: always a plateau
        >>> x = np.ones((8, 4), "float32")
        >>> lower = AdaptiveTemperature(validation_data=(x,), factor=0.5, patience=1)
        >>> distiller.fit(x, epochs=4, verbose=0, callbacks=[lower]).history["temperature"]
        [8.0, 8.0, 4.0, 2.0]
    """

    def __init__(
        self,
        monitor: str = "gap",
        rule: str = "plateau",
        *,
        validation_data: Any = None,
        mode: str = "auto",
        min_temperature: float = 1.0,
        max_temperature: float = 8.0,
        factor: float = 0.8,
        patience: int = 2,
        min_delta: float = 0.0,
        cooldown: int = 0,
        smoothing: float = 0.9,
        monotone: bool = True,
        term: Any = None,
        batch_size: int = 256,
        steps: int | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        owner = self._owner
        self.monitor = monitor
        self.rule = choice(owner, "rule", rule, ("plateau", "progress"))
        self.min_temperature = number(owner, "min_temperature", min_temperature, above=0.0)
        self.max_temperature = number(owner, "max_temperature", max_temperature, low=self.min_temperature)
        self.factor = number(owner, "factor", factor, above=0.0)
        if self.factor == 1.0:
            raise error(owner, "factor other than 1", factor, "Below 1 the temperature falls, above 1 it rises")
        self.smoothing = number(owner, "smoothing", smoothing, low=0.0, high=1.0)
        self.monotone = bool(monotone)
        self.term = term
        self._plateau = Plateau(owner, monitor, mode, patience, min_delta, cooldown)
        self._probe = None
        if monitor == "gap":
            if validation_data is None:
                raise error(owner, "validation_data to measure the gap on", "None", "Or monitor a name in the logs")
            self._probe = Probe(owner, validation_data, batch_size, steps)
        elif validation_data is not None:
            raise error(owner, "validation_data only with monitor='gap'", f"monitor={monitor!r}")

    def _find(self, distiller: Trainer) -> dict[str, Setting]:
        return _steering.temperatures(self._owner, distiller, self.term)

    def _fresh(self) -> dict[str, Any]:
        for name, setting in self._targets.items():
            if self.rule == "progress":
                setting.assign(self.max_temperature)
            elif not self.min_temperature <= setting.number <= self.max_temperature:
                bounds = f"{self.min_temperature:g} and {self.max_temperature:g}"
                advice = "Adjust min_temperature and max_temperature"
                raise error(self._owner, f"{name} between {bounds} at the start", setting.number, advice)
        return {**Plateau.fresh(), "progress": 0.0, "first": self._gap() if self.rule == "progress" else None}

    def _decide(self, epoch: int, logs: dict[str, Any]) -> None:
        if self._probe is not None:
            logs["gap"] = self._gap()
        value = read(self._owner, self.monitor, logs)
        if self.rule == "plateau":
            if self._plateau.stalled(self.state, value):
                wanted = {name: self._bounded(each.number * self.factor) for name, each in self._targets.items()}
                self._assign(epoch, wanted)
            return
        state = self.state
        state["first"] = value if state["first"] is None else state["first"]
        progress = value if self._plateau.mode == "max" else 1.0 - value / state["first"] if state["first"] else 1.0
        progress = min(max(progress, 0.0), 1.0)
        state["progress"] = self.smoothing * state["progress"] + (1.0 - self.smoothing) * progress
        width = self.max_temperature - self.min_temperature
        wished = self._bounded(self.max_temperature - width * state["progress"])
        now = next(iter(self._targets.values())).number
        call = abs(wished - now) > self._plateau.min_delta * width and not (self.monotone and wished > now)
        if self._plateau.patient(state, call):
            self._assign(epoch, dict.fromkeys(self._targets, wished))

    def _bounded(self, temperature: float) -> float:
        return min(max(temperature, self.min_temperature), self.max_temperature)

    def _gap(self) -> float | None:
        """Return the loss of the chosen terms on held-out data, all at temperature 1."""
        if self._probe is None:
            return None
        terms = range(len(self.model.distillation_losses))
        chosen = terms if self.term is None else [_steering.find_term(self._owner, self.model, self.term)]
        with _at_temperature_one(self._targets):
            values = self._probe.losses(self.model)[1:]
        own = [index for index in chosen if _has_temperature(self.model.distillation_losses[index], self._targets)]
        return float(sum(values[index] for index in own))


def _has_temperature(term: Any, targets: dict[str, Setting]) -> bool:
    steered = {id(setting) for setting in targets.values()}
    return any(id(setting) in steered for setting in getattr(term, "settings", {}).values())


@contextlib.contextmanager
def _at_temperature_one(targets: dict[str, Setting]) -> Iterator[None]:
    before = {name: setting.number for name, setting in targets.items()}
    try:
        for setting in targets.values():
            setting.assign(1.0)
        yield
    finally:
        for name, setting in targets.items():
            setting.assign(before[name])


class EarlyStoppedDistillation(Policy):
    """Ends distillation once it stops helping, by fading its weights to zero (ESKD).

    Choose it for a small student of a strong teacher, which it may follow only up to a point and which then holds it
    back. When ``monitor`` has not improved for ``patience`` epochs, or after ``max_epochs``, the weights fade linearly
    to 0 over ``fade_epochs`` for good, and ``student_loss_weight`` moves to ``final_student_loss_weight``: plain
    training on labels remains. The teacher still runs, since the traced step does not change, so no time is saved.

    ``logs`` get the weights. Resuming: see ``AdaptiveTemperature``.

    Args:
        monitor: a name in the logs, or None to go by ``max_epochs`` alone.
        mode: ``"min"``, ``"max"`` or ``"auto"``: ``"max"`` for accuracies, agreement, AUC, precision, recall and F1.
        patience: >= 1, epochs without improvement.
        min_delta: >= 0, smallest change that counts as improvement.
        min_epochs: >= 0, minimum number of epochs with distillation.
        max_epochs: > 0, maximum number of epochs with distillation; None: no limit.
        fade_epochs: >= 1, length of the fade; 1 is immediate.
        final_student_loss_weight: 0 to 1, final share of the supervised loss. It is unchanged if None or if ``term`` is
            given.
        term: the term to act on (index, name or the term itself); None: every term.
        verbose: 0 is silent, 1 prints a line when a weight changes.

    Attributes:
        state: the callback's state, a JSON-ready dictionary; may be assigned.

    Raises:
        ValueError: if an argument is out of bounds, there is no stopping criterion, or nothing would be left to train
            on.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import Distiller, LogitsDistillation
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> distiller = Distiller(teacher, student, LogitsDistillation(), student_loss_weight=0.5)
        >>> distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> stop = EarlyStoppedDistillation(None, max_epochs=2, fade_epochs=2)
        >>> history = distiller.fit(np.ones((8, 4)), np.zeros(8), epochs=5, verbose=0, callbacks=[stop]).history
        >>> history["distillation_loss_weight"], history["student_loss_weight"]
        ([1.0, 1.0, 0.5, 0.0, 0.0], [0.5, 0.5, 0.75, 1.0, 1.0])

    Reference:
        Cho, Hariharan, "On the Efficacy of Knowledge Distillation", 2019, arXiv:1910.01348, section 4 (ESKD).
        Differs: the epoch may be chosen on held-out data and the fade may be gradual.
    """

    def __init__(
        self,
        monitor: str | None = "val_student_loss",
        *,
        mode: str = "auto",
        patience: int = 3,
        min_delta: float = 0.0,
        min_epochs: int = 0,
        max_epochs: int | None = None,
        fade_epochs: int = 1,
        final_student_loss_weight: float | None = 1.0,
        term: Any = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        owner = self._owner
        self.monitor = monitor
        self._plateau = Plateau(owner, monitor or "", mode, patience, min_delta, 0)
        self.min_epochs = integer(owner, "min_epochs", min_epochs, low=0)
        self.max_epochs = None if max_epochs is None else integer(owner, "max_epochs", max_epochs, low=1)
        if monitor is None and max_epochs is None:
            raise error(owner, "monitor or max_epochs to stop by", "neither")
        if self.max_epochs is not None and self.max_epochs < self.min_epochs:
            raise error(owner, f"max_epochs >= min_epochs ({self.min_epochs})", self.max_epochs)
        self.fade_epochs = integer(owner, "fade_epochs", fade_epochs, low=1)
        final = final_student_loss_weight
        self.final_student_loss_weight = (
            None if final is None else number(owner, "final_student_loss_weight", final, low=0.0, high=1.0)
        )
        self.term = term

    def _find(self, distiller: Trainer) -> dict[str, Setting]:
        found = _steering.distillation_weights(self._owner, distiller, self.term)
        if self.term is None and self.final_student_loss_weight is not None:
            found = {**found, **_steering.student_weight(distiller)}
        left = distiller.student_loss_weight
        if self.term is None and self.final_student_loss_weight is not None:
            left = self.final_student_loss_weight
        if self.term is None and (left == 0 or not distiller.is_supervised):
            advice = "Give compile(loss=...) and a student_loss_weight above 0"
            raise error(self._owner, "a supervised loss to train on when distillation ends", "none", advice)
        return found

    def _fresh(self) -> dict[str, Any]:
        start = {name: setting.number for name, setting in self._targets.items()}
        return {**Plateau.fresh(), "stopped_epoch": None, "start": start}

    def _decide(self, epoch: int, logs: dict[str, Any]) -> None:
        state = self.state
        if state["stopped_epoch"] is None:
            over = self.max_epochs is not None and epoch + 1 >= self.max_epochs
            if self.monitor is not None:
                stalled = self._plateau.stalled(state, read(self._owner, self.monitor, logs))
                over = over or (stalled and epoch + 1 >= self.min_epochs)
            if not over:
                return
            state["stopped_epoch"] = epoch
        done = min((epoch - state["stopped_epoch"] + 1) / self.fade_epochs, 1.0)
        wanted = {}
        for name, start in state["start"].items():
            end = (self.final_student_loss_weight or 0.0) if name == "student_loss_weight" else 0.0
            wanted[name] = start + (end - start) * done if done < 1.0 else end
        self._assign(epoch, wanted)
