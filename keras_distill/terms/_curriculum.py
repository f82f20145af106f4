"""Terms that set their own temperature: adversarially against the student (CTKD), or from the teacher's entropy."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import error, integer, number
from keras_distill._typing import Structure, Tensor
from keras_distill.settings import Setting
from keras_distill.terms._logits import LogitsDistillation, labels_where
from keras_distill.terms._reversal import Ramp, ReversesGradient, against
from keras_distill.terms._structures import deserialized

_LARGEST_LOGIT = 1e4  # clips the input of a curriculum's network; -inf marks a class that cannot occur
_BISECTIONS = 20


@keras.saving.register_keras_serializable(package="keras_distill")
class _CosineRamp(Ramp):
    """From 0 to ``height`` along half a cosine, then constant."""

    def _risen(self, done: Any) -> Any:
        return (1.0 - ops.cos(math.pi * done)) / 2.0


class _OwnTemperature(LogitsDistillation, abc.ABC):
    """A term whose temperature is computed from the logits it compares, one per example or one for all."""

    def __init__(self, loss: Any, start: float, low: Any, high: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        low = number(owner, "min_temperature", low, above=0.0)
        high = number(owner, "max_temperature", high, above=low)
        super().__init__(temperature=start, loss=loss, **kwargs)
        self._low, self._high, self._start = low, high, start
        self._seen = keras.metrics.Mean(name="temperature")  # Keras shows it in the logs, as a mean over examples

    @property
    def min_temperature(self) -> float:
        """Lower bound of the temperature."""
        return self._low

    @property
    def max_temperature(self) -> float:
        """Upper bound of the temperature."""
        return self._high

    @property
    def temperature(self) -> float:
        """The mean temperature of the examples since the epoch began; it is computed and cannot be set."""
        return self._mean_seen()

    @temperature.setter
    def temperature(self, value: Any) -> None:
        owner = type(self).__name__
        raise error(owner, "no temperature, because the term sets its own", value, "Use LogitsDistillation to set one")

    def _mean_seen(self) -> float:
        return float(self._seen.result()) if float(self._seen.count) else self._start

    @abc.abstractmethod
    def _temperatures(self, teacher: Any, student: Any) -> Any:
        """Return (...,), one temperature for each row of logits, or () for all."""

    def _compare(self, loss: Any, teacher: Any, student: Any, temperature: Any, labels: Structure, mask: Tensor) -> Any:
        found = self._temperatures(self._standardized(teacher, mask), self._standardized(student, mask))
        of_examples = mask is not None and len(found.shape) > 0
        self._seen.update_state(found, sample_weight=ops.cast(mask, "float32") if of_examples else None)
        return super()._compare(loss, teacher, student, found, labels, mask)

    def _members(self, loss: Any, teacher: Any, student: Any, temperature: Any, labels: Structure, mask: Tensor) -> Any:
        """Combine several teachers at temperature 1 first, because the temperature depends on their combined logits."""
        self._check_classes(loss, teacher.members.shape[-1], student.shape[-1])
        if loss.needs_members or teacher.per_member:
            advice = "Use LogitsDistillation, or teachers combined into one such as MeanProbs()"
            raise error(type(self).__name__, "one teacher, or several combined into one", teacher.combine, advice)
        student = self._logits(student, mask)
        combined = teacher.resolve(1.0, labels=labels_where(labels, student, mask), student_logits=student)
        return self._compare(loss, combined, student, temperature, labels, mask)

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        config = {**super().get_config(), "min_temperature": self._low, "max_temperature": self._high}
        del config["temperature"]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LogitsDistillation:
        """Rebuild the term that ``get_config`` described."""
        return cls(**{key: deserialized(item) for key, item in config.items()})


@keras.saving.register_keras_serializable(package="keras_distill")
class CurriculumTemperature(ReversesGradient, _OwnTemperature):
    """Distillation at a learned temperature that makes the student's task gradually harder (CTKD).

    The temperature is trained by the student's optimizer with a reversed gradient, so that it maximises the student's
    loss, more strongly as the ramp rises. Choose it where the right temperature is unknown and training is long enough
    for a ramp; one good constant is often as good. A single temperature costs nothing; ``per_example=True`` adds a
    small network.

    Formula: min + (max - min) * sigmoid(theta); the gradient of theta is that of the loss times -strength, where
    strength = reversal_strength * (1 - cos(pi * min(step / ramp_steps, 1))) / 2 at the optimizer's ``step``.

    ``logs`` get ``temperature`` (mean over the examples) and ``reversal_strength``. Keras' own ``Distiller`` does not
    advance the ramp: use ``ramp_steps=0`` there.

    Args:
        loss: as for ``LogitsDistillation``; a factor temperature**2 in it contributes to the temperature's gradient.
        ramp_steps: >= 0, optimizer steps until full strength; 10 epochs in the paper. 0: full strength at once.
        per_example: one temperature per example, from a network that sees the logits of teacher and student.
        initial_temperature: between the bounds; None: theta = 1, which is 15.6 with the default bounds.
        min_temperature: > 0, lower bound.
        max_temperature: upper bound.
        reversal_strength: >= 0, strength at the end of the ramp. May be assigned at any time, which ends the ramp.
        hidden_units: >= 1, width of the network for ``per_example``.
        from_logits: as for ``LogitsDistillation``.
        class_map: as for ``LogitsDistillation``.
        standardize: as for ``LogitsDistillation``.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if a number is out of bounds, or for ``per_example`` with several outputs.

    Example:
        >>> term = CurriculumTemperature()
        >>> round(term.temperature, 3)  # 1 + 20 / (1 + exp(-1))
        15.621

    Reference:
        Li et al., "Curriculum Temperature for Knowledge Distillation", 2023, arXiv:2211.16231.
        Differs: the ramp is counted in steps, so that it rises smoothly; the network's last layer starts at 0 (one
        temperature for all) and the student gets no gradient through the network.
    """

    def __init__(
        self,
        loss: Any = "kl_divergence",
        ramp_steps: int = 1000,
        per_example: bool = False,
        initial_temperature: float | None = None,
        min_temperature: float = 1.0,
        max_temperature: float = 21.0,
        reversal_strength: float = 1.0,
        hidden_units: int = 64,
        from_logits: bool = True,
        class_map: Sequence[int] | None = None,
        standardize: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        owner = type(self).__name__
        low = number(owner, "min_temperature", min_temperature, above=0.0)
        high = number(owner, "max_temperature", max_temperature, above=low)
        start = initial_temperature
        if start is not None:
            start = number(owner, "initial_temperature", start, above=low)
            if start >= high:
                raise error(owner, f"initial_temperature < {high:g}", start)
        given = {"from_logits": from_logits, "class_map": class_map, "standardize": standardize, "name": name, **kwargs}
        super().__init__(loss, start or low + (high - low) / (1.0 + math.exp(-1.0)), low, high, **given)
        self.initial_temperature = start
        self._set_reversal(reversal_strength, ramp_steps, _CosineRamp)
        self.per_example = bool(per_example)
        self.hidden_units = integer(owner, "hidden_units", hidden_units, low=1)
        self.needs_shapes = self.per_example
        self._theta: Any = None
        self.hidden: Any = None
        self.head: Any = None

    @property
    def temperature(self) -> float:
        """The current temperature; for ``per_example`` its mean since the epoch began. Assign to restart it."""
        if self.per_example or self._theta is None:
            return self._mean_seen()
        return float(self._bounded(ops.convert_to_tensor(self._theta)))

    @temperature.setter
    def temperature(self, value: Any) -> None:
        owner = type(self).__name__
        if self.per_example or self._theta is None:
            raise error(owner, "no temperature to be assigned", value, "Use initial_temperature in the constructor")
        value = number(owner, "temperature", value, above=self._low)
        if value >= self._high:
            raise error(owner, f"temperature < {self._high:g}", value)
        self._theta.assign(self._theta_of(value))

    def _theta_of(self, temperature: float) -> float:
        return math.log((temperature - self._low) / (self._high - temperature))

    def _bounded(self, theta: Any) -> Any:
        return self._low + (self._high - self._low) * ops.sigmoid(theta)

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Create the trained weights: theta, or the network that computes it for each example."""
        super().build_from(teacher_outputs, student_outputs)
        if not self.per_example:
            theta = keras.initializers.Constant(self._theta_of(self._start))
            self._theta = self.add_weight(name="theta", shape=(), dtype="float32", initializer=theta, autocast=False)
            return
        if keras.tree.is_nested(student_outputs):
            got = f"{len(keras.tree.flatten(student_outputs))}"
            raise error(type(self).__name__, "one output for per_example=True", got, "Use one term per output")
        self._build_network(int(student_outputs.shape[-1]))

    def _build_network(self, classes: int) -> None:
        theta = keras.initializers.Constant(self._theta_of(self._start))
        self.hidden = keras.layers.Dense(self.hidden_units, activation="relu", dtype="float32")
        self.hidden.build((None, 2 * classes))
        self.head = keras.layers.Dense(1, kernel_initializer="zeros", bias_initializer=theta, dtype="float32")
        self.head.build((None, self.hidden_units))

    def get_build_config(self) -> dict[str, Any] | None:
        """Return what ``build_from_config`` needs to rebuild the network before its weights are loaded."""
        return {"classes": self.hidden.kernel.shape[0] // 2} if self.hidden is not None else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Make the network's variables."""
        super().build_from(None, None)
        self._build_network(config["classes"])

    def _temperatures(self, teacher: Any, student: Any) -> Any:
        if self.per_example:
            seen = ops.stop_gradient(ops.concatenate([teacher, student], axis=-1))
            theta = self.head(self.hidden(ops.clip(seen, -_LARGEST_LOGIT, _LARGEST_LOGIT)))[..., 0]
        else:
            theta = ops.convert_to_tensor(self._theta)
        return self._bounded(against(theta, self._strength.tensor))

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {
            **super().get_config(),
            "per_example": self.per_example,
            "initial_temperature": self.initial_temperature,
            "hidden_units": self.hidden_units,
        }


def _entropy(logits: Tensor) -> Any:
    """Return the entropy of softmax(logits), (...,), nats; classes at -inf contribute nothing."""
    log_p = ops.log_softmax(logits, axis=-1)
    return -ops.sum(ops.where(log_p > -80.0, ops.exp(log_p) * log_p, 0.0), axis=-1)


def _matching_temperature(logits: Tensor, entropy: Any, low: float, high: float) -> Any:
    """Return (...,): the temperature within the bounds at which softmax(logits / temperature) has that entropy."""
    logits = ops.stop_gradient(logits)
    logits = logits - ops.max(logits, axis=-1, keepdims=True)  # before the division: exact near ties
    below = ops.zeros_like(entropy) + math.log(low)
    above = ops.zeros_like(entropy) + math.log(high)

    def halve(_: Any, interval: Any) -> Any:
        below, above = interval
        middle = (below + above) / 2.0
        too_sharp = _entropy(logits * ops.exp(-middle)[..., None]) < entropy
        return ops.where(too_sharp, middle, below), ops.where(too_sharp, above, middle)

    below, above = ops.fori_loop(0, _BISECTIONS, halve, (below, above))
    return ops.stop_gradient(ops.exp((below + above) / 2.0))


@keras.saving.register_keras_serializable(package="keras_distill")
class EntropyMatchedTemperature(_OwnTemperature):
    """Distillation at a per-example temperature that makes every target equally soft (entropy matching).

    Choose it for a teacher that is very sure of some examples and unsure of others: one temperature leaves the first
    nearly hard or blurs the second. Here each example gets the temperature at which the teacher's distribution has the
    same entropy. This is the package's own definition, not a paper's. Costs 20 softmaxes of the teacher's logits per
    step.

    Formula: temperature_i with H(softmax(teacher_i / temperature_i)) = entropy_fraction * log(classes), by bisection (H
    grows with the temperature), to 1e-5 relative; the bound where it lies beyond one. Each example's loss carries
    its own temperature**2.

    ``logs`` get ``temperature``, the mean over the examples.

    Args:
        loss: as for ``LogitsDistillation``.
        entropy_fraction: target entropy as a fraction, between 0 and 1, of that of the uniform distribution over the
            classes that can occur (those not at -inf). A number or a ``LearningRateSchedule``; may be assigned at any
            time.
        min_temperature: > 0, lower bound, reached by examples that are already softer than the target.
        max_temperature: upper bound, reached by examples so sure that no reasonable temperature softens them.
        from_logits: as for ``LogitsDistillation``.
        class_map: as for ``LogitsDistillation``.
        standardize: as for ``LogitsDistillation``; the entropy is that of the standardised logits.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if a number is out of bounds.

    Example:
        >>> import numpy as np
        >>> teacher = np.log([[0.8, 0.2], [0.9, 0.1]])
        >>> term = EntropyMatchedTemperature(entropy_fraction=0.721928)  # that of (0.8, 0.2)
        >>> values = term.values(teacher, np.zeros((2, 2)))
        >>> round(term.temperature, 3)  # the mean of 1 and log(9) / log(4): both become (0.8, 0.2)
        1.292
    """

    def __init__(
        self,
        loss: Any = "kl_divergence",
        entropy_fraction: Any = 0.5,
        min_temperature: float = 0.25,
        max_temperature: float = 20.0,
        from_logits: bool = True,
        class_map: Sequence[int] | None = None,
        standardize: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        given = {"from_logits": from_logits, "class_map": class_map, "standardize": standardize, "name": name, **kwargs}
        super().__init__(loss, 1.0, min_temperature, max_temperature, **given)
        self._fraction = Setting(entropy_fraction, self._check_fraction)

    def _check_fraction(self, value: Any) -> float:
        owner = type(self).__name__
        fraction = number(owner, "entropy_fraction", value, above=0.0, high=1.0)
        if fraction == 1.0:
            raise error(owner, "entropy_fraction < 1", value, "Only an infinite temperature makes targets uniform")
        return fraction

    @property
    def settings(self) -> dict[str, Setting]:
        """The target entropy."""
        return {"entropy_fraction": self._fraction}

    @property
    def entropy_fraction(self) -> float:
        """The target entropy as a fraction of the largest, 0 to 1. Assign at any time; the next step uses it."""
        return self._fraction.number

    @entropy_fraction.setter
    def entropy_fraction(self, value: Any) -> None:
        self._fraction.assign(value)

    def _temperatures(self, teacher: Any, student: Any) -> Any:
        possible = ops.sum(ops.cast(teacher > -math.inf, "float32"), axis=-1)
        return _matching_temperature(teacher, self._fraction.tensor * ops.log(possible), self._low, self._high)

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {**super().get_config(), "entropy_fraction": self._fraction.config}
