"""Where a student comes from: heads that say how unsure they are, and builders that put them on a model."""

from keras_distill.students._heads import GaussianHead, MemberHeads, MixtureHead, NormalInverseGammaHead
from keras_distill.students._unsure import UncertaintySplit, hydra, with_uncertainties, with_uncertainty_head

__all__ = [
    "GaussianHead",
    "MemberHeads",
    "MixtureHead",
    "NormalInverseGammaHead",
    "UncertaintySplit",
    "hydra",
    "with_uncertainties",
    "with_uncertainty_head",
]
