"""Policies that need logs or validation data; pure functions of the step are schedules instead."""

from keras_distill.callbacks._adaptive import AdaptiveTemperature, EarlyStoppedDistillation
from keras_distill.callbacks._backup import Backup
from keras_distill.callbacks._balance import AdaptiveWeights
from keras_distill.callbacks._calibration import CalibrationMonitor
from keras_distill.callbacks._pruning import MagnitudePruning
from keras_distill.callbacks._schedulers import TemperatureScheduler, WeightScheduler
from keras_distill.callbacks._tasks import DynamicWeightAverage, TeacherAnnealing

__all__ = [
    "AdaptiveTemperature",
    "AdaptiveWeights",
    "Backup",
    "CalibrationMonitor",
    "DynamicWeightAverage",
    "EarlyStoppedDistillation",
    "MagnitudePruning",
    "TeacherAnnealing",
    "TemperatureScheduler",
    "WeightScheduler",
]
