"""Data for distillation: real data sets by name, and what text, speech and several tasks need before training."""

from keras_distill.data._interactions import Interactions, leave_one_out, pad_lists, sample_unseen
from keras_distill.data._named import Data, Examples, load, names
from keras_distill.data._series import Windows, forecast_windows

__all__ = [
    "Data",
    "Examples",
    "Interactions",
    "Windows",
    "forecast_windows",
    "leave_one_out",
    "load",
    "names",
    "pad_lists",
    "sample_unseen",
]
