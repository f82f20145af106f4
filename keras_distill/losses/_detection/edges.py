"""Box edges as distributions (localisation distillation)."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._logits.soft_targets import soft_targets
from keras_distill.losses._numerics.arguments import check_mask, check_pair


def edge_distributions(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    num_edges: int = 4,
    temperature: Tensor = 1.0,
    mask: Tensor = None,
) -> Tensor:
    """Divergence between the distributions that two detectors predict for each edge of a box (LD).

    Choose it for detectors with a distribution per edge (generalised focal loss, YOLOv8): it teaches the student how
    uncertain the teacher is about each edge. Restrict it by ``mask`` to anchors that matter. The paper's temperature
    is 10.

    Formula: mean over edges of temperature**2 * KL(softmax(teacher / temperature) || softmax(student / temperature)),
    over the bins of the edge.

    Args:
        teacher_logits: (..., num_edges * bins), the bins of the first edge first. No gradient reaches it.
        student_logits: same shape and meaning.
        num_edges: >= 1, number of distributions in a row.
        temperature: > 0, no unit; see ``soft_targets``.
        mask: (...,) bool or None, True for the anchors that count; see ``soft_targets``.

    Returns:
        (...,), float32, nats, not reduced.

    Raises:
        ValueError: if shapes differ or the last axis is not a multiple of ``num_edges``.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> teacher, student = np.log([[0.5, 0.5, 0.5, 0.5]]), np.log([[0.25, 0.75, 0.5, 0.5]])  # two edges
        >>> value = losses.edge_distributions(teacher_logits=teacher, student_logits=student, num_edges=2)
        >>> round(float(value[0]), 4)  # the mean of 0.1438 and 0
        0.0719

    Reference:
        Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022, arXiv:2102.12252, eq. 3-5.
        Differs: the sum over bins (the authors' code takes their mean); the mask chooses the regions.
    """
    owner = "edge_distributions"
    _checks.integer(owner, "num_edges", num_edges, low=1)
    teacher, student = check_pair(owner, teacher_logits, student_logits)
    mask = check_mask(owner, mask, student)
    width = student.shape[-1]
    if width is None or width % num_edges:
        raise _checks.error(owner, f"a last axis of {num_edges} times the number of bins", width)
    shape = (*ops.shape(student)[:-1], num_edges, width // num_edges)
    teacher, student = ops.reshape(teacher, shape), ops.reshape(student, shape)
    if mask is not None:
        mask = ops.broadcast_to(mask[..., None], shape[:-1])
    if not isinstance(temperature, (int, float)) and len(ops.shape(temperature)):
        temperature = ops.reshape(ops.convert_to_tensor(temperature), (-1, *([1] * (len(shape) - 2))))
    value = soft_targets(teacher_logits=teacher, student_logits=student, temperature=temperature, mask=mask)
    return ops.mean(value, axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class EdgeDistributions(LogitsTwin):
    """Class twin of ``edge_distributions`` (LD): ``LogitsDistillation(temperature=10.0, loss=EdgeDistributions())``.

    Args:
        num_edges: >= 1, number of distributions in the last axis.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> float(losses.EdgeDistributions()(np.zeros((1, 8)), np.ones((1, 8))))
        0.0

    Reference:
        Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022, arXiv:2102.12252.
        Differs: see ``edge_distributions``.
    """

    def __init__(
        self,
        num_edges: int = 4,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "edge_distributions",
    ) -> None:
        super().__init__(
            edge_distributions,
            reduction,
            name,
            num_edges=_checks.integer("EdgeDistributions", "num_edges", num_edges, low=1),
        )
