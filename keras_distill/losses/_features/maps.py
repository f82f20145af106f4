"""Helpers shared by the feature losses: checking a pair of feature tensors, pooling, masks, unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._numerics import arguments

_TINY = 1e-24  # a vector with a squared length below this is taken as zero


def pair(
    owner: str, teacher: Tensor, student: Tensor, *, ranks: Sequence[int] = (2, 3, 4), teacher_gradient: bool = False
) -> tuple[Tensor, Tensor]:
    """Return both tensors as float32, the teacher's without gradient.

    Args:
        owner: name shown in the error message.
        teacher: the teacher's features.
        student: the student's features.
        ranks: the allowed ranks, including the batch axis.
        teacher_gradient: True if the teacher's side has an embedding of its own to train.

    Returns:
        (teacher, student).

    Raises:
        ValueError: if a rank is not allowed, or the numbers of examples differ.
    """
    teacher, student = arguments.float32(teacher), arguments.float32(student)
    allowed = " or ".join(map(str, ranks))
    for side, tensor in (("teacher", teacher), ("student", student)):
        if len(tensor.shape) not in ranks:
            raise _checks.error(owner, f"{side}_features of rank {allowed}", f"shape {tuple(tensor.shape)}")
    count = teacher.shape[0], student.shape[0]
    if None not in count and count[0] != count[1]:
        raise _checks.error(owner, "features of as many examples on both sides", f"{count[0]} and {count[1]}")
    return teacher if teacher_gradient else ops.stop_gradient(teacher), student


def _is_list_of_tensors(side: Any) -> bool:
    """Distinguish a list of layers from one tensor written as nested lists."""
    return isinstance(side, (list, tuple)) and all(ops.is_tensor(each) or isinstance(each, np.ndarray) for each in side)


def matching(
    owner: str,
    teacher: Tensor,
    student: Tensor,
    *,
    ranks: Sequence[int] = (2, 3, 4),
    channels: bool = True,
    kind: str = "average",
) -> tuple[Tensor, Tensor]:
    """Return ``pair`` with the larger map pooled to the smaller one's size, axis by axis.

    Args:
        owner: name shown in the error message.
        teacher: (batch, ..., channels).
        student: same rank.
        ranks: the allowed ranks.
        channels: whether both must have equally many channels.
        kind: "average" or "max" pooling. Unknown sizes are taken as equal.

    Returns:
        (teacher, student), float32, of equal size in all axes between batch and channels.

    Raises:
        ValueError: if ranks differ or are not allowed, or channels differ.
    """
    teacher, student = pair(owner, teacher, student, ranks=ranks)
    ours, theirs = tuple(student.shape), tuple(teacher.shape)
    advice = "Give the term an adapter, for instance adapter='auto'"
    if len(ours) != len(theirs):
        raise _checks.error(owner, "teacher and student features of equal rank", f"shapes {theirs} and {ours}", advice)
    if channels and None not in (ours[-1], theirs[-1]) and ours[-1] != theirs[-1]:
        expected = "teacher and student features with equally many channels"
        raise _checks.error(owner, expected, f"{theirs[-1]} and {ours[-1]}", advice)
    size = [
        None if own is None or other is None else min(own, other)
        for own, other in zip(ours[1:-1], theirs[1:-1], strict=True)
    ]
    return pool(teacher, size, kind), pool(student, size, kind)


def lists(owner: str, teacher: Tensor, student: Tensor, *, least: int = 1) -> tuple[list[Any], list[Any]]:
    """Return both sides as equally long lists of layers; a single tensor is a list of one.

    Args:
        owner: name shown in the error message.
        teacher: a tensor or a list of tensors.
        student: a tensor or a list of tensors.
        least: minimum number of layers.

    Returns:
        (teacher's list, student's list).

    Raises:
        ValueError: if the lists differ in length or are too short.
    """
    layered = [
        isinstance(side, (list, tuple)) if least > 1 else _is_list_of_tensors(side) for side in (teacher, student)
    ]
    teachers, students = (
        list(side) if many else [side] for side, many in zip((teacher, student), layered, strict=True)
    )
    if len(teachers) != len(students) or len(teachers) < least:
        raise _checks.error(
            owner,
            f"lists of equally many (at least {least}) layers for teacher_features and student_features",
            f"{len(teachers)} and {len(students)}",
        )
    return teachers, students


def pool(features: Tensor, size: Sequence[int | None], kind: str = "average") -> Tensor:
    """Pool the axes between batch and channels adaptively to ``size``.

    Cell i of an axis of n cells covers positions floor(i * length / n) to ceil((i + 1) * length / n) - 1; windows
    overlap where n does not divide the length.

    Args:
        features: (batch, ..., channels).
        size: the new length of each of these axes; None keeps it.
        kind: "average" or "max".

    Returns:
        (batch, *size, channels).
    """
    for axis, cells in enumerate(size, start=1):
        length = features.shape[axis]
        if cells is None or length is None or length == cells:
            continue
        if length % cells == 0:
            shape = list(ops.shape(features))
            split = ops.reshape(features, [*shape[:axis], cells, length // cells, *shape[axis + 1 :]])
            features = ops.mean(split, axis=axis + 1) if kind == "average" else ops.max(split, axis=axis + 1)
        elif kind == "average":
            features = ops.tensordot(features, ops.convert_to_tensor(_windows(length, cells)), axes=[[axis], [1]])
            features = ops.moveaxis(features, -1, axis)
        else:
            inside = _windows(length, cells) > 0
            picked = [ops.max(ops.take(features, np.flatnonzero(row), axis=axis), axis=axis) for row in inside]
            features = ops.stack(picked, axis=axis)
    return features


def _windows(length: int, cells: int) -> np.ndarray:
    """Return the (cells, length) matrix that averages each cell's window."""
    start = np.arange(cells) * length // cells
    stop = -(-(np.arange(cells) + 1) * length // cells)
    position = np.arange(length)
    inside = (position >= start[:, None]) & (position < stop[:, None])
    return (inside / inside.sum(axis=1, keepdims=True)).astype("float32")


def flat(features: Tensor) -> Tensor:
    """Return the features of each example as one vector: (batch, everything)."""
    if len(features.shape) == 2:
        return features
    shape = ops.shape(features)
    count = 1
    for length in shape[1:]:
        count = count * length
    return ops.reshape(features, [shape[0], count])


def positions(features: Tensor) -> Tensor:
    """Return (batch, positions, channels), with the axes between batch and channels merged."""
    if len(features.shape) == 3:
        return features
    shape = ops.shape(features)
    count = 1
    for length in shape[1:-1]:
        count = count * length
    return ops.reshape(features, [shape[0], count, shape[-1]])


@ops.custom_gradient
def gram(features: Tensor) -> Tensor:
    """Return the inner products of all pairs of rows, (batch, batch); the gradient needs one product, not two."""

    def grad(*args: Any, upstream: Tensor = None) -> Tensor:
        (upstream,) = args or (upstream,)
        return ops.matmul(upstream + ops.transpose(upstream), features)

    return ops.matmul(features, ops.transpose(features)), grad


def unit(features: Tensor, axis: Any = -1, tiny: float = _TINY) -> Tensor:
    """Scale to length 1 along ``axis``; a vector of squared length <= ``tiny`` becomes zero and has a zero gradient."""
    squared = ops.sum(ops.square(features), axis=axis, keepdims=True)
    alive = squared > tiny
    return features * ops.where(alive, ops.rsqrt(ops.where(alive, squared, 1.0)), 0.0)


def length(difference: Tensor, axis: Any = -1) -> Tensor:
    """Return the length along ``axis``, with a zero gradient where it is zero."""
    squared = ops.sum(ops.square(difference), axis=axis)
    alive = squared > _TINY
    return ops.where(alive, ops.sqrt(ops.where(alive, squared, 1.0)), 0.0)


def cosine_gap(teacher: Tensor, student: Tensor) -> Tensor:
    """Return 1 - cosine along the last axis, exactly 0 for equal vectors and 1 if exactly one of them is zero."""
    left, right = unit(teacher), unit(student)
    gap = ops.sum(ops.square(right - left), axis=-1)  # 2 - 2 cosine, without its rounding near zero
    alive = ops.logical_and(ops.any(ops.not_equal(left, 0.0), axis=-1), ops.any(ops.not_equal(right, 0.0), axis=-1))
    return ops.where(alive, 0.5 * gap, gap)


def scaled(features: Tensor, axis: Any = None) -> Tensor:
    """Divide by the largest magnitude along ``axis``, so that squares neither overflow nor underflow.

    For scale-invariant losses only: the divisor gets no gradient, which is exact if a positive factor changes nothing.
    """
    top = ops.stop_gradient(ops.max(ops.abs(features), axis=axis, keepdims=True))
    return features / ops.where(top > 0.0, top, 1.0)


def smooth_l1(difference: Tensor) -> Tensor:
    """Return half the square up to 1, and the magnitude minus 1/2 beyond (Huber's function with delta 1)."""
    clipped = ops.clip(difference, -1.0, 1.0)
    return clipped * (difference - 0.5 * clipped)


def masked(owner: str, teacher: Tensor, student: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return both features with zeros at masked positions, and the mask as bool or None.

    Args:
        owner: name shown in the error message.
        teacher: (batch, ..., channels).
        student: (batch, ..., channels), the same positions.
        mask: the features' shape without the channels, or None.

    Returns:
        (teacher, student, mask).

    Raises:
        ValueError: if the mask does not have one entry per position of both.
    """
    mask = arguments.check_mask(owner, mask, student)
    mask = arguments.check_mask(owner, mask, teacher)
    return arguments.clean(teacher, mask), arguments.clean(student, mask), mask


def position_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average the values of each example's positions so that the mean over the batch is the mean over all positions.

    Args:
        values: (batch, ...), one value per position.
        mask: same shape, bool, or None. Unmasked positions are scaled by (positions / unmasked positions).

    Returns:
        (batch,). Zeros where the mask is all false.
    """
    values = arguments.apply_mask(values, mask)
    axes = tuple(range(1, len(values.shape)))
    return ops.mean(values, axis=axes) if axes else values
