"""What every class of this room is: a Keras loss that also gives its values unreduced, for the terms."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras

from keras_distill._typing import Structure, Tensor


class LogitsLoss(keras.losses.Loss):
    """Base of the losses that compare two sets of logits.

    As a plain ``keras.losses.Loss`` it takes ``y_true`` = teacher's logits and ``y_pred`` = student's, compares them
    at temperature 1 and reduces as Keras does. A term calls ``values`` instead, with its temperature.

    Attributes:
        needs_labels: True where ``values`` cannot do without ``labels``.
        needs_batch: True where the result is one scalar for the whole (local) batch.
        needs_members: True where ``teacher_logits`` are the members of an ensemble, (batch, members, classes).
        same_outputs: False where teacher's and student's last axes are not the same things, so may differ in size.
        uses_mask: True where ``values`` gives one value per sequence, for whose positions it needs the mask.
        needs_lists: True where the last axis holds the items of a list, of which only the order or the top counts.
        seed_generator: the random state of a loss that draws, which its term saves; None where nothing is drawn.
    """

    needs_labels = False
    needs_batch = False
    needs_members = False
    same_outputs = True
    uses_mask = False
    needs_lists = False
    seed_generator: keras.random.SeedGenerator | None = None

    def repeatable(self) -> LogitsLoss:
        """Return this loss, or a copy that draws the same in each call, for evaluation."""
        if self.seed_generator is None:
            return self
        same = object.__new__(type(self))  # copy.copy would call the constructor, which makes a variable
        same.__dict__.update(self.__dict__)
        same.seed_generator = None
        return same

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
            labels: (...,) integer class ids, where ``needs_labels``; else ignored.
            mask: (...,) bool or None; see ``losses.soft_targets``.

        Returns:
            (...,), float32; a scalar where ``needs_batch``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define values().")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Compare teacher's ``y_true`` with student's ``y_pred`` at temperature 1."""
        return self.values(y_true, y_pred)


class FeatureLoss(keras.losses.Loss):
    """Base of the losses that compare two feature tensors (channels-last).

    Attributes:
        needs_batch: True where the result is one scalar for the whole (local) batch.
        same_channels: True where teacher and student must have equal shapes, so that an adapter is called for.
        teacher_gradient: True where the teacher's side has an adapter that this loss trains.
    """

    needs_batch = False
    same_channels = False
    teacher_gradient = False

    def values(self, teacher_features: Tensor, student_features: Tensor, *, mask: Tensor = None) -> Tensor:
        """Return the loss of each example, not reduced.

        Args:
            teacher_features: a tensor, or a list of tensors where the loss compares several layers.
            student_features: the same for the student, after its adapter.
            mask: (batch, time) bool for sequences, or None; masked positions never count.

        Returns:
            (batch,), float32; a scalar where ``needs_batch``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define values().")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Compare teacher's ``y_true`` with student's ``y_pred``."""
        return self.values(y_true, y_pred)


class _Twin(keras.losses.Loss):
    """A loss whose values are those of a function of this room.

    Args:
        function: takes both sides, ``mask`` and the options, all by name.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
        **options: arguments of ``function`` with their checked values: attributes of the loss, and its configuration.
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
        """Return what ``from_config`` needs."""
        return {**super().get_config(), **self._chosen()}


class LogitsTwin(_Twin, LogitsLoss):
    """The class of a function of ``teacher_logits`` and ``student_logits``.

    A function that has an argument ``temperature`` or ``labels`` is also given these; see ``_Twin`` for the arguments.
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
        """Return the function of both sides, one value for each example; see ``LogitsLoss.values``."""
        known = inspect.signature(self._function).parameters
        given = {"temperature": temperature, "labels": labels, "mask": mask}
        given = {name: value for name, value in given.items() if name in known}
        sides = {"teacher_logits": teacher_logits, "student_logits": student_logits}
        return self._function(**sides, **{**given, **self._chosen()})


class FeatureTwin(_Twin, FeatureLoss):
    """The class of a function of ``teacher_features`` and ``student_features``; see ``_Twin`` for the arguments."""

    def values(self, teacher_features: Structure, student_features: Structure, *, mask: Tensor = None) -> Tensor:
        """Return the function of both sides, one value for each example; see ``FeatureLoss.values``."""
        sides = {"teacher_features": teacher_features, "student_features": student_features}
        return self._function(**sides, **self._chosen(), mask=mask)
