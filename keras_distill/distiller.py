"""The distiller: one teacher, one student, one training step."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill import teachers
from keras_distill._checks import error
from keras_distill._data_checks import check_data, warn_of_probabilities
from keras_distill._guard import Guard
from keras_distill._memory import Memory
from keras_distill._numbers import HasNumbers, between_0_and_1, not_negative
from keras_distill._pieces import (
    add_to_mean,
    check_models,
    nan_or_zero,
    num_replicas,
    pick,
    replica_share,
    spec_of_array,
    tap_names,
)
from keras_distill._settings import Setting
from keras_distill._update import by_xla, update
from keras_distill.taps import Taps
from keras_distill.terms import DistillationLoss

__all__ = ["Distiller"]


@keras.saving.register_keras_serializable(package="keras_distill")
class Distiller(HasNumbers):
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
        student_loss_weight: 0 to 1: the share of the supervised loss; a number or a schedule.
        name: name of this model.
        **kwargs: as for ``keras.Model``.

    Raises:
        ValueError: if teacher or student is no model, they are one object or share weights, the numbers are out of
            bounds, or a term does not fit the two models (softmax heads, class counts, unknown layers).

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
        # Inputs reach teacher and student as they are: each casts to its own precision.
        super().__init__(name=name, autocast=False, **{k: v for k, v in kwargs.items() if k != "autocast"})
        check_models(teacher, student)
        if distillation_losses is None:
            raise error("Distiller", "a term such as LogitsDistillation(), or a list of terms", "None")
        terms = list(distillation_losses) if isinstance(distillation_losses, (list, tuple)) else [distillation_losses]
        for term in terms:
            if not isinstance(term, keras.distillation.DistillationLoss):
                raise error("Distiller", "terms such as LogitsDistillation() in distillation_losses", term)
            term.validate_model_compatibility(teacher, student)
        weights = [1.0] * len(terms) if distillation_loss_weights is None else list(distillation_loss_weights)
        if len(weights) != len(terms):
            expected = f"one distillation_loss_weights entry for each of the {len(terms)} terms"
            raise error("Distiller", expected, f"{len(weights)}")

        # The teacher is held where Keras does not track it: it is no part of what is trained, counted or exported.
        object.__setattr__(self, "_frozen", types.SimpleNamespace(teacher=teacher, hidden=False))
        teacher.trainable = False
        self.supports_jit = all(layer.supports_jit for layer in teacher._flatten_layers())  # not of another runtime
        self.student = student
        self.distillation_losses = terms
        self._teacher_parts = list(getattr(teacher, "trainable_parts", ()))  # a learned gate, trained with the student
        self._teacher_feature_extractor = Taps(
            teacher, [] if isinstance(teacher, teachers.Teacher) else tap_names(terms, "teacher"), owner="Distiller"
        )
        self._student_feature_extractor = Taps(student, tap_names(terms, "student"), owner="Distiller")

        self._student_setting = Setting(student_loss_weight, between_0_and_1)
        self._weight_settings = tuple(Setting(weight, not_negative) for weight in weights)
        self._student_setting.create(self, "student_loss_weight")
        for index, setting in enumerate(self._weight_settings):
            setting.create(self, f"distillation_loss_weight_{index}")
        self.student_loss_tracker = keras.metrics.Mean(name="student_loss")
        self.distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")
        self._guard = Guard(self)
        object.__setattr__(self, "_memory", Memory())  # of adaptive callbacks: saved, but no layer of the model
        self.evaluate_distillation = True
        self.stop_on_non_finite = True
        for term in self._own_terms:
            if not term.needs_shapes and not term.built:
                term.build_from(None, None)
        self.built = bool(student.built and self._terms_built)

    # ------------------------------------------------------------------ what may be read and assigned at any time

    @property
    def teacher(self) -> Any:
        """The frozen teacher."""
        if self._frozen.hidden:
            raise AttributeError("The teacher is hidden while weights without it are written.")
        return self._frozen.teacher

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
    ) -> None:
        """Configure training: as ``keras.Model.compile``, and two arguments more.

        Args:
            optimizer: as in Keras; trains the student and the terms' adapters.
            loss: supervised loss in any form that Keras takes; may be None while ``student_loss_weight`` is 0.
            loss_weights: as in Keras.
            metrics: as in Keras: list, dict per output, nested.
            weighted_metrics: as in Keras.
            run_eagerly: as in Keras.
            steps_per_execution: as in Keras.
            jit_compile: as in Keras.
            auto_scale_loss: wrap the optimizer in a ``LossScaleOptimizer`` where the student computes in float16.
            evaluate_distillation: False: ``evaluate`` and validation never run the teacher.
            stop_on_non_finite: stop ``fit`` at the first loss that is NaN or infinite, the student's weights kept.

        Raises:
            ValueError: if ``loss`` is None while ``student_loss_weight`` is above 0.
        """
        if jit_compile is True and not self.supports_jit:
            advice = "Let it answer once: teachers.label(teacher, dataset, path), and train on the store"
            raise error(
                "Distiller", "jit_compile='auto' or False for a teacher that XLA cannot compile", "True", advice
            )
        optimizer = keras.optimizers.get(optimizer)
        half = any(layer.compute_dtype == "float16" for layer in self.student._flatten_layers())
        if auto_scale_loss and half and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
        self._compile_loss = None
        self._compile_metrics = None
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=False,
        )
        self.evaluate_distillation = bool(evaluate_distillation)
        self.stop_on_non_finite = bool(stop_on_non_finite)
        self._check_supervision()
        self._check_strategy()
        warn_of_probabilities(loss, self.student)
        if self.stop_on_non_finite and self.jit_compile:
            self._guard.create()

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the student's outputs."""
        student_inputs, teacher_inputs = self._split(inputs)
        if not self._terms_built:
            self._build_terms(student_inputs, teacher_inputs)
        return self.student(student_inputs, training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Do one step of training on one batch.

        Args:
            data: ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.

        Returns:
            The logs: name to value.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._advance_settings()
        student_inputs, teacher_inputs = self._split(x)
        teacher = self._listen(teacher_inputs)
        state = [(variable, tf.identity(variable)) for variable in self._moving_state()]
        with tf.GradientTape() as tape:
            student = self._student_feature_extractor(student_inputs, training=True)
            parts = self._objective(y, sample_weight, student, teacher, training=True)
            loss = self.optimizer.scale_loss(parts["to_minimize"])
        weights = self.trainable_weights
        gradients = tape.gradient(loss, weights)
        self._update(weights, gradients, parts, teacher, state)
        self._track(parts, student[0])
        return self._logs(x, y, student[0], sample_weight)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluate one batch; changes nothing but the metrics.

        Args:
            data: ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.

        Returns:
            The logs: name to value.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        student_inputs, teacher_inputs = self._split(x)
        teacher = self._listen(teacher_inputs) if self.evaluate_distillation else None
        student = self._student_feature_extractor(student_inputs, training=False)
        parts = self._objective(y, sample_weight, student, teacher, training=False)
        self._track(parts, student[0])
        left_out = set(self._scheduled()) | (set() if self.evaluate_distillation else {"distillation_loss"})
        logs = self._logs(x, y, student[0], sample_weight)
        return {name: value for name, value in logs.items() if name not in left_out}

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the total loss of a batch; what Keras calls to build the supervised loss.

        Args:
            x: the inputs.
            y: the targets, or None.
            y_pred: the student's outputs, or None to run the student (it also runs if a term taps its layers).
            sample_weight: as in ``fit``.
            training: whether the student runs in training mode.

        Returns:
            A scalar.
        """
        student_inputs, teacher_inputs = self._split(x)
        teacher = self._listen(teacher_inputs) if training or self.evaluate_distillation else None
        if y_pred is None or self._student_feature_extractor.names:
            student = self._student_feature_extractor(student_inputs, training=training)
        else:
            student = (y_pred, {})
        return self._objective(y, sample_weight, student, teacher, training=training)["to_minimize"]

    # ------------------------------------------------------------------ the objective, the only copy

    def _objective(
        self, y: Any, sample_weight: Any, student: tuple[Any, dict], teacher: tuple[Any, dict] | None, training: bool
    ) -> dict[str, Any]:
        """Return ``to_minimize`` (this replica's share), ``total``, ``student_loss``, ``distillation_loss``, terms."""
        outputs = student[0]
        supervised = ops.zeros((), "float32")
        if self._compile_loss is not None and y is not None:
            supervised = ops.cast(self._compile_loss(y, outputs, sample_weight), "float32") * num_replicas()
        distillation, each = ops.zeros((), "float32"), []
        for index, term in enumerate(self.distillation_losses):
            if teacher is None:
                break
            value = self._term_value(term, teacher, student, y, sample_weight, training)
            each.append((f"distillation term {index} ({getattr(term, 'name', type(term).__name__)})", value))
            distillation = distillation + self._weight_settings[index].tensor * value
        own = [ops.sum(ops.cast(loss, "float32")) for loss in self.losses]
        own_losses = ops.sum(ops.stack(own)) if own else ops.zeros((), "float32")
        share = self._student_setting.tensor
        mixed = share * supervised + (1.0 - share) * distillation
        return {
            "to_minimize": mixed * replica_share(outputs) + own_losses / num_replicas(),
            "total": mixed + own_losses,
            "student_loss": supervised,
            "distillation_loss": distillation,
            "terms": each,
        }

    def _term_value(
        self,
        term: Any,
        teacher: tuple[Any, dict],
        student: tuple[Any, dict],
        y: Any,
        sample_weight: Any,
        training: bool,
    ) -> Any:
        teacher_side = pick(getattr(term, "teacher_layer_name", None), *teacher)
        student_side = pick(getattr(term, "student_layer_name", None), *student)
        term.validate_outputs(teacher_side, student_side)
        if not isinstance(term, DistillationLoss):
            return ops.cast(term.compute_loss(teacher_side, student_side), "float32")
        return term.compute_loss(teacher_side, student_side, labels=y, sample_weight=sample_weight, training=training)

    def _listen(self, teacher_inputs: Any) -> tuple[Any, dict]:
        """Return the teacher's outputs and taps; never a gradient, never training mode."""
        if isinstance(self.teacher, teachers.Teacher):
            heard = self.teacher.listen(teacher_inputs, tap_names(self.distillation_losses, "teacher"))
        else:
            heard = self._teacher_feature_extractor(teacher_inputs, training=False)
        return heard

    def _split(self, x: Any) -> tuple[Any, Any]:
        return self.teacher.split(x) if isinstance(self.teacher, teachers.Teacher) else (x, x)

    def _moving_state(self) -> list[Any]:
        """Variables that the student's forward pass itself writes: BatchNorm's moving statistics."""
        if not self.stop_on_non_finite:
            return []
        layers = self.student._flatten_layers()
        found = [v for layer in layers for v in layer._non_trainable_variables if layer.trainable]
        return [v for v in found if "float" in keras.backend.standardize_dtype(v.dtype)]

    def _update(
        self, weights: list[Any], gradients: list[Any], parts: dict[str, Any], teacher: Any, state: list[Any]
    ) -> None:
        if not weights:
            raise error("Distiller", "a student with something to train", "no trainable weights")
        if not self.stop_on_non_finite:
            update(self.optimizer, gradients, weights, xla=by_xla(self))
            return
        heard = [t.members if isinstance(t, teachers.Members) else t for t in keras.tree.flatten(teacher[0])]
        named = [("the teacher's outputs", nan_or_zero(tensor)) for tensor in heard if tensor.dtype.is_floating]
        named += [*parts["terms"], ("student_loss", parts["student_loss"]), ("total_loss", parts["total"])]
        small = [g for g in gradients if isinstance(g, tf.Tensor) and g.shape.rank is not None and g.shape.rank < 2]
        if small and not isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # A bias' gradient sums what flows back into its layer: all that is needed to see a backward pass fail.
            sums = [tf.reduce_sum(tf.cast(g, tf.float32)) for g in small]
            named.append(("the gradients", tf.add_n(sums)))
        self._guard.apply(named, state, weights, gradients)

    def _track(self, parts: dict[str, Any], outputs: Any) -> None:
        count = tf.shape(keras.tree.flatten(outputs)[0])[0]
        count = tf.cast(count, tf.float32)
        add_to_mean(self._loss_tracker, parts["total"], count)
        add_to_mean(self.student_loss_tracker, parts["student_loss"], count)
        if parts["terms"]:
            add_to_mean(self.distillation_loss_tracker, parts["distillation_loss"], count)

    def _logs(self, x: Any, y: Any, outputs: Any, sample_weight: Any) -> dict[str, Any]:
        if y is None:
            # Without labels there is nothing for the user's metrics to see.
            compiled = (self._compile_metrics, *(self._compile_loss.metrics if self._compile_loss else ()))
            trackers = [metric for metric in self.metrics if all(metric is not each for each in compiled)]
            logs = {metric.name: metric.result() for metric in trackers}
            return {**logs, "total_loss": logs["loss"], **self._scheduled()}
        return self.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    # ------------------------------------------------------------------ building and checks

    @property
    def _terms_built(self) -> bool:
        return all(term.built for term in self._own_terms)

    def _build_terms(self, student_inputs: Any, teacher_inputs: Any) -> None:
        """Let each term see once, symbolically or really, what it will compare."""
        teacher = self._listen(teacher_inputs)
        student = self._student_feature_extractor(student_inputs, training=False)
        for term in self._own_terms:
            if not term.built:
                term.build_from(pick(term.teacher_layer_name, *teacher), pick(term.student_layer_name, *student))

    def _build_before(self, x: Any) -> None:
        """Build everything from the first element's spec before callbacks see the model (BackupAndRestore must)."""
        if self.built or self._distribute_strategy is not None:
            return  # under a strategy Keras builds by itself
        if isinstance(x, tf.data.Dataset):
            spec = x.element_spec
            spec = spec[0] if isinstance(spec, tuple) else spec
        elif isinstance(x, keras.utils.PyDataset):
            spec = keras.tree.map_structure(tf.convert_to_tensor, keras.utils.unpack_x_y_sample_weight(x[0])[0])
        elif all(hasattr(array, "shape") for array in keras.tree.flatten(x)):
            spec = keras.tree.map_structure(spec_of_array, x)
        else:
            return  # a generator: the first step builds
        # Not through __call__, which would bury the message of a term that does not fit in Keras' own.
        build = tf.function(lambda inputs: self._build_terms(*self._split(inputs)), autograph=False)
        build.get_concrete_function(spec)
        self.built = True

    def _check_supervision(self) -> None:
        if self._compile_loss is None and (self.student_loss_weight > 0 or self._student_setting.schedule is not None):
            advice = "Give compile(loss=...), or student_loss_weight=0 to learn from the teacher alone"
            raise error(
                "Distiller", f"a loss while student_loss_weight is {self.student_loss_weight:g}", "None", advice
            )

    def _check_strategy(self) -> None:
        foreign = [term for term in self.distillation_losses if not isinstance(term, DistillationLoss)]
        if foreign and self.distribute_strategy.num_replicas_in_sync > 1:
            got = f"{type(foreign[0]).__module__}.{type(foreign[0]).__name__}"
            raise error("Distiller", "terms of keras_distill under several replicas", got, "Its scale is not defined")
        steps = getattr(self.optimizer, "gradient_accumulation_steps", None)
        if steps and self.distribute_strategy.num_replicas_in_sync > 1:
            advice = "Keras cannot accumulate under several replicas: use a larger batch"
            raise error("Distiller", "an optimizer without gradient_accumulation_steps", steps, advice)

    # ------------------------------------------------------------------ fit and its errors

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train the student; arguments and result are those of ``keras.Model.fit``.

        Args:
            x: inputs, a ``tf.data.Dataset``, a ``keras.utils.PyDataset`` or a generator.
            y: targets; may be left out while ``student_loss_weight`` is 0.
            *args: as in Keras.
            **kwargs: as in Keras.

        Returns:
            The history of losses and metrics.

        Raises:
            ValueError: if there is no data, labels are missing, of the wrong rank or out of range.
            NonFiniteLossError: if a loss becomes NaN or infinite; the student keeps its last finite weights.
        """
        self._assert_compile_called("fit")
        check_data(self, x, y, "fit")
        self._build_before(x)
        if isinstance(kwargs.get("callbacks"), (list, tuple)):
            # A backup made before a policy has looked at the epoch would resume with the policy an epoch behind.
            last = keras.callbacks.BackupAndRestore
            kwargs["callbacks"] = sorted(kwargs["callbacks"], key=lambda callback: isinstance(callback, last))
        history = super().fit(x, y, *args, **kwargs)
        self._guard.look(now=True)
        return history

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the student; arguments and result are those of ``keras.Model.evaluate``.

        Args:
            x: as in ``fit``.
            y: as in ``fit``.
            *args: as in Keras.
            **kwargs: as in Keras.

        Returns:
            As in Keras: a list of results, or a dict with ``return_dict=True``.

        Raises:
            ValueError: if there is no data, labels are missing, of the wrong rank or out of range.
        """
        if not kwargs.get("_use_cached_eval_dataset"):
            self._assert_compile_called("evaluate")
            check_data(self, x, y, "evaluate")
            self._build_before(x)
        return super().evaluate(x, y, *args, **kwargs)

    def make_train_function(self, force: bool = False) -> Any:
        """Make the function that runs training steps, with the errors of the guard in place.

        Args:
            force: make it again even if there is one.

        Returns:
            The function.
        """
        if force or getattr(self, "train_function", None) is None:
            super().make_train_function(force=force)
            self.train_function = self._guard.around(vars(self)["train_function"])
        return self.train_function

    def make_test_function(self, force: bool = False) -> Any:
        """Make the function that runs evaluation steps, with the same errors.

        Args:
            force: make it again even if there is one.

        Returns:
            The function.
        """
        if force or getattr(self, "test_function", None) is None:
            super().make_test_function(force=force)
            self.test_function = self._guard.around(vars(self)["test_function"])
        return self.test_function
