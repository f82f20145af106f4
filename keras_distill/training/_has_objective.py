"""Exposes the numbers and logs of one objective as attributes of the fitted model.

Kept apart from ``distiller.py``, which is to stay short enough to be read as one train step.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import error
from keras_distill._typing import Structure
from keras_distill.settings import Setting
from keras_distill.taps import Taps
from keras_distill.terms import DistillationLoss
from keras_distill.training._batch import Batch, Heard
from keras_distill.training._objective import Objective, Parts, num_replicas
from keras_distill.training._saving import states_of_training, without_compile
from keras_distill.training._trainer import Trainer, add_to_mean, num_examples


class _ZeroLoss(keras.callbacks.Callback):
    """Warns once if the student's own loss was exactly 0.0 for an epoch, as when a detector's anchors match no box."""

    warned = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Check the mean of the epoch."""
        if not self.warned and (logs or {}).get("student_loss") == 0.0:
            self.warned = True
            warnings.warn(
                "Distiller: the student's own loss was exactly 0.0 for a whole epoch, so labels teach it nothing. If "
                "it is a detector, none of its anchors matches a box: check anchor_size, the boxes' format and "
                "losses.check_anchors.",
                stacklevel=2,
            )


class HasObjective(Trainer):
    """A trainer with one objective: its weights are attributes, its parts are in the logs and its configuration saved.

    Attributes:
        student_loss_tracker: mean of the supervised loss.
        distillation_loss_tracker: mean of the weighted sum of the terms.
    """

    _objective: Objective
    _frozen: Any  # .teacher: the frozen teacher, where Keras does not track it
    _teacher_parts: list[Any]
    _student_feature_extractor: Taps
    _students_own_loss = False
    owner = "Distiller"

    def _track_objective(self, objective: Objective, student: keras.Model) -> None:
        """Create the variables of the objective's settings, and the means shown in the logs.

        Args:
            objective: terms, weights and share.
            student: the model whose output names the logs use.
        """
        self._objective = objective
        self.distillation_losses = objective.terms
        objective.create(self)
        self.student_loss_tracker = keras.metrics.Mean(name="student_loss")
        self.distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")
        names = _unique([_log_name(term) for term in objective.terms])
        several = len(names) > 1
        self._term_trackers = [keras.metrics.Mean(name=f"{name}_loss") for name in names] if several else []
        on_outputs = any(not getattr(term, "student_layer_name", None) for term in objective.terms)
        outputs = _output_names(student) if on_outputs and len(getattr(student, "outputs", None) or ()) > 1 else []
        self._output_trackers = [keras.metrics.Mean(name=f"distillation_{name}") for name in outputs]

    def _track(self, parts: Parts, outputs: Structure) -> None:
        count = num_examples(outputs)
        add_to_mean(self._loss_tracker, parts.total, count)
        add_to_mean(self.student_loss_tracker, parts.student_loss, count)
        if not parts.terms:
            return
        add_to_mean(self.distillation_loss_tracker, parts.distillation_loss, count)
        if self._term_trackers:
            for tracker, (_, value) in zip(self._term_trackers, parts.terms, strict=True):
                add_to_mean(tracker, value, count)
        by_name = {tracker.name.removeprefix("distillation_"): tracker for tracker in self._output_trackers}
        for name, value in parts.outputs:
            tracker = by_name.get(_output_names(self.student)[int(name)] if name.isdigit() else name)
            if tracker is not None:
                add_to_mean(tracker, value, count)

    def _distillation_logs(self) -> set[str]:
        trackers = (self.distillation_loss_tracker, *self._term_trackers, *self._output_trackers)
        return {tracker.name for tracker in trackers}

    # ------------------------------------------------------------------ what may be read and assigned at any time

    @property
    def student_loss_weight(self) -> float:
        """Share of the supervised loss, 0 to 1. Assign a number at any time; the next step uses it."""
        return self._objective.share.number

    @student_loss_weight.setter
    def student_loss_weight(self, value: Any) -> None:
        self._objective.share.assign(value)
        if self.compiled:
            self._check_supervision()

    @property
    def distillation_loss_weights(self) -> list[float]:
        """Weight of each term, >= 0. Assign a list, or one item, at any time; the next step uses it."""
        return _Weights(self._objective.weights)

    @distillation_loss_weights.setter
    def distillation_loss_weights(self, values: Sequence[Any]) -> None:
        self._objective.assign_weights(values)

    @property
    def settings(self) -> dict[str, Setting]:
        """Every number that training reads and that may be assigned or scheduled, by its name in the logs."""
        return self._objective.settings

    @property
    def is_supervised(self) -> bool:
        """Whether a loss between labels and outputs was given to ``compile``."""
        return self._compile_loss is not None or self._students_own_loss

    def _own_callbacks(self) -> list[keras.callbacks.Callback]:
        return [_ZeroLoss()] if self._students_own_loss else []

    # ------------------------------------------------------------------ one pass of both models

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Structure = None, training: bool = True
    ) -> Any:
        """Return the total loss of a batch; Keras calls this to build the supervised loss.

        Args:
            x: the inputs.
            y: the targets, or None.
            y_pred: the student's outputs, or None to run the student (it also runs if a term taps its layers).
            sample_weight: as in ``fit``.
            training: whether the student runs in training mode.

        Returns:
            A scalar.
        """
        batch = Batch.of((x, y, sample_weight), self.student)
        known = None if y_pred is None or self._student_feature_extractor.names else Heard(y_pred)
        return self._measured(batch, training or self.evaluate_distillation, training, known)[0].to_minimize

    def measure(self, batch: Batch, *, training: bool = False) -> Parts:
        """Return the loss of a batch and its parts, without an update; adaptive callbacks use it.

        Args:
            batch: inputs, labels, weights.
            training: whether the student runs in training mode.

        Returns:
            The parts.
        """
        return self._measured(batch, True, training)[0]

    def _listen(self, teacher_inputs: Structure) -> Heard | None:
        """Return the teacher's outputs and taps; None for a teacher that needs the student's outputs first."""
        if self._frozen.teacher.hears_student:
            return None
        return Heard(*self._frozen.teacher.listen(teacher_inputs, self._objective.taps("teacher")))

    def _measured(
        self, batch: Batch, with_teacher: bool, training: bool, student: Heard | None = None
    ) -> tuple[Parts, Heard]:
        student_inputs, teacher_inputs = self._frozen.teacher.split(batch.inputs)
        teacher = self._listen(teacher_inputs) if with_teacher else None
        if student is None:
            student = Heard(*self._student_feature_extractor(student_inputs, training=training))
        return self._parts(batch, student_inputs, teacher, student, training, with_teacher), student

    def _parts(
        self,
        batch: Batch,
        student_inputs: Structure,
        teacher: Heard | None,
        student: Heard,
        training: bool,
        with_teacher: bool = True,
    ) -> Parts:
        if with_teacher and self._frozen.teacher.hears_student:
            teacher = Heard(*self._frozen.teacher.listen_to(student.outputs, student.taps, batch))
        supervised, trained = ops.zeros((), "float32"), [self]
        if self._students_own_loss and batch.labels is not None:
            kwargs = {"x": student_inputs, "y": batch.labels, "y_pred": student.outputs, "training": training}
            supervised = self.student.compute_loss(**kwargs, sample_weight=batch.weights)
            # It already contains the student's own losses.
            trained = [*self._objective.own_terms, *self._teacher_parts]
        elif self._compile_loss is not None and batch.labels is not None:
            supervised = self._compile_loss(batch.labels, student.outputs, batch.weights)
        supervised = ops.cast(supervised, "float32") * num_replicas()
        return self._objective.measure(
            batch,
            teacher=teacher,
            student=student,
            supervised=supervised,
            own_losses=lambda: [loss for part in trained for loss in part.losses],
            training=training,
        )

    def _build_before(self, x: Any) -> None:
        built = self.built
        # A learned gate is built when it first sees its members, which must precede loading a backup's optimizer.
        self.built = built and all(part.built for part in self._teacher_parts)
        super()._build_before(x)
        self.built = self.built or built

    def _build_with(self, inputs: Structure) -> None:
        student_inputs, teacher_inputs = self._frozen.teacher.split(inputs)
        teacher = self._listen(teacher_inputs)
        student = Heard(*self._student_feature_extractor(student_inputs, training=False))
        if teacher is None:
            teacher = Heard(*self._frozen.teacher.listen_to(student.outputs, student.taps))
        self._objective.build_from(teacher, student)

    def _states_of_training(self) -> dict[str, Any]:
        return states_of_training([self.student, *self._objective.own_terms], [self._frozen.teacher])

    # ------------------------------------------------------------------ checks and configuration

    def why_labels(self) -> tuple[str, str] | None:
        """Return what needs labels and what to do without them, for an error message; None where nothing does."""
        if self.student_loss_weight > 0:
            advice = "Give y, or student_loss_weight=0 to learn from the teacher alone"
            return f"labels while student_loss_weight is {self.student_loss_weight:g}", advice
        if getattr(self.teacher, "needs_labels", False):
            return f"labels, which {type(self.teacher).__name__} needs", ""
        return super().why_labels()

    def _check_supervision(self) -> None:
        share = self._objective.share
        if not self.is_supervised and (share.number > 0 or share.schedule is not None):
            advice = "Give compile(loss=...), or student_loss_weight=0 to learn from the teacher alone"
            raise error("Distiller", f"a loss while student_loss_weight is {share.number:g}", "None", advice)

    def _check_strategy(self) -> None:
        foreign = [term for term in self.distillation_losses if not isinstance(term, DistillationLoss)]
        if foreign and self.distribute_strategy.num_replicas_in_sync > 1:
            got = f"{type(foreign[0]).__module__}.{type(foreign[0]).__name__}"
            raise error("Distiller", "terms of keras_distill under several replicas", got, "Its scale is not defined")

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this model."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "teacher": without_compile(serialize(self.teacher)),
            "student": serialize(self.student),
            "distillation_losses": [serialize(term) for term in self.distillation_losses],
            "distillation_loss_weights": [setting.config for setting in self._objective.weights],
            "student_loss_weight": self._objective.share.config,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        """Make the model that ``get_config`` described.

        Args:
            config: from ``get_config``.
            custom_objects: as in Keras.

        Returns:
            A model with fresh weights.
        """
        config = dict(config)
        with keras.saving.custom_object_scope(custom_objects or {}):
            for key in ("teacher", "student"):
                config[key] = keras.saving.deserialize_keras_object(config[key])
            terms = config["distillation_losses"]
            config["distillation_losses"] = [keras.saving.deserialize_keras_object(term) for term in terms]
            return cls(**config)

    def get_compile_config(self) -> dict[str, Any]:
        """Return what ``compile_from_config`` needs."""
        own = {"evaluate_distillation": self.evaluate_distillation, "stop_on_non_finite": self.stop_on_non_finite}
        own |= {"loss": "student"} if self._students_own_loss else {}
        return {**super().get_compile_config(), **own} if self.compiled else {}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved model was, with an optimizer whose state can be loaded.

        Args:
            config: from ``get_compile_config``.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)


def _output_names(student: keras.Model) -> list[str]:
    """Return the names of a Functional model's outputs: the keys where it gives a dictionary."""
    return sorted(student.output) if isinstance(student.output, dict) else list(student.output_names)


def _log_name(term: Any) -> str:
    """Return a term's name without the counter that Keras appends to default names, which differs between runs."""
    own = re.sub(r"(?<!^)(?=[A-Z])", "_", type(term).__name__).lower()
    name = getattr(term, "name", own)
    return own if re.fullmatch(rf"{own}(_\d+)?", name) else name


def _unique(names: Sequence[str]) -> list[str]:
    """Return unique names, with the index appended to duplicates."""
    return [name if list(names).count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]


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
