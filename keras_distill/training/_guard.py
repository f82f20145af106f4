"""Stops training at the first number that is not finite, with the weights of the last good step kept.

Adds no host-device synchronisation per step. Without XLA an operation of the graph raises. Under XLA, where operations
cannot raise, the update of a bad step and of all steps after it is skipped in the graph, and ``fit`` reads the flag
about once a second.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_distill.training._data_checks import wrong_id, wrong_label
from keras_distill.training._fused_adam import by_xla
from keras_distill.training._learner import Learner

_MARK = "keras_distill: not finite:"
_LOOK_EVERY_SECONDS = 1.0


class NonFiniteLossError(ArithmeticError):
    """A loss, an output of the teacher or a gradient was NaN or infinite; the message names it and the step."""


class Update(NamedTuple):
    """One learner's update of a step.

    Attributes:
        learner: the learner whose weights change.
        gradients: one for each of its weights; an entry may be None.
        state: pairs of a variable that the forward pass changes and its value before the step.
    """

    learner: Learner
    gradients: Sequence[Any]
    state: Sequence[tuple[Any, Any]] = ()


def nan_or_zero(tensor: tf.Tensor) -> tf.Tensor:
    """Return NaN if ``tensor`` has a NaN, else 0: an infinite logit marks a class that cannot occur, and is allowed."""
    return tf.where(tf.reduce_any(tf.math.is_nan(tensor)), float("nan"), 0.0)


def nan_unless_finite(tensor: tf.Tensor) -> tf.Tensor:
    """Return 0 if every entry of ``tensor`` is finite, else NaN."""
    return tf.where(tf.reduce_all(tf.math.is_finite(tensor)), 0.0, float("nan"))


def _gated(gradient: Any, gate: Callable[[tf.Tensor], tf.Tensor]) -> Any:
    """Apply ``gate`` to a gradient: a tensor, the rows of an embedding, or None."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gate(gradient.values), gradient.indices, gradient.dense_shape)
    return None if gradient is None else gate(gradient)


def _sum_of(gradients: Sequence[Any]) -> tf.Tensor | None:
    """Return the sum of all entries of all gradients, which is not finite if one of them is not."""
    tensors = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients if g is not None]
    sums = [tf.reduce_sum(tf.cast(tensor, tf.float32)) for tensor in tensors]
    return tf.add_n(sums) if sums else None


def _keep(good: tf.Tensor, before: Sequence[tuple[Any, Any]]) -> None:
    """Restore the variables' values from before this step unless ``good``."""
    for variable, value in before:
        variable.assign(tf.where(good, tf.convert_to_tensor(variable), value))


def _decays(optimizer: Any) -> bool:
    """Return whether weights change without a gradient, so that holding the gradients back is not enough."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return bool(getattr(inner, "weight_decay", None))


class Guard:
    """Watches the named numbers of a model's training step and holds back every update of a bad step.

    Args:
        model: the model that is fitted: ``Distiller`` or a regime.
        owner: its name in error messages.
        kept: beginning of the sentence that says whose weights are kept: ``"The student keeps its"``.
        teachers: teachers that may explain an error raised by TensorFlow.
    """

    def __init__(self, model: Any, owner: str, kept: str, teachers: Sequence[Any] = ()) -> None:
        self._model = model
        self._owner = owner
        self._kept = kept
        self._teachers = tuple(teachers)
        self._failed_step: Any = None  # XLA only: -1, or the first bad step
        self._failed_name: Any = None
        self._tables: list[tuple[str, ...]] = []  # the names watched in each round of a step
        self._last_look = time.monotonic()

    def create(self) -> None:
        """Make the variables that XLA steps write to; outside of any trace."""
        if self._failed_step is None:
            with tf.init_scope():
                kinds = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
                self._failed_step = tf.Variable(-1, dtype=tf.int32, **kinds)
                self._failed_name = tf.Variable([0, 0], dtype=tf.int32, **kinds)

    def apply(
        self,
        named: Sequence[tuple[str, Any]],
        updates: Sequence[Update],
        causes: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """Update every learner, or none of them if a named number or a gradient is not finite.

        Args:
            named: float32 scalars to watch, causes before effects, each with its name in the message.
            updates: gradients of each learner. Sums over all their entries are watched too: a NaN that a ReLU turns
                into 0 on its way forwards reaches the gradient of the kernel that it passed.
            causes: further scalars that are no failure by themselves, but give the reason if only a gradient fails.
        """
        gradients = []
        for update in updates:
            total = None if update.learner.scales_loss else _sum_of(update.gradients)
            if total is not None:
                of = f" of {update.learner.name}" if update.learner.name else ""
                gradients.append((f"the gradients{of}", total))
        entries = [*named, *causes, *gradients]
        table = tuple(name for name, _ in entries)
        if table not in self._tables:
            self._tables.append(table)
        number = self._tables.index(table)

        finite = tf.math.is_finite(tf.stack([tensor for _, tensor in entries]))
        decisive = tf.constant([not len(named) <= index < len(named) + len(causes) for index in range(len(entries))])
        good = tf.reduce_all(tf.logical_or(finite, tf.logical_not(decisive)))
        step = tf.cast(updates[0].learner.optimizer.iterations, tf.int32)
        if by_xla(self._model):
            good = self._note(good, finite, step, number)
            # Not a condition around the update, which would prevent XLA from fusing it.
            for learner, each, state in updates:
                # The state last: the forward pass may have written a weight, too.
                before = [*((weight, tf.convert_to_tensor(weight)) for weight in learner.weights), *state]
                learner.update([_gated(g, lambda t: tf.where(good, t, tf.zeros_like(t))) for g in each], xla=True)
                _keep(good, before)
            return
        for update in updates:
            _keep(good, update.state)
        # One op for all names: it raises with the row of flags, from which `translate` reads the first that failed.
        flags = [_MARK, number, step, tf.cast(finite, tf.int32)]
        check = tf.debugging.Assert(good, flags, summarize=len(entries))
        for learner, each, _ in updates:
            with tf.control_dependencies([check]):
                if _decays(learner.optimizer):
                    learner.update(each)
                    continue
                held = [_gated(gradient, tf.identity) for gradient in each]
            learner.update(held)

    def _note(self, good: tf.Tensor, finite: tf.Tensor, step: tf.Tensor, table: int) -> tf.Tensor:
        """Record the first bad step and its first bad name; return whether this and all earlier steps are good."""
        good = tf.logical_and(good, self._failed_step < 0)
        first = tf.logical_and(tf.logical_not(good), self._failed_step < 0)
        index = tf.argmin(tf.cast(finite, tf.int32), output_type=tf.int32)
        self._failed_name.assign(tf.where(first, tf.stack([table, index]), self._failed_name))
        self._failed_step.assign(tf.where(first, step, self._failed_step))
        return good

    def look(self, *, now: bool = False) -> None:
        """Raise if an XLA step has failed; reads the flag at most once a second unless ``now``."""
        if self._failed_step is None or not (now or time.monotonic() - self._last_look > _LOOK_EVERY_SECONDS):
            return
        self._last_look = time.monotonic()
        step = int(self._failed_step.numpy())
        if step >= 0:
            table, index = self._failed_name.numpy()
            self._failed_step.assign(-1)
            raise self.error(self._tables[table][index], step)

    def around(self, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return ``run``, Keras' function that runs several steps, with errors that say what to do."""

        def guarded(iterator: Any) -> Any:
            try:
                logs = run(iterator)
            except tf.errors.OpError as problem:
                raise self.translate(problem) from None
            self.look()
            return logs

        return guarded

    def translate(self, problem: tf.errors.OpError) -> Exception:
        """Return the error to raise in place of an op's: ours, a teacher's, or the original."""
        if isinstance(problem, tf.errors.ResourceExhaustedError):
            pattern = r"(OOM when allocating tensor with shape\[[\d,]*\]).*?\{\{node ([^}]*)\}\}"
            what = re.search(pattern, str(problem), re.DOTALL)
            got = f"{what[1]} in {what[2]}" if what else problem.message
            advice = "Use a smaller batch; if it is the teacher's, run it once: teachers.label and teachers.Stored"
            text = f"{self._owner}: expected enough memory for a step, got {got}. {advice}."
            return tf.errors.ResourceExhaustedError(problem.node_def, problem.op, text)
        # "[0] [7] [0 1 1]" or "0 7 [0 1 1]" from a graph, "0 ... 7 ... 0, 1, 1" from eager mode: table, step, flags.
        numbers = re.search(re.escape(_MARK) + r"(.*)", str(problem), re.DOTALL)
        found = None if numbers is None else [int(each) for each in re.findall(r"\d+", numbers[1])]
        if found is None:
            label = re.search(r"label value of (-?\d+) which is outside the valid range of \[0, (\d+)\)", str(problem))
            if label is not None:
                return wrong_label(self._owner, int(label[2]), int(label[1]))
            rows = re.search(r"indices\[[\d,]*\] = (-?\d+) is not in \[0, (\d+)\)", str(problem))
            if rows is not None:
                node = re.search(r"Detected at node (\S+?)(?:/GatherV2)? defined", str(problem))
                return wrong_id(self._owner, int(rows[2]), node[1] if node else "a table", rows[1])
            for teacher in self._teachers:
                problem = teacher.translate(problem)
            return problem
        table, step, *flags = found
        return self.error(self._tables[table][flags.index(0)], step)

    def error(self, name: str, step: int) -> NonFiniteLossError:
        """Return the error, which says what failed, when, what is kept and what to try."""
        if name.startswith(("the teacher", "the inputs")):
            advice = "Look for NaN in the data, then at the teacher's weights and precision"
        elif name == "student_loss" and step == 0:
            advice = "Look at the labels (those of CTC must fit the frames: data.fitting_labels), then at the outputs"
        else:
            advice = "Try a lower learning rate, gradient clipping (clipnorm=1.0) or a lower distillation weight"
        return NonFiniteLossError(
            f"{self._owner}: expected finite numbers, got NaN or infinity in {name} at step {step}. {advice}. "
            f"{self._kept} last finite weights."
        )
