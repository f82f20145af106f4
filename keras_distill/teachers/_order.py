"""Teachers whose targets keep only the order of the classes, or a function of the gaps between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill._checks import choice, error, integer, number
from keras_distill._typing import Tensor
from keras_distill.teachers._base import Around, gradient, refuse_probabilities, resolved

_PACKAGE = "keras_distill"


class _Reworded(Around):
    """Base of teachers that transform the inner teacher's single output, logits."""

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        refuse_probabilities(type(self).__name__, self.model)

    def reword(self, logits: Tensor) -> Any:
        """Return the transformed logits, (..., classes) float32."""
        raise NotImplementedError(f"{type(self).__name__} must define reword().")

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Run the inner teacher and transform its combined logits; see ``Teacher.listen``."""
        outputs, tapped = self.model.listen(teacher_x, taps, **gradient(differentiable))
        outputs = resolved(outputs)
        if keras.tree.is_nested(outputs):
            owner = type(self).__name__
            raise error(owner, "a teacher with one output", f"{len(keras.tree.flatten(outputs))} outputs")
        logits = ops.cast(outputs, "float32")
        # A class that cannot occur stays impossible.
        possible = logits > float("-inf")
        return ops.where(possible, self.reword(logits), float("-inf")), tapped

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"name": self.name, "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Rebuild the teacher from ``get_config``."""
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"], custom_objects)})


def ranks(logits: Tensor) -> Any:
    """Return the rank of each class, 0 for the greatest logit; ties share the mean of their ranks.

    Args:
        logits: (..., classes).

    Returns:
        The same shape, float32.
    """
    ordered = ops.sort(logits, axis=-1)
    classes = logits.shape[-1]
    below = tf.searchsorted(ordered, logits, side="left")
    not_above = tf.searchsorted(ordered, logits, side="right")
    return ops.cast(2 * classes - below - not_above - 1, "float32") / 2.0


@keras.saving.register_keras_serializable(package=_PACKAGE)
class RankTargets(_Reworded):
    """A teacher that gives only the order of the classes (rank targets).

    Choose it where a teacher's confidence should not be trusted or passed on. Order alone loses the calibration: the
    target is equally sure of every example. ``mix`` adds the teacher's own probabilities. These targets are the
    package's own definition, not a published one.

    Formula: with rank_k the position of class k (0 is the greatest, ties share the mean):
    ``"softmax"``: t_k ~ exp(-rank_k / temperature); ``"zipf"``: t_k ~ (1 + rank_k) ** -exponent.
    With ``top_k`` the first K classes keep their t_k, and the others share the rest equally.
    The result is (1 - mix) * t + mix * softmax(logits); the teacher's output is its logarithm.

    Args:
        model: a Keras model or a teacher with one output, logits.
        form: ``"softmax"`` or ``"zipf"``.
        top_k: >= 1, number of classes to distinguish; None distinguishes all.
        temperature: > 0, of the softmax form; small values put almost all mass on the first class.
        exponent: > 0, of the Zipf form; large values put almost all mass on the first class.
        mix: share of the teacher's own probabilities in the target, 0 to 1.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Raises:
        ValueError: if the teacher ends in softmax or sigmoid, or an argument is out of range.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
        >>> teacher = RankTargets(model, form="zipf")
        >>> np.exp(teacher(np.array([[9.0, 1.0, 2.0]])).numpy()).round(3)  # 1, 1/3, 1/2 over their sum
        array([[0.545, 0.182, 0.273]], dtype=float32)
    """

    def __init__(
        self,
        model: keras.Model,
        form: str = "softmax",
        top_k: int | None = None,
        temperature: float = 1.0,
        exponent: float = 1.0,
        mix: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        owner = "RankTargets"
        self.form = choice(owner, "form", form, ("softmax", "zipf"))
        self.top_k = None if top_k is None else integer(owner, "top_k", top_k, low=1)
        self.temperature = number(owner, "temperature", temperature, above=0)
        self.exponent = number(owner, "exponent", exponent, above=0)
        self.mix = number(owner, "mix", mix, low=0, high=1)

    def reword(self, logits: Tensor) -> Any:
        """Return the logarithm of the target."""
        rank = ranks(logits)
        score = -rank / self.temperature if self.form == "softmax" else -self.exponent * ops.log1p(rank)
        target = ops.log_softmax(ops.where(logits > float("-inf"), score, float("-inf")), axis=-1)
        if self.top_k is not None:
            tail = (rank > self.top_k - 1) & (logits > float("-inf"))
            count = ops.sum(ops.cast(tail, "float32"), axis=-1, keepdims=True)
            mass = ops.logsumexp(ops.where(tail, target, float("-inf")), axis=-1, keepdims=True)
            target = ops.where(tail, mass - ops.log(ops.maximum(count, 1.0)), target)
        if self.mix == 0.0:
            return target
        own = ops.log_softmax(logits, axis=-1) + math.log(self.mix)
        if self.mix == 1.0:
            return own
        return ops.logaddexp(target + math.log1p(-self.mix), own)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        names = ("form", "top_k", "temperature", "exponent", "mix")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class SortedDifferences(_Reworded):
    """A teacher whose classes keep their order while the gaps between them are transformed (sorted differences).

    Choose ``"log"`` or ``"cap"`` for an over-confident teacher: large gaps shrink and small ones stay, so the student
    learns which classes are alike and less of the teacher's confidence. ``"identity"`` is plain soft targets. These
    targets are the package's own definition, not a published one.

    Formula: with sorted logits z_(1) >= z_(2) >= ... and gaps d_r = z_(r) - z_(r+1), the logit of the class in place r
    is -sum_{q < r} g(d_q) / temperature, where g(d) is min(d, cap), log(1 + d), d / s, or d itself; s is the standard
    deviation of the example's logits (over all classes, divided by their number).

    Args:
        model: a Keras model or a teacher with one output, logits.
        transform: ``"cap"``, ``"log"``, ``"standardize"`` or ``"identity"``.
        cap: > 0, the largest gap of ``"cap"``.
        temperature: > 0, divides the new logits. A term's own temperature does the same for both sides.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Raises:
        ValueError: if the teacher ends in softmax or sigmoid, or an argument is out of range.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
        >>> SortedDifferences(model, transform="cap")(np.array([[9.0, 1.5, 2.0]])).numpy()
        array([[ 0. , -1.5, -1. ]], dtype=float32)
    """

    def __init__(
        self,
        model: keras.Model,
        transform: str = "cap",
        cap: float = 1.0,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        owner = "SortedDifferences"
        self.transform = choice(owner, "transform", transform, ("cap", "log", "standardize", "identity"))
        self.cap = number(owner, "cap", cap, above=0)
        self.temperature = number(owner, "temperature", temperature, above=0)

    def reword(self, logits: Tensor) -> Any:
        """Return the rebuilt logits; the greatest is 0."""
        order = ops.argsort(-logits, axis=-1)
        ordered = ops.take_along_axis(logits, order, axis=-1)
        upper, lower = ordered[..., :-1], ordered[..., 1:]
        possible = lower > float("-inf")
        # Impossible classes come last; their gaps are set to 0 here and their logits to -inf afterwards.
        gaps = ops.where(possible, ops.where(possible, upper, 0.0) - ops.where(possible, lower, 0.0), 0.0)
        if self.transform == "cap":
            gaps = ops.minimum(gaps, self.cap)
        elif self.transform == "log":
            gaps = ops.log1p(gaps)
        elif self.transform == "standardize":
            finite = logits > float("-inf")
            count = ops.sum(ops.cast(finite, "float32"), axis=-1, keepdims=True)
            kept = ops.where(finite, logits, 0.0)
            mean = ops.sum(kept, axis=-1, keepdims=True) / count
            square = ops.where(finite, ops.square(kept - mean), 0.0)
            gaps = gaps / (ops.sqrt(ops.sum(square, axis=-1, keepdims=True) / count) + 1e-7)
        fallen = ops.concatenate([ops.zeros_like(upper[..., :1]), -ops.cumsum(gaps, axis=-1)], axis=-1)
        return ops.take_along_axis(fallen, ops.argsort(order, axis=-1), axis=-1) / self.temperature

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        names = ("transform", "cap", "temperature")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
