"""The term for final outputs: logits at a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import losses as losses_room
from keras_distill import taps, teachers
from keras_distill._checks import error, number
from keras_distill._typing import Structure, Tensor
from keras_distill.heads import activation_of
from keras_distill.losses._base import LogitsLoss
from keras_distill.losses._numerics import arguments
from keras_distill.settings import Setting
from keras_distill.teachers._base import known_model
from keras_distill.terms._base import DistillationLoss
from keras_distill.terms._loss_names import KerasLossOnLogits, _SoftCrossEntropy, as_logits_loss
from keras_distill.terms._structures import deserialized, flat_as, flat_with_none, is_leaf, map_with_none, output_shapes

_SMALLEST_PROBABILITY = 1.1754944e-38  # the smallest normal float32: its logarithm is finite


def _temperature_check(owner: str) -> Any:
    def check(value: Any) -> float:
        if isinstance(value, (str, keras.losses.Loss, type)) or callable(value):
            name = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
            raise error(owner, "temperature > 0", name, f"A loss is given by name: {owner}(loss=...)")
        return number(owner, "temperature", value, above=0.0, advice="Use 1.0 for the plain distributions")

    return check


def _repeatable(loss: Any) -> Any:
    return None if loss is None else loss.repeatable()


def _mask_for(logits: Tensor, mask: Tensor) -> Any:
    """Return the mask with one entry per row of logits; None if it refers to an axis that the output no longer has."""
    rank = len(logits.shape) - 1
    if mask is None or len(mask.shape) > rank:
        return None
    mask = ops.cast(mask, "bool")
    if len(mask.shape) == rank:
        return mask
    mask = ops.reshape(mask, (*ops.shape(mask), *([1] * (rank - len(mask.shape)))))
    return ops.broadcast_to(mask, ops.shape(logits)[:-1])


def labels_where(labels: Structure, logits: Tensor, mask: Tensor) -> Any:
    """Return class labels with masked positions, which may hold any value, set to 0."""
    if labels is None or mask is None or len(labels.shape) != len(logits.shape) - 1:
        return labels
    labels = ops.convert_to_tensor(labels)
    return ops.where(mask, labels, ops.zeros_like(labels))


@keras.saving.register_keras_serializable(package="keras_distill")
class LogitsDistillation(DistillationLoss):
    """Distillation of the final outputs at a temperature (KD, soft targets, knowledge distillation).

    Choose it first. With the default loss it is temperature**2 * KL(softmax(teacher / temperature) || softmax(student
    / temperature)), computed from log-softmax: exact for logits of any size, however KL is spelled.

    Args:
        temperature: > 0, no unit; 2 to 8 are usual. A ``keras.optimizers.schedules.LearningRateSchedule`` is evaluated
            at the optimizer's step. For several outputs: one for all, or a structure with one per output.
        loss: ``"kl_divergence"`` in any spelling, any class of ``keras_distill.losses`` for logits,
            ``"categorical_crossentropy"`` (soft targets times temperature**2), a Keras regression loss such as
            ``"mse"`` (between logits / temperature, or log-probabilities / temperature), or a structure of these with
            one per output; ``None`` skips one.
        from_logits: False if both models' outputs are probabilities; their logarithms are used.
        class_map: for each student class its index among the teacher's classes, if the teacher has more.
        standardize: standardise each example's logits (logit standardisation) before the loss.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if temperature is not above 0 (also at a schedule's start), or every loss is None.

    Example:
        >>> import numpy as np
        >>> term = LogitsDistillation(temperature=1.0)
        >>> teacher, student = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
        >>> round(float(term.compute_loss(teacher, student)), 4)  # 0.5 log 2 + 0.5 log(2/3)
        0.1438

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
        Differs: nothing.
    """

    masks_values = True

    def __init__(
        self,
        temperature: Any = 3.0,
        loss: Any = "kl_divergence",
        from_logits: bool = True,
        class_map: Sequence[int] | None = None,
        standardize: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        owner = type(self).__name__
        losses = map_with_none(lambda each: as_logits_loss(each, owner), loss)
        if all(each is None for each in flat_with_none(losses)):
            raise error(owner, "at least one loss that is not None", loss)
        settings = map_with_none(
            lambda each: None if each is None else Setting(each, _temperature_check(owner)), temperature
        )
        # Bypasses Keras' tracking, which would wrap the lists and dictionaries in its own classes.
        object.__setattr__(self, "_spec", {"losses": losses, "temperatures": settings, "loss": loss})
        object.__setattr__(self, "_looked_at", {})
        self.from_logits = bool(from_logits)
        self.class_map = None if class_map is None else [int(index) for index in class_map]
        self.standardize = bool(standardize)

    @property
    def loss(self) -> Any:
        """The loss, or the structure of losses, that compares the outputs."""
        return self._spec["losses"]

    @property
    def settings(self) -> dict[str, Setting]:
        """The temperatures, by the name under which logs show them."""
        found = [each for each in flat_with_none(self._spec["temperatures"]) if each is not None]
        if len(found) == 1:
            return {"temperature": found[0]}
        return {f"temperature_{index}": each for index, each in enumerate(found)}

    @property
    def temperature(self) -> Any:
        """The current temperature (> 0): a number, or a structure with one per output. Assign at any time."""
        return map_with_none(lambda each: None if each is None else each.number, self._spec["temperatures"])

    @temperature.setter
    def temperature(self, value: Any) -> None:
        settings = flat_with_none(self._spec["temperatures"])
        values = flat_with_none(value)
        if len(values) == 1:
            values = values * len(settings)
        if len(values) != len(settings):
            raise error(type(self).__name__, f"{len(settings)} temperatures", f"{len(values)}")
        for setting, each in zip(settings, values, strict=True):
            if setting is not None:
                setting.assign(each)

    def validate_model_compatibility(self, teacher: Any, student: keras.Model) -> None:
        """Refuse softmax heads, one-logit heads and different class counts, as far as they are known yet."""
        owner = type(self).__name__
        for role, model in (("teacher", known_model(teacher)), ("student", student)):
            if model is None:
                continue
            if not self.from_logits and taps.gives_logits(model):
                advice = "Leave from_logits=True, which compares softmax(logits / temperature)"
                expected = f"a {role} that gives probabilities for from_logits=False"
                raise error(owner, expected, f"model {model.name!r}, which gives logits", advice)
            for loss, activation in zip(self._flat_losses(model), taps.final_activation(model), strict=False):
                if loss is not None and activation is not None and self.from_logits:
                    raise error(
                        owner,
                        f"a {role} that gives logits",
                        f"model {model.name!r}, which ends in {activation}",
                        f"Use taps.without_softmax({role}), or from_logits=False if both models give probabilities",
                    )
        heard, own = output_shapes(teacher), output_shapes(student)
        if heard is not None and own is not None and len(heard) == len(own):
            for loss, teacher_shape, student_shape in zip(self._flat_losses(student), heard, own, strict=False):
                if loss is not None:
                    self._check_classes(loss, teacher_shape[-1], student_shape[-1])

    def _flat_losses(self, model: Any) -> list[Any]:
        losses = flat_with_none(self.loss)
        outputs = len(getattr(model, "outputs", None) or losses)
        return losses * outputs if len(losses) == 1 else losses

    def _check_classes(self, loss: LogitsLoss, teacher_classes: int | None, student_classes: int | None) -> None:
        if teacher_classes is None or student_classes is None or not loss.same_outputs:
            return
        owner = type(self).__name__
        if self.class_map is not None:
            if len(self.class_map) != student_classes:
                expected = f"class_map to name one teacher class for each of the student's {student_classes} classes"
                raise error(owner, expected, f"{len(self.class_map)}")
            if min(self.class_map) < 0 or max(self.class_map) >= teacher_classes:
                raise error(owner, f"class_map within the teacher's {teacher_classes} classes", self.class_map)
        elif teacher_classes != student_classes:
            advice = "Give class_map=[...] if the student's classes are some of the teacher's"
            got = f"{teacher_classes} and {student_classes}"
            raise error(owner, "teacher and student with the same number of classes", got, advice)
        if student_classes == 1 and isinstance(loss, (losses_room.SoftTargets, _SoftCrossEntropy)):
            advice = "Use loss=losses.BinarySoftTargets() for a head with one logit"
            raise error(owner, "at least 2 classes (softmax over one logit is always 1)", "1", advice)

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Raise ``ValueError`` if the two structures differ."""
        if not isinstance(teacher_outputs, teachers.Members):
            keras.tree.assert_same_structure(teacher_outputs, student_outputs)

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Create the temperatures' variables, and check class counts that were not known before."""
        for name, setting in self.settings.items():
            setting.create(self, name)
        # Tracked, so that the random states of stochastic losses are saved and restored with this term.
        self._draws = [
            loss.seed_generator for loss in flat_with_none(self.loss) if loss is not None and loss.seed_generator
        ]
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        """Create the temperatures' variables."""
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
        """Return the loss of each example; a list with one entry per output where there are several."""
        owner = type(self).__name__
        own_loss = self.loss if training else map_with_none(_repeatable, self.loss)
        if not keras.tree.is_nested(student_outputs):
            loss, setting = flat_with_none(own_loss)[0], flat_with_none(self._spec["temperatures"])[0]
            return self._one(loss, teacher_outputs, student_outputs, setting.tensor, labels, mask)
        students = keras.tree.flatten(student_outputs)
        losses = own_loss if not is_leaf(own_loss) else [own_loss] * len(students)
        settings = self._spec["temperatures"]
        settings = settings if not is_leaf(settings) else [settings] * len(students)
        flat_labels = keras.tree.flatten(labels) if labels is not None else []
        flat_labels = flat_labels if len(flat_labels) == len(students) else [None] * len(students)
        masks = mask if isinstance(mask, list) else [mask] * len(students)
        return [
            None if loss is None else self._one(loss, teacher, student, setting.tensor, label, each_mask)
            for loss, setting, teacher, student, label, each_mask in zip(
                flat_as(losses, student_outputs, owner, "loss"),
                flat_as(settings, student_outputs, owner, "temperature"),
                keras.tree.flatten(teacher_outputs),
                students,
                flat_labels,
                masks,
                strict=True,
            )
        ]

    def _logits(self, tensor: Tensor, mask: Tensor = None) -> Any:
        tensor = ops.cast(tensor, "float32")
        if self.from_logits:
            return tensor
        return ops.log(ops.maximum(arguments.clean(tensor, mask), _SMALLEST_PROBABILITY))

    def _one(
        self, loss: LogitsLoss, teacher: Any, student: Any, temperature: Any, labels: Structure, mask: Tensor
    ) -> Any:
        mask = _mask_for(student, mask)
        if isinstance(teacher, teachers.Members):
            return self._members(loss, teacher, student, temperature, labels, mask)
        self._check_classes(loss, teacher.shape[-1], student.shape[-1])
        self._refuse_probabilities(teacher=teacher, student=student)
        teacher, student = self._logits(teacher, mask), self._logits(student, mask)
        if self.class_map is not None:
            teacher = losses_room.select_classes(teacher, self.class_map)
        return self._compare(loss, teacher, student, temperature, labels, mask)

    def _refuse_probabilities(self, **outputs: Tensor) -> None:
        """Raise if an output comes from a softmax, also for models whose last layer is unknown (subclassed ones)."""
        for role, tensor in outputs.items():
            if self.from_logits and not self._looked_at.get(role):
                activation = activation_of(tensor)
                if activation is not None:
                    expected, got = f"a {role} that gives logits", f"outputs of a {activation}"
                    advice = f"Let the {role} return logits, or give from_logits=False if both give probabilities"
                    raise error(type(self).__name__, expected, got, advice)
                self._looked_at[role] = hasattr(tensor, "numpy")  # one batch of values is enough

    def _compare(
        self, loss: LogitsLoss, teacher: Any, student: Any, temperature: Any, labels: Structure, mask: Tensor
    ) -> Any:
        if loss.needs_labels and labels is None:
            raise error(type(self).__name__, f"labels (y), which {type(loss).__name__} needs", "None")
        if loss.needs_members:
            advice = "Use teachers.Ensemble, teachers.MonteCarloDropout or a store of their members"
            raise error(type(self).__name__, f"a teacher of several members for {type(loss).__name__}", "one", advice)
        if self.standardize:
            teacher, student = self._standardized(teacher, mask), self._standardized(student, mask)
        return loss.values(teacher, student, temperature=temperature, labels=labels, mask=mask)

    def _standardized(self, logits: Tensor, mask: Tensor) -> Any:
        """Return the logits, standardised if requested, with 0 at masked positions, which may hold anything."""
        logits = arguments.clean(logits, mask)
        return losses_room.standardize_logits(logits) if self.standardize else logits

    def _members(
        self, loss: LogitsLoss, teacher: Any, student: Any, temperature: Any, labels: Structure, mask: Tensor
    ) -> Any:
        """Compare with several teachers: with their combined distribution, or with each of them if the rule says so."""
        self._check_classes(loss, teacher.members.shape[-1], student.shape[-1])
        student = self._logits(student, mask)
        if loss.needs_members:
            if loss.needs_labels and labels is None:
                raise error(type(self).__name__, f"labels (y), which {type(loss).__name__} needs", "None")
            return loss.values(teacher.members, student, temperature=temperature, labels=labels, mask=mask)
        seen = labels_where(labels, student, mask)
        if teacher.per_member:
            parts = [
                weight * self._compare(loss, logits, student, temperature, labels, mask)
                for logits, weight in teacher.weighted_members(temperature, labels=seen, student_logits=student)
            ]
            return ops.sum(ops.stack(parts), axis=0)
        combined = teacher.resolve(temperature, labels=seen, student_logits=student)
        return self._compare(loss, combined, student, temperature, labels, mask)

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""

        def describe(loss: Any) -> Any:
            loss = loss.loss if isinstance(loss, KerasLossOnLogits) else loss
            return keras.saving.serialize_keras_object(loss)

        return {
            **super().get_config(),
            "temperature": map_with_none(
                lambda each: None if each is None else each.config, self._spec["temperatures"]
            ),
            "loss": map_with_none(describe, self.loss),
            "from_logits": self.from_logits,
            "class_map": self.class_map,
            "standardize": self.standardize,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LogitsDistillation:
        """Rebuild the term that ``get_config`` described."""
        config = dict(config)
        config["loss"] = deserialized(config["loss"])
        config["temperature"] = deserialized(config["temperature"])
        return cls(**config)
