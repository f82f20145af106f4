"""The base class of generator objectives, and the tensors they see."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import losses
from keras_distill._checks import error
from keras_distill.taps import walk
from keras_distill.teachers import Ensemble, Single


class Shown(NamedTuple):
    """Both models' answers to a batch of synthetic examples.

    Attributes:
        teacher: the teacher's logits, (batch, classes).
        student: the student's logits, (batch, classes).
        taps: the teacher's tensors requested by the objective, by name.
        examples: the examples themselves.
        student_taps: the student's tensors requested by the objective, by name; only in the student's own update.
    """

    teacher: Any
    student: Any
    taps: dict[str, Any]
    examples: Any = None
    student_taps: dict[str, Any] = {}  # noqa: RUF012 -- never written to


def layers_of(teacher: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yield the name of each tap that ``Teacher.listen`` knows, and its layer.

    Args:
        teacher: a model, or an ensemble of models.
        prefix: prefix of the names.
    """
    if isinstance(teacher, Ensemble):
        for number_of, member in enumerate(teacher.models):
            yield from layers_of(member, f"{prefix}{number_of}/")
    else:
        yield from walk(teacher.model if isinstance(teacher, Single) else teacher, prefix)


class GeneratorObjective(abc.ABC):
    """Base of generator objectives, which can be added: ``ClassInversion() + BatchStatistics()``."""

    needs_student = False

    def taps(self, teacher: keras.Model) -> list[str]:
        """Return the names of the teacher's tensors that the generator's loss reads.

        Args:
            teacher: the frozen model.
        """
        return []

    def pairs(self) -> list[tuple[str, str]]:
        """Return pairs of a teacher's and a student's tensor name that the student's loss compares.

        There are none by default.
        """
        return []

    def states(self, teacher: keras.Model, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        """Return layers that hold the objective's state between steps; none by default.

        Args:
            teacher: the frozen model.
            shape: shape of one example.
        """
        return []

    @abc.abstractmethod
    def generator_loss(self, shown: Shown, teacher: keras.Model) -> Any:
        """Return the generator's loss, a float32 scalar.

        Args:
            shown: answers to a batch of synthetic examples, with gradients.
            teacher: the frozen model.
        """

    def student_loss(self, shown: Shown) -> Any:
        """Return the student's loss on the same examples: KL(teacher || student) by default.

        Args:
            shown: answers, without gradients through the teacher's.
        """
        return ops.mean(losses.soft_targets(teacher_logits=shown.teacher, student_logits=shown.student))

    def __add__(self, other: GeneratorObjective) -> GeneratorObjective:
        """Return the sum of two objectives; the student minimises the first one's loss."""
        return _Sum([*getattr(self, "parts", [self]), *getattr(other, "parts", [other])])


class _Sum(GeneratorObjective):
    def __init__(self, parts: Sequence[GeneratorObjective]) -> None:
        self.parts = list(parts)
        if any(part.pairs() for part in self.parts[1:]):
            got = "one that comes later, whose student loss is never minimised"
            raise error(
                "GeneratorObjective", "the objective with attention_layers first in a sum", got, "Swap the order"
            )
        self.needs_student = any(part.needs_student for part in parts)

    def taps(self, teacher: keras.Model) -> list[str]:
        return list(dict.fromkeys(name for part in self.parts for name in part.taps(teacher)))

    def pairs(self) -> list[tuple[str, str]]:
        return self.parts[0].pairs()

    def states(self, teacher: keras.Model, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        return [layer for part in self.parts for layer in part.states(teacher, shape)]

    def generator_loss(self, shown: Shown, teacher: keras.Model) -> Any:
        return sum(part.generator_loss(shown, teacher) for part in self.parts)

    def student_loss(self, shown: Shown) -> Any:
        return self.parts[0].student_loss(shown)
