"""From a teacher and a budget to a student: build, factorise, quantise, with distillation after each step."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import choice, error, integer, number
from keras_distill.data import Data
from keras_distill.distiller import Distiller
from keras_distill.metrics import expected_calibration_error
from keras_distill.students import _graph, _litert
from keras_distill.students._built import Budget
from keras_distill.students._cost import cost
from keras_distill.students._factorize import factorize
from keras_distill.students._from_teacher import from_teacher
from keras_distill.students._inputs import check_inputs
from keras_distill.students._quantization import freeze_quantization, quantization_aware, quantized_litert
from keras_distill.terms import LogitsDistillation

_OWNER = "shrink"
STEPS = ("build", "factorize", "quantize")


@dataclasses.dataclass(frozen=True)
class ShrinkStep:
    """The result of one step on the test examples.

    Args:
        name: ``"teacher"``, or the step's name.
        accuracy: accuracy after distillation, as a fraction.
        accuracy_before: the same before distillation; None for the teacher.
        expected_calibration_error: of the probabilities, 15 bins.
        fidelity: fraction of examples classified as by the teacher.
        parameters: number of entries in the weights.
        macs: multiply-accumulates of one example.
        file_bytes: size of the LiteRT file.
        milliseconds: tenth percentile of one example in LiteRT on one thread, all files in the same rounds.
        latency_ratio: that time over the teacher's.
    """

    name: str
    accuracy: float
    accuracy_before: float | None
    expected_calibration_error: float
    fidelity: float
    parameters: int
    macs: int
    file_bytes: int
    milliseconds: float
    latency_ratio: float


@dataclasses.dataclass(frozen=True, eq=False)
class Shrunk:
    """The student, its LiteRT file and the result of each step.

    Args:
        model: the student.
        litert: its LiteRT file.
        steps: the teacher, then each step.
        budget: the requested budget.
    """

    model: keras.Model
    litert: bytes
    steps: tuple[ShrinkStep, ...]
    budget: Budget

    def table(self) -> str:
        """Return the steps as a table of text."""
        head = f"{'step':<10}{'accuracy':>9}{'before':>8}{'ECE':>7}{'fidelity':>9}{'parameters':>12}{'MACs':>13}"
        lines = [f"{head}{'bytes':>10}{'ms':>8}{'ratio':>7}"]
        for step in self.steps:
            before = "" if step.accuracy_before is None else f"{step.accuracy_before:.4f}"
            lines.append(
                f"{step.name:<10}{step.accuracy:>9.4f}{before:>8}{step.expected_calibration_error:>7.3f}"
                f"{step.fidelity:>9.4f}{step.parameters:>12,}{step.macs:>13,}{step.file_bytes:>10,}"
                f"{step.milliseconds:>8.3f}{step.latency_ratio:>7.3f}"
            )
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the report as JSON."""
        steps = [dataclasses.asdict(step) for step in self.steps]
        return json.dumps({"budget": self.budget.limits, "steps": steps}, indent=1)


def shrink(
    teacher: keras.Model,
    data: Any,
    budget: Budget,
    steps: Sequence[str] = STEPS,
    *,
    epochs: int = 3,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    temperature: float = 2.0,
    student_loss_weight: float = 0.1,
    rounds: int = 1,
    seed: int = 0,
) -> Shrunk:
    """Shrink a classifier to a budget, distilling it from the teacher after each step.

    Choose it for a first answer to "how small, how fast, what does it cost": the report shows the effect of each step,
    before and after distillation, and times real LiteRT files. The individual builders give more control. With many
    labels and few epochs distillation may not help here; the column ``before`` and a run of your own with
    ``student_loss_weight=1.0`` show whether it does.

    Args:
        teacher: a built Functional or Sequential classifier that gives logits. It is not changed.
        data: ``data.Data``, or ``((inputs, labels), (test_inputs, test_labels))``, integer labels.
        budget: limits of the student. Building and factorising share the counted limits; latency is met by building,
            and measured on the float file.
        steps: of ``"build"`` (``from_teacher``), ``"factorize"`` and ``"quantize"`` (8 bits), in this order.
        epochs: epochs of distillation after each step.
        batch_size: examples per update.
        learning_rate: Adam's learning rate; a fifth of it after ``"quantize"``.
        temperature: temperature of the distillation.
        student_loss_weight: weight of the labels, 0 to 1; the rest is the teacher's.
        rounds: number of times ``"build"`` is done, each time from the previous round's student and followed by
            distillation; the limits fall by the same factor from round to round.
        seed: seed of the order of examples.

    Returns:
        A ``Shrunk`` with the student, its file and the report.

    Raises:
        ValueError: if a step is unknown, the data do not fit, or no size meets the budget.
    """
    _graph.check_graph(_OWNER, teacher)
    if not isinstance(budget, Budget):
        raise error(_OWNER, "budget to be a students.Budget", budget, "Use students.Budget(latency_ratio=0.25)")
    wanted = [choice(_OWNER, "steps", step, STEPS) for step in steps]
    if not wanted or wanted != [step for step in STEPS if step in wanted]:
        raise error(_OWNER, f"steps in the order of {', '.join(STEPS)}, each once", str(list(steps)))
    integer(_OWNER, "epochs", epochs, low=0)
    integer(_OWNER, "rounds", rounds, low=1)
    integer(_OWNER, "batch_size", batch_size, low=1)
    number(_OWNER, "learning_rate", learning_rate, above=0)
    (x, y), (test_x, test_y) = _examples(data)
    _check_fit(teacher, (x, y), (test_x, test_y))
    training = (epochs, batch_size, learning_rate, temperature, student_loss_weight, seed)
    truth = _logits(teacher, test_x)
    found = [_measure("teacher", teacher, None, truth, truth, test_y)]
    files = [_litert.convert(_OWNER, teacher)]
    model = teacher
    plan = [(step, turn) for step in wanted for turn in range(1, 1 + (rounds if step == "build" else 1))]
    for step, turn in plan:
        limits = _limits(budget, teacher, wanted, turn, rounds) if step == "build" else budget.limits
        model = _step(step, model, x, limits)
        before = _accuracy(_logits(model, test_x), test_y)
        _distil(teacher, model, x, y, training, quantized=step == "quantize")
        name = f"{step} {turn}" if step == "build" and rounds > 1 else step
        found.append(_measure(name, model, before, _logits(model, test_x), truth, test_y))
        quantized = step == "quantize"
        files.append(quantized_litert(_OWNER, model) if quantized else _litert.convert(_OWNER, model))
    times = _litert.times(files)
    rows = [
        dataclasses.replace(row, file_bytes=len(file), milliseconds=ms, latency_ratio=ms / times[0])
        for row, file, ms in zip(found, files, times, strict=True)
    ]
    return Shrunk(model, files[-1], tuple(rows), budget)


def _examples(data: Any) -> Any:
    if isinstance(data, Data):
        return (data.train.inputs, data.train.labels), (data.test.inputs, data.test.labels)
    pairs = isinstance(data, (tuple, list)) and len(data) == 2
    if not pairs or any(not isinstance(part, (tuple, list)) or len(part) != 2 for part in data):
        expected = "data.Data, or ((inputs, labels), (test_inputs, test_labels))"
        raise error(_OWNER, expected, type(data).__name__)
    for inputs, labels in data:
        if len(inputs) != len(labels) or not len(inputs):
            raise error(_OWNER, "as many labels as inputs", f"{len(inputs)} inputs and {len(labels)} labels")
    return data


def _check_fit(teacher: keras.Model, *pairs: tuple[Any, Any]) -> None:
    shape = teacher.output_shape
    if isinstance(shape, list | dict) or len(shape) != 2:
        got = f"outputs of shape {shape}"
        raise error(_OWNER, "a classifier with one output of shape (examples, classes)", got)
    for inputs, labels in pairs:
        check_inputs(_OWNER, teacher, keras.tree.map_structure(lambda array: array[:1], inputs))
        found = np.asarray(labels)
        if not np.issubdtype(found.dtype, np.integer) or found.ndim != 1:
            got = f"{found.dtype} labels of shape {found.shape}"
            raise error(_OWNER, "one integer label for each example", got, "Use argmax of one-hot labels")
        if found.min() < 0 or found.max() >= shape[-1]:
            got = f"labels from {found.min()} to {found.max()}"
            raise error(_OWNER, f"labels from 0 to {shape[-1] - 1}, the teacher's classes", got)


def _limits(budget: Budget, teacher: keras.Model, wanted: Sequence[str], turn: int, rounds: int) -> Mapping[str, Any]:
    """Return the limits of one round of building; counted limits fall by equal factors from the teacher's size."""
    limits: dict[str, Any] = dict(budget.limits)
    whole = cost(teacher)
    size = {"parameters": whole.parameters, "macs": whole.macs, "file_bytes": whole.bytes}
    # If factorising follows, half of the reduction, on a logarithmic scale, is left to it.
    share = turn / rounds * (0.5 if "factorize" in wanted else 1.0)
    for name, value in budget.limits.items():
        if name == "latency_ratio":  # measured against the previous round's student
            limits[name] = value ** (1 / rounds)
        else:
            limits[name] = math.ceil(value * max(1.0, size[name] / value) ** (1 - share))
    return limits


def _step(step: str, model: keras.Model, x: Any, limits: Mapping[str, Any]) -> keras.Model:
    if step == "build":
        return from_teacher(model, budget=Budget(**limits)).model
    if step == "factorize":
        counted = {name: value for name, value in limits.items() if name != "latency_ratio"}
        options: Any = {"budget": Budget(**counted)} if counted else {"energy": 0.95}
        return factorize(model, x[:512], **options).model
    return quantization_aware(model, data=x[:512])


def _distil(teacher: Any, model: Any, x: Any, y: Any, training: Sequence[Any], *, quantized: bool) -> None:
    epochs, batch_size, rate, temperature, weight, seed = training
    options = tf.data.Options()
    options.autotune.enabled = False
    examples = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=seed).batch(batch_size)
    examples = examples.with_options(options)
    trainable = teacher.trainable
    distiller = Distiller(teacher, model, LogitsDistillation(temperature), student_loss_weight=weight)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(optimizer=keras.optimizers.Adam(rate / 5 if quantized else rate), loss=loss)
    for epoch in range(epochs):
        if quantized and epoch == epochs - 1:
            freeze_quantization(model)
        distiller.fit(examples, epochs=1, shuffle=False, verbose=0)
    teacher.trainable = trainable


def _logits(model: keras.Model, x: Any) -> np.ndarray:
    return np.asarray(model.predict(x, batch_size=256, verbose=0))


def _accuracy(logits: np.ndarray, labels: Any) -> float:
    return float((logits.argmax(-1) == np.asarray(labels)).mean())


def _measure(name: str, model: Any, before: Any, logits: np.ndarray, truth: np.ndarray, labels: Any) -> ShrinkStep:
    error_ = float(expected_calibration_error(labels, logits, from_logits=True))
    fidelity = float((logits.argmax(-1) == truth.argmax(-1)).mean())
    counted = cost(model)
    return ShrinkStep(
        name, _accuracy(logits, labels), before, error_, fidelity, counted.parameters, counted.macs, 0, 0.0, 0.0
    )
