"""Divergences between rows of logits, accurate in float32 and economical in memory for many classes.

Everything here works on log(q / p), computed from the difference of the logits themselves, so that its rounding error
is relative to its own size. Divergences are then sums of non-negative terms: nothing cancels, at any temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from keras_distill._typing import Tensor
from keras_distill.losses._numerics import arguments, row_blocks

# (exp(x) - 1 - x) / x**2 for |x| <= NEAR: a Chebyshev fit of degree 6, relative error below 3e-8.
NEAR = 0.75
_SERIES = (2.5113472e-05, 0.00020114328, 0.001388779, 0.0083325636, 0.04166668, 0.16666672, 0.5)
LONG, LANES = 1024, 128  # from LONG classes on, sums are taken in two steps, with LANES partial sums in between


class Constants(NamedTuple):
    """Per-row constants from which ``pair_again`` rebuilds a Pair without new sums: every entry (..., 1)."""

    top_p: Any  # largest teacher logit
    top_q: Any  # largest student logit
    scale_p: Any  # 1 / sum exp((logits - top) / temperature)
    scale_q: Any
    log_ratio: Any  # log of the normalisers' ratio, up to a common offset of the logits
    excess: Any  # its rounding error


class Pair(NamedTuple):
    """Two distributions per row and their ratio: every entry (..., classes)."""

    p: Any  # softmax(teacher / temperature)
    q: Any  # softmax(student / temperature)
    log_ratio: Any  # log(q / p); inf, -inf or NaN where p or q or both are 0 because a logit is -inf
    near: Any  # |log_ratio| <= NEAR, up to rounding
    small: Any  # log_ratio where near, else 0: safe to insert into a series
    difference: Any  # q - p, with a relative rounding error where near


class Kernel(NamedTuple):
    """A divergence D between the two distributions of a Pair, given by functions of that Pair."""

    value: Callable[[Pair], Any]  # D of each row, (...,)
    level: Callable[[Pair], Any]  # the row-wide quantity that to_student takes as its second argument, (..., 1)
    to_student: Callable[[Pair, Any], Any]  # D's gradient with respect to student / temperature, (..., classes)
    to_teacher: Callable[[Pair], Any]  # with respect to teacher / temperature, for a learned temperature


def bregman(x: Tensor) -> Tensor:
    """Return exp(x) - 1 - x for |x| <= NEAR, to float32 relative accuracy."""
    series = x * _SERIES[0] + _SERIES[1]
    for coefficient in _SERIES[2:]:
        series = series * x + coefficient
    return x * x * series


def times(weight: Tensor, x: Tensor) -> Tensor:
    """Return weight * x with 0 * anything = 0: a class of probability 0 contributes nothing, even if x is infinite."""
    return ops.where(ops.equal(weight, 0.0), 0.0, weight * x)


def row_sum(x: Tensor) -> Tensor:
    """Sum over the classes and keep the axis."""
    return ops.sum(x, axis=-1, keepdims=True)


def long_sum(x: Tensor) -> Tensor:
    """Return ``row_sum``, taken in two steps if there are many classes.

    XLA sums sequentially; over thousands of nearly equal terms, such as a flat teacher's, the rounding errors share a
    sign and reach 1e-5.
    """
    classes = x.shape[-1]
    if classes is None or classes < LONG:
        return row_sum(x)
    whole = classes - classes % LANES
    sums = ops.sum(ops.reshape(x[..., :whole], (*ops.shape(x)[:-1], -1, LANES)), axis=-2)
    # As in exact_difference, the minimum keeps graph optimisers from merging the two steps.
    total = row_sum(ops.minimum(sums, math.inf))
    return total + row_sum(x[..., whole:]) if whole < classes else total


def exact_difference(x: Tensor, offset: Any, y: Any) -> Tensor:
    """Return (x - offset) - y in this order: the minimum keeps graph optimisers from re-associating it."""
    return ops.minimum(x - offset, math.inf) - y


def weights(logits: Tensor, top: Any, inverse: Any) -> Tensor:
    """Return exp((logits - top) * inverse).

    Subtracting the maximum first preserves near ties between logits of 1e4 in float32.
    """
    return ops.exp((logits - top) * inverse)


def compared(teacher: Tensor, student: Tensor, temperature: Tensor) -> tuple[Pair, Constants]:
    """Compare softmax(teacher / temperature) with softmax(student / temperature).

    A whole number removes a common offset; then the logits are subtracted, which is exact in float32 if they are close.
    Where the distributions nearly agree, the largest remaining rounding error is that of the ratio's constant. It is
    measured, as the amount by which p * ratio fails to sum to 1, and subtracted.
    """
    inverse = 1.0 / temperature
    top_p, top_q = (ops.max(logits, axis=-1, keepdims=True) for logits in (teacher, student))
    p, q = weights(teacher, top_p, inverse), weights(student, top_q, inverse)
    total_p, total_q = long_sum(p), long_sum(q)
    offset = ops.round(top_q - top_p)
    constant = exact_difference(top_q, offset, top_p) / temperature + ops.log(total_q / total_p)
    row = Constants(top_p, top_q, 1.0 / total_p, 1.0 / total_q, constant, 0.0)
    first = _pair(p / total_p, q / total_q, exact_difference(student, offset, teacher) * inverse - constant)
    excess = row_sum(first.difference)
    corrected = first._replace(
        log_ratio=first.log_ratio - excess,
        small=ops.where(first.near, first.small - excess, 0.0),
        difference=first.difference - excess * first.q,
    )
    return corrected, row._replace(excess=excess)


def pair_again(teacher: Tensor, student: Tensor, temperature: Tensor, row: Constants) -> Pair:
    """Rebuild the Pair that ``compared`` returned from the constants of each row, without new sums."""
    inverse = 1.0 / temperature
    p = weights(teacher, row.top_p, inverse) * row.scale_p
    q = weights(student, row.top_q, inverse) * row.scale_q
    offset = ops.round(row.top_q - row.top_p)
    log_ratio = exact_difference(student, offset, teacher) * inverse - row.log_ratio
    return _pair(p, q, log_ratio - row.excess)


def _pair(p: Tensor, q: Tensor, log_ratio: Any) -> Pair:
    near = ops.abs(log_ratio) <= NEAR
    small = ops.where(near, log_ratio, 0.0)
    # Not expm1, whose accuracy in TensorFlow differs between elements.
    return Pair(p, q, log_ratio, near, small, ops.where(near, p * (small + bregman(small)), q - p))


def compare(kernel: Kernel, owner: str, teacher: Tensor, student: Tensor, temperature: Tensor, mask: Tensor) -> Tensor:
    """Check the arguments of a public loss and return its ``divergence``."""
    teacher, student = arguments.check_floating(owner, teacher, student)
    temperature = arguments.temperature_like(owner, temperature, student)
    return divergence(kernel, teacher, student, temperature, arguments.check_mask(owner, mask, student))


def divergence(kernel: Kernel, teacher: Tensor, student: Tensor, temperature: Tensor, mask: Tensor = None) -> Tensor:
    """Return temperature**2 * D per position, with exact gradients to the student and to the temperature.

    From ``row_blocks.CHUNKED_FROM_CLASSES`` classes on, the rows are evaluated in blocks, forward and backward: apart
    from the gradient, no intermediate is as large as the logits. ``row_blocks.by_rows`` does the same by automatic
    differentiation; here the backward pass reuses the per-row constants of the forward pass.

    Args:
        kernel: the divergence D.
        teacher: (..., classes), float; gets no gradient.
        student: (..., classes), float.
        temperature: a float, or float32 () or (...,).
        mask: (...,) bool or None; masked positions have value 0 and gradient 0, whatever their logits.

    Returns:
        (...,), float32, masked and scaled by ``arguments.apply_mask``.
    """
    learned = not isinstance(temperature, float)
    temperature = arguments.float32(temperature)
    leading = arguments.leading_shape(student)
    cut = row_blocks.rows_per_block(student)
    # Computing value and gradient in one compiled program pays only if the program need not output anything else.
    at_once = cut is None and row_blocks.fuses(student)
    if cut is None:
        teacher, student = arguments.float32(teacher), arguments.float32(student)
    else:
        temperature = ops.broadcast_to(temperature, leading)

    def clean(
        teacher: Tensor, student: Tensor, temperature: Tensor, more: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        keep = more[-1] if mask is not None else None
        column = temperature[..., None] if len(temperature.shape) else temperature
        # In blocks, half precision is cast to float32 here, so that the full logits are never copied.
        return *(arguments.clean(arguments.float32(logits), keep) for logits in (teacher, student)), column

    def forward(teacher: Tensor, student: Tensor, temperature: Tensor, *more: Any) -> tuple[Tensor, ...]:
        pair, row = compared(*clean(teacher, student, temperature, more))
        level = kernel.level(pair)
        # Kept for the backward pass: the gradient itself, the whole pair, or in blocks the constants of each row.
        kept = (kernel.to_student(pair, level),) if at_once else pair if cut is None else row
        return temperature * temperature * kernel.value(pair), level, *kept

    def recall(logits: tuple[Any, Any, Any], kept: tuple[Any, ...]) -> Pair:
        if at_once:
            return compared(*logits)[0]
        if cut is None:
            return Pair(*kept[: len(Pair._fields)])
        return pair_again(*logits, Constants(*kept[: len(Constants._fields)]))

    def to_student(
        teacher: Tensor, student: Tensor, temperature: Tensor, upstream: Tensor, level: Any, *more: Any
    ) -> Tensor:
        if at_once:
            slope = more[0]
        else:
            slope = kernel.to_student(recall(clean(teacher, student, temperature, more), more), level)
        return (ops.cast((upstream * temperature)[..., None] * slope, student.dtype),)

    def to_temperature(
        teacher: Tensor, student: Tensor, temperature: Tensor, upstream: Tensor, level: Any, *more: Any
    ) -> Tensor:
        teacher, student, column = clean(teacher, student, temperature, more)
        pair = recall((teacher, student, column), more)
        pull = times(kernel.to_student(pair, level), student) + times(kernel.to_teacher(pair), teacher)
        return (upstream * (2.0 * temperature * kernel.value(pair) - ops.sum(pull, axis=-1)),)

    masks = () if mask is None else (mask,)

    @ops.custom_gradient
    def compute(student: Tensor, temperature: Tensor) -> Tensor:
        # Gradients are stopped so that an eager tape keeps no intermediates.
        inputs = (teacher, ops.stop_gradient(student), ops.stop_gradient(temperature))
        value, *kept = row_blocks.over_blocks(forward, (*inputs, *masks), cut, leading)

        def grad(*args: Any, upstream: Tensor = None) -> tuple[Tensor, Tensor]:
            upstream = args[0] if args else upstream

            def once(slope: Callable[..., tuple[Any, ...]]) -> Tensor:
                """Compute one gradient separately, so that graph pruning drops it if unused."""

                @ops.custom_gradient
                def first(student: Tensor, temperature: Tensor, upstream: Tensor) -> Tensor:
                    parts = (*inputs, ops.stop_gradient(upstream), *kept, *masks)
                    if at_once:
                        return slope(*parts)[0], row_blocks.refuse
                    return row_blocks.over_blocks(slope, parts, cut, leading)[0], row_blocks.refuse

                return first(student, temperature, upstream)

            if not learned:
                return once(to_student), ops.zeros_like(temperature)
            to_each = once(to_temperature)
            return once(to_student), to_each if len(temperature.shape) else ops.sum(to_each)

        return value, grad

    return arguments.apply_mask(compute(student, temperature), mask)


def normaliser_ratio(teacher: Tensor, student: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log ratio of the student's normaliser to the teacher's, in two parts, (..., 1) each.

    The logarithm of sum exp(student / temperature) over sum exp(teacher / temperature) is offset / temperature + rest.

    Args:
        teacher: (..., classes), float32, without gradient.
        student: same shape; the rest is differentiable in it, the offset is a constant.
        temperature: a float or (..., 1); the rest is differentiable in it.

    Returns:
        The offset, a whole number, and the rest, with a relative rounding error where the distributions nearly agree.
    """
    still = ops.stop_gradient(student)
    fixed = temperature if isinstance(temperature, float) else ops.stop_gradient(temperature)
    pair, row = compared(teacher, still, fixed)
    offset = ops.round(row.top_q - row.top_p)

    @ops.custom_gradient
    def rest(student: Tensor, temperature: Tensor) -> Tensor:
        def grad(*args: Any, upstream: Tensor = None) -> tuple[Tensor, Tensor]:
            upstream = args[0] if args else upstream
            apart = row_sum(times(pair.q, still - row.top_q) - times(pair.p, teacher - row.top_p)) + (
                row.top_q - row.top_p - offset
            )
            return upstream * pair.q / fixed, -upstream * apart / (fixed * fixed)

        return row.log_ratio + row.excess, grad

    return offset, rest(student, temperature * ops.ones_like(row.top_p))
