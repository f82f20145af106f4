"""Losses for dense prediction: per-channel distributions, similarities of pixels, and normalised maps."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import FeatureTwin
from keras_distill.losses._features import maps
from keras_distill.losses._logits.soft_targets import soft_targets


def channel_distributions(
    *, teacher_features: Tensor, student_features: Tensor, temperature: float = 4.0, mask: Tensor = None
) -> Tensor:
    """Divergence between each channel's distribution over positions (CWD, channel-wise distillation).

    Choose it first for segmentation and detection: each channel of the teacher shows where to look, whatever its scale.
    It works for features and for maps of logits. Number and order of the channels must be the same.

    Formula: temperature**2 / channels * sum_c KL(p_c || q_c), p_c and q_c the softmax over positions of channel c of
    teacher and student, divided by the temperature.

    Args:
        teacher_features: (batch, ..., channels), rank 3 or 4. No gradient reaches it.
        student_features: same rank and channels; if sizes differ, the larger is average-pooled to the smaller.
        temperature: > 0, in the units of the features; 1 to 4 in the paper.
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (batch,), float32, nats, not reduced. Zero exactly when all distributions agree; 0 if all positions are masked.

    Raises:
        ValueError: if ranks, channels or the mask do not fit, or the temperature is not positive.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> teacher, student = np.log([[[0.5], [0.5]]]), np.log([[[0.25], [0.75]]])  # one channel, two positions
        >>> value = losses.channel_distributions(teacher_features=teacher, student_features=student, temperature=1.0)
        >>> round(float(value[0]), 4)  # 0.5 log 2 + 0.5 log(2/3)
        0.1438

    Reference:
        Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256, eq. 4-5.
        Differs: different sizes are pooled; masked positions are left out of the softmax.
    """
    owner = "channel_distributions"
    temperature = _checks.number(owner, "temperature", temperature, above=0.0)
    teacher, student = maps.matching(owner, teacher_features, student_features, ranks=(3, 4))
    teacher, student, mask = maps.masked(owner, teacher, student, mask)
    teacher, student = maps.positions(teacher), maps.positions(student)
    if mask is not None:
        seen = maps.flat(ops.reshape(mask, (ops.shape(mask)[0], -1)))
        # An example without any unmasked position is all zeros on both sides: its divergence is 0.
        seen = ops.logical_or(seen, ops.logical_not(ops.any(seen, axis=1, keepdims=True)))[..., None]
        teacher, student = (ops.where(seen, side, -float("inf")) for side in (teacher, student))
    teacher, student = ops.transpose(teacher, (0, 2, 1)), ops.transpose(student, (0, 2, 1))
    return ops.mean(soft_targets(teacher_logits=teacher, student_logits=student, temperature=temperature), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class ChannelDistributions(FeatureTwin):
    """Class twin of ``channel_distributions`` (CWD); see that function.

    Args:
        temperature: > 0, of the softmax over positions.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> float(losses.ChannelDistributions()(np.zeros((1, 2, 2, 3)), np.ones((1, 2, 2, 3))))
        0.0

    Reference:
        Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256.
        Differs: see ``channel_distributions``.
    """

    same_channels = True

    def __init__(
        self,
        temperature: float = 4.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "channel_distributions",
    ) -> None:
        super().__init__(
            channel_distributions,
            reduction,
            name,
            temperature=_checks.number("ChannelDistributions", "temperature", temperature, above=0.0),
        )


def pixel_similarities(
    *, teacher_features: Tensor, student_features: Tensor, cells: int = 16, mask: Tensor = None
) -> Tensor:
    """Squared difference of the cosines between all pairs of pixels of one image (SKD, pair-wise distillation).

    Choose it when teacher and student have different channels, because it needs no adapter, or beside
    ``channel_distributions`` for long-range structure. Pixels are compared within one image only, so the batch does not
    matter. The cost is quadratic in the number of cells.

    Formula: mean over pairs (i, j) of (cos(s_i, s_j) - cos(t_i, t_j))**2, s_i and t_i the features at cell i.

    Args:
        teacher_features: (batch, ..., channels), rank 3 or 4. No gradient reaches it.
        student_features: same rank; channels may differ. If sizes differ, the larger is average-pooled to the smaller.
        cells: >= 2, the largest number of cells along each axis; finer maps are average-pooled to it.
        mask: the features' shape without the channels, bool, or None. Masked positions never count; a cell counts if
            one of its positions does.

    Returns:
        (batch,), float32, 0 to 4, not reduced. Zero exactly when all cosines agree.

    Raises:
        ValueError: if ranks or the mask do not fit, or ``cells`` is too small.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> teacher, student = np.array([[[1.0, 0.0], [0.0, 1.0]]]), np.array([[[2.0], [3.0]]])
        >>> float(losses.pixel_similarities(teacher_features=teacher, student_features=student)[0])  # 2 of 4 pairs
        0.5

    Reference:
        Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, arXiv:1903.04197, eq. 2.
        Differs: average instead of max pooling to the grid.
    """
    owner = "pixel_similarities"
    _checks.integer(owner, "cells", cells, low=2)
    teacher, student = maps.matching(owner, teacher_features, student_features, ranks=(3, 4), channels=False)
    teacher, student, mask = maps.masked(owner, teacher, student, mask)
    size = [None if length is None else min(length, cells) for length in student.shape[1:-1]]
    # The length of a cell's vector does not matter, so masked positions may be pooled as zeros.
    sides = [maps.unit(maps.positions(maps.pool(side, size))) for side in (student, teacher)]
    ours, theirs = (ops.matmul(side, ops.transpose(side, (0, 2, 1))) for side in sides)
    squares = ops.square(ours - theirs)
    if mask is None:
        return ops.mean(squares, axis=(1, 2))
    seen = maps.positions(maps.pool(ops.cast(mask, "float32")[..., None], size))[..., 0] > 0.0
    count = ops.sum(ops.cast(seen, "float32"), axis=1)
    pairs = ops.logical_and(seen[:, :, None], seen[:, None, :])
    return ops.sum(ops.where(pairs, squares, 0.0), axis=(1, 2)) / ops.maximum(ops.square(count), 1.0)


@keras.saving.register_keras_serializable(package="keras_distill")
class PixelSimilarities(FeatureTwin):
    """Class twin of ``pixel_similarities`` (SKD); see that function.

    Args:
        cells: >= 2, the largest number of cells along each axis.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> float(losses.PixelSimilarities()(np.ones((1, 2, 2, 3)), np.ones((1, 2, 2, 5))))
        0.0

    Reference:
        Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, arXiv:1903.04197.
        Differs: see ``pixel_similarities``.
    """

    def __init__(
        self,
        cells: int = 16,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "pixel_similarities",
    ) -> None:
        super().__init__(
            pixel_similarities, reduction, name, cells=_checks.integer("PixelSimilarities", "cells", cells, low=2)
        )


def normalized_features(*, teacher_features: Tensor, student_features: Tensor, mask: Tensor = None) -> Tensor:
    """Half the squared difference of features normalised to mean 0 and variance 1 (PKD, Pearson distillation).

    Choose it for detectors whose teacher has another architecture: scale and offset of each channel do not matter,
    only the correlation over the positions of the batch. Its mean over the batch is 1 - r, r the mean over channels of
    Pearson's correlation. The statistics are those of the local batch, so an example's value depends on the others.

    Formula: 0.5 * mean over positions and channels of (norm(student) - norm(teacher))**2, norm(x) = (x - mean(x)) /
    std(x) per channel, over all examples and positions.

    Args:
        teacher_features: (batch, ..., channels), rank 2, 3 or 4. No gradient reaches it.
        student_features: same rank and channels; if sizes differ, the larger is average-pooled to the smaller.
        mask: the features' shape without the channels, bool, or None. Masked positions never count, also not in the
            statistics.

    Returns:
        (batch,), float32, no unit, not reduced; the mean is 0 to 2. Zero exactly when the normalised features agree. A
        channel that is constant over the batch is normalised to 0.

    Raises:
        ValueError: if ranks, channels or the mask do not fit.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[1.0], [3.0]], [[30.0], [10.0]]  # perfectly anticorrelated: 1 - (-1)
        >>> losses.normalized_features(teacher_features=teacher, student_features=student).numpy().round(5)
        array([2., 2.], dtype=float32)

    Reference:
        Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
        NeurIPS 2022, arXiv:2207.02039, eq. 3-5.
        Differs: population variance (the authors' code divides by n - 1); if sizes differ, the larger is pooled.
    """
    owner = "normalized_features"
    teacher, student = maps.matching(owner, teacher_features, student_features)
    teacher, student, mask = maps.masked(owner, teacher, student, mask)
    difference = _normalized(student, mask) - _normalized(teacher, mask)
    return maps.position_mean(0.5 * ops.mean(ops.square(difference), axis=-1), mask)


def _normalized(features: Tensor, mask: Tensor) -> Tensor:
    """Return the features with mean 0 and variance 1 per channel, over unmasked positions; 0 for constant channels."""
    axes = tuple(range(len(features.shape) - 1))
    kept = ops.ones_like(features[..., :1]) if mask is None else ops.cast(mask, "float32")[..., None]
    count = ops.maximum(ops.sum(kept), 1.0)
    features = maps.scaled(features, axis=axes)
    centred = (features - ops.sum(features * kept, axis=axes, keepdims=True) / count) * kept
    return maps.unit(centred, axis=axes, tiny=1e-11 * count) * ops.sqrt(count)


@keras.saving.register_keras_serializable(package="keras_distill")
class NormalizedFeatures(FeatureTwin):
    """Class twin of ``normalized_features`` (PKD).

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> round(float(losses.NormalizedFeatures()([[1.0], [2.0], [6.0]], [[10.0], [20.0], [60.0]])), 5)
        0.0

    Reference:
        Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
        NeurIPS 2022, arXiv:2207.02039. Differs: see ``normalized_features``.
    """

    same_channels = True

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "normalized_features") -> None:
        super().__init__(normalized_features, reduction, name)


def boundary_weights(
    *, labels: Tensor, radius: int = 2, boundary_weight: float = 5.0, ignore_label: int | None = None
) -> Tensor:
    """Weights for the pixels of a label map: higher where classes meet, 0 at the void label.

    Pass them as ``sample_weight``, which every per-pixel term and the supervised loss apply:
    ``dataset.map(lambda x, y: (x, y, losses.boundary_weights(labels=y, ignore_label=11)))``.

    Formula: 0 at the void label; boundary_weight where the square of side 2 * radius + 1 around the pixel holds a pixel
    of another class, void left out; else 1.

    Args:
        labels: (batch, height, width), integer class ids.
        radius: >= 1, in pixels.
        boundary_weight: >= 0, weight of a pixel near a boundary; any other has weight 1.
        ignore_label: the id of void, or None.

    Returns:
        (batch, height, width), float32.

    Raises:
        ValueError: if the rank or an option does not fit.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> labels = np.array([[[0, 0, 0, 1, 1, 9]]])
        >>> losses.boundary_weights(labels=labels, radius=1, boundary_weight=3.0, ignore_label=9).numpy()[0, 0].tolist()
        [1.0, 1.0, 3.0, 3.0, 1.0, 0.0]
    """
    owner = "boundary_weights"
    _checks.integer(owner, "radius", radius, low=1)
    boundary_weight = _checks.number(owner, "boundary_weight", boundary_weight, low=0.0)
    labels = _checks.tensor(owner, labels, ops.convert_to_tensor)
    if len(labels.shape) != 3 or "float" in keras.backend.standardize_dtype(labels.dtype):
        raise _checks.error(
            owner, "labels (batch, height, width) of integer class ids", f"{labels.dtype} of {labels.shape}"
        )
    ids = ops.cast(labels, "float32")
    void = ops.zeros_like(ids, dtype="bool") if ignore_label is None else ops.equal(labels, ignore_label)
    side = 2 * radius + 1

    def largest(x: Tensor) -> Tensor:
        return ops.max_pool(ops.where(void, -1e9, x)[..., None], side, strides=1, padding="same")[..., 0]

    boundary = ops.not_equal(largest(ids), -largest(-ids))
    return ops.where(void, 0.0, ops.where(boundary, boundary_weight, 1.0))
