"""What a generator is trained for, and what the student makes of its examples."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import losses
from keras_distill._checks import choice, error, number
from keras_distill.taps import walk
from keras_distill.teachers import Ensemble, Single


class Shown(NamedTuple):
    """What both models answered to a batch of synthetic examples.

    Attributes:
        teacher: the teacher's logits, (batch, classes).
        student: the student's logits, (batch, classes).
        taps: the teacher's tensors that the objective asked for, by name.
        examples: the examples themselves.
    """

    teacher: Any
    student: Any
    taps: dict[str, Any]
    examples: Any = None


def _layers_of(teacher: keras.Model, prefix: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yield the name of each tap that ``Teacher.listen`` knows, and its layer."""
    if isinstance(teacher, Ensemble):
        for number_of, member in enumerate(teacher.models):
            yield from _layers_of(member, f"{prefix}{number_of}/")
    else:
        yield from walk(teacher.model if isinstance(teacher, Single) else teacher, prefix)


class GeneratorObjective(abc.ABC):
    """Base of the objectives of a generator. They are added up: ``ClassInversion() + BatchStatistics()``."""

    needs_student = False

    def taps(self, teacher: keras.Model) -> list[str]:
        """Return the names of the teacher's tensors that the objective reads.

        Args:
            teacher: the frozen model.
        """
        return []

    def states(self, teacher: keras.Model, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        """Return layers that hold what the objective remembers from step to step; none by default.

        Args:
            teacher: the frozen model.
            shape: of one example.
        """
        return []

    @abc.abstractmethod
    def generator_loss(self, shown: Shown, teacher: keras.Model) -> Any:
        """Return what the generator minimises, a float32 scalar.

        Args:
            shown: answers to a batch of synthetic examples, with their gradient.
            teacher: the frozen model.
        """

    def student_loss(self, shown: Shown) -> Any:
        """Return what the student minimises on the same examples: KL(teacher || student) by default.

        Args:
            shown: answers, of which the teacher's carry no gradient.
        """
        return ops.mean(losses.soft_targets(teacher_logits=shown.teacher, student_logits=shown.student))

    def __add__(self, other: GeneratorObjective) -> GeneratorObjective:
        """Return the sum of two objectives; the student minimises the first one's loss."""
        return _Sum([*getattr(self, "parts", [self]), *getattr(other, "parts", [other])])


class _Sum(GeneratorObjective):
    def __init__(self, parts: Sequence[GeneratorObjective]) -> None:
        self.parts = list(parts)
        self.needs_student = any(part.needs_student for part in parts)

    def taps(self, teacher: keras.Model) -> list[str]:
        return list(dict.fromkeys(name for part in self.parts for name in part.taps(teacher)))

    def states(self, teacher: keras.Model, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        return [layer for part in self.parts for layer in part.states(teacher, shape)]

    def generator_loss(self, shown: Shown, teacher: keras.Model) -> Any:
        return sum(part.generator_loss(shown, teacher) for part in self.parts)

    def student_loss(self, shown: Shown) -> Any:
        return self.parts[0].student_loss(shown)


class Disagreement(GeneratorObjective):
    """Examples on which teacher and student disagree; the student learns to agree there (DFAD, ZSKT).

    Formula: student D, generator -D, with D = mean |z_t - z_s| over batch and classes ("l1", DFAD),
    mean (z_t - z_s)**2 ("mse"), or mean KL(p_t || p_s) over the batch ("kl", ZSKT).

    Args:
        distance: ``"l1"``, ``"kl"`` or ``"mse"``. The first does not saturate and collapses least.

    Raises:
        ValueError: if ``distance`` is another word.

    Reference:
        Fang et al., "Data-Free Adversarial Distillation", 2019, arXiv:1912.11006; Micaelli, Storkey, "Zero-shot
        Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019, arXiv:1905.09768. Differs: the generator
        minimises -D as DFAD's public code does, where the paper prints its negative logarithm; ZSKT's code divides its
        KL by the number of classes, and adds attention terms.
    """

    needs_student = True

    def __init__(self, distance: str = "l1") -> None:
        self.distance = choice("Disagreement", "distance", distance, ("l1", "kl", "mse"))

    def student_loss(self, shown: Shown) -> Any:
        """Return D."""
        if self.distance == "kl":
            return super().student_loss(shown)
        gap = ops.cast(shown.teacher, "float32") - ops.cast(shown.student, "float32")
        return ops.mean(ops.abs(gap) if self.distance == "l1" else ops.square(gap))

    def generator_loss(self, shown: Shown, teacher: keras.Model) -> Any:
        """Return -D, with the gradient of both models' answers."""
        if self.distance != "kl":
            return -self.student_loss(shown)
        log_p = ops.log_softmax(ops.cast(shown.teacher, "float32"), axis=-1)
        log_q = ops.log_softmax(ops.cast(shown.student, "float32"), axis=-1)
        return -ops.mean(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1))


class ClassInversion(GeneratorObjective):
    """Examples of which the teacher is sure, as many of each class, that excite its features (DAFL).

    Formula: one_hot_weight * mean CE(z_t, argmax z_t) + balance_weight * sum_k q_k log q_k
    - activation_weight * mean |features|, with q the mean of softmax(z_t) over the batch. Student: KL(p_t || p_s).

    Args:
        one_hot_weight: >= 0, of the teacher's certainty.
        balance_weight: >= 0, of the balance of classes.
        activation_weight: >= 0, of the features' size.
        activation_layer_name: the tap whose features are meant; without it there is no such term.

    Raises:
        ValueError: if a weight is negative.

    Reference:
        Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, arXiv:1904.01186, eq. 2-6.
        Differs: the balance uses the natural logarithm, where the public code uses log10; the generator's
        BatchNormalization keeps its usual epsilon, where the code's is .8.
    """

    def __init__(
        self,
        one_hot_weight: float = 1.0,
        balance_weight: float = 5.0,
        activation_weight: float = 0.1,
        activation_layer_name: str | None = None,
    ) -> None:
        owner = "ClassInversion"
        self.one_hot_weight = number(owner, "one_hot_weight", one_hot_weight, low=0.0)
        self.balance_weight = number(owner, "balance_weight", balance_weight, low=0.0)
        self.activation_weight = number(owner, "activation_weight", activation_weight, low=0.0)
        self.activation_layer_name = activation_layer_name

    def taps(self, teacher: keras.Model) -> list[str]:
        """Return the layer whose features are to be large."""
        return [self.activation_layer_name] if self.activation_layer_name else []

    def generator_loss(self, shown: Shown, teacher: keras.Model) -> Any:
        """Return the three terms, weighted."""
        log_p = ops.log_softmax(ops.cast(shown.teacher, "float32"), axis=-1)
        share = ops.mean(ops.exp(log_p), axis=0)
        total = -self.one_hot_weight * ops.mean(ops.max(log_p, axis=-1))
        total = total + self.balance_weight * ops.sum(share * ops.log(ops.maximum(share, 1e-30)))
        if self.activation_layer_name:
            features = ops.cast(shown.taps[self.activation_layer_name], "float32")
            total = total - self.activation_weight * ops.mean(ops.abs(features))
        return total


class BatchStatistics(GeneratorObjective):
    """Examples whose statistics at each of the teacher's BatchNormalization layers are those of its training data.

    Formula: weight * sum over layers of ||mean - moving_mean||**2 + ||variance - moving_variance||**2.

    Args:
        weight: >= 0.

    Raises:
        ValueError: if ``weight`` is negative; in ``DataFree``, if the teacher has no BatchNormalization.

    Reference:
        Yin et al., "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, arXiv:1912.08795,
        eq. 4. Differs: squared norms; the image priors are left to the user.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = number("BatchStatistics", "weight", weight, low=0.0)

    @staticmethod
    def _layers(teacher: keras.Model) -> dict[str, Any]:
        kind = keras.layers.BatchNormalization
        found = {f"{name}:input": layer for name, layer in _layers_of(teacher) if isinstance(layer, kind)}
        if not found:
            advice = "Use Disagreement or ClassInversion"
            raise error("BatchStatistics", "a teacher with BatchNormalization", f"{teacher.name!r}, without", advice)
        return found

    def taps(self, teacher: keras.Model) -> list[str]:
        """Return the inputs of every BatchNormalization."""
        return list(self._layers(teacher))

    def generator_loss(self, shown: Shown, teacher: keras.Model) -> Any:
        """Return the distance between the statistics."""
        total = ops.zeros((), "float32")
        for name, layer in self._layers(teacher).items():
            features = ops.cast(shown.taps[name], "float32")
            axes = [axis for axis in range(len(features.shape)) if axis != layer.axis % len(features.shape)]
            mean, variance = ops.moments(features, axes=axes)
            total = total + ops.sum(ops.square(mean - ops.convert_to_tensor(layer.moving_mean)))
            total = total + ops.sum(ops.square(variance - ops.convert_to_tensor(layer.moving_variance)))
        return self.weight * total
