"""The common base of terms that compare several layers of each model at once."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import keras

from keras_distill._checks import error
from keras_distill._typing import Structure
from keras_distill.terms._base import DistillationLoss
from keras_distill.terms._structures import check_layers


class StagesDistillation(DistillationLoss, abc.ABC):
    """Base of terms on a list of layers of each model, with weights that depend on the sizes of those layers.

    Args:
        teacher_layer_names: layers of the teacher.
        student_layer_names: layers of the student.
        name: name shown in the logs.
        **kwargs: as for every layer.
    """

    needs_shapes = True

    def __init__(
        self, teacher_layer_names: Sequence[str], student_layer_names: Sequence[str], name: str | None, **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        for names in (teacher_layer_names, student_layer_names):
            if isinstance(names, str) or not names or not all(isinstance(each, str) for each in names):
                raise error(type(self).__name__, "a list of layer names", names)
        self.teacher_layer_name, self.student_layer_name = list(teacher_layer_names), list(student_layer_names)

    def validate_model_compatibility(self, teacher: Any, student: keras.Model) -> None:
        """Raise ``ValueError`` if a named layer does not exist."""
        check_layers(type(self).__name__, teacher, self.teacher_taps, student, self.student_taps)

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Create the trained weights from the sizes of the layers."""
        self._build(*([tuple(tensor.shape) for tensor in side] for side in (teacher_outputs, student_outputs)))

    def get_build_config(self) -> dict[str, Any] | None:
        """Return the sizes from which the weights are recreated."""
        if not self.built:
            return None
        sides = [[[None, *shape[1:]] for shape in side] for side in self._shapes]
        return {"teacher_shapes": sides[0], "student_shapes": sides[1]}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Recreate the trained weights."""
        self._build(*([tuple(shape) for shape in config[key]] for key in ("teacher_shapes", "student_shapes")))

    def _build(self, teacher_shapes: list[tuple], student_shapes: list[tuple]) -> None:
        for shape in (*teacher_shapes, *student_shapes):
            if len(shape) != 4 or None in shape[1:]:
                raise error(type(self).__name__, "layers of shape (batch, height, width, channels), all known", shape)
        self._build_shapes(teacher_shapes, student_shapes)
        object.__setattr__(self, "_shapes", (teacher_shapes, student_shapes))  # plain data, not to be tracked by Keras
        self.built = True

    @abc.abstractmethod
    def _build_shapes(self, teacher_shapes: list[tuple], student_shapes: list[tuple]) -> None:
        """Create the trained weights for layers of these shapes (batch, height, width, channels)."""

    def get_config(self) -> dict[str, Any]:
        """Return the names of the layers and the configuration common to all terms."""
        return {
            **super().get_config(),
            "teacher_layer_names": list(self.teacher_layer_name),
            "student_layer_names": list(self.student_layer_name),
        }

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Accept everything: layers of any sizes may be compared."""
