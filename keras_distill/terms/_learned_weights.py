"""Task weights that are learned with the student."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_distill._checks import error, number
from keras_distill.settings import Setting
from keras_distill.terms._base import DistillationLoss
from keras_distill.terms._logits import LogitsDistillation


@keras.saving.register_keras_serializable(package="keras_distill")
class LearnedWeights(DistillationLoss):
    """Weights a term by uncertainties learned with the student, one for each output (Kendall's weighting).

    Choose it for one student of several tasks whose losses have different scales and noise: a task that cannot be
    learned well gets a small weight. ``callbacks.AdaptiveWeights(method="uncertainty")`` finds the same weights in
    closed form once per epoch, and ``callbacks.DynamicWeightAverage`` follows the speed of learning; neither trains
    anything. A ``LogitsDistillation`` over several outputs gets a weight for each of them; any other term gets a single
    weight, so wrap several terms one by one.

    Formula: sum_i exp(-s_i) * loss_i + s_i / 2. The log-variances s_i are trained; the weight exp(-s_i) tends to
    1 / (2 loss_i).

    Args:
        term: the term whose loss is weighted.
        start: > 0, weight of every output at the beginning.
        name: shown in logs and error messages; the wrapped term's name by default.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if ``term`` is not a term of this package or averages over the batch itself, or ``start`` is not
            positive.

    Example:
        >>> import numpy as np
        >>> from keras_distill import FeatureDistillation
        >>> term = LearnedWeights(FeatureDistillation("mse", "a", "a"), start=0.5)
        >>> value = term.compute_loss(np.zeros((1, 2), "float32"), np.full((1, 2), 2.0, "float32"))
        >>> round(float(value), 4)  # 0.5 * 4 + log(2) / 2
        2.3466

    Reference:
        Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics",
        CVPR 2018, arXiv:1705.07115, eq. 10. Differs: the weight of a regression is exp(-s) and not exp(-s) / 2; the
        student's supervised loss keeps the weight that the distiller gives it.
    """

    needs_shapes = True

    def __init__(self, term: DistillationLoss, start: float = 1.0, name: str | None = None, **kwargs: Any) -> None:
        owner = type(self).__name__
        if not isinstance(term, DistillationLoss) or isinstance(term, LearnedWeights):
            raise error(owner, "term to be one of keras_distill's terms", term)
        if type(term).compute_loss is not DistillationLoss.compute_loss:
            raise error(owner, "a term with one value per example", term, "Give it a weight in the distiller")
        super().__init__(name=name or term.name, **kwargs)
        self.start = number(owner, "start", start, above=0.0)
        self.term = term
        self.masks_values = term.masks_values
        self.teacher_layer_name, self.student_layer_name = term.teacher_layer_name, term.student_layer_name

    @property
    def teacher_taps(self) -> list[str]:
        """Those of the wrapped term."""
        return self.term.teacher_taps

    @property
    def student_taps(self) -> list[str]:
        """Those of the wrapped term."""
        return self.term.student_taps

    @property
    def settings(self) -> dict[str, Setting]:
        """Those of the wrapped term."""
        return self.term.settings

    @property
    def weights_of_outputs(self) -> list[float]:
        """The current weights, in the order of the outputs (of a dictionary: by sorted key)."""
        return [float(each) for each in ops.convert_to_numpy(ops.exp(-self.log_variances))]

    def validate_model_compatibility(self, teacher: Any, student: keras.Model) -> None:
        """Raise ``ValueError`` if the wrapped term does not fit the models."""
        self.term.validate_model_compatibility(teacher, student)

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Raise ``ValueError`` if the wrapped term cannot compare these."""
        self.term.validate_outputs(teacher_outputs, student_outputs)

    def build_from(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Build the wrapped term, and make one log-variance for each output."""
        if not self.term.built:
            self.term.build_from(teacher_outputs, student_outputs)
        several = isinstance(self.term, LogitsDistillation)
        self._make(len(keras.tree.flatten(student_outputs)) if several else 1)

    def _make(self, count: int) -> None:
        initial = keras.initializers.Constant(-math.log(self.start))
        self.log_variances = self.add_weight(shape=(count,), initializer=initial, name="log_variances", dtype="float32")
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        """Return what ``build_from_config`` needs to recreate the variables before their weights are loaded."""
        if not self.built:
            return None
        return {"count": self.log_variances.shape[0], "term": self.term.get_build_config()}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Make the variables of the wrapped term and the log-variances."""
        if self.term.needs_shapes:
            self.term.build_from_config(config["term"])
        else:
            self.term.build_from(None, None)
        self._make(config["count"])

    def losses_by_output(
        self,
        teacher_outputs: Any,
        student_outputs: Any,
        *,
        labels: Any = None,
        sample_weight: Any = None,
        training: bool = True,
        batch: Any = None,
    ) -> dict[str, Any]:
        """Return the wrapped term's weighted loss of each output, plus the penalty on its log-variance."""
        if not self.built:
            self.build_from(teacher_outputs, student_outputs)
        parts = self.term.losses_by_output(
            teacher_outputs, student_outputs, labels=labels, sample_weight=sample_weight, training=training, batch=batch
        )
        if self.log_variances.shape[0] == 1 and len(parts) > 1:  # several layers that share one weight
            parts = {"": ops.sum(ops.stack(list(parts.values())))}
        keys = sorted(student_outputs) if isinstance(student_outputs, dict) else map(str, range(len(parts)))
        place = {name: index for index, name in enumerate(keys)} | {"": 0}
        weighed = {}
        for name, value in parts.items():
            log_variance = self.log_variances[place[name]]
            weighed[name] = ops.exp(-log_variance) * value + log_variance / 2.0
        return weighed

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {
            **super().get_config(),
            "term": keras.saving.serialize_keras_object(self.term),
            "start": self.start,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LearnedWeights:
        """Rebuild the term that ``get_config`` described."""
        return cls(**{**config, "term": keras.saving.deserialize_keras_object(config["term"])})
