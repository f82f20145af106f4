"""A teacher without a model: a fixed probability for the right class, the rest shared by the others."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill._checks import error, number
from keras_distill._typing import Structure
from keras_distill.teachers._base import Teacher


@keras.saving.register_keras_serializable(package="keras_distill")
class VirtualTeacher(Teacher):
    """A hand-made teacher that gives the right class a fixed probability (teacher-free distillation, Tf-KD).

    Choose it as a baseline: its gain over plain training is regularisation, not knowledge.

    Formula: p_k = correct_probability for the right class, (1 - correct_probability) / (classes - 1) for each other;
    its outputs are log p. The paper uses it at a high temperature, 20.

    Args:
        correct_probability: 0 to 1, exclusive; 0.9 or more in the paper.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Raises:
        ValueError: if ``correct_probability`` is out of bounds; in ``fit``, if there are no integer labels.

    Example:
        >>> import numpy as np
        >>> teacher = VirtualTeacher(correct_probability=0.9)
        >>> np.exp(teacher.logits(np.array([1]), num_classes=3)).round(3)
        array([[0.05, 0.9 , 0.05]], dtype=float32)

    Reference:
        Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
        arXiv:1909.11723, eq. 9. Differs: nothing.
    """

    def __init__(self, correct_probability: float = 0.99, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        owner = "VirtualTeacher"
        self.correct_probability = number(owner, "correct_probability", correct_probability, above=0.0, high=1.0)
        if self.correct_probability == 1.0:
            raise error(owner, "correct_probability < 1", 1.0, "1 would be the label itself")

    @property
    def needs_labels(self) -> bool:
        """True: its answers are computed from the labels."""
        return True

    @property
    def hears_student(self) -> bool:
        """True: the student's outputs give the number of classes."""
        return True

    def listen(self, teacher_x: Any, taps: Any = (), *, differentiable: bool = False) -> tuple[Any, dict[str, Any]]:
        """Raise: it knows labels, not inputs."""
        raise error("VirtualTeacher", "to be the teacher of a Distiller", "a call without labels")

    def listen_to(
        self, student_outputs: Structure, taps: dict[str, Any], batch: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return the logits of the labels, for every output; see ``Teacher.listen_to``."""
        if batch is None:
            return keras.tree.map_structure(ops.zeros_like, student_outputs), {}
        outputs, labels = keras.tree.flatten(student_outputs), keras.tree.flatten(batch.labels)
        labels = labels * len(outputs) if len(labels) == 1 else labels
        if len(labels) != len(outputs) or any(each is None for each in labels):
            raise error("VirtualTeacher", f"labels for {len(outputs)} outputs", len(labels))
        answers = [self.logits(y, each.shape[-1]) for y, each in zip(labels, outputs, strict=True)]
        return keras.tree.pack_sequence_as(student_outputs, answers), {}

    def logits(self, labels: Any, num_classes: int) -> Any:
        """Return the logarithms of this teacher's probabilities.

        Args:
            labels: (batch, ...) integer classes, or (batch, ..., 1).
            num_classes: >= 2.

        Returns:
            (batch, ..., num_classes), float32.
        """
        labels = ops.convert_to_tensor(labels)
        if len(labels.shape) > 1 and labels.shape[-1] == num_classes:
            right = ops.cast(labels, "float32") > 0.5
        else:
            labels = ops.squeeze(labels, -1) if len(labels.shape) > 1 and labels.shape[-1] == 1 else labels
            right = ops.one_hot(ops.cast(labels, "int32"), num_classes, dtype="bool")
        other = (1.0 - self.correct_probability) / (num_classes - 1)
        return ops.log(ops.where(right, self.correct_probability, other))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"name": self.name, "correct_probability": self.correct_probability}
