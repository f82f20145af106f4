"""The distiller: one teacher, one student, one training step."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_distill import teachers
from keras_distill._checks import error
from keras_distill._typing import Structure
from keras_distill.taps import Taps, own_inputs
from keras_distill.training._batch import Batch, Heard
from keras_distill.training._callback_state import callback_state
from keras_distill.training._data_checks import check_models, unexpected_arguments, warn_of_probabilities
from keras_distill.training._fused_adam import by_xla
from keras_distill.training._guard import Guard, Update, nan_or_zero, nan_unless_finite
from keras_distill.training._has_objective import HasObjective
from keras_distill.training._learner import Learner
from keras_distill.training._objective import Objective, Parts
from keras_distill.training._trainer import with_loss_scale

__all__ = ["Distiller"]


@keras.saving.register_keras_serializable(package="keras_distill")
class Distiller(HasObjective):
    """Trains a student to match labels and a frozen teacher at once (knowledge distillation).

    The loss is ``student_loss_weight * supervised + (1 - student_loss_weight) * sum(weight_i * term_i)``, plus the
    student's own regularisers and ``add_loss`` terms. ``fit``, ``evaluate`` and ``predict`` are Keras' own; the
    distiller's output is the student's. ``distiller.student`` is the product.

    Args:
        teacher: a trained ``keras.Model``, or an object of ``keras_distill.teachers``. It is frozen
            (``trainable = False``), runs with ``training=False`` and never gets a gradient.
        student: a ``keras.Model`` to be trained.
        distillation_losses: a term (``LogitsDistillation``, ``FeatureDistillation``, ...) or a list of terms; those of
            ``keras.distillation`` work too.
        distillation_loss_weights: >= 0, one for each term: numbers, or ``LearningRateSchedule`` objects of the
            optimizer's step. 1 each by default.
        student_loss_weight: share of the supervised loss, 0 to 1; a number or a schedule.
        name: name of this model.
        **kwargs: as for ``keras.Model``.

    Raises:
        ValueError: if teacher or student is not a model, they are the same object or share weights, the numbers are out
            of bounds, or a term does not fit the two models (softmax heads, class counts, unknown layers).

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import LogitsDistillation
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> distiller = Distiller(teacher, student, LogitsDistillation(temperature=2.0), student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> history = distiller.fit(np.ones((8, 4), "float32"), verbose=0)  # no labels are needed here
        >>> sorted(history.history)
        ['distillation_loss', 'loss', 'student_loss', 'total_loss']

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
        Differs: the weights are free, as in ``keras.distillation``.
    """

    def __init__(
        self,
        teacher: Any,
        student: keras.Model,
        distillation_losses: Any,
        distillation_loss_weights: Sequence[Any] | None = None,
        student_loss_weight: Any = 0.5,
        name: str = "distiller",
        **kwargs: Any,
    ) -> None:
        unexpected_arguments("Distiller", kwargs)
        # Inputs reach teacher and student uncast: each casts to its own precision.
        super().__init__(name=name, autocast=False, **{k: v for k, v in kwargs.items() if k != "autocast"})
        check_models(teacher, student)
        objective = Objective(distillation_losses, distillation_loss_weights, student_loss_weight)
        objective.validate(teacher, student)
        self._hide(teacher=teacher)
        object.__setattr__(self, "_frozen", types.SimpleNamespace(teacher=teachers.as_teacher(teacher, "Distiller")))
        # Named as in keras.distillation. A teacher of several models checks its own tap names.
        names = objective.taps("teacher") if self._frozen.teacher is not teacher else []
        self._teacher_feature_extractor = Taps(teacher, names, owner="Distiller")
        teacher.trainable = False
        self.supports_jit = all(layer.supports_jit for layer in teacher._flatten_layers())  # False in another runtime
        self.student = student
        # A teacher computed from the student's outputs also answers with the student's own layers.
        of_teacher = objective.taps("teacher") if self._frozen.teacher.hears_student else []
        self._student_feature_extractor = Taps(student, [*objective.taps("student"), *of_teacher], owner="Distiller")
        self._track_objective(objective, student)
        self._teacher_parts = list(self._frozen.teacher.trainable_parts)  # a learned gate, trained with the student
        self._guard = Guard(self, "Distiller", "The student keeps its", [self._frozen.teacher])
        callback_state(self)
        self.evaluate_distillation = True
        self.stop_on_non_finite = True
        self.built = bool(student.built and self._objective.built)

    # ------------------------------------------------------------------ what may be read and assigned at any time

    @property
    def teacher(self) -> Any:
        """The frozen teacher."""
        return self._member("teacher")

    @property
    def output_names(self) -> list[str]:
        """Names of the student's outputs."""
        return self.student.output_names

    # ------------------------------------------------------------------ Keras' protocol

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: Any = "auto",
        auto_scale_loss: bool = True,
        evaluate_distillation: bool = True,
        stop_on_non_finite: bool = True,
        **unknown: Any,
    ) -> None:
        """Configure training, as ``keras.Model.compile`` does, with two more arguments.

        Args:
            optimizer: as in Keras; trains the student and the terms' adapters.
            loss: supervised loss in any form that Keras takes; may be None while ``student_loss_weight`` is 0.
                ``"student"``: what the student's own ``compute_loss`` returns (detectors of keras-hub encode labels
                there); compile the student with its losses first.
            loss_weights: as in Keras.
            metrics: as in Keras: list, dict per output, nested.
            weighted_metrics: as in Keras.
            run_eagerly: as in Keras.
            steps_per_execution: as in Keras.
            jit_compile: as in Keras.
            auto_scale_loss: wrap the optimizer in a ``LossScaleOptimizer`` where the student computes in float16.
            evaluate_distillation: if False, ``evaluate`` and validation never run the teacher.
            stop_on_non_finite: stop ``fit`` at the first loss that is NaN or infinite, keeping the student's last
                finite weights.
            **unknown: refused; for an argument of another library's distiller, the message gives its name here.

        Raises:
            TypeError: for an unknown argument.
            ValueError: if ``loss`` is None while ``student_loss_weight`` is above 0, or for an argument of another
                library's distiller.
        """
        unexpected_arguments("Distiller.compile", unknown, compiling=True)
        if jit_compile is True and not self.supports_jit:
            advice = "Store its answers with teachers.label(teacher, dataset, path), and train on the store"
            raise error(
                "Distiller", "jit_compile='auto' or False for a teacher that XLA cannot compile", "True", advice
            )
        optimizer = keras.optimizers.get(optimizer)
        if auto_scale_loss:
            optimizer = with_loss_scale(optimizer, self.student)
        self._students_own_loss = isinstance(loss, str) and loss == "student"
        if self._students_own_loss and not self.student.compiled:
            raise error(
                "Distiller", "a compiled student for loss='student'", "an uncompiled one", "Call student.compile"
            )
        self._configure(
            [optimizer],
            loss=None if self._students_own_loss else loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            stop_on_non_finite=stop_on_non_finite,
        )
        self._objective.ignored = tuple(getattr(each, "ignore_class", None) for each in keras.tree.flatten(loss))
        self._learner = Learner(self.student, [self], self.optimizer)
        self.evaluate_distillation = bool(evaluate_distillation)
        self._check_supervision()
        self._check_strategy()
        warn_of_probabilities(loss, self.student)

    def call(self, inputs: Structure, training: bool | None = None) -> Any:
        """Return the student's outputs."""
        if not self._objective.built:
            self._build_with(inputs)
        student_inputs = own_inputs(self.student, self._frozen.teacher.split(inputs)[0])
        return self.student(student_inputs, training=training)

    def train_step(self, data: Structure) -> dict[str, Any]:
        """Train on one batch.

        Args:
            data: ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.

        Returns:
            The logs: name to value.
        """
        batch = Batch.of(data, self.student)
        self._advance_settings()
        student_inputs, teacher_inputs = self._frozen.teacher.split(batch.inputs)
        teacher = self._listen(teacher_inputs)
        state = self._learner.moving_state() if self.stop_on_non_finite else []
        with tf.GradientTape() as tape:
            student = Heard(*self._student_feature_extractor(student_inputs, training=True))
            parts = self._parts(batch, student_inputs, teacher, student, training=True)
            loss = self.optimizer.scale_loss(parts.to_minimize)
        gradients = tape.gradient(loss, self._learner.weights)
        self._update(gradients, state, parts, teacher, student_inputs)
        self._frozen.teacher.after_update(self.student, self.optimizer.iterations)
        self._track(parts, student.outputs)
        return self._logs(batch, student.outputs)

    def test_step(self, data: Structure) -> dict[str, Any]:
        """Evaluate one batch; changes nothing but the metrics.

        Args:
            data: ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.

        Returns:
            The logs: name to value.
        """
        batch = Batch.of(data, self.student)
        parts, student = self._measured(batch, self.evaluate_distillation, training=False)
        self._track(parts, student.outputs)
        left_out = set(self._scheduled()) | (set() if self.evaluate_distillation else self._distillation_logs())
        return {name: value for name, value in self._logs(batch, student.outputs).items() if name not in left_out}

    def make_train_function(self, force: bool = False) -> Any:
        """Make the training function, whose first call creates the optimizer's variables before tracing.

        Keras creates them during the trace, after which TensorFlow traces the whole step again.

        Args:
            force: rebuild it even if it exists.

        Returns:
            The function.
        """
        if force or self.train_function is None:
            run = super().make_train_function(force)

            def built(iterator: Any) -> Any:
                if self._distribute_strategy is None and all(part.built for part in (self, *self._teacher_parts)):
                    self._learner.build_optimizer()  # with a strategy Keras has built everything
                return run(iterator)

            self.train_function = built
        return self.train_function

    # ------------------------------------------------------------------ the pieces of a step

    def _update(
        self, gradients: list[Any], state: list[Any], parts: Parts, teacher: Any, student_inputs: Structure
    ) -> None:
        if not gradients:
            advice = "Set student.trainable = True; a model that was a teacher stays frozen"
            raise error("Distiller", "a student with trainable weights", "none", advice)
        if not self.stop_on_non_finite:
            self._learner.update(gradients, xla=by_xla(self))
            return
        heard = [] if teacher is None else keras.tree.flatten(teacher.outputs)
        heard = [each.members if isinstance(each, teachers.Members) else each for each in heard]
        named = [("the teacher's outputs", nan_or_zero(tensor)) for tensor in heard if tensor.dtype.is_floating]
        named += [*parts.terms, ("student_loss", parts.student_loss), ("total_loss", parts.total)]
        seen = [each for each in keras.tree.flatten(student_inputs) if tf.is_tensor(each) and each.dtype.is_floating]
        causes = [("the inputs", nan_unless_finite(tensor)) for tensor in seen if isinstance(tensor, tf.Tensor)]
        self._guard.apply(named, [Update(self._learner, gradients, state)], causes)

    def _logs(self, batch: Batch, outputs: Structure) -> dict[str, Any]:
        if batch.labels is None:
            return self._unlabelled_logs()
        return self.compute_metrics(batch.inputs, batch.labels, outputs, sample_weight=batch.weights)
