"""Robustness of models to attacked and to corrupted inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill import data
from keras_distill._checks import error
from keras_distill.metrics import expected_calibration_error
from keras_distill.regimes import ProjectedGradient
from keras_distill.report._auto_attack import AutoAttack

#: Severities of the named corruptions; those in between add little to a figure.
_SEVERITIES = (1, 3, 5)
_KINDS = ("noise", "blur", "contrast")


@dataclasses.dataclass(frozen=True)
class Shift:
    """Measurements on corrupted inputs, one value per model of the entry.

    Args:
        name: name of the corruption.
        severity: 1 to 5; 0 is the unchanged data.
        accuracy: fraction correct, 0 to 1.
        expected_calibration_error: as in ``Entry``.
    """

    name: str
    severity: int
    accuracy: tuple[float, ...]
    expected_calibration_error: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Robustness:
    """Robustness of the models of one entry to changed inputs.

    Args:
        attack: description of the attack; empty without one.
        robust_accuracy: fraction correct on attacked examples, one value per model; empty without an attack.
        shifts: one for each corruption and severity, in the order of measurement.
    """

    attack: str = ""
    robust_accuracy: tuple[float, ...] = ()
    shifts: tuple[Shift, ...] = ()


class Trial:
    """Applies the same attack and the same corruptions to several entries.

    Args:
        owner: name shown in the error messages.
        attack: see ``evaluate``, as for all other arguments.
        corruptions: names, or functions by name.
        inputs: the unchanged inputs.
        labels: (examples,), integer.
        outputs: function from owner, model, inputs and batch size to (examples, classes).
        from_logits: whether models output logits.
        batch_size: for predictions.
        num_bins: bins of confidence.
    """

    def __init__(
        self,
        owner: str,
        attack: Any,
        corruptions: Sequence[str] | Mapping[str, Callable[[Any], Any]],
        inputs: np.ndarray,
        labels: np.ndarray,
        outputs: Callable[..., np.ndarray],
        *,
        from_logits: bool,
        batch_size: int,
        num_bins: int,
    ) -> None:
        if attack is not None and not callable(attack):
            expected = "attack to be ProjectedGradient(...), AutoAttack(...) or a function"
            raise error(owner, expected, type(attack).__name__)
        self.owner, self.attack, self.inputs, self.labels, self.outputs = owner, attack, inputs, labels, outputs
        self.from_logits, self.batch_size, self.num_bins = from_logits, batch_size, num_bins
        self._changed = _changed(owner, corruptions, inputs)

    def __call__(self, group: Sequence[keras.Model]) -> Robustness:
        """Return the measurements of one entry's models."""
        shifts = []
        for name, severity, inputs in [("none", 0, self.inputs), *self._changed] if self._changed else []:
            said = [self.outputs(self.owner, model, inputs, self.batch_size) for model in group]
            errors = tuple(
                expected_calibration_error(self.labels, each, num_bins=self.num_bins, from_logits=self.from_logits)
                for each in said
            )
            shifts.append(Shift(name, severity, tuple(self._accuracy(each) for each in said), errors))
        if self.attack is None:
            return Robustness(shifts=tuple(shifts))
        name = str(self.attack)
        if not isinstance(self.attack, (ProjectedGradient, AutoAttack)):
            name = getattr(self.attack, "__name__", type(self.attack).__name__)
        return Robustness(name, tuple(self._attacked(model) for model in group), tuple(shifts))

    def _accuracy(self, outputs: np.ndarray) -> float:
        return float(np.mean(outputs.argmax(-1) == self.labels))

    def _attacked(self, model: keras.Model) -> float:
        if isinstance(self.attack, (ProjectedGradient, AutoAttack)):
            logits, size = self.from_logits, self.batch_size
            moved = self.attack(model, self.inputs, self.labels, from_logits=logits, batch_size=size)
        else:
            moved = np.asarray(self.attack(model, self.inputs, self.labels))
        if moved.shape != self.inputs.shape:
            raise error(self.owner, f"{self.inputs.shape} inputs from the attack", f"{moved.shape}")
        return self._accuracy(self.outputs(self.owner, model, moved, self.batch_size))


def _changed(owner: str, corruptions: Any, inputs: np.ndarray) -> list[tuple[str, int, np.ndarray]]:
    if isinstance(corruptions, Mapping):
        made = [(str(name), 1, np.asarray(change(inputs))) for name, change in corruptions.items()]
        for name, _, changed in made:
            if changed.shape != inputs.shape:
                raise error(owner, f"{inputs.shape} inputs from the corruption {name!r}", f"{changed.shape}")
        return made
    names = [corruptions] if isinstance(corruptions, str) else list(corruptions)
    for name in names:
        if name not in _KINDS:
            raise error(owner, f"corruptions of {', '.join(map(repr, _KINDS))}, or functions by name", repr(name))
    return [(name, severity, data.corrupt(inputs, name, severity)) for name in names for severity in _SEVERITIES]


def robustness_of(fields: Any, need: Any) -> Robustness | None:
    """Return the robustness from parsed, untrusted JSON."""
    if fields is None:
        return None

    def shares(values: Any, name: str) -> tuple[float, ...]:
        need(isinstance(values, list) and all(type(each) in (int, float) and 0 <= each <= 1 for each in values), name)
        return tuple(map(float, values))

    need(isinstance(fields, dict) and set(fields) == {"attack", "robust_accuracy", "shifts"}, "robustness")
    need(isinstance(fields["attack"], str) and isinstance(fields["shifts"], list), "robustness")
    shifts = []
    for each in fields["shifts"]:
        need(isinstance(each, dict) and set(each) == {field.name for field in dataclasses.fields(Shift)}, "a shift")
        need(isinstance(each["name"], str) and type(each["severity"]) is int and 0 <= each["severity"] <= 5, "a shift")
        accuracy, wrong = (shares(each[name], name) for name in ("accuracy", "expected_calibration_error"))
        need(bool(accuracy) and len(wrong) == len(accuracy), "a shift")
        shifts.append(Shift(each["name"], each["severity"], accuracy, wrong))
    return Robustness(fields["attack"], shares(fields["robust_accuracy"], "robust_accuracy"), tuple(shifts))
