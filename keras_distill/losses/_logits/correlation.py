"""Correlation of the two models' probabilities, within examples and within classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._base import LogitsTwin
from keras_distill.losses._numerics import arguments, row_blocks
from keras_distill.losses._numerics.distributions import inputs, log_softmax

# Below this fraction of the squared mean, the variance of float32 probabilities is mostly rounding error.
_LEAST_VARIANCE = 1e-10
_LONG = 1024  # a mean over more entries than this leaves an offset, so the mean is subtracted a second time


def _mean_correlation(p: Tensor, q: Tensor, axis: int, weight: Tensor, along: Any) -> Tensor:
    """Return the mean Pearson correlation of p and q along ``axis``, weighting entries and vectors (``along``)."""
    total = ops.sum(weight, axis=axis, keepdims=True)

    def centred(x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted deviations from the mean, and the sum of the squared means."""
        mean = ops.divide_no_nan(ops.sum(weight * x, axis=axis, keepdims=True), total)
        apart = weight * (x - mean)
        if x.shape[axis] is None or x.shape[axis] > _LONG:
            apart = weight * (apart - ops.divide_no_nan(ops.sum(apart, axis=axis, keepdims=True), total))
        return apart, ops.sum(total * ops.square(mean), axis=axis)

    (p, level_p), (q, level_q) = centred(p), centred(q)
    of_p, of_q, of_both = (ops.sum(x, axis=axis) for x in (ops.square(p), ops.square(q), p * q))
    each = _correlation(of_p, of_q, of_both, level_p, level_q)
    return ops.divide_no_nan(ops.sum(each * along), ops.sum(along))


def _correlation(of_p: Any, of_q: Any, of_both: Any, level_p: Any, level_q: Any) -> Tensor:
    """Return Pearson's correlation from the centred sums of p * p, q * q and p * q; 0 for a constant vector.

    Args:
        of_p: centred sum of p * p.
        of_q: centred sum of q * q.
        of_both: centred sum of p * q.
        level_p: number of entries times the squared mean of p, the scale against which p counts as constant.
        level_q: the same for q.
    """
    norms = _norm(of_p, level_p) * _norm(of_q, level_q)
    dead = ops.equal(norms, 0.0)  # not `norms > 0`, which would hide a NaN
    return ops.where(dead, 0.0, of_both / ops.where(dead, 1.0, norms))


def _norm(squares: Any, level: Any) -> Tensor:
    squares = ops.maximum(squares, ops.stop_gradient(_LEAST_VARIANCE * level))
    # The derivative of the square root is infinite at 0, where no correlation is defined.
    dead = ops.equal(squares, 0.0)
    return ops.where(dead, 0.0, ops.sqrt(ops.where(dead, 1.0, squares)))


def _scale(p: Tensor, kept: Tensor) -> Tensor:
    """Return each class's largest kept probability, (classes,), as a scale: squares of tiny ones underflow float32."""
    top = ops.stop_gradient(ops.max(kept * p, axis=0))
    return ops.where(top > 0, top, 1.0)


class _Columns(NamedTuple):
    """Running statistics of each class over the rows seen so far, (classes,) each except the count."""

    count: Any  # number of rows, ()
    scale_p: Any  # p is divided by it
    scale_q: Any
    mean_p: Any
    mean_q: Any
    of_p: Any  # centred sums of p * p, q * q, p * q
    of_q: Any
    of_both: Any


def _merged(before: _Columns, p: Tensor, q: Tensor, kept: Tensor) -> _Columns:
    """Add a block of rows, (rows, classes), weighted by ``kept``, (rows, 1), and keep the sums centred."""
    count = ops.sum(kept)
    scale_p, scale_q = (
        ops.maximum(old, ops.max(kept * x, axis=0)) for old, x in ((before.scale_p, p), (before.scale_q, q))
    )
    down_p, down_q = before.scale_p / scale_p, before.scale_q / scale_q
    p, q = p / scale_p, q / scale_q
    mean_p, mean_q = (ops.divide_no_nan(ops.sum(kept * x, axis=0), count) for x in (p, q))
    p, q = kept * (p - mean_p), kept * (q - mean_q)
    total = before.count + count
    share = ops.divide_no_nan(count, total)
    old_p, old_q = down_p * before.mean_p, down_q * before.mean_q
    gap_p, gap_q, weight = mean_p - old_p, mean_q - old_q, before.count * share
    return _Columns(
        total,
        scale_p,
        scale_q,
        old_p + share * gap_p,
        old_q + share * gap_q,
        ops.square(down_p) * before.of_p + ops.sum(ops.square(p), axis=0) + weight * ops.square(gap_p),
        ops.square(down_q) * before.of_q + ops.sum(ops.square(q), axis=0) + weight * ops.square(gap_q),
        down_p * down_q * before.of_both + ops.sum(p * q, axis=0) + weight * gap_p * gap_q,
    )


def _in_blocks(
    student: Tensor, temperature: Tensor, mask: Tensor, teacher: Tensor, weights: tuple[float, float], rows: int
) -> Tensor:
    """Return the loss divided by temperature**2 for many classes, without a second tensor as large as the logits.

    The first pass collects the statistics of each class over all rows and the correlation within each row. Given these,
    the gradient is that of a sum over rows, which the second pass computes block by block. The means need no gradient,
    because centred sums do not depend on them.
    """
    leading = arguments.leading_shape(student)
    learned = () if isinstance(temperature, float) else (ops.broadcast_to(temperature, leading),)
    masks = () if mask is None else (mask,)
    inter_weight, intra_weight = weights

    def seen(student: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        (teacher, *masks), column = (rest[:-1], rest[-1][:, None]) if learned else (rest, temperature)
        keep = masks[0] if masks else None
        p, q = (
            ops.exp(log_softmax(arguments.clean(arguments.float32(logits), keep), column))
            for logits in (teacher, student)
        )
        return p, q, ops.ones_like(q[:, :1]) if keep is None else ops.cast(keep[:, None], "float32")

    def within_rows(p: Tensor, q: Tensor) -> Tensor:
        level = 1.0 / p.shape[1]  # probabilities sum to 1
        for _ in range(2):  # the mean of so many entries leaves an offset
            p, q = (x - ops.mean(x, axis=1, keepdims=True) for x in (p, q))
        of_p, of_q, of_both = (ops.sum(x, axis=1) for x in (ops.square(p), ops.square(q), p * q))
        return _correlation(of_p, of_q, of_both, level, level)

    def collect(state: tuple[Any, Any], *block: Any) -> tuple[Tensor, Tensor]:
        p, q, kept = seen(*block)
        return state[0] + ops.sum(kept[:, 0] * (1.0 - within_rows(p, q))), _merged(state[1], p, q, kept)

    @ops.custom_gradient
    def compute(student: Tensor, *column: Any) -> Tensor:
        # Gradients are stopped so that an eager tape keeps no intermediates.
        parts = (student, teacher, *masks, *column)
        still = tuple(map(ops.stop_gradient, parts))
        zero, empty = ops.zeros(()), ops.zeros((student.shape[-1],))
        least = empty + 1e-37  # a scale must not be 0
        start = _Columns(zero, least, least, *(empty,) * 5)
        apart, columns = row_blocks.fold(collect, (zero, start), still, rows, leading)
        of_p, of_q, of_both = columns[5:]
        levels = tuple(columns.count * ops.square(mean) for mean in (columns.mean_p, columns.mean_q))
        intra = ops.mean(1.0 - _correlation(of_p, of_q, of_both, *levels))
        inter = ops.divide_no_nan(apart, columns.count)

        def grad(*args: Any, upstream: Tensor = None) -> tuple[Tensor, ...]:
            upstream = args[0] if args else upstream
            per_row = -inter_weight * ops.divide_no_nan(1.0, columns.count)
            # The gradient of the mean correlation of the classes with respect to the three sums.
            _, *slope = row_blocks.with_slopes(
                lambda *sums: ops.mean(_correlation(*sums, *levels)), (of_p, of_q, of_both)
            )
            by_p, by_q, by_both = (-intra_weight * each for each in slope)

            def linear(*block: Any) -> Tensor:
                p, q, kept = seen(*block)
                u, v = p / columns.scale_p - columns.mean_p, q / columns.scale_q - columns.mean_q
                each = by_p * ops.square(u) + by_q * ops.square(v) + by_both * u * v
                return kept[:, 0] * (per_row * within_rows(p, q) + ops.sum(each, axis=1))

            every = ops.broadcast_to(upstream, leading)
            to_student = row_blocks.pull_back(linear, every, (student,), parts[1:], rows, leading)
            if not learned:
                return to_student
            before = parts[:-1]
            return (
                *to_student,
                *row_blocks.pull_back(lambda t, *block: linear(*block, t), every, column, before, rows, leading),
            )

        return inter_weight * inter + intra_weight * intra, grad

    value = compute(student, *learned)
    return value if mask is None else ops.where(ops.any(mask), value, 0.0)


def class_correlation(
    *,
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    mask: Tensor = None,
) -> Tensor:
    """One minus the correlation of the probabilities, per example and per class (DIST, from a stronger teacher).

    Choose it when the teacher is much stronger than the student: it matches relations, not exact values. It sees only
    the local batch; below 32 examples the correlation within classes carries little information.

    Formula: temperature**2 * (inter_weight * (1 - mean_i r(p_i, q_i)) + intra_weight * (1 - mean_k r(p_k, q_k))), r =
    Pearson's correlation, p_i an example's probabilities, p_k a class's over the batch. A constant vector has r = 0; r
    falls to 0 for a spread below 1e-5 of the mean, which float32 cannot tell from rounding error.

    Args:
        teacher_logits: (..., classes), float; all leading positions are examples. No gradient reaches it.
        student_logits: same shape and meaning.
        temperature: > 0; a number or a scalar tensor.
        inter_weight: >= 0, weight of the correlation within each example.
        intra_weight: >= 0, weight of the correlation within each class.
        mask: (...,) bool or None; masked positions are left out.

    Returns:
        A scalar, float32. About 0 (1e-6) when the distributions are equal.

    Raises:
        ValueError: if the shapes differ, or temperature or weights are out of bounds.

    Example:
        >>> import numpy as np
        >>> logits = np.log([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
        >>> round(float(class_correlation(teacher_logits=logits, student_logits=logits)), 4)
        0.0

    Reference:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536, eq. 5-9.
        Differs: nothing from the paper. The authors' code adds 1e-8 to each product of norms, which pulls correlations
        of small probabilities towards 0: with 1000 classes and 3 examples the value is 1% too large.
    """
    owner = "class_correlation"
    inter_weight = _checks.number(owner, "inter_weight", inter_weight, low=0.0)
    intra_weight = _checks.number(owner, "intra_weight", intra_weight, low=0.0)
    teacher, student, t, mask = inputs(owner, teacher_logits, student_logits, temperature, mask)
    if not isinstance(t, float) and len(t.shape) > 0:
        raise _checks.error(owner, "one temperature for the batch", f"shape {tuple(t.shape)}")
    rows = row_blocks.rows_per_block(student)
    if rows is not None:
        return t**2 * _in_blocks(student, t, mask, teacher, (inter_weight, intra_weight), rows)

    def all_rows(student: Tensor, t: Tensor, teacher: Tensor) -> Tensor:
        p, q = (ops.reshape(ops.exp(log_softmax(logits, t)), (-1, student.shape[-1])) for logits in (teacher, student))
        kept = ops.ones_like(q[:, :1]) if mask is None else ops.cast(ops.reshape(mask, (-1, 1)), "float32")
        inter = 1.0 - _mean_correlation(p, q, 1, ops.ones_like(q), kept[:, 0])
        p, q = (x / _scale(x, kept) for x in (p, q))
        intra = 1.0 - _mean_correlation(p, q, 0, kept * ops.ones_like(q), ops.ones_like(q[0]))
        scale = (t if isinstance(t, float) else t[0]) ** 2
        return ops.where(ops.sum(kept) > 0, scale * (inter_weight * inter + intra_weight * intra), 0.0)

    return row_blocks.all_in_one_pass(lambda s, t, x: row_blocks.at_once(all_rows, s, t, mask, x), student, t, teacher)


@keras.saving.register_keras_serializable(package="keras_distill")
class ClassCorrelation(LogitsTwin):
    """Class twin of ``class_correlation`` (DIST); see that function.

    Args:
        inter_weight: >= 0.
        intra_weight: >= 0.
        reduction: as in ``keras.losses.Loss``; the value is already a scalar.
        name: as in ``keras.losses.Loss``.

    Raises:
        ValueError: if a weight is negative.
    """

    needs_batch = True

    def __init__(
        self,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "class_correlation",
    ) -> None:
        super().__init__(
            class_correlation,
            reduction,
            name,
            inter_weight=_checks.number("ClassCorrelation", "inter_weight", inter_weight, low=0.0),
            intra_weight=_checks.number("ClassCorrelation", "intra_weight", intra_weight, low=0.0),
        )
