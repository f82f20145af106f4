"""The teacher's top items as weighted positive examples."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._ranking import order

_WEIGHTINGS = ("static", "dynamic", "both")


def position_weights(*, top_k: int, position_decay: float = 1.0) -> Tensor:
    """Weights of the top positions, which sum to 1 (the static weights of ranking distillation).

    Formula: w_r proportional to exp(-r / position_decay).

    Args:
        top_k: >= 1, number of positions.
        position_decay: > 0, number of positions over which the weight falls by a factor e.

    Returns:
        (top_k,), float32.

    Raises:
        ValueError: if top_k is below 1, or position_decay is not above 0.

    Example:
        >>> from keras_distill import losses
        >>> losses.position_weights(top_k=5, position_decay=10.0).numpy().round(4)
        array([0.2419, 0.2188, 0.198 , 0.1792, 0.1621], dtype=float32)

    Reference:
        Tang, Wang, "Ranking Distillation", KDD 2018, arXiv:1809.07428, eq. 7. Differs: nothing.
    """
    top_k = _checks.integer("position_weights", "top_k", top_k, low=1)
    position_decay = _checks.number("position_weights", "position_decay", position_decay, above=0.0)
    return ops.softmax(-ops.arange(top_k, dtype="float32") / position_decay)


def ranked_items(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    labels: Tensor = None,
    top_k: int = 10,
    weighting: str = "static",
    position_decay: float = 1.0,
    dynamic_scale: float = 0.1,
    num_samples: int | None = 100,
    seed: Any = None,
    mask: Tensor = None,
) -> Tensor:
    """Pointwise loss that treats the teacher's top items as positives (RD, ranking distillation).

    Choose it beside the loss on the user's own items. Begin with weighting="static" and continue with "both" after some
    epochs: dynamic weights depend on the student's current rank of an item.

    Formula: sum_r w_r * -log sigmoid(student score of the teacher's r-th item). Static w_r: ``position_weights``.
    Dynamic: max(tanh(dynamic_scale * (rank - r)), 0), rank = floor(items * fraction of num_samples random items with a
    higher student score). "both": their product. No gradient reaches the weights.

    Args:
        teacher_logits: (..., items), the teacher's scores; -inf marks padding. No gradient reaches it.
        student_logits: same shape, the student's scores of the same items.
        labels: the user's own items, which are excluded from the teacher's top: a tensor of the shape of the scores
            (non-zero marks an item), or item indices (...,) or (..., n), negative for padding. None excludes nothing.
        top_k: >= 1, number of the teacher's items.
        weighting: "static", "dynamic" or "both".
        position_decay: > 0, see ``position_weights``.
        dynamic_scale: > 0, how fast a dynamic weight grows with the distance between the two ranks.
        num_samples: >= 1, number of items drawn to estimate a rank; None compares with all items, which is exact.
        seed: an integer or ``keras.random.SeedGenerator`` for the drawn items.
        mask: None, (..., items) bool for items that exist, or (...,) bool for lists that count.

    Returns:
        (...,), float32, nats, one value per list. 0 for a list without items; NaN where a teacher's score is NaN.

    Raises:
        ValueError: if the shapes differ, an item is out of range, or an option does not fit.

    Example:
        >>> from keras_distill import losses
        >>> value = losses.ranked_items(teacher_logits=[[1.0, 5.0]], student_logits=[[3.0, 0.0]], top_k=1)
        >>> round(float(value[0]), 4)  # -log sigmoid(0)
        0.6931

    Reference:
        Tang, Wang, "Ranking Distillation: Learning Compact Ranking Models With High Performance for Recommender
        System", KDD 2018, arXiv:1809.07428, eq. 6 to 9. Differs: nothing; the term sets the overall weight.
    """
    owner = "ranked_items"
    _checks.choice(owner, "weighting", weighting, _WEIGHTINGS)
    teacher, student, exists, whole = order.lists(owner, teacher_logits, student_logits, mask)
    own = order.seen_items(owner, labels, student)
    asked = teacher if own is None else ops.where(own, -float("inf"), teacher)
    candidates = exists if own is None else ops.logical_and(exists, ops.logical_not(own))
    scores, there = order.sorted_by(asked, top_k, student, candidates)
    k = scores.shape[-1] or ops.shape(scores)[-1]
    weights = ops.ones_like(scores)
    if weighting != "dynamic":
        decay = _checks.number(owner, "position_decay", position_decay, above=0.0)
        static = ops.where(there, -ops.arange(k, dtype="float32") / decay, order.FAR)
        weights = ops.softmax(static, axis=-1)
    if weighting != "static":
        dynamic_scale = _checks.number(owner, "dynamic_scale", dynamic_scale, above=0.0)
        ranks = _ranks(ops.stop_gradient(scores), ops.stop_gradient(student), exists, num_samples, seed)
        weights = weights * ops.relu(ops.tanh(dynamic_scale * (ranks - ops.arange(k, dtype="float32"))))
    values = ops.sum(ops.where(there, weights * ops.softplus(-scores), 0.0), axis=-1)
    return order.finished(values, teacher, exists, whole)


def _ranks(scores: Tensor, student: Tensor, exists: Any, num_samples: int | None, seed: Any) -> Tensor:
    """Return the number of items that the student scores above each of ``scores``, exact or estimated, as floats."""
    everything = ops.sum(ops.cast(exists, "float32"), axis=-1, keepdims=True)
    if num_samples is None:
        others, share = ops.where(exists, student, -float("inf")), 1.0 / ops.maximum(everything, 1.0)
    else:
        num_samples = _checks.integer("ranked_items", "num_samples", num_samples, low=1)
        # The existing items come first in this order, so that a uniform number below their count draws one of them.
        (first,) = order.sorted_by(ops.cast(exists, "float32"), None, student)
        shape = (*tuple(ops.shape(student))[:-1], num_samples)
        index = ops.floor(keras.random.uniform(shape, seed=seed) * everything)
        index = ops.cast(ops.minimum(index, ops.maximum(everything - 1.0, 0.0)), "int32")
        others, share = ops.take_along_axis(first, index, axis=-1), 1.0 / num_samples
    above = ops.cast(scores[..., :, None] < others[..., None, :], "float32")
    # The small addition keeps rounding from lowering the floor by a whole rank.
    return ops.floor(everything * ops.sum(above, axis=-1) * share + 1e-3)


@keras.saving.register_keras_serializable(package="keras_distill")
class RankedItems(order.RankingLoss):
    """Class twin of ``ranked_items`` (RD, ranking distillation); see that function.

    Args:
        top_k: >= 1, number of the teacher's items.
        weighting: "static", "dynamic" or "both".
        position_decay: > 0, number of positions over which a static weight falls by a factor e.
        dynamic_scale: > 0.
        num_samples: >= 1, or None for exact ranks.
        exclude_labels: whether the items in ``labels`` are excluded from the teacher's top.
        seed: >= 0, seed for drawing items.
        reduction: as in ``keras.losses.Loss``.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if an option does not fit.
    """

    def __init__(
        self,
        top_k: int = 10,
        weighting: str = "static",
        position_decay: float = 1.0,
        dynamic_scale: float = 0.1,
        num_samples: int | None = 100,
        exclude_labels: bool = True,
        seed: int = 0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "ranked_items",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        owner = "RankedItems"
        self.top_k = _checks.integer(owner, "top_k", top_k, low=1)
        self.weighting = _checks.choice(owner, "weighting", weighting, _WEIGHTINGS)
        self.position_decay = _checks.number(owner, "position_decay", position_decay, above=0.0)
        self.dynamic_scale = _checks.number(owner, "dynamic_scale", dynamic_scale, above=0.0)
        self.num_samples = None if num_samples is None else _checks.integer(owner, "num_samples", num_samples, low=1)
        self.exclude_labels = bool(exclude_labels)
        self.seed = _checks.integer(owner, "seed", seed, low=0)
        if self.weighting != "static" and self.num_samples is not None:
            self.seed_generator = keras.random.SeedGenerator(self.seed)

    def check_labels(self, labels: np.ndarray, shape: tuple[int | None, ...]) -> None:
        """Raise ``ValueError`` if an item is out of range."""
        if self.exclude_labels:
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
        """Return ``ranked_items`` of each list; ``temperature`` is ignored."""
        return ranked_items(
            teacher_logits=teacher_logits,
            student_logits=student_logits,
            labels=labels if self.exclude_labels else None,
            top_k=self.top_k,
            weighting=self.weighting,
            position_decay=self.position_decay,
            dynamic_scale=self.dynamic_scale,
            num_samples=self.num_samples,
            seed=self.seed if self.seed_generator is None else self.seed_generator,
            mask=mask,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        names = ("top_k", "weighting", "position_decay", "dynamic_scale", "num_samples", "exclude_labels", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
