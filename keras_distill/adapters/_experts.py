"""Experts: several small networks, from which a gate that sees the teacher chooses one for each example."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.adapters._base import Adapter


@keras.saving.register_keras_serializable(package="keras_distill")
class ExpertMixture(Adapter):
    """Mixture of experts from a student's embedding to a teacher's, gated by the teacher's embedding (DE).

    ``mixture([student, teacher])`` returns the reconstruction of the teacher. In training the gate draws one expert per
    example by Gumbel-softmax at ``gate_temperature``; otherwise the likeliest expert is used.

    Formula: sum_m a_m * E_m(student), E_m two dense layers, a = softmax((log softmax(gate(teacher)) + Gumbel noise) /
    gate_temperature).

    Args:
        units: >= 1, the width of the teacher's embedding.
        num_experts: >= 1.
        gate_temperature: > 0; a small value selects one expert, a large one mixes them.
        seed: >= 0, seed of the noise.
        **kwargs: as in ``keras.layers.Layer``.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> ExpertMixture(8).compute_output_shape([(None, 2), (None, 8)])
        (None, 8)

    Reference:
        Kang et al., "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020, arXiv:2012.04357,
        section 4.1. Differs: the temperature of the gate is constant; assign it from a callback to anneal it.
    """

    def __init__(
        self, units: int, num_experts: int = 5, gate_temperature: float = 1.0, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        owner = "ExpertMixture"
        self.units = _checks.integer(owner, "units", units, low=1)
        self.num_experts = _checks.integer(owner, "num_experts", num_experts, low=1)
        self.seed = _checks.integer(owner, "seed", seed, low=0)
        self._first_temperature = _checks.number(owner, "gate_temperature", gate_temperature, above=0.0)
        self.noise = keras.random.SeedGenerator(self.seed)
        self.gate = keras.layers.Dense(self.num_experts, dtype=self.dtype_policy, name="gate")
        self.outer: list[keras.layers.Layer] = []
        self.inner: list[keras.layers.Layer] = []

    def build(self, input_shape: Any) -> None:
        """Create the variables."""
        student, teacher = (tuple(shape) for shape in input_shape)
        hidden = (student[-1] + self.units) // 2
        for index in range(self.num_experts):
            self.inner.append(keras.layers.Dense(hidden, "relu", dtype=self.dtype_policy, name=f"inner_{index}"))
            self.outer.append(keras.layers.Dense(self.units, dtype=self.dtype_policy, name=f"outer_{index}"))
            self.inner[-1].build((None, student[-1]))
            self.outer[-1].build((None, hidden))
        self.gate.build((None, teacher[-1]))
        self._temperature = self.add_weight(
            shape=(), initializer=keras.initializers.Constant(self._first_temperature), trainable=False,
            name="gate_temperature",
        )  # fmt: skip
        super().build(input_shape)

    @property
    def gate_temperature(self) -> float:
        """The current temperature of the gate; may be assigned at any time, also during training."""
        return float(ops.convert_to_numpy(self._temperature)) if self.built else self._first_temperature

    @gate_temperature.setter
    def gate_temperature(self, value: float) -> None:
        value = _checks.number("ExpertMixture", "gate_temperature", value, above=0.0)
        if self.built:
            self._temperature.assign(value)
        else:
            self._first_temperature = value

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Return the reconstruction of the teacher's embedding, (batch, units)."""
        student, teacher = inputs
        chances = ops.log_softmax(self.gate(ops.stop_gradient(teacher)), axis=-1)
        if training:
            noise = keras.random.uniform(ops.shape(chances), 1e-20, 1.0, seed=self.noise)
            share = ops.softmax((chances - ops.log(-ops.log(noise))) / self._temperature, axis=-1)
        else:
            share = ops.one_hot(ops.argmax(chances, axis=-1), self.num_experts)
        told = [outer(inner(student)) for inner, outer in zip(self.inner, self.outer, strict=True)]
        return ops.sum(share[..., None] * ops.stack(told, axis=-2), axis=-2)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, int]:
        """Return the shape of the output."""
        return (input_shape[0][0], self.units)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        own = {"units": self.units, "num_experts": self.num_experts, "gate_temperature": self.gate_temperature}
        return {**super().get_config(), **own, "seed": self.seed}
