"""A term in which experts reconstruct a teacher's embedding from the student's."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import adapters
from keras_distill._checks import error
from keras_distill._typing import Structure, Tensor
from keras_distill.terms._base import DistillationLoss
from keras_distill.terms._structures import check_layers


@keras.saving.register_keras_serializable(package="keras_distill")
class ExpertDistillation(DistillationLoss):
    """Distillation of an embedding through a mixture of experts (DE of DE-RRD), for recommenders.

    A single map from a small embedding cannot reconstruct a large one: a gate that sees the teacher assigns users (or
    items) with different tastes to different experts. Use one term for users and one for items, beside a ranking loss.

    Formula: sum over units of (teacher - ``adapters.ExpertMixture``(student, teacher))**2.

    Args:
        teacher_layer_name: the tap of the teacher's embedding, (batch, units) or (batch, 1, units).
        student_layer_name: the tap of the student's.
        num_experts: >= 1.
        gate_temperature: > 0; see ``adapters.ExpertMixture``. Assign ``term.experts.gate_temperature`` to anneal it.
        seed: >= 0, seed of the gate's random draws.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if a layer name is missing or an option does not fit.

    Example:
        >>> ExpertDistillation("user", "user").teacher_taps
        ['user']

    Reference:
        Kang et al., "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020, arXiv:2012.04357,
        eq. 3. Differs: nothing; its weight is 0.01 to 0.1 there.
    """

    needs_shapes = True

    def __init__(
        self,
        teacher_layer_name: str,
        student_layer_name: str,
        num_experts: int = 5,
        gate_temperature: float = 1.0,
        seed: int = 0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        for side, layer in (("teacher", teacher_layer_name), ("student", student_layer_name)):
            if not isinstance(layer, str):
                raise error(type(self).__name__, f"{side}_layer_name to be the name of one layer", layer)
        self.teacher_layer_name, self.student_layer_name = teacher_layer_name, student_layer_name
        self._options: dict[str, Any] = {"num_experts": num_experts, "gate_temperature": gate_temperature, "seed": seed}
        self.experts: Any = None  # created when the widths are known
        adapters.ExpertMixture(1, **self._options)  # validates the options now, not at the first batch

    def validate_model_compatibility(self, teacher: Any, student: keras.Model) -> None:
        """Raise ``ValueError`` if a named layer does not exist."""
        check_layers(type(self).__name__, teacher, self.teacher_taps, student, self.student_taps)

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Accept everything: experts fit any two widths."""

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Make the experts from the widths of the two embeddings."""
        self._build_widths(int(teacher_outputs.shape[-1]), int(student_outputs.shape[-1]))

    def _build_widths(self, teacher: int, student: int) -> None:
        self.experts = adapters.ExpertMixture(teacher, **self._options)
        self.experts.build([(None, student), (None, teacher)])
        object.__setattr__(self, "_widths", [teacher, student])
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        """Return the widths from which the experts are rebuilt."""
        return {"widths": self._widths} if self.built else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Make the experts."""
        self._build_widths(*config["widths"])

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
    ) -> Any:
        """Return the squared error of each example's reconstruction, (batch,)."""
        teacher, student = (
            ops.reshape(ops.cast(each, "float32"), (-1, each.shape[-1])) for each in (teacher_outputs, student_outputs)
        )
        teacher = ops.stop_gradient(teacher)
        return ops.sum(ops.square(teacher - self.experts([student, teacher], training=training)), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        names = {"teacher_layer_name": self.teacher_layer_name, "student_layer_name": self.student_layer_name}
        return {**super().get_config(), **names, **self._options}
