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
from keras_distill.losses._correlation import ClassCorrelation, class_correlation
from keras_distill.losses._divergences import (
    JensenShannon,
    ReverseSoftTargets,
    TotalVariation,
    jensen_shannon,
    reverse_soft_targets,
    total_variation,
)
from keras_distill.losses._features import HintMatching, VariationalInformation, hint, variational_information
from keras_distill.losses._flow import SingularVectors, SolutionFlow, singular_vectors, solution_flow
from keras_distill.losses._geometry import RelationalAngle, RelationalDistance, relational_angle, relational_distance
from keras_distill.losses._labelled import (
    DecoupledSoftTargets,
    HardTargets,
    NormalizedSoftTargets,
    WeightedSoftLabels,
    decoupled_soft_targets,
    hard_targets,
    normalized_soft_targets,
    weighted_soft_labels,
)
from keras_distill.losses._levels import (
    FactorTransfer,
    HierarchicalContext,
    factor_transfer,
    hierarchical_context,
    layer_attention,
    semantic_calibration,
)
from keras_distill.losses._matching import (
    GaussianKL,
    LogitMatching,
    ProbabilityMatching,
    RegressionMatching,
    gaussian_kl,
    logit_matching,
    probability_matching,
    regression_matching,
)
from keras_distill.losses._multilabel import BinarySoftTargets, binary_soft_targets
from keras_distill.losses._relations import (
    CorrelationCongruence,
    ProbabilisticTransfer,
    SimilarityPreserving,
    correlation_congruence,
    probabilistic_transfer,
    similarity_preserving,
)
from keras_distill.losses._soft_targets import SoftTargets, soft_targets
from keras_distill.losses._standardized import (
    StandardizedSoftTargets,
    select_classes,
    standardize_logits,
    standardized_soft_targets,
)
from keras_distill.losses._top_k import TopKSoftTargets, from_top_k, top_k_soft_targets
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
    "BinarySoftTargets",
    "ClassCorrelation",
    "ContrastiveRepresentation",
    "CorrelationCongruence",
    "DecoupledSoftTargets",
    "FactorTransfer",
    "FeatureLoss",
    "GaussianKL",
    "HardTargets",
    "HiddenStates",
    "HierarchicalContext",
    "HintMatching",
    "JensenShannon",
    "LogitMatching",
    "LogitsLoss",
    "MarginRelu",
    "NeuronSelectivity",
    "NormalizedSoftTargets",
    "ProbabilisticTransfer",
    "ProbabilityMatching",
    "RegressionMatching",
    "RelationalAngle",
    "RelationalDistance",
    "ReverseSoftTargets",
    "SelfAttentionRelation",
    "SimilarityPreserving",
    "SingularVectors",
    "SoftTargets",
    "SolutionFlow",
    "StandardizedSoftTargets",
    "TopKSoftTargets",
    "TotalVariation",
    "VariationalInformation",
    "WeightedSoftLabels",
    "activation_boundaries",
    "attention_maps",
    "attention_transfer",
    "binary_soft_targets",
    "class_correlation",
    "contrastive_noise",
    "contrastive_representation",
    "correlation_congruence",
    "decoupled_soft_targets",
    "factor_transfer",
    "from_top_k",
    "gaussian_kl",
    "hard_targets",
    "hidden_states",
    "hierarchical_context",
    "hint",
    "jensen_shannon",
    "layer_attention",
    "logit_matching",
    "margin_relu",
    "negative_mean",
    "neuron_selectivity",
    "normalized_soft_targets",
    "probabilistic_transfer",
    "probability_matching",
    "regression_matching",
    "relational_angle",
    "relational_distance",
    "reverse_soft_targets",
    "select_classes",
    "self_attention_relation",
    "semantic_calibration",
    "similarity_preserving",
    "singular_vectors",
    "soft_targets",
    "solution_flow",
    "standardize_logits",
    "standardized_soft_targets",
    "top_k_soft_targets",
    "total_variation",
    "variational_information",
    "weighted_soft_labels",
]
