"""Calibration of every class's probability, not only of the largest."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import choice, error, integer, number, tensor, with_axes
from keras_distill._typing import Tensor
from keras_distill.metrics._adaptive import equal_mass_sums
from keras_distill.metrics._bins import CONVENTIONS, NORMS, bin_index, bin_sums, error_of_sums
from keras_distill.metrics._examples import read_classes, read_entries
from keras_distill.metrics._streaming import StreamingMetric, float64
from keras_distill.metrics._top_class import checked_probability, distribution


def class_entries(
    owner: str,
    y_true: Tensor,
    y_pred: Tensor,
    sample_weight: Tensor,
    from_logits: bool,
    task: str,
    num_classes: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities (n, classes), 0/1 answers (n, classes) and weights (n, classes) of one batch."""
    if task == "multiclass":
        examples = read_classes(owner, y_true, y_pred, sample_weight)
        probabilities = distribution(examples.outputs, from_logits)
        _check_classes(owner, num_classes, probabilities.shape[-1])
        answers = ops.one_hot(examples.labels, probabilities.shape[-1], dtype="float64")
        return probabilities, answers, ops.broadcast_to(examples.weights[:, None], ops.shape(probabilities))
    classes = ops.convert_to_tensor(y_pred).shape[-1]
    _check_classes(owner, num_classes, classes)
    entries = read_entries(owner, y_true, y_pred, sample_weight)
    probabilities = ops.sigmoid(entries.outputs) if from_logits else checked_probability(entries.outputs)
    shape = (-1, classes)
    return (
        ops.reshape(probabilities, shape),
        ops.reshape(float64(entries.labels), shape),
        ops.reshape(entries.weights, shape),
    )


def _check_classes(owner: str, expected: int | None, got: int) -> None:
    if expected is not None and expected != got:
        raise error(owner, f"y_pred with num_classes = {expected} classes", got)


@keras.saving.register_keras_serializable(package="keras_distill")
class ClasswiseCalibrationError(StreamingMetric):
    """Classwise (static) calibration error (SCE; with ``threshold`` TSCE): ECE of each class's probability, mean.

    Choose it if all probabilities are used, not only the largest: for rankings, costs, soft targets. With many classes
    most entries are near 0 and hide the rest: set ``threshold``. The state is 3 x classes x (bins + 1) float64 sums.
    For equal-mass bins see ``classwise_calibration_error(adaptive=True)``.

    Formula: mean over classes k of the calibration error, in ``norm``, of p_k against [label = k], all examples binned
    once per class. Entries with p_k <= ``threshold`` are left out, also of the counts.

    Args:
        num_classes: >= 1, number of classes (or labels).
        num_bins: >= 1, number of bins.
        norm: "l1", "l2", "max" or "average"; see ``ExpectedCalibrationError``.
        from_logits: False (as in Keras): ``y_pred`` are probabilities. True: logits.
        task: "multiclass", or "multilabel" (each label is a separate yes/no question).
        threshold: 0 to 1; if above 0, only larger probabilities count.
        convention: "torchmetrics", "left_closed", "right_closed" or "guo"; see ``ExpectedCalibrationError``.
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> sce = ClasswiseCalibrationError(num_classes=2, num_bins=5)
        >>> sce.update_state([0, 1], [[0.9, 0.1], [0.3, 0.7]])  # class 0: |0.9 - 1| and |0.3 - 0|; class 1 alike
        >>> print(f"{float(sce.result()):.2f}")
        0.20

    Reference:
        Nixon et al., "Measuring Calibration in Deep Learning", 2019, arXiv:1904.01685, section 3.
        Differs: nothing; classes that never occur as labels count too.
    """

    def __init__(
        self,
        num_classes: int,
        num_bins: int = 15,
        norm: str = "l1",
        from_logits: bool = False,
        task: str = "multiclass",
        threshold: float = 0.0,
        convention: str = "torchmetrics",
        name: str = "classwise_ece",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        owner = type(self).__name__
        self.num_classes = integer(owner, "num_classes", num_classes, low=1)
        self.num_bins = integer(owner, "num_bins", num_bins, low=1)
        self.norm = choice(owner, "norm", norm, NORMS)
        self.from_logits = bool(from_logits)
        self.task = choice(owner, "task", task, ("multiclass", "multilabel"))
        self.threshold = number(owner, "threshold", threshold, low=0.0, high=1.0)
        self.convention = choice(owner, "convention", convention, CONVENTIONS)
        self.sums = self.add_sums((self.num_classes, 3, self.num_bins + 1), "sums")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch."""
        probabilities, answers, weights = class_entries(
            type(self).__name__, y_true, y_pred, sample_weight, self.from_logits, self.task, self.num_classes
        )
        if self.threshold > 0:
            weights = ops.where(probabilities <= self.threshold, ops.zeros_like(weights), weights)
        slots = self.num_bins + 1
        index = bin_index(probabilities, self.num_bins, self.convention)
        index = index + slots * ops.arange(self.num_classes, dtype="int32")
        flat = [ops.reshape(part, (-1,)) for part in (index, weights, probabilities, answers)]
        sums = bin_sums(flat[0], self.num_classes * slots - 1, *flat[1:])
        self.sums.assign_add(ops.transpose(ops.reshape(sums, (3, self.num_classes, slots)), (1, 0, 2)))

    def value(self) -> Tensor:
        """Return the mean over classes; a class without entries above the threshold is perfectly calibrated."""
        return _mean_of_classes(ops.convert_to_tensor(self.sums), self.norm, self.convention)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        names = ("num_classes", "num_bins", "norm", "from_logits", "task", "threshold", "convention")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _mean_of_classes(sums: Any, norm: str, convention: str) -> Tensor:
    """Return the mean error of (classes, 3, bins + 1) sums; an empty class has error 0, NaN if all are empty."""
    errors = error_of_sums(sums, norm, convention)
    seen = ops.sum(sums[:, 0], axis=-1)
    errors = ops.where(ops.equal(seen, 0.0), ops.zeros_like(errors), errors)
    return ops.mean(errors) + 0.0 * ops.sum(seen) / ops.sum(seen)


def classwise_calibration_error(
    y_true: Tensor,
    y_pred: Tensor,
    *,
    num_bins: int = 15,
    norm: str = "l1",
    from_logits: bool = False,
    task: str = "multiclass",
    threshold: float = 0.0,
    adaptive: bool = False,
    convention: str = "torchmetrics",
    sample_weight: Tensor = None,
) -> float:
    """Classwise calibration error of arrays: SCE, ACE (``adaptive``), TACE (``adaptive`` and ``threshold=0.01``).

    Args:
        y_true: labels; see ``ClasswiseCalibrationError``.
        y_pred: (n, classes), probabilities, or logits with ``from_logits``.
        num_bins: >= 1, number of bins.
        norm: "l1", "l2", "max" or "average".
        from_logits: whether ``y_pred`` are logits.
        task: "multiclass" or "multilabel".
        threshold: 0 to 1; if above 0, only larger probabilities count.
        adaptive: True uses bins of equal mass in each class, not of equal width; see ``adaptive_calibration_error``.
        convention: the bin of a probability on an edge; for bins of equal width.
        sample_weight: (n,) or None.

    Returns:
        The mean over classes, in 0..1.

    Raises:
        ValueError: if a shape or an option does not fit.

    Example:
        >>> p = [[0.9, 0.1], [0.3, 0.7]]
        >>> print(f"{classwise_calibration_error([0, 1], p, num_bins=1, adaptive=True):.2f}")  # |1.2 - 1| / 2 each
        0.10

    Reference:
        Nixon et al., "Measuring Calibration in Deep Learning", 2019, arXiv:1904.01685, section 3.
        Differs: ties are split by position, and group sizes differ by at most one.
    """
    owner = "classwise_calibration_error"
    y_pred = with_axes(owner, tensor(owner, y_pred, ops.convert_to_tensor), "y_pred of shape (n, classes)")
    classes = int(y_pred.shape[-1])
    if not adaptive:
        metric = ClasswiseCalibrationError(
            classes, num_bins, norm, from_logits, task, threshold, convention, dtype="float64"
        )
        metric.update_state(y_true, y_pred, sample_weight)
        return float(metric.result())
    choice(owner, "norm", norm, NORMS)
    integer(owner, "num_bins", num_bins, low=1)
    number(owner, "threshold", threshold, low=0.0, high=1.0)
    parts = class_entries(owner, y_true, y_pred, sample_weight, from_logits, task, None)
    probabilities, answers, weights = (np.asarray(ops.convert_to_numpy(part), np.float64) for part in parts)
    keep = probabilities > threshold if threshold > 0 else np.ones_like(probabilities, bool)
    sums = []
    for k in range(classes):
        chosen = keep[:, k]
        sums.append(equal_mass_sums(probabilities[chosen, k], answers[chosen, k], weights[chosen, k], num_bins))
    return float(_mean_of_classes(ops.convert_to_tensor(np.stack(sums)), norm, "torchmetrics"))
