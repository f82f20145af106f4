"""Resolves a user's spelling of the loss between two sets of logits, or refuses it.

Kept apart from ``_logits.py``: it is needed once, when a term is constructed.
"""

from __future__ import annotations

import re
from typing import Any

import keras
from keras import ops

from keras_distill import losses as losses_room
from keras_distill._checks import error, nearest
from keras_distill._typing import Structure, Tensor
from keras_distill.losses import LogitsLoss
from keras_distill.losses._numerics import arguments

_KL_NAMES = {"kl_divergence", "kld", "kldivergence"}
_SOFT_CROSS_ENTROPY_NAMES = {"categorical_crossentropy", "categoricalcrossentropy"}


def as_logits_loss(loss: Any, owner: str) -> Any:
    """Resolve a user's spelling to a ``LogitsLoss`` or a Keras loss on logits, or raise."""
    if loss is None or isinstance(loss, LogitsLoss):
        return loss
    if isinstance(loss, type) and issubclass(loss, (LogitsLoss, keras.losses.Loss)):
        return as_logits_loss(loss(), owner)  # a class instead of an object: use its defaults
    if isinstance(loss, str) and _of_ours(loss) is not None:
        return _of_ours(loss)()
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    key = name.lower()
    if key in _KL_NAMES:
        return losses_room.SoftTargets()
    if key in _SOFT_CROSS_ENTROPY_NAMES:
        return _SoftCrossEntropy()
    if key in {"binary_crossentropy", "binarycrossentropy", "sparse_categorical_crossentropy"} or (
        "crossentropy" in key or "hinge" in key or "poisson" in key
    ):
        advice = "Use loss='kl_divergence', or losses.BinarySoftTargets() for sigmoid heads"
        raise error(owner, "a loss that makes sense between two sets of logits", repr(name), advice)
    if callable(loss) and getattr(losses_room, name, None) is loss:
        twin = _of_ours(name)
        advice = (
            f"Give the class: losses.{twin.__name__}()" if twin else "Give one of the classes of keras_distill.losses"
        )
        raise error(owner, "a loss between teacher and student", f"the function losses.{name}", advice)
    try:
        return KerasLossOnLogits(loss)
    except ValueError:
        ours = [_snake(each) for each in losses_room.__all__ if each[0].isupper()]
        advice = f"Nearest: {nearest(str(loss), ['kl_divergence', 'mse', 'mae', *ours])}"
        raise error(owner, "a loss that Keras or keras_distill.losses knows", repr(loss), advice) from None


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _of_ours(name: str) -> Any:
    """Return the class of ``keras_distill.losses`` between logits that a name denotes, in either spelling."""
    for each in losses_room.__all__:
        thing = getattr(losses_room, each)
        if isinstance(thing, type) and issubclass(thing, LogitsLoss) and thing is not LogitsLoss:
            if name in (each, _snake(each)):
                return thing
    return None


def _column(temperature: Any, logits: Tensor) -> Any:
    """Return a temperature, one for all or one per example, in a shape that divides logits."""
    temperature = ops.cast(ops.convert_to_tensor(temperature), "float32")
    if len(temperature.shape) == 0:
        return temperature
    return ops.reshape(temperature, (-1, *([1] * (len(logits.shape) - 1))))


class KerasLossOnLogits(LogitsLoss):
    """A Keras regression loss (``"mse"``, ``"mae"``, an object, a function) between logits divided by temperature."""

    def __init__(self, loss: Any) -> None:
        super().__init__(name="keras_loss_on_logits")
        self.loss = loss
        resolved = keras.losses.get(loss)
        self._per_example = resolved.call if isinstance(resolved, keras.losses.Loss) else resolved

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Any = 1.0,
        labels: Structure = None,
        mask: Tensor = None,
    ) -> Any:
        column = _column(temperature, student_logits)
        teacher, student = (
            arguments.clean(ops.cast(logits, "float32"), mask) / column for logits in (teacher_logits, student_logits)
        )
        values = self._per_example(teacher, student)
        # A user's function that already reduces leaves nothing to mask.
        return arguments.apply_mask(values, mask) if len(values.shape) else values


@keras.saving.register_keras_serializable(package="keras_distill")
class _SoftCrossEntropy(LogitsLoss):
    """Cross-entropy to the teacher's distribution: soft targets plus the teacher's entropy, both times T**2."""

    def __init__(self, name: str = "soft_cross_entropy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def values(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        *,
        temperature: Any = 1.0,
        labels: Structure = None,
        mask: Tensor = None,
    ) -> Any:
        divergence = losses_room.soft_targets(
            teacher_logits=teacher_logits, student_logits=student_logits, temperature=temperature, mask=mask
        )
        column = _column(temperature, teacher_logits)
        teacher = arguments.clean(ops.cast(teacher_logits, "float32"), mask)
        log_p = ops.log_softmax(teacher / column, axis=-1)
        entropy = -ops.sum(ops.where(ops.isfinite(log_p), column**2 * ops.exp(log_p) * log_p, 0.0), axis=-1)
        return divergence + arguments.apply_mask(entropy, mask)
