"""Proper scores, minimal for the true probabilities: Brier score and negative log-likelihood."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill._checks import choice, number
from keras_distill._typing import Tensor
from keras_distill.metrics._examples import TASKS, read
from keras_distill.metrics._streaming import MeanOverExamples
from keras_distill.metrics._top_class import checked_probability, distribution, of_label


@keras.saving.register_keras_serializable(package="keras_distill")
class BrierScore(MeanOverExamples):
    """Brier score: squared distance between the predicted and the true distribution, mean over examples.

    Choose it beside ``NegativeLogLikelihood``: it is bounded, so that no confident mistake dominates. It takes one pass
    over the outputs; the state is two float64 sums.

    Formula: sum over classes of (p_k - y_k)**2, in 0..2. For "binary" and "multilabel" (p - y)**2 per entry, in 0..1:
    half of what two classes give (scikit-learn's default for two classes).

    Args:
        from_logits: False (as in Keras): ``y_pred`` are probabilities, used as given. True: logits.
        task: "multiclass", "binary" or "multilabel"; see ``ExpectedCalibrationError``.
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> brier = BrierScore()
        >>> brier.update_state([0, 2], [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
        >>> print(f"{float(brier.result()):.2f}")  # (0.26 + 0.78) / 2
        0.52

    Reference:
        Brier, "Verification of forecasts expressed in terms of probability", 1950, eq. 2.
        Differs: nothing.
    """

    def __init__(
        self, from_logits: bool = False, task: str = "multiclass", name: str = "brier", dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.from_logits = bool(from_logits)
        self.task = choice(type(self).__name__, "task", task, TASKS)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch."""
        examples = read(type(self).__name__, self.task, y_true, y_pred, sample_weight)
        outputs = examples.outputs
        if self.task == "multiclass":
            probabilities = distribution(outputs, self.from_logits)
            targets = examples.targets
            if targets is None:
                targets = ops.one_hot(examples.labels, outputs.shape[-1], dtype=outputs.dtype)
            values = ops.sum(ops.square(probabilities - ops.cast(targets, outputs.dtype)), axis=-1)
        else:
            probabilities = ops.sigmoid(outputs) if self.from_logits else checked_probability(outputs)
            values = ops.square(probabilities - ops.cast(examples.labels, outputs.dtype))
        self.add(values, examples.weights)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "from_logits": self.from_logits, "task": self.task}


@keras.saving.register_keras_serializable(package="keras_distill")
class NegativeLogLikelihood(MeanOverExamples):
    """Negative log-likelihood (NLL, cross-entropy, log loss) of the labels, in nats, mean over examples.

    Choose it to compare the probabilities of models: it penalises errors, over- and under-confidence alike. It is the
    cross-entropy loss without regularisation and without clipping: a label of probability 0 makes it infinite, which is
    the true value. It takes one pass over the outputs; the state is two float64 sums.

    Formula: -log p_label; for soft labels -sum_k y_k log p_k.

    Args:
        from_logits: False (as in Keras): ``y_pred`` are probabilities, used as given. True: logits, by log-softmax.
        task: "multiclass", "binary" or "multilabel"; see ``ExpectedCalibrationError``.
        epsilon: 0 to 0.5: probabilities (never logits) are first clipped to epsilon .. 1 - epsilon. 0 is exact;
            2.22e-16 is scikit-learn's log loss of float64, 1e-7 Keras' cross-entropy of probabilities.
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> nll = NegativeLogLikelihood()
        >>> nll.update_state([0, 1], [[0.5, 0.5], [0.75, 0.25]])
        >>> print(f"{float(nll.result()):.4f}")  # (log 2 + log 4) / 2
        1.0397

    Reference:
        Gneiting, Raftery, "Strictly proper scoring rules, prediction, and estimation", 2007, section 4.1.
        Differs: nothing.
    """

    def __init__(
        self,
        from_logits: bool = False,
        task: str = "multiclass",
        epsilon: float = 0.0,
        name: str = "nll",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        owner = type(self).__name__
        self.from_logits = bool(from_logits)
        self.task = choice(owner, "task", task, TASKS)
        self.epsilon = number(owner, "epsilon", epsilon, low=0.0, high=0.5)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch."""
        examples = read(type(self).__name__, self.task, y_true, y_pred, sample_weight)
        outputs = examples.outputs
        if self.task != "multiclass":
            values = self._of_entries(outputs, examples.labels)
        elif examples.targets is None and self.from_logits:
            values = ops.logsumexp(outputs, axis=-1) - of_label(outputs, examples.labels)
        elif examples.targets is None:
            values = -ops.log(self._probability(of_label(outputs, examples.labels)))
        else:
            targets = ops.cast(examples.targets, outputs.dtype)
            logs = ops.log_softmax(outputs, axis=-1) if self.from_logits else ops.log(self._probability(outputs))
            zero = ops.equal(targets, 0.0)
            values = -ops.sum(ops.where(zero, ops.zeros_like(logs), targets * logs), axis=-1)
        self.add(values, examples.weights)

    def _of_entries(self, outputs: Any, labels: Tensor) -> Tensor:
        """Return -log of the predicted probability of each yes/no answer."""
        if self.from_logits:
            return ops.softplus(ops.where(ops.equal(labels, 1), -outputs, outputs))
        probability = self._probability(outputs)
        return -ops.log(ops.where(ops.equal(labels, 1), probability, 1.0 - probability))

    def _probability(self, values: Tensor) -> Tensor:
        """Return checked probabilities, clipped with epsilon."""
        return ops.clip(checked_probability(values), self.epsilon, 1.0 - self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {
            **super().get_config(),
            "from_logits": self.from_logits,
            "task": self.task,
            "epsilon": self.epsilon,
        }


def brier_score(
    y_true: Tensor, y_pred: Tensor, *, from_logits: bool = False, task: str = "multiclass", sample_weight: Tensor = None
) -> float:
    """Brier score of arrays or tensors; see ``BrierScore``.

    Args:
        y_true: labels.
        y_pred: probabilities, or logits with ``from_logits``.
        from_logits: whether ``y_pred`` are logits.
        task: "multiclass", "binary" or "multilabel".
        sample_weight: weight of each example, or None.

    Returns:
        The mean, in 0..2 ("multiclass") or 0..1.

    Raises:
        ValueError: if a shape or an option does not fit.

    Example:
        >>> print(f"{brier_score([1], [[0.5, 0.5]]):.2f}")
        0.50
    """
    metric = BrierScore(from_logits, task, dtype="float64")
    metric.update_state(y_true, y_pred, sample_weight)
    return float(metric.result())


def negative_log_likelihood(
    y_true: Tensor,
    y_pred: Tensor,
    *,
    from_logits: bool = False,
    task: str = "multiclass",
    epsilon: float = 0.0,
    sample_weight: Tensor = None,
) -> float:
    """Negative log-likelihood of arrays or tensors; see ``NegativeLogLikelihood``.

    Args:
        y_true: labels.
        y_pred: probabilities, or logits with ``from_logits``.
        from_logits: whether ``y_pred`` are logits.
        task: "multiclass", "binary" or "multilabel".
        epsilon: probabilities are clipped to epsilon .. 1 - epsilon.
        sample_weight: weight of each example, or None.

    Returns:
        The mean, in nats.

    Raises:
        ValueError: if a shape or an option does not fit.

    Example:
        >>> print(f"{negative_log_likelihood([1], [[0.0, 0.0]], from_logits=True):.4f}")
        0.6931
    """
    metric = NegativeLogLikelihood(from_logits, task, epsilon, dtype="float64")
    metric.update_state(y_true, y_pred, sample_weight)
    return float(metric.result())
