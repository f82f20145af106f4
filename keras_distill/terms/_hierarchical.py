"""The term for several stages at once: pairs of layers that share one loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import error, number
from keras_distill._typing import Structure, Tensor
from keras_distill.terms._base import DistillationLoss
from keras_distill.terms._features import FeatureDistillation
from keras_distill.terms._positions import mask_of


@keras.saving.register_keras_serializable(package="keras_distill")
class HierarchicalDistillation(DistillationLoss):
    """Distillation of several stages, each a teacher's layer and a student's, by one loss (hierarchical distillation).

    Choose it over a list of ``FeatureDistillation`` terms when the stages belong together: one weight and one line in
    the logs for all of them. Each stage has its own adapter.

    Formula: sum over stages of weight * loss(teacher's layer, adapter(student's layer)).

    Args:
        pairs: (teacher layer, student layer) names, shallow to deep.
        loss: as for ``FeatureDistillation``.
        weights: >= 0, one for each pair; 1 each by default.
        adapter: ``"auto"`` or None for all stages, or a list with one entry (``"auto"``, None or a layer) per pair.
        mask_layer_name: as for ``FeatureDistillation``: a tap of the student, the mask of all stages.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if there is no pair, a pair does not consist of two names, or the weights or adapters do not fit the
            pairs.

    Example:
        >>> import numpy as np
        >>> term = HierarchicalDistillation([("t1", "s1"), ("t2", "s2")], weights=[1.0, 0.5])
        >>> zeros, ones = np.zeros((2, 3), "float32"), np.ones((2, 3), "float32")
        >>> float(term.compute_loss([zeros, zeros], [ones, 2 * ones]))  # 1 * 1 + 0.5 * 4
        3.0

    Reference:
        Several stages at once: Romero et al. 2015 (arXiv:1412.6550) and Zagoruyko, Komodakis 2017 (arXiv:1612.03928).
        Differs: any loss and any weights.
    """

    needs_shapes = True
    masks_values = True

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        loss: Any = "mse",
        weights: Sequence[float] | None = None,
        adapter: Any = None,
        mask_layer_name: str | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        owner = type(self).__name__
        for pair in pairs or [()]:  # type: ignore[list-item]
            if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(each, str) for each in pair):
                raise error(owner, "pairs of a teacher's and a student's layer name", pairs)
        pairs = [(teacher, student) for teacher, student in pairs]
        weights = [1.0] * len(pairs) if weights is None else list(weights)
        adapters = list(adapter) if isinstance(adapter, (list, tuple)) else [adapter] * len(pairs)
        for what, given in (("weights", weights), ("adapters", adapters)):
            if len(given) != len(pairs):
                raise error(owner, f"one of {what} for each of the {len(pairs)} pairs", f"{len(given)}")
        if isinstance(adapter, keras.layers.Layer) and len(pairs) > 1:
            raise error(owner, "a list of adapters, one per pair", adapter, "One layer cannot serve several stages")
        self.pairs = pairs
        self.weights_of_pairs = [number(owner, "each of weights", weight, low=0.0) for weight in weights]
        self.stages = [
            FeatureDistillation(loss, teacher, student, adapter=each, name=f"{self.name}_stage_{index}")
            for index, ((teacher, student), each) in enumerate(zip(pairs, adapters, strict=True))
        ]
        self.teacher_layer_name = [teacher for teacher, _ in pairs]
        self.mask_layer_name = mask_layer_name
        self.student_layer_name = [student for _, student in pairs] + ([mask_layer_name] if mask_layer_name else [])

    def validate_model_compatibility(self, teacher: Any, student: keras.Model) -> None:
        """Raise ``ValueError`` if a named layer does not exist."""
        for stage in self.stages:
            stage.validate_model_compatibility(teacher, student)

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Raise ``ValueError`` if the number of tensors differs from the number of pairs."""
        if len(teacher_outputs) != len(self.stages) or len(student_outputs) != len(self.student_layer_name):
            got = f"{len(teacher_outputs)} and {len(student_outputs)}"
            raise error(type(self).__name__, f"{len(self.stages)} tensors of each model", got)

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Create the adapter of each stage."""
        students = student_outputs[: len(self.stages)]  # without the mask
        for stage, teacher, student in zip(self.stages, teacher_outputs, students, strict=True):
            stage.build_from(teacher, student)
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        """Return what ``build_from_config`` needs to rebuild the adapters before their weights are loaded."""
        return {"stages": [stage.get_build_config() for stage in self.stages]} if self.built else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Make the adapters' variables."""
        for stage, each in zip(self.stages, config["stages"], strict=True):
            stage.build_from_config(each)
        self.built = True

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
    ) -> Any:
        """Return each example's weighted sum over stages."""
        total: Any = 0.0
        shared = student_outputs[-1] if self.mask_layer_name else None
        for weight, stage, teacher, student in zip(
            self.weights_of_pairs, self.stages, teacher_outputs, student_outputs[: len(self.stages)], strict=True
        ):
            mask = mask_of(student) if shared is None else ops.cast(shared, "bool")
            value = stage.values(teacher, student, mask=mask, training=training)
            total = total + ops.multiply(weight, value)
        return total

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        stages = [stage.get_config() for stage in self.stages]
        return {
            **super().get_config(),
            "pairs": [list(pair) for pair in self.pairs],
            "loss": stages[0]["loss"],
            "weights": list(self.weights_of_pairs),
            "adapter": [stage["adapter"] for stage in stages],
            "mask_layer_name": self.mask_layer_name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HierarchicalDistillation:
        """Rebuild the term that ``get_config`` described."""
        config = dict(config)
        for key in ("loss", "adapter"):
            config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)
