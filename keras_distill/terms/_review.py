"""A term that fuses deep student stages into shallow ones before comparing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill import adapters, losses
from keras_distill._checks import error, integer
from keras_distill._typing import Structure, Tensor
from keras_distill.terms._stages import StagesDistillation


@keras.saving.register_keras_serializable(package="keras_distill")
class ReviewDistillation(StagesDistillation):
    """Distillation of several stages with attention-based fusion, deep to shallow (knowledge review, ReviewKD).

    Each student stage is fused with the output of the deeper stages through a spatial attention, and compared with the
    teacher's stage at several resolutions. Choose it for convolutional students of another family than the teacher; it
    trains one ``adapters.AttentionFusion`` per stage, which the exported student does not contain.

    Formula: sum over stages of hierarchical_context(teacher stage, fusion(student stage, residual of deeper stages)).

    Args:
        teacher_layer_names: taps of the teacher, shallow to deep, each (batch, height, width, channels).
        student_layer_names: as many taps of the student, shallow to deep.
        hidden_filters: >= 1, channels passed from stage to stage; None takes the smaller of 512 and the deepest student
            stage's channels.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if the lists are empty or differ in length, a layer is unknown, or a stage is not a map of known
            size.

    Example:
        >>> term = ReviewDistillation(["block1", "block2"], ["b1", "b2"])
        >>> term.teacher_taps
        ['block1', 'block2']

    Reference:
        Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044.
        Differs: nothing; the published weight is 1 to 8, with a warm-up (``schedules.WarmUp``).
    """

    def __init__(
        self,
        teacher_layer_names: Sequence[str],
        student_layer_names: Sequence[str],
        hidden_filters: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher_layer_names, student_layer_names, name, **kwargs)
        owner = type(self).__name__
        if len(teacher_layer_names) != len(student_layer_names):
            got = f"{len(teacher_layer_names)} and {len(student_layer_names)}"
            raise error(owner, "as many teacher layers as student layers", got)
        self.hidden_filters = (
            None if hidden_filters is None else integer(owner, "hidden_filters", hidden_filters, low=1)
        )
        self.fusions: list[adapters.AttentionFusion] = []  # deep to shallow

    def _build_shapes(self, teacher_shapes: list[tuple], student_shapes: list[tuple]) -> None:
        hidden = self.hidden_filters or min(512, student_shapes[-1][-1])
        residual = None
        for teacher, student in zip(reversed(teacher_shapes), reversed(student_shapes), strict=True):
            fusion = adapters.AttentionFusion(teacher[-1], hidden, size=teacher[1:3])
            seen = student if residual is None else [student, residual]
            fusion.build(seen)
            residual = fusion.compute_output_shape(seen)[1]
            self.fusions.append(fusion)

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
    ) -> Any:
        """Return each example's sum over stages, (batch,)."""
        fused, reviewed = None, []
        for fusion, stage in zip(self.fusions, reversed(student_outputs), strict=True):
            output, fused = fusion(stage if fused is None else [stage, fused], training=training)
            reviewed.append(output)
        return losses.hierarchical_context(teacher_features=teacher_outputs[::-1], student_features=reviewed)

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {**super().get_config(), "hidden_filters": self.hidden_filters}
