"""Base classes of the losses: Keras losses that also return their unreduced values, for the terms."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_distill._typing import Structure, Tensor


class LogitsLoss(keras.losses.Loss):
    """Base of the losses that compare two sets of logits.

    Used as a plain ``keras.losses.Loss``, it takes the teacher's logits as ``y_true`` and the student's as ``y_pred``,
    compares them at temperature 1 and reduces as Keras does. A term calls ``values`` instead, with its temperature.

    Attributes:
        needs_labels: True if ``values`` requires ``labels``.
        needs_batch: True if the result is one scalar for the whole (local) batch.
        needs_members: True if ``teacher_logits`` are the members of an ensemble, (batch, members, classes).
        same_outputs: False if the last axes of teacher and student mean different things and may differ in size.
        uses_mask: True if ``values`` returns one value per sequence and needs the mask over its positions.
        needs_lists: True if the last axis holds the items of a list and only their order, or the top ones, matter.
        seed_generator: the random state of a loss that draws random numbers, saved by its term; None otherwise.
    """

    needs_labels = False
    needs_batch = False
    needs_members = False
    same_outputs = True
    uses_mask = False
    needs_lists = False
    seed_generator: keras.random.SeedGenerator | None = None

    def repeatable(self) -> LogitsLoss:
        """Return this loss, or for evaluation a copy that draws the same random numbers in every call."""
        if self.seed_generator is None:
            return self
        same = object.__new__(type(self))  # copy.copy would call the constructor, which makes a variable
        same.__dict__.update(self.__dict__)
        same.seed_generator = None
        return same

    def check_labels(self, labels: np.ndarray, shape: tuple[int | None, ...]) -> None:
        """Raise ``ValueError`` before training if labels given to ``fit`` as an array do not fit the student's outputs.

        Args:
            labels: all labels, whether this loss is the supervised one or reads them beside a teacher.
            shape: of the student's output, (None, ..., classes).
        """

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return the loss of each example, not reduced.

        Args:
            teacher_logits: (..., classes), float.
            student_logits: (..., classes), float.
            temperature: > 0; a number, or a tensor of shape () or (batch,) for one temperature per example.
            labels: (...,) integer class ids if ``needs_labels``; otherwise ignored.
            mask: (...,) bool or None; see ``losses.soft_targets``.

        Returns:
            (...,), float32; a scalar if ``needs_batch``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define values().")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Compare the teacher's ``y_true`` with the student's ``y_pred`` at temperature 1."""
        return self.values(y_true, y_pred)


class FeatureLoss(keras.losses.Loss):
    """Base of the losses that compare two feature tensors (channels-last).

    Attributes:
        needs_batch: True if the result is one scalar for the whole (local) batch.
        same_channels: True if teacher and student must have equal shapes; where they differ, an adapter is needed.
        teacher_gradient: True if the teacher's side has an adapter that this loss trains.
    """

    needs_batch = False
    same_channels = False
    teacher_gradient = False

    def values(self, teacher_features: Tensor, student_features: Tensor, *, mask: Tensor = None) -> Tensor:
        """Return the loss of each example, not reduced.

        Args:
            teacher_features: a tensor, or a list of tensors if the loss compares several layers.
            student_features: the same for the student, after its adapter.
            mask: (batch, time) bool for sequences, or None; masked positions never count.

        Returns:
            (batch,), float32; a scalar if ``needs_batch``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define values().")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Compare the teacher's ``y_true`` with the student's ``y_pred``."""
        return self.values(y_true, y_pred)


class _Twin(keras.losses.Loss):
    """A loss whose values are computed by one of the functions in ``losses``.

    Args:
        function: takes teacher, student, ``mask`` and the options, all by keyword.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
        **options: checked arguments of ``function``; they become attributes of the loss and part of its config.
    """

    def __init__(
        self, function: Callable[..., Tensor], reduction: str | None, name: str | None, **options: Any
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self._function, self._options = function, tuple(options)
        for option, value in options.items():
            setattr(self, option, value)

    def _chosen(self) -> dict[str, Any]:
        return {option: getattr(self, option) for option in self._options}

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), **self._chosen()}


class LogitsTwin(_Twin, LogitsLoss):
    """Wraps a function of ``teacher_logits`` and ``student_logits`` as a loss class.

    ``temperature`` and ``labels`` are passed on if the function accepts them; see ``_Twin`` for the arguments.
    """

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Call the function and return one value per example; see ``LogitsLoss.values``."""
        known = inspect.signature(self._function).parameters
        given = {"temperature": temperature, "labels": labels, "mask": mask}
        given = {name: value for name, value in given.items() if name in known}
        sides = {"teacher_logits": teacher_logits, "student_logits": student_logits}
        return self._function(**sides, **{**given, **self._chosen()})


class FeatureTwin(_Twin, FeatureLoss):
    """Wraps a function of ``teacher_features`` and ``student_features`` as a loss class; see ``_Twin``."""

    def values(self, teacher_features: Structure, student_features: Structure, *, mask: Tensor = None) -> Tensor:
        """Call the function and return one value per example; see ``FeatureLoss.values``."""
        sides = {"teacher_features": teacher_features, "student_features": student_features}
        return self._function(**sides, **self._chosen(), mask=mask)
