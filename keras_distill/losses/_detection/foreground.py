"""Features inside and outside boxes (FGD)."""

from __future__ import annotations

from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._detection.boxes import box_masks
from keras_distill.losses._features import maps


def foreground_features(
    *,
    teacher_features: Tensor,
    student_features: Tensor,
    boxes: Tensor,
    foreground_weight: float = 1e-3,
    background_weight: float = 5e-4,
    attention_weight: float = 1e-3,
    attention_temperature: float = 0.5,
) -> Tensor:
    """Feature distillation of detectors with separate foreground and background (FGD, focal part).

    Choose it if boxes are known in training: small objects then count as much as large ones, and the background does
    not dominate. ``terms.ForegroundDistillation`` supplies the boxes of the batch. For teachers of another
    architecture, ``normalized_features`` (PKD) needs no boxes and no weights to tune.

    Formula: sum over cells and channels of w * scale * A_space * A_channel * (teacher - student)**2, with w the
    foreground or the background weight, plus attention_weight * (sum |A_space - A_space'| + sum |A_channel -
    A_channel'|). A_space = cells * softmax(mean_c |F| / attention_temperature) over cells, A_channel = channels *
    softmax(mean_cells |F| / attention_temperature), of the teacher; the student's have a prime. scale: ``box_masks``.

    Args:
        teacher_features: (batch, height, width, channels). No gradient reaches it.
        student_features: same rank and channels; if sizes differ, the larger is average-pooled to the smaller.
        boxes: (batch, boxes, 4): x_min, y_min, x_max, y_max in 0..1; padding has no area.
        foreground_weight: >= 0.
        background_weight: >= 0.
        attention_weight: >= 0.
        attention_temperature: > 0.

    Returns:
        (batch,), float32, not reduced. Zero exactly when the features are equal.

    Raises:
        ValueError: if shapes, boxes or an option do not fit.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> value = losses.foreground_features(
        ...     teacher_features=np.ones((1, 2, 2, 1)),
        ...     student_features=np.zeros((1, 2, 2, 1)),
        ...     boxes=np.array([[[0.0, 0.0, 0.5, 0.5]]]),
        ...     foreground_weight=1.0,
        ...     background_weight=10.0,
        ... )
        >>> round(float(value[0]), 4)  # the box's one cell counts 1, the three others 10 in all
        11.0

    Reference:
        Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022, arXiv:2111.11837, eq. 2-9.
        Differs: without the global part (a trained block); a cell belongs to a box if it overlaps it.
    """
    owner = "foreground_features"
    inside = _checks.number(owner, "foreground_weight", foreground_weight, low=0.0)
    outside = _checks.number(owner, "background_weight", background_weight, low=0.0)
    attention = _checks.number(owner, "attention_weight", attention_weight, low=0.0)
    temperature = _checks.number(owner, "attention_temperature", attention_temperature, above=0.0)
    teacher, student = maps.matching(owner, teacher_features, student_features, ranks=(4,))
    height, width = (int(length) for length in student.shape[1:3])
    foreground, scale = box_masks(boxes=boxes, size=(height, width))
    space, channel = _attention(teacher, temperature)
    weight = ops.where(foreground, inside, outside) * scale * space
    squares = ops.square(teacher - student) * weight[..., None] * channel[:, None, None, :]
    space_student, channel_student = _attention(student, temperature)
    apart = ops.sum(ops.abs(space - space_student), axis=(1, 2)) + ops.sum(ops.abs(channel - channel_student), axis=1)
    return ops.sum(squares, axis=(1, 2, 3)) + attention * apart


def _attention(features: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the attention over cells, (batch, height, width), and over channels, (batch, channels), each of mean 1."""
    size = ops.abs(features)
    height, width, channels = (int(length) for length in features.shape[1:])
    space = ops.softmax(ops.reshape(ops.mean(size, axis=-1), (-1, height * width)) / temperature, axis=-1)
    channel = ops.softmax(ops.mean(size, axis=(1, 2)) / temperature, axis=-1)
    return ops.reshape(space, (-1, height, width)) * (height * width), channel * channels
