"""Isotonic curves over each class's probability, fitted by scikit-learn."""

from __future__ import annotations

from typing import Any, Self

import keras
import numpy as np

from keras_distill._checks import error, optional
from keras_distill._typing import Tensor
from keras_distill.calibration._base import Scaler, fitting_data, softmax
from keras_distill.calibration._layers import IsotonicScaling

_PACKAGE = "keras_distill"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class IsotonicCalibrator(Scaler):
    """Isotonic calibration: maps each class's probability by an increasing curve of scikit-learn, then normalises.

    Choose it with at least a thousand held-out examples per class, if the miscalibration is not just a matter of scale.
    Accuracy may change and ties appear; probabilities of 0 become 1e-12. Equal to scikit-learn's one-vs-rest isotonic
    ``CalibratedClassifierCV`` on the model's probabilities.

    Args:
        inputs: points of known curves; None if they are to be fitted. See ``IsotonicScaling``.
        outputs: values at these points.

    Attributes:
        inputs: (curves, points), float64; one curve for two classes.
        outputs: (curves, points), float64.

    Example:
        >>> p = np.array([0.6, 0.7, 0.8, 0.9])  # of class 1; it occurs in one half below 0.75, always above
        >>> scaler = IsotonicCalibrator().fit(np.log(np.stack([1 - p, p], axis=-1)), [1, 0, 1, 1])
        >>> print(np.exp(np.asarray(scaler.scale(np.log([[0.4, 0.6], [0.1, 0.9]])))).round(3)[:, 1])
        [0.5 1. ]

    Reference:
        Zadrozny, Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates", 2002.
        Differs: nothing.
    """

    def __init__(self, inputs: Any = None, outputs: Any = None) -> None:
        if (inputs is None) != (outputs is None):
            raise error("IsotonicCalibrator", "inputs and outputs together", "only one of them")
        self.inputs = np.zeros((0, 0)) if inputs is None else np.asarray(inputs, float)
        self.outputs = np.zeros((0, 0)) if outputs is None else np.asarray(outputs, float)
        self._fitted = inputs is not None

    def fit(self, logits: Tensor, labels: Tensor, *, sample_weight: Tensor = None) -> Self:
        """Fit the curves.

        Args:
            logits: (..., classes), of held-out data.
            labels: (...,) class ids, or one-hot rows.
            sample_weight: (...,) or None.

        Returns:
            This calibrator.

        Raises:
            ValueError: if shapes do not fit, or scikit-learn is missing.
        """
        with optional("IsotonicCalibrator", "scikit-learn", "calibration"):
            from sklearn.isotonic import IsotonicRegression
        z, y, w = fitting_data("IsotonicCalibrator", logits, labels, sample_weight)
        p = softmax(z)
        curves = []
        for k in [1] if z.shape[1] == 2 else range(z.shape[1]):
            fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(p[:, k], y == k, w)
            curves.append((fitted.X_thresholds_, fitted.y_thresholds_))
        points = max(2, *(len(x) for x, _ in curves))
        self.inputs, self.outputs = (
            np.stack([np.pad(curve[side], (0, points - len(curve[side])), mode="edge") for curve in curves])
            for side in (0, 1)
        )
        self._fitted = True
        return self

    def layer(self) -> keras.layers.Layer:
        """Return a new ``IsotonicScaling``."""
        return IsotonicScaling(self.inputs, self.outputs, name="isotonic_scaling")

    def get_config(self) -> dict[str, Any]:
        """Return the configuration, including the curves if they are fitted."""
        if not self._fitted:
            return {"inputs": None, "outputs": None}
        return {"inputs": self.inputs.tolist(), "outputs": self.outputs.tolist()}
