"""Dirichlet distributions over class probabilities, which capture an ensemble's predictions and its disagreement.

Concentrations are exp(student logits) + offset. Everything is computed in float64, because the loss is a difference of
large numbers as soon as the members agree.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._ensembles.soft_targets import check_members, tempered
from keras_distill.losses._numerics import arguments
from keras_distill.losses._numerics.special import digamma, log_gamma

_LARGEST_LOG = 30.0  # concentrations above 1e13 would leave the loss no correct digits, even in float64
_SMALLEST_LOG = -300.0
_FLOAT32_EPSILON = 1.1920929e-07


def dirichlet_inputs(owner: str, teacher: Tensor, student: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return members (batch, members, ..., classes) and student as float64 with masked rows set to 0, and the mask."""
    members, student = check_members(owner, teacher, student)
    arguments.check_same_shape(owner, members[:, 0], student)
    mask = arguments.check_mask(owner, mask, student)
    members = members if mask is None else arguments.clean(members, ops.expand_dims(mask, 1))
    return ops.cast(members, "float64"), ops.cast(arguments.clean(student, mask), "float64"), mask


def concentrations(logits: Tensor, offset: float) -> Tensor:
    """Return exp(logits) + offset, bounded so that no digits are lost; NaN stays NaN."""
    return ops.exp(ops.clip(logits, _SMALLEST_LOG, _LARGEST_LOG)) + offset


def normaliser(alpha: Tensor) -> Tensor:
    """Return sum_k log Gamma(a_k) - log Gamma(a_0): the logarithm of the Dirichlet density's denominator."""
    return ops.sum(log_gamma(alpha), axis=-1) - log_gamma(ops.sum(alpha, axis=-1))


def mean_log(alpha: Tensor) -> Tensor:
    """Return E[log p_k] under the Dirichlet: digamma(a_k) - digamma(a_0)."""
    return digamma(alpha) - digamma(ops.sum(alpha, axis=-1, keepdims=True))


def dirichlet_kl(beta: Any, alpha: Tensor) -> Tensor:
    """Return KL(Dirichlet(beta) || Dirichlet(alpha)), (...,)."""
    return normaliser(alpha) - normaliser(beta) + ops.sum((beta - alpha) * mean_log(beta), axis=-1)


def dirichlet_distillation(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor = 1.0,
    smoothing: float = 1e-3,
    offset: float = 0.0,
    mask: Tensor = None,
) -> Tensor:
    """Likelihood of an ensemble's distributions under a Dirichlet student (EnD², ensemble distribution distillation).

    Choose it to keep the ensemble's knowledge uncertainty in one model: ``metrics.dirichlet_uncertainty`` then computes
    it from the student without sampling. From random weights it learns slowly: first train the student on the
    ensemble's mean for some epochs (``ensemble_soft_targets``), then with this loss at temperature 1, as
    ``benchmarks.uncertainty`` does. The paper instead anneals the temperature from 10 to 1 (``schedules.Linear``, after
    some epochs at 10) and uses 100 members. For more than a few hundred classes use ``proxy_dirichlet``.

    Formula: temperature**2 * (sum_k log Gamma(a_k) - log Gamma(a_0) - sum_k (a_k - 1) * mean_m log s^m_k), with
    a = exp(student / temperature) + offset, a_0 = sum_k a_k, s^m = (1 - smoothing) * softmax(member / temperature) +
    smoothing / classes.

    Args:
        teacher_logits: (batch, members, ..., classes), float. No gradient reaches it.
        student_logits: (batch, ..., classes), float: logarithms of the concentrations at temperature 1. Their softmax
            is the mean prediction (if offset is 0). Concentrations are clipped at exp(30), without gradient beyond.
        temperature: > 0, for members and student alike; see ``soft_targets`` for its shapes.
        smoothing: 0 to 1, weight of the uniform distribution mixed into each member, so that the logarithm of a
            probability near 0 does not dominate the mean.
        offset: >= 0, added to the concentrations; 1 makes every Dirichlet unimodal.
        mask: (batch, ...) bool or None, as in ``soft_targets``.

    Returns:
        (batch, ...), float32, nats, not reduced: a negative log-density, which may be very negative.

    Raises:
        ValueError: if there are no members, the shapes differ, or a number is out of bounds.

    Example:
        >>> import numpy as np
        >>> members = np.log([[[0.5, 0.5], [0.5, 0.5]]])
        >>> flat, sharp = [[0.0, 0.0]], np.log([[9.0, 9.0]])  # Dirichlet(1, 1) has density 1 everywhere
        >>> [
        ...     round(float(dirichlet_distillation(teacher_logits=members, student_logits=s)[0]), 4)
        ...     for s in (flat, sharp)
        ... ]
        [0.0, -1.2055]

    Reference:
        Malinin, Mlodozeniec, Gales, "Ensemble Distribution Distillation", ICLR 2020, arXiv:1905.00076, eqs. 10 to 13.
        Differs: float64 and exact special functions; the published code adds 1e-8 inside logarithms.
    """
    owner = "dirichlet_distillation"
    smoothing = _checks.number(owner, "smoothing", smoothing, low=0.0, high=1.0)
    offset = _checks.number(owner, "offset", offset, low=0.0)
    members, student, mask = dirichlet_inputs(owner, teacher_logits, student_logits, mask)
    temperature = arguments.temperature_like(owner, temperature, student)
    if not isinstance(temperature, float):
        temperature = ops.cast(temperature, "float64")
        each = ops.expand_dims(temperature, 1) if len(temperature.shape) else temperature
        logs = ops.log_softmax(members / each[..., None], axis=-1)
    else:
        logs = ops.log_softmax(members / temperature, axis=-1)
    if smoothing > 0.0:
        logs = ops.log((1.0 - smoothing) * ops.exp(logs) + smoothing / members.shape[-1])
    alpha = concentrations(student / tempered(temperature, 1), offset)
    seen = ops.mean(logs, axis=1)
    value = normaliser(alpha) - ops.sum((alpha - 1.0) * seen, axis=-1)
    return arguments.apply_mask(ops.cast(temperature * temperature * value, "float32"), mask)


def proxy_dirichlet(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor = 1.0,
    form: str = "reverse",
    offset: float = 1.0,
    target_offset: float = 1.0,
    mask: Tensor = None,
) -> Tensor:
    """Divergence between the student's Dirichlet and one fitted to an ensemble (Proxy-Dirichlet, scaled EnD²).

    Try it before ``dirichlet_distillation``: it needs no temperature schedule and converges with thousands of classes.
    The student's concentrations are exp(logits) + offset, so ``metrics.dirichlet_uncertainty(exp(logits) + 1)`` is its
    uncertainty and the concentrations over their sum are its mean prediction.

    Formula: with the members' mean p, precision b_0 = (classes - 1) / (2 * mean_m KL(p || p^m)), a = exp(student) +
    offset, b = b_0 * p + target_offset: reverse: -sum_k p_k * (digamma(a_k) - digamma(a_0)) - H(Dirichlet(a)) / sum b;
    forward: KL(Dirichlet(b) || Dirichlet(a)).

    Args:
        teacher_logits: (batch, members, ..., classes), float, at least 2 members that differ; where all agree, 1.2e-7
            added to its denominator bounds the precision. No gradient reaches it.
        student_logits: (batch, ..., classes), float. Concentrations are clipped at exp(30), without gradient beyond.
        temperature: checked, but without effect.
        form: "reverse", KL(student || proxy) over the proxy's precision, which converges; or "forward", KL(proxy ||
            student).
        offset: >= 0, added to the student's concentrations.
        target_offset: >= 0, added to the proxy's.
        mask: (batch, ...) bool or None, as in ``soft_targets``.

    Returns:
        (batch, ...), float32, nats, not reduced. The forward form is >= 0.

    Raises:
        ValueError: if there are no members, the shapes differ, or an argument is out of bounds.

    Example:
        >>> import numpy as np
        >>> members = np.log([[[0.9, 0.1], [0.5, 0.5]]])
        >>> wide, sharp = np.log([[1.4, 0.6]]), np.log([[140.0, 60.0]])  # the second denies that the members differ
        >>> value = [proxy_dirichlet(teacher_logits=members, student_logits=s, form="forward") for s in (wide, sharp)]
        >>> bool(value[0] < value[1])
        True

    Reference:
        Ryabinin, Malinin, Gales, "Scaling Ensemble Distribution Distillation to Many Classes with Proxy Targets",
        NeurIPS 2021, arXiv:2105.06987, eqs. 10 to 14. Differs: float64, and no epsilon inside the special functions.
    """
    owner = "proxy_dirichlet"
    _checks.choice(owner, "form", form, ("reverse", "forward"))
    offset = _checks.number(owner, "offset", offset, low=0.0)
    target_offset = _checks.number(owner, "target_offset", target_offset, low=0.0)
    members, student, mask = dirichlet_inputs(owner, teacher_logits, student_logits, mask)
    arguments.temperature_like(owner, temperature, student)
    logs = ops.log_softmax(members, axis=-1)
    mean = ops.mean(ops.exp(logs), axis=1)
    known = mean > 0.0
    log_mean = ops.log(ops.where(known, mean, 1.0))
    apart = ops.where(known, mean * (log_mean - ops.mean(ops.where(ops.isinf(logs), -1e4, logs), axis=1)), 0.0)
    spread = ops.maximum(ops.sum(apart, axis=-1), 0.0)
    precision = (members.shape[-1] - 1.0) / (2.0 * spread + _FLOAT32_EPSILON)
    beta = precision[..., None] * mean + target_offset
    alpha = concentrations(student, offset)
    if form == "forward":
        value = dirichlet_kl(beta, alpha)
    else:
        expected = mean_log(alpha)
        entropy = normaliser(alpha) - ops.sum((alpha - 1.0) * expected, axis=-1)
        value = -ops.sum(mean * expected, axis=-1) - entropy / ops.sum(beta, axis=-1)
    return arguments.apply_mask(ops.cast(value, "float32"), mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class DirichletDistillation(LogitsTwin):
    """Class twin of ``dirichlet_distillation`` (EnD²); see that function.

    Args:
        smoothing: 0 to 1, weight of the uniform distribution mixed into each member.
        offset: >= 0, added to the concentrations.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if a number is out of bounds.

    Example:
        >>> from keras_distill import LogitsDistillation, losses, schedules
        >>> annealed = schedules.Linear(10.0, 1.0, num_steps=3000)
        >>> LogitsDistillation(temperature=annealed, loss=losses.DirichletDistillation()).temperature
        10.0
    """

    needs_members = True

    def __init__(
        self,
        smoothing: float = 1e-3,
        offset: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "dirichlet_distillation",
    ) -> None:
        super().__init__(
            dirichlet_distillation,
            reduction,
            name,
            smoothing=_checks.number("DirichletDistillation", "smoothing", smoothing, low=0.0, high=1.0),
            offset=_checks.number("DirichletDistillation", "offset", offset, low=0.0),
        )


@keras.saving.register_keras_serializable(package="keras_distill")
class ProxyDirichlet(LogitsTwin):
    """Class twin of ``proxy_dirichlet`` (Proxy-Dirichlet); see that function. The term's temperature is ignored.

    Args:
        form: "reverse" or "forward".
        offset: >= 0, added to the student's concentrations.
        target_offset: >= 0, added to the proxy's.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if an argument is out of bounds.
    """

    needs_members = True

    def __init__(
        self,
        form: str = "reverse",
        offset: float = 1.0,
        target_offset: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "proxy_dirichlet",
    ) -> None:
        super().__init__(
            proxy_dirichlet,
            reduction,
            name,
            form=_checks.choice("ProxyDirichlet", "form", form, ("reverse", "forward")),
            offset=_checks.number("ProxyDirichlet", "offset", offset, low=0.0),
            target_offset=_checks.number("ProxyDirichlet", "target_offset", target_offset, low=0.0),
        )
