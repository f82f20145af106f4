"""What a model is worth: measured, drawn and written on one page. Needs ``keras-distill[demo]`` for the figures."""

from keras_distill.report._evaluate import Entry, Report, Score, evaluate
from keras_distill.report._figures import confusion_matrices, layer_attention, reliability_diagram, training_curves
from keras_distill.report._page import write_page
from keras_distill.report._table import table

__all__ = [
    "Entry",
    "Report",
    "Score",
    "confusion_matrices",
    "evaluate",
    "layer_attention",
    "reliability_diagram",
    "table",
    "training_curves",
    "write_page",
]
