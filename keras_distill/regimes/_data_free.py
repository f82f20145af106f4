"""A student without data: a generator makes the examples on which it is taught."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill._checks import error, integer
from keras_distill._typing import Structure
from keras_distill.regimes._adversaries import Disagreement
from keras_distill.regimes._base import Regime
from keras_distill.regimes._generators import input_shape, make_generator
from keras_distill.regimes._objectives import GeneratorObjective, Shown
from keras_distill.regimes._rounds import Measured, Round
from keras_distill.taps import Taps
from keras_distill.teachers import Ensemble, Single, Teacher, as_teacher
from keras_distill.teachers._base import resolved
from keras_distill.training import Batch
from keras_distill.training._trainer import add_to_mean, num_examples


@keras.saving.register_keras_serializable(package="keras_distill")
class DataFree(Regime):
    """Teaches a student on examples that a generator makes, without any real data (DFAD, DAFL, ZSKT, DeepInversion).

    Choose it where the teacher's data are lost or secret, and nothing like them can be had: a pile of unlabelled real
    inputs, even of another source, teaches more in less time. Watch ``class_balance`` in the logs.

    In every step the student is updated ``student_steps`` times on fresh examples, then the generator once.

    Args:
        teacher: a trained model that gives logits.
        student: a built model with the teacher's inputs and classes.
        generator: a built model from noise, (batch, noise size), to the teacher's inputs; ``make_generator(teacher)``
            if None.
        objective: what the generator minimises; ``Disagreement("l1")`` if None. Objectives are added with ``+``.
        student_steps: >= 1, updates of the student per update of the generator.
        seed: >= 0, of the noise.
        name: name of this model.

    Attributes:
        student: the student.
        generator: the generator; ``synthesize(generator, n)`` makes examples to look at.

    Raises:
        ValueError: if the generator's outputs do not fit the teacher, the teacher is stored or has no tensor that the
            objective reads, or an argument is out of bounds.

    Example:
        >>> import keras
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> regime = DataFree(teacher, student, student_steps=2)
        >>> regime.compile("adam")
        >>> history = regime.fit(steps=3, epochs=2, batch_size=8, verbose=0)
        >>> sorted(history.history)
        ['class_balance', 'generator_loss', 'loss', 'student_loss', 'total_loss']

    Reference:
        Fang et al., "Data-Free Adversarial Distillation", 2019, arXiv:1912.11006 (the default). Differs: see the
        objectives.
    """

    owner = "DataFree"

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        generator: keras.Model | None = None,
        objective: GeneratorObjective | None = None,
        student_steps: int = 5,
        *,
        seed: int = 0,
        name: str = "data_free",
    ) -> None:
        if isinstance(teacher, Teacher) and not (teacher.runs and isinstance(teacher, (Single, Ensemble))):
            advice = "Its answers to new examples are not known: give the model itself, or teachers.Ensemble"
            raise error(self.owner, "a teacher that is run on synthetic examples", type(teacher).__name__, advice)
        generator = make_generator(teacher) if generator is None else generator
        parts = ("student_loss", "generator_loss", "class_balance")
        super().__init__(
            {"student": student, "generator": generator}, teachers={"teacher": teacher}, part_names=parts, name=name
        )
        self.objective = Disagreement() if objective is None else objective
        if not isinstance(self.objective, GeneratorObjective):
            raise error(self.owner, "an objective such as Disagreement('l1')", objective)
        self.student_steps = integer(self.owner, "student_steps", student_steps, low=1)
        self.noise = keras.random.SeedGenerator(integer(self.owner, "seed", seed, low=0))
        self._shape = self._check_shapes(teacher, student, generator)
        self._taps = tuple(self.objective.taps(teacher))
        object.__setattr__(self, "_listening", as_teacher(teacher, self.owner))  # the teacher itself is hidden already
        self.states = self.objective.states(self.teacher, self._shape)
        heard, own = zip(*self.objective.pairs(), strict=True) if self.objective.pairs() else ((), ())
        self._heard, self._own = tuple(dict.fromkeys(heard)), Taps(student, own, owner=self.owner)
        if heard:  # layers that do not exist, or cannot be compared, are told of before training
            self.objective.student_loss(self._shown(ops.zeros((1, *self._shape)), training=False))

    def _check_shapes(self, teacher: Any, student: Any, generator: Any) -> tuple[int, ...]:
        if len(generator.input_shape) != 2:
            raise error(self.owner, "a generator of noise vectors, (batch, noise size)", generator.input_shape)
        made, wanted = tuple(generator.output_shape[1:]), tuple(student.input_shape[1:])
        if getattr(teacher, "inputs", None):
            wanted = input_shape(teacher, self.owner) if len(teacher.inputs) == 1 else wanted
        if made != wanted:
            got = f"{made}, where the teacher takes {wanted}"
            raise error(self.owner, "a generator whose outputs the teacher takes", got, "See make_generator(teacher)")
        if getattr(teacher, "outputs", None) and teacher.output_shape[-1] != student.output_shape[-1]:
            got = f"{teacher.output_shape[-1]} and {student.output_shape[-1]}"
            raise error(self.owner, "teacher and student with the same number of classes", got)
        return made

    @property
    def teacher(self) -> Any:
        """The frozen teacher."""
        return self._member("teacher")

    @property
    def student(self) -> keras.Model:
        """The student."""
        return self.players["student"]

    @property
    def generator(self) -> keras.Model:
        """The generator."""
        return self.players["generator"]

    def rounds(self) -> list[Round]:
        """Return the student's round, repeated, then the generator's."""
        return [
            Round(("student",), self._teach, self.student_steps),
            Round(("generator",), self._generate),
        ]

    def _examples(self, batch: Batch, training: bool) -> Any:
        count = ops.shape(keras.tree.flatten(batch.inputs)[0])[0]
        noise = keras.random.normal((count, self.generator.input_shape[-1]), seed=self.noise)
        return self.generator(noise, training=training)

    def _teach(self, batch: Batch, training: bool) -> Measured:
        shown = self._shown(ops.stop_gradient(self._examples(batch, training)), training)
        loss = ops.cast(self.objective.student_loss(shown), "float32")
        return Measured({"student": loss}, (("student_loss", loss),), shown.student)

    def _shown(self, examples: Any, training: bool) -> Shown:
        """Return what the student's loss reads: both models' answers and the tensors that are compared."""
        teacher, heard = self._listening.listen(examples, self._heard)
        student, own = self._own(examples, training=training)
        return Shown(resolved(teacher), student, heard, examples, own)

    def _generate(self, batch: Batch, training: bool) -> Measured:
        examples = self._examples(batch, training)
        teacher, taps = self._listening.listen(examples, self._taps, differentiable=True)
        teacher = resolved(teacher)
        # In training mode as for the student's own update, so that both see one function.
        student = self.student(examples, training=training) if self.objective.needs_student else teacher
        loss = ops.cast(self.objective.generator_loss(Shown(teacher, student, taps, examples), self.teacher), "float32")
        share = ops.mean(ops.softmax(ops.cast(teacher, "float32"), axis=-1), axis=0)
        balance = -ops.sum(share * ops.log(ops.maximum(share, 1e-30))) / math.log(teacher.shape[-1])
        parts = (("generator_loss", loss), ("class_balance", ops.stop_gradient(balance)))
        return Measured({"generator": loss}, parts, teacher)

    def fit(  # type: ignore[override]
        self, steps: int = 300, epochs: int = 20, *, batch_size: int = 64, **kwargs: Any
    ) -> keras.callbacks.History:
        """Train without data.

        Args:
            steps: >= 1, steps per epoch; each updates the student ``student_steps`` times.
            epochs: >= 1.
            batch_size: >= 1, examples that are made for each update.
            **kwargs: as in Keras' ``fit`` (``validation_data`` of real examples, ``callbacks``, ``verbose``). Real
                data only report: choosing a student by them is choosing it by data.

        Returns:
            The history.
        """
        integer(f"{self.owner}.fit", "steps", steps, low=1)
        integer(f"{self.owner}.fit", "batch_size", batch_size, low=1)
        options = tf.data.Options()
        options.autotune.enabled = False
        # The inputs say how many examples are wanted; their values are not read.
        blank = tf.data.Dataset.from_tensors(tf.zeros((batch_size, *self._shape))).repeat(steps).with_options(options)
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), _Collapse(self)]
        return super().fit(blank, epochs=epochs, **{"shuffle": False, **kwargs})

    def why_labels(self) -> tuple[str, str] | None:
        """Return None: nothing needs labels."""
        return None

    def test_step(self, data: Structure) -> dict[str, Any]:
        """Evaluate the student on real examples.

        Args:
            data: ``(x, y)`` or ``(x, y, sample_weight)``.

        Returns:
            The logs: the loss and metrics given to ``compile``.
        """
        batch = Batch.of(data, self.student)
        outputs = self.student(batch.inputs, training=False)
        add_to_mean(self._loss_tracker, self.supervised(batch, outputs), num_examples(outputs))
        left_out = {tracker.name for tracker in self._part_trackers} | set(self._scheduled())
        return {name: value for name, value in self._logs(batch, outputs).items() if name not in left_out}

    def get_config(self) -> dict[str, Any]:
        """Raise: a data-free run is saved by its weights and its models."""
        advice = "Save regime.student, regime.generator, or save_weights to go on later"
        raise error(self.owner, "save_weights, or a save of the models", "save", advice)


class _Collapse(keras.callbacks.Callback):
    """Warns once where the generator makes few classes only."""

    def __init__(self, regime: DataFree) -> None:
        super().__init__()
        self._told = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        balance = (logs or {}).get("class_balance")
        if self._told or balance is None or float(balance) > 0.4:
            return
        self._told = True
        warnings.warn(
            f"DataFree: the teacher sees few classes in the generator's examples (class_balance {float(balance):.2f} "
            f"of 1 in epoch {epoch + 1}): the generator may have collapsed. Try Disagreement('l1') + "
            "ClassInversion(one_hot_weight=0.0), a lower learning rate for the generator, or another seed.",
            stacklevel=2,
        )
