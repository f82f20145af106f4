"""A term that teaches a student where to look, by agreement of attribution maps."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import taps
from keras_distill._checks import error
from keras_distill._typing import Structure, Tensor
from keras_distill.losses._features.maps import pool
from keras_distill.teachers._base import known_model
from keras_distill.terms._base import DistillationLoss


@keras.saving.register_keras_serializable(package="keras_distill")
class AttributionMatching(DistillationLoss):
    """Teaches the student to look where the teacher looks (attribution matching, Jacobian matching).

    Wrap both models with ``explain.with_attribution``; their maps are then taps named ``"attribution"``. With
    ``method="gradient"`` this matches the gradients of the answers with respect to the input, with
    ``method="grad_cam"`` the class-activation maps. The step needs second derivatives and takes two to three times as
    long. It makes explanations agree; measure whether it also helps the accuracy.

    Formula: 1 - cos(teacher's map, student's map), each flattened; the larger of two maps is pooled to the smaller
    one's size first. The sign of a map matters, its scale does not.

    Args:
        teacher_layer_name: the tap with the teacher's map.
        student_layer_name: the tap with the student's map.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if a model has no such tap: the message names ``explain.with_attribution``.

    Example:
        >>> import numpy as np
        >>> term = AttributionMatching()
        >>> float(term.compute_loss(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])))  # at a right angle
        1.0

    Reference:
        Srinivas, Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018, arXiv:1803.00443; Zagoruyko,
        Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928, section 3.2.
        Differs: the angle of the maps, not the distance of normalised ones; each model explains its own answer.
    """

    needs_shapes = True

    def __init__(
        self,
        teacher_layer_name: str = "attribution",
        student_layer_name: str = "attribution",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.teacher_layer_name, self.student_layer_name = teacher_layer_name, student_layer_name

    def validate_model_compatibility(self, teacher: Any, student: keras.Model) -> None:
        """Raise ``ValueError`` if a model does not provide its map."""
        for who, model, tap in (
            ("teacher", teacher, self.teacher_layer_name),
            ("student", student, self.student_layer_name),
        ):
            known = known_model(model)
            if known is None:
                advice = "Wrap one of its models with explain.with_attribution and teach with that"
                raise error(
                    type(self).__name__, f"a {who} with gradients", f"the teacher {type(model).__name__}", advice
                )
            try:
                taps.Taps(known, [tap], owner=f"{type(self).__name__} ({who})")
            except ValueError as problem:
                advice = f"Pass explain.with_attribution({who})"
                got = f"{model.name!r} without one"
                raise error(type(self).__name__, f"a {who} with the tap {tap!r}", got, advice) from problem

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Check that the two maps can be compared."""
        shapes = [tuple(each.shape) for each in (teacher_outputs, student_outputs)]
        if len(shapes[0]) != len(shapes[1]) or shapes[0][-1] != shapes[1][-1]:
            advice = "Use one method of explain.with_attribution for both"
            raise error(type(self).__name__, "maps of one rank and number of channels", f"{shapes}", advice)
        if len(shapes[0]) != 4 and shapes[0][1:] != shapes[1][1:]:
            raise error(type(self).__name__, "inputs of one shape", f"{shapes}")
        self.built = True

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
    ) -> Any:
        """Return the loss of each example, (batch,)."""
        teacher, student = ops.stop_gradient(ops.cast(teacher_outputs, "float32")), ops.cast(student_outputs, "float32")
        if len(student.shape) == 4:
            size = [min(pair) for pair in zip(teacher.shape[1:3], student.shape[1:3], strict=True)]
            teacher, student = pool(teacher, size), pool(student, size)
        a, b = (ops.reshape(each, (ops.shape(each)[0], -1)) for each in (teacher, student))
        # Divided by the largest entry first, because squares of small gradients would underflow.
        a, b = (each / ops.maximum(ops.max(ops.abs(each), axis=-1, keepdims=True), 1e-30) for each in (a, b))
        scale = ops.rsqrt(ops.sum(a * a, axis=-1) * ops.sum(b * b, axis=-1) + 1e-12)
        return 1.0 - ops.sum(a * b, axis=-1) * scale

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        names = ("teacher_layer_name", "student_layer_name")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
