"""Losses on features before the activation: which neurons fire, with a margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import FeatureTwin
from keras_distill.losses._features import maps
from keras_distill.losses._numerics import arguments


def activation_boundaries(
    *,
    teacher_features: Tensor,
    student_features: Tensor,
    margin: float = 1.0,
    stage_decay: float = 0.5,
    scale: float = 0.003,
    mask: Tensor = None,
) -> Tensor:
    """Squared hinge that puts the student's pre-activations on the teacher's side of zero (AB).

    Choose it to initialise a student before distillation proper: it asks only which neurons fire, not how strongly.
    Both sides are features before their ReLU.

    Formula: scale * sum over layers l = 1..L of stage_decay**(L - l) * sum over positions and channels of
    (s + margin)**2 where t <= 0 and s > -margin, and (s - margin)**2 where t > 0 and s <= margin.

    Args:
        teacher_features: (batch, ..., channels), rank 2, 3 or 4, or a list of layers. No gradient reaches it.
        student_features: same ranks and channels. If sizes differ, the larger is average-pooled.
        margin: > 0, in units of the features.
        stage_decay: > 0; 0.5 halves the weight with each earlier layer, 1.0 weights all equally (torchdistill).
        scale: > 0, the constant of the public code; 1.0 gives the plain sum.
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (batch,), float32, not reduced. Zero when every neuron is beyond the margin on the teacher's side.

    Raises:
        ValueError: if shapes or the mask do not fit, or an option is out of range.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[-1.0, 2.0, 2.0]], [[0.5, 0.5, 3.0]]
        >>> losses.activation_boundaries(teacher_features=teacher, student_features=student, scale=1.0).numpy()
        array([2.5], dtype=float32)

    Reference:
        Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019,
        arXiv:1811.03233, eq. 6. Differs: stage weights and constant of the public code.
    """
    owner = "activation_boundaries"
    margin = _checks.number(owner, "margin", margin, above=0.0)
    stage_decay = _checks.number(owner, "stage_decay", stage_decay, above=0.0)
    scale = _checks.number(owner, "scale", scale, above=0.0)
    teachers, students = maps.lists(owner, teacher_features, student_features)
    total = 0.0
    for stage, (teacher, student) in enumerate(zip(teachers, students, strict=True)):
        teacher, student = maps.matching(owner, teacher, student)
        fires = teacher > 0.0
        # Beyond the margin the hinge is flat; at -margin both branches of "s > -margin" give zero.
        gap = ops.where(fires, ops.minimum(student - margin, 0.0), ops.maximum(student + margin, 0.0))
        _, gap, _ = maps.masked(owner, teacher, gap, mask)
        weight = scale * stage_decay ** (len(teachers) - 1 - stage)
        total = total + weight * ops.sum(maps.flat(ops.square(gap)), axis=-1)
    return total


@keras.saving.register_keras_serializable(package="keras_distill")
class ActivationBoundaries(FeatureTwin):
    """Class twin of ``activation_boundaries`` (AB); see that function.

    Args:
        margin: > 0, in units of the features.
        stage_decay: > 0, the weight of each earlier layer relative to the next.
        scale: > 0, the constant of the public code.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.ActivationBoundaries(scale=1.0)([[-1.0, 2.0, 2.0]], [[0.5, 0.5, 3.0]]))
        2.5

    Reference:
        Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019,
        arXiv:1811.03233. Differs: see ``activation_boundaries``.
    """

    same_channels = True

    def __init__(
        self,
        margin: float = 1.0,
        stage_decay: float = 0.5,
        scale: float = 0.003,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "activation_boundaries",
    ) -> None:
        owner = "ActivationBoundaries"
        super().__init__(
            activation_boundaries,
            reduction,
            name,
            margin=_checks.number(owner, "margin", margin, above=0.0),
            stage_decay=_checks.number(owner, "stage_decay", stage_decay, above=0.0),
            scale=_checks.number(owner, "scale", scale, above=0.0),
        )


def negative_mean(*, gamma: Any, beta: Any) -> np.ndarray:
    """Mean of the negative part of batch normalisation's output, per channel: the margin of ``margin_relu``.

    Formula: beta - |gamma| * phi(beta / |gamma|) / Phi(-beta / |gamma|), the mean of the negative part of a Gaussian;
    -3 |gamma| where that part holds 0.001 or less.

    Args:
        gamma: (channels,), the scale of the batch norm before the ReLU.
        beta: (channels,), its offset.

    Returns:
        (channels,), float32, <= 0.

    Example:
        >>> negative_mean(gamma=[1.0], beta=[0.0])  # -2 / sqrt(2 pi)
        array([-0.7978846], dtype=float32)

    Reference:
        Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv:1904.01866, eq. 4.
        Differs: -3 |gamma| for channels that are hardly ever negative, as in the authors' code.
    """
    scale, mean = (_checks.array("negative_mean", each) for each in (gamma, beta))
    if scale.ndim != 1 or scale.shape != mean.shape:
        raise _checks.error(
            "negative_mean", "gamma and beta of one shape (channels,)", f"{scale.shape} and {mean.shape}"
        )
    scale = np.abs(scale)
    out = np.minimum(mean, 0.0)  # a channel without spread
    for channel in np.flatnonzero(scale > 0.0):
        ratio = mean[channel] / scale[channel]
        below = 0.5 * math.erfc(ratio / math.sqrt(2.0))
        density = math.exp(-0.5 * ratio * ratio) / math.sqrt(2.0 * math.pi)
        out[channel] = mean[channel] - scale[channel] * density / below if below > 0.001 else -3.0 * scale[channel]
    return out.astype("float32")


def margin_relu(*, teacher_features: Tensor, student_features: Tensor, margin: Any, mask: Tensor = None) -> Tensor:
    """Partial squared distance to the teacher's features after a margin ReLU (OFD, overhaul).

    Choose it over ``hint`` if layer and adapter end in a convolution and batch norm: both sides are features before
    their ReLU, and the student may be arbitrarily negative where the teacher is inactive. Usual weight 0.001.

    Formula: sum over positions and channels of (s - u)**2 with u = max(t, margin), except where t <= 0 and s <= u,
    which contributes 0.

    Args:
        teacher_features: (batch, ..., channels), rank 2, 3 or 4. No gradient reaches it.
        student_features: same rank and channels, after an adapter without ReLU. If sizes differ, the larger is pooled.
        margin: (channels,) or a number, <= 0: the mean of the teacher's negative values, see ``negative_mean``.
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (batch,), float32, not reduced.

    Raises:
        ValueError: if shapes or the mask do not fit.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[-3.0, -3.0, 2.0]], [[-5.0, 0.0, 1.0]]
        >>> losses.margin_relu(teacher_features=teacher, student_features=student, margin=-0.5).numpy()
        array([1.25], dtype=float32)

    Reference:
        Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv:1904.01866, eq. 2-4.
        Differs: nothing; the weights of layers are the term's.
    """
    owner = "margin_relu"
    teacher, student = maps.matching(owner, teacher_features, student_features)
    margin = arguments.float32(margin)
    pairs = list(zip(reversed(tuple(margin.shape)), reversed(tuple(teacher.shape)), strict=False))
    if len(margin.shape) > len(teacher.shape) or any(one not in (1, size) for one, size in pairs if size is not None):
        raise _checks.error(owner, "margin: a number or one per channel", tuple(margin.shape))
    target = ops.maximum(teacher, margin)
    free = ops.logical_and(teacher <= 0.0, student <= target)
    gap = ops.where(free, 0.0, student - target)
    _, gap, _ = maps.masked(owner, teacher, gap, mask)
    return ops.sum(maps.flat(ops.square(gap)), axis=-1)


@keras.saving.register_keras_serializable(package="keras_distill")
class MarginRelu(FeatureTwin):
    """Class twin of ``margin_relu`` (OFD, overhaul); see that function.

    Args:
        margin: a number or one per channel, <= 0; ``MarginRelu.of(layer)`` takes it from a batch norm.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.MarginRelu(margin=-0.5)([[-3.0, -3.0, 2.0]], [[-5.0, 0.0, 1.0]]))
        1.25

    Reference:
        Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv:1904.01866. Differs: nothing.
    """

    same_channels = True

    def __init__(
        self,
        margin: float | Sequence[float],
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "margin_relu",
    ) -> None:
        each = np.atleast_1d(np.asarray(margin, "float64")) if not isinstance(margin, str) else np.full(1, np.nan)
        if each.ndim != 1 or not np.isfinite(each).all() or (each > 0.0).any():
            advice = "Take it from the teacher's batch norm with MarginRelu.of(layer)"
            raise _checks.error("MarginRelu", "margin <= 0, a number or one per channel", margin, advice)
        super().__init__(margin_relu, reduction, name, margin=each.tolist())

    @classmethod
    def of(cls, layer: keras.layers.BatchNormalization, **kwargs: Any) -> MarginRelu:
        """Make the loss for the output of a teacher's batch norm layer.

        Args:
            layer: the ``keras.layers.BatchNormalization`` whose output is tapped.
            **kwargs: as for the constructor.

        Returns:
            A ``MarginRelu`` with the margin of ``negative_mean``.

        Raises:
            ValueError: if the layer is not a batch norm or is not built yet.
        """
        if not isinstance(layer, keras.layers.BatchNormalization) or not layer.built:
            raise _checks.error("MarginRelu.of", "a built keras.layers.BatchNormalization", type(layer).__name__)
        channels = layer.moving_mean.shape[0]
        gamma = np.ones(channels) if layer.gamma is None else ops.convert_to_numpy(layer.gamma)
        beta = np.zeros(channels) if layer.beta is None else ops.convert_to_numpy(layer.beta)
        return cls(negative_mean(gamma=gamma, beta=beta).tolist(), **kwargs)
