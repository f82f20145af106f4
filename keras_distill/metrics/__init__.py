"""Calibration, uncertainty, rejection, detection and agreement.

Classes are streaming Keras metrics, with a state of fixed size that is summed over batches and replicas. Functions
compute the same number from whole arrays, and exactly where a class uses a histogram. As in Keras, the default of all
metrics is ``from_logits=False``: pass ``from_logits=True`` for a student that outputs logits.
"""

from keras_distill.metrics._adaptive import (
    AdaptiveCalibrationError,
    MaximumMeanCalibrationError,
    adaptive_calibration_error,
    kolmogorov_smirnov_calibration_error,
    maximum_mean_calibration_error,
)
from keras_distill.metrics._agreement import (
    AgreementOnErrors,
    RankCorrelation,
    TeacherKL,
    TopKAgreement,
    agreement_on_errors,
    rank_correlation,
    teacher_kl,
    top_k_agreement,
)
from keras_distill.metrics._alignment import Alignment, ctc_align
from keras_distill.metrics._bins import ReliabilityBins
from keras_distill.metrics._calibration import ExpectedCalibrationError, expected_calibration_error, reliability_bins
from keras_distill.metrics._classwise import ClasswiseCalibrationError, classwise_calibration_error
from keras_distill.metrics._costs import DecisionCost, best_threshold, decision_cost
from keras_distill.metrics._decoding import Hypothesis, ctc_beam_decode, ctc_greedy_decode
from keras_distill.metrics._decomposition import BrierComponent, BrierDecomposition, brier_decomposition
from keras_distill.metrics._detection import (
    DetectionAUPR,
    DetectionAUROC,
    DetectionFPR,
    auroc,
    average_precision,
    fpr_at_recall,
)
from keras_distill.metrics._error_rates import TokenErrorRate, character_error_rate, edit_distance, word_error_rate
from keras_distill.metrics._forecasts import (
    Coverage,
    ensemble_crps,
    gaussian_crps,
    interval_coverage,
    mixture_quantiles,
    quantile_score,
)
from keras_distill.metrics._histogram import uncertainty_score
from keras_distill.metrics._ranking import RankingQuality, ranking_quality
from keras_distill.metrics._regression import (
    VarianceParts,
    mixture_uncertainty,
    normal_inverse_gamma_uncertainty,
)
from keras_distill.metrics._risk_coverage import (
    area_under_generalized_risk_coverage,
    area_under_risk_coverage,
    coverage_at_risk,
    prediction_rejection_ratio,
    risk_at_coverage,
    risk_coverage_curve,
)
from keras_distill.metrics._scores import BrierScore, NegativeLogLikelihood, brier_score, negative_log_likelihood
from keras_distill.metrics._selective import (
    AreaUnderGeneralizedRiskCoverage,
    AreaUnderRiskCoverage,
    FailureAUROC,
    PredictionRejectionRatio,
    RiskAtCoverage,
)
from keras_distill.metrics._spans import SpanConfidences, span_calibration_error, span_confidences, span_f1
from keras_distill.metrics._uncertainty import (
    MeanUncertainty,
    Uncertainty,
    dirichlet_entropy,
    dirichlet_uncertainty,
    ensemble_uncertainty,
)

__all__ = [
    "AdaptiveCalibrationError",
    "AgreementOnErrors",
    "Alignment",
    "AreaUnderGeneralizedRiskCoverage",
    "AreaUnderRiskCoverage",
    "BrierComponent",
    "BrierDecomposition",
    "BrierScore",
    "ClasswiseCalibrationError",
    "Coverage",
    "DecisionCost",
    "DetectionAUPR",
    "DetectionAUROC",
    "DetectionFPR",
    "ExpectedCalibrationError",
    "FailureAUROC",
    "Hypothesis",
    "MaximumMeanCalibrationError",
    "MeanUncertainty",
    "NegativeLogLikelihood",
    "PredictionRejectionRatio",
    "RankCorrelation",
    "RankingQuality",
    "ReliabilityBins",
    "RiskAtCoverage",
    "SpanConfidences",
    "TeacherKL",
    "TokenErrorRate",
    "TopKAgreement",
    "Uncertainty",
    "VarianceParts",
    "adaptive_calibration_error",
    "agreement_on_errors",
    "area_under_generalized_risk_coverage",
    "area_under_risk_coverage",
    "auroc",
    "average_precision",
    "best_threshold",
    "brier_decomposition",
    "brier_score",
    "character_error_rate",
    "classwise_calibration_error",
    "coverage_at_risk",
    "ctc_align",
    "ctc_beam_decode",
    "ctc_greedy_decode",
    "decision_cost",
    "dirichlet_entropy",
    "dirichlet_uncertainty",
    "edit_distance",
    "ensemble_crps",
    "ensemble_uncertainty",
    "expected_calibration_error",
    "fpr_at_recall",
    "gaussian_crps",
    "interval_coverage",
    "kolmogorov_smirnov_calibration_error",
    "maximum_mean_calibration_error",
    "mixture_quantiles",
    "mixture_uncertainty",
    "negative_log_likelihood",
    "normal_inverse_gamma_uncertainty",
    "prediction_rejection_ratio",
    "quantile_score",
    "rank_correlation",
    "ranking_quality",
    "reliability_bins",
    "risk_at_coverage",
    "risk_coverage_curve",
    "span_calibration_error",
    "span_confidences",
    "span_f1",
    "teacher_kl",
    "top_k_agreement",
    "uncertainty_score",
    "word_error_rate",
]
