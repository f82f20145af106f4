"""Soft targets from many teachers: from their mean, or from each to a head of its own; and checks of members."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsLoss, LogitsTwin
from keras_distill.losses._logits.soft_targets import SoftTargets, soft_targets
from keras_distill.losses._numerics import arguments
from keras_distill.losses._numerics.distributions import log_softmax


def check_members(owner: str, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Return members (without gradient) and student as float32, after checking that axis 1 holds members."""
    teacher, student = ops.stop_gradient(arguments.float32(teacher)), arguments.float32(student)
    if len(teacher.shape) != len(student.shape) + 1 or len(student.shape) < 2:
        got = f"{tuple(teacher.shape)} for a student of {tuple(student.shape)}"
        advice = "Use teachers.Ensemble, teachers.MonteCarloDropout or a store of their members"
        raise _checks.error(owner, "teacher members of shape (batch, members, ..., classes)", got, advice)
    return teacher, student


def tempered(temperature: Tensor, axes: int) -> Tensor:
    """Append ``axes`` axes to a temperature of shape (...,); a float is returned unchanged."""
    return temperature if isinstance(temperature, float) else temperature[(..., *([None] * axes))]


def log_members(members: Tensor, temperature: Tensor) -> Tensor:
    """Return each member's log-probabilities at the student's temperature, a float, () or (batch, ...)."""
    if isinstance(temperature, float):
        return log_softmax(members, temperature)
    if len(temperature.shape):  # one per position of the student; axis 1 of the members is the members' axis
        temperature = ops.expand_dims(temperature, 1)
    return log_softmax(members, temperature[..., None])


def mean_log(logs: Any) -> Tensor:
    """Return the logarithm of the members' mean distribution."""
    top = ops.max(logs, axis=1, keepdims=True)
    top = ops.where(ops.isinf(top), 0.0, top)
    return ops.log(ops.mean(ops.exp(logs - top), axis=1)) + top[:, 0]


def ensemble_soft_targets(
    *, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor = 1.0, mask: Tensor = None
) -> Tensor:
    """Soft targets from the mean of an ensemble's distributions (EnD, ensemble distillation).

    Choose it for the ensemble's accuracy and total uncertainty in one model; the members' disagreement is lost.
    ``LogitsDistillation`` does the same with any loss for ``teachers.Ensemble(combine="mean_probs")``; this function
    takes the members themselves. To keep the disagreement see ``dirichlet_distillation`` and ``proxy_dirichlet``.

    Formula: temperature**2 * KL(mean_m p^m || q), p^m = softmax(member / temperature), each tempered before the mean.

    Args:
        teacher_logits: (batch, members, ..., classes), float. No gradient reaches it.
        student_logits: (batch, ..., classes), float.
        temperature: as in ``soft_targets``, relative to the student's leading shape.
        mask: (batch, ...) bool or None, as in ``soft_targets``.

    Returns:
        (batch, ...), float32, nats, not reduced. Zero exactly where the student equals the mean.

    Raises:
        ValueError: if there are no members, the shapes differ, or temperature is not a positive number.

    Example:
        >>> import numpy as np
        >>> members, student = np.log([[[0.9, 0.1], [0.5, 0.5]]]), np.log([[0.7, 0.3]])  # the student is their mean
        >>> abs(round(float(ensemble_soft_targets(teacher_logits=members, student_logits=student)[0]), 6))
        0.0

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531; named EnD in
        Malinin, Mlodozeniec, Gales, "Ensemble Distribution Distillation", ICLR 2020, arXiv:1905.00076, eq. 7.
        Differs: nothing.
    """
    owner = "ensemble_soft_targets"
    members, student = check_members(owner, teacher_logits, student_logits)
    temperature = arguments.temperature_like(owner, temperature, student)
    return soft_targets(
        teacher_logits=tempered(temperature, 1) * mean_log(log_members(members, temperature)),
        student_logits=student,
        temperature=temperature,
        mask=mask,
    )


def member_soft_targets(
    *, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor = 1.0, mask: Tensor = None
) -> Tensor:
    """Soft targets from each member of an ensemble to a head of its own (Hydra), averaged over the heads.

    Choose it when the student can afford a small head per member on a shared body (``students.hydra``): the heads keep
    the members' disagreement. Monitor the heads' mutual information: on too strong a body they become alike.

    Formula: mean over members m of temperature**2 * KL(p^m || q^m), p^m, q^m = softmax(logits / temperature).

    Args:
        teacher_logits: (batch, members, ..., classes), float. No gradient reaches it.
        student_logits: same shape: head m copies member m.
        temperature: > 0: a number, or a tensor of shape (), (batch,) or (batch, 1).
        mask: (batch, ...) bool or None: positions that count, the same for all heads.

    Returns:
        (batch, ...), float32, nats, not reduced. Zero exactly where every head equals its member.

    Raises:
        ValueError: if the shapes differ, there is no members' axis, or temperature is not a positive number.

    Example:
        >>> import numpy as np
        >>> members, heads = np.log([[[0.5, 0.5], [0.9, 0.1]]]), np.log([[[0.25, 0.75], [0.9, 0.1]]])
        >>> value = member_soft_targets(teacher_logits=members, student_logits=heads)
        >>> round(float(value[0]), 4)  # (0.1438 + 0) / 2
        0.0719

    Reference:
        Tran et al., "Hydra: Preserving Ensemble Diversity for Model Distillation", 2020, arXiv:2001.04694, eq. 3.
        Differs: nothing.
    """
    owner = "member_soft_targets"
    members, heads = arguments.check_pair(owner, teacher_logits, student_logits)
    if len(heads.shape) < 3:
        expected = "student heads of shape (batch, members, ..., classes)"
        raise _checks.error(owner, expected, tuple(heads.shape), "Build the student with students.hydra")
    mask = arguments.check_mask(owner, mask, heads[:, 0])
    if mask is not None:
        mask = ops.broadcast_to(ops.expand_dims(mask, 1), arguments.leading_shape(heads))
    values = soft_targets(teacher_logits=members, student_logits=heads, temperature=temperature, mask=mask)
    return ops.mean(values, axis=1)


@keras.saving.register_keras_serializable(package="keras_distill")
class EnsembleSoftTargets(LogitsTwin):
    """Class twin of ``ensemble_soft_targets`` (EnD); see that function.

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
    """

    needs_members = True

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = "ensemble_soft_targets"
    ) -> None:
        super().__init__(ensemble_soft_targets, reduction, name)


@keras.saving.register_keras_serializable(package="keras_distill")
class MemberSoftTargets(LogitsTwin):
    """Class twin of ``member_soft_targets`` (Hydra); see that function.

    Args:
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.
    """

    needs_members = True

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = "member_soft_targets") -> None:
        super().__init__(member_soft_targets, reduction, name)


@keras.saving.register_keras_serializable(package="keras_distill")
class TrustWeighted(LogitsLoss):
    """Any loss on logits, weighted by the teacher's certainty: times 1 - uncertainty / log(classes).

    Choose it when the teacher errs mostly where it is uncertain and labels are available there. An example on which the
    teacher is maximally uncertain has weight 0, one on which it is certain has weight 1. The weights depend on the
    teacher only, so the student cannot lower its loss through them.

    Formula: (1 - u / log(classes)) * loss, u of the teacher at temperature 1: "total": entropy of its (mean)
    distribution; "knowledge": total minus the members' mean entropy, for ensembles.

    Args:
        loss: a ``LogitsLoss`` with one value per example; None means ``SoftTargets()``.
        kind: "total" works with any teacher; "knowledge" needs members, and passes their mean to a loss that does not
            take members.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if loss is not a loss on logits or needs the whole batch, or kind is unknown.

    Example:
        >>> import numpy as np
        >>> teacher = np.log([[0.5, 0.5], [1 - 1e-30, 1e-30]])  # knows nothing; is certain
        >>> student = np.log([[0.25, 0.75], [0.25, 0.75]])
        >>> np.round(TrustWeighted().values(teacher, student), 4)  # second: log 4
        array([0.    , 1.3863], dtype=float32)

    Reference:
        Weights by the teacher's entropy, as in Kwon et al., "Adaptive knowledge distillation based on entropy", ICASSP
        2020. Differs: weights one teacher against the labels; the paper weights teachers against each other.
    """

    def __init__(
        self,
        loss: LogitsLoss | None = None,
        kind: str = "total",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "trust_weighted",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        loss = keras.saving.deserialize_keras_object(loss) if isinstance(loss, dict) else loss
        self.loss = SoftTargets() if loss is None else loss
        if not isinstance(self.loss, LogitsLoss) or self.loss.needs_batch:
            raise _checks.error("TrustWeighted", "a loss on logits with one value per example", type(loss).__name__)
        self.kind = _checks.choice("TrustWeighted", "kind", kind, ("total", "knowledge"))
        self.needs_members = self.kind == "knowledge" or self.loss.needs_members
        self.needs_labels = self.loss.needs_labels
        self.same_outputs = self.loss.same_outputs

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return the weighted values of ``loss``."""
        teacher = ops.stop_gradient(arguments.float32(teacher_logits))
        mask = arguments.check_mask("TrustWeighted", mask, teacher[:, 0] if self.needs_members else teacher)
        trust = self._trust(teacher, mask)
        if self.needs_members and not self.loss.needs_members:
            members, student = check_members("TrustWeighted", teacher, student_logits)
            temperature = arguments.temperature_like("TrustWeighted", temperature, student)
            teacher = tempered(temperature, 1) * mean_log(log_members(members, temperature))
        return trust * self.loss.values(teacher, student_logits, temperature=temperature, labels=labels, mask=mask)

    def _trust(self, teacher: Tensor, mask: Tensor) -> Tensor:
        classes = teacher.shape[-1]
        if classes is None or classes < 2:
            raise _checks.error("TrustWeighted", "at least 2 classes", f"{classes}")
        if self.needs_members and len(teacher.shape) < 3:
            check_members("TrustWeighted", teacher, teacher)
        if mask is not None:
            teacher = arguments.clean(teacher, ops.expand_dims(mask, 1) if self.needs_members else mask)
        logs = log_softmax(teacher)
        unsure = _entropy(mean_log(logs) if self.needs_members else logs)
        if self.kind == "knowledge":
            unsure = ops.maximum(unsure - ops.mean(_entropy(logs), axis=1), 0.0)
        return ops.stop_gradient(1.0 - ops.minimum(unsure / math.log(classes), 1.0))

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        loss = keras.saving.serialize_keras_object(self.loss)
        return {**super().get_config(), "loss": loss, "kind": self.kind}


def _entropy(logs: Any) -> Tensor:
    probabilities = ops.exp(logs)
    return -ops.sum(ops.where(probabilities == 0.0, 0.0, probabilities * logs), axis=-1)
