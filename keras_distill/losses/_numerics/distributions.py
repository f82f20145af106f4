"""Log-probabilities at a temperature, and expectations to which an impossible class contributes nothing."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._numerics import arguments
from keras_distill.losses._numerics.log_ratio import NEAR, bregman, times


def inputs(
    owner: str, teacher: Tensor, student: Tensor, temperature: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Check the arguments that all logit losses share.

    Args:
        owner: name shown in the error message.
        teacher: (..., classes).
        student: same shape.
        temperature: > 0, see ``soft_targets``.
        mask: (...,) bool or None.

    Returns:
        The arguments of ``row_blocks.by_rows``: teacher (without gradient) and student, each in its own precision,
        the temperature as a float or of shape () or (...,), and the mask.
    """
    teacher, student = arguments.check_floating(owner, teacher, student)
    temperature = arguments.temperature_like(owner, temperature, student)
    return teacher, student, temperature, arguments.check_mask(owner, mask, student)


def per_row(temperature: Tensor) -> Tensor:
    """Return the temperature in the form that multiplies values of shape (...,)."""
    return temperature if isinstance(temperature, float) else temperature[..., 0]


def shifted(logits: Tensor, temperature: Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Return (logits - maximum) / temperature and the maximum, (..., 1); the gradient at -inf is 0, not NaN.

    Subtracting the maximum before dividing preserves near ties between logits of 1e4 in float32.
    """
    top = ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
    impossible = ops.equal(logits, -float("inf"))
    known = ops.where(impossible, top, logits)
    return ops.where(impossible, -float("inf"), (known - top) / temperature), top


def log_softmax(logits: Tensor, temperature: Tensor = 1.0) -> Tensor:
    """Return log softmax of logits / temperature over the last axis; -inf stays -inf."""
    below, _ = shifted(logits, temperature)
    return below - ops.log(ops.sum(ops.exp(below), axis=-1, keepdims=True))


def expectation(probabilities: Tensor, values: Tensor) -> Tensor:
    """Return the sum of probability * value over the last axis, ignoring values whose probability is 0."""
    return ops.sum(probabilities * ops.where(ops.equal(probabilities, 0.0), 0.0, values), axis=-1)


def bernoulli_kl(teacher_logits: Tensor, student_logits: Tensor, gap: Tensor = None) -> Tensor:
    """Return KL between Bernoulli distributions given by their logits, element by element.

    Args:
        teacher_logits: any shape.
        student_logits: same shape.
        gap: the student's logit minus the teacher's, as exact as the caller knows it: where the two nearly agree, the
            result is computed from it alone and inherits its relative error. None subtracts the logits.
    """
    gap = ops.stop_gradient(arguments.gap(teacher_logits, student_logits) if gap is None else gap)

    @ops.custom_gradient
    def compute(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        # From the outcome that the teacher finds likelier: its probability is p >= 1/2, that of the other is `rest`.
        sign = ops.where(teacher_logits < 0.0, -1.0, 1.0)
        student, distance = sign * student_logits, sign * gap
        odds = ops.exp(-ops.abs(teacher_logits))
        p = 1.0 / (1.0 + odds)
        rest = odds * p
        near = ops.abs(gap) <= NEAR
        decay = ops.exp(-ops.abs(student))
        # log(q / p) for both outcomes: from the gap alone where the two nearly agree, otherwise
        # log((1 + decay) / (1 + odds)), which needs one logarithm instead of two.
        step = ops.where(near, -distance, 0.0)
        change = rest * (step + bregman(step))
        grown = ops.log1p(ops.where(near, change, (decay - odds) * p))
        of_p, of_rest = ops.where(near, -grown, 0.0), ops.where(near, -grown - distance, 0.0)
        far = ops.maximum(-student, 0.0) + grown
        close = p * bregman(of_p) + rest * bregman(of_rest)
        q = ops.where(student < 0.0, decay, 1.0) / (1.0 + decay)
        difference = ops.where(near, -p * change / (1.0 + change), q - p)

        def grad(*args: Any, upstream: Tensor = None) -> tuple[Tensor, Tensor]:
            upstream = args[0] if args else upstream
            return upstream * times(-p * rest, gap), upstream * sign * difference

        return ops.where(near, close, far + times(rest, distance)), grad

    return compute(teacher_logits, student_logits)


def class_ids(owner: str, labels: Tensor, logits: Tensor, mask: Tensor = None) -> Tensor:
    """Return labels as int32 of the leading shape of ``logits``, 0 where masked; one-hot labels by their argmax.

    Raises:
        ValueError: if labels are None, their shape does not fit, or a label is known to be out of range.
    """
    if labels is None:
        raise _checks.error(owner, "labels", "None", "A term passes on the y of fit")
    labels = _checks.tensor(owner, labels, ops.convert_to_tensor)
    if len(labels.shape) == len(logits.shape):
        labels = ops.squeeze(labels, -1) if labels.shape[-1] == 1 else ops.argmax(labels, axis=-1)
    pairs = zip(labels.shape, logits.shape, strict=False)
    if len(labels.shape) != len(logits.shape) - 1 or any(a != b for a, b in pairs if None not in (a, b)):
        raise _checks.error(owner, f"labels of shape {tuple(logits.shape)[:-1]}", tuple(labels.shape))
    labels = ops.cast(labels, "int32")
    labels = labels if mask is None else ops.where(mask, labels, 0)
    classes, known = logits.shape[-1], arguments.concrete(labels)
    if known is not None and known.size and (known.min() < 0 or known.max() >= classes):
        bad = known.min() if known.min() < 0 else known.max()
        raise _checks.error(owner, f"labels from 0 to {classes - 1}", int(bad))
    return labels


def target_mask(labels: Tensor, logits: Tensor) -> Tensor:
    """Return a bool tensor (..., classes), true at each row's label."""
    return ops.equal(ops.arange(logits.shape[-1], dtype="int32"), labels[..., None])


def at_label(values: Tensor, labels: Tensor) -> Tensor:
    """Return each row's value at its label, (...,); NaN where the label is out of range."""
    inside = ops.logical_and(labels >= 0, labels < values.shape[-1])
    taken = ops.take_along_axis(values, ops.where(inside, labels, 0)[..., None], axis=-1)[..., 0]
    return ops.where(inside, taken, float("nan"))


def without(logits: Tensor, target: Tensor) -> Tensor:
    """Set the target's logit to -inf, which makes the class impossible."""
    return ops.where(target, -float("inf"), logits)


def target_logit(logits: Tensor, labels: Tensor, temperature: Tensor = 1.0) -> Tensor:
    """Return the logit of "target against the rest": the target's logit minus the log-sum-exp of the others."""
    others = without(logits, target_mask(labels, logits))
    below, top = shifted(others, temperature)
    return (at_label(logits, labels) - top[..., 0]) / per_row(temperature) - ops.log(ops.sum(ops.exp(below), axis=-1))


def surprise(logits: Tensor, labels: Tensor, temperature: Tensor = 1.0) -> Tensor:
    """Return the cross-entropy to the labels, accurate even where the label's probability is nearly 1."""
    return ops.softplus(-target_logit(logits, labels, temperature))
