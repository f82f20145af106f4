"""Why a model answers so: attributions, surrogates, and whether teacher and student explain themselves alike."""

from keras_distill.explain._attributions import METHODS, attributions

__all__ = ["METHODS", "attributions"]
