"""Small layers that map a student's tensor to a teacher's shape: owned by a term, trained with it, never exported."""

from keras_distill.adapters._attention import AttentionScores
from keras_distill.adapters._auto import auto
from keras_distill.adapters._crf import CrfMarginals, LinearChainCrf
from keras_distill.adapters._experts import ExpertMixture
from keras_distill.adapters._fusion import AttentionFusion, LayerEmbedding, MemoryBank, SimilarityEmbedding
from keras_distill.adapters._masks import WithMask
from keras_distill.adapters._projections import Conv1x1, ConvRegressor, Dense, Embedding
from keras_distill.adapters._regressors import BottleneckRegressor, Paraphraser, Translator, VariationalRegressor
from keras_distill.adapters._sizes import AdaptiveAveragePool, AttentionPool, Resize, SequenceInterpolation
from keras_distill.adapters._speech import LogMel

__all__ = [
    "AdaptiveAveragePool",
    "AttentionFusion",
    "AttentionPool",
    "AttentionScores",
    "BottleneckRegressor",
    "Conv1x1",
    "ConvRegressor",
    "CrfMarginals",
    "Dense",
    "Embedding",
    "ExpertMixture",
    "LayerEmbedding",
    "LinearChainCrf",
    "LogMel",
    "MemoryBank",
    "Paraphraser",
    "Resize",
    "SequenceInterpolation",
    "SimilarityEmbedding",
    "Translator",
    "VariationalRegressor",
    "WithMask",
    "auto",
]
