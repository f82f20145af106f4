"""Row-blocked evaluation for wide logits: apart from the gradient, no intermediate is as large as the logits.

A loss passes a function of rows. Below FUSED_FROM_CLASSES classes the function is called once on all rows, and
automatic differentiation does the rest. From FUSED_FROM_CLASSES on, a graph compiles the function and its gradient into
one XLA program, whether or not the surrounding step is compiled; an eager call does not. From CHUNKED_FROM_CLASSES on,
the function is mapped over blocks of rows, in a graph with one such program per block. Each block returns the student's
gradient together with the value, so the backward pass only scales it. In half precision, or for a learned temperature,
the backward pass recomputes each block instead.

Where blocks or compiled programs are used, only first derivatives are supported; requesting a second raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops, tree

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._numerics import arguments
from keras_distill.losses._numerics.xla import as_written, compiled, eager

CHUNKED_FROM_CLASSES = 32_000
FUSED_FROM_CLASSES = 512
CHUNK_ELEMENTS = 1 << 19
EAGER_CHUNK_ELEMENTS = 1 << 22  # larger, because in eager mode a block costs a hundred Python calls


def rows_per_block(logits: Tensor) -> int | None:
    """Return the number of rows of ``logits``, (..., classes), in a block, or None to take all rows at once."""
    shape = tuple(logits.shape)
    classes = shape[-1]
    if classes is None or classes < CHUNKED_FROM_CLASSES or len(shape) == 1:
        return None
    known = 1
    for size in reversed(shape[:-1]):
        if size is None:
            break
        known *= size
    most = max(1, (EAGER_CHUNK_ELEMENTS if eager() else CHUNK_ELEMENTS) // classes)
    if None not in shape and known <= most:
        return None
    return max(rows for rows in range(1, most + 1) if known % rows == 0)


def cut(x: Tensor, rows: int, leading: tuple[Any, ...]) -> Tensor:
    """Reshape ``x`` from (*leading, ...) to (blocks, rows, ...)."""
    return ops.reshape(x, (-1, rows, *tuple(ops.shape(x))[len(leading) :]))


def over_blocks(
    function: Callable[..., tuple[Any, ...]], parts: tuple[Any, ...], rows: int | None, leading: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """Apply ``function`` to all rows at once, or block after block of ``rows`` rows.

    Args:
        function: takes one tensor (rows, ...) for each part; returns tensors (rows, ...).
        parts: tensors (*leading, ...).
        rows: the result of ``rows_per_block``; None takes all rows at once.
        leading: the shape of the logits without the last axis.

    Returns:
        The results of ``function``, (*leading, ...) each.
    """
    if rows is None:
        return fused(function, parts[0], *parts)
    blocks = tuple(cut(x, rows, leading) for x in parts)
    results = ops.map(as_written(lambda block: compiled(function)(*block)), blocks)
    return tuple(ops.reshape(x, leading + tuple(ops.shape(x))[2:]) for x in results)


def fuses(logits: Tensor) -> bool:
    """Return whether to compile a function of ``logits``, (..., classes), with XLA on its own.

    Without XLA a graph runs op by op, and each op reads and writes all classes. Compiled code is several times as
    fast, but every new shape compiles again: it pays where only the batch size may change and classes are many.
    """
    shape = tuple(logits.shape)
    known = len(shape) >= 2 and None not in shape[1:]
    return known and FUSED_FROM_CLASSES <= shape[-1] < CHUNKED_FROM_CLASSES and not eager()


def fused(function: Callable[..., Any], logits: Tensor, *args: Any) -> Tensor:
    """Return ``function(*args)``, compiled with XLA if ``fuses(logits)``."""
    return compiled(function)(*args) if fuses(logits) else function(*args)


def fold(
    function: Callable[..., tuple[Any, ...]],
    start: tuple[Any, ...],
    parts: tuple[Any, ...],
    rows: int,
    leading: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """Return the final state of ``state = function(state, *block)`` over all blocks, without gradient."""
    blocks = tuple(cut(x, rows, leading) for x in parts)
    count = ops.shape(blocks[0])[0]

    def step(index: Any, state: tuple[Any, ...]) -> tuple[Any, Any]:
        return index + 1, function(state, *(x[index] for x in blocks))

    return ops.while_loop(lambda index, _: index < count, step, (ops.convert_to_tensor(0, "int32"), start))[1]


def pull_back(
    function: Callable[..., Any],
    upstream: Tensor,
    watched: tuple[Any, ...],
    given: tuple[Any, ...],
    rows: int,
    leading: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """Return the gradient of sum(upstream * function(*watched, *given)) with respect to ``watched``, block by block.

    Args:
        function: takes tensors (rows, ...); returns (rows,).
        upstream: (*leading,).
        watched: tensors (*leading, ...).
        given: tensors (*leading, ...), which get no gradient.
        rows: number of rows in a block.
        leading: the shape of the logits without the last axis.

    Returns:
        A gradient for each of ``watched``, of its shape and dtype. Requesting a second derivative raises.
    """

    def within(upstream: Tensor, *block: Any) -> tuple[Tensor, ...]:
        return with_slopes(function, block[: len(watched)], block[len(watched) :], upstream)[1:]

    @ops.custom_gradient
    def first(*parts: Any) -> Tensor:
        return over_blocks(within, tuple(map(ops.stop_gradient, parts)), rows, leading), refuse

    return first(upstream, *watched, *given)


def with_slopes(
    function: Callable[..., Any], watched: tuple[Any, ...], given: tuple[Any, ...] = (), upstream: Tensor = None
) -> tuple[Tensor, ...]:
    """Return function(*watched, *given) and its gradient with respect to each of ``watched``, times upstream."""
    # Keras cannot differentiate a function. TensorFlow, the only backend, is imported only where this is needed.
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(watched)
        values = function(*watched, *given)
    return values, *tape.gradient(values, watched, upstream, unconnected_gradients="zero")


def all_in_one_pass(function: Callable[..., Any], student: Tensor, temperature: Tensor, *given: Any) -> Tensor:
    """Return function(student, temperature, *given); if it ``fuses``, one program also computes the student's gradient.

    Args:
        function: returns (...,) or a scalar.
        student: (..., classes), or a tuple of such; only it and a tensor temperature get a gradient.
        temperature: a float, or a tensor.
        *given: tensors, or tuples of tensors.

    Returns:
        (...,) or a scalar.
    """
    students = tuple(tree.flatten(student))
    if not fuses(students[0]):
        return function(student, temperature, *given)
    others, count = tuple(tree.flatten(given)), len(students)
    learned = () if isinstance(temperature, float) else (temperature,)

    def values(*parts: Any) -> Tensor:
        """Call ``function`` on flat arguments: the students, ``given``, then the temperature if it is a tensor."""
        parts, by = (parts[:-1], parts[-1]) if learned else (parts, temperature)
        return function(tree.pack_sequence_as(student, parts[:count]), by, *tree.pack_sequence_as(given, parts[count:]))

    def with_student_slopes(*parts: Any) -> tuple[Tensor, ...]:
        return with_slopes(values, tuple(map(arguments.float32, parts[:count])), parts[count:])

    def temperature_slope(upstream: Tensor, by: Any, *parts: Any) -> Tensor:
        return with_slopes(lambda each: values(*parts, each), (by,), (), upstream)[1]

    @ops.custom_gradient
    def compute(*watched: Any) -> Tensor:
        still = tuple(map(ops.stop_gradient, watched))
        value, *slopes = fused(with_student_slopes, still[0], *still[:count], *others, *still[count:])

        def grad(*args: Any, upstream: Tensor = None) -> tuple[Tensor, ...]:
            @ops.custom_gradient
            def to_students(upstream: Tensor, *watched: Any) -> Tensor:
                by = upstream[..., None]
                return tuple(ops.cast(by * x, y.dtype) for x, y in zip(slopes, watched[:count], strict=True)), refuse

            @ops.custom_gradient
            def to_temperature(upstream: Tensor, *watched: Any) -> Tensor:
                upstream = ops.stop_gradient(upstream)
                return fused(temperature_slope, still[0], upstream, still[-1], *still[:count], *others), refuse

            upstream = args[0] if args else upstream
            # Kept separate so that graph pruning drops unused gradients.
            to_each = to_students(upstream, *watched)
            return (*to_each, to_temperature(upstream, *watched)) if learned else to_each

        return value, grad

    return compute(*students, *learned)


def _scale(slope: Any, upstream: Tensor, watched: tuple[Any, ...], rows: int, leading: tuple[Any, ...]) -> Tensor:
    """Return upstream * slope, scaling block by block in place; ``slope`` is the gradient for ``watched``."""
    import tensorflow as tf

    @ops.custom_gradient
    def first(upstream: Tensor, *watched: Any) -> Tensor:
        by, old = cut(ops.stop_gradient(upstream), rows, leading), cut(slope, rows, leading)
        count = ops.shape(old)[0]
        array = tf.TensorArray(old.dtype, size=count, element_shape=old.shape[1:], clear_after_read=False).unstack(old)

        def step(index: Any, array: Any) -> tuple[Tensor, Tensor]:
            return index + 1, array.write(index, array.read(index) * by[index][:, None])

        array = tf.while_loop(lambda index, _: index < count, step, (0, array))[1]
        return ops.reshape(array.stack(), ops.shape(slope)), refuse

    return first(upstream, *watched)


def refuse(*args: Any, **kwargs: Any) -> Tensor:
    """Raise in place of a second derivative."""
    raise _checks.error("losses", "at most one derivative of a divergence", "a second one")


def at_once(function: Callable[..., Any], student: Tensor, temperature: Tensor, mask: Tensor, *given: Any) -> Tensor:
    """Call ``function`` as ``by_rows`` does, on all rows at once and without masking the values."""
    wide = len(tree.flatten(student)[0].shape)
    student, given = tree.map_structure(lambda x: _ready(x, mask, wide), (student, given))
    return function(student, temperature if isinstance(temperature, float) else temperature[..., None], *given)


def by_rows(function: Callable[..., Any], student: Tensor, temperature: Tensor, mask: Tensor, *given: Any) -> Tensor:
    """Apply ``function`` to each row, differentiable in the student and in a temperature that is a tensor.

    Args:
        function: (student, temperature, *given) -> (...,), row by row. Tensors of the logits' rank reach it as float32
            and as 0 in masked rows; the temperature as a float, or in a shape that broadcasts against the logits.
        student: (..., classes), floating, or a tuple of such; ``given`` gets no gradient.
        temperature: a float, or float32 of shape () or (...,).
        mask: (...,) bool or None.
        *given: the teacher's tensors and labels, (..., any) or (...,), or tuples of such.

    Returns:
        (...,), float32, masked and scaled by ``arguments.apply_mask``.
    """
    logits = tree.flatten(student)[0]
    rows, leading = rows_per_block(logits), arguments.leading_shape(logits)
    if rows is None:
        value = all_in_one_pass(lambda s, t, *rest: at_once(function, s, t, mask, *rest), student, temperature, *given)
        return arguments.apply_mask(value, mask)
    learned = () if isinstance(temperature, float) else (ops.broadcast_to(temperature, leading),)
    masks = () if mask is None else (mask,)
    students, others = tuple(tree.flatten(student)), (*tree.flatten(given), *masks)
    # Scaling a kept gradient costs less than recomputing a block. In half precision it would be kept as float32.
    in_one_pass = all(keras.backend.standardize_dtype(x.dtype) == "float32" for x in students)

    def values(*pieces: Any) -> Tensor:
        """Call ``function`` on flat arguments: the students, ``given``, the mask, then the temperature."""
        pieces, column = (pieces[:-1], pieces[-1]) if learned else (pieces, temperature)
        pieces, keep = (pieces[:-1], pieces[-1]) if masks else (pieces, None)
        mine, more = tree.pack_sequence_as((student, given), pieces)
        return at_once(function, mine, column, keep, *more)

    @ops.custom_gradient
    def compute(*watched: Any) -> Tensor:
        # Gradients are stopped so that an eager tape keeps no intermediates.
        mine, column = (tuple(map(ops.stop_gradient, x)) for x in (watched[: len(students)], watched[len(students) :]))

        def forward(*block: Any) -> tuple[Tensor, ...]:
            block, given = block[: len(students)], block[len(students) :]
            return with_slopes(values, block, given) if in_one_pass else (values(*block, *given),)

        value, *slopes = over_blocks(forward, (*mine, *others, *column), rows, leading)

        def grad(*args: Any, upstream: Tensor = None) -> tuple[Tensor, ...]:
            upstream = args[0] if args else upstream
            mine, column = watched[: len(students)], watched[len(students) :]
            # Kept separate so that graph pruning drops unused gradients.
            if in_one_pass:
                to_students = tuple(_scale(slope, upstream, watched, rows, leading) for slope in slopes)
            else:
                to_students = pull_back(values, upstream, mine, (*others, *column), rows, leading)
            if not learned:
                return to_students
            before = (*mine, *others)
            return *to_students, *pull_back(
                lambda t, *block: values(*block, t), upstream, column, before, rows, leading
            )

        return value, grad

    return arguments.apply_mask(compute(*students, *learned), mask)


def of_rows(function: Callable[..., Any], x: Tensor, mask: Tensor) -> Tensor:
    """Apply ``function`` to each row of ``x``, (..., classes), in blocks if there are many classes; no gradient."""
    (result,) = over_blocks(
        lambda x, *masks: (function(_ready(x, masks[0] if masks else None, len(x.shape))),),
        (ops.stop_gradient(x), *(() if mask is None else (mask,))),
        rows_per_block(x),
        arguments.leading_shape(x),
    )
    return result


def _ready(x: Tensor, mask: Tensor, wide: int) -> Tensor:
    """Cast a floating tensor of rank ``wide`` to float32, 0 where masked; within blocks, only the block is copied."""
    return arguments.clean(arguments.float32(x), mask) if len(x.shape) == wide and arguments.is_float(x) else x
