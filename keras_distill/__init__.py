"""Knowledge distillation for Keras 3 on TensorFlow: correct, calibrated, served."""

__version__ = "0.1.0"
