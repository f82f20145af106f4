"""Data for distillation: real data sets by name, and preparation of text, speech and several tasks."""

from keras_distill.data import _image_sets  # noqa: F401 -- more names for load()
from keras_distill.data._augment import Augment, augment, mix, student_view, teacher_view
from keras_distill.data._corruptions import corrupt
from keras_distill.data._images import domains, images
from keras_distill.data._interactions import Interactions, leave_one_out, pad_lists, sample_unseen
from keras_distill.data._named import Data, Examples, load, names
from keras_distill.data._series import Windows, forecast_windows
from keras_distill.data._tables import FilledNumber, TableEncoder, outside_range, synthetic_rows
from keras_distill.data._tasks import sample_tasks, task_probabilities
from keras_distill.data._text import augment_tokens, mask_tokens, tokens, unlabelled
from keras_distill.data._waveforms import fitting_labels, waveforms

__all__ = [
    "Augment",
    "Data",
    "Examples",
    "FilledNumber",
    "Interactions",
    "TableEncoder",
    "Windows",
    "augment",
    "augment_tokens",
    "corrupt",
    "domains",
    "fitting_labels",
    "forecast_windows",
    "images",
    "leave_one_out",
    "load",
    "mask_tokens",
    "mix",
    "names",
    "outside_range",
    "pad_lists",
    "sample_tasks",
    "sample_unseen",
    "student_view",
    "synthetic_rows",
    "task_probabilities",
    "teacher_view",
    "tokens",
    "unlabelled",
    "waveforms",
]
