"""Objectives of a generator, and the student's losses on its examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import losses
from keras_distill._checks import choice, error, number
from keras_distill.regimes._objectives import GeneratorObjective, Shown, layers_of


class Disagreement(GeneratorObjective):
    """Examples on which teacher and student disagree; the student learns to agree there (DFAD, ZSKT).

    Formula: student D + attention_weight * sum over pairs of layers of AT, generator -D, with D = mean |z_t - z_s| over
    batch and classes ("l1", DFAD), mean (z_t - z_s)**2 ("mse"), or mean KL(p_t || p_s) over the batch ("kl", ZSKT), and
    AT the mean over the batch of ``losses.attention_transfer``.

    Args:
        distance: ``"l1"``, ``"kl"`` or ``"mse"``. L1 does not saturate and is least prone to collapse.
        attention_layers: pairs of a teacher's and a student's tap, (batch, ..., channels) of rank 3 or 4, whose
            attention maps the student also matches; ZSKT uses the ends of the stages. None by default. If given, the
            objective must be the first of a sum.
        attention_weight: >= 0, weight of the sum over pairs.

    Raises:
        ValueError: if ``distance`` is unknown, or a weight or a pair does not fit; in ``DataFree``, if a layer does not
            exist or two maps cannot be compared.

    Example:
        >>> import keras
        >>> def network(channels):
        ...     layers = [keras.layers.Conv2D(channels, 3, name="stage"), keras.layers.Flatten(), keras.layers.Dense(2)]
        ...     return keras.Sequential([keras.Input((6, 6, 1)), *layers])
        >>> objective = Disagreement("kl", attention_layers=[("stage", "stage")])
        >>> from keras_distill.regimes import DataFree
        >>> DataFree(network(8), network(4), objective=objective).objective.attention_weight
        250.0

    Reference:
        Fang et al., "Data-Free Adversarial Distillation", 2019, arXiv:1912.11006; Micaelli, Storkey, "Zero-shot
        Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019, arXiv:1905.09768, eq. 1. Differs: the
        generator minimises -D as DFAD's public code does, where the paper prints its negative logarithm; ZSKT's code
        divides its KL by the number of classes. Attention maps are compared as in ZSKT's code, by a mean of squares.
    """

    needs_student = True

    def __init__(
        self,
        distance: str = "l1",
        attention_layers: Sequence[tuple[str, str]] = (),
        attention_weight: float = 250.0,
    ) -> None:
        owner = "Disagreement"
        self.distance = choice(owner, "distance", distance, ("l1", "kl", "mse"))
        self.attention_weight = number(owner, "attention_weight", attention_weight, low=0.0)
        self.attention_layers: list[tuple[str, str]] = []
        for pair in [attention_layers] if isinstance(attention_layers, str) else attention_layers:
            if not isinstance(pair, (tuple, list)) or [type(each) for each in pair] != [str, str]:
                expected = "attention_layers as pairs (layer of the teacher, layer of the student)"
                raise error(owner, expected, pair)
            self.attention_layers.append((pair[0], pair[1]))

    def pairs(self) -> list[tuple[str, str]]:
        """Return the layers whose attention maps are compared."""
        return self.attention_layers

    def student_loss(self, shown: Shown) -> Any:
        """Return D and the weighted sum of attention transfer."""
        loss = self._distance(shown, super().student_loss)
        for heard, own in self.attention_layers:
            each = losses.attention_transfer(
                teacher_features=shown.taps[heard], student_features=shown.student_taps[own]
            )
            loss = loss + self.attention_weight * ops.mean(each)
        return loss

    def generator_loss(self, shown: Shown, teacher: keras.Model) -> Any:
        """Return -D, with gradients through both models' answers."""
        return -self._distance(shown, _divergence)

    def _distance(self, shown: Shown, divergence: Callable[[Shown], Any]) -> Any:
        if self.distance == "kl":
            return divergence(shown)
        gap = ops.cast(shown.teacher, "float32") - ops.cast(shown.student, "float32")
        return ops.mean(ops.abs(gap) if self.distance == "l1" else ops.square(gap))


def _divergence(shown: Shown) -> Any:
    """Return the mean KL(teacher || student) with gradients to both, unlike ``losses.soft_targets``."""
    log_p = ops.log_softmax(ops.cast(shown.teacher, "float32"), axis=-1)
    log_q = ops.log_softmax(ops.cast(shown.student, "float32"), axis=-1)
    return ops.mean(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1))


class ClassInversion(GeneratorObjective):
    """Examples that the teacher is sure of, balanced over classes, that excite its features (DAFL).

    Formula: one_hot_weight * mean CE(z_t, argmax z_t) + balance_weight * sum_k q_k log q_k
    - activation_weight * mean |features|, with q the mean of softmax(z_t) over the batch. Student: KL(p_t || p_s).

    Args:
        one_hot_weight: >= 0, weight of the teacher's certainty.
        balance_weight: >= 0, weight of the class balance.
        activation_weight: >= 0, weight of the features' size.
        activation_layer_name: the tap of the features; None leaves that term out.

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
        """Return the layer whose features should be large."""
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
    """Examples that match the training data's statistics at each of the teacher's BatchNormalization layers.

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
        found = {f"{name}:input": layer for name, layer in layers_of(teacher) if isinstance(layer, kind)}
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
