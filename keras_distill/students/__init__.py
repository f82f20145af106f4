"""Students: built from a teacher, their costs, heads that estimate uncertainty, soft trees."""

from keras_distill.students._built import Budget, Built
from keras_distill.students._cost import Cost, cost
from keras_distill.students._exits import with_exits, with_gate
from keras_distill.students._factorize import factorize
from keras_distill.students._fold import fold_batch_normalization
from keras_distill.students._from_teacher import from_teacher
from keras_distill.students._heads import GaussianHead, MemberHeads, MixtureHead, NormalInverseGammaHead
from keras_distill.students._neighbours import NearestItems, retriever
from keras_distill.students._quantization import (
    edge_quantized,
    freeze_quantization,
    quantization_aware,
    quantized_bits,
    quantized_litert,
    served_model,
)
from keras_distill.students._quantizers import (
    ActivationQuantizer,
    QuantizedConv2D,
    QuantizedDense,
    QuantizedDepthwiseConv2D,
)
from keras_distill.students._shrink import ShrinkStep, Shrunk, shrink
from keras_distill.students._soft_tree import (
    Rule,
    SoftDecisionTree,
    TreePaths,
    TreePicture,
    TreeWithPath,
    soft_tree_loss,
    tree_figure,
)
from keras_distill.students._sparsity import Sparsity, sparsity
from keras_distill.students._unsure import UncertaintySplit, hydra, with_uncertainties, with_uncertainty_head

__all__ = [
    "ActivationQuantizer",
    "Budget",
    "Built",
    "Cost",
    "GaussianHead",
    "MemberHeads",
    "MixtureHead",
    "NearestItems",
    "NormalInverseGammaHead",
    "QuantizedConv2D",
    "QuantizedDense",
    "QuantizedDepthwiseConv2D",
    "Rule",
    "ShrinkStep",
    "Shrunk",
    "SoftDecisionTree",
    "Sparsity",
    "TreePaths",
    "TreePicture",
    "TreeWithPath",
    "UncertaintySplit",
    "cost",
    "edge_quantized",
    "factorize",
    "fold_batch_normalization",
    "freeze_quantization",
    "from_teacher",
    "hydra",
    "quantization_aware",
    "quantized_bits",
    "quantized_litert",
    "retriever",
    "served_model",
    "shrink",
    "soft_tree_loss",
    "sparsity",
    "tree_figure",
    "with_exits",
    "with_gate",
    "with_uncertainties",
    "with_uncertainty_head",
]
