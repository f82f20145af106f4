"""Targets from a teacher that chooses actions: its Q-values, or the logits of its policy."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._logits.soft_targets import soft_targets
from keras_distill.losses._numerics import arguments

_TARGETS = ("kl", "nll", "mse")


def policy_targets(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: float = 0.01,
    target: str = "kl",
    mask: Tensor = None,
) -> Tensor:
    """Divergence from a teacher's action values to a student's policy (policy distillation).

    Choose "kl" first. "nll" uses only the teacher's best action; "mse" makes the student a Q-network of the same
    scale and is the weakest if only the order of the actions matters. For continuous actions compare means and
    log-variances with ``gaussian_kl``.

    Formula: "kl": KL(softmax(teacher / temperature) || softmax(student)); "nll": -log softmax(student) at the
    teacher's greatest value; "mse": sum over actions of (teacher - student)**2. The temperature sharpens the teacher
    alone, and the value is not multiplied by its square.

    Args:
        teacher_logits: (..., actions), Q-values or policy logits; -inf marks an action that is not allowed. No
            gradient reaches it.
        student_logits: (..., actions), logits of the student's policy (for "mse": its Q-values).
        temperature: > 0, in units of the teacher's values: choose it small compared with the differences between good
            actions. 0.01 suits Q-values of clipped rewards; 1.0 leaves the logits of a policy unchanged.
        target: "kl", "nll" or "mse".
        mask: (...,) bool or None, as in ``soft_targets``.

    Returns:
        (...,), float32, not reduced; nats for "kl" and "nll".

    Raises:
        ValueError: if the shapes differ, temperature is not above 0, or target is unknown.

    Example:
        >>> from keras_distill import losses
        >>> value = losses.policy_targets(teacher_logits=[[1.0, 0.0]], student_logits=[[0.0, 0.0]])
        >>> round(float(value[0]), 4)  # the teacher is sure: log 2
        0.6931

    Reference:
        Rusu et al., "Policy Distillation", ICLR 2016, arXiv:1511.06295, eq. 1 to 3. Differs: nothing.
    """
    owner = "policy_targets"
    advice = "Use 1.0 for the teacher's values as they are"
    temperature = _checks.number(owner, "temperature", temperature, above=0.0, advice=advice)
    _checks.choice(owner, "target", target, _TARGETS)
    teacher, student = arguments.check_pair(owner, teacher_logits, student_logits, "action values")
    mask = arguments.check_mask(owner, mask, student)
    teacher, student = arguments.clean(teacher, mask), arguments.clean(student, mask)
    allowed = ops.not_equal(teacher, -float("inf"))
    if target == "kl":
        # Subtracting the maximum before dividing preserves differences between large Q-values.
        top = ops.max(teacher, axis=-1, keepdims=True)
        sharp = ops.where(allowed, (ops.where(allowed, teacher, top) - top) / temperature, -float("inf"))
        values = soft_targets(teacher_logits=sharp, student_logits=student)
    elif target == "nll":
        best = ops.one_hot(ops.argmax(teacher, axis=-1), teacher.shape[-1], dtype="bool")
        top = ops.max(student, axis=-1, keepdims=True)
        below = student - ops.stop_gradient(top)
        values = ops.log(ops.sum(ops.exp(below), axis=-1)) - ops.sum(ops.where(best, below, 0.0), axis=-1)
    else:
        gaps = ops.where(allowed, student - ops.where(allowed, teacher, student), 0.0)
        values = ops.sum(ops.square(gaps), axis=-1)
    return arguments.apply_mask(values, mask)


@keras.saving.register_keras_serializable(package="keras_distill")
class PolicyTargets(LogitsTwin):
    """Class twin of ``policy_targets`` (policy distillation); see that function.

    It has its own temperature; the term's temperature, which would also soften the student, is ignored.

    Args:
        temperature: > 0, in units of the teacher's values; applies to the teacher only.
        target: "kl", "nll" or "mse".
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if temperature is not above 0, or target is unknown.
    """

    def __init__(
        self,
        temperature: float = 0.01,
        target: str = "kl",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "policy_targets",
    ) -> None:
        advice = "Use 1.0 for the teacher's values as they are"
        super().__init__(
            policy_targets,
            reduction,
            name,
            temperature=_checks.number("PolicyTargets", "temperature", temperature, above=0.0, advice=advice),
            target=_checks.choice("PolicyTargets", "target", target, _TARGETS),
        )
