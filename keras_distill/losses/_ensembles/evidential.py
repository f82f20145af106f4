"""Losses for heads that output evidence for each class instead of logits (evidential deep learning)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsLoss
from keras_distill.losses._ensembles.dirichlet import dirichlet_kl
from keras_distill.losses._numerics import arguments
from keras_distill.losses._numerics.distributions import class_ids, log_softmax, target_mask
from keras_distill.losses._numerics.special import digamma

_FORMS = ("mse", "log", "digamma")
_EVIDENCE = ("softplus", "relu")


def _alpha(logits: Tensor, evidence: str) -> Tensor:
    return (ops.relu(logits) if evidence == "relu" else ops.softplus(logits)) + 1.0


def evidential(
    *, targets: Any, student_logits: Tensor, form: str = "mse", evidence: str = "softplus", mask: Tensor = None
) -> Tensor:
    """Expected loss under the Dirichlet of an evidential head (EDL, evidential deep learning).

    Choose it for a student whose head outputs evidence, so that one pass also gives its uncertainty (classes / a_0);
    with a teacher's distribution as target it distils into that head. If the teacher is an ensemble,
    ``proxy_dirichlet`` teaches the disagreement itself. ``misleading_evidence`` penalises evidence for wrong classes.

    Formula: a = evidence(logits) + 1, a_0 = sum_k a_k, y the targets. mse: sum_k (y_k - a_k / a_0)**2 + a_k (a_0 - a_k)
    / (a_0**2 (a_0 + 1)); log: sum_k y_k (log a_0 - log a_k); digamma: sum_k y_k (digamma(a_0) - digamma(a_k)).

    Args:
        targets: (..., classes), probabilities: one-hot labels, or a teacher's. No gradient reaches them.
        student_logits: (..., classes), float, before the activation ``evidence``.
        form: "mse", "log" or "digamma".
        evidence: "softplus", or "relu", which has no gradient where the evidence is 0.
        mask: (...,) bool or None, as in ``soft_targets``.

    Returns:
        (...,), float32, not reduced; computed in float64.

    Raises:
        ValueError: if the shapes differ, or form or evidence is unknown.

    Example:
        >>> nothing_known = [[-1.0, -2.0]]  # a = (1, 1): 2 * 1/4 + 2 * 1/12
        >>> value = evidential(targets=[[1.0, 0.0]], student_logits=nothing_known, evidence="relu")
        >>> round(float(value[0]), 4)
        0.6667

    Reference:
        Sensoy, Kaplan, Kandemir, "Evidential Deep Learning to Quantify Classification Uncertainty", NeurIPS 2018,
        arXiv:1806.01768, eqs. 3 to 5. Differs: targets may be soft; all three are linear or quadratic in them.
    """
    owner = "evidential"
    _checks.choice(owner, "form", form, _FORMS)
    _checks.choice(owner, "evidence", evidence, _EVIDENCE)
    targets, student = arguments.check_pair(owner, targets, student_logits, "targets and logits")
    return _expected_loss(targets, student, form, evidence, arguments.check_mask(owner, mask, student))


def _expected_loss(targets: Any, student: Tensor, form: str, evidence: str, mask: Tensor) -> Tensor:
    targets, student = (ops.cast(arguments.clean(side, mask), "float64") for side in (targets, student))
    alpha = _alpha(student, evidence)
    total = ops.sum(alpha, axis=-1, keepdims=True)
    if form == "mse":
        share = alpha / total
        value = ops.sum(ops.square(targets - share) + share * (1.0 - share) / (total + 1.0), axis=-1)
    elif form == "log":
        value = ops.sum(targets * (ops.log(total) - ops.log(alpha)), axis=-1)
    else:
        value = ops.sum(targets * (digamma(total) - digamma(alpha)), axis=-1)
    return arguments.apply_mask(ops.cast(value, "float32"), mask)


def misleading_evidence(
    *, student_logits: Tensor, labels: Tensor, evidence: str = "softplus", mask: Tensor = None
) -> Tensor:
    """Divergence between the evidence for wrong classes and no evidence at all (EDL's regulariser).

    Choose it beside ``evidential``, as a separate term whose weight grows from 0 to 1 over the first ten epochs
    (``schedules.Linear``). At full weight from the start, it keeps the student from gathering any evidence.

    Formula: KL(Dirichlet(a~) || Dirichlet(1)), a~ = y + (1 - y) * a, a = evidence(logits) + 1, y the one-hot label.

    Args:
        student_logits: (..., classes), float.
        labels: (...,) integer class ids, or one-hot.
        evidence: as in ``evidential``.
        mask: (...,) bool or None, as in ``soft_targets``.

    Returns:
        (...,), float32, nats, >= 0, not reduced. Zero exactly where only the label has evidence.

    Raises:
        ValueError: if labels are missing or out of range, or evidence is unknown.

    Example:
        >>> value = misleading_evidence(student_logits=[[-1.0, 3.0]], labels=[1], evidence="relu")
        >>> float(value[0])
        0.0

    Reference:
        Sensoy, Kaplan, Kandemir, "Evidential Deep Learning to Quantify Classification Uncertainty", NeurIPS 2018,
        arXiv:1806.01768, section 4. Differs: nothing.
    """
    owner = "misleading_evidence"
    _checks.choice(owner, "evidence", evidence, _EVIDENCE)
    student = arguments.float32(student_logits)
    mask = arguments.check_mask(owner, mask, student)
    hot = target_mask(class_ids(owner, labels, student, mask), student)
    alpha = _alpha(ops.cast(arguments.clean(student, mask), "float64"), evidence)
    alpha = ops.where(hot, 1.0 + 0.0 * alpha, alpha)  # NaN stays NaN
    value = dirichlet_kl(alpha, ops.ones_like(alpha))
    # A label out of range has no column and must not count as correct.
    value = ops.where(ops.any(hot, axis=-1), ops.maximum(value, 0.0), float("nan"))
    return arguments.apply_mask(ops.cast(value, "float32"), mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class Evidential(LogitsLoss):
    """Class twin of ``evidential`` (EDL), with a teacher's distribution as target.

    Args:
        form: "mse", "log" or "digamma".
        evidence: "softplus" or "relu".
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if form or evidence is unknown.
    """

    def __init__(
        self,
        form: str = "mse",
        evidence: str = "softplus",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "evidential",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.form = _checks.choice("Evidential", "form", form, _FORMS)
        self.evidence = _checks.choice("Evidential", "evidence", evidence, _EVIDENCE)

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return ``evidential`` with the teacher's softmax at ``temperature`` as targets; ``labels`` are ignored."""
        teacher, student = arguments.check_pair("Evidential", teacher_logits, student_logits)
        temperature = arguments.temperature_like("Evidential", temperature, student)
        column = temperature if isinstance(temperature, float) else temperature[..., None]
        mask = arguments.check_mask("Evidential", mask, student)
        # A learned temperature gets its gradient through the targets.
        targets = ops.exp(log_softmax(arguments.clean(teacher, mask), column))
        return _expected_loss(targets, student, self.form, self.evidence, mask)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "form": self.form, "evidence": self.evidence}


@keras.saving.register_keras_serializable(package="keras_distill")
class MisleadingEvidence(LogitsLoss):
    """Class twin of ``misleading_evidence`` (EDL's regulariser). Uses the labels, not the teacher.

    Args:
        evidence: "softplus" or "relu", the same as in the ``Evidential`` term.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if evidence is unknown.
    """

    needs_labels = True

    def __init__(
        self,
        evidence: str = "softplus",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "misleading_evidence",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.evidence = _checks.choice("MisleadingEvidence", "evidence", evidence, _EVIDENCE)

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return ``misleading_evidence`` of each example; teacher and ``temperature`` are ignored."""
        arguments.check_pair("MisleadingEvidence", teacher_logits, student_logits)
        return misleading_evidence(student_logits=student_logits, labels=labels, evidence=self.evidence, mask=mask)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "evidence": self.evidence}
