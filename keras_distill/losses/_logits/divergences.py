"""Divergences between the distributions of teacher and student, other than soft targets."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._logits.soft_targets import soft_targets
from keras_distill.losses._numerics.log_ratio import Kernel, Pair, bregman, compare, row_sum, times


def _reverse_value(pair: Pair) -> Tensor:
    """KL(q || p) summed as q * (exp(-x) - 1 + x), x = log(q / p)."""
    far = times(pair.q, pair.log_ratio) - pair.difference
    return ops.sum(ops.where(pair.near, pair.q * bregman(-pair.small), far), axis=-1)


_REVERSE = Kernel(
    _reverse_value,
    lambda pair: _reverse_value(pair)[..., None],
    lambda pair, level: times(pair.q, pair.log_ratio) - pair.q * level,
    lambda pair: -pair.difference,
)


def _jensen_shannon_kernel(beta: float) -> Kernel:
    """Return the kernel for the mixture m = beta * p + (1 - beta) * q, computed from its ratios to p and to q."""

    def to_mixture(pair: Pair) -> tuple[Tensor, Tensor]:
        """Return log(m / p) and log(m / q), arbitrary where p or q is 0."""
        # m / p = 1 + (1 - beta) * (exp(x) - 1) and m / q = 1 + beta * (exp(-x) - 1): the logarithm is taken of the one
        # below 1, and that of the other differs from it by x.
        distance = ops.abs(pair.log_ratio)
        small = -ops.abs(pair.small)
        rises = pair.log_ratio > 0.0
        below = ops.where(pair.near, small + bregman(small), ops.exp(-distance) - 1.0)
        smaller = ops.log1p(ops.where(rises, beta, 1.0 - beta) * below)
        larger = smaller + distance
        return ops.where(rises, larger, smaller), ops.where(rises, smaller, larger)

    def value(pair: Pair) -> Tensor:
        over_p, over_q = to_mixture(pair)
        # Each is a sum of exp(u) - 1 - u >= 0, u = log(m / p) or log(m / q); where u is large, exp(u) - 1 cancels.
        small_p, small_q = (ops.where(pair.near, u, 0.0) for u in (over_p, over_q))
        near = beta * pair.p * bregman(small_p) + (1.0 - beta) * pair.q * bregman(small_q)
        far = -beta * times(pair.p, over_p) - (1.0 - beta) * times(pair.q, over_q)
        return ops.sum(ops.where(pair.near, near, far), axis=-1)

    def pull(pair: Pair) -> Tensor:
        return -(1.0 - beta) * times(pair.q, to_mixture(pair)[1])

    def to_teacher(pair: Pair) -> Tensor:
        pull = -beta * times(pair.p, to_mixture(pair)[0])
        return pull - pair.p * row_sum(pull)

    return Kernel(value, lambda pair: row_sum(pull(pair)), lambda pair, level: pull(pair) - pair.q * level, to_teacher)


def _half_sign(pair: Pair) -> Tensor:
    """Half the sign of q - p, and 0 where both are 0."""
    return ops.where(pair.log_ratio > 0.0, 0.5, ops.where(pair.log_ratio < 0.0, -0.5, 0.0))


def _total_variation_to_teacher(pair: Pair) -> Tensor:
    pull = -pair.p * _half_sign(pair)
    return pull - pair.p * row_sum(pull)


_TOTAL_VARIATION = Kernel(
    lambda pair: 0.5 * ops.sum(ops.abs(pair.difference), axis=-1),
    lambda pair: row_sum(pair.q * _half_sign(pair)),
    lambda pair, level: pair.q * (_half_sign(pair) - level),
    _total_variation_to_teacher,
)


def reverse_soft_targets(
    *, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor = 1.0, mask: Tensor = None
) -> Tensor:
    """Temperature-scaled Kullback-Leibler divergence from student to teacher (reverse KL, mode seeking).

    Choose it when the student is too small to cover everything the teacher considers possible and should rather be
    right about the likeliest classes (usual for language models).

    Formula: temperature**2 * sum_k q_k * (log q_k - log p_k), p, q = softmax(logits / temperature) of teacher, student.

    Args:
        teacher_logits: (..., classes), float. No gradient reaches it. The value is inf if a class is -inf here only.
        student_logits: same shape and meaning.
        temperature: as in ``soft_targets``.
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, nats, not reduced. Zero exactly when the two distributions are equal.

    Raises:
        ValueError: if the shapes differ, or temperature is not a positive number.

    Example:
        >>> import numpy as np
        >>> teacher, student = np.log([[0.25, 0.75]]), np.log([[0.5, 0.5]])
        >>> round(float(reverse_soft_targets(teacher_logits=teacher, student_logits=student)[0]), 4)
        0.1438

    Reference:
        Gu et al., "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024, arXiv:2306.08543, eq. 1.
        Differs: for given outputs, not sampled ones.
    """
    return compare(_REVERSE, "reverse_soft_targets", teacher_logits, student_logits, temperature, mask)


def jensen_shannon(
    *, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor = 1.0, beta: float = 0.5, mask: Tensor = None
) -> Tensor:
    """Generalised Jensen-Shannon divergence (JSD, GKD), bounded and between the two Kullback-Leibler divergences.

    Choose it when a few examples with huge divergence must not dominate: at ``beta=0.5`` it is at most log 2.

    Formula: temperature**2 * (beta * KL(p || m) + (1 - beta) * KL(q || m)), m = beta * p + (1 - beta) * q. The ends are
    special cases: beta=0 is ``soft_targets`` and beta=1 ``reverse_soft_targets``, although the formula tends to 0.

    Args:
        teacher_logits: (..., classes), float. No gradient reaches it.
        student_logits: same shape and meaning.
        temperature: as in ``soft_targets``.
        beta: 0 to 1, the teacher's share of the mixture.
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, nats, not reduced. Zero exactly when the two distributions are equal.

    Raises:
        ValueError: if the shapes differ, temperature is not a positive number, or beta is outside 0..1.

    Example:
        >>> import numpy as np
        >>> value = jensen_shannon(teacher_logits=[[100.0, 0.0]], student_logits=[[0.0, 100.0]])
        >>> round(float(value[0]), 6) == round(float(np.log(2.0)), 6)
        True

    Reference:
        Agarwal et al., "On-Policy Distillation of Language Models", ICLR 2024, arXiv:2306.13649, eq. 1.
        Differs: times temperature**2; the ends are the two KLs.
    """
    beta = _checks.number("jensen_shannon", "beta", beta, low=0.0, high=1.0)
    arguments = {"teacher_logits": teacher_logits, "student_logits": student_logits, "temperature": temperature}
    if beta in (0.0, 1.0):
        return (soft_targets if beta == 0.0 else reverse_soft_targets)(**arguments, mask=mask)
    kernel = _jensen_shannon_kernel(beta)
    return compare(kernel, "jensen_shannon", teacher_logits, student_logits, temperature, mask)


def total_variation(
    *, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor = 1.0, mask: Tensor = None
) -> Tensor:
    """Total variation distance between two distributions (TVD): the largest difference in probability of any event.

    Choose it when outliers of the teacher must not count more than their probability. Its gradient does not shrink near
    the match, so lower the learning rate at the end.

    Formula: temperature**2 * sum_k |p_k - q_k| / 2.

    Args:
        teacher_logits: (..., classes), float. No gradient reaches it.
        student_logits: same shape and meaning.
        temperature: as in ``soft_targets``.
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, 0 to temperature**2, not reduced. Zero exactly when the two distributions are equal.

    Raises:
        ValueError: if the shapes differ, or temperature is not a positive number.

    Example:
        >>> import numpy as np
        >>> teacher, student = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
        >>> round(float(total_variation(teacher_logits=teacher, student_logits=student)[0]), 4)
        0.25

    Reference:
        Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation", ACL 2023, arXiv:2307.15190.
        Differs: times temperature**2.
    """
    return compare(_TOTAL_VARIATION, "total_variation", teacher_logits, student_logits, temperature, mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class ReverseSoftTargets(LogitsTwin):
    """Class twin of ``reverse_soft_targets`` (reverse KL); see that function.

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "reverse_soft_targets"
    ) -> None:
        super().__init__(reverse_soft_targets, reduction, name)


@keras.saving.register_keras_serializable(package="keras_distill")
class JensenShannon(LogitsTwin):
    """Class twin of ``jensen_shannon`` (JSD, GKD); see that function.

    Args:
        beta: 0 to 1, the teacher's share of the mixture.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if beta is outside 0..1.
    """

    def __init__(
        self,
        beta: float = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "jensen_shannon",
    ) -> None:
        super().__init__(
            jensen_shannon, reduction, name, beta=_checks.number("JensenShannon", "beta", beta, low=0.0, high=1.0)
        )


@keras.saving.register_keras_serializable(package="keras_distill")
class TotalVariation(LogitsTwin):
    """Class twin of ``total_variation`` (TVD); see that function.

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "total_variation") -> None:
        super().__init__(total_variation, reduction, name)
