"""A learned weighting of several teachers, the only trained rule."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill._checks import number
from keras_distill._typing import Structure, Tensor
from keras_distill.teachers._combine import Combine
from keras_distill.teachers._members import Members


@keras.saving.register_keras_serializable(package="keras_distill")
class Gate(keras.layers.Layer):
    """Gives each member a weight per example, and reports the entropy penalty as the layer's own loss.

    Args:
        num_members: number of weights.
        scores: layer or model that maps the teacher's input to (batch, members); None for one dense layer on the
            members' probabilities, which starts from equal weights.
        entropy_weight: >= 0, weight of the penalty on low entropy, which prevents collapse onto one member.
        **kwargs: passed on to ``keras.layers.Layer``.
    """

    def __init__(
        self, num_members: int, scores: keras.layers.Layer | None = None, entropy_weight: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_members = num_members
        self.entropy_weight = entropy_weight
        self.looks_at_inputs = scores is not None
        self.scores = scores or keras.layers.Dense(num_members, kernel_initializer="zeros", dtype="float32")

    def build(self, input_shape: Any) -> None:
        """Build the layer that computes the scores."""
        if not self.scores.built:
            self.scores.build(input_shape)
        self.input_shape_seen = input_shape
        self.built = True

    def call(self, inputs: Structure) -> Any:
        """Return (batch, members), float32, summing to 1."""
        log_weights = ops.log_softmax(ops.cast(self.scores(inputs), "float32"), axis=-1)
        weights = ops.exp(log_weights)
        if self.entropy_weight:
            lost = math.log(self.num_members) + ops.mean(ops.sum(weights * log_weights, axis=-1))
            self.add_loss(self.entropy_weight * lost)
        return weights

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        scores = keras.saving.serialize_keras_object(self.scores) if self.looks_at_inputs else None
        config = {"num_members": self.num_members, "scores": scores, "entropy_weight": self.entropy_weight}
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Gate:
        """Rebuild the layer from ``get_config``."""
        return cls(**{**config, "scores": keras.saving.deserialize_keras_object(config["scores"])})


@keras.saving.register_keras_serializable(package="keras_distill")
class LearnedGate(Combine):
    """Weight the members by a small network that is trained along with the student.

    Use it when no rule says in advance which teacher to trust where. The gate minimises the same loss as the student,
    so it learns to prefer the teacher that is easiest to follow, and only the entropy penalty keeps the others in use.
    Compare with ``ConfidenceWeighted``, which uses the labels instead.

    Formula: sum_m w_m * loss(z_m, student), w = softmax(scores(x)) per example; the gate adds
    entropy_weight * (log members - mean(H(w))) to the training loss.

    Args:
        scores: layer or model from the teacher's input to (batch, members) scores; None for one dense layer on the
            members' probabilities, which works for every kind of input.
        entropy_weight: >= 0; larger values keep the weights more equal.

    Reference:
        Liu, Zhang, Wang, "Adaptive multi-teacher multi-level knowledge distillation", Neurocomputing 2020.
        Differs: an entropy penalty instead of a shared latent factor model.
    """

    per_member = True

    def __init__(self, scores: keras.layers.Layer | None = None, entropy_weight: float = 0.1) -> None:
        self.scores = scores
        self.entropy_weight = number("LearnedGate", "entropy_weight", entropy_weight, low=0.0)
        self.layer: Gate | None = None

    def make_layer(self, num_members: int) -> Gate:
        """Create the trained layer, once, for the ensemble that owns it."""
        if self.layer is None:
            self.layer = Gate(num_members, self.scores, self.entropy_weight, name="gate")
        return self.layer

    def inputs(self, members: Any, teacher_x: Any) -> Any:
        """Return the gate's inputs, without gradients to the teachers."""
        if self.scores is not None:
            return teacher_x
        probabilities = ops.exp(Members(members, self).log_probs())
        return ops.reshape(probabilities, (-1, members.shape[1] * members.shape[-1]))

    def weights(self, members: Members, temperature: Any, *, labels: Any, student_logits: Tensor) -> Any:
        """Return the gate's weights of each example."""
        return self.make_layer(members.num_members)(members.gate_inputs)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        scores = None if self.scores is None else keras.saving.serialize_keras_object(self.scores)
        return {"scores": scores, "entropy_weight": self.entropy_weight}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LearnedGate:
        """Rebuild the rule from ``get_config``."""
        return cls(**{**config, "scores": keras.saving.deserialize_keras_object(config["scores"])})
