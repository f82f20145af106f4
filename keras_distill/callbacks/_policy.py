"""What the adaptive callbacks share: a state that survives a resume, hysteresis, and losses on held-out data."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import choice, error, integer, number
from keras_distill.callbacks import _steering
from keras_distill.settings import Setting
from keras_distill.training import Batch, Trainer
from keras_distill.training._callback_state import CallbackState, callback_state

_HIGHER_IS_BETTER = ("acc", "auc", "agreement", "precision", "recall", "f1")


class Policy(keras.callbacks.Callback, abc.ABC):
    """Base of callbacks that decide at the end of an epoch and keep a state.

    The state consists of plain numbers, kept in the distiller's callback state and so in every file of its weights.
    Epoch 0 resets it; any other epoch continues from it.
    """

    def __init__(self, verbose: int = 0) -> None:
        super().__init__()
        self._owner = type(self).__name__
        self.verbose = verbose
        self._memory: CallbackState | None = None
        self._name = self._owner
        self._targets: dict[str, Setting] = {}

    @abc.abstractmethod
    def _find(self, distiller: Trainer) -> dict[str, Setting]:
        """Return the numbers to control, by log name."""

    @abc.abstractmethod
    def _fresh(self) -> dict[str, Any]:
        """Return the state at the beginning of a training run."""

    @abc.abstractmethod
    def _decide(self, epoch: int, logs: dict[str, Any]) -> None:
        """Set the numbers of the next epoch."""

    @property
    def state(self) -> dict[str, Any]:
        """The state: a dictionary of plain numbers, ready for JSON. Assign one to continue from it."""
        if self._memory is None:
            raise error(self._owner, "the callback to be passed to fit before its state is read", "no call")
        return self._memory.states[self._name]

    @state.setter
    def state(self, value: dict[str, Any]) -> None:
        if self._memory is None:
            raise error(self._owner, "the callback to be passed to fit before its state is read", "no call")
        self._memory.states[self._name] = dict(value)

    def set_model(self, model: Any) -> None:
        """Look up the numbers to control; Keras calls this before training."""
        super().set_model(model)
        self._targets = self._find(_steering.as_distiller(self._owner, model))
        self._memory = callback_state(model)
        self._name = "-".join([self._owner, *self._targets])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reset the state at epoch 0, or if there is none."""
        if self._memory is not None and (epoch == 0 or self._name not in self._memory.states):
            self._memory.states[self._name] = self._fresh()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the numbers of this epoch to ``logs``, and set those of the next."""
        logs = {} if logs is None else logs
        logs.update({name: setting.number for name, setting in self._targets.items()})
        self._decide(epoch, logs)

    def _assign(self, epoch: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if value != self._targets[name].number:
                self._targets[name].assign(value)
                if self.verbose:
                    _steering.say(f"Epoch {epoch + 1}: {self._owner} sets {name} to {value:g}.")


def read(owner: str, monitor: str, logs: dict[str, Any]) -> float:
    """Return a finite number from the logs, or raise the error that lists what they hold."""
    if monitor not in logs:
        known = ", ".join(repr(name) for name in logs) or "none"
        advice = "Give fit validation_data, and put the callback that logs it first in the list"
        raise error(owner, f"monitor {monitor!r} in the logs", known, advice)
    return number(owner, f"{monitor} in the logs", _steering.plain(logs[monitor]))


class Plateau:
    """Hysteresis: reports when a number has not improved for long enough, followed by a cooldown.

    Args:
        owner: name shown in the error message.
        monitor: name of the number to watch.
        mode: "min", "max", or "auto": "max" for accuracies, agreement, AUC, precision, recall and F1, else "min".
        patience: >= 1, epochs without improvement until it reports.
        min_delta: >= 0, smallest change that counts as improvement.
        cooldown: >= 0, epochs to wait after a report, as in ``keras.callbacks.ReduceLROnPlateau``.
    """

    def __init__(self, owner: str, monitor: str, mode: str, patience: int, min_delta: float, cooldown: int) -> None:
        choice(owner, "mode", mode, ("auto", "min", "max"))
        if mode == "auto":
            mode = "max" if any(part in monitor for part in _HIGHER_IS_BETTER) else "min"
        self.mode = mode
        self.patience = integer(owner, "patience", patience, low=1)
        self.min_delta = number(owner, "min_delta", min_delta, low=0.0)
        self.cooldown = integer(owner, "cooldown", cooldown, low=0)

    @staticmethod
    def fresh() -> dict[str, Any]:
        """Return the initial state."""
        return {"best": None, "wait": 0, "resting": 0}

    def stalled(self, state: dict[str, Any], value: float) -> bool:
        """Record this epoch's value; return True if patience has just run out."""
        best = state["best"]
        sign = 1.0 if self.mode == "max" else -1.0
        if best is None or sign * (value - best) > self.min_delta:
            state["best"] = value
            return self.patient(state, False)
        return self.patient(state, True)

    def patient(self, state: dict[str, Any], call: bool) -> bool:
        """Record whether this epoch calls for a change; return True after enough consecutive calls."""
        if state["resting"] > 0:
            state["resting"] -= 1
            state["wait"] = 0
        if state["resting"] > 0:
            return False
        state["wait"] = state["wait"] + 1 if call else 0
        if state["wait"] < self.patience:
            return False
        state["wait"], state["resting"] = 0, self.cooldown
        return True


class Probe:
    """Measures a distiller's losses, or their gradients, on held-out data, without side effects.

    Args:
        owner: name shown in the error message.
        data: (x,), (x, y) or (x, y, sample_weight) of arrays, or a ``tf.data.Dataset`` or ``PyDataset`` of batches.
        batch_size: >= 1, for arrays.
        steps: number of batches to use; None uses all.
    """

    def __init__(self, owner: str, data: Any, batch_size: int, steps: int | None) -> None:
        if isinstance(data, list):
            data = tuple(data)
        if not isinstance(data, (tuple, keras.utils.PyDataset)) and (
            not hasattr(data, "__iter__") or isinstance(data, dict) or iter(data) is data
        ):
            advice = "Give arrays (x, y), a tf.data.Dataset or a PyDataset"
            raise error(owner, "validation_data that can be read every epoch", type(data).__name__, advice)
        if isinstance(data, np.ndarray) or tf.is_tensor(data):
            data = (data,)
        self._owner = owner
        self._data = data
        self._batch_size = integer(owner, "batch_size", batch_size, low=1)
        self._steps = None if steps is None else integer(owner, "steps", steps, low=1)
        self._functions: dict[str, tuple[Any, Any]] = {}

    def losses(self, distiller: Trainer) -> np.ndarray:
        """Return the supervised loss and each term's loss, unweighted means over the data."""
        return self._mean(distiller, "losses", _losses)

    def gradient_norms(self, distiller: Trainer) -> np.ndarray:
        """Return the gradient norms of the same losses for the student's weights, means over the batches."""
        return self._mean(distiller, "norms", _gradient_norms)

    def _mean(self, distiller: Trainer, name: str, measure: Any) -> np.ndarray:
        of, function = self._functions.get(name, (None, None))
        if of is not distiller:

            def run(x: Any, y: Any, sample_weight: Any) -> Any:
                return measure(distiller, x, y, sample_weight)

            function = run if distiller.run_eagerly else tf.function(run, reduce_retracing=True, autograph=False)
            self._functions[name] = (distiller, function)
        total, count = np.zeros(()), 0
        for batch in self._batches():
            x, y, sample_weight = (_tensors(part) for part in keras.utils.unpack_x_y_sample_weight(batch))
            if not distiller.built:
                distiller(x)
            size = int(keras.tree.flatten(x)[0].shape[0])
            total, count = total + size * np.asarray(function(x, y, sample_weight), "float64"), count + size
        if not count:
            raise error(self._owner, "at least one batch of validation_data", "none")
        return total / count

    def _batches(self) -> Iterator[Any]:
        data = self._data
        if isinstance(data, tuple):
            arrays, size = data, self._batch_size
            count = len(keras.tree.flatten(arrays[0])[0])
            data = (_rows(arrays, slice(start, start + size)) for start in range(0, count, size))
        elif isinstance(data, keras.utils.PyDataset):
            sequence = data
            data = (sequence[index] for index in range(self._steps or sequence.num_batches))
        return itertools.islice(data, self._steps)


def _tensors(structure: Any) -> Any:
    return None if structure is None else keras.tree.map_structure(tf.convert_to_tensor, structure)


def _rows(arrays: tuple[Any, ...], rows: slice) -> tuple[Any, ...]:
    return tuple(None if part is None else keras.tree.map_structure(lambda array: array[rows], part) for part in arrays)


def _parts(distiller: Trainer, x: Any, y: Any, sample_weight: Any) -> list[Any]:
    """Return the supervised loss and each term's, by the model's own objective, in inference mode."""
    parts = distiller.measure(Batch(x, y, sample_weight))
    return [parts.student_loss, *(value for _, value in parts.terms)]


def _losses(distiller: Trainer, x: Any, y: Any, sample_weight: Any) -> Any:
    return tf.stack(_parts(distiller, x, y, sample_weight))


def _gradient_norms(distiller: Trainer, x: Any, y: Any, sample_weight: Any) -> Any:
    weights = [weight.value for weight in distiller.student.trainable_weights]
    with tf.GradientTape(persistent=True) as tape:
        # Scaled as in training, so that half precision does not underflow; only ratios of norms are used.
        parts = [distiller.optimizer.scale_loss(part) for part in _parts(distiller, x, y, sample_weight)]
    norms = []
    for part in parts:
        gradients = [g for g in tape.gradient(part, weights) if g is not None]
        norms.append(tf.linalg.global_norm(gradients) if gradients else tf.zeros(()))
    return tf.stack(norms)
