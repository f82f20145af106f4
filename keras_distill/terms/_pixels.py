"""The term for maps of logits: different resolutions, void pixels, boundaries."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import losses as losses_room
from keras_distill._checks import choice, error, integer, number
from keras_distill._typing import Structure, Tensor
from keras_distill.terms._logits import LogitsDistillation
from keras_distill.terms._positions import nearest_positions


@keras.saving.register_keras_serializable(package="keras_distill")
class PixelDistillation(LogitsDistillation):
    """Distillation of a map of logits, pixel by pixel (semantic segmentation).

    Choose it for segmentation in place of ``LogitsDistillation``: teacher and student may have different output strides
    (one side is resized bilinearly before the softmax), void pixels never count, and pixels at class boundaries may
    count more. Beside it, ``FeatureDistillation(losses.ChannelDistributions(), ...)`` compares features.

    Args:
        temperature: > 0; see ``LogitsDistillation``. 1 is usual for pixels.
        loss: as for ``LogitsDistillation``; losses that compare rows of one example do not suit maps.
        resize: the side that is resized to the other's height and width if they differ: "student" or "teacher".
        boundary_weight: >= 0, weight of a pixel whose label is near another class; 1 treats all pixels alike.
        boundary_radius: >= 1, in pixels of the label map.
        ignore_label: the label of void pixels; ``"auto"`` takes the ``ignore_class`` of the supervised loss; None if
            there are none.
        name: shown in logs and error messages.
        **kwargs: as for ``LogitsDistillation``.

    Raises:
        ValueError: if an option is out of range, outputs are not maps, or needed labels are missing.

    Example:
        >>> import numpy as np
        >>> term = PixelDistillation(ignore_label=255)
        >>> labels = np.array([[[0, 255], [0, 0]]])
        >>> teacher = np.zeros((1, 2, 2, 3), "float32")
        >>> student = np.where(labels[..., None] == 255, 9.0, 0.0) * np.array([1.0, 0.0, 0.0])  # wrong at the void only
        >>> float(term.compute_loss(teacher, student.astype("float32"), labels=labels))
        0.0

    Reference:
        Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, arXiv:1903.04197, eq. 1.
        Differs: the temperature, and the weights of pixels.
    """

    def __init__(
        self,
        temperature: Any = 1.0,
        loss: Any = "kl_divergence",
        resize: str = "student",
        boundary_weight: float = 1.0,
        boundary_radius: int = 2,
        ignore_label: int | str | None = "auto",
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(temperature=temperature, loss=loss, name=name, ignore_label=ignore_label, **kwargs)
        owner = type(self).__name__
        self.resize = choice(owner, "resize", resize, ("student", "teacher"))
        self.boundary_weight = number(owner, "boundary_weight", boundary_weight, low=0.0)
        self.boundary_radius = integer(owner, "boundary_radius", boundary_radius, low=1)

    def losses_by_output(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        sample_weight: Structure = None,
        training: bool = True,
        batch: Any = None,
    ) -> dict[str, Any]:
        """Return the weighted mean over pixels; see ``DistillationLoss.losses_by_output``."""
        owner = type(self).__name__
        if keras.tree.is_nested(student_outputs) or len(student_outputs.shape) != 4:
            shapes = [tuple(each.shape) for each in keras.tree.flatten(student_outputs)]
            raise error(owner, "one output (batch, height, width, classes)", f"{shapes}")
        size = (student_outputs if self.resize == "teacher" else teacher_outputs).shape[1:3]
        student_outputs, teacher_outputs = _resized(student_outputs, size), _resized(teacher_outputs, size)
        if sample_weight is not None and len(sample_weight.shape) >= 3:
            sample_weight = ops.reshape(sample_weight, ops.shape(sample_weight)[:3])
            sample_weight = nearest_positions(sample_weight, size)
        if self.boundary_weight != 1.0:
            if labels is None:
                raise error(owner, "labels for boundary_weight", "None")
            ids = ops.squeeze(labels, -1) if len(labels.shape) == 4 else labels
            weights = losses_room.boundary_weights(
                labels=ids,
                radius=self.boundary_radius,
                boundary_weight=self.boundary_weight,
                ignore_label=self._void(batch),
            )
            weights = nearest_positions(weights, size)
            given = 1.0 if sample_weight is None else ops.cast(sample_weight, "float32")
            if sample_weight is not None and len(sample_weight.shape) < 3:
                given = ops.reshape(given, (-1, 1, 1))
            sample_weight = weights * given
        return super().losses_by_output(
            teacher_outputs,
            student_outputs,
            labels=labels,
            sample_weight=sample_weight,
            training=training,
            batch=batch,
        )

    def _void(self, batch: Any) -> int | None:
        """Return the label of void pixels: the one given, or the one that the supervised loss ignores."""
        if isinstance(self.ignore_label, int) or self.ignore_label is None:
            return self.ignore_label
        return batch.ignored[0] if batch is not None and batch.ignored else None

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {
            **super().get_config(),
            "resize": self.resize,
            "boundary_weight": self.boundary_weight,
            "boundary_radius": self.boundary_radius,
        }


def _resized(logits: Tensor, size: Any) -> Any:
    """Return the map resized bilinearly; unchanged if the sizes agree or are unknown."""
    if None in size or None in logits.shape[1:3] or tuple(size) == tuple(logits.shape[1:3]):
        return logits
    return ops.image.resize(ops.cast(logits, "float32"), tuple(size), interpolation="bilinear")
