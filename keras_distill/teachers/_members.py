"""The answers of several teachers to one batch, and how they agree and disagree."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from keras import ops

from keras_distill._typing import Tensor

if TYPE_CHECKING:
    from keras_distill.teachers._combine import Combine


def log_sum_exp(tensor: Tensor, axis: int) -> Any:
    """Return log(sum(exp)) along ``axis``; -inf, not NaN, where every entry is -inf."""
    top = ops.max(tensor, axis=axis, keepdims=True)
    top = ops.where(ops.isfinite(top), top, ops.zeros_like(top))
    total = ops.sum(ops.exp(tensor - top), axis=axis, keepdims=True)
    return ops.squeeze(ops.log(total) + top, axis=axis)


def log_probabilities(logits: Tensor, temperature: Any = 1.0) -> Any:
    """Return log softmax(logits / temperature) in float32, with -inf kept for a class that cannot occur.

    Args:
        logits: (batch, ..., classes), float.
        temperature: a number, or a tensor of shape (), (batch,) or (batch, 1).

    Returns:
        The shape of ``logits``, float32.
    """
    tempered = ops.cast(logits, "float32") / for_rank(temperature, len(logits.shape))
    # The largest logit is subtracted first: next to 1e4, the logarithm of a sum would be rounded away.
    top = ops.max(tempered, axis=-1, keepdims=True)
    shifted = tempered - ops.where(ops.isfinite(top), top, ops.zeros_like(top))
    return shifted - ops.expand_dims(log_sum_exp(shifted, axis=-1), -1)


def for_rank(temperature: Any, rank: int) -> Any:
    """Reshape a temperature of shape (), (batch,) or (batch, 1) to divide a tensor of that rank."""
    temperature = ops.cast(ops.convert_to_tensor(temperature), "float32")
    if len(temperature.shape) == 0:
        return temperature
    return ops.reshape(temperature, (-1, *([1] * (rank - 1))))


def entropy(log_probs: Any) -> Any:
    """Return -sum(p * log p) over the last axis, with 0 log 0 = 0; nats."""
    finite = ops.where(ops.isfinite(log_probs), log_probs, ops.zeros_like(log_probs))
    return -ops.sum(ops.exp(log_probs) * finite, axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Members:
    """The logits of several teachers for one batch, with the rule that combines them.

    ``LogitsDistillation`` turns this into one teacher (``resolve``) or compares the student with each member
    (``weighted_members``), as the rule says; a term that needs the members' disagreement reads ``members``.

    Attributes:
        members: (batch, members, classes), float; (batch, members, time, classes) for sequences.
        combine: the rule, one of ``teachers.MeanProbs()`` and its relatives.
        spread: (batch, members, ...), each member's own uncertainty, or None; ``UncertaintyWeighted`` reads it.
        gate_inputs: the inputs of ``LearnedGate``, or None.

    Example:
        >>> import numpy as np
        >>> from keras_distill import teachers
        >>> probabilities = np.array([[[0.9, 0.1], [0.5, 0.5]]], "float32")  # one example, two members
        >>> both = teachers.Members(np.log(probabilities), teachers.MeanProbs())
        >>> np.exp(np.asarray(both.resolve(1.0))).round(3)
        array([[0.7, 0.3]], dtype=float32)
    """

    members: Any
    combine: Combine
    spread: Any = None
    gate_inputs: Any = None

    @property
    def num_members(self) -> int:
        """The number of teachers."""
        return int(self.members.shape[1])

    @property
    def per_member(self) -> bool:
        """True if the student is compared with each member and the values are weighted."""
        return self.combine.per_member

    def log_probs(self, temperature: Any = 1.0) -> Any:
        """Return log softmax(members / temperature), the shape of ``members``, float32."""
        return log_probabilities(self.members, temperature)

    def weights(self, temperature: Any = 1.0, *, labels: Any = None, student_logits: Tensor = None) -> Any:
        """Return each member's weight for each example.

        Args:
            temperature: > 0, the term's temperature.
            labels: (batch,) integer classes or (batch, classes) one-hot, where the rule needs them.
            student_logits: (batch, classes), where the rule needs them.

        Returns:
            (batch, members), float32, (batch, members, time) for sequences; sums to 1 over the members.

        Raises:
            ValueError: if the rule needs labels or the student's logits and they are missing.
        """
        return self.combine.checked_weights(self, temperature, labels=labels, student_logits=student_logits)

    def weighted_members(
        self, temperature: Any = 1.0, *, labels: Any = None, student_logits: Tensor = None
    ) -> list[tuple[Any, Any]]:
        """Return (logits, weight) of each member: (batch, classes) and (batch,). Arguments as in ``weights``."""
        weights = self.weights(temperature, labels=labels, student_logits=student_logits)
        return [(self.members[:, m], weights[:, m]) for m in range(self.num_members)]

    def resolve(self, temperature: Any = 1.0, *, labels: Any = None, student_logits: Tensor = None) -> Any:
        """Return logits whose softmax at ``temperature`` is the combined distribution at that temperature.

        Members are tempered before they are combined, so the result depends on the temperature.

        Args:
            temperature: > 0; a number, or a tensor of shape (), (batch,) or (batch, 1).
            labels: as in ``weights``.
            student_logits: as in ``weights``.

        Returns:
            (batch, classes), float32.
        """
        if self.num_members == 1:
            return ops.cast(self.members[:, 0], "float32")
        return self.combine.resolve(self, temperature, labels=labels, student_logits=student_logits)

    def predictive(self) -> Any:
        """Return the combined logits at temperature 1; the plain mean if the rule needs labels or the student."""
        if self.combine.needs_labels or self.combine.needs_student:
            return log_sum_exp(self.log_probs(), axis=1)
        return self.resolve(1.0)

    def mean(self) -> Any:
        """Return the mean of the members' probabilities, (batch, classes), float32."""
        return ops.mean(ops.exp(self.log_probs()), axis=1)

    def standard_deviation(self) -> Any:
        """Return the standard deviation of the members' probabilities around their mean, (batch, classes), float32."""
        return ops.std(ops.exp(self.log_probs()), axis=1)

    def total_uncertainty(self) -> Any:
        """Return the entropy of the mean distribution, (batch,), nats."""
        mean = log_sum_exp(self.log_probs(), axis=1)
        return entropy(mean - ops.expand_dims(log_sum_exp(mean, axis=-1), -1))

    def knowledge_uncertainty(self) -> Any:
        """Return the mutual information: total uncertainty minus the members' mean entropy, (batch,), nats, >= 0."""
        data = ops.mean(entropy(self.log_probs()), axis=1)
        return ops.maximum(self.total_uncertainty() - data, 0.0)
