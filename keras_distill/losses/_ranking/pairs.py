"""Pairwise losses: which of two items the teacher prefers."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._numerics import arguments
from keras_distill.losses._numerics.distributions import bernoulli_kl
from keras_distill.losses._ranking import order

_TARGETS = ("order", "probability")
_REDUCTIONS = ("sum", "mean")


def rank_net(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor = 1.0,
    targets: str = "order",
    top_k: int | None = None,
    pair_reduction: str = "sum",
    mask: Tensor = None,
) -> Tensor:
    """Logistic loss over the pairs of items that the teacher orders (RankNet).

    Choose it for short lists in which every preference counts equally. Memory grows with top_k times items; for the top
    of a long list choose ``rank_distil`` or ``relaxed_ranking``.

    Formula: sum over pairs with teacher_i > teacher_j of log(1 + exp(-(student_i - student_j))); with
    targets="probability" of temperature**2 * KL(Bernoulli(sigmoid((teacher_i - teacher_j) / temperature)) ||
    Bernoulli(sigmoid((student_i - student_j) / temperature))).

    Args:
        teacher_logits: (..., items), the teacher's scores; -inf marks padding. No gradient reaches it.
        student_logits: same shape, the student's scores of the same items.
        temperature: > 0, as in ``soft_targets``; used only with targets="probability".
        targets: "order" (which item is preferred) or "probability" (by how much; zero if all differences agree).
        top_k: None for all pairs; otherwise only pairs whose better item is among the teacher's top_k.
        pair_reduction: "sum" over the pairs of a list, or "mean".
        mask: None, (..., items) bool for items that exist, or (...,) bool for lists that count.

    Returns:
        (...,), float32, nats, one value per list. 0 for a list without pairs.

    Raises:
        ValueError: if the shapes differ or an option is unknown.

    Example:
        >>> from keras_distill import losses
        >>> value = losses.rank_net(teacher_logits=[[2.0, 1.0]], student_logits=[[0.0, 0.0]])
        >>> round(float(value[0]), 4)  # log 2
        0.6931

    Reference:
        Burges et al., "Learning to Rank using Gradient Descent", ICML 2005, eq. 3. Differs: the teacher's scores define
        the preferences; equal scores form no pair.
    """
    owner = "rank_net"
    _checks.choice(owner, "targets", targets, _TARGETS)
    _checks.choice(owner, "pair_reduction", pair_reduction, _REDUCTIONS)
    top_k = None if top_k is None else _checks.integer(owner, "top_k", top_k, low=1)
    teacher, student, exists, whole = order.lists(owner, teacher_logits, student_logits, mask)
    known = ops.where(exists, teacher, 0.0)
    head, head_exists, head_student = order.sorted_by(teacher, top_k, known, exists, student)
    both = ops.logical_and(head_exists[..., :, None], exists[..., None, :])
    preferred = ops.logical_and(both, head[..., :, None] > known[..., None, :])
    gaps = head_student[..., :, None] - student[..., None, :]
    if targets == "order":
        each = ops.softplus(-gaps)
    else:
        heard = head[..., :, None] - known[..., None, :]
        t = arguments.temperature_like(owner, temperature, student)
        t = t if isinstance(t, float) or len(t.shape) == 0 else t[..., None, None]
        each = t**2 * bernoulli_kl(heard / t, gaps / t, (gaps - heard) / t)
    values = ops.sum(ops.where(preferred, each, 0.0), axis=(-2, -1))
    if pair_reduction == "mean":
        values = values / ops.maximum(ops.sum(ops.cast(preferred, "float32"), axis=(-2, -1)), 1.0)
    return order.finished(values, teacher, exists, whole)


@keras.saving.register_keras_serializable(package="keras_distill")
class RankNet(LogitsTwin, order.RankingLoss):
    """Class twin of ``rank_net`` (pairs of items); see that function.

    Args:
        targets: "order" or "probability".
        top_k: None, or the number of the teacher's best items that are compared with all.
        pair_reduction: "sum" or "mean".
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if an option is unknown, or top_k is below 1.
    """

    def __init__(
        self,
        targets: str = "order",
        top_k: int | None = None,
        pair_reduction: str = "sum",
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "rank_net",
    ) -> None:
        super().__init__(
            rank_net,
            reduction,
            name,
            targets=_checks.choice("RankNet", "targets", targets, _TARGETS),
            top_k=None if top_k is None else _checks.integer("RankNet", "top_k", top_k, low=1),
            pair_reduction=_checks.choice("RankNet", "pair_reduction", pair_reduction, _REDUCTIONS),
        )
