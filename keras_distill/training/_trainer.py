"""What ``Distiller`` and every regime share: logs, checks, the guard's errors, saving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_distill._checks import error
from keras_distill._typing import Structure
from keras_distill.settings import Setting
from keras_distill.training._batch import Batch
from keras_distill.training._data_checks import check_data
from keras_distill.training._guard import Guard
from keras_distill.training._saving import SavesTraining


class Trainer(SavesTraining):
    """Base of every model that is compiled and fitted: it trains one or several models in one step.

    A subclass sets ``_guard`` in its constructor and defines ``student``, ``settings``, ``measure`` and Keras' steps.

    Attributes:
        student: the model that is evaluated, exported and watched by callbacks.
        distillation_losses: the terms whose temperatures and weights callbacks may steer.
        stop_on_non_finite: whether training stops at the first number that is not finite.
        owner: name shown in error messages.
    """

    student: keras.Model
    distillation_losses: Sequence[Any] = ()
    stop_on_non_finite: bool = True
    owner = "Trainer"
    built: bool
    train_function: Any
    _guard: Guard
    _compile_loss: Any
    _compile_metrics: Any

    # ------------------------------------------------------------------ what callbacks may rely on

    @property
    def settings(self) -> dict[str, Setting]:
        """Every number that training reads and that may be assigned or scheduled, by its name in the logs."""
        return {}

    def measure(self, batch: Batch, *, training: bool = False) -> Any:
        """Return the loss of a batch and its parts, without an update; adaptive callbacks use it.

        Args:
            batch: inputs, labels, weights.
            training: whether models run in training mode.

        Returns:
            Parts, with ``student_loss`` and ``terms``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define measure().")

    @property
    def terms_that_need_labels(self) -> list[str]:
        """Names of the losses that need labels."""
        found = []
        for term in self.distillation_losses:
            losses = keras.tree.flatten(getattr(term, "loss", None))
            found += [type(loss).__name__ for loss in losses if getattr(loss, "needs_labels", False)]
        return found

    def why_labels(self) -> tuple[str, str] | None:
        """Return what needs labels and what to do without them, for an error message; None where nothing does."""
        needed = self.terms_that_need_labels
        return (f"labels, which {needed[0]} needs", "") if needed else None

    @property
    def is_supervised(self) -> bool:
        """Whether a loss between labels and outputs was given to ``compile``."""
        return self._compile_loss is not None

    def _configure(self, optimizers: Sequence[Any], *, stop_on_non_finite: bool, **options: Any) -> None:
        """Compile anew with the first optimizer, as Keras does, and prepare the guard.

        Args:
            optimizers: all optimizers of this trainer, each scaling its own loss where needed.
            stop_on_non_finite: see ``Trainer``.
            **options: as for ``keras.Model.compile``.
        """
        self._compile_loss = self._compile_metrics = None
        super().compile(optimizer=optimizers[0], auto_scale_loss=False, **options)
        self.stop_on_non_finite = bool(stop_on_non_finite)
        self._check_accumulation(self.owner, optimizers)
        if self.stop_on_non_finite and self.jit_compile:
            self._guard.create()

    # ------------------------------------------------------------------ numbers and logs

    def _advance_settings(self) -> None:
        for setting in self.settings.values():
            setting.advance(self.optimizer.iterations)

    def _scheduled(self) -> dict[str, Any]:
        return {name: each.tensor for name, each in self.settings.items() if each.schedule is not None}

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the results of all metrics, and the scheduled numbers.

        Returns:
            Name to value.
        """
        results: dict[str, Any] = {}
        for metric in self.metrics:
            # Without labels Keras never builds the metrics of ``compile``, and they refuse to give a result.
            if metric is not self._compile_metrics or metric.built:
                result = metric.result()
                results.update(result if isinstance(result, dict) else {metric.name: result})
        # One number under two names, as in keras.distillation; here it includes regularisers.
        return {**results, "total_loss": results["loss"], **self._scheduled()}

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        # Keras returns the last step's logs if their names differ from those of all metrics, as they do without labels
        # or without the teacher. Under several replicas these are means over replicas, not the metrics' results.
        results = self.get_metrics_result()
        return {name: results[name] for name in logs} if set(logs) <= set(results) else logs

    def _unlabelled_logs(self) -> dict[str, Any]:
        """Return the logs of a batch without labels, which the user's metrics do not see."""
        compiled = (self._compile_metrics, *(self._compile_loss.metrics if self._compile_loss else ()))
        trackers = [metric for metric in self.metrics if all(metric is not each for each in compiled)]
        logs = {metric.name: metric.result() for metric in trackers}
        return {**logs, "total_loss": logs["loss"], **self._scheduled()}

    # ------------------------------------------------------------------ fit and its errors

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Train; arguments and result are those of ``keras.Model.fit``.

        Args:
            x: inputs, a ``tf.data.Dataset``, a ``keras.utils.PyDataset`` or a generator.
            y: targets; may be left out while no loss needs labels.
            *args: as in Keras.
            **kwargs: as in Keras.

        Returns:
            The history of losses and metrics.

        Raises:
            ValueError: if there is no data, labels are missing, of the wrong rank or out of range.
            NonFiniteLossError: if a loss becomes NaN or infinite; the last finite weights are kept.
        """
        self._assert_compile_called("fit")
        check_data(self, x, y, "fit", kwargs.get("sample_weight"))
        self._build_before(x)
        own, callbacks = self._own_callbacks(), kwargs.get("callbacks")
        if own and len(args) < 4 and not isinstance(callbacks, keras.callbacks.CallbackList):  # the fourth: callbacks
            kwargs["callbacks"] = [*keras.tree.flatten(callbacks or []), *own]
        if isinstance(kwargs.get("callbacks"), (list, tuple)):
            # A backup made before a policy has seen the epoch would resume with the policy one epoch behind.
            last = keras.callbacks.BackupAndRestore
            kwargs["callbacks"] = sorted(kwargs["callbacks"], key=lambda callback: isinstance(callback, last))
        try:
            history = super().fit(x, y, *args, **kwargs)
        finally:
            self._initial_epoch = None  # set by a backup that resumed; the next fit is another run
        self._guard.look(now=True)
        return history

    def _own_callbacks(self) -> list[keras.callbacks.Callback]:
        """Return callbacks that watch every ``fit``."""
        return []

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; arguments and result are those of ``keras.Model.evaluate``.

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
        """Make the training function, with the guard's errors.

        Args:
            force: make it again even if there is one.

        Returns:
            The function.
        """
        return self._guarded("train_function", super().make_train_function, force)

    def make_test_function(self, force: bool = False) -> Any:
        """Make the evaluation function, with the same errors.

        Args:
            force: make it again even if there is one.

        Returns:
            The function.
        """
        return self._guarded("test_function", super().make_test_function, force)

    def _guarded(self, name: str, make: Callable[..., Any], force: bool) -> Any:
        if force or getattr(self, name, None) is None:
            make(force=force)
            setattr(self, name, self._guard.around(vars(self)[name]))
        return getattr(self, name)

    # ------------------------------------------------------------------ building and checks

    def _build_with(self, inputs: Structure) -> None:
        """Build, inside a trace, everything that depends on the shapes of a batch."""

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
            spec = keras.tree.map_structure(_spec_of_array, x)
        else:
            return  # a generator: the first step builds
        # Not through __call__: Keras would bury a term's error message in its own.
        tf.function(self._build_with, autograph=False).get_concrete_function(spec)
        self.built = True

    def _check_accumulation(self, owner: str, optimizers: Sequence[Any]) -> None:
        """Refuse gradient accumulation under several replicas, which Keras cannot do."""
        for optimizer in optimizers:
            steps = getattr(optimizer, "gradient_accumulation_steps", None)
            if steps and self.distribute_strategy.num_replicas_in_sync > 1:
                advice = "Keras cannot accumulate under several replicas: use a larger batch"
                raise error(owner, "an optimizer without gradient_accumulation_steps", steps, advice)


def add_to_mean(mean: keras.metrics.Mean, value: tf.Tensor, count: tf.Tensor) -> None:
    """Add ``count`` examples with mean ``value`` to ``mean``: like ``update_state``, with a third of its ops.

    Args:
        mean: the metric.
        value: mean over the batch.
        count: number of examples.
    """
    mean.total.assign(mean.total + value * count)
    mean.count.assign(mean.count + count)


def num_examples(outputs: Structure) -> tf.Tensor:
    """Return the number of examples of a batch of outputs, as float32.

    Args:
        outputs: a structure of tensors whose first axis is the batch.
    """
    return tf.cast(tf.shape(keras.tree.flatten(outputs)[0])[0], tf.float32)


def with_loss_scale(optimizer: Any, model: keras.Model) -> Any:
    """Return ``optimizer``, in a ``LossScaleOptimizer`` where ``model`` computes in float16.

    Args:
        optimizer: a Keras optimizer.
        model: the model it trains.
    """
    half = any(layer.compute_dtype == "float16" for layer in model._flatten_layers())
    if half and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")
    return optimizer


def _spec_of_array(array: Any) -> tf.TensorSpec:
    """Return the spec of a batch of ``array``: Keras casts floating-point numbers to its own precision."""
    dtype = keras.backend.standardize_dtype(array.dtype)
    return tf.TensorSpec((None, *array.shape[1:]), keras.config.floatx() if "float" in dtype else dtype)
