"""A term that teaches a student how unsure the teacher is, with uncertainties as further targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import losses, metrics, teachers
from keras_distill._checks import choice, error, number
from keras_distill._typing import Structure, Tensor
from keras_distill.losses._numerics import arguments
from keras_distill.settings import Setting
from keras_distill.terms._base import DistillationLoss
from keras_distill.terms._positions import mask_of, weighted_mean

_KINDS = ("total", "data", "knowledge", "variance")
_LOSSES = ("mae", "mse")


@keras.saving.register_keras_serializable(package="keras_distill")
class UncertaintyDistillation(DistillationLoss):
    """Distillation of an ensemble's distribution and, through a head, of its uncertainty (uncertainty labels).

    Choose it to keep a teacher's knowledge uncertainty in one pass, without the careful tuning of a Dirichlet student.
    The student has two outputs, logits and uncertainties: ``students.with_uncertainty_head(student, 2)`` adds the
    second. It does not suit regression; see ``losses.NormalInverseGamma``.

    Formula: temperature**2 * KL(mean_m p^m || q) + sum_j weight_j * |u_j - U_j|, U_j the teacher's uncertainties in
    nats at temperature 1, u_j the head's; squared for ``loss="mse"``.

    Args:
        kinds: what the head predicts, in this order: any of "total", "data", "knowledge", "variance"; see
            ``metrics.ensemble_uncertainty``. Only "total" makes sense for a teacher without members.
        temperature: > 0, of the KL part; a number or a schedule.
        weights: >= 0, one per kind; 1 each by default.
        loss: "mae" or "mse".
        outputs: names (of a dict) or positions of the student's logits and uncertainties among its outputs.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if there is no kind, or an argument is out of bounds.

    Example:
        >>> import numpy as np
        >>> sure = np.log(np.array([[[0.5, 0.5], [0.5, 0.5]]], "float32"))  # both members say 1/2: no disagreement
        >>> members = teachers.Members(sure, teachers.MeanProbs())
        >>> student = {"logits": np.zeros((1, 2), "float32"), "uncertainty": np.array([[0.25]], "float32")}
        >>> round(float(UncertaintyDistillation(["knowledge"]).compute_loss(members, student)), 4)
        0.25

    Reference:
        Vadera, Jalaian, Marlin, "Generalized Bayesian Posterior Expectation Distillation for Deep Neural Networks",
        UAI 2020, arXiv:2005.08110, section 3. Differs: all members at once, not one posterior sample per step.
    """

    masks_values = True

    def __init__(
        self,
        kinds: Sequence[str] = ("data", "knowledge"),
        temperature: Any = 1.0,
        weights: Sequence[float] | None = None,
        loss: str = "mae",
        outputs: Sequence[str | int] = ("logits", "uncertainty"),
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        owner = type(self).__name__
        if isinstance(kinds, str) or not list(kinds):
            raise error(owner, "a list of at least one kind", kinds)
        self.kinds = [choice(owner, "each of kinds", kind, _KINDS) for kind in kinds]
        weights = [1.0] * len(self.kinds) if weights is None else list(weights)
        if len(weights) != len(self.kinds):
            raise error(owner, f"one weight for each of the {len(self.kinds)} kinds", f"{len(weights)}")
        self.weights_of_kinds = [number(owner, "each of weights", weight, low=0.0) for weight in weights]
        self.loss = choice(owner, "loss", loss, _LOSSES)
        if len(outputs) != 2:
            raise error(owner, "outputs to name logits and uncertainties", outputs)
        self.outputs = list(outputs)
        self._temperature = Setting(
            temperature,
            lambda value: number(owner, "temperature", value, above=0.0, advice="Use 1.0 for the plain distributions"),
        )

    @property
    def settings(self) -> dict[str, Setting]:
        """The temperature."""
        return {"temperature": self._temperature}

    @property
    def temperature(self) -> float:
        """The current temperature (> 0). Assign at any time."""
        return self._temperature.number

    @temperature.setter
    def temperature(self, value: Any) -> None:
        self._temperature.assign(value)

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Raise ``ValueError`` if the student's outputs are not the two that are named."""
        owner = type(self).__name__
        nested = keras.tree.is_nested(student_outputs)
        known = list(student_outputs) if isinstance(student_outputs, dict) else []
        known = list(range(len(student_outputs))) if nested and not known else known
        if not all(each in known for each in self.outputs):
            got = known if nested else "one output"
            advice = "Use students.with_uncertainty_head(student, num_kinds)"
            raise error(owner, f"a student with outputs {self.outputs[0]!r} and {self.outputs[1]!r}", got, advice)
        said = student_outputs[self.outputs[1]].shape[-1]
        if said != len(self.kinds):
            raise error(owner, f"{len(self.kinds)} uncertainties, one per kind", f"{said}")
        if not isinstance(teacher_outputs, teachers.Members) and self.kinds != ["total"]:
            advice = "Use teachers.Ensemble or teachers.MonteCarloDropout, or kinds=['total']"
            raise error(owner, "a teacher of several members", "one", advice)

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Make the temperature's variable."""
        self._temperature.create(self, "temperature")
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        """Make the temperature's variable."""
        self.build_from(None, None)

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
    ) -> Any:
        """Return the loss of each example."""
        self.validate_outputs(teacher_outputs, student_outputs)
        logits, said = (student_outputs[each] for each in self.outputs)
        mask = mask_of(logits) if isinstance(mask, list) else mask
        if isinstance(teacher_outputs, teachers.Members):
            members = ops.cast(teacher_outputs.members, "float32")
        else:
            members = ops.expand_dims(ops.cast(teacher_outputs, "float32"), 1)
        members = ops.stop_gradient(members)
        together = ops.moveaxis(members, 1, -2)
        truth = metrics.ensemble_uncertainty(together, from_logits=True)
        wanted = ops.stop_gradient(ops.stack([getattr(truth, kind) for kind in self.kinds], axis=-1))
        apart = arguments.clean(ops.cast(said, "float32") - wanted, mask)
        apart = ops.abs(apart) if self.loss == "mae" else ops.square(apart)
        value = losses.ensemble_soft_targets(
            teacher_logits=members, student_logits=logits, temperature=self._temperature.tensor, mask=mask
        )
        weighted = ops.sum(apart * ops.convert_to_tensor(self.weights_of_kinds, "float32"), axis=-1)
        return value + arguments.apply_mask(weighted, mask)

    def compute_loss(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        labels: Structure = None,
        sample_weight: Structure = None,
        training: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Return the weighted mean of ``values``; of several sample weights, the logits' one applies. See the base."""
        if keras.tree.is_nested(sample_weight):
            flat = sample_weight if isinstance(sample_weight, dict) else dict(enumerate(sample_weight))
            sample_weight = flat.get(self.outputs[0])
        if not self.built:
            self.build_from(teacher_outputs, student_outputs)
        mask = mask_of(student_outputs[self.outputs[0]])
        values = self.values(teacher_outputs, student_outputs, labels=labels, mask=mask, training=training)
        return weighted_mean(values, sample_weight, mask, masked=True, fraction=self.counted_fraction)

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {
            **super().get_config(),
            "kinds": list(self.kinds),
            "temperature": self._temperature.config,
            "weights": list(self.weights_of_kinds),
            "loss": self.loss,
            "outputs": list(self.outputs),
        }
