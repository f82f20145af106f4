"""Policies that need logs or validation data; everything that is a function of the step is a schedule instead."""

from keras_distill.callbacks._calibration import CalibrationMonitor

__all__ = ["CalibrationMonitor"]
