"""A term that reads the boxes of the batch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill._checks import number
from keras_distill._typing import Structure, Tensor
from keras_distill.losses import foreground_features
from keras_distill.losses._detection.boxes import check_boxes
from keras_distill.terms._base import field_of
from keras_distill.terms._features import FeatureDistillation


@keras.saving.register_keras_serializable(package="keras_distill")
class ForegroundDistillation(FeatureDistillation):
    """Feature distillation of detectors with separate foreground and background (FGD, focal part).

    The boxes are a field of the batch that no model takes: the inputs or the labels are a dictionary, such as
    ``{"image": x, "boxes": boxes}``. Boxes are (batch, boxes, 4): x_min, y_min, x_max, y_max in 0..1; padding boxes
    have no area.

    Args:
        teacher_layer_name: as for ``FeatureDistillation``; maps (batch, height, width, channels).
        student_layer_name: as for ``FeatureDistillation``.
        boxes: name of the field.
        foreground_weight: see ``losses.foreground_features``.
        background_weight: see ``losses.foreground_features``.
        attention_weight: see ``losses.foreground_features``.
        attention_temperature: see ``losses.foreground_features``.
        adapter: as for ``FeatureDistillation``, on the student's side.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if a number is out of range or, in the first step, the batch has no boxes.

    Example:
        >>> term = ForegroundDistillation("neck", "neck", adapter="auto", foreground_weight=2e-3)
        >>> term.boxes
        'boxes'

    Reference:
        Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022, arXiv:2111.11837.
        Differs: see ``losses.foreground_features``.
    """

    def __init__(
        self,
        teacher_layer_name: Any = None,
        student_layer_name: Any = None,
        boxes: str = "boxes",
        foreground_weight: float = 1e-3,
        background_weight: float = 5e-4,
        attention_weight: float = 1e-3,
        attention_temperature: float = 0.5,
        adapter: Any = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("loss", None)  # of the base class' config
        super().__init__("mse", teacher_layer_name, student_layer_name, adapter=adapter, name=name, **kwargs)
        owner = type(self).__name__
        self.boxes = str(boxes)
        self.options = {
            "foreground_weight": number(owner, "foreground_weight", foreground_weight, low=0.0),
            "background_weight": number(owner, "background_weight", background_weight, low=0.0),
            "attention_weight": number(owner, "attention_weight", attention_weight, low=0.0),
            "attention_temperature": number(owner, "attention_temperature", attention_temperature, above=0.0),
        }

    def check_fields(self, fields: dict[str, Any]) -> None:
        """Raise ``ValueError`` if a box lies outside the image or is not finite."""
        if self.boxes in fields:
            check_boxes(type(self).__name__, np.asarray(fields[self.boxes]))

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
        batch: Any = None,
    ) -> Any:
        """Return the loss of each example."""
        boxes = field_of(type(self).__name__, batch, self.boxes)
        for_teacher, for_student = self._adapters()
        if for_teacher is not None:
            teacher_outputs = for_teacher(teacher_outputs, training=training)
        if for_student is not None:
            student_outputs = for_student(student_outputs, training=training)
        return foreground_features(
            teacher_features=teacher_outputs, student_features=student_outputs, boxes=boxes, **self.options
        )

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {**super().get_config(), "boxes": self.boxes, **self.options}
