"""Evaluates models on the same examples: ``evaluate(models, data) -> Report``."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import pathlib
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error, integer, nearest
from keras_distill.data import Data, Examples
from keras_distill.heads import final_activation
from keras_distill.metrics import (
    brier_score,
    decision_cost,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
    risk_coverage_curve,
    uncertainty_score,
)
from keras_distill.report._comparison import Comparison
from keras_distill.report._explained import explained
from keras_distill.report._membership import Audit
from keras_distill.report._report import Entry, Histories, Report, Score
from keras_distill.report._robustness import Trial


def evaluate(
    models: Mapping[str, Any] | keras.Model,
    data: Any,
    *,
    reference: str | None = None,
    from_logits: bool = True,
    class_names: Sequence[str] | None = None,
    num_bins: int = 15,
    batch_size: int = 256,
    title: str = "",
    notes: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    histories: Histories | None = None,
    explain: bool = False,
    costs: Mapping[str, float] | None = None,
    members: Any = None,
    non_members: Any = None,
    shadow_models: Sequence[keras.Model] = (),
    comparison: Comparison | None = None,
    attack: Callable[..., Any] | None = None,
    corruptions: Sequence[str] | Mapping[str, Callable[[Any], Any]] = (),
) -> Report:
    """Evaluate classifiers on the same examples: accuracy, calibration, agreement, size and speed.

    Args:
        models: a model, or models by name; several in a list form one entry, shown as mean and spread over the list.
        data: ``Examples``, ``Data`` (its test split), a pair ``(inputs, labels)``, or a ``tf.data.Dataset`` of such
            batches. Labels are integer class ids.
        reference: name of the model (the teacher) against which the others' agreement is measured.
        from_logits: whether the models output logits (the default) or probabilities.
        class_names: for the confusion matrices; by default those of ``Data``, otherwise the class ids.
        num_bins: >= 1, bins of confidence.
        batch_size: >= 1, for predictions and timing.
        title: first line of the page.
        notes: sentences that a reader needs to judge the numbers.
        settings: how the models were made, for the record.
        histories: training curves by name: for each model of the entry a dictionary of lists, as Keras'
            ``History.history``.
        explain: True compares each student's explanations with the reference's on the first 200 examples: agreement
            between floor and ceiling (a second model in the reference's list), examples side by side, the drawing of a
            soft tree, rules for tables. It needs logits and ``keras-distill[explain]``.
        costs: for two classes: "false_positive" and "false_negative", as in ``metrics.decision_cost``, and optionally
            "abstain" or "threshold" (of the second class). Adds the expected cost to the table.
        members: ``(inputs, labels)`` of the training data, or any form that ``data`` may have; with ``non_members`` it
            requests a membership audit of the first model of each entry, see ``membership``.
        non_members: examples of the same distribution that no model has seen.
        shadow_models: models of the same kind that saw neither; they calibrate the audit.
        comparison: ``report.comparison(...)`` of a cross-validation, to be shown and saved with the rest.
        attack: ``regimes.ProjectedGradient(...)``, ``report.AutoAttack(...)``, or a function from model, inputs and
            labels to attacked inputs. Adds the accuracy on the attacked inputs to the table.
        corruptions: any of "noise", "blur" and "contrast" (``data.corrupt``, severities 1, 3 and 5), or functions of
            the inputs by name. Adds accuracy and calibration error on the corrupted inputs.

    Returns:
        The frozen report: ``report.write_page`` shows it, ``report.to_json()`` serialises it.

    Raises:
        ValueError: if there are no examples, labels are out of range, or an argument does not fit.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("linear")])
        >>> result = evaluate({"identity": model}, (np.array([[9.0, 0.0], [0.0, 9.0]]), np.array([0, 0])))
        >>> result["identity"].accuracy.mean
        0.5
    """
    owner = "report.evaluate"
    integer(owner, "num_bins", num_bins, low=1)
    integer(owner, "batch_size", batch_size, low=1)
    groups = _groups(owner, models, from_logits)
    if reference is not None and reference not in groups:
        raise error(
            owner, f"reference to be one of the models (nearest: {nearest(reference, groups)})", repr(reference)
        )
    inputs, labels = _arrays(owner, data)
    audited = members is not None or non_members is not None
    if shadow_models and not audited:
        raise error(owner, "members and non_members with shadow_models", "neither")
    audit = Audit(owner, members, non_members, shadow_models, from_logits, batch_size) if audited else None
    outputs = {name: [_outputs(owner, each, inputs, batch_size) for each in group] for name, group in groups.items()}
    num_classes = _num_classes(owner, outputs, labels)
    trial = None
    if attack is not None or len(corruptions):
        settings = {"from_logits": from_logits, "batch_size": batch_size, "num_bins": num_bins}
        trial = Trial(owner, attack, corruptions, inputs, labels, _outputs, **settings)
    if class_names is None:
        class_names = data.class_names if isinstance(data, Data) else [str(i) for i in range(num_classes)]
    if len(class_names) != num_classes:
        raise error(owner, f"{num_classes} class_names", f"{len(class_names)}")

    answers = {name: [each.argmax(-1) for each in group] for name, group in outputs.items()}
    speed = _milliseconds({name: group[0] for name, group in groups.items()}, inputs[:batch_size])
    entries = []
    for name, group in groups.items():
        pooled = np.concatenate(outputs[name]), np.tile(labels, len(group))
        entries.append(
            Entry(
                name=name,
                accuracy=Score(tuple(float(np.mean(each == labels)) for each in answers[name])),
                negative_log_likelihood=Score(
                    tuple(negative_log_likelihood(labels, each, from_logits=from_logits) for each in outputs[name])
                ),
                expected_calibration_error=Score(
                    tuple(
                        expected_calibration_error(labels, each, num_bins=num_bins, from_logits=from_logits)
                        for each in outputs[name]
                    )
                ),
                brier_score=Score(tuple(brier_score(labels, each, from_logits=from_logits) for each in outputs[name])),
                agreement=_agreement(answers, name, reference),
                num_parameters=group[0].count_params(),
                size_bytes=_size_on_disk(group[0]),
                milliseconds_per_example=speed[name],
                batch_size=min(batch_size, len(labels)),
                reliability=reliability_bins(pooled[1], pooled[0], num_bins=num_bins, from_logits=from_logits),
                confusion=_confusion(np.concatenate(answers[name]), pooled[1], num_classes),
                risk_coverage=_risk_coverage(pooled[0], pooled[1], from_logits),
                membership=None if audit is None else audit(group[0]),
                robustness=None if trial is None else trial(group),
                expected_cost=None if costs is None else _cost(owner, outputs[name], labels, from_logits, costs),
            )
        )
    return Report(
        title=title,
        entries=tuple(entries),
        reference=reference,
        class_names=tuple(map(str, class_names)),
        num_examples=len(labels),
        notes=tuple(notes),
        settings=dict(settings or {}),
        environment=_environment(),
        histories=dict(histories or {}),
        comparison=comparison,
        explanations=explained(owner, groups, reference, inputs, labels) if explain else (),
    )


def _cost(owner: str, outputs: list[np.ndarray], labels: np.ndarray, from_logits: bool, costs: Any) -> Score:
    """Return the expected cost of each model's decisions between two classes."""
    if outputs[0].shape[-1] != 2:
        raise error(owner, "two classes with costs", outputs[0].shape[-1])
    chances = [each[:, 1] for each in outputs]
    if from_logits:
        chances = [1.0 / (1.0 + np.exp(each[:, 0] - each[:, 1].astype("float64"))) for each in outputs]
    return Score(tuple(decision_cost(labels, each, **costs).cost for each in chances))


def _groups(owner: str, models: Any, from_logits: bool) -> dict[str, list[keras.Model]]:
    named = models if isinstance(models, Mapping) else {getattr(models, "name", "model"): models}
    groups = {str(name): list(each) if isinstance(each, (list, tuple)) else [each] for name, each in named.items()}
    if not groups or not all(groups.values()):
        raise error(owner, "at least one model for each name", groups)
    for name, group in groups.items():
        for model in group:
            if not isinstance(model, keras.Model):
                raise error(owner, f"a keras.Model as {name!r}", type(model).__name__)
            if from_logits and "softmax" in final_activation(model):
                raise error(owner, f"{name!r} to give logits", "a model that ends in softmax", "Pass from_logits=False")
    return groups


def _arrays(owner: str, data: Any) -> tuple[Any, np.ndarray]:
    """Return inputs and labels as arrays, from any form of ``data``."""
    if isinstance(data, Data):
        data = data.test
    if isinstance(data, Examples):
        inputs, labels = data.inputs, data.labels
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        inputs, labels = data
    elif hasattr(data, "as_numpy_iterator"):
        batches = list(data.as_numpy_iterator())
        if not batches:
            raise error(owner, "at least one example", "an empty dataset")
        inputs, labels = (np.concatenate(part) for part in zip(*(batch[:2] for batch in batches), strict=True))
    else:
        raise error(owner, "data of inputs and labels", type(data).__name__, "Pass (inputs, labels)")
    labels = np.asarray(labels)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        advice = "Use labels.argmax(-1) for one-hot labels"
        raise error(owner, "integer labels of shape (examples,)", f"{labels.dtype} of shape {labels.shape}", advice)
    if not len(labels) or len(inputs) != len(labels):
        raise error(owner, "at least one example, and a label for each", f"{len(inputs)} inputs, {len(labels)} labels")
    return np.asarray(inputs), labels


def _outputs(owner: str, model: keras.Model, inputs: Any, batch_size: int) -> np.ndarray:
    outputs = model.predict(inputs, batch_size=batch_size, verbose=0)
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2 or outputs.shape[1] < 2:
        shape = getattr(outputs, "shape", type(outputs).__name__)
        raise error(owner, f"one output of shape (examples, classes) from {model.name!r}", f"{shape}")
    return outputs


def _num_classes(owner: str, outputs: Mapping[str, list[np.ndarray]], labels: np.ndarray) -> int:
    counts = {each.shape[-1] for group in outputs.values() for each in group}
    if len(counts) > 1:
        raise error(owner, "the same number of classes from every model", f"{sorted(counts)}")
    (count,) = counts
    if labels.min() < 0 or labels.max() >= count:
        raise error(owner, f"labels in 0..{count - 1}", f"{labels.min()}..{labels.max()}")
    return count


def _agreement(answers: Mapping[str, list[np.ndarray]], name: str, reference: str | None) -> Score | None:
    if reference is None or name == reference:
        return None
    theirs = answers[reference]
    pairs = zip(
        answers[name], theirs if len(theirs) == len(answers[name]) else theirs[:1] * len(answers[name]), strict=True
    )
    return Score(tuple(float(np.mean(ours == other)) for ours, other in pairs))


def _confusion(answers: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    counts = np.bincount(labels.astype("int64") * num_classes + answers, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def _risk_coverage(outputs: np.ndarray, labels: np.ndarray, from_logits: bool, most: int = 200) -> np.ndarray:
    uncertainty = np.asarray(uncertainty_score(outputs, from_logits=from_logits))
    curve = np.stack(risk_coverage_curve(outputs.argmax(-1) != labels, uncertainty))
    # Evenly spaced coverages, so that the noisy beginning of the curve does not take most of the points.
    chosen = np.searchsorted(curve[0], np.linspace(1 / most, 1.0, most)).clip(max=curve.shape[1] - 1)
    return curve[:, np.unique(chosen)]


def _size_on_disk(model: keras.Model) -> int:
    """Return the bytes of the ``.keras`` file that a user would ship: an uncompiled copy if the model can be copied."""
    if isinstance(model, keras.Sequential) or type(model).__name__ == "Functional":
        copy = type(model).from_config(model.get_config())
        copy.set_weights(model.get_weights())
        model = copy
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        return path.stat().st_size


class _Uncompiled(keras.Model):
    """A model without its compile settings: ``steps_per_execution``, for instance, slows ``predict_on_batch`` down.

    Args:
        model: the model to call.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name="uncompiled")
        self.model = model

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Call the model."""
        return self.model(inputs, training=training)


def _milliseconds(models: Mapping[str, keras.Model], batch: Any, repeats: int = 100) -> dict[str, float]:
    """Return the time of ``predict_on_batch`` per example: the fastest of many calls, with the models in turn."""
    timed = {name: _Uncompiled(model) for name, model in models.items()}
    fastest = dict.fromkeys(models, math.inf)
    for round_ in range(repeats + 3):
        for name, model in timed.items():
            start = time.perf_counter()
            model.predict_on_batch(batch)
            seconds = time.perf_counter() - start
            if round_ >= 3:  # the first calls trace
                fastest[name] = min(fastest[name], seconds)
    return {name: 1000 * seconds / len(batch) for name, seconds in fastest.items()}


def _environment() -> dict[str, Any]:
    cpus = pathlib.Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    versions = {name: importlib.metadata.version(name) for name in ("keras", "tensorflow", "numpy")}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} CPUs, {model or platform.machine()}",
        "system": platform.platform(),
        "python": platform.python_version(),
        **versions,
    }
