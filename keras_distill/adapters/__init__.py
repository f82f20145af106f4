"""Small layers that fit a student's tensor to a teacher's: owned by a term, trained with it, never exported."""

from keras_distill.adapters._auto import auto
from keras_distill.adapters._projections import Conv1x1, ConvRegressor, Dense, Embedding
from keras_distill.adapters._sizes import AdaptiveAveragePool, AttentionPool, Resize, SequenceInterpolation

__all__ = [
    "AdaptiveAveragePool",
    "AttentionPool",
    "Conv1x1",
    "ConvRegressor",
    "Dense",
    "Embedding",
    "Resize",
    "SequenceInterpolation",
    "auto",
]
