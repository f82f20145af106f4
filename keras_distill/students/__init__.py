"""Where a student comes from: built from a teacher, what it costs, and heads that say how unsure it is."""

from keras_distill.students._built import Budget, Built
from keras_distill.students._cost import Cost, cost
from keras_distill.students._heads import GaussianHead, MemberHeads, MixtureHead, NormalInverseGammaHead
from keras_distill.students._unsure import UncertaintySplit, hydra, with_uncertainties, with_uncertainty_head

__all__ = [
    "Budget",
    "Built",
    "Cost",
    "GaussianHead",
    "MemberHeads",
    "MixtureHead",
    "NormalInverseGammaHead",
    "UncertaintySplit",
    "cost",
    "hydra",
    "with_uncertainties",
    "with_uncertainty_head",
]
