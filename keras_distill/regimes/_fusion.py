"""Fuses several trained models into one student by distillation, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import losses
from keras_distill._checks import error
from keras_distill.distiller import Distiller
from keras_distill.regimes._averaging import average_weights, same_shapes
from keras_distill.regimes._base import Regime
from keras_distill.regimes._rounds import Measured, Round
from keras_distill.teachers import Ensemble
from keras_distill.terms import LogitsDistillation
from keras_distill.training import Batch


def fuse(
    models: Sequence[keras.Model],
    unlabelled: Any,
    *,
    student: keras.Model | None = None,
    temperature: float = 1.0,
    combine: str = "mean_logits",
    optimizer: Any = "adam",
    **fit_arguments: Any,
) -> keras.Model:
    """Return one student trained on unlabelled data to answer as the mean of several models (FedDF).

    Choose it for models trained separately on different data: unlike averaging their weights, it keeps what each has
    learned. The models must only share their inputs and classes.

    Args:
        models: two or more trained models that give logits.
        unlabelled: inputs: an array, or a ``tf.data.Dataset`` of batches of inputs.
        student: a built model to start from. None: the average of the models' weights if they have one architecture,
            else a copy of the first.
        temperature: > 0.
        combine: rule of ``teachers.Ensemble``: ``"mean_logits"`` as in the paper; ``"mean_probs"`` where each model has
            seen few of the classes, because its logits for the others would decide.
        optimizer: as in Keras.
        **fit_arguments: as in Keras' ``fit`` (``epochs``, ``batch_size``, ``callbacks``, ``verbose``).

    Returns:
        The student, an ordinary Keras model.

    Raises:
        ValueError: if there are fewer than two models, their classes differ, or ``combine`` is unknown.

    Reference:
        Lin, Kong, Stich, Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning", NeurIPS 2020,
        arXiv:2006.07242, algorithm 1. Differs: early stopping is left to a callback.
    """
    if not isinstance(models, (list, tuple)) or len(models) < 2:
        raise error("fuse", "two or more models", models)
    if student is None:
        student = average_weights(models) if same_shapes(models) else average_weights(models[:1])
    teacher = Ensemble(list(models), combine=combine)
    distiller = Distiller(teacher, student, LogitsDistillation(temperature), student_loss_weight=0.0)
    distiller.compile(optimizer)
    distiller.fit(unlabelled, **fit_arguments)
    return student


class Amalgamation(Regime):
    """A student of all classes, taught by several teachers of some classes each (knowledge amalgamation).

    Choose it to merge classifiers whose classes differ. No teacher compares classes of different teachers: give some
    labels, or classes that two teachers share.

    Formula: mean over teachers of T**2 KL(softmax(z_t / T) || softmax(z_s[classes_t] / T)), plus the supervised loss if
    there are labels.

    Args:
        teachers: trained models that give logits.
        classes: for each teacher, the student's class of each of its outputs.
        student: a built model with an output for every class.
        temperature: > 0.
        name: name of this model.

    Raises:
        ValueError: if a teacher has not as many classes as outputs, or the student has no such class.

    Example:
        >>> import keras, numpy as np
        >>> def head(units):
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
        >>> union = Amalgamation([head(2), head(3)], [[0, 1], [2, 3, 4]], head(5))
        >>> union.compile("adam")
        >>> history = union.fit(np.ones((8, 4), "float32"), verbose=0)

    Reference:
        Shen et al., "Amalgamating Knowledge towards Comprehensive Classification", AAAI 2019, arXiv:1811.02796.
        Differs: logits only; add ``FeatureDistillation`` in a ``Distiller`` for features.
    """

    owner = "Amalgamation"

    def __init__(
        self,
        teachers: Sequence[keras.Model],
        classes: Sequence[Sequence[int]],
        student: keras.Model,
        temperature: float = 1.0,
        name: str = "amalgamation",
    ) -> None:
        if len(teachers) != len(classes) or not teachers:
            raise error(self.owner, "a list of classes for each teacher", f"{len(classes)} for {len(teachers)}")
        self.temperature = temperature
        self.classes = [[int(each) for each in some] for some in classes]
        count = student.output_shape[-1]
        for teacher, some in zip(teachers, self.classes, strict=True):
            if (
                len(some) != teacher.output_shape[-1]
                or min(some) < 0
                or max(some) >= count
                or len(set(some)) < len(some)
            ):
                expected = f"one of the student's {count} classes for each of {teacher.output_shape[-1]} outputs"
                raise error(self.owner, expected, some)
        members = {f"teacher_{index}": teacher for index, teacher in enumerate(teachers)}
        super().__init__(
            {"student": student}, teachers=members, part_names=["student_loss", "distillation_loss"], name=name
        )

    @property
    def student(self) -> keras.Model:
        """The student."""
        return self.players["student"]

    def rounds(self) -> list[Round]:
        """Return the one round."""
        return [Round(("student",), self._learn)]

    def _learn(self, batch: Batch, training: bool) -> Measured:
        outputs = self.student(batch.inputs, training=training)
        values = []
        for index, classes in enumerate(self.classes):
            heard = ops.stop_gradient(self._member(f"teacher_{index}")(batch.inputs, training=False))
            own = ops.take(outputs, ops.convert_to_tensor(classes), axis=-1)
            each = losses.soft_targets(teacher_logits=heard, student_logits=own, temperature=self.temperature)
            values.append(ops.mean(each))
        taught, supervised = ops.mean(ops.stack(values)), self.supervised(batch, outputs)
        parts = (("student_loss", supervised), ("distillation_loss", taught))
        return Measured({"student": supervised + taught}, parts, outputs)


def amalgamate(
    teachers: Sequence[keras.Model],
    classes: Sequence[Sequence[int]],
    student: keras.Model,
    unlabelled: Any,
    *,
    temperature: float = 1.0,
    optimizer: Any = "adam",
    **fit_arguments: Any,
) -> keras.Model:
    """Return a student of all classes, taught by teachers of some classes on unlabelled data; see ``Amalgamation``.

    Args:
        teachers: as in ``Amalgamation``.
        classes: as in ``Amalgamation``.
        student: as in ``Amalgamation``; it is trained and returned.
        unlabelled: inputs: an array, or a ``tf.data.Dataset`` of batches of inputs.
        temperature: > 0.
        optimizer: as in Keras.
        **fit_arguments: as in Keras' ``fit``.

    Returns:
        The student.

    Raises:
        ValueError: as ``Amalgamation``.
    """
    regime = Amalgamation(teachers, classes, student, temperature)
    regime.compile(optimizer)
    regime.fit(unlabelled, **fit_arguments)
    return student
