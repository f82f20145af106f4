"""Evaluation of models: numbers, figures and one HTML page. Figures need ``keras-distill[demo]``."""

from keras_distill.report._auto_attack import AutoAttack
from keras_distill.report._comparison import Comparison, Method, comparison
from keras_distill.report._detection import DetectionEntry, boxes_over_pictures, detection, write_detection_page
from keras_distill.report._evaluate import evaluate
from keras_distill.report._figures import confusion_matrices, layer_attention, reliability_diagram, training_curves
from keras_distill.report._membership import Membership, membership
from keras_distill.report._page import write_page
from keras_distill.report._report import Entry, Report, Score
from keras_distill.report._robustness import Robustness, Shift
from keras_distill.report._safety_page import shift_curves
from keras_distill.report._segmentation import SegmentationEntry, SegmentationReport, overlays, segmentation
from keras_distill.report._segmentation_page import write_segmentation_page
from keras_distill.report._shrink_page import shrink_steps, write_shrink_page
from keras_distill.report._table import table
from keras_distill.report._uncertainty import (
    detection_histograms,
    risk_coverage,
    temperature_scaling,
    uncertainty_maps,
)

__all__ = [
    "AutoAttack",
    "Comparison",
    "DetectionEntry",
    "Entry",
    "Membership",
    "Method",
    "Report",
    "Robustness",
    "Score",
    "SegmentationEntry",
    "SegmentationReport",
    "Shift",
    "boxes_over_pictures",
    "comparison",
    "confusion_matrices",
    "detection",
    "detection_histograms",
    "evaluate",
    "layer_attention",
    "membership",
    "overlays",
    "reliability_diagram",
    "risk_coverage",
    "segmentation",
    "shift_curves",
    "shrink_steps",
    "table",
    "temperature_scaling",
    "training_curves",
    "uncertainty_maps",
    "write_detection_page",
    "write_page",
    "write_segmentation_page",
    "write_shrink_page",
]
