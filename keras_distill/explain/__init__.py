"""Explanations of a model's answers: attributions, surrogates, and agreement between teacher and student."""

from keras_distill.explain._agreement import Agreement, Measure, agreement
from keras_distill.explain._attributions import METHODS, attributions
from keras_distill.explain._concepts import ConceptDirection, concept_direction
from keras_distill.explain._counterfactuals import Counterfactuals, counterfactuals, transferred
from keras_distill.explain._curves import Curve, SanityCheck, importance_curve, sanity_check
from keras_distill.explain._maps import spearman, structural_similarity, top_overlap
from keras_distill.explain._surrogates import (
    Audit,
    Fidelity,
    HardTree,
    LocalExplanation,
    Surrogate,
    audit,
    local_surrogate,
    surrogate,
)
from keras_distill.explain._untrained import untrained
from keras_distill.explain._with_attribution import WithAttribution, with_attribution

__all__ = [
    "METHODS",
    "Agreement",
    "Audit",
    "ConceptDirection",
    "Counterfactuals",
    "Curve",
    "Fidelity",
    "HardTree",
    "LocalExplanation",
    "Measure",
    "SanityCheck",
    "Surrogate",
    "WithAttribution",
    "agreement",
    "attributions",
    "audit",
    "concept_direction",
    "counterfactuals",
    "importance_curve",
    "local_surrogate",
    "sanity_check",
    "spearman",
    "structural_similarity",
    "surrogate",
    "top_overlap",
    "transferred",
    "untrained",
    "with_attribution",
]
