"""From a trained student to a file somebody else serves; every export is checked against the Keras student."""

from keras_distill.export._parity import Export
from keras_distill.export._saved_model import saved_model

__all__ = ["Export", "saved_model"]
