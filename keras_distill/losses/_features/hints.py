"""Losses that match a layer's values: hints and variational information."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import FeatureLoss, FeatureTwin
from keras_distill.losses._features import maps
from keras_distill.losses._numerics import arguments

_DISTANCES = ("mse", "mae", "cosine", "huber")


def hint(
    *,
    teacher_features: Tensor,
    student_features: Tensor,
    distance: str = "mse",
    mode: str = "code",
    mask: Tensor = None,
) -> Tensor:
    """Distance between the values of a teacher's layer and a student's (FitNet, hints).

    Choose it first among the feature losses: it is cheap and takes any rank. It needs equally many channels, so usually
    an adapter, and it scales with the features, so its weight must be tuned.

    Formula: mean over positions and channels of d(student - teacher); d is the square, the absolute value, or Huber's
    function with delta 1; "cosine" is the mean over positions of 1 - cos(student, teacher) along the channels.

    Args:
        teacher_features: (batch, ..., channels), rank 2, 3 or 4. No gradient reaches it.
        student_features: same rank and channels; if sizes differ, the larger is average-pooled to the smaller.
        distance: "mse", "mae", "cosine" or "huber".
        mode: "code" takes the mean, as public codes do; "paper" (for "mse" only) half the sum over the example.
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (batch,), float32, not reduced; in the units of the distance. Zero exactly when the features are equal (for
        "cosine": when they are parallel).

    Raises:
        ValueError: if ranks, channels or the mask do not fit, or an option is unknown.

    Example:
        >>> from keras_distill import losses
        >>> losses.hint(teacher_features=[[1.0, 2.0]], student_features=[[1.0, 5.0]]).numpy()
        array([4.5], dtype=float32)

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550, eq. 3.
        Differs: mean instead of half the sum by default (``mode="paper"`` has the latter); one stage.
    """
    owner = "hint"
    _checks.choice(owner, "distance", distance, _DISTANCES)
    _checks.choice(owner, "mode", mode, ("code", "paper") if distance == "mse" else ("code",))
    teacher, student = maps.matching(owner, teacher_features, student_features)
    teacher, student, mask = maps.masked(owner, teacher, student, mask)
    if distance == "cosine":
        return maps.position_mean(maps.cosine_gap(teacher, student), mask)
    difference = student - teacher
    if mode == "paper":
        return 0.5 * ops.sum(maps.flat(ops.square(difference)), axis=-1)
    each = {"mse": ops.square, "mae": ops.abs, "huber": maps.smooth_l1}[distance](difference)
    return maps.position_mean(ops.mean(each, axis=-1), mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class HintMatching(FeatureTwin):
    """Class twin of ``hint`` (FitNet); see that function.

    Args:
        distance: "mse", "mae", "cosine" or "huber".
        mode: "code" (mean) or "paper" (half the sum).
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> from keras_distill import losses
        >>> float(losses.HintMatching("mae")([[1.0, 2.0]], [[1.0, 5.0]]))
        1.5

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550. Differs: see ``hint``.
    """

    same_channels = True

    def __init__(
        self,
        distance: str = "mse",
        mode: str = "code",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "hint",
    ) -> None:
        super().__init__(
            hint,
            reduction,
            name,
            distance=_checks.choice("HintMatching", "distance", distance, _DISTANCES),
            mode=_checks.choice("HintMatching", "mode", mode, ("code", "paper") if distance == "mse" else ("code",)),
        )


def variational_information(
    *,
    teacher_features: Tensor,
    student_features: Tensor,
    raw_variance: Any,
    min_variance: float = 1e-5,
    mask: Tensor = None,
) -> Tensor:
    """Gaussian negative log-likelihood of the teacher's features under the student's prediction (VID).

    Choose it over ``hint`` when some teacher channels cannot be predicted: a learned variance reduces their weight.
    ``adapters.VariationalRegressor`` provides the trained regressor and the variances.

    Formula: mean over positions and channels of ((teacher - mean)**2 / variance + log(variance)) / 2, with
    variance = log(1 + exp(raw_variance)) + min_variance, one per channel; the constant log(2 pi) / 2 is left out.

    Args:
        teacher_features: (batch, ..., channels), rank 2, 3 or 4. No gradient reaches it.
        student_features: the predicted mean; same rank and channels. If sizes differ, the larger is average-pooled.
        raw_variance: (channels,), any sign; trained.
        min_variance: > 0, in squared units of the features; keeps the logarithm finite.
        mask: the features' shape without the channels, bool, or None. Masked positions never count.

    Returns:
        (batch,), float32, nats per element, not reduced. May be negative.

    Raises:
        ValueError: if shapes or the mask do not fit, or min_variance is not positive.

    Example:
        >>> import math
        >>> from keras_distill import losses
        >>> raw = [math.log(math.expm1(4.0))]  # a variance of 4
        >>> value = losses.variational_information(
        ...     teacher_features=[[2.0]], student_features=[[0.0]], raw_variance=raw, min_variance=1e-9
        ... )
        >>> round(float(value[0]), 5) == round(0.5 * (2.0**2 / 4.0 + math.log(4.0)), 5)
        True

    Reference:
        Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv:1904.05835, eq. 4-6.
        Differs: the constant is left out, as in the authors' code.
    """
    owner = "variational_information"
    min_variance = _checks.number(owner, "min_variance", min_variance, above=0.0)
    teacher, mean = maps.matching(owner, teacher_features, student_features)
    teacher, mean, mask = maps.masked(owner, teacher, mean, mask)
    raw = arguments.float32(raw_variance)
    pairs = zip(reversed(raw.shape), reversed(mean.shape), strict=False)
    if len(raw.shape) > len(mean.shape) or any(a not in (1, None, b) and b is not None for a, b in pairs):
        expected = f"raw_variance that fits features of shape {tuple(mean.shape)}"
        raise _checks.error(owner, expected, f"shape {tuple(raw.shape)}", "Give one per channel, or one per value")
    variance = ops.softplus(raw) + min_variance
    each = 0.5 * (ops.square(mean - teacher) / variance + ops.log(variance))
    return maps.position_mean(ops.mean(each, axis=-1), mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class VariationalInformation(FeatureLoss):
    """Class twin of ``variational_information`` (VID); the student's side is ``[mean, raw_variance]``.

    Use it with the adapter that returns such a pair:
    ``FeatureDistillation(VariationalInformation(), ..., adapter=adapters.VariationalRegressor(teacher_channels))``.

    Args:
        min_variance: > 0, added to every variance.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> pair = [np.zeros((1, 1)), np.log(np.expm1([1.0]))]  # mean 0, variance 1
        >>> round(float(losses.VariationalInformation(min_variance=1e-9)(np.ones((1, 1)), pair)), 5)
        0.5

    Reference:
        Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv:1904.05835.
        Differs: see ``variational_information``.
    """

    def __init__(
        self,
        min_variance: float = 1e-5,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "variational_information",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.min_variance = _checks.number("VariationalInformation", "min_variance", min_variance, above=0.0)

    def values(self, teacher_features: Tensor, student_features: Tensor, *, mask: Tensor = None) -> Tensor:
        """Return ``variational_information`` of each example; ``student_features`` is [mean, raw_variance]."""
        if not isinstance(student_features, (list, tuple)) or len(student_features) != 2:
            raise _checks.error(
                "VariationalInformation",
                "student_features to be [mean, raw_variance]",
                type(student_features).__name__,
                "Give the term adapter=adapters.VariationalRegressor(teacher_channels)",
            )
        mean, raw_variance = student_features
        return variational_information(
            teacher_features=teacher_features,
            student_features=mean,
            raw_variance=raw_variance,
            min_variance=self.min_variance,
            mask=mask,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "min_variance": self.min_variance}
