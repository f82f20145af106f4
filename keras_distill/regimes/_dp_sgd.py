"""A student with private weights, not only private labels: clipped per-example gradients with added noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill import losses
from keras_distill._checks import error, integer, number
from keras_distill.regimes import _privacy
from keras_distill.regimes._attacks import cross_entropy
from keras_distill.regimes._base import Regime
from keras_distill.regimes._example_gradients import check_student, clipped_sum
from keras_distill.regimes._privacy import TrainingPrivacy
from keras_distill.regimes._private_draws import poisson_batches, secure_normal, secure_uniform
from keras_distill.regimes._rounds import Measured, Round
from keras_distill.training import Batch, Update


@keras.saving.register_keras_serializable(package="keras_distill")
class DifferentiallyPrivate(Regime):
    """Trains a student on private examples so that no single one changes its weights much (DP-SGD).

    Choose it when a single model must be trained on the private data themselves, and ``PrivateVotes`` when public
    examples are available: votes need no per-example gradients. The guarantee covers the student and everything derived
    from it. It does not cover a teacher, which should have seen only public data or be private itself, nor metrics on
    the training data: publish figures on other data.

    Formula: update with (sum_i g_i min(1, clip / ||g_i||) + N(0, (noise * clip)**2)) / batch_size, over examples that
    each enter a step with probability batch_size / num_examples; g_i is the gradient, over all weights, of
    (1 - teacher_weight) * CE(student(x_i), y_i) + teacher_weight * temperature**2 * KL(teacher(x_i) || student(x_i)).

    One backward pass gives the norms (ghost norms), so that a step costs little more than a plain one.

    Args:
        student: a built classifier with one input and logits, in float32, whose weights are all in ``Dense`` and
            ``Conv2D`` layers that are each called once. BatchNormalization mixes examples and is refused, as are
            stochastic layers and losses of the student's own.
        num_examples: >= 1, size of the private data; this number is public, and the same in every ``fit``.
        batch_size: mean number of examples per step, 1..num_examples.
        noise: > 0, standard deviation as a multiple of ``clip``.
        clip: > 0, largest norm of one example's gradient.
        teacher: a trained ``keras.Model``, or None.
        teacher_weight: share of the teacher's loss, 0..1; 0.5 if None and there is a teacher.
        temperature: > 0, no unit.
        seed: None draws samples and noise from the operating system's cryptographic source. An integer makes them
            repeatable, for tests only: whoever knows the seed can remove the noise.
        name: name of this model.

    Attributes:
        student: the student.

    Raises:
        ValueError: if the student cannot be trained privately, or an argument is out of bounds; when ``report`` is
            called without ``keras-distill[privacy]``.

    Example:
        >>> import keras, numpy as np
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> private = DifferentiallyPrivate(student, num_examples=64, batch_size=8, noise=1.5, seed=0)
        >>> private.compile("adam")
        >>> history = private.fit(np.ones((64, 4), "float32"), np.zeros(64, "int32"), epochs=2, verbose=0)
        >>> private.report(delta=1e-3).num_steps
        16

    Reference:
        Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv:1607.00133, algorithm 1. Differs:
        divided by the mean batch size, which is public, not by the number of drawn examples; any optimizer.
    """

    owner = "DifferentiallyPrivate"

    def __init__(
        self,
        student: keras.Model,
        *,
        num_examples: int,
        batch_size: int,
        noise: float,
        clip: float = 1.0,
        teacher: keras.Model | None = None,
        teacher_weight: float | None = None,
        temperature: float = 1.0,
        seed: int | None = None,
        name: str = "differentially_private",
    ) -> None:
        self.num_examples = integer(self.owner, "num_examples", num_examples, low=1)
        self.batch_size = integer(self.owner, "batch_size", batch_size, low=1)
        if self.batch_size > self.num_examples:
            raise error(self.owner, f"batch_size <= {self.num_examples}, the number of examples", batch_size)
        advice = "A standard deviation of 1 times clip is a start"
        self.noise = number(self.owner, "noise", noise, above=0.0, advice=advice)
        self.clip = number(self.owner, "clip", clip, above=0.0)
        weight = (0.0 if teacher is None else 0.5) if teacher_weight is None else teacher_weight
        self.teacher_weight = number(self.owner, "teacher_weight", weight, low=0.0)
        if self.teacher_weight > 1:
            raise error(self.owner, "teacher_weight <= 1", self.teacher_weight)
        self.temperature = number(self.owner, "temperature", temperature, above=0.0)
        self.seed = None if seed is None else integer(self.owner, "seed", seed, low=0)
        if teacher is not None and not isinstance(teacher, keras.Model):
            raise error(self.owner, "a keras.Model as teacher", type(teacher).__name__)
        if teacher is None and self.teacher_weight:
            raise error(self.owner, "a teacher beside teacher_weight", "none")
        if tf.distribute.has_strategy():
            raise error(self.owner, "a single device", type(tf.distribute.get_strategy()).__name__)
        teachers = {} if teacher is None else {"teacher": teacher}
        super().__init__({"student": student}, teachers=teachers, part_names=("private_loss",), name=name)
        check_student(self.owner, student)
        make = {"initializer": "zeros", "dtype": "int64", "trainable": False}
        self.num_steps = self.add_weight(shape=(), name="num_steps", **make)
        self.draws = keras.random.SeedGenerator(0 if self.seed is None else self.seed)

    @property
    def student(self) -> keras.Model:
        """The student."""
        return self.players["student"]

    def rounds(self) -> list[Round]:
        """Return the single round, which only measures; ``train_step`` computes per-example gradients."""
        return [Round(("student",), self._measure)]

    def _values(self, batch: Batch, outputs: Any) -> Any:
        """Return (batch,) losses."""
        total = ops.zeros(ops.shape(outputs)[:1])
        if self.teacher_weight < 1:
            total = total + (1.0 - self.teacher_weight) * cross_entropy(outputs, batch.labels)
        if self.teacher_weight:
            heard = ops.stop_gradient(self._member("teacher")(batch.inputs, training=False))
            each = losses.soft_targets(teacher_logits=heard, student_logits=outputs, temperature=self.temperature)
            total = total + self.teacher_weight * each
        return total

    def _measured(self, batch: Batch, outputs: Any) -> Measured:
        values = self._values(batch, outputs)
        keep = ops.ones_like(values) if batch.weights is None else ops.cast(batch.weights, "float32")
        loss = ops.sum(values * keep) / ops.maximum(ops.sum(keep), 1.0)
        return Measured({"student": loss}, (("private_loss", loss),), outputs)

    def _measure(self, batch: Batch, training: bool) -> Measured:
        return self._measured(batch, self.student(batch.inputs, training=training))

    def _play(self, turn: Round, batch: Batch) -> Measured:
        learner = self._learners["student"]
        with tf.control_dependencies([batch.inputs]):  # a seeded epoch is drawn from the count before its first step
            self.num_steps.assign_add(1)  # before the update, so that a step may be overcounted but never missed
        gradients, outputs = clipped_sum(
            self.student,
            learner.weights,
            batch.inputs,
            lambda said: self._values(batch, said),
            self.clip,
            batch.weights,
        )
        noisy = [
            (each + self.noise * self.clip * drawn) / self.batch_size
            for each, drawn in zip(gradients, self._normal(gradients), strict=True)
        ]
        measured = self._measured(batch, outputs)
        self._guard.apply([*measured.parts], [Update(learner, noisy, [])])
        return measured

    def _normal(self, like: list[Any]) -> list[Any]:
        """Return standard normal tensors of these shapes."""
        if self.seed is not None:
            return [keras.random.normal(each.shape, seed=self.draws) for each in like]
        sizes = [int(np.prod(each.shape)) for each in like]
        flat = tf.numpy_function(lambda count: secure_normal((int(count),)).astype("float32"), [sum(sizes)], "float32")
        flat = tf.ensure_shape(flat, (sum(sizes),))
        return [tf.reshape(part, each.shape) for part, each in zip(tf.split(flat, sizes), like, strict=True)]

    def fit(self, x: Any, y: Any = None, *, epochs: int = 1, **kwargs: Any) -> keras.callbacks.History:  # type: ignore[override]
        """Train on the private examples; every step draws its own batch.

        Args:
            x: (num_examples, ...), an array of all private inputs.
            y: (num_examples,) integer labels; None if only the teacher is used.
            epochs: >= 1, each of num_examples / batch_size steps, rounded up.
            **kwargs: as in Keras' ``fit``, without arguments that choose the examples of a step.

        Returns:
            The history.

        Raises:
            ValueError: if the number of examples differs, or an argument chooses the examples.
        """
        owner = f"{self.owner}.fit"
        for name in ("batch_size", "shuffle", "sample_weight", "class_weight", "steps_per_epoch", "validation_split"):
            if name in kwargs:
                raise error(owner, "steps that draw their examples at random", name, "Leave it out")
        if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)) or len(x) != self.num_examples:
            got = type(x).__name__ if not hasattr(x, "__len__") else f"{type(x).__name__} of {len(x)}"
            raise error(owner, f"an array of all {self.num_examples} private examples", got)
        if y is None and self.teacher_weight < 1:
            raise error(owner, *(self.why_labels() or ("", "")))
        labels = np.zeros(self.num_examples, "int32") if y is None else np.asarray(y)
        return super().fit(self._drawn(np.asarray(x), labels), epochs=epochs, shuffle=False, **kwargs)

    def _drawn(self, x: np.ndarray, y: np.ndarray) -> tf.data.Dataset:
        """Return the batches of an epoch."""

        def source() -> Callable[[int], np.ndarray]:
            known = None if self.seed is None else np.random.default_rng([self.seed, int(self.num_steps.numpy())])
            return secure_uniform if known is None else known.random

        return poisson_batches(x, y, self.batch_size, source)

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, **kwargs: Any) -> None:
        """Configure training; see ``Regime.compile``. There is no ``loss``, and XLA is off: batches differ in size.

        Raises:
            ValueError: if a loss is given.
        """
        if loss is not None:
            raise error(f"{self.owner}.compile", "no loss: it is the cross-entropy of labels and teacher", "one")
        if kwargs.pop("jit_compile", False) is True:
            raise error(f"{self.owner}.compile", "jit_compile=False, because batches differ in size", True)
        super().compile(optimizer, metrics=metrics, jit_compile=False, **kwargs)

    def why_labels(self) -> tuple[str, str] | None:
        """Return what needs labels, for an error message; None if nothing does."""
        return ("labels, which are learned", "Use teacher_weight=1.0 without them") if self.teacher_weight < 1 else None

    def report(self, delta: float) -> TrainingPrivacy:
        """Return the privacy cost of all steps so far.

        Args:
            delta: in 0..1, exclusive; less than 1 / number of examples.

        Returns:
            The frozen report.

        Raises:
            ValueError: if ``delta`` is out of bounds.
        """
        rate, steps = self.batch_size / self.num_examples, int(self.num_steps.numpy())
        return _privacy.training(self.owner, self.noise, rate, steps, delta)

    def get_config(self) -> dict[str, Any]:
        """Raise, because a private run is saved by its weights, which hold the number of steps."""
        advice = "Save private.student, or save_weights to resume later"
        raise error(self.owner, "save_weights, or saving the student", "save", advice)
