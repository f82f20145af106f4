"""How two tensors differ: pure functions with one value per example, and their class twins for terms and configs."""

from keras_distill.losses._attention import AttentionTransfer, NeuronSelectivity, attention_transfer, neuron_selectivity
from keras_distill.losses._base import FeatureLoss, LogitsLoss
from keras_distill.losses._boundaries import (
    ActivationBoundaries,
    MarginRelu,
    activation_boundaries,
    margin_relu,
    negative_mean,
)
from keras_distill.losses._contrast import ContrastiveRepresentation, contrastive_noise, contrastive_representation
from keras_distill.losses._features import HintMatching, VariationalInformation, hint, variational_information
from keras_distill.losses._flow import SingularVectors, SolutionFlow, singular_vectors, solution_flow
from keras_distill.losses._geometry import RelationalAngle, RelationalDistance, relational_angle, relational_distance
from keras_distill.losses._levels import (
    FactorTransfer,
    HierarchicalContext,
    factor_transfer,
    hierarchical_context,
    layer_attention,
    semantic_calibration,
)
from keras_distill.losses._relations import (
    CorrelationCongruence,
    ProbabilisticTransfer,
    SimilarityPreserving,
    correlation_congruence,
    probabilistic_transfer,
    similarity_preserving,
)
from keras_distill.losses._soft_targets import SoftTargets, soft_targets
from keras_distill.losses._transformers import (
    AttentionMaps,
    HiddenStates,
    SelfAttentionRelation,
    attention_maps,
    hidden_states,
    self_attention_relation,
)

__all__ = [
    "ActivationBoundaries",
    "AttentionMaps",
    "AttentionTransfer",
    "ContrastiveRepresentation",
    "CorrelationCongruence",
    "FactorTransfer",
    "FeatureLoss",
    "HiddenStates",
    "HierarchicalContext",
    "HintMatching",
    "LogitsLoss",
    "MarginRelu",
    "NeuronSelectivity",
    "ProbabilisticTransfer",
    "RelationalAngle",
    "RelationalDistance",
    "SelfAttentionRelation",
    "SimilarityPreserving",
    "SingularVectors",
    "SoftTargets",
    "SolutionFlow",
    "VariationalInformation",
    "activation_boundaries",
    "attention_maps",
    "attention_transfer",
    "contrastive_noise",
    "contrastive_representation",
    "correlation_congruence",
    "factor_transfer",
    "hidden_states",
    "hierarchical_context",
    "hint",
    "layer_attention",
    "margin_relu",
    "negative_mean",
    "neuron_selectivity",
    "probabilistic_transfer",
    "relational_angle",
    "relational_distance",
    "self_attention_relation",
    "semantic_calibration",
    "similarity_preserving",
    "singular_vectors",
    "soft_targets",
    "solution_flow",
    "variational_information",
]
