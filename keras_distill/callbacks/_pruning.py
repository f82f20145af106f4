"""Magnitude pruning during training, with zeros that stay zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error, integer, nearest, number
from keras_distill.taps import walk

_OWNER = "MagnitudePruning"


class MagnitudePruning(keras.callbacks.Callback):
    """Sets a growing share of the smallest weights of each layer to zero and keeps them there.

    Choose it for a smaller file: zeros compress. It does not make a model faster: LiteRT and TensorFlow multiply by
    zeros at the same speed, and gzip saves as much as their sparse formats. ``students.sparsity(model)`` measures both.
    For speed use ``students.from_teacher``.

    Formula: sparsity(t) = final + (initial - final) * (1 - (t - begin) / (end - begin))**3 for begin <= t <= end, per
    weight; t counts optimizer steps. The smallest absolute values become zero, and a weight that is zero stays zero.

    The zeros themselves are the mask: every weights file contains them, so a resumed run continues with the same mask,
    and every replica has it. After each batch (or block of ``steps_per_execution`` batches) pruned weights are set back
    to zero. For a ``Distiller``, the student is pruned.

    Args:
        final_sparsity: fraction of zeros at the end, >= 0 and < 1.
        initial_sparsity: fraction of zeros at ``begin_step``.
        begin_step: the optimizer step of the first pruning.
        end_step: the step that reaches ``final_sparsity``; None takes three quarters of the planned steps, so that the
            rest trains with the final mask.
        frequency_steps: steps between two prunings.
        layers: paths of the layers to prune; None takes every kernel of two or more axes except that of the last layer
            with weights.

    Raises:
        ValueError: if a number is out of range, a layer is unknown or has no weights to prune, or the model has more
            zeros than ``final_sparsity`` at the start.

    Example:
        >>> pruning = MagnitudePruning(0.8, begin_step=0, end_step=100)
        >>> round(pruning.sparsity_at(0), 3), round(pruning.sparsity_at(50), 3), round(pruning.sparsity_at(100), 3)
        (0.0, 0.7, 0.8)

    Reference:
        Zhu, Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878, section 3.
        Differs: nothing.
    """

    def __init__(
        self,
        final_sparsity: float,
        initial_sparsity: float = 0.0,
        begin_step: int = 0,
        end_step: int | None = None,
        frequency_steps: int = 100,
        layers: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.final_sparsity = _fraction("final_sparsity", final_sparsity)
        self.initial_sparsity = _fraction("initial_sparsity", initial_sparsity)
        if self.initial_sparsity > self.final_sparsity:
            expected = f"initial_sparsity of at most final_sparsity={self.final_sparsity:g}"
            raise error(_OWNER, expected, self.initial_sparsity)
        self.begin_step = integer(_OWNER, "begin_step", begin_step, low=0)
        self.end_step = None if end_step is None else integer(_OWNER, "end_step", end_step, low=self.begin_step + 1)
        self.frequency_steps = integer(_OWNER, "frequency_steps", frequency_steps, low=1)
        self.layers = None if layers is None else list(layers)
        self._end = self.end_step
        self._masks: dict[str, tuple[Any, Any]] = {}
        self._last: int | None = None

    def sparsity_at(self, step: int) -> float:
        """Return the schedule's fraction of zeros at an optimizer step."""
        end = self._end if self._end is not None else self.begin_step + 1
        if step < self.begin_step:
            return 0.0
        progress = min(1.0, (step - self.begin_step) / (end - self.begin_step))
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * (1 - progress) ** 3

    def on_train_begin(self, logs: Any = None) -> None:
        """Find the weights, and take existing zeros as the mask."""
        model = self.model
        target = getattr(model, "student", model)
        weights = _kernels(target, self.layers)
        planned = self.params.get("steps")
        if self.end_step is None:
            if planned is None:
                advice = "Give end_step, or steps_per_epoch to fit"
                raise error(_OWNER, "a number of steps to plan with", "a dataset of unknown length", advice)
            total = planned * self.params["epochs"]
            self._end = max(self.begin_step + 1, round(0.75 * total))
        step = self._step()
        self._masks, self._last = {}, None
        for weight in weights:
            value = keras.ops.convert_to_numpy(weight)
            zeros = float((value == 0).mean())
            if zeros > self.final_sparsity + 1.0 / value.size:
                got = f"{weight.path!r} with {zeros:.3g} zeros"
                raise error(_OWNER, f"weights with at most final_sparsity={self.final_sparsity:g} zeros", got)
            resumed = step > self.begin_step and zeros > 0
            self._masks[weight.path] = (weight, (value != 0) if resumed else np.ones(value.shape, bool))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Prune when due, and set pruned weights back to zero."""
        step = self._step()
        if step < self.begin_step:
            return
        block = (min(step, self._end or step) - self.begin_step) // self.frequency_steps
        finished = self._end is not None and step >= self._end
        if block != self._last or (finished and self._last != -1):
            self._last = -1 if finished else block
            wanted = self.sparsity_at(step)
            for path, (weight, mask) in self._masks.items():
                value = np.where(mask, np.abs(keras.ops.convert_to_numpy(weight)), -1.0)
                self._masks[path] = (weight, mask & _largest(value, wanted))
        for weight, mask in self._masks.values():
            weight.assign(weight * keras.ops.cast(mask, weight.dtype))

    def _step(self) -> int:
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    @property
    def sparsity(self) -> float:
        """The current fraction of zeros over all pruned weights."""
        counts = [(int((~mask).sum()), mask.size) for _, mask in self._masks.values()]
        return sum(zeros for zeros, _ in counts) / max(1, sum(size for _, size in counts))


def _fraction(name: str, value: float) -> float:
    checked = number(_OWNER, name, value, low=0, advice="0.8 sets four fifths of the weights to zero")
    if checked >= 1:
        raise error(_OWNER, f"{name} below 1", checked, "0.8 sets four fifths of the weights to zero")
    return checked


def _largest(value: np.ndarray, sparsity: float) -> np.ndarray:
    """Return a mask that drops the smallest values, exactly the given share of them."""
    count = round(sparsity * value.size)
    mask = np.ones(value.size, bool)
    mask[np.argsort(value.reshape(-1), kind="stable")[:count]] = False
    return mask.reshape(value.shape)


def _kernels(model: Any, paths: Sequence[str] | None) -> list[Any]:
    """Return the weights to prune: those of two or more axes."""
    found: dict[str, list[Any]] = {}
    for path, layer in walk(model):
        own = [weight for weight in layer._trainable_variables if len(weight.shape) > 1]
        if own:
            found[path] = own
    if paths is None:
        names = list(found)[:-1] or list(found)
        if not names:
            raise error(_OWNER, "a model with weights of two or more axes", f"{model.name!r}, which has none")
        return [weight for name in names for weight in found[name]]
    for path in paths:
        if path not in found:
            exists = any(path == name for name, _ in walk(model))
            got = f"{path!r}, a layer without such weights" if exists else repr(path)
            raise error(_OWNER, "layers with weights to prune", got, f"Nearest: {nearest(path, found)}")
    return [weight for path in paths for weight in found[path]]
