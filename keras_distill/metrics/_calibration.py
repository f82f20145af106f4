"""Calibration errors over bins of confidence: is a prediction of probability 0.8 right in 8 of 10 cases?"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill._checks import choice, integer
from keras_distill._typing import Tensor
from keras_distill.metrics._bins import CONVENTIONS, NORMS, SIDES, ReliabilityBins, bin_index, bin_sums, error_of_sums
from keras_distill.metrics._examples import TASKS, read
from keras_distill.metrics._streaming import StreamingMetric
from keras_distill.metrics._top_class import checked_probability, top_label


def confidence_sums(
    owner: str,
    y_true: Tensor,
    y_pred: Tensor,
    sample_weight: Tensor,
    *,
    num_bins: int,
    from_logits: bool,
    task: str,
    convention: str,
) -> Tensor:
    """Return the (3, num_bins + 1) sums of one batch; see ``bin_sums``."""
    examples = read(owner, task, y_true, y_pred, sample_weight)
    if task == "multiclass":
        confidence, accuracy = top_label(examples, from_logits)
        if convention == "torchmetrics":
            confidence = ops.cast(confidence, "float32")
    else:
        outputs = examples.outputs
        confidence = ops.sigmoid(outputs) if from_logits else checked_probability(outputs)
        accuracy = examples.labels
    index = bin_index(confidence, num_bins, convention)
    return bin_sums(index, num_bins, examples.weights, confidence, accuracy)


@keras.saving.register_keras_serializable(package="keras_distill")
class ExpectedCalibrationError(StreamingMetric):
    """Expected calibration error (ECE; MCE with norm="max", RMSCE with "l2"): confidence against accuracy, in bins.

    Choose it first to see whether a model's confidence can be trusted; it is what papers report. It depends on the
    number of bins and ignores accuracy, so report ``NegativeLogLikelihood`` and ``BrierScore`` as well. It takes one
    pass over the outputs; the state is 3 x (bins + 1) float64 sums for any number of examples.

    Formula, over bins b of equal width of the largest probability: sum_b w_b / w * |accuracy_b - confidence_b| ("l1"),
    sqrt(sum_b w_b / w * (accuracy_b - confidence_b)**2) ("l2"), the largest |accuracy_b - confidence_b| ("max"), or
    their plain mean over the bins that are not empty ("average", what netcal calls ACE).

    Args:
        num_bins: >= 1, number of bins. 15 is the usual choice.
        norm: "l1", "l2", "max" or "average"; see the formula.
        from_logits: False (as in Keras): ``y_pred`` are probabilities, used as given; one that is more than 0.001
            outside 0..1 makes the result NaN. True: logits.
        task: "multiclass": ``y_pred`` (..., classes), ``y_true`` class ids or one-hot rows; the confidence is the
            largest probability, correct if the first largest class is the label. "binary" and "multilabel": ``y_pred``
            (...,) or (..., labels), one probability (or logit) per yes/no question, ``y_true`` of that shape with 0 and
            1; the probability of yes is compared with the answer, over all questions together. For the top label of a
            binary model pass both probabilities and "multiclass".
        convention: the bin of a confidence on an edge. "torchmetrics": [low, high), float32, 1.0 alone in an extra
            bin. "left_closed": [low, high), 1.0 in the last (netcal, robustness_metrics). "right_closed":
            (low, high], 0.0 in the first (scikit-learn). "guo": (low, high], 0.0 in none (Guo et al.). Away from the
            edges all agree.
        side: "both"; "over" counts only bins with confidence above accuracy, "under" only the others (for "l1" the ECE
            is the sum of the two).
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> ece = ExpectedCalibrationError(num_bins=10)
        >>> ece.update_state([0, 1], [[0.85, 0.15], [0.75, 0.25]])  # right at 0.85, wrong at 0.75
        >>> print(f"{float(ece.result()):.3f}")  # (0.15 + 0.75) / 2
        0.450

    Reference:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599, eq. 3;
        Kumar, Liang, Ma, "Verified Uncertainty Calibration", 2019, arXiv:1909.10155 ("l2").
        Differs: bins closed on the left by default, as torchmetrics does.
    """

    def __init__(
        self,
        num_bins: int = 15,
        norm: str = "l1",
        from_logits: bool = False,
        task: str = "multiclass",
        convention: str = "torchmetrics",
        side: str = "both",
        name: str = "ece",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        owner = type(self).__name__
        self.num_bins = integer(owner, "num_bins", num_bins, low=1)
        self.norm = choice(owner, "norm", norm, NORMS)
        self.from_logits = bool(from_logits)
        self.task = choice(owner, "task", task, TASKS)
        self.convention = choice(owner, "convention", convention, CONVENTIONS)
        self.side = choice(owner, "side", side, SIDES)
        self.sums = self.add_sums((3, self.num_bins + 1), "sums")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch."""
        self.sums.assign_add(
            confidence_sums(
                type(self).__name__,
                y_true,
                y_pred,
                sample_weight,
                num_bins=self.num_bins,
                from_logits=self.from_logits,
                task=self.task,
                convention=self.convention,
            )
        )

    def value(self) -> Tensor:
        """Return the calibration error of everything seen."""
        return error_of_sums(self.sums, self.norm, self.convention, self.side)

    @property
    def bins(self) -> ReliabilityBins:
        """The reliability bins of everything seen, as NumPy arrays."""
        return ReliabilityBins.from_sums(self.sums)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        names = ("num_bins", "norm", "from_logits", "task", "convention", "side")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def expected_calibration_error(
    y_true: Tensor,
    y_pred: Tensor,
    *,
    num_bins: int = 15,
    norm: str = "l1",
    from_logits: bool = False,
    task: str = "multiclass",
    convention: str = "torchmetrics",
    side: str = "both",
    sample_weight: Tensor = None,
) -> float:
    """Expected calibration error of arrays or tensors; see ``ExpectedCalibrationError`` for every argument.

    Args:
        y_true: labels.
        y_pred: probabilities, or logits with ``from_logits``.
        num_bins: number of bins.
        norm: "l1", "l2", "max" or "average".
        from_logits: whether ``y_pred`` are logits.
        task: "multiclass", "binary" or "multilabel".
        convention: "torchmetrics", "left_closed", "right_closed" or "guo".
        side: "both", "over" or "under".
        sample_weight: weight of each example, or None.

    Returns:
        The error, in 0..1; NaN without examples.

    Raises:
        ValueError: if a shape or an option does not fit.

    Example:
        >>> p = [[0.25, 0.2, 0.55], [0.55, 0.05, 0.4], [0.1, 0.3, 0.6], [0.9, 0.05, 0.05]]
        >>> print(f"{expected_calibration_error([0, 1, 2, 0], p, num_bins=3):.4f}")
        0.2000
    """
    metric = ExpectedCalibrationError(num_bins, norm, from_logits, task, convention, side, dtype="float64")
    metric.update_state(y_true, y_pred, sample_weight)
    return float(metric.result())


def reliability_bins(
    y_true: Tensor,
    y_pred: Tensor,
    *,
    num_bins: int = 15,
    from_logits: bool = False,
    task: str = "multiclass",
    convention: str = "torchmetrics",
    sample_weight: Tensor = None,
) -> ReliabilityBins:
    """Reliability diagram of arrays or tensors: weight, mean confidence and accuracy of each bin.

    Args:
        y_true: labels.
        y_pred: probabilities, or logits with ``from_logits``.
        num_bins: number of bins.
        from_logits: whether ``y_pred`` are logits.
        task: "multiclass", "binary" or "multilabel".
        convention: "torchmetrics", "left_closed", "right_closed" or "guo".
        sample_weight: weight of each example, or None.

    Returns:
        The bins, as NumPy arrays; confidences of exactly 1.0 are drawn in the last bin.

    Raises:
        ValueError: if a shape or an option does not fit.

    Example:
        >>> bins = reliability_bins([0, 1], [[0.9, 0.1], [0.7, 0.3]], num_bins=2)
        >>> print(bins.weight, bins.accuracy[1], round(bins.confidence[1], 3))
        [0. 2.] 0.5 0.8
    """
    metric = ExpectedCalibrationError(
        num_bins, from_logits=from_logits, task=task, convention=convention, dtype="float64"
    )
    metric.update_state(y_true, y_pred, sample_weight)
    return metric.bins
