"""Terms: which tensors of teacher and student are compared, at what temperature, through which adapter."""

from keras_distill.terms._attributions import AttributionMatching
from keras_distill.terms._base import DistillationLoss
from keras_distill.terms._boxes import ForegroundDistillation
from keras_distill.terms._cross_layer import CrossLayerAttention
from keras_distill.terms._curriculum import CurriculumTemperature, EntropyMatchedTemperature
from keras_distill.terms._discriminator import Discriminator
from keras_distill.terms._domains import DomainAdversary, DomainAlignment
from keras_distill.terms._experts import ExpertDistillation
from keras_distill.terms._features import FeatureDistillation
from keras_distill.terms._hierarchical import HierarchicalDistillation
from keras_distill.terms._learned_weights import LearnedWeights
from keras_distill.terms._logits import LogitsDistillation
from keras_distill.terms._memory import ContrastiveMemory
from keras_distill.terms._pixels import PixelDistillation
from keras_distill.terms._review import ReviewDistillation
from keras_distill.terms._uncertainty import UncertaintyDistillation

__all__ = [
    "AttributionMatching",
    "ContrastiveMemory",
    "CrossLayerAttention",
    "CurriculumTemperature",
    "Discriminator",
    "DistillationLoss",
    "DomainAdversary",
    "DomainAlignment",
    "EntropyMatchedTemperature",
    "ExpertDistillation",
    "FeatureDistillation",
    "ForegroundDistillation",
    "HierarchicalDistillation",
    "LearnedWeights",
    "LogitsDistillation",
    "PixelDistillation",
    "ReviewDistillation",
    "UncertaintyDistillation",
]
