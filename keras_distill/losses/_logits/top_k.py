"""Soft targets from the teacher's k likeliest classes."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsLoss
from keras_distill.losses._logits.soft_targets import KERNEL
from keras_distill.losses._numerics import arguments, log_ratio, row_blocks
from keras_distill.losses._numerics.distributions import inputs, per_row

_MISSING = ("spread", "ignore")
_TAIL = (*_MISSING, "tail")  # "tail" is for losses only: it needs the student as well


def from_top_k(values: Tensor, indices: Tensor, classes: int, missing: str = "spread") -> Tensor:
    """Return dense logits of a teacher from its k likeliest classes.

    Args:
        values: (..., k), log-probabilities at temperature 1: logits minus their log-sum-exp over all classes.
        indices: (..., k), integer classes, each once.
        classes: total number of classes.
        missing: "spread" distributes the mass that was not kept evenly over the other classes (marginal smoothing);
            "ignore" makes the others impossible and renormalises the kept ones (marginal re-norm).

    Returns:
        (..., classes), float32 log-probabilities; -inf for classes that cannot occur.

    Raises:
        ValueError: if k is larger than the number of classes, the shapes differ, or the kept mass is known to exceed 1.

    Example:
        >>> import numpy as np
        >>> np.exp(from_top_k(np.log([[0.5, 0.25]]), [[2, 0]], 4)).round(3)
        array([[0.25 , 0.125, 0.5  , 0.125]], dtype=float32)

    Reference:
        Shen, Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022, arXiv:2112.01528,
        section 3.2. Differs: log-probabilities, so that a temperature can follow.
    """
    classes = _checks.integer("from_top_k", "classes", classes, low=1)
    missing = _checks.choice("from_top_k", "missing", missing, _MISSING)
    values, indices = _checked("from_top_k", values, indices, classes)
    return _dense(values, indices, classes, missing)


def _checked(owner: str, values: Tensor, indices: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return checked ``values`` as float32 and ``indices`` as int32, or raise."""
    values, indices = arguments.float32(values), arguments.integers(owner, "indices", indices)
    if len(values.shape) == 0:
        raise _checks.error(owner, "values of rank >= 1", f"shape {tuple(values.shape)}")
    k = values.shape[-1]
    if tuple(values.shape) != tuple(indices.shape):
        raise _checks.error(owner, "values and indices of one shape", f"{tuple(values.shape)}, {tuple(indices.shape)}")
    if k > classes:
        raise _checks.error(owner, f"k of at most {classes} classes", k)
    known = arguments.concrete(ops.sum(ops.exp(values), axis=-1))
    if known is not None and (known > 1.0 + 1e-2).any():
        advice = "Give log-probabilities: logits minus their log-sum-exp over all classes"
        raise _checks.error(owner, "kept probabilities that sum to at most 1", f"a sum of {known.max():.4g}", advice)
    return values, indices


def _dense(values: Tensor, indices: Tensor, classes: int, missing: str) -> Tensor:
    kept = ops.minimum(ops.sum(ops.exp(values), axis=-1, keepdims=True), 1.0)
    if missing == "spread" and values.shape[-1] < classes:
        rest = ops.log(ops.maximum((1.0 - kept) / (classes - values.shape[-1]), 1e-38))
    else:
        rest = ops.full_like(kept, -float("inf"))
    hot = ops.equal(indices[..., None], ops.arange(classes, dtype="int32"))
    dense = ops.sum(ops.where(hot, values[..., None], 0.0), axis=-2)
    return ops.where(ops.any(hot, axis=-2), dense, rest)


def top_k_soft_targets(
    *,
    teacher_logits: tuple[Any, Any],
    student_logits: Tensor,
    temperature: Tensor = 1.0,
    missing: str = "spread",
    mask: Tensor = None,
) -> Tensor:
    """Soft targets from the teacher's k likeliest classes (FKD, marginal smoothing), as stores keep them.

    Choose it for labels that are stored once (``teachers.label(top_k=...)``): k values and indices instead of all
    classes.

    Formula: soft_targets of the dense distribution that ``from_top_k`` returns. A temperature other than 1 acts on that
    distribution; it is exact only for the classes kept.

    Args:
        teacher_logits: (values, indices), each (..., k): log-probabilities at temperature 1, and integer classes.
        student_logits: (..., classes), float.
        temperature: as in ``soft_targets``.
        missing: how the mass that was not kept is treated: "spread" or "ignore", see ``from_top_k``; "tail" gives it to
            one extra class, for teacher and student alike, so that no distribution over the other classes is assumed.
            At temperature 1 this is a lower bound of the exact divergence.
        mask: as in ``soft_targets``.

    Returns:
        (...,), float32, nats, not reduced.

    Raises:
        ValueError: if teacher_logits is not a pair, k exceeds the number of classes, or the shapes do not fit.

    Example:
        >>> import numpy as np
        >>> kept = np.log([[0.5, 0.25]]), [[2, 0]]
        >>> student = np.log([[0.25, 0.125, 0.5, 0.125]])
        >>> abs(round(float(top_k_soft_targets(teacher_logits=kept, student_logits=student)[0]), 6))
        0.0

    Reference:
        Shen, Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022, arXiv:2112.01528,
        section 3.2. Differs: a divergence, zero at the match, where the paper uses a cross-entropy.
    """
    if not isinstance(teacher_logits, (tuple, list)) or len(teacher_logits) != 2:
        got = type(teacher_logits).__name__
        raise _checks.error("top_k_soft_targets", "teacher_logits to be a pair (values, indices)", got)
    owner = "top_k_soft_targets"
    missing = _checks.choice(owner, "missing", missing, _TAIL)
    student = arguments.floating(student_logits)
    if len(student.shape) == 0:
        raise _checks.error(owner, "student_logits of rank >= 1", f"shape {tuple(student.shape)}")
    values, indices = _checked(owner, *teacher_logits, student.shape[-1])
    arguments.check_same_shape(owner, values[..., :1], student[..., :1])
    t = arguments.temperature_like(owner, temperature, student)

    def rows(student: Tensor, t: Tensor, values: Tensor, indices: Tensor) -> Tensor:
        if missing == "tail":
            rest = ops.maximum(1.0 - ops.sum(ops.exp(values), axis=-1, keepdims=True), 1e-38)
            return _with_tail(values, ops.log(rest), indices, student, t)
        dense = _dense(values, indices, student.shape[-1], missing)
        return log_ratio.divergence(KERNEL, dense, student, per_row(t))

    mask = arguments.check_mask(owner, mask, student)
    return row_blocks.by_rows(rows, student, t, mask, ops.stop_gradient(values), indices)


def _with_tail(values: Tensor, rest: Tensor, indices: Tensor, student: Tensor, t: Tensor) -> Tensor:
    """Return the divergence over the kept classes and one class for all others, of log-mass ``rest``, (..., 1)."""
    classes = student.shape[-1]
    # Subtracting a common offset changes nothing, and a sum over logits of 1e4 would lose digits.
    student = student - ops.stop_gradient(ops.max(student, axis=-1, keepdims=True))
    mine = ops.take_along_axis(student, indices, axis=-1)
    if values.shape[-1] < classes:
        hot = ops.any(ops.equal(indices[..., None], ops.arange(classes, dtype="int32")), axis=-2)
        # A finite number, because with -inf the gradient is NaN if the student excludes all other classes.
        others = ops.logsumexp(ops.where(hot, -1e30, student), axis=-1, keepdims=True)
        values, mine = ops.concatenate([values, rest], axis=-1), ops.concatenate([mine, others], axis=-1)
    return log_ratio.divergence(KERNEL, values, mine, per_row(t))


def _top(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k largest logits, the log-sum-exp of the others, and the classes of the k largest."""
    if k > logits.shape[-1]:
        raise _checks.error("TopKSoftTargets", f"k of at most {logits.shape[-1]} classes", k)
    logits = logits - ops.max(logits, axis=-1, keepdims=True)
    values, indices = ops.top_k(logits, k)
    indices = ops.cast(indices, "int32")
    hot = ops.any(ops.equal(indices[..., None], ops.arange(logits.shape[-1], dtype="int32")), axis=-2)
    return values, ops.logsumexp(ops.where(hot, -1e30, logits), axis=-1, keepdims=True), indices


def _kept(logits: Tensor, k: int, missing: str) -> Tensor:
    """Like ``from_top_k`` of the k largest logits, but with the remaining mass summed instead of subtracted from 1."""
    classes = logits.shape[-1]
    if k > classes:
        raise _checks.error("TopKSoftTargets", f"k of at most {classes} classes", k)
    logits = logits - ops.max(logits, axis=-1, keepdims=True)
    hot = ops.equal(ops.top_k(logits, k)[1][..., None], ops.arange(classes, dtype="int32"))
    hot = ops.any(hot, axis=-2)
    if missing == "ignore" or k == classes:
        return ops.where(hot, logits, -float("inf"))
    others = ops.where(hot, -float("inf"), logits)
    return ops.where(hot, logits, ops.logsumexp(others, axis=-1, keepdims=True) - math.log(classes - k))


@keras.saving.register_keras_serializable(package="keras_distill")
class TopKSoftTargets(LogitsLoss):
    """Class twin of ``top_k_soft_targets`` (FKD); takes a (values, indices) pair, or the top k of dense logits.

    Args:
        k: >= 1, number of classes kept from dense teacher logits.
        missing: "spread", "ignore" or "tail"; see ``top_k_soft_targets``. "tail" gives a store of the same k its value.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if k is below 1 (or, when called, above the number of classes), or missing is unknown.
    """

    def __init__(
        self,
        k: int = 5,
        missing: str = "spread",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "top_k_soft_targets",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.k = _checks.integer("TopKSoftTargets", "k", k, low=1)
        self.missing = _checks.choice("TopKSoftTargets", "missing", missing, _TAIL)

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return ``top_k_soft_targets`` for each example; ``labels`` are ignored."""
        if not isinstance(teacher_logits, (tuple, list)):
            teacher, student, t, mask = inputs("TopKSoftTargets", teacher_logits, student_logits, temperature, mask)

            def rows(student: Tensor, t: Tensor, teacher: Tensor) -> Tensor:
                if self.missing == "tail":
                    return _with_tail(*_top(teacher, self.k), student, t)
                dense = _kept(teacher, self.k, self.missing)
                return log_ratio.divergence(KERNEL, dense, student, per_row(t))

            return row_blocks.by_rows(rows, student, t, mask, teacher)
        return top_k_soft_targets(
            teacher_logits=(teacher_logits[0], teacher_logits[1]),
            student_logits=student_logits,
            temperature=temperature,
            missing=self.missing,
            mask=mask,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "k": self.k, "missing": self.missing}
