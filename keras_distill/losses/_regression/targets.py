"""Regression to a teacher's predictions: to its values, with or without a bound, and to its Gaussians."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Structure, Tensor
from keras_distill.losses._base import LogitsLoss
from keras_distill.losses._numerics import arguments, row_blocks
from keras_distill.losses._numerics.log_ratio import NEAR, bregman


def gaussian_kl(
    *,
    teacher_mean: Tensor,
    teacher_log_variance: Any,
    student_mean: Tensor,
    student_log_variance: Any,
    mask: Tensor = None,
) -> Tensor:
    """Kullback-Leibler divergence from the teacher's Gaussian to the student's, for regression with uncertainty.

    Choose it when the teacher predicts means and variances (for an ensemble, by the law of total variance).

    Formula: sum over outputs of (log(v_s / v_t) + (v_t + (m_t - m_s)**2) / v_s - 1) / 2.

    Args:
        teacher_mean: (..., outputs), float. No gradient reaches the teacher's side.
        teacher_log_variance: same shape, natural logarithm.
        student_mean: same shape.
        student_log_variance: same shape.
        mask: (...,) bool or None, as in ``soft_targets``.

    Returns:
        (...,), float32, nats, not reduced. Zero exactly when means and variances are equal.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import numpy as np
        >>> value = gaussian_kl(
        ...     teacher_mean=[[1.0]],
        ...     teacher_log_variance=np.log([[4.0]]),
        ...     student_mean=[[0.0]],
        ...     student_log_variance=[[0.0]],
        ... )
        >>> round(float(value[0]), 4) == round(float((4 + 1 - 1 - np.log(4.0)) / 2), 4)
        True

    Reference:
        Lindqvist et al., "A General Framework for Ensemble Distribution Distillation", 2020, arXiv:2002.11531.
        Differs: nothing.
    """
    owner = "gaussian_kl"
    teacher_mean, student_mean = arguments.check_floating(owner, teacher_mean, student_mean, "means")
    logs = teacher_log_variance, student_log_variance
    teacher_log, student_log = arguments.check_floating(owner, *logs, "log-variances")
    arguments.check_same_shape(owner, teacher_mean, student_log, "means and log-variances")
    mask = arguments.check_mask(owner, mask, student_mean)

    def rows(student: Tensor, t: Tensor, teacher: Tensor) -> Tensor:
        return _gaussian_kl(*teacher, *student)

    both = student_mean, student_log
    return row_blocks.by_rows(rows, both, 1.0, mask, (teacher_mean, teacher_log))


def _gaussian_kl(teacher_mean: Tensor, teacher_log: Any, student_mean: Tensor, student_log: Any) -> Tensor:
    @ops.custom_gradient
    def compute(student_mean: Tensor, student_log: Any) -> Tensor:
        gap = teacher_log - student_log
        near = ops.abs(gap) <= NEAR
        growth = ops.expm1(gap)
        spread = ops.where(near, bregman(ops.where(near, gap, 0.0)), growth - gap)
        distance = student_mean - teacher_mean
        slope = distance * ops.exp(-student_log)

        def grad(*args: Any, upstream: Tensor = None) -> tuple[Tensor, Tensor]:
            each = (args[0] if args else upstream)[..., None]
            return each * slope, -0.5 * each * (growth + distance * slope)

        return 0.5 * ops.sum(spread + distance * slope, axis=-1), grad

    return compute(student_mean, student_log)


def regression_matching(
    *,
    teacher_outputs: Structure,
    student_outputs: Structure,
    labels: Tensor = None,
    margin: float | None = None,
    mask: Tensor = None,
) -> Tensor:
    """Squared distance between regression outputs, optionally only where the student is worse than the teacher.

    Choose the bounded form (``margin``) when the teacher errs: its error is then only an upper bound, and an example on
    which the student is already better by the margin adds nothing.

    Formula: sum over outputs of (s - t)**2; bounded: sum of (s - y)**2 where that plus the margin exceeds the sum of
    (t - y)**2, else 0.

    Args:
        teacher_outputs: (..., outputs), float. No gradient reaches it.
        student_outputs: same shape.
        labels: (..., outputs) or (...,) for one output; needed with a margin.
        margin: >= 0, in units of the squared output, or None for the plain form.
        mask: (...,) bool or None, as in ``soft_targets``.

    Returns:
        (...,), float32, not reduced.

    Raises:
        ValueError: if the shapes differ, the margin is negative, or labels are missing.

    Example:
        >>> float(regression_matching(teacher_outputs=[[1.0, 2.0]], student_outputs=[[2.0, 4.0]])[0])
        5.0

    Reference:
        Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS 2017, eq. 4.
        Differs: nothing.
    """
    owner = "regression_matching"
    teacher, student = arguments.check_floating(owner, teacher_outputs, student_outputs, "outputs")
    mask = arguments.check_mask(owner, mask, student)
    if margin is None:
        return row_blocks.by_rows(lambda s, _, t: ops.sum(ops.square(s - t), axis=-1), student, 1.0, mask, teacher)
    margin = _checks.number(owner, "margin", margin, low=0.0)
    if labels is None:
        raise _checks.error(owner, "labels, which the bounded form needs", "None")
    truth = arguments.floating(labels)
    truth = truth[..., None] if len(truth.shape) < len(student.shape) else truth

    def rows(student: Tensor, t: Tensor, teacher: Tensor, truth: Any) -> Tensor:
        own, bound = (ops.sum(ops.square(outputs - truth), axis=-1) for outputs in (student, teacher))
        return ops.where(own + margin > bound, own, 0.0)

    return row_blocks.by_rows(rows, student, 1.0, mask, teacher, truth)


@keras.saving.register_keras_serializable(package="keras_distill")
class GaussianKL(LogitsLoss):
    """Class twin of ``gaussian_kl``, for models whose last axis holds means, then as many log-variances.

    The term's temperature has no meaning for regression and is ignored.

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "gaussian_kl") -> None:
        super().__init__(reduction=reduction, name=name)

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return ``gaussian_kl`` of each example; ``temperature`` and ``labels`` are ignored."""
        for outputs in (teacher_logits, student_logits):
            if outputs.shape[-1] % 2:
                expected = "an even last axis: means, then log-variances"
                raise _checks.error("GaussianKL", expected, f"{outputs.shape[-1]} outputs")
        owner = "GaussianKL"
        teacher, student = arguments.check_floating(owner, teacher_logits, student_logits, "means and log-variances")

        def rows(student: Tensor, t: Tensor, teacher: Tensor) -> Tensor:
            half = student.shape[-1] // 2
            return _gaussian_kl(*(each for side in (teacher, student) for each in (side[..., :half], side[..., half:])))

        mask = arguments.check_mask(owner, mask, student)
        return row_blocks.by_rows(rows, student, 1.0, mask, teacher)


@keras.saving.register_keras_serializable(package="keras_distill")
class RegressionMatching(LogitsLoss):
    """Class twin of ``regression_matching``; see that function. The term's temperature is ignored.

    Args:
        margin: >= 0 for the bounded form, which needs labels; None for the plain one.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if the margin is negative.
    """

    def __init__(
        self,
        margin: float | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "regression_matching",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.margin = None if margin is None else _checks.number("RegressionMatching", "margin", margin, low=0.0)
        self.needs_labels = self.margin is not None

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return ``regression_matching`` of each example; ``temperature`` is ignored."""
        return regression_matching(
            teacher_outputs=teacher_logits,
            student_outputs=student_logits,
            labels=labels,
            margin=self.margin,
            mask=mask,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "margin": self.margin}
