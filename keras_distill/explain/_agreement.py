"""Agreement between the explanations of teacher and student, each measure with its floor and its ceiling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_distill._checks import choice, error, number
from keras_distill.explain._attributions import METHODS, attributions
from keras_distill.explain._counterfactuals import counterfactuals, transferred
from keras_distill.explain._maps import spearman, structural_similarity, top_overlap
from keras_distill.explain._models import explained_model, logits_of, numeric_inputs
from keras_distill.explain._untrained import untrained
from keras_distill.metrics import agreement_on_errors

_OWNER = "explain.agreement"


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measure of the student's agreement with the teacher, and the values to compare it with.

    Args:
        student: mean over the examples.
        error: standard error of that mean; None if the measure is not a mean.
        floor: the same measure for an untrained student.
        ceiling: the same for a second teacher, trained from another seed; None without one.

    Example:
        >>> round(Measure(0.5, 0.01, 0.1, 0.9).reached, 3)  # halfway from floor to ceiling
        0.5
    """

    student: float
    error: float | None
    floor: float
    ceiling: float | None

    @property
    def reached(self) -> float | None:
        """Position of the student between floor (0) and ceiling (1); None without a ceiling above the floor."""
        if self.ceiling is None or not self.ceiling > self.floor:
            return None
        return (self.student - self.floor) / (self.ceiling - self.floor)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Result of ``agreement``; ``print`` shows each measure between its floor and its ceiling.

    Args:
        measures: measures by name.
        method: method of the attributions.
        num_examples: number of compared examples.

    Example:
        >>> print(Agreement({"answers": Measure(0.5, 0.1, 0.25, None)}, "gradient", 4))
        4 examples, attributions by gradient     floor  student             ceiling
        answers                                  0.250  0.500 +- 0.100      not measured
    """

    measures: Mapping[str, Measure]
    method: str
    num_examples: int

    def __getitem__(self, name: str) -> Measure:
        return self.measures[name]

    def __str__(self) -> str:
        first = f"{self.num_examples} examples, attributions by {self.method}"
        lines = [f"{first:40} {'floor':6} {'student':19} ceiling"]
        for name, each in self.measures.items():
            spread = "" if each.error is None else f" +- {each.error:.3f}"
            ceiling = "not measured" if each.ceiling is None else f"{each.ceiling:.3f}"
            lines.append(f"{name:40} {each.floor:5.3f}  {f'{each.student:.3f}{spread}':19} {ceiling}")
        return "\n".join(lines)


def agreement(
    teacher: Any,
    student: Any,
    x: Any,
    *,
    ceiling: Any = None,
    floor: Any = None,
    method: str = "gradient",
    labels: Any = None,
    top_fraction: float = 0.1,
    counterfactual: bool = False,
    stretch: float = 1.5,
    seed: int = 0,
    **settings: Any,
) -> Agreement:
    """Compare how a teacher and a student explain the same answers, between a floor and a ceiling.

    All models explain the teacher's answer. Measures: ``"answers"`` (same class), ``"errors"`` (shared errors of the
    teacher; needs labels), ``"spearman"`` (signed rank correlation of attributions), ``"top_overlap"`` (overlap of the
    largest ones), ``"ssim"`` (images) and ``"flips"`` (smallest changes that flip both; mean of the two directions). A
    number means little without its floor: even an untrained network shares a third of the top tenth.

    Args:
        teacher: a Keras model with logits, or a teacher (``method="occlusion"`` if it has no gradients).
        student: the student, with logits.
        x: (examples, ...), at least two.
        ceiling: a second teacher, trained like the first from another seed; None leaves the ceiling unmeasured, which
            the table states.
        floor: an untrained student; None creates one from the student's configuration.
        method: as in ``attributions``.
        labels: (examples,) class ids, for ``"errors"``.
        top_fraction: as in ``top_overlap``.
        counterfactual: whether to measure ``"flips"``, the most expensive measure.
        stretch: as in ``transferred``.
        seed: seed of the untrained student.
        **settings: passed on to ``attributions`` (``steps``, ``layer_name``, ...).

    Returns:
        The measures; ``print`` shows them as a table.

    Raises:
        ValueError: if there are fewer than two examples, or a model cannot be explained.

    Example:
        >>> import keras, numpy as np
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> student.set_weights(teacher.get_weights())
        >>> found = agreement(teacher, student, np.ones((5, 4)))
        >>> found["spearman"].student, found["spearman"].ceiling
        (1.0, None)
    """
    choice(_OWNER, "method", method, METHODS)
    number(_OWNER, "top_fraction", top_fraction, above=0, high=1)
    x = numeric_inputs(_OWNER, x)
    if len(x) < 2:
        raise error(_OWNER, "at least two examples", f"{len(x)}")
    needs = method != "occlusion"
    models = {"teacher": explained_model(_OWNER, teacher, gradients=needs)}
    models["student"] = explained_model(_OWNER, student, gradients=needs)
    fresh = untrained(models["student"], x, seed) if floor is None else floor
    models["floor"] = explained_model(_OWNER, fresh, gradients=needs)
    if ceiling is not None:
        models["ceiling"] = explained_model(_OWNER, ceiling, gradients=needs)
    logits = {name: logits_of(_OWNER, model, x) for name, model in models.items()}
    if len({each.shape[1] for each in logits.values()}) > 1:
        raise error(_OWNER, "models with the same classes", f"{[each.shape[1] for each in logits.values()]}")
    answers = logits["teacher"].argmax(-1)
    maps = {name: attributions(model, x, method, target=answers, **settings) for name, model in models.items()}
    flips = _flips(models, x, stretch) if counterfactual else {}

    found: dict[str, dict[str, Any]] = {}
    for name in models:
        if name == "teacher":
            continue
        measured: dict[str, Any] = {"answers": logits[name].argmax(-1) == answers}
        if labels is not None:
            measured["errors"] = agreement_on_errors(np.asarray(labels), logits["teacher"], logits[name])
        measured["spearman"] = spearman(maps["teacher"], maps[name])
        measured["top_overlap"] = top_overlap(maps["teacher"], maps[name], top_fraction)
        if x.ndim == 4 and min(x.shape[1:3]) >= 3:
            measured["ssim"] = structural_similarity(maps["teacher"], maps[name])
        if flips:
            measured["flips"] = flips[name]
        found[name] = measured
    return Agreement({name: _measure(name, found) for name in found["student"]}, method, len(x))


def _measure(name: str, found: Mapping[str, Mapping[str, Any]]) -> Measure:
    values = {who: np.asarray(measured[name], "float64") for who, measured in found.items()}
    own = values["student"]
    error_ = float(own.std(ddof=1) / np.sqrt(len(own))) if own.ndim else None
    ceiling = float(values["ceiling"].mean()) if "ceiling" in values else None
    return Measure(float(own.mean()), error_, float(values["floor"].mean()), ceiling)


def _flips(models: Mapping[str, keras.Model], x: np.ndarray, stretch: float) -> dict[str, np.ndarray]:
    changes = {name: counterfactuals(model, x) for name, model in models.items()}
    return {
        name: (
            transferred(changes[name], x, models["teacher"], stretch).astype("float64")
            + transferred(changes["teacher"], x, models[name], stretch)
        )
        / 2
        for name in models
        if name != "teacher"
    }
