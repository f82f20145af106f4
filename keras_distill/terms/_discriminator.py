"""A small network that tells teacher and student apart, while the student learns to fool it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import losses, teachers
from keras_distill._checks import error, integer, number
from keras_distill._typing import Structure, Tensor
from keras_distill.terms._base import DistillationLoss


@keras.saving.register_keras_serializable(package="keras_distill")
class Discriminator(DistillationLoss):
    """Adversarial distillation: the student learns to fool a discriminator of teacher and student.

    Choose it beside ``LogitsDistillation``, at a weight of 0.1 to 1, where the teacher's answers have a structure that
    no distance between pairs shows. It compares distributions, so alone it teaches no example its class.

    One backward pass trains both: neither gets the gradient of the other's loss. Each row is centred and scaled to
    variance 1 before it is judged.

    Formula: -log D(v_t) - log(1 - D(v_s)) for the discriminator, -student_weight * log D(v_s) for the student, per
    example; D is the sigmoid of a network of dense layers with spectral normalisation and leaky ReLUs. With a gradient
    penalty there is no normalisation, and gradient_penalty / 2 * ||d logit D(v_t) / d v_t||**2 is added to the
    discriminator's part. Each member of an ensemble serves as v_t, and the mean over the members is taken.

    Args:
        teacher_layer_name: the tap to judge; positions are averaged. None: the outputs.
        student_layer_name: the same for the student, with the same number of channels.
        hidden_units: units of the hidden layers, each >= 1.
        student_weight: >= 0, weight of the student's part.
        gradient_penalty: >= 0, weight of the penalty; None uses spectral normalisation instead.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if an argument is out of bounds, only one layer is named, or the channels differ.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import Distiller, LogitsDistillation
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> terms = [LogitsDistillation(2.0), Discriminator(hidden_units=(8,))]
        >>> distiller = Distiller(teacher, student, terms, [1.0, 0.1], student_loss_weight=0.0)
        >>> distiller.compile("adam")
        >>> history = distiller.fit(np.ones((8, 4), "float32"), verbose=0)

    Reference:
        Wang et al., "KDGAN", NeurIPS 2018; Shen, He, Xue, "MEAL: Multi-Model Ensemble via Adversarial Learning", AAAI
        2019, arXiv:1812.02425, eq. 6-7; Chung et al., "Feature-map-level Online Adversarial Knowledge Distillation",
        ICML 2020, arXiv:2002.01775; Mescheder, Geiger, Nowozin, "Which Training Methods for GANs do actually
        Converge?", ICML 2018, arXiv:1801.04406, eq. 9 (the penalty). Differs: both parts are minimised in one step, on
        the same examples; MEAL draws one member of its ensemble for each batch, where all are used here.
    """

    needs_shapes = True

    def __init__(
        self,
        teacher_layer_name: str | None = None,
        student_layer_name: str | None = None,
        hidden_units: Sequence[int] = (64, 64),
        student_weight: float = 1.0,
        gradient_penalty: float | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        owner = type(self).__name__
        if (teacher_layer_name is None) != (student_layer_name is None):
            raise error(owner, "a layer of each model, or of neither", teacher_layer_name or student_layer_name)
        self.teacher_layer_name, self.student_layer_name = teacher_layer_name, student_layer_name
        if isinstance(hidden_units, int) or not list(hidden_units):
            raise error(owner, "hidden_units to be a list of numbers of units", hidden_units)
        self.hidden_units = [integer(owner, "each of hidden_units", units, low=1) for units in hidden_units]
        self.student_weight = number(owner, "student_weight", student_weight, low=0.0)
        dense = [
            keras.layers.Dense(units, dtype="float32", name=f"judge_{index}")
            for index, units in enumerate([*self.hidden_units, 1])
        ]
        self.gradient_penalty = gradient_penalty
        self.judges = dense
        if gradient_penalty is None:
            normal = keras.layers.SpectralNormalization
            self.judges = [normal(layer, dtype="float32", name=layer.name) for layer in dense]
        else:
            self.gradient_penalty = number(owner, "gradient_penalty", gradient_penalty, low=0.0)

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Raise ``ValueError`` if the two are not single tensors with the same number of channels."""
        owner = type(self).__name__
        if isinstance(teacher_outputs, teachers.Members):
            teacher_outputs = teacher_outputs.members[:, 0]
        for role, outputs in (("teacher", teacher_outputs), ("student", student_outputs)):
            if keras.tree.is_nested(outputs) or not hasattr(outputs, "shape"):
                raise error(owner, f"a single tensor of the {role}", type(outputs).__name__)
        if teacher_outputs.shape[-1] != student_outputs.shape[-1]:
            got = f"{teacher_outputs.shape[-1]} and {student_outputs.shape[-1]}"
            raise error(owner, "equally many channels of teacher and student", got, "Tap layers of one width")

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Make the discriminator's weights."""
        self.validate_outputs(teacher_outputs, student_outputs)
        self._make(int(student_outputs.shape[-1]))

    def _make(self, channels: int) -> None:
        for layer, size in zip(self.judges, [channels, *self.hidden_units], strict=True):
            layer.build((None, size))
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        """Return what ``build_from_config`` needs to rebuild the discriminator before its weights are loaded."""
        return {"channels": _weights(self.judges[0])[0].shape[0]} if self.built else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Make the discriminator's weights."""
        self._make(config["channels"])

    def judge(self, rows: Any, *, training: bool = False, learn: bool = True) -> Any:
        """Return, for each row, the logit of the probability that it is the teacher's.

        Args:
            rows: (batch, channels), float.
            training: whether the estimates of the spectral norms are updated.
            learn: if False, no gradient reaches the discriminator's weights.

        Returns:
            (batch,), float32.
        """
        for index, layer in enumerate(self.judges):
            rows = ops.leaky_relu(rows, 0.2) if index else rows
            if learn:
                rows = layer(rows, training=training) if self.gradient_penalty is None else layer(rows)
            else:
                kernel, bias = (ops.stop_gradient(ops.convert_to_tensor(w)) for w in _weights(layer))
                rows = ops.matmul(rows, kernel) + bias
        return rows[:, 0]

    def slope(self, rows: Tensor) -> Any:
        """Return the gradient of ``judge`` with respect to its rows, itself differentiable in the weights.

        Args:
            rows: (batch, channels), float.

        Returns:
            (batch, channels), float32.
        """
        pairs = [[ops.convert_to_tensor(each) for each in _weights(layer)] for layer in self.judges]
        factors = []
        for kernel, bias in pairs[:-1]:
            rows = ops.matmul(rows, kernel) + bias
            factors.append(ops.where(rows > 0, 1.0, 0.2))
            rows = ops.leaky_relu(rows, 0.2)
        found = ops.transpose(pairs[-1][0]) * ops.ones_like(rows[:, :1])
        for (kernel, _), factor in zip(pairs[-2::-1], factors[::-1], strict=True):
            found = ops.matmul(found * factor, ops.transpose(kernel))
        return found

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
    ) -> Any:
        """Return the discriminator's and the student's loss of each example, summed."""
        members = [teacher_outputs]
        if isinstance(teacher_outputs, teachers.Members):
            members = [teacher_outputs.members[:, index] for index in range(teacher_outputs.num_members)]
        theirs, own = [ops.stop_gradient(_rows(each)) for each in members], _rows(student_outputs)
        told = sum(ops.softplus(-self.judge(each, training=training)) for each in theirs) / len(theirs)
        if self.gradient_penalty:
            steep = sum(ops.sum(ops.square(self.slope(each)), axis=-1) for each in theirs) / len(theirs)
            told = told + 0.5 * self.gradient_penalty * steep
        told = told + ops.softplus(self.judge(ops.stop_gradient(own), training=False))
        return told + self.student_weight * ops.softplus(-self.judge(own, learn=False))

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {
            **super().get_config(),
            "teacher_layer_name": self.teacher_layer_name,
            "student_layer_name": self.student_layer_name,
            "hidden_units": list(self.hidden_units),
            "student_weight": self.student_weight,
            "gradient_penalty": self.gradient_penalty,
        }


def _weights(layer: Any) -> Any:
    """Return kernel and bias of a layer of the discriminator."""
    return getattr(layer, "layer", layer).trainable_variables


def _rows(tensor: Tensor) -> Any:
    """Return (batch, channels), positions averaged, each row centred and scaled."""
    tensor = ops.cast(tensor, "float32")
    axes = tuple(range(1, len(tensor.shape) - 1))
    return losses.standardize_logits(ops.mean(tensor, axis=axes) if axes else tensor)
