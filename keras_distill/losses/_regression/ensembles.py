"""Losses that distil an ensemble of Gaussians: by their moments, their mixture, or the spread of the members.

The last axis of a Gaussian output holds means, then as many log-variances. Ensembles are (batch, members, outputs).
"""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Structure, Tensor
from keras_distill.losses._base import LogitsLoss
from keras_distill.losses._ensembles.soft_targets import check_members
from keras_distill.losses._numerics import arguments
from keras_distill.losses._numerics.special import log_gamma
from keras_distill.losses._regression.targets import gaussian_kl

_LOG_2PI = math.log(2 * math.pi)
_NODES, _NODE_WEIGHTS = (each.astype("float32") for each in np.polynomial.hermite_e.hermegauss(15))


def _members_and_parts(owner: str, teacher: Tensor, student: Tensor, mask: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Return the members' means and log-variances, the student as (..., parts, outputs), and the mask."""
    members, student = check_members(owner, teacher, student)
    outputs = members.shape[-1] // 2
    if members.shape[-1] != 2 * outputs or student.shape[-1] % parts or student.shape[-1] // parts != outputs:
        expected = f"members of 2 and a student of {parts} numbers per output"
        raise _checks.error(owner, expected, f"{members.shape[-1]} and {student.shape[-1]}")
    mask = arguments.check_mask(owner, mask, student)
    student = arguments.clean(student, mask)
    members = members if mask is None else arguments.clean(members, ops.expand_dims(mask, 1))
    student = ops.reshape(student, (*arguments.leading_shape(student), parts, outputs))
    return members[..., :outputs], members[..., outputs:], student, mask


def gaussian_moments(members: Tensor) -> Tensor:
    """Return the Gaussian with the mean and the variance of an ensemble of Gaussians (law of total variance).

    Args:
        members: (batch, members, ..., 2 * outputs): means, then log-variances.

    Returns:
        (batch, ..., 2 * outputs), float32: the mean of the means, and the logarithm of the mean variance plus the
        variance of the means.

    Raises:
        ValueError: if the last axis is odd.

    Example:
        >>> import numpy as np
        >>> members = [[[-1.0, np.log(3.0)], [1.0, np.log(5.0)]]]  # means -1 and 1, variances 3 and 5
        >>> print(np.exp(gaussian_moments(members)).round(3))  # exp of the mean 0; variance 4 + 1
        [[1. 5.]]

    Reference:
        Lakshminarayanan, Pritzel, Blundell, "Simple and Scalable Predictive Uncertainty Estimation using Deep
        Ensembles", NeurIPS 2017, arXiv:1612.01474, section 2.4. Differs: nothing.
    """
    expected = "members of shape (batch, members, ..., 2 * outputs)"
    members = _checks.with_axes("gaussian_moments", arguments.float32(members), expected)
    if members.shape[-1] % 2:
        raise _checks.error("gaussian_moments", "means, then as many log-variances", f"{members.shape[-1]} outputs")
    half = members.shape[-1] // 2
    means, logs = members[..., :half], members[..., half:]
    mean = ops.mean(means, axis=1)
    variance = ops.mean(ops.exp(logs) + ops.square(means - ops.expand_dims(mean, 1)), axis=1)
    return ops.concatenate([mean, ops.log(variance)], axis=-1)


def normal_inverse_gamma(*, teacher_outputs: Structure, student_outputs: Structure, mask: Tensor = None) -> Tensor:
    """Likelihood of an ensemble's Gaussians under the student's Normal-inverse-gamma (EnD² for regression).

    Choose it to keep an ensemble's split of the variance into data and knowledge uncertainty in one model;
    ``metrics.normal_inverse_gamma_uncertainty`` computes the two. Its mean is the precision-weighted mean of the
    members: if their variances differ by orders of magnitude, the most certain member dominates, and
    ``gaussian_mixture`` fits better.

    Formula: mean over members of -log N(m_i; m, s_i / v) - log InverseGamma(s_i; a, b), summed over outputs; m_i, s_i
    the member's mean and variance.

    Args:
        teacher_outputs: (batch, members, ..., 2 * outputs): means, then log-variances. No gradient reaches it.
        student_outputs: (batch, ..., 4 * outputs): all m, all log v, all log(a - 1), all log b.
        mask: (batch, ...) bool or None, as in ``soft_targets``.

    Returns:
        (batch, ...), float32, nats, not reduced: a negative log-density.

    Raises:
        ValueError: if there are no members or the shapes do not fit.

    Example:
        >>> members = [[[0.0, 0.0], [0.0, 0.0]]]  # two members that say N(0, 1)
        >>> value = normal_inverse_gamma(teacher_outputs=members, student_outputs=[[0.0, 0.0, 0.0, 0.0]])
        >>> round(float(value[0]), 4)  # log(2 pi) / 2 + 1: v = b = 1, a = 2
        1.9189

    Reference:
        Malinin, Chervontsev, Provilkov, Gales, "Regression Prior Networks", 2020, arXiv:2006.11590, section 3;
        Lindqvist et al., "A General Framework for Ensemble Distribution Distillation", 2020, arXiv:2002.11531.
        Differs: outputs are independent, so each has a Normal-inverse-gamma instead of a joint Normal-Wishart.
    """
    means, logs, student, mask = _members_and_parts("normal_inverse_gamma", teacher_outputs, student_outputs, mask, 4)
    means, logs, student = (ops.cast(each, "float64") for each in (means, logs, student))
    center, log_v, log_a, log_b = (ops.expand_dims(student[..., i, :], 1) for i in range(4))
    a = ops.exp(log_a) + 1.0
    squared = ops.square(means - center)
    gaussian = 0.5 * (_LOG_2PI + logs - log_v + squared * ops.exp(log_v - logs))
    inverse_gamma = log_gamma(a) - a * log_b + (a + 1.0) * logs + ops.exp(log_b - logs)
    value = ops.mean(ops.sum(gaussian + inverse_gamma, axis=-1), axis=1)
    return arguments.apply_mask(ops.cast(value, "float32"), mask)


def gaussian_mixture(*, teacher_outputs: Structure, student_outputs: Structure, mask: Tensor = None) -> Tensor:
    """Cross-entropy from an ensemble of Gaussians to the student's Gaussian mixture, output by output.

    Choose it when the members' means lie so far apart that one Gaussian (``EnsembleGaussianKL``) would put its mass
    between them. Each output has its own mixture.

    Formula: mean over members of -E[log sum_c w_c N(y; m_c, s_c)], y ~ N(m_i, s_i), summed over outputs; the
    expectation by Gauss-Hermite quadrature with 15 nodes per member, which is accurate to a thousandth if the
    variances are within a factor of 3 of each other.

    Args:
        teacher_outputs: (batch, members, ..., 2 * outputs): means, then log-variances. No gradient reaches it.
        student_outputs: (batch, ..., 3 * components * outputs): all logits of the weights, all means, all
            log-variances, each component by component, as from ``students.MixtureHead``.
        mask: (batch, ...) bool or None, as in ``soft_targets``.

    Returns:
        (batch, ...), float32, nats, not reduced; its minimum, the teacher's entropy, is reached if both are equal.

    Raises:
        ValueError: if there are no members or the shapes do not fit.

    Example:
        >>> members = [[[0.0, 0.0]]]  # one member, N(0, 1)
        >>> value = gaussian_mixture(teacher_outputs=members, student_outputs=[[0.0, 0.0, 0.0]])  # one component
        >>> round(float(value[0]), 4)  # the entropy of N(0, 1): log(2 pi e) / 2
        1.4189

    Reference:
        Lindqvist et al., "A General Framework for Ensemble Distribution Distillation", 2020, arXiv:2002.11531; the
        student's form is Bishop, "Mixture Density Networks", 1994. Differs: quadrature in place of samples.
    """
    owner = "gaussian_mixture"
    members, student = check_members(owner, teacher_outputs, student_outputs)
    outputs = members.shape[-1] // 2
    if members.shape[-1] != 2 * outputs or student.shape[-1] % (3 * outputs):
        expected = "members of 2 and a student of 3 * components numbers per output"
        raise _checks.error(owner, expected, f"{members.shape[-1]} and {student.shape[-1]}")
    mask = arguments.check_mask(owner, mask, student)
    student = arguments.clean(student, mask)
    members = members if mask is None else arguments.clean(members, ops.expand_dims(mask, 1))
    means, spread = members[..., :outputs], ops.exp(0.5 * members[..., outputs:])
    components = student.shape[-1] // (3 * outputs)
    parts = ops.reshape(student, (*arguments.leading_shape(student), 3, components, outputs))
    parts = ops.expand_dims(parts, 1)  # the members' axis
    weights = ops.log_softmax(parts[..., 0, :, :], axis=-2)
    center, log_variance = parts[..., 1, :, :], parts[..., 2, :, :]
    total = 0.0
    for node, share in zip(_NODES.tolist(), (_NODE_WEIGHTS / _NODE_WEIGHTS.sum()).tolist(), strict=True):
        y = ops.expand_dims(means + node * spread, -2)
        density = weights - 0.5 * (_LOG_2PI + log_variance + ops.square(y - center) * ops.exp(-log_variance))
        total = total - share * ops.logsumexp(density, axis=-2)
    return arguments.apply_mask(ops.mean(ops.sum(total, axis=-1), axis=1), mask)


class _MembersRegression(LogitsLoss):
    """Base of the regression losses on the members of an ensemble, which ignore temperature and labels."""

    needs_members = True
    same_outputs = False

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = None) -> None:
        super().__init__(reduction=reduction, name=name)


@keras.saving.register_keras_serializable(package="keras_distill")
class EnsembleGaussianKL(_MembersRegression):
    """Divergence from the Gaussian with an ensemble's mean and variance to the student's (EnD for regression).

    Choose it for a Gaussian student of an ensemble of Gaussians: it is ``gaussian_kl`` after ``gaussian_moments``.

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Example:
        >>> import numpy as np
        >>> members = np.array([[[-1.0, np.log(3.0)], [1.0, np.log(5.0)]]], "float32")
        >>> float(EnsembleGaussianKL().values(members, np.log([[1.0, 5.0]]))[0])  # N(0, 5) is the match
        0.0

    Reference:
        Lindqvist et al., "A General Framework for Ensemble Distribution Distillation", 2020, arXiv:2002.11531.
        Differs: the ensemble's two moments represent its members.
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "ensemble_gaussian_kl"
    ) -> None:
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
        members, student = check_members("EnsembleGaussianKL", teacher_logits, student_logits)
        arguments.check_same_shape("EnsembleGaussianKL", members[:, 0], student, "means and log-variances")
        teacher, half = gaussian_moments(members), student.shape[-1] // 2
        return gaussian_kl(
            teacher_mean=teacher[..., :half],
            teacher_log_variance=teacher[..., half:],
            student_mean=student[..., :half],
            student_log_variance=student[..., half:],
            mask=mask,
        )


@keras.saving.register_keras_serializable(package="keras_distill")
class NormalInverseGamma(_MembersRegression):
    """Class twin of ``normal_inverse_gamma`` (EnD² for regression); see that function.

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
    """

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "normal_inverse_gamma"
    ) -> None:
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
        """Return ``normal_inverse_gamma`` of each example; ``temperature`` and ``labels`` are ignored."""
        return normal_inverse_gamma(teacher_outputs=teacher_logits, student_outputs=student_logits, mask=mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class GaussianMixture(_MembersRegression):
    """Class twin of ``gaussian_mixture``; see that function.

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
    """

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "gaussian_mixture") -> None:
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
        """Return ``gaussian_mixture`` of each example; ``temperature`` and ``labels`` are ignored."""
        return gaussian_mixture(teacher_outputs=teacher_logits, student_outputs=student_logits, mask=mask)
