"""How two tensors differ: pure functions with one value per example, and their class twins for terms and configs."""

from keras_distill.losses._base import FeatureLoss, LogitsLoss
from keras_distill.losses._detection.boxes import box_masks, box_overlaps, check_anchors, match_anchors
from keras_distill.losses._detection.edges import EdgeDistributions, edge_distributions
from keras_distill.losses._detection.foreground import foreground_features
from keras_distill.losses._detection.heatmaps import CenterBoxes, CenterHeatmaps, center_boxes, center_heatmaps
from keras_distill.losses._ensembles.dirichlet import (
    DirichletDistillation,
    ProxyDirichlet,
    dirichlet_distillation,
    proxy_dirichlet,
)
from keras_distill.losses._ensembles.evidential import Evidential, MisleadingEvidence, evidential, misleading_evidence
from keras_distill.losses._ensembles.soft_targets import (
    EnsembleSoftTargets,
    MemberSoftTargets,
    TrustWeighted,
    ensemble_soft_targets,
    member_soft_targets,
)
from keras_distill.losses._features.activation_boundaries import (
    ActivationBoundaries,
    MarginRelu,
    activation_boundaries,
    margin_relu,
    negative_mean,
)
from keras_distill.losses._features.attention_maps import (
    AttentionTransfer,
    NeuronSelectivity,
    attention_transfer,
    neuron_selectivity,
)
from keras_distill.losses._features.contrastive import (
    ContrastiveRepresentation,
    contrastive_noise,
    contrastive_representation,
)
from keras_distill.losses._features.dense import (
    ChannelDistributions,
    NormalizedFeatures,
    PixelSimilarities,
    boundary_weights,
    channel_distributions,
    normalized_features,
    pixel_similarities,
)
from keras_distill.losses._features.geometry import (
    RelationalAngle,
    RelationalDistance,
    relational_angle,
    relational_distance,
)
from keras_distill.losses._features.hints import HintMatching, VariationalInformation, hint, variational_information
from keras_distill.losses._features.layer_flow import SingularVectors, SolutionFlow, singular_vectors, solution_flow
from keras_distill.losses._features.relations import (
    CorrelationCongruence,
    ProbabilisticTransfer,
    SimilarityPreserving,
    correlation_congruence,
    probabilistic_transfer,
    similarity_preserving,
)
from keras_distill.losses._features.several_layers import (
    FactorTransfer,
    HierarchicalContext,
    factor_transfer,
    hierarchical_context,
    layer_attention,
    semantic_calibration,
)
from keras_distill.losses._features.transformers import (
    AttentionMaps,
    HiddenStates,
    SelfAttentionRelation,
    attention_maps,
    hidden_states,
    self_attention_relation,
)
from keras_distill.losses._logits.binary import BinarySoftTargets, binary_soft_targets
from keras_distill.losses._logits.confidence import ConfidentTargets, confident
from keras_distill.losses._logits.correlation import ClassCorrelation, class_correlation
from keras_distill.losses._logits.divergences import (
    JensenShannon,
    ReverseSoftTargets,
    TotalVariation,
    jensen_shannon,
    reverse_soft_targets,
    total_variation,
)
from keras_distill.losses._logits.hard_targets import HardTargets, hard_targets
from keras_distill.losses._logits.labelled import (
    DecoupledSoftTargets,
    NormalizedSoftTargets,
    WeightedSoftLabels,
    decoupled_soft_targets,
    normalized_soft_targets,
    weighted_soft_labels,
)
from keras_distill.losses._logits.policy import PolicyTargets, policy_targets
from keras_distill.losses._logits.soft_targets import SoftTargets, soft_targets
from keras_distill.losses._logits.squared_errors import (
    LogitMatching,
    ProbabilityMatching,
    logit_matching,
    probability_matching,
)
from keras_distill.losses._logits.standardized import (
    StandardizedSoftTargets,
    select_classes,
    standardize_logits,
    standardized_soft_targets,
)
from keras_distill.losses._logits.top_k import TopKSoftTargets, from_top_k, top_k_soft_targets
from keras_distill.losses._ranking.items import RankedItems, position_weights, ranked_items
from keras_distill.losses._ranking.lists import ListMLE, RankDistil, list_mle, rank_distil
from keras_distill.losses._ranking.pairs import RankNet, rank_net
from keras_distill.losses._ranking.relaxed import RelaxedRanking, relaxed_order, relaxed_ranking
from keras_distill.losses._regression.ensembles import (
    EnsembleGaussianKL,
    GaussianMixture,
    NormalInverseGamma,
    gaussian_mixture,
    gaussian_moments,
    normal_inverse_gamma,
)
from keras_distill.losses._regression.likelihoods import (
    EvidentialRegression,
    GaussianLikelihood,
    evidential_regression,
    gaussian_likelihood,
)
from keras_distill.losses._regression.quantiles import QuantileTargets, quantile_targets
from keras_distill.losses._regression.targets import (
    GaussianKL,
    RegressionMatching,
    gaussian_kl,
    regression_matching,
)
from keras_distill.losses._sequences.crf import (
    CrfNegativeLogLikelihood,
    crf_decode,
    crf_log_marginals,
    crf_negative_log_likelihood,
)
from keras_distill.losses._sequences.ctc import Ctc, ctc
from keras_distill.losses._sequences.frames import FrameSoftTargets, GuidedCtc, frame_soft_targets, guided_ctc
from keras_distill.losses._sequences.hypotheses import NBestCtc, n_best_ctc
from keras_distill.losses._where_labelled import WhereLabelled

__all__ = [
    "ActivationBoundaries",
    "AttentionMaps",
    "AttentionTransfer",
    "BinarySoftTargets",
    "CenterBoxes",
    "CenterHeatmaps",
    "ChannelDistributions",
    "ClassCorrelation",
    "ConfidentTargets",
    "ContrastiveRepresentation",
    "CorrelationCongruence",
    "CrfNegativeLogLikelihood",
    "Ctc",
    "DecoupledSoftTargets",
    "DirichletDistillation",
    "EdgeDistributions",
    "EnsembleGaussianKL",
    "EnsembleSoftTargets",
    "Evidential",
    "EvidentialRegression",
    "FactorTransfer",
    "FeatureLoss",
    "FrameSoftTargets",
    "GaussianKL",
    "GaussianLikelihood",
    "GaussianMixture",
    "GuidedCtc",
    "HardTargets",
    "HiddenStates",
    "HierarchicalContext",
    "HintMatching",
    "JensenShannon",
    "ListMLE",
    "LogitMatching",
    "LogitsLoss",
    "MarginRelu",
    "MemberSoftTargets",
    "MisleadingEvidence",
    "NBestCtc",
    "NeuronSelectivity",
    "NormalInverseGamma",
    "NormalizedFeatures",
    "NormalizedSoftTargets",
    "PixelSimilarities",
    "PolicyTargets",
    "ProbabilisticTransfer",
    "ProbabilityMatching",
    "ProxyDirichlet",
    "QuantileTargets",
    "RankDistil",
    "RankNet",
    "RankedItems",
    "RegressionMatching",
    "RelationalAngle",
    "RelationalDistance",
    "RelaxedRanking",
    "ReverseSoftTargets",
    "SelfAttentionRelation",
    "SimilarityPreserving",
    "SingularVectors",
    "SoftTargets",
    "SolutionFlow",
    "StandardizedSoftTargets",
    "TopKSoftTargets",
    "TotalVariation",
    "TrustWeighted",
    "VariationalInformation",
    "WeightedSoftLabels",
    "WhereLabelled",
    "activation_boundaries",
    "attention_maps",
    "attention_transfer",
    "binary_soft_targets",
    "boundary_weights",
    "box_masks",
    "box_overlaps",
    "center_boxes",
    "center_heatmaps",
    "channel_distributions",
    "check_anchors",
    "class_correlation",
    "confident",
    "contrastive_noise",
    "contrastive_representation",
    "correlation_congruence",
    "crf_decode",
    "crf_log_marginals",
    "crf_negative_log_likelihood",
    "ctc",
    "decoupled_soft_targets",
    "dirichlet_distillation",
    "edge_distributions",
    "ensemble_soft_targets",
    "evidential",
    "evidential_regression",
    "factor_transfer",
    "foreground_features",
    "frame_soft_targets",
    "from_top_k",
    "gaussian_kl",
    "gaussian_likelihood",
    "gaussian_mixture",
    "gaussian_moments",
    "guided_ctc",
    "hard_targets",
    "hidden_states",
    "hierarchical_context",
    "hint",
    "jensen_shannon",
    "layer_attention",
    "list_mle",
    "logit_matching",
    "margin_relu",
    "match_anchors",
    "member_soft_targets",
    "misleading_evidence",
    "n_best_ctc",
    "negative_mean",
    "neuron_selectivity",
    "normal_inverse_gamma",
    "normalized_features",
    "normalized_soft_targets",
    "pixel_similarities",
    "policy_targets",
    "position_weights",
    "probabilistic_transfer",
    "probability_matching",
    "proxy_dirichlet",
    "quantile_targets",
    "rank_distil",
    "rank_net",
    "ranked_items",
    "regression_matching",
    "relational_angle",
    "relational_distance",
    "relaxed_order",
    "relaxed_ranking",
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
