"""A teacher made from the student itself: its running average, or an earlier state."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill._checks import error, integer, number
from keras_distill.teachers._base import Single
from keras_distill.teachers._copied import copied


@keras.saving.register_keras_serializable(package="keras_distill")
class Snapshot(Single):
    """A copy of a model that follows it: its moving average (mean teacher, EMA), or its state some steps ago.

    Give the student to the constructor, and the snapshot to ``Distiller`` as that student's teacher: it is then updated
    inside the training step, after each update of the student, and its weights are saved with the state of training. A
    student of another architecture is not followed. The default is the mean teacher; ``decay=0.0`` with ``every_steps``
    = steps per epoch is last epoch's student.

    Formula: after every ``every_steps``-th step, teacher = decay * teacher + (1 - decay) * student, for all weights,
    BatchNorm's statistics included; integer state is copied. During the first ``warmup_steps`` steps the decay of the
    n-th update is min(decay, 1 - 1 / (n + 1)), the plain average so far.

    Args:
        model: the model to copy; it must be built and clonable by ``keras.models.clone_model``, or of keras-hub.
        decay: 0 <= decay <= 1, no unit. 0.999 averages over about the last 1000 updates.
        every_steps: number of training steps between two updates.
        warmup_steps: >= 0, training steps in which the decay rises, so that the first weights are forgotten sooner.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Example:
        >>> import keras, numpy as np
        >>> student = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> student.set_weights([np.array([[1.0]])])
        >>> teacher = Snapshot(student, decay=0.5)
        >>> student.set_weights([np.array([[2.0]])])
        >>> teacher.update(student)
        >>> float(teacher(np.ones((1, 1)))[0, 0])
        1.5

    Reference:
        Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780.
        Differs: nothing.
    """

    def __init__(
        self, model: keras.Model, decay: float = 0.999, every_steps: int = 1, warmup_steps: int = 0, **kwargs: Any
    ) -> None:
        self_decay = number("Snapshot", "decay", decay, low=0.0, high=1.0)
        if not isinstance(model, keras.Model) or not model.built:
            raise error("Snapshot", "a built keras.Model", model, "Call the model once on a batch first")
        super().__init__(copied("Snapshot", model), **kwargs)
        self.decay = self_decay
        self.every_steps = integer("Snapshot", "every_steps", every_steps, low=1)
        self.warmup_steps = integer("Snapshot", "warmup_steps", warmup_steps, low=0)
        self.moves_by_itself = False  # True once a training step updates it

    def update(self, student: keras.Model, num_updates: int = 1) -> None:
        """Move towards the current student as far as ``num_updates`` updates would."""
        decay = self.decay**num_updates
        for own, other in zip(self.model.variables, student.variables, strict=True):
            if own.dtype.startswith(("float", "bfloat")):
                mixed = decay * ops.cast(own, "float32") + (1.0 - decay) * ops.cast(other, "float32")
                own.assign(ops.cast(mixed, own.dtype))
            else:
                own.assign(other)

    def after_update(self, student: keras.Model, step: Any) -> None:
        """Move towards the student if an update is due; called inside the traced step."""
        pairs = list(zip(self.model.variables, student.variables, strict=False))
        if len(self.model.variables) != len(student.variables) or any(a.shape != b.shape for a, b in pairs):
            return
        self.moves_by_itself = True
        due = tf.equal(tf.cast(step, tf.int64) % self.every_steps, 0)
        decay = self._decay_at(tf.cast(step, tf.float32))

        def moved(own: Any, other: Any) -> Any:
            if own.dtype.is_floating:
                mixed = decay * tf.cast(own, tf.float32) + (1.0 - decay) * tf.cast(other, tf.float32)
                other = tf.cast(mixed, own.dtype)
            return tf.where(due, other, own)

        def everywhere(strategy: Any) -> None:
            for own, other in pairs:
                update = lambda v, o: v.assign(moved(tf.convert_to_tensor(v), tf.convert_to_tensor(o)))  # noqa: E731
                strategy.extended.update(own.value, update, args=(other.value,), group=False)

        if tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context():
            tf.distribute.get_replica_context().merge_call(everywhere)
            return
        for own, other in pairs:
            own.assign(moved(tf.convert_to_tensor(own), tf.convert_to_tensor(other)))

    def _decay_at(self, step: Any) -> Any:
        if not self.warmup_steps:
            return tf.constant(self.decay, tf.float32)
        average = 1.0 - 1.0 / (tf.floor(step / self.every_steps) + 1.0)
        return tf.where(step <= self.warmup_steps, tf.minimum(self.decay, average), self.decay)

    @property
    def states_of_training(self) -> list[Any]:
        """Its weights, and its random states."""
        return [*super().states_of_training, *self.model.variables]

    def follow(self, student: keras.Model) -> keras.callbacks.Callback:
        """Return a callback that updates this snapshot as ``student`` is trained by plain ``fit``.

        A ``Distiller`` with the snapshot as its teacher does not need the callback, which then does nothing.
        """
        return _Follow(self, student)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "decay": self.decay,
            "every_steps": self.every_steps,
            "warmup_steps": self.warmup_steps,
        }


class _Follow(keras.callbacks.Callback):
    """Updates a ``Snapshot`` after every ``every_steps``-th batch, also if Keras runs several batches per call."""

    def __init__(self, teacher: Snapshot, student: keras.Model) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = student
        self._steps = 0
        self._last = -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._last = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.teacher.moves_by_itself:
            return
        before = self._steps // self.teacher.every_steps
        self._steps += batch - self._last  # more than 1 with steps_per_execution
        self._last = batch
        due = self._steps // self.teacher.every_steps - before
        if due:
            self.teacher.update(self.student, due)
