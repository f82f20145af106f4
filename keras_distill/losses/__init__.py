"""How two tensors differ: pure functions with one value per example, and their class twins for terms and configs."""

from keras_distill.losses._attention import AttentionTransfer, NeuronSelectivity, attention_transfer, neuron_selectivity
from keras_distill.losses._base import FeatureLoss, LogitsLoss
from keras_distill.losses._features import HintMatching, VariationalInformation, hint, variational_information
from keras_distill.losses._geometry import RelationalAngle, RelationalDistance, relational_angle, relational_distance
from keras_distill.losses._relations import (
    CorrelationCongruence,
    ProbabilisticTransfer,
    SimilarityPreserving,
    correlation_congruence,
    probabilistic_transfer,
    similarity_preserving,
)
from keras_distill.losses._soft_targets import SoftTargets, soft_targets

__all__ = [
    "AttentionTransfer",
    "CorrelationCongruence",
    "FeatureLoss",
    "HintMatching",
    "LogitsLoss",
    "NeuronSelectivity",
    "ProbabilisticTransfer",
    "RelationalAngle",
    "RelationalDistance",
    "SimilarityPreserving",
    "SoftTargets",
    "VariationalInformation",
    "attention_transfer",
    "correlation_congruence",
    "hint",
    "neuron_selectivity",
    "probabilistic_transfer",
    "relational_angle",
    "relational_distance",
    "similarity_preserving",
    "soft_targets",
    "variational_information",
]
