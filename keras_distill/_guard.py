"""Stops training at the first number that is not finite, with the weights of the last good step kept.

Costs no look at the device from Python: without XLA an op of the graph raises; under XLA, where ops cannot raise, the
update of a bad step and of all steps after it is skipped in the graph, and ``fit`` looks now and then.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_distill._update import by_xla, update
from keras_distill.teachers import Teacher

_MARK = "keras_distill: not finite:"
_LOOK_EVERY_SECONDS = 1.0


class NonFiniteLossError(ArithmeticError):
    """A loss, an output of the teacher or a gradient was NaN or infinite; the message names it and the step."""


def _gated(gradient: Any, gate: Callable[[tf.Tensor], tf.Tensor]) -> Any:
    """Apply ``gate`` to a gradient: a tensor, the rows of an embedding, or None."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gate(gradient.values), gradient.indices, gradient.dense_shape)
    return None if gradient is None else gate(gradient)


def _keep(good: tf.Tensor, before: Sequence[tuple[Any, Any]]) -> None:
    """Give variables back their value before this step unless all is good."""
    for variable, value in before:
        variable.assign(tf.where(good, tf.convert_to_tensor(variable), value))


def _decays(optimizer: Any) -> bool:
    """Whether weights change without a gradient, so that to hold the gradients back is not enough."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return bool(getattr(inner, "weight_decay", None))


class Guard:
    """Watches the named numbers of one distiller's training step.

    Args:
        distiller: whose student is kept at its last finite weights.
    """

    def __init__(self, distiller: Any) -> None:
        self._distiller = distiller
        self._failed_step: Any = None  # XLA only: -1, or the first bad step
        self._failed_name: Any = None
        self._names: list[str] = []
        self._last_look = time.monotonic()

    def create(self) -> None:
        """Make the variables that XLA steps write to; outside of any trace."""
        if self._failed_step is None:
            with tf.init_scope():
                kinds = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
                self._failed_step = tf.Variable(-1, dtype=tf.int32, **kinds)
                self._failed_name = tf.Variable(-1, dtype=tf.int32, **kinds)

    def apply(
        self,
        named: Sequence[tuple[str, Any]],
        state: Sequence[tuple[Any, Any]],
        weights: Sequence[Any],
        gradients: Sequence[Any],
    ) -> None:
        """Apply the gradients only if every named tensor is finite.

        Args:
            named: what is watched, causes before effects: float32 scalars, each with the name a message shows.
            state: pairs of a non-trainable variable (BatchNorm's moving statistics) and its value before this step.
            weights: what is trained.
            gradients: one for each of the weights, or None.
        """
        self._names = [name for name, _ in named]
        optimizer = self._distiller.optimizer
        finite = tf.math.is_finite(tf.stack([tensor for _, tensor in named]))
        good = tf.reduce_all(finite)
        step = tf.cast(optimizer.iterations, tf.int32)
        if by_xla(self._distiller):
            good = self._note(good, finite, step)
            # Not a condition around the update, which would keep XLA from fusing into it.
            gradients = [_gated(each, lambda g: tf.where(good, g, tf.zeros_like(g))) for each in gradients]
            before = [*state, *((weight, tf.convert_to_tensor(weight)) for weight in weights)]
            update(optimizer, gradients, weights, xla=True)
            _keep(good, before)
            return
        _keep(good, state)
        # One op for all names: it raises with the row of flags, from which `translate` reads the first that failed.
        check = tf.debugging.Assert(good, [_MARK, tf.cast(finite, tf.int32), step], summarize=len(named))
        with tf.control_dependencies([check]):
            if _decays(optimizer):
                update(optimizer, gradients, weights)
                return
            gradients = [_gated(each, tf.identity) for each in gradients]
        update(optimizer, gradients, weights)

    def _note(self, good: tf.Tensor, finite: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Write down the first bad step and its first bad name; return whether all is good, now and before."""
        good = tf.logical_and(good, self._failed_step < 0)
        first = tf.logical_and(tf.logical_not(good), self._failed_step < 0)
        index = tf.argmin(tf.cast(finite, tf.int32), output_type=tf.int32)
        self._failed_name.assign(tf.where(first, index, self._failed_name))
        self._failed_step.assign(tf.where(first, step, self._failed_step))
        return good

    def look(self, *, now: bool = False) -> None:
        """Raise if an XLA step has failed; looks at the device at most once a second unless ``now``."""
        if self._failed_step is None or not (now or time.monotonic() - self._last_look > _LOOK_EVERY_SECONDS):
            return
        self._last_look = time.monotonic()
        step = int(self._failed_step.numpy())
        if step >= 0:
            name = self._names[int(self._failed_name.numpy())]
            self._failed_step.assign(-1)
            raise self.error(name, step)

    def around(self, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return ``run``, the function of Keras that does steps, with errors that say what to do."""

        def guarded(iterator: Any) -> Any:
            try:
                logs = run(iterator)
            except tf.errors.OpError as problem:
                raise self.translate(problem) from None
            self.look()
            return logs

        return guarded

    def translate(self, problem: tf.errors.OpError) -> Exception:
        """Return the error to raise instead of one that an op raised: ours, the teacher's, or the same."""
        if isinstance(problem, tf.errors.ResourceExhaustedError):
            pattern = r"(OOM when allocating tensor with shape\[[\d,]*\]).*?\{\{node ([^}]*)\}\}"
            what = re.search(pattern, str(problem), re.DOTALL)
            got = f"{what[1]} in {what[2]}" if what else problem.message
            advice = "Use a smaller batch; if it is the teacher's, let it run once: teachers.label and teachers.Stored"
            text = f"Distiller: expected enough memory for a step, got {got}. {advice}."
            return tf.errors.ResourceExhaustedError(problem.node_def, problem.op, text)
        # "[0 1 1] [7]" or "[0 1 1] 7" from a graph, "0, 1, 1 ... 7" from eager mode: the flags, then the step.
        numbers = re.search(re.escape(_MARK) + r"(.*)", str(problem), re.DOTALL)
        found = None if numbers is None else [int(each) for each in re.findall(r"\d+", numbers[1])]
        if found is None:
            label = re.search(r"label value of (-?\d+) which is outside the valid range of \[0, (\d+)\)", str(problem))
            if label is not None:
                return ValueError(
                    f"Distiller: expected labels from 0 to {int(label[2]) - 1}, got {label[1]}. "
                    "Check that the labels fit the number of classes of the student's output."
                )
            teacher = self._distiller.teacher
            return teacher.translate(problem) if isinstance(teacher, Teacher) else problem
        return self.error(self._names[found.index(0)], found[len(self._names)])

    def error(self, name: str, step: int) -> NonFiniteLossError:
        """Make the message: what, when, what is kept, what to try."""
        if name.startswith("the teacher"):
            advice = "Look for NaN in the data, then at the teacher's weights and precision"
        else:
            advice = "Try a lower learning rate, gradient clipping (clipnorm=1.0) or a lower distillation weight"
        return NonFiniteLossError(
            f"Distiller: expected finite numbers, got NaN or infinity in {name} at step {step}. {advice}. "
            "The student keeps its last finite weights."
        )
