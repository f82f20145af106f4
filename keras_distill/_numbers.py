"""The numbers of a distiller that may be assigned or scheduled at any time, and how they reach the logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_distill._checks import error, number
from keras_distill._saving import SavesWithoutTeacher
from keras_distill._settings import Setting
from keras_distill.terms import DistillationLoss


class HasNumbers(SavesWithoutTeacher):
    """Base of ``Distiller``: weights as attributes, temperatures of its terms, and all of them in the logs."""

    _student_setting: Setting
    _weight_settings: tuple[Setting, ...]
    distillation_losses: list[Any]

    @property
    def _own_terms(self) -> list[DistillationLoss]:
        return [term for term in self.distillation_losses if isinstance(term, DistillationLoss)]

    @property
    def student_loss_weight(self) -> float:
        """Share of the supervised loss, 0 to 1. Assign a number at any time; the next step uses it."""
        return self._student_setting.number

    @student_loss_weight.setter
    def student_loss_weight(self, value: Any) -> None:
        self._student_setting.assign(value)
        if self.compiled:
            self._check_supervision()

    @property
    def distillation_loss_weights(self) -> list[float]:
        """Weight of each term, >= 0. Assign a list at any time; the next step uses it."""
        return _Weights(self._weight_settings)

    @distillation_loss_weights.setter
    def distillation_loss_weights(self, values: Sequence[Any]) -> None:
        values = list(values)
        if len(values) != len(self._weight_settings):
            expected = f"one distillation_loss_weights entry for each of the {len(self._weight_settings)} terms"
            raise error("Distiller", expected, f"{len(values)}")
        for setting, value in zip(self._weight_settings, values, strict=True):
            setting.assign(value)

    def _advance_settings(self) -> None:
        step = self.optimizer.iterations
        for setting in self._settings.values():
            setting.advance(step)

    @property
    def _settings(self) -> dict[str, Setting]:
        """Every number that training reads, by the name under which logs show it."""
        found = {"student_loss_weight": self._student_setting}
        single = len(self._weight_settings) == 1
        for index, setting in enumerate(self._weight_settings):
            found["distillation_loss_weight" if single else f"distillation_loss_weight_{index}"] = setting
        for index, term in enumerate(self._own_terms):
            for name, setting in term.settings.items():
                found[name if len(self._own_terms) == 1 else f"{name}_of_term_{index}"] = setting
        return found

    def _scheduled(self) -> dict[str, Any]:
        return {name: each.tensor for name, each in self._settings.items() if each.schedule is not None}

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the results of all metrics, and the numbers that follow a schedule.

        Returns:
            Name to value.
        """
        results = super().get_metrics_result()
        # One number under two names, as in keras.distillation: ours is the whole loss, regularisers included.
        return {**results, "total_loss": results["loss"], **self._scheduled()}

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        # Keras takes the last step's logs where the names differ from those of all metrics, as they do without labels
        # or without the teacher. Under several replicas these are means over replicas: not the metrics' results.
        results = self.get_metrics_result()
        return {name: results[name] for name in logs} if set(logs) <= set(results) else logs


class _Weights(list):
    """The weights as a list; assigning to an item sets the weight."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        super().__init__(setting.number for setting in settings)
        self._settings = settings

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice):
            for setting, each in zip(self._settings[index], value, strict=True):
                setting.assign(each)
        else:
            self._settings[index].assign(value)
        super().__setitem__(index, value)


def between_0_and_1(value: Any) -> float:
    """Return a share of the supervised loss, or raise the error that says what it may be."""
    return number("Distiller", "student_loss_weight", value, low=0.0, high=1.0)


def not_negative(value: Any) -> float:
    """Return the weight of a term, or raise the error that says what it may be."""
    return number("Distiller", "each of distillation_loss_weights", value, low=0.0)
