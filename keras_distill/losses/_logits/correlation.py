"""Correlation of the two models' probabilities, within examples and within classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import _checks
from keras_distill.losses._base import LogitsLoss
from keras_distill.losses._numerics import arguments, row_blocks
from keras_distill.losses._numerics.distributions import inputs, log_softmax

_EPSILON = 1e-8


def _mean_correlation(p: Any, q: Any, axis: int, weight: Any, along: Any) -> Any:
    """Return the mean Pearson correlation of p and q along ``axis``; ``weight`` counts entries, ``along`` vectors."""
    total = ops.sum(weight, axis=axis, keepdims=True)
    p, q = (weight * (x - ops.divide_no_nan(ops.sum(weight * x, axis=axis, keepdims=True), total)) for x in (p, q))
    each = _correlation(*(ops.sum(x, axis=axis) for x in (ops.square(p), ops.square(q), p * q)))
    return ops.divide_no_nan(ops.sum(each * along), ops.sum(along))


def _correlation(of_p: Any, of_q: Any, of_both: Any) -> Any:
    """Return Pearson's correlation from the centred sums of p * p, q * q and p * q."""
    squares = of_p * of_q
    # The slope of a root is infinite at 0, where a constant vector has no correlation to speak of.
    norms = ops.where(squares > 0, ops.sqrt(ops.where(squares > 0, squares, 1.0)), 0.0)
    return of_both / (norms + _EPSILON)


class _Columns(NamedTuple):
    """What the rows seen so far say of each class, (classes,) each but for the count."""

    count: Any  # of rows, ()
    mean_p: Any
    mean_q: Any
    of_p: Any  # centred sums of p * p, q * q, p * q
    of_q: Any
    of_both: Any


def _merged(before: _Columns, p: Any, q: Any, kept: Any) -> _Columns:
    """Add a block of rows, (rows, classes), of which ``kept``, (rows, 1), count: the sums stay centred throughout."""
    count = ops.sum(kept)
    mean_p, mean_q = (ops.divide_no_nan(ops.sum(kept * x, axis=0), count) for x in (p, q))
    p, q = kept * (p - mean_p), kept * (q - mean_q)
    total = before.count + count
    share = ops.divide_no_nan(count, total)
    gap_p, gap_q, weight = mean_p - before.mean_p, mean_q - before.mean_q, before.count * share
    return _Columns(
        total,
        before.mean_p + share * gap_p,
        before.mean_q + share * gap_q,
        before.of_p + ops.sum(ops.square(p), axis=0) + weight * ops.square(gap_p),
        before.of_q + ops.sum(ops.square(q), axis=0) + weight * ops.square(gap_q),
        before.of_both + ops.sum(p * q, axis=0) + weight * gap_p * gap_q,
    )


def _in_blocks(student: Any, temperature: Any, mask: Any, teacher: Any, weights: tuple[float, float], rows: int) -> Any:
    """Return the loss over temperature**2 of very many classes, without a second tensor of the logits' size.

    Two passes: one collects what is known of each class over all rows, and the correlation within each row. With these
    numbers the value's gradient is that of a sum over rows, which the second pass takes block by block; the means need
    no gradient, because centred sums do not change with them.
    """
    leading = arguments.leading_shape(student)
    learned = () if isinstance(temperature, float) else (ops.broadcast_to(temperature, leading),)
    masks = () if mask is None else (mask,)
    inter_weight, intra_weight = weights

    def seen(student: Any, *rest: Any) -> tuple[Any, Any, Any]:
        (teacher, *masks), column = (rest[:-1], rest[-1][:, None]) if learned else (rest, temperature)
        keep = masks[0] if masks else None
        p, q = (
            ops.exp(log_softmax(arguments.clean(arguments.float32(logits), keep), column))
            for logits in (teacher, student)
        )
        return p, q, ops.ones_like(q[:, :1]) if keep is None else ops.cast(keep[:, None], "float32")

    def within_rows(p: Any, q: Any) -> Any:
        p, q = (x - ops.mean(x, axis=1, keepdims=True) for x in (p, q))
        return _correlation(*(ops.sum(x, axis=1) for x in (ops.square(p), ops.square(q), p * q)))

    def collect(state: tuple[Any, Any], *block: Any) -> tuple[Any, Any]:
        p, q, kept = seen(*block)
        return state[0] + ops.sum(kept[:, 0] * (1.0 - within_rows(p, q))), _merged(state[1], p, q, kept)

    @ops.custom_gradient
    def compute(student: Any, *column: Any) -> Any:
        # Stopped, so that an eager tape keeps none of what is inside.
        parts = (student, teacher, *masks, *column)
        still = tuple(map(ops.stop_gradient, parts))
        zero, empty = ops.zeros(()), ops.zeros((student.shape[-1],))
        apart, columns = row_blocks.fold(collect, (zero, _Columns(zero, *(empty,) * 5)), still, rows, leading)
        of_p, of_q, of_both = columns[3:]
        inter, intra = ops.divide_no_nan(apart, columns.count), ops.mean(1.0 - _correlation(of_p, of_q, of_both))

        def grad(*args: Any, upstream: Any = None) -> tuple[Any, ...]:
            upstream = args[0] if args else upstream
            per_row = -inter_weight * ops.divide_no_nan(1.0, columns.count)
            # How the mean correlation of the classes answers to each of the three sums.
            _, *slope = row_blocks.with_slopes(lambda *sums: ops.mean(_correlation(*sums)), (of_p, of_q, of_both))
            by_p, by_q, by_both = (-intra_weight * each for each in slope)

            def linear(*block: Any) -> Any:
                p, q, kept = seen(*block)
                u, v = p - columns.mean_p, q - columns.mean_q
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
    teacher_logits: Any,
    student_logits: Any,
    temperature: Any = 1.0,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    mask: Any = None,
) -> Any:
    """One minus the correlation of the probabilities, per example and per class (DIST, from a stronger teacher).

    Choose it when the teacher is much stronger than the student: relations are asked for, not exact values. It sees the
    local batch only; below 32 examples the part within classes says little.

    Formula: temperature**2 * (inter_weight * (1 - mean_i r(p_i, q_i)) + intra_weight * (1 - mean_k r(p_k, q_k))), r =
    Pearson's correlation, p_i an example's probabilities, p_k a class' over the batch; 1e-8 added to products of norms.

    Args:
        teacher_logits: (..., classes), float; all leading positions are examples. No gradient reaches it.
        student_logits: same shape and meaning.
        temperature: > 0; a number or a scalar tensor.
        inter_weight: >= 0, of the correlation within each example.
        intra_weight: >= 0, of the correlation within each class.
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
        Differs: nothing.
    """
    owner = "class_correlation"
    inter_weight = _checks.number(owner, "inter_weight", inter_weight, low=0.0)
    intra_weight = _checks.number(owner, "intra_weight", intra_weight, low=0.0)
    teacher, student, t, mask = inputs(owner, teacher_logits, student_logits, temperature, mask)
    if not isinstance(t, float) and len(t.shape) > 0:
        raise _checks.error(owner, "one temperature for the batch", f"shape {tuple(temperature.shape)}")
    rows = row_blocks.rows_per_block(student)
    if rows is not None:
        return t**2 * _in_blocks(student, t, mask, teacher, (inter_weight, intra_weight), rows)

    def all_rows(student: Any, t: Any, teacher: Any) -> Any:
        p, q = (ops.reshape(ops.exp(log_softmax(logits, t)), (-1, student.shape[-1])) for logits in (teacher, student))
        kept = ops.ones_like(q[:, :1]) if mask is None else ops.cast(ops.reshape(mask, (-1, 1)), "float32")
        inter = 1.0 - _mean_correlation(p, q, 1, ops.ones_like(q), kept[:, 0])
        intra = 1.0 - _mean_correlation(p, q, 0, kept * ops.ones_like(q), ops.ones_like(q[0]))
        scale = (t if isinstance(t, float) else t[0]) ** 2
        return ops.where(ops.sum(kept) > 0, scale * (inter_weight * inter + intra_weight * intra), 0.0)

    return row_blocks.all_in_one_pass(lambda s, t, x: row_blocks.at_once(all_rows, s, t, mask, x), student, t, teacher)


@keras.saving.register_keras_serializable(package="keras_distill")
class ClassCorrelation(LogitsLoss):
    """Class twin of ``class_correlation`` (DIST), which explains it.

    Args:
        inter_weight: >= 0.
        intra_weight: >= 0.
        reduction: as in ``keras.losses.Loss``; the value is a scalar already.
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
        super().__init__(reduction=reduction, name=name)
        self.inter_weight = _checks.number("ClassCorrelation", "inter_weight", inter_weight, low=0.0)
        self.intra_weight = _checks.number("ClassCorrelation", "intra_weight", intra_weight, low=0.0)

    def values(
        self, teacher_logits: Any, student_logits: Any, *, temperature: Any = 1.0, labels: Any = None, mask: Any = None
    ) -> Any:
        """Return ``class_correlation`` of the batch; ``labels`` are not used."""
        return class_correlation(
            teacher_logits=teacher_logits,
            student_logits=student_logits,
            temperature=temperature,
            inter_weight=self.inter_weight,
            intra_weight=self.intra_weight,
            mask=mask,
        )

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs."""
        return {**super().get_config(), "inter_weight": self.inter_weight, "intra_weight": self.intra_weight}
