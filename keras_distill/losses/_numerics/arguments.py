"""Argument handling shared by the losses: dtypes, shapes, temperature and masks."""

from __future__ import annotations

import numbers
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._numerics import replicas


def float32(x: Tensor) -> Tensor:
    """Return ``x`` as a float32 tensor."""
    return ops.cast(_checks.tensor("losses", x, ops.convert_to_tensor), "float32")


def integers(owner: str, name: str, x: Tensor) -> Tensor:
    """Return ``x`` as an int32 tensor, or raise unless it holds whole numbers."""
    x = _checks.tensor(owner, x, ops.convert_to_tensor)
    if is_float(x):
        known = concrete(x)
        if known is None or not (np.isfinite(known).all() and (known == np.round(known)).all()):
            raise _checks.error(owner, f"{name} to be integers", f"{x.dtype.name} numbers")
    return ops.cast(x, "int32")


def concrete(x: Tensor) -> np.ndarray | None:
    """Return the value of ``x`` as an array, or None if ``x`` is symbolic."""
    try:
        return np.asarray(ops.convert_to_numpy(x) if ops.is_tensor(x) else x)
    except (NotImplementedError, TypeError, ValueError, RuntimeError):
        return None


def check_same_shape(owner: str, teacher: Tensor, student: Tensor, what: str = "logits") -> None:
    """Raise unless the static shapes of teacher and student agree; an unknown size matches any size."""
    left, right = tuple(teacher.shape), tuple(student.shape)
    if len(left) == 0 or len(right) == 0:
        raise _checks.error(owner, f"{what} of rank >= 1", f"shapes {left} and {right}")
    same = len(left) == len(right) and all(a == b or a is None or b is None for a, b in zip(left, right, strict=True))
    if not same:
        advice = "Compare outputs of the same layer shape"
        if what == "logits" and len(left) == len(right) and left[:-1] == right[:-1]:
            advice = "Where the label spaces differ, map the classes with losses.select_classes"
        raise _checks.error(owner, f"teacher and student {what} of one shape", f"{left} and {right}", advice)


def is_float(x: Tensor) -> bool:
    """Return whether the tensor ``x`` holds floating-point numbers, of any precision."""
    return "float" in keras.backend.standardize_dtype(x.dtype)


def floating(x: Tensor) -> Tensor:
    """Return ``x`` as a floating-point tensor: in its own precision, or as float32 if it holds integers."""
    x = _checks.tensor("losses", x, ops.convert_to_tensor)
    return x if is_float(x) else float32(x)


def check_pair(owner: str, teacher: Tensor, student: Tensor, what: str = "logits") -> tuple[Tensor, Tensor]:
    """Return teacher (without gradient) and student as float32 tensors of one shape."""
    teacher, student = check_floating(owner, teacher, student, what)
    return float32(teacher), float32(student)


def check_floating(owner: str, teacher: Tensor, student: Tensor, what: str = "logits") -> tuple[Tensor, Tensor]:
    """Return teacher (without gradient) and student as tensors of one shape, each in its own precision."""
    teacher, student = ops.stop_gradient(floating(teacher)), floating(student)
    check_same_shape(owner, teacher, student, what)
    return teacher, student


def leading_shape(logits: Tensor) -> tuple[Any, ...]:
    """Return the shape of ``logits`` without its last axis, static where known."""
    return tuple(ops.shape(logits))[:-1]


def temperature_like(owner: str, temperature: Tensor, logits: Tensor) -> Tensor:
    """Check ``temperature`` and return it as a Python float, a scalar, or a tensor of the leading shape of ``logits``.

    Args:
        owner: name shown in the error message.
        temperature: a number > 0, or a tensor of shape (), or one that matches the leading axes of ``logits`` from the
            left: (batch,), (batch, 1), (batch, time).
        logits: (..., classes).

    Returns:
        A float for a Python number, otherwise a float32 tensor of shape () or (...,), differentiable in
        ``temperature``.
    """
    advice = "Use 1.0 for the plain distributions"
    if isinstance(temperature, numbers.Real) and not isinstance(temperature, np.ndarray):
        return _checks.number(owner, "temperature", temperature, above=0.0, advice=advice)
    if isinstance(temperature, (str, bytes)) or temperature is None:
        raise _checks.error(owner, "temperature > 0", temperature, advice)
    value = concrete(temperature)
    if value is not None and not (np.isfinite(value).all() and (value > 0).all()):
        raise _checks.error(owner, "temperature > 0", str(value.tolist()), advice)
    temperature = float32(temperature)
    if len(temperature.shape) == 0:
        return temperature
    leading = leading_shape(logits)
    shape = tuple(temperature.shape)
    if len(shape) == len(leading) + 1 and shape[-1] == 1:
        temperature = ops.squeeze(temperature, axis=-1)
        shape = shape[:-1]
    static = tuple(logits.shape)[:-1]
    fits = len(shape) <= len(leading) and all(
        a in (None, 1) or b is None or a == b for a, b in zip(shape, static, strict=False)
    )
    if not fits:
        raise _checks.error(owner, f"temperature of shape () or the start of {static}", shape, "Give one per example")
    padded = ops.reshape(temperature, tuple(ops.shape(temperature)) + (1,) * (len(leading) - len(shape)))
    return ops.broadcast_to(padded, leading)


def check_mask(owner: str, mask: Tensor, logits: Tensor) -> Tensor:
    """Return ``mask`` as a bool tensor of the leading shape of ``logits``, or None."""
    if mask is None:
        return None
    mask = ops.cast(_checks.tensor(owner, mask, ops.convert_to_tensor), "bool")
    static, got = tuple(logits.shape)[:-1], tuple(mask.shape)
    if len(static) != len(got) or any(
        a != b and a is not None and b is not None for a, b in zip(static, got, strict=True)
    ):
        raise _checks.error(owner, f"mask of shape {static}", got, "A mask has one bool per position")
    return mask


def apply_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Zero the masked ``values`` and scale the rest by positions / unmasked, so that a plain mean is the masked mean.

    Both counts are over all replicas, so that the mean over a global batch is the mean over its unmasked positions,
    however they are distributed.
    """
    if mask is None:
        return values
    kept = ops.cast(mask, "float32")
    size, count = replicas.everywhere(ops.cast(ops.size(kept), "float32"), ops.sum(kept))
    return ops.where(mask, values * (size / ops.maximum(count, 1.0)), 0.0)


def clean(logits: Tensor, mask: Tensor) -> Tensor:
    """Set masked positions of ``logits`` to 0, so that garbage there reaches neither value nor gradient."""
    return logits if mask is None else ops.where(mask[..., None], logits, 0.0)


def gap(teacher: Tensor, student: Tensor) -> Tensor:
    """Return student - teacher, and 0 where both are the same infinity."""
    same = ops.logical_and(ops.isinf(teacher), ops.equal(teacher, student))
    return ops.where(same, 0.0, student) - ops.where(same, 0.0, teacher)
