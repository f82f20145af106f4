"""Data for distillation: real data sets by name, and what text, speech and several tasks need before training."""

from keras_distill.data._named import Data, Examples, load, names

__all__ = ["Data", "Examples", "load", "names"]
