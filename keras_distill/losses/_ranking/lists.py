"""Listwise losses: the likelihood of the teacher's order under the student's scores."""

from __future__ import annotations

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._ranking import order


def list_mle(
    *, teacher_logits: Tensor, student_logits: Tensor, top_k: int | None = None, mask: Tensor = None
) -> Tensor:
    """Negative log-likelihood of the teacher's order under the student's scores (ListMLE, Plackett-Luce).

    Choose it for lists whose whole order matters. If only the top matters, pass top_k; for very long lists of mostly
    irrelevant items, ``relaxed_ranking`` or ``rank_distil`` cost less.

    Formula: sum over positions k of log(sum_{i >= k} exp(s_i)) - s_k, s the student's scores in descending order of
    the teacher's; the first top_k positions only, if given. Equal teacher scores keep the order of the list.

    Args:
        teacher_logits: (..., items), the teacher's scores; only their order counts. -inf marks padding. No gradient
            reaches it.
        student_logits: same shape, the student's scores of the same items.
        top_k: number of positions from the top, or None for all.
        mask: None, (..., items) bool for items that exist, or (...,) bool for lists that count.

    Returns:
        (...,), float32, nats, one value per list. 0 for an empty list; NaN where a teacher's score is NaN.

    Raises:
        ValueError: if the shapes differ or top_k is below 1.

    Example:
        >>> from keras_distill import losses
        >>> value = losses.list_mle(teacher_logits=[[3.0, 2.0, 1.0]], student_logits=[[0.0, 0.0, 0.0]])
        >>> round(float(value[0]), 4)  # log 3 + log 2
        1.7918

    Reference:
        Xia et al., "Listwise Approach to Learning to Rank: Theory and Algorithm", ICML 2008, section 4.
        Differs: nothing. ``keras_rs.losses.ListMLELoss`` is the same for labels >= 0; it treats others as padding.
    """
    top_k = None if top_k is None else _checks.integer("list_mle", "top_k", top_k, low=1)
    teacher, student, exists, whole = order.lists("list_mle", teacher_logits, student_logits, mask)
    scores, there = order.sorted_by(teacher, None, student, exists)
    if top_k is None:
        values = order.whole_order_cost(scores, there)
    else:
        rest = order.log_sum(scores[..., top_k:], there[..., top_k:]) if _longer(scores, top_k) else None
        rest = ops.full_like(scores[..., 0], order.FAR) if rest is None else rest
        values = order.order_cost(scores[..., :top_k], there[..., :top_k], rest)
    return order.finished(values, teacher, exists, whole)


def _longer(scores: Tensor, top_k: int) -> bool:
    return scores.shape[-1] is None or scores.shape[-1] > top_k


@keras.saving.register_keras_serializable(package="keras_distill")
class ListMLE(LogitsTwin, order.RankingLoss):
    """Class twin of ``list_mle`` (Plackett-Luce likelihood of the teacher's order); see that function.

    Args:
        top_k: number of positions from the top, or None for all.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if top_k is below 1.
    """

    def __init__(
        self,
        top_k: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "list_mle",
    ) -> None:
        super().__init__(
            list_mle,
            reduction,
            name,
            top_k=None if top_k is None else _checks.integer("ListMLE", "top_k", top_k, low=1),
        )


def rank_distil(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    top_k: int = 10,
    num_items: int | None = None,
    mask: Tensor = None,
) -> Tensor:
    """Likelihood of the order of the teacher's top items, above a sample of all others (RankDistil).

    Choose it when a catalogue is too large to score as a whole: build each list from the teacher's top_k items and some
    sampled ones, and pass the size of the catalogue as num_items. Without num_items it is ``list_mle`` with top_k.

    Formula: sum over k < top_k of log(sum_{k <= i < top_k} exp(s_i) + c * sum_rest exp(s_j)) - s_k, s in the teacher's
    order, c = (num_items - top_k) / (items in the list - top_k): each sampled item stands for c items.

    Args:
        teacher_logits: (..., items), the teacher's scores; -inf marks padding. No gradient reaches it.
        student_logits: same shape, the student's scores of the same items.
        top_k: >= 1, number of the teacher's best items that are put in order.
        num_items: None, or the number of items in the catalogue; the items of a list after its top_k are then taken as
            a uniform sample of all others.
        mask: None, (..., items) bool for items that exist, or (...,) bool for lists that count.

    Returns:
        (...,), float32, nats, one value per list. 0 for an empty list; NaN where a teacher's score is NaN.

    Raises:
        ValueError: if the shapes differ, top_k is below 1, or num_items is smaller than the list.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[9.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]]
        >>> value = losses.rank_distil(teacher_logits=teacher, student_logits=student, top_k=1, num_items=101)
        >>> round(float(value[0]), 4)  # log(1 + 50 * 2)
        4.6151

    Reference:
        Reddi et al., "RankDistil: Knowledge Distillation for Ranking", AISTATS 2021. Differs: the teacher's own order
        replaces orders drawn from its distribution, and sampled items represent the unlisted ones.
    """
    owner = "rank_distil"
    top_k = _checks.integer(owner, "top_k", top_k, low=1)
    teacher, student, exists, whole = order.lists(owner, teacher_logits, student_logits, mask)
    items = student.shape[-1]
    if num_items is not None:
        advice = "Count the whole catalogue, including the items of the list"
        num_items = _checks.integer(owner, "num_items", num_items, low=items or 1, advice=advice)
    scores, there = order.sorted_by(teacher, None, student, exists)
    rest = ops.full_like(scores[..., 0], order.FAR)
    if _longer(scores, top_k):
        others = there[..., top_k:]
        rest = order.log_sum(scores[..., top_k:], others)
        if num_items is not None:
            sampled = ops.sum(ops.cast(others, "float32"), axis=-1)
            rest = rest + ops.log(float(max(num_items - top_k, 1)) / ops.maximum(sampled, 1.0))
    values = order.order_cost(scores[..., :top_k], there[..., :top_k], rest)
    return order.finished(values, teacher, exists, whole)


@keras.saving.register_keras_serializable(package="keras_distill")
class RankDistil(LogitsTwin, order.RankingLoss):
    """Class twin of ``rank_distil`` (top of the list against sampled items); see that function.

    Args:
        top_k: >= 1.
        num_items: None, or the size of the catalogue from which the lists are sampled.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if top_k or num_items is below 1.
    """

    def __init__(
        self,
        top_k: int = 10,
        num_items: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "rank_distil",
    ) -> None:
        super().__init__(
            rank_distil,
            reduction,
            name,
            top_k=_checks.integer("RankDistil", "top_k", top_k, low=1),
            num_items=None if num_items is None else _checks.integer("RankDistil", "num_items", num_items, low=1),
        )
