"""Relaxed ranking: interesting items in the teacher's order, uninteresting ones anywhere below them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._numerics import arguments
from keras_distill.losses._ranking import order


def relaxed_order(*, interesting: Any, uninteresting: Any) -> Tensor:
    """Negative log-likelihood of a relaxed order, from the student's scores of both kinds of items (RRD).

    ``relaxed_ranking`` chooses the items from whole lists; this function takes items that are already chosen.

    Formula: sum_k log(sum_{i >= k} exp(interesting_i) + sum_j exp(uninteresting_j)) - interesting_k.

    Args:
        interesting: (..., k), the student's scores, in descending order of the teacher's.
        uninteresting: (..., n), the student's scores, in any order.

    Returns:
        (...,), float32, nats, one value per list.

    Raises:
        ValueError: if the leading shapes differ.

    Example:
        >>> from keras_distill import losses
        >>> round(float(losses.relaxed_order(interesting=[[0.0]], uninteresting=[[0.0, 0.0]])[0]), 4)  # log 3
        1.0986

    Reference:
        Kang et al., "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020, arXiv:2012.04357,
        eq. 7. Differs: nothing; the reference sums over the users of a batch.
    """
    interesting, uninteresting = (arguments.float32(x) for x in (interesting, uninteresting))
    if 0 in (len(interesting.shape), len(uninteresting.shape)):
        raise _checks.error("relaxed_order", "lists of scores", "a number")
    if tuple(interesting.shape)[:-1] != tuple(uninteresting.shape)[:-1]:
        got = f"{tuple(interesting.shape)} and {tuple(uninteresting.shape)}"
        raise _checks.error("relaxed_order", "equally many lists of both kinds", got)
    rest = ops.logsumexp(uninteresting, axis=-1)
    return order.order_cost(interesting, ops.ones_like(interesting, dtype="bool"), rest)


def relaxed_ranking(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor = None,
    num_interesting: int = 40,
    num_uninteresting: int | None = 40,
    rank_temperature: float | None = 10.0,
    seed: Any = None,
    mask: Tensor = None,
) -> Tensor:
    """Teacher's order among sampled interesting items, above sampled uninteresting ones (RRD, relaxed ranking).

    Choose it for catalogues: it ignores the order of items that no user will see. Its weight beside the loss on the
    user's own items is small, 1e-3 in the reference, because it sums over the interesting items.

    Formula: ``relaxed_order`` of num_interesting items, drawn without replacement with probability proportional to
    exp(-rank / rank_temperature) of the teacher's rank and sorted by it, and num_uninteresting items drawn uniformly
    from the others. A list of at most num_interesting + num_uninteresting items is assumed to be sampled already: the
    teacher's best num_interesting items are the interesting ones, all others uninteresting.

    Args:
        teacher_logits: (..., items), the teacher's scores; -inf marks padding. No gradient reaches it.
        student_logits: same shape, the student's scores of the same items.
        labels: the user's own items, which are excluded; as in ``ranked_items``.
        num_interesting: >= 1.
        num_uninteresting: >= 1, or None for all others.
        rank_temperature: > 0, in ranks; None takes the best num_interesting items, without drawing.
        seed: an integer or ``keras.random.SeedGenerator`` for the drawn items.
        mask: None, (..., items) bool for items that exist, or (...,) bool for lists that count.

    Returns:
        (...,), float32, nats, one value per list. 0 for an empty list; NaN where a teacher's score is NaN.

    Raises:
        ValueError: if the shapes differ, an item is out of range, or an option does not fit.

    Example:
        >>> from keras_distill import losses
        >>> teacher, student = [[9.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]]
        >>> value = losses.relaxed_ranking(teacher_logits=teacher, student_logits=student, num_interesting=1)
        >>> round(float(value[0]), 4)  # log 3
        1.0986

    Reference:
        Kang et al., "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020, arXiv:2012.04357,
        section 4.2. Differs: items are drawn in each step, not in each epoch.
    """
    owner = "relaxed_ranking"
    num_interesting = _checks.integer(owner, "num_interesting", num_interesting, low=1)
    teacher, student, exists, whole = order.lists(owner, teacher_logits, student_logits, mask)
    own = order.seen_items(owner, labels, student)
    if own is not None:
        exists = ops.logical_and(exists, ops.logical_not(own))
        teacher = ops.where(exists, teacher, -float("inf"))
    scores, there = order.sorted_by(teacher, None, student, exists)
    items = scores.shape[-1]
    sampled_before = num_uninteresting is None or (items is not None and items <= num_interesting + num_uninteresting)
    if sampled_before and (rank_temperature is None or num_uninteresting is not None):
        chosen, kept = scores[..., :num_interesting], there[..., :num_interesting]
        below = items is None or items > num_interesting
        rest = order.log_sum(scores[..., num_interesting:], there[..., num_interesting:]) if below else None
    else:
        interesting, uninteresting = _draws(
            ops.stop_gradient(scores), there, num_interesting, num_uninteresting, rank_temperature, seed
        )
        # The drawn items in the teacher's order, smallest positions first.
        position = ops.where(interesting, -ops.arange(ops.shape(scores)[-1], dtype="float32"), -float("inf"))
        chosen, kept = order.sorted_by(position, num_interesting, scores, interesting)
        rest = order.log_sum(scores, uninteresting)
    rest = ops.full_like(scores[..., 0], order.FAR) if rest is None else rest
    return order.finished(order.order_cost(chosen, kept, rest), teacher, exists, whole)


def _draws(
    scores: Tensor, there: Any, k: int, n: int | None, temperature: float | None, seed: Any
) -> tuple[Tensor, Tensor]:
    """Return two (..., items) masks over lists in the teacher's order: the interesting and the uninteresting items."""
    shape = ops.shape(scores)
    if temperature is None:
        keys = -ops.arange(shape[-1], dtype="float32") * ops.ones_like(scores)
    else:
        temperature = _checks.number("relaxed_ranking", "rank_temperature", temperature, above=0.0)
        # The k largest of log-probability + Gumbel noise are k draws without replacement.
        keys = -ops.arange(shape[-1], dtype="float32") / temperature + _gumbel(shape, seed)
    interesting = _largest(keys, there, k)
    others = ops.logical_and(there, ops.logical_not(interesting))
    # An integer seed does not advance, so the second draw needs another one.
    second = seed + 1 if isinstance(seed, int) else seed
    return interesting, others if n is None else _largest(_gumbel(shape, second), others, n)


def _gumbel(shape: Any, seed: Any) -> Tensor:
    return -ops.log(-ops.log(keras.random.uniform(shape, 1e-30, 1.0, seed=seed)))


def _largest(keys: Any, allowed: Any, count: int) -> Tensor:
    """Return a mask of the ``count`` allowed entries with the largest keys."""
    keys = ops.where(allowed, keys, -float("inf"))
    items = keys.shape[-1]
    if items is not None and items <= count:
        return allowed
    least = ops.top_k(keys, count)[0][..., -1:]
    return ops.logical_and(allowed, keys >= least)


@keras.saving.register_keras_serializable(package="keras_distill")
class RelaxedRanking(order.RankingLoss):
    """Class twin of ``relaxed_ranking`` (RRD); see that function.

    Args:
        num_interesting: >= 1.
        num_uninteresting: >= 1, or None for all others.
        rank_temperature: > 0, in ranks; None takes the best items, without drawing.
        exclude_labels: whether the items in ``labels`` are excluded.
        seed: >= 0, seed for drawing items.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if an option does not fit.
    """

    def __init__(
        self,
        num_interesting: int = 40,
        num_uninteresting: int | None = 40,
        rank_temperature: float | None = 10.0,
        exclude_labels: bool = True,
        seed: int = 0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "relaxed_ranking",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        owner = "RelaxedRanking"
        self.num_interesting = _checks.integer(owner, "num_interesting", num_interesting, low=1)
        if num_uninteresting is not None:
            _checks.integer(owner, "num_uninteresting", num_uninteresting, low=1)
        self.num_uninteresting = num_uninteresting
        if rank_temperature is not None:
            rank_temperature = _checks.number(owner, "rank_temperature", rank_temperature, above=0.0)
        self.rank_temperature = rank_temperature
        self.exclude_labels = bool(exclude_labels)
        self.seed = _checks.integer(owner, "seed", seed, low=0)
        if self.num_uninteresting is not None or self.rank_temperature is not None:
            self.seed_generator = keras.random.SeedGenerator(self.seed)

    def check_labels(self, labels: np.ndarray, shape: tuple[int | None, ...]) -> None:
        """Raise ``ValueError`` if an item is out of range."""
        order.check_items(type(self).__name__, labels, shape)

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Tensor = 1.0,
        labels: Tensor = None,
        mask: Tensor = None,
    ) -> Tensor:
        """Return ``relaxed_ranking`` of each list; ``temperature`` is ignored."""
        return relaxed_ranking(
            teacher_logits=teacher_logits,
            student_logits=student_logits,
            labels=labels if self.exclude_labels else None,
            num_interesting=self.num_interesting,
            num_uninteresting=self.num_uninteresting,
            rank_temperature=self.rank_temperature,
            seed=self.seed if self.seed_generator is None else self.seed_generator,
            mask=mask,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        names = ("num_interesting", "num_uninteresting", "rank_temperature", "exclude_labels", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
