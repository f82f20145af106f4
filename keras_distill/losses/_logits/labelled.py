"""Losses that use the true class: decoupled, normalised and weighted soft targets."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._logits.soft_targets import KERNEL
from keras_distill.losses._numerics import log_ratio, row_blocks
from keras_distill.losses._numerics.distributions import (
    at_label,
    bernoulli_kl,
    class_ids,
    expectation,
    inputs,
    log_softmax,
    per_row,
    shifted,
    surprise,
    target_logit,
    target_mask,
    without,
)


def _surprise_and_logs(logits: Tensor, labels: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy to the labels at temperature 1, without gradient, and log softmax at the temperature.

    Both share one maximum, which saves a pass over the logits.
    """
    below, _ = shifted(logits)
    still = ops.stop_gradient(below)
    others = ops.sum(ops.where(target_mask(labels, logits), 0.0, ops.exp(still)), axis=-1)
    surprise = ops.softplus(ops.log(others) - at_label(still, labels))
    scaled = below / temperature
    return surprise, scaled - ops.log(ops.sum(ops.exp(scaled), axis=-1, keepdims=True))


def decoupled_soft_targets(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor,
    temperature: Tensor = 1.0,
    target_weight: float = 1.0,
    non_target_weight: float = 8.0,
    mask: Tensor = None,
) -> Tensor:
    """Soft targets in two parts, the target's probability and the distribution of the rest (DKD, decoupled KD).

    Choose it when the teacher is so sure of the target that plain soft targets say nothing about the other classes.
    The right ``non_target_weight`` grows with the teacher's confidence; 2 to 8 are usual, with a warm-up.

    Formula: temperature**2 * (target_weight * KL(b_t || b_s) + non_target_weight * KL(r_t || r_s)), b = (p_y, 1 - p_y),
    r = softmax over the classes other than y.

    Args:
        teacher_logits: (..., classes), float, at least 3 classes. No gradient reaches it.
        student_logits: same shape and meaning.
        labels: (...,) integer classes, or one-hot (..., classes).
        temperature: as in ``soft_targets``.
        target_weight: >= 0.
        non_target_weight: >= 0.
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, nats, not reduced. Zero exactly when the two distributions are equal.

    Raises:
        ValueError: if shapes, labels, temperature or weights do not fit, or there are fewer than 3 classes: with 2,
            only one is left beside the target.

    Example:
        >>> import numpy as np
        >>> teacher, student = np.log([[0.5, 0.25, 0.25]]), np.log([[0.5, 0.1, 0.4]])
        >>> arguments = {"teacher_logits": teacher, "student_logits": student, "labels": [0]}
        >>> value = decoupled_soft_targets(**arguments, non_target_weight=1.0)[0]
        >>> round(float(value), 4)  # KL((1/2, 1/2) || (1/5, 4/5))
        0.2231

    Reference:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679, eq. 7. Differs: the target is
        removed exactly, not by subtracting 1000.
    """
    owner = "decoupled_soft_targets"
    target_weight = _checks.number(owner, "target_weight", target_weight, low=0.0)
    non_target_weight = _checks.number(owner, "non_target_weight", non_target_weight, low=0.0)
    teacher, student, t, mask = inputs(owner, teacher_logits, student_logits, temperature, mask)
    if teacher.shape[-1] < 3:
        count = teacher.shape[-1]
        advice = f"With {count} classes only one is left beside the target: use soft_targets"
        if count < 2:
            advice = "For a head with one logit use binary_soft_targets"
        raise _checks.error(owner, "at least 3 classes", f"{count}", advice)
    labels = class_ids(owner, labels, student, mask)

    def rows(student: Tensor, t: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        target, row_t = target_mask(labels, student), per_row(t)
        others = without(teacher, target), without(student, target)
        # The gap between the two target logits is computed from differences, exact where the models nearly agree.
        offset, rest_ratio = log_ratio.normaliser_ratio(*others, t)
        gap = log_ratio.exact_difference(at_label(student, labels), offset[..., 0], at_label(teacher, labels))
        gap = gap / row_t - rest_ratio[..., 0]
        of_teacher, of_student = (target_logit(each, labels, t) for each in (teacher, student))
        value = target_weight * row_t**2 * bernoulli_kl(of_teacher, of_student, gap)
        return value + non_target_weight * log_ratio.divergence(KERNEL, *others, row_t)

    return row_blocks.by_rows(rows, student, t, mask, teacher, labels)


def normalized_soft_targets(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor,
    temperature: Tensor = 1.0,
    non_target_weight: float = 1.5,
    mask: Tensor = None,
) -> Tensor:
    """Cross-entropies on the target, and on the other classes with both models renormalised over them (NKD).

    Choose it in addition to the ordinary cross-entropy, which it does not contain. As a sum of cross-entropies, its
    minimum is not 0.

    Formula: -p_y log q_y - non_target_weight * temperature**2 * sum_{k != y} r_k log s_k; the target's term at
    temperature 1, r and s = softmax over the other classes of logits / temperature.

    Args:
        teacher_logits: (..., classes), float, at least 2 classes. No gradient reaches it.
        student_logits: same shape and meaning.
        labels: (...,) integer classes, or one-hot (..., classes).
        temperature: as in ``soft_targets``; applies to the other classes only.
        non_target_weight: >= 0.
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, nats, not reduced.

    Raises:
        ValueError: if shapes, labels, temperature or weight do not fit.

    Example:
        >>> import numpy as np
        >>> both = np.log([[0.5, 0.25, 0.25]])
        >>> arguments = {"teacher_logits": both, "student_logits": both, "labels": [0]}
        >>> value = normalized_soft_targets(**arguments, non_target_weight=1.0)[0]
        >>> round(float(value), 4) == round(1.5 * float(np.log(2.0)), 4)
        True

    Reference:
        Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023, arXiv:2303.13005, eq. 9.
        Differs: nothing.
    """
    owner = "normalized_soft_targets"
    non_target_weight = _checks.number(owner, "non_target_weight", non_target_weight, low=0.0)
    teacher, student, t, mask = inputs(owner, teacher_logits, student_logits, temperature, mask)
    if teacher.shape[-1] < 2:
        advice = "For a head with one logit use binary_soft_targets"
        raise _checks.error(owner, "at least 2 classes", f"{teacher.shape[-1]}", advice)
    labels = class_ids(owner, labels, student, mask)

    def rows(student: Tensor, t: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        target = target_mask(labels, student)
        value = ops.sigmoid(target_logit(teacher, labels)) * surprise(student, labels)
        log_r, log_s = (log_softmax(without(logits, target), t) for logits in (teacher, student))
        rest = -expectation(ops.exp(log_r), log_s)
        return value + non_target_weight * per_row(t) ** 2 * rest

    return row_blocks.by_rows(rows, student, t, mask, teacher, labels)


def weighted_soft_labels(
    *, teacher_logits: Tensor, student_logits: Tensor, labels: Tensor, temperature: Tensor = 1.0, mask: Tensor = None
) -> Tensor:
    """Cross-entropy to soft labels, with less weight where the student already beats the teacher (WSLD).

    Choose it when the teacher is not much better than the student. The published weight of the term is 2.25.

    Formula: w * temperature**2 * H(p, q), w = 1 - exp(-H(y, q_1) / (H(y, p_1) + 1e-7)), p, q at the temperature, p_1,
    q_1 at temperature 1; no gradient flows through w.

    Args:
        teacher_logits: (..., classes), float. No gradient reaches it.
        student_logits: same shape and meaning.
        labels: (...,) integer classes, or one-hot (..., classes).
        temperature: as in ``soft_targets``.
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, nats, not reduced. Its minimum is not 0.

    Raises:
        ValueError: if shapes, labels or temperature do not fit.

    Example:
        >>> import numpy as np
        >>> both = np.log([[0.5, 0.5]])
        >>> value = weighted_soft_labels(teacher_logits=both, student_logits=both, labels=[0])[0]
        >>> round(float(value), 4) == round(float((1 - np.exp(-1)) * np.log(2.0)), 4)
        True

    Reference:
        Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective", ICLR
        2021, arXiv:2102.00650, eq. 9. Differs: nothing.
    """
    owner = "weighted_soft_labels"
    teacher, student, t, mask = inputs(owner, teacher_logits, student_logits, temperature, mask)
    labels = class_ids(owner, labels, student, mask)

    def rows(student: Tensor, t: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        (best, log_p), (own, log_q) = (_surprise_and_logs(logits, labels, t) for logits in (teacher, student))
        weight = -ops.expm1(-own / (best + 1e-7))
        return weight * per_row(t) ** 2 * -expectation(ops.exp(log_p), log_q)

    return row_blocks.by_rows(rows, student, t, mask, teacher, labels)


@keras.saving.register_keras_serializable(package="keras_distill")
class DecoupledSoftTargets(LogitsTwin):
    """Class twin of ``decoupled_soft_targets`` (DKD); see that function.

    Args:
        target_weight: >= 0.
        non_target_weight: >= 0.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if a weight is negative.
    """

    needs_labels = True

    def __init__(
        self,
        target_weight: float = 1.0,
        non_target_weight: float = 8.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "decoupled_soft_targets",
    ) -> None:
        super().__init__(
            decoupled_soft_targets,
            reduction,
            name,
            target_weight=_checks.number("DecoupledSoftTargets", "target_weight", target_weight, low=0.0),
            non_target_weight=_checks.number("DecoupledSoftTargets", "non_target_weight", non_target_weight, low=0.0),
        )


@keras.saving.register_keras_serializable(package="keras_distill")
class NormalizedSoftTargets(LogitsTwin):
    """Class twin of ``normalized_soft_targets`` (NKD); see that function.

    Args:
        non_target_weight: >= 0.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if the weight is negative.
    """

    needs_labels = True

    def __init__(
        self,
        non_target_weight: float = 1.5,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "normalized_soft_targets",
    ) -> None:
        owner = "NormalizedSoftTargets"
        super().__init__(
            normalized_soft_targets,
            reduction,
            name,
            non_target_weight=_checks.number(owner, "non_target_weight", non_target_weight, low=0.0),
        )


@keras.saving.register_keras_serializable(package="keras_distill")
class WeightedSoftLabels(LogitsTwin):
    """Class twin of ``weighted_soft_labels`` (WSLD); see that function.

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
    """

    needs_labels = True

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "weighted_soft_labels"
    ) -> None:
        super().__init__(weighted_soft_labels, reduction, name)
