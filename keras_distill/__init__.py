"""Knowledge distillation for Keras 3 on TensorFlow: correct, calibrated, served."""

from keras_distill.distiller import Distiller
from keras_distill.terms import DistillationLoss, FeatureDistillation, LogitsDistillation

__version__ = "0.1.0"

__all__ = ["DistillationLoss", "Distiller", "FeatureDistillation", "LogitsDistillation"]
