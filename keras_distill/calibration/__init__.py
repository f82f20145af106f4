"""Calibration after training: fitted on held-out logits, then part of the student. Needs the extra ``[calibration]``.

Fit on data used neither to train nor to evaluate the model. Every scaler maps logits to logits, so a wrapped student
can be exported, served, stored or distilled from like any other model.
"""

from keras_distill.calibration._adaptive_conformal import AdaptiveConformal
from keras_distill.calibration._base import CalibratedModel, Scaler
from keras_distill.calibration._conformal import ConformalIntervals, SplitConformal
from keras_distill.calibration._isotonic import IsotonicCalibrator
from keras_distill.calibration._layers import IsotonicScaling, TemperatureScaling, VectorScaling
from keras_distill.calibration._scalers import TemperatureScaler, VectorScaler

__all__ = [
    "AdaptiveConformal",
    "CalibratedModel",
    "ConformalIntervals",
    "IsotonicCalibrator",
    "IsotonicScaling",
    "Scaler",
    "SplitConformal",
    "TemperatureScaler",
    "TemperatureScaling",
    "VectorScaler",
    "VectorScaling",
]
