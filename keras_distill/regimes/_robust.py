"""Students that are trained on adversarial examples, with or without a teacher."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import losses
from keras_distill._checks import choice, error, integer, number
from keras_distill.regimes._attacks import ProjectedGradient, cross_entropy
from keras_distill.regimes._base import Regime
from keras_distill.regimes._rounds import Measured, Round
from keras_distill.terms import LogitsDistillation
from keras_distill.training import Batch

_HEARD = ("labels", "teacher")


@keras.saving.register_keras_serializable(package="keras_distill")
class AdversarialTraining(Regime):
    """Trains a classifier on examples that are moved against it in every step (adversarial training, AT).

    Choose it where somebody may tamper with the inputs. It costs ``attack.num_steps`` + 1 training passes per step and
    some accuracy on clean inputs. Take ``ard`` or ``rslad`` where a robust teacher can be had, and compare them with
    this class alone: a teacher does not always gain anything over it.

    Formula: (1 - robust_weight) * loss(clean, x) + robust_weight * loss(robust, x'), where loss("labels", x) is that
    of ``compile`` and loss("teacher", x') = temperature**2 * KL(teacher(x) || student(x')); x' moves x so that the
    cross-entropy to the labels, or KL(teacher(x) || student(x')) at temperature 1, rises.

    Args:
        student: a built classifier with one input and logits as outputs.
        attack: what moves the examples. It starts at random in training, and at the example itself in ``evaluate``.
        teacher: a trained ``keras.Model``, robust itself; None where nobody listens to one.
        robust: ``"labels"`` or ``"teacher"``: what is learned on moved examples.
        clean: the same on examples as they are.
        attacked: the same: what the attack works against.
        robust_weight: 0..1, share of the moved examples.
        temperature: > 0, no unit, of what is learned from the teacher.
        seed: >= 0, of the attack's random start.
        name: name of this model.

    Attributes:
        student: the student.

    Raises:
        ValueError: if a model does not fit, a teacher is missing or never heard, or an argument is out of bounds.

    Example:
        >>> import keras, numpy as np
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> robust = AdversarialTraining(student, ProjectedGradient(0.1, num_steps=2))
        >>> robust.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = robust.fit(np.ones((8, 4), "float32"), np.zeros(8, "int32"), verbose=0)
        >>> sorted(history.history)
        ['clean_loss', 'loss', 'robust_loss', 'total_loss']

    Reference:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083,
        eq. 2.1. Differs: the attack sees the student in inference mode, so that BatchNorm does not move.
    """

    owner = "AdversarialTraining"

    def __init__(
        self,
        student: keras.Model,
        attack: ProjectedGradient,
        teacher: keras.Model | None = None,
        *,
        robust: str = "labels",
        clean: str = "labels",
        attacked: str = "labels",
        robust_weight: float = 1.0,
        temperature: float = 1.0,
        seed: int = 0,
        name: str = "adversarial_training",
    ) -> None:
        if not isinstance(attack, ProjectedGradient):
            raise error(self.owner, "an attack such as ProjectedGradient(0.1)", attack)
        self.robust, self.clean, self.attacked = (
            choice(self.owner, key, value, _HEARD)
            for key, value in (("robust", robust), ("clean", clean), ("attacked", attacked))
        )
        self.robust_weight = number(self.owner, "robust_weight", robust_weight, low=0.0)
        if self.robust_weight > 1:
            raise error(self.owner, "robust_weight <= 1", self.robust_weight)
        heard = [self.robust, self.attacked, *([self.clean] if self.robust_weight < 1 else [])]
        if ("teacher" in heard) != (teacher is not None):
            got = "no teacher" if teacher is None else "a teacher whom nothing listens to"
            raise error(self.owner, "a teacher exactly where something listens to it", got, "See ard and rslad")
        if teacher is not None and not isinstance(teacher, keras.Model):
            raise error(self.owner, "a keras.Model as teacher", type(teacher).__name__)
        self._needs_labels = "labels" in heard
        teachers = {} if teacher is None else {"teacher": teacher}
        super().__init__({"student": student}, teachers=teachers, part_names=("clean_loss", "robust_loss"), name=name)
        _check_models(self.owner, student, teacher)
        self.attack, self.temperature = attack, number(self.owner, "temperature", temperature, above=0.0)
        self.seed = integer(self.owner, "seed", seed, low=0)
        self.start = keras.random.SeedGenerator(self.seed)
        self.term = LogitsDistillation(self.temperature)
        self.term.build_from(None, None)

    @property
    def student(self) -> keras.Model:
        """The student."""
        return self.players["student"]

    @property
    def teacher(self) -> keras.Model | None:
        """The frozen teacher, or None."""
        return self._hidden.members.get("teacher")

    def rounds(self) -> list[Round]:
        """Return the one round."""
        return [Round(("student",), self._measure)]

    def _measure(self, batch: Batch, training: bool) -> Measured:
        x, student, teacher = batch.inputs, self.student, self.teacher
        said = None if teacher is None else ops.stop_gradient(teacher(x, training=False))

        def worth(inputs: Any) -> Any:
            outputs = student(inputs, training=False)
            if self.attacked == "labels":
                return cross_entropy(outputs, batch.labels)
            return losses.soft_targets(teacher_logits=said, student_logits=outputs)

        moved = self.attack.perturb(worth, x, self.start if training else None)
        # Where only moved examples are learned, the clean pass is for the metrics alone.
        outputs = student(x, training=training and self.robust_weight < 1)
        clean = self._loss(self.clean, batch, outputs, said)
        robust = self._loss(self.robust, batch, student(moved, training=training), said)
        total = self.robust_weight * robust
        if self.robust_weight < 1:
            total = total + (1.0 - self.robust_weight) * clean
        return Measured({"student": total}, (("clean_loss", clean), ("robust_loss", robust)), outputs)

    def _loss(self, heard: str, batch: Batch, outputs: Any, said: Any) -> Any:
        if heard == "labels" or said is None:
            return self.supervised(batch, outputs)
        return self.term.compute_loss(said, outputs, labels=batch.labels, sample_weight=batch.weights)

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, **kwargs: Any) -> None:
        """Configure training; see ``Regime.compile``. ``loss`` is needed where something is learned from labels.

        Raises:
            ValueError: if it is missing there.
        """
        learned = [self.robust, *([self.clean] if self.robust_weight < 1 else [])]
        if loss is None and "labels" in learned:
            advice = "Such as SparseCategoricalCrossentropy(from_logits=True)"
            raise error(f"{self.owner}.compile", "a loss, because labels are learned", "none", advice)
        super().compile(optimizer, loss, metrics, **kwargs)

    def why_labels(self) -> tuple[str, str] | None:
        """Return what needs labels, for an error message; None where nothing does."""
        return ("labels, which are learned or attacked", "See rslad") if self._needs_labels else None

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        serialize = keras.saving.serialize_keras_object
        names = ("robust", "clean", "attacked", "robust_weight", "temperature", "seed", "name")
        models = {"student": self.student, "attack": self.attack, "teacher": self.teacher}
        return {key: serialize(value) for key, value in models.items()} | {key: getattr(self, key) for key in names}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> AdversarialTraining:
        """Make the regime again from ``get_config``."""
        deserialize = keras.saving.deserialize_keras_object
        made = {key: deserialize(config[key], custom_objects) for key in ("student", "attack", "teacher")}
        return cls(**{**config, **made})


def _check_models(owner: str, student: Any, teacher: Any) -> None:
    for role, model in (("student", student), ("teacher", teacher)):
        inputs, outputs = (getattr(model, each, None) or [None] for each in ("inputs", "outputs"))
        if len(inputs) != 1 or len(outputs) != 1:
            raise error(owner, f"a {role} with one input and one output", f"{len(inputs)} and {len(outputs)}")
    if teacher is not None and getattr(teacher, "outputs", None) and getattr(student, "outputs", None):
        got = teacher.outputs[0].shape[-1], student.outputs[0].shape[-1]
        if got[0] != got[1]:
            raise error(owner, "teacher and student with the same number of classes", f"{got[0]} and {got[1]}")
