"""Heatmaps of object centres, and sizes and offsets at the teacher's centres (CenterNet)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import FeatureLoss, FeatureTwin
from keras_distill.losses._features import maps
from keras_distill.losses._numerics.arguments import float32
from keras_distill.losses._numerics.distributions import bernoulli_kl


def center_heatmaps(
    *, teacher_features: Tensor, student_features: Tensor, focus: float = 2.0, mask: Tensor = None
) -> Tensor:
    """Focal-weighted divergence between two heatmaps of object centres (CenterNet).

    Choose it for heatmap heads: nearly all cells are empty and easy, so each cell's divergence is weighted by the
    difference of the two probabilities. Both sides are logits of independent sigmoids.

    Formula: sum over cells and classes of |p - q|**focus * KL(Bernoulli(p) || Bernoulli(q)), divided by max(1, sum of
    p), which is about the number of objects times the width of their peaks; p, q = sigmoid of teacher, student.

    Args:
        teacher_features: (batch, ..., classes), logits, rank 3 or 4. No gradient reaches it.
        student_features: same rank and classes; if sizes differ, the larger is average-pooled to the smaller.
        focus: >= 0, exponent of the weight; 0 weights all cells equally.
        mask: the shape without the classes, bool, or None. Masked positions never count.

    Returns:
        (batch,), float32, nats, not reduced. Zero exactly when the heatmaps agree.

    Raises:
        ValueError: if shapes or the mask do not fit, or ``focus`` is negative.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> teacher, student = np.full((1, 1, 1), 0.0), np.full((1, 1, 1), np.log(3.0))  # 0.5 and 0.75
        >>> value = losses.center_heatmaps(teacher_features=teacher, student_features=student)
        >>> round(float(value[0]), 5)  # 0.25**2 * (0.5 log(0.5 / 0.75) + 0.5 log(0.5 / 0.25))
        0.00899

    Reference:
        Zhou, Wang, Krahenbuhl, "Objects as Points", 2019, arXiv:1904.07850; the weight is that of Li et al.,
        "Generalized Focal Loss", NeurIPS 2020, arXiv:2006.04388, eq. 2.
        Differs: the divergence in place of the cross-entropy, so that equal heatmaps give 0.
    """
    owner = "center_heatmaps"
    focus = _checks.number(owner, "focus", focus, low=0.0)
    teacher, student = maps.matching(owner, teacher_features, student_features, ranks=(3, 4))
    teacher, student, mask = maps.masked(owner, teacher, student, mask)
    p, q = ops.sigmoid(teacher), ops.sigmoid(student)
    each = bernoulli_kl(teacher, student)
    if focus:
        each = each * ops.power(ops.maximum(ops.abs(p - q), 1e-12), focus)
    if mask is not None:
        each = ops.where(mask[..., None], each, 0.0)
        p = ops.where(mask[..., None], p, 0.0)
    axes = tuple(range(1, len(each.shape)))
    return ops.sum(each, axis=axes) / ops.maximum(ops.sum(p, axis=axes), 1.0)


@keras.saving.register_keras_serializable(package="keras_distill")
class CenterHeatmaps(FeatureTwin):
    """Class twin of ``center_heatmaps`` (CenterNet); see that function.

    Args:
        focus: >= 0, exponent of the weight.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> float(losses.CenterHeatmaps()(np.ones((1, 2, 2, 3)), np.ones((1, 2, 2, 3))))
        0.0

    Reference:
        Zhou, Wang, Krahenbuhl, "Objects as Points", 2019, arXiv:1904.07850. Differs: see ``center_heatmaps``.
    """

    same_channels = True

    def __init__(
        self,
        focus: float = 2.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "center_heatmaps",
    ) -> None:
        super().__init__(
            center_heatmaps, reduction, name, focus=_checks.number("CenterHeatmaps", "focus", focus, low=0.0)
        )


def center_boxes(*, teacher_features: Tensor, student_features: Tensor, threshold: float = 0.3) -> Tensor:
    """Distance between sizes (or offsets) at the cells where the teacher detects an object's centre (CenterNet).

    Choose it beside ``center_heatmaps``. At all other cells the teacher's sizes are meaningless.

    Formula: sum over cells of w * mean over channels of |teacher - student|, divided by the sum of w; w is the largest
    class probability of the teacher's heatmap where it reaches ``threshold``, else 0.

    Args:
        teacher_features: [heatmap logits (batch, height, width, classes), sizes (batch, height, width, channels)]. No
            gradient reaches them.
        student_features: the same; only the sizes are used.
        threshold: 0 to 1, the smallest probability that counts as a centre.

    Returns:
        (batch,), float32, in the unit of the sizes, not reduced; 0 where the teacher detects nothing.

    Raises:
        ValueError: if a side is not a pair, shapes differ or the threshold is out of range.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> heat = np.array([[[[9.0], [-9.0]]]])  # a centre in the first of two cells
        >>> sizes = np.array([[[[1.0], [5.0]]]])
        >>> value = losses.center_boxes(teacher_features=[heat, sizes], student_features=[heat, np.zeros_like(sizes)])
        >>> round(float(value[0]), 5)
        1.0

    Reference:
        Zhou, Wang, Krahenbuhl, "Objects as Points", 2019, arXiv:1904.07850, eq. 3.
        Differs: weighted by the teacher's confidence instead of the labels' centres.
    """
    owner = "center_boxes"
    threshold = _checks.number(owner, "threshold", threshold, low=0.0, high=1.0)
    for side in (teacher_features, student_features):
        if not isinstance(side, (list, tuple)) or len(side) != 2:
            raise _checks.error(owner, "features to be [heatmap, sizes]", type(side).__name__)
    teacher, student = maps.matching(owner, teacher_features[1], student_features[1], ranks=(4,))
    seen = ops.stop_gradient(ops.max(ops.sigmoid(float32(teacher_features[0])), axis=-1))
    seen = maps.pool(seen[..., None], list(student.shape[1:3]), "max")[..., 0]
    weight = ops.where(seen >= threshold, seen, 0.0)
    apart = ops.mean(ops.abs(teacher - student), axis=-1)
    total = ops.sum(weight, axis=(1, 2))
    return ops.sum(weight * apart, axis=(1, 2)) / ops.where(total > 0.0, total, 1.0)


@keras.saving.register_keras_serializable(package="keras_distill")
class CenterBoxes(FeatureLoss):
    """Class twin of ``center_boxes`` (CenterNet); each side is ``[heatmap, sizes]``.

    ``FeatureDistillation(CenterBoxes(), teacher_layer_name=["heat", "size"], student_layer_name=["heat", "size"])``.

    Args:
        threshold: 0 to 1, the smallest probability that counts as a centre.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Reference:
        Zhou, Wang, Krahenbuhl, "Objects as Points", 2019, arXiv:1904.07850. Differs: see ``center_boxes``.
    """

    def __init__(
        self,
        threshold: float = 0.3,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "center_boxes",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.threshold = _checks.number("CenterBoxes", "threshold", threshold, low=0.0, high=1.0)

    def values(self, teacher_features: Tensor, student_features: Tensor, *, mask: Tensor = None) -> Tensor:
        """Return ``center_boxes`` of each example; a mask raises an error."""
        if mask is not None:
            raise _checks.error("center_boxes", "features without a mask", "a mask")
        return center_boxes(
            teacher_features=teacher_features, student_features=student_features, threshold=self.threshold
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "threshold": self.threshold}
