"""Regression with uncertainty: likelihoods of labels under a predicted distribution."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Structure, Tensor
from keras_distill.losses._numerics import arguments
from keras_distill.losses._numerics.special import log_gamma

_LOG_2PI = math.log(2 * math.pi)


def gaussian_likelihood(
    *, labels: Tensor, student_outputs: Structure, beta: float = 0.0, mask: Tensor = None
) -> Tensor:
    """Negative log-likelihood of labels under Gaussians with predicted variances, for regression (beta-NLL).

    Choose it to train a Gaussian teacher or student on labels. With ``beta`` 0.5 examples of large variance keep their
    share of the gradient, which the plain likelihood (0) reduces.

    Formula: sum over outputs of sg(v)**beta * (log(2 pi v) + (y - m)**2 / v) / 2, sg: no gradient.

    Args:
        labels: (..., outputs), or (...,) for one output.
        student_outputs: (..., 2 * outputs): means, then log-variances, as from ``students.GaussianHead``.
        beta: 0 to 1.
        mask: (...,) bool or None, as in ``soft_targets``.

    Returns:
        (...,), float32, nats for beta 0, not reduced.

    Raises:
        ValueError: if the shapes do not fit or beta is out of bounds.

    Example:
        >>> value = gaussian_likelihood(labels=[[1.0]], student_outputs=[[0.0, 0.0]])
        >>> round(float(value[0]), 4)  # (log(2 pi) + 1) / 2
        1.4189

    Reference:
        Seitzer et al., "On the Pitfalls of Heteroscedastic Uncertainty Estimation with Probabilistic Neural Networks",
        ICLR 2022, arXiv:2203.09168, eq. 5. Differs: nothing.
    """
    owner = "gaussian_likelihood"
    beta = _checks.number(owner, "beta", beta, low=0.0, high=1.0)
    labels, parts, mask = _labels_and_parts(owner, labels, student_outputs, mask, 2)
    mean, log_variance = parts[..., 0, :], parts[..., 1, :]
    each = 0.5 * (_LOG_2PI + log_variance + ops.square(labels - mean) * ops.exp(-log_variance))
    weight = ops.stop_gradient(ops.exp(beta * log_variance)) if beta > 0.0 else 1.0
    return arguments.apply_mask(ops.sum(weight * each, axis=-1), mask)


def _labels_and_parts(
    owner: str, labels: Tensor, student: Tensor, mask: Tensor, parts: int
) -> tuple[Tensor, Tensor, Tensor]:
    student, labels = arguments.float32(student), arguments.float32(labels)
    if len(student.shape) == 0:
        raise _checks.error(owner, "student_outputs of rank >= 1", "a number")
    labels = labels[..., None] if len(labels.shape) < len(student.shape) else labels
    if len(labels.shape) != len(student.shape):
        raise _checks.error(
            owner, "labels of the rank of student_outputs", f"shapes {tuple(labels.shape)}, {tuple(student.shape)}"
        )
    if student.shape[-1] != parts * labels.shape[-1]:
        expected = f"{parts} numbers for each of the {labels.shape[-1]} labels"
        raise _checks.error(owner, expected, f"{student.shape[-1]} outputs")
    mask = arguments.check_mask(owner, mask, student)
    student, labels = arguments.clean(student, mask), arguments.clean(labels, mask)
    shape = (*arguments.leading_shape(student), parts, labels.shape[-1])
    return labels, ops.reshape(student, shape), mask


def evidential_regression(
    *, labels: Tensor, student_outputs: Structure, regularizer: float = 0.01, mask: Tensor = None
) -> Tensor:
    """Likelihood of labels under an evidential regression head (deep evidential regression).

    Choose it for a single model that splits its variance into data and knowledge uncertainty without an ensemble; if
    there is an ensemble, ``normal_inverse_gamma`` learns the split from it.

    Formula: sum over outputs of -log t_{2a}(y; m, b (1 + v) / (v a)) + regularizer * |y - m| * (2 v + a), with the mean
    m, the precision factor v, the shape a and the scale b of a Normal-inverse-gamma; t is Student's.

    Args:
        labels: (..., outputs), or (...,) for one output.
        student_outputs: (..., 4 * outputs): all m, all log v, all log(a - 1), all log b, as from
            ``students.NormalInverseGammaHead``.
        regularizer: >= 0, per unit of the label.
        mask: (...,) bool or None, as in ``soft_targets``.

    Returns:
        (...,), float32, nats plus the regulariser, not reduced.

    Raises:
        ValueError: if the shapes do not fit or regularizer is negative.

    Example:
        >>> value = evidential_regression(labels=[[0.0]], student_outputs=[[0.0, 0.0, 0.0, 0.0]])
        >>> round(float(value[0]), 4)  # v = b = 1, a = 2: Student's t with 4 degrees and scale 1: -log(3/8)
        0.9808

    Reference:
        Amini et al., "Deep Evidential Regression", NeurIPS 2020, arXiv:1910.02600, eqs. 8 to 10. Differs: the weight
        of the evidence is 2 v + a, as in the paper's appendix.
    """
    owner = "evidential_regression"
    regularizer = _checks.number(owner, "regularizer", regularizer, low=0.0)
    labels, parts, mask = _labels_and_parts(owner, labels, student_outputs, mask, 4)
    mean, log_v, log_a, log_b = (ops.cast(parts[..., i, :], "float64") for i in range(4))
    v, a = ops.exp(log_v), ops.exp(log_a) + 1.0
    apart = ops.cast(labels, "float64") - mean
    log_omega = math.log(2.0) + log_b + ops.softplus(log_v)
    likelihood = 0.5 * (math.log(math.pi) - log_v) - a * log_omega + log_gamma(a) - log_gamma(a + 0.5)
    likelihood = likelihood + (a + 0.5) * ops.logaddexp(log_v + ops.log(ops.square(apart) + 1e-300), log_omega)
    value = ops.sum(likelihood + regularizer * ops.abs(apart) * (2.0 * v + a), axis=-1)
    return arguments.apply_mask(ops.cast(value, "float32"), mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class GaussianLikelihood(keras.losses.Loss):
    """Class twin of ``gaussian_likelihood`` (beta-NLL): a Keras loss from labels to means and log-variances.

    Args:
        beta: 0 to 1.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if beta is out of bounds.
    """

    def __init__(
        self,
        beta: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "gaussian_likelihood",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        self.beta = _checks.number("GaussianLikelihood", "beta", beta, low=0.0, high=1.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return ``gaussian_likelihood`` of each example."""
        return gaussian_likelihood(labels=y_true, student_outputs=y_pred, beta=self.beta)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "beta": self.beta}


@keras.saving.register_keras_serializable(package="keras_distill")
class EvidentialRegression(keras.losses.Loss):
    """Class twin of ``evidential_regression``: a Keras loss from labels to the outputs of an evidential head.

    Args:
        regularizer: >= 0.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if regularizer is negative.
    """

    def __init__(
        self,
        regularizer: float = 0.01,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "evidential_regression",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        self.regularizer = _checks.number("EvidentialRegression", "regularizer", regularizer, low=0.0)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return ``evidential_regression`` of each example."""
        return evidential_regression(labels=y_true, student_outputs=y_pred, regularizer=self.regularizer)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "regularizer": self.regularizer}
