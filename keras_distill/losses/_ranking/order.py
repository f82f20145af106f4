"""Helpers shared by the ranking losses: lists in the teacher's order, and the likelihood of an order."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsLoss
from keras_distill.losses._numerics import arguments

FAR = -1e30  # replaces -inf where gradients flow: exp(FAR - x) is 0, but FAR - FAR is not NaN


class RankingLoss(LogitsLoss):
    """Base of the losses on lists: the last axes of teacher and student hold the scores of the same items.

    The term's temperature is ignored unless the loss documents otherwise, because an order has none.
    """

    needs_lists = True


def lists(owner: str, teacher: Tensor, student: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check the arguments that all ranking losses share.

    Args:
        owner: name shown in the error message.
        teacher: (..., items); -inf marks padding.
        student: same shape.
        mask: None, (..., items) bool for items or (...,) bool for whole lists.

    Returns:
        Teacher (without gradient) and student, float32; (..., items) bool of the items that exist; the mask of whole
        lists or None. The student's scores are 0 where an item does not exist, so that garbage there gets no gradient.
    """
    teacher, student = arguments.check_pair(owner, teacher, student, "scores")
    exists = ops.not_equal(teacher, -float("inf"))
    whole = None
    if mask is not None:
        mask = ops.cast(ops.convert_to_tensor(mask), "bool")
        if len(mask.shape) == len(student.shape):
            arguments.check_same_shape(owner, mask, student, "scores and mask")
            exists = ops.logical_and(exists, mask)
        else:
            whole = arguments.check_mask(owner, mask, student)
            exists = ops.logical_and(exists, whole[..., None])
    return ops.where(exists, teacher, -float("inf")), ops.where(exists, student, 0.0), exists, whole


def finished(values: Tensor, teacher: Tensor, exists: Any, whole: Any) -> Tensor:
    """Return one value per list: NaN where the teacher's order is undefined, 0 where the list is empty or masked."""
    unknown = ops.any(ops.logical_and(exists, ops.isnan(teacher)), axis=-1)
    values = ops.where(unknown, float("nan"), values)
    return arguments.apply_mask(ops.where(ops.any(exists, axis=-1), values, 0.0), whole)


def sorted_by(keys: Any, count: int | None, *tensors: Any) -> list[Any]:
    """Return the first ``count`` entries of each tensor in descending order of ``keys`` (last axis), stable in ties."""
    items = keys.shape[-1] if keys.shape[-1] is not None else ops.shape(keys)[-1]
    count = items if count is None else ops.minimum(count, items) if keys.shape[-1] is None else min(count, items)
    index = ops.top_k(keys, count)[1]
    return [ops.take_along_axis(tensor, index, axis=-1) for tensor in tensors]


def log_sum(scores: Tensor, kept: Tensor) -> Tensor:
    """Return the log-sum-exp of the scores of the kept items; about ``FAR`` if there are none."""
    return ops.logsumexp(ops.where(kept, scores, FAR), axis=-1)


def _log_add(a: Tensor, b: Tensor) -> Tensor:
    """Return log(exp(a) + exp(b)); unlike ``ops.logaddexp``, with the correct gradient where both are equal."""
    top = ops.stop_gradient(ops.maximum(a, b))
    return top + ops.log(ops.exp(a - top) + ops.exp(b - top))


def order_cost(scores: Tensor, exists: Any, rest: Any) -> Tensor:
    """Negative log-likelihood of an order under the Plackett-Luce model, followed by unordered items.

    Args:
        scores: (..., k), the student's, best item first.
        exists: (..., k) bool.
        rest: (...,) log-sum-exp of the scores of the items that follow.

    Returns:
        (...,): the sum over the k positions of log(sum of exp over the items from here on and the rest) - score.
    """
    k = scores.shape[-1] if scores.shape[-1] is not None else ops.shape(scores)[-1]
    position = ops.arange(k)
    later = ops.less_equal(position[:, None], position[None, :])
    each = ops.where(ops.logical_and(later, exists[..., None, :]), scores[..., None, :], FAR)
    from_here_on = _log_add(ops.logsumexp(each, axis=-1), rest[..., None])
    return ops.sum(ops.where(exists, from_here_on - scores, 0.0), axis=-1)


def whole_order_cost(scores: Tensor, exists: Any) -> Tensor:
    """Return ``order_cost`` of a whole list, in memory proportional to its length if that is known."""
    if scores.shape[-1] is None:
        return order_cost(scores, exists, ops.full_like(scores[..., 0], FAR))
    from_here_on, reach = ops.where(exists, scores, FAR), 1
    while reach < scores.shape[-1]:  # each pass doubles the number of following items summed into an entry
        further = ops.full_like(from_here_on[..., :reach], FAR)
        from_here_on = _log_add(from_here_on, ops.concatenate([from_here_on[..., reach:], further], axis=-1))
        reach *= 2
    return ops.sum(ops.where(exists, from_here_on - scores, 0.0), axis=-1)


def check_items(owner: str, labels: np.ndarray, shape: Any) -> None:
    """Raise ``ValueError`` if an item index is out of range for scores of this shape."""
    items = shape[-1]
    marks = labels.ndim == len(shape) and labels.shape[-1] == items
    if not marks and labels.size and items is not None and labels.max() >= items:
        advice = "Item indices start at 0; negative ones are padding"
        raise _checks.error(owner, f"items from 0 to {items - 1}", int(labels.max()), advice)


def seen_items(owner: str, labels: Tensor, scores: Tensor) -> Tensor:
    """Return (..., items) bool of the items that ``labels`` name, or None without labels.

    Args:
        owner: name shown in the error message.
        labels: None; or the shape of ``scores``, where non-zero marks an item; or integer item indices, (...,) or
            (..., n), negative for padding.
        scores: (..., items).

    Raises:
        ValueError: if an item index is known to be out of range, or the shape does not fit.
    """
    if labels is None:
        return None
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == len(scores.shape) and labels.shape[-1] == scores.shape[-1]:
        return ops.not_equal(labels, 0)
    if len(labels.shape) == len(scores.shape) - 1:
        labels = labels[..., None]
    if len(labels.shape) != len(scores.shape):
        advice = "Give item indices, or one number per item, non-zero for the user's own items"
        raise _checks.error(owner, f"labels of shape {tuple(scores.shape)[:-1]} and more", tuple(labels.shape), advice)
    known = arguments.concrete(labels)
    if known is not None:
        check_items(owner, known, scores.shape)
    labels = ops.cast(labels, "int32")
    return ops.any(ops.equal(labels[..., None], ops.arange(ops.shape(scores)[-1], dtype="int32")), axis=-2)
