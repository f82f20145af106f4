"""Where a student comes from: built from a teacher, what it costs, heads that say how unsure it is, soft trees."""

from keras_distill.students._built import Budget, Built
from keras_distill.students._cost import Cost, cost
from keras_distill.students._factorize import factorize
from keras_distill.students._from_teacher import from_teacher
from keras_distill.students._heads import GaussianHead, MemberHeads, MixtureHead, NormalInverseGammaHead
from keras_distill.students._neighbours import NearestItems, retriever
from keras_distill.students._soft_tree import (
    Rule,
    SoftDecisionTree,
    TreePaths,
    TreePicture,
    TreeWithPath,
    soft_tree_loss,
    tree_figure,
)
from keras_distill.students._unsure import UncertaintySplit, hydra, with_uncertainties, with_uncertainty_head

__all__ = [
    "Budget",
    "Built",
    "Cost",
    "GaussianHead",
    "MemberHeads",
    "MixtureHead",
    "NearestItems",
    "NormalInverseGammaHead",
    "Rule",
    "SoftDecisionTree",
    "TreePaths",
    "TreePicture",
    "TreeWithPath",
    "UncertaintySplit",
    "cost",
    "factorize",
    "from_teacher",
    "hydra",
    "retriever",
    "soft_tree_loss",
    "tree_figure",
    "with_uncertainties",
    "with_uncertainty_head",
]
