"""Decomposition of the Brier score into miscalibration, lack of resolution, and the uncertainty of the data."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill._checks import choice, integer, tensor, with_axes
from keras_distill._typing import Tensor
from keras_distill.metrics._bins import CONVENTIONS, bin_index
from keras_distill.metrics._classwise import class_entries
from keras_distill.metrics._streaming import StreamingMetric, float64

COMPONENTS = ("brier", "reliability", "resolution", "uncertainty", "within_bin")


class BrierDecomposition(NamedTuple):
    """Parts of the Brier score: brier = reliability - resolution + uncertainty + within_bin, exactly.

    Attributes:
        brier: the Brier score, summed over classes, in 0..2.
        reliability: squared gap between confidence and frequency: miscalibration, 0 is best.
        resolution: squared distance of the bins' frequencies from the overall frequency, higher is better.
        uncertainty: variance of the labels, a property of the data.
        within_bin: effect of binning: variance of the probabilities within bins, minus twice their covariance with the
            labels; 0 if all probabilities of a bin are equal.
    """

    brier: Any
    reliability: Any
    resolution: Any
    uncertainty: Any
    within_bin: Any


@keras.saving.register_keras_serializable(package="keras_distill")
class BrierComponent(StreamingMetric):
    """One part of the Brier score's decomposition over bins of every class's probability.

    Choose "reliability" to see how much of the Brier score temperature scaling may remove, "resolution" to see how well
    the model separates classes. The state is 5 x classes x (bins + 1) float64 sums.

    Formula: with bins b of each class's probability p against answer y = [label = k], summed over classes:
    reliability = sum_b w_b / w (p_b - y_b)**2, resolution = sum_b w_b / w (y_b - mean y)**2, uncertainty =
    mean y (1 - mean y); see ``BrierDecomposition``.

    Args:
        num_classes: >= 2, number of classes.
        component: "reliability", "resolution", "uncertainty", "within_bin" or "brier" itself.
        num_bins: >= 1, number of bins of equal width.
        from_logits: False (as in Keras): ``y_pred`` are probabilities. True: logits.
        convention: the bin of a probability on an edge; see ``ExpectedCalibrationError``. Not "guo".
        name: name in the logs; None: "brier_<component>".
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> reliability = BrierComponent(num_classes=2, num_bins=5)
        >>> reliability.update_state([0, 1], [[0.9, 0.1], [0.3, 0.7]])  # per class (0.01 + 0.09) / 2
        >>> print(f"{float(reliability.result()):.2f}")
        0.10

    Reference:
        Murphy, "A new vector partition of the probability score", 1973; Stephenson, Coelho, Jolliffe, "Two extra
        components in the Brier score decomposition", 2008. Differs: their two extra components are one here.
    """

    def __init__(
        self,
        num_classes: int,
        component: str = "reliability",
        num_bins: int = 15,
        from_logits: bool = False,
        convention: str = "torchmetrics",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        owner = type(self).__name__
        self.component = choice(owner, "component", component, COMPONENTS)
        super().__init__(name=name or ("brier" if component == "brier" else f"brier_{component}"), dtype=dtype)
        self.num_classes = integer(owner, "num_classes", num_classes, low=2)
        self.num_bins = integer(owner, "num_bins", num_bins, low=1)
        self.from_logits = bool(from_logits)
        self.convention = choice(owner, "convention", convention, [c for c in CONVENTIONS if c != "guo"])
        self.sums = self.add_sums((5, self.num_classes, self.num_bins + 1), "sums")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch."""
        probabilities, answers, weights = class_entries(
            type(self).__name__, y_true, y_pred, sample_weight, self.from_logits, "multiclass", self.num_classes
        )
        slots = self.num_bins + 1
        index = bin_index(probabilities, self.num_bins, self.convention)
        index = index + slots * ops.arange(self.num_classes, dtype="int32")
        wide, none = float64(probabilities), ops.equal(weights, 0.0)
        parts = (ops.ones_like(wide), wide, answers, wide * wide, wide * answers)
        table = [ops.reshape(ops.where(none, ops.zeros_like(wide), weights * part), (-1,)) for part in parts]
        sums = ops.segment_sum(
            ops.stack(table, axis=-1), ops.reshape(index, (-1,)), num_segments=self.num_classes * slots
        )
        self.sums.assign_add(ops.reshape(ops.transpose(sums), (5, self.num_classes, slots)))

    def parts(self) -> BrierDecomposition:
        """Return all parts, as float64 scalars."""
        weight, p, y, pp, py = (self.sums[row] for row in range(5))
        total = ops.sum(weight[0])
        safe = ops.where(weight > 0, weight, ops.ones_like(weight))
        overall = ops.sum(y, axis=-1, keepdims=True) / total
        reliability = ops.sum(ops.square(p - y) / safe) / total
        resolution = ops.sum(weight * ops.square(y / safe - overall)) / total
        uncertainty = ops.sum(overall * (1.0 - overall))
        within = ops.sum(pp - p * p / safe - 2.0 * (py - p * y / safe)) / total
        return BrierDecomposition(ops.sum(pp - 2.0 * py + y) / total, reliability, resolution, uncertainty, within)

    def value(self) -> Tensor:
        """Return the requested component."""
        return getattr(self.parts(), self.component)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        names = ("num_classes", "component", "num_bins", "from_logits", "convention")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def brier_decomposition(
    y_true: Tensor,
    y_pred: Tensor,
    *,
    num_bins: int = 15,
    from_logits: bool = False,
    convention: str = "torchmetrics",
    sample_weight: Tensor = None,
) -> BrierDecomposition:
    """Decompose the Brier score of arrays or tensors; see ``BrierComponent``.

    Args:
        y_true: class ids or one-hot rows.
        y_pred: (n, classes), probabilities, or logits with ``from_logits``.
        num_bins: >= 1, number of bins of equal width.
        from_logits: whether ``y_pred`` are logits.
        convention: "torchmetrics", "left_closed" or "right_closed".
        sample_weight: (n,) or None.

    Returns:
        The parts, as floats.

    Raises:
        ValueError: if a shape or an option does not fit.

    Example:
        >>> parts = brier_decomposition([0, 1], [[0.9, 0.1], [0.3, 0.7]], num_bins=5)
        >>> print([round(part, 3) for part in parts])  # 0.1 = 0.1 - 0.5 + 0.5 + 0
        [0.1, 0.1, 0.5, 0.5, 0.0]
    """
    owner, expected = "brier_decomposition", "y_pred of shape (n, classes)"
    y_pred = with_axes(owner, tensor(owner, y_pred, ops.convert_to_tensor), expected)
    classes = y_pred.shape[-1]
    metric = BrierComponent(classes, "brier", num_bins, from_logits, convention, dtype="float64")
    metric.update_state(y_true, y_pred, sample_weight)
    return BrierDecomposition(*(float(part) for part in metric.parts()))
