"""Calibration, uncertainty and agreement, as streaming Keras metrics with fixed-size state and functional twins."""

from keras_distill.metrics._bins import ReliabilityBins
from keras_distill.metrics._calibration import ExpectedCalibrationError, expected_calibration_error, reliability_bins
from keras_distill.metrics._scores import BrierScore, NegativeLogLikelihood, brier_score, negative_log_likelihood

__all__ = [
    "BrierScore",
    "ExpectedCalibrationError",
    "NegativeLogLikelihood",
    "ReliabilityBins",
    "brier_score",
    "expected_calibration_error",
    "negative_log_likelihood",
    "reliability_bins",
]
