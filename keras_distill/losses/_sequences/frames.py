"""Frame-by-frame losses for CTC students: whole distributions, or the labels at the teacher's spikes."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._logits.soft_targets import soft_targets
from keras_distill.losses._numerics import arguments
from keras_distill.losses._sequences.base import SequenceLoss

KEEP = ("all", "without_blanks", "around_spikes")


def frame_soft_targets(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor = 1.0,
    mask: Tensor = None,
    blank: int = 0,
    keep: str = "all",
    blank_threshold: float = 0.9,
    neighbours: int = 1,
) -> Tensor:
    """Soft targets frame by frame for CTC models, with optional removal of blanks (frame-level CTC KD).

    Choose it if teacher and student emit their labels at the same frames: same subsampling and family, a student
    initialised from the teacher, or both trained with ``guided_ctc``. Most frames are blanks; ``keep`` decides whether
    they count. Removing all blanks does not always help; keeping frames around the spikes is the safer choice.

    Formula: temperature**2 * sum_t k_t KL(p_t || q_t) / sum_t k_t, k_t = 1 at the frames kept.

    Args:
        teacher_logits: (batch, frames, classes), float; gets no gradient.
        student_logits: the same shape.
        temperature: > 0; see ``soft_targets``.
        mask: (batch, frames) bool or None; masked frames never count, also not as neighbours.
        blank: the class that means "no label".
        keep: ``"all"`` frames; ``"without_blanks"``, those where the teacher's probability of the blank is at most
            ``blank_threshold``; or ``"around_spikes"``, those where the teacher's likeliest class is a label, and
            ``neighbours`` frames on either side of each.
        blank_threshold: 0 to 1, for ``"without_blanks"``; 0.9 to 0.99 are usual.
        neighbours: >= 0 frames, for ``"around_spikes"``.

    Returns:
        (batch,), float32, nats per kept frame; 0 for a sequence without kept frames.

    Raises:
        ValueError: if the shapes differ, ``keep`` is unknown, or a number is out of bounds.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> teacher = np.log([[[0.98, 0.02], [0.5, 0.5]]])  # the first frame is a blank
        >>> student = np.log([[[0.50, 0.50], [0.25, 0.75]]])
        >>> value = losses.frame_soft_targets(teacher_logits=teacher, student_logits=student, keep="without_blanks")
        >>> round(float(value[0]), 4)  # 0.5 log 2 + 0.5 log(2/3)
        0.1438

    Reference:
        Takashima, Li, Kawai, "An Investigation of a Knowledge Distillation Method for CTC Acoustic Models", ICASSP
        2018; Hilmes et al. on blanks in CTC distillation, 2025. Differs: a mean over kept frames, not over all.
    """
    return _frame_soft_targets(
        "frame_soft_targets",
        teacher_logits,
        student_logits,
        temperature,
        mask,
        *_options("frame_soft_targets", blank, keep, blank_threshold, neighbours),
    )


def _options(owner: str, blank: int, keep: str, blank_threshold: float, neighbours: int) -> tuple[int, str, float, int]:
    return (
        _checks.integer(owner, "blank", blank, low=0),
        _checks.choice(owner, "keep", keep, KEEP),
        _checks.number(owner, "blank_threshold", blank_threshold, low=0.0, high=1.0),
        _checks.integer(owner, "neighbours", neighbours, low=0),
    )


def _sequences(owner: str, teacher: Tensor, student: Tensor, mask: Tensor, blank: int) -> tuple[Tensor, Tensor, Tensor]:
    teacher, student = arguments.check_pair(owner, teacher, student)
    if len(student.shape) != 3:
        raise _checks.error(owner, "logits of shape (batch, frames, classes)", str(tuple(student.shape)))
    if student.shape[-1] is not None and blank >= student.shape[-1]:
        raise _checks.error(owner, f"blank from 0 to {student.shape[-1] - 1}", blank)
    mask = arguments.check_mask(owner, mask, student)
    return teacher, student, ops.ones_like(student[..., 0], dtype="bool") if mask is None else mask


def _frame_soft_targets(
    owner: str,
    teacher: Tensor,
    student: Tensor,
    temperature: Tensor,
    mask: Tensor,
    blank: int,
    keep: str,
    blank_threshold: float,
    neighbours: int,
) -> Tensor:
    teacher, student, kept = _sequences(owner, teacher, student, mask, blank)
    if keep == "without_blanks":
        blank_probability = ops.softmax(arguments.clean(teacher, kept), axis=-1)[..., blank]
        kept = ops.logical_and(kept, blank_probability <= blank_threshold)
    elif keep == "around_spikes":
        spikes = ops.logical_and(kept, ops.argmax(teacher, axis=-1) != blank)
        kept = ops.logical_and(kept, _widened(spikes, neighbours))
    # The mask of `soft_targets` scales by positions / kept; the mean per sequence is taken here.
    values = soft_targets(
        teacher_logits=arguments.clean(teacher, kept),
        student_logits=arguments.clean(student, kept),
        temperature=temperature,
    )
    weight = ops.cast(kept, "float32")
    return ops.sum(ops.where(kept, values, 0.0), axis=1) / ops.maximum(ops.sum(weight, axis=1), 1.0)


def _widened(spikes: Any, neighbours: int) -> Tensor:
    """Return a mask of the frames that are at most ``neighbours`` frames from a spike."""
    if neighbours == 0:
        return spikes
    window = 2 * neighbours + 1
    as_images = ops.cast(spikes, "float32")[:, :, None]
    return ops.max_pool(as_images, window, strides=1, padding="same", data_format="channels_last")[..., 0] > 0


@keras.saving.register_keras_serializable(package="keras_distill")
class FrameSoftTargets(SequenceLoss):
    """Class twin of ``frame_soft_targets``, for ``LogitsDistillation(loss=...)`` between CTC models.

    Args:
        blank: the class that means "no label".
        keep: ``"all"``, ``"without_blanks"`` or ``"around_spikes"``; see ``frame_soft_targets``.
        blank_threshold: as there.
        neighbours: as there.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> float(losses.FrameSoftTargets()(np.zeros((1, 3, 2)), np.zeros((1, 3, 2))))
        0.0
    """

    def __init__(
        self,
        blank: int = 0,
        keep: str = "all",
        blank_threshold: float = 0.9,
        neighbours: int = 1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "frame_soft_targets",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        options = _options("FrameSoftTargets", blank, keep, blank_threshold, neighbours)
        self.blank, self.keep, self.blank_threshold, self.neighbours = options

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return ``frame_soft_targets`` of each sequence; ``labels`` are ignored."""
        options = (self.blank, self.keep, self.blank_threshold, self.neighbours)
        return _frame_soft_targets("FrameSoftTargets", teacher_logits, student_logits, temperature, mask, *options)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        own = {name: getattr(self, name) for name in ("blank", "keep", "blank_threshold", "neighbours")}
        return {**super().get_config(), **own}


def guided_ctc(*, teacher_logits: Tensor, student_logits: Tensor, mask: Tensor = None, blank: int = 0) -> Tensor:
    """Negative probability of the guide's labels at the guide's spikes (guided CTC).

    Choose it beside ``ctc`` so that several models, or teacher and student, emit their labels at the same frames;
    frame-level distillation and averaging then work. It has no temperature, because each frame has one label.

    Formula: -sum_{t, k} M_tk q_tk, M_tk = 1 where k is the guide's likeliest class at t and not the blank.

    Args:
        teacher_logits: the guide's, (batch, frames, classes), float; gets no gradient.
        student_logits: the same shape.
        mask: (batch, frames) bool or None; masked frames never count.
        blank: the class that means "no label".

    Returns:
        (batch,), float32, from minus the number of spikes to 0; not a divergence, so not zero for equal models.

    Raises:
        ValueError: if the shapes differ or ``blank`` is not among the classes.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> guide = np.log([[[0.9, 0.1], [0.2, 0.8]]])  # one spike, at the second frame
        >>> student = np.log([[[0.5, 0.5], [0.75, 0.25]]])
        >>> round(float(losses.guided_ctc(teacher_logits=guide, student_logits=student)[0]), 4)
        -0.25

    Reference:
        Kurata, Audhkhasi, "Guiding CTC Posterior Spike Timings for Improved Posterior Fusion and Knowledge
        Distillation", Interspeech 2019, arXiv:1904.08311, section 3. Differs: nothing.
    """
    return _guided_ctc("guided_ctc", teacher_logits, student_logits, mask, blank)


def _guided_ctc(owner: str, teacher: Tensor, student: Tensor, mask: Tensor, blank: int) -> Tensor:
    teacher, student, kept = _sequences(owner, teacher, student, mask, blank)
    best = ops.argmax(teacher, axis=-1)
    spikes = ops.logical_and(kept, best != blank)
    probability = ops.softmax(arguments.clean(student, spikes), axis=-1)
    chosen = ops.take_along_axis(probability, best[..., None], axis=-1)[..., 0]
    return -ops.sum(ops.where(spikes, chosen, 0.0), axis=1)


@keras.saving.register_keras_serializable(package="keras_distill")
class GuidedCtc(SequenceLoss):
    """Class twin of ``guided_ctc``, for ``LogitsDistillation(loss=...)`` beside the supervised ``Ctc``.

    Args:
        blank: the class that means "no label".
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> guide = np.log([[[0.2, 0.8]]])
        >>> round(float(losses.GuidedCtc()(guide, guide)), 4)
        -0.8
    """

    def __init__(
        self, blank: int = 0, reduction: str | None = "sum_over_batch_size", name: str | None = "guided_ctc"
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.blank = _checks.integer("GuidedCtc", "blank", blank, low=0)

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return ``guided_ctc`` of each sequence; ``temperature`` and ``labels`` are ignored."""
        return _guided_ctc("GuidedCtc", teacher_logits, student_logits, mask, self.blank)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "blank": self.blank}
