"""Teachers: several models, a model with dropout on, outputs stored on disk. ``Distiller`` takes any of them."""

from keras_distill.teachers._base import Preprocessed, Single, StoredTeacherError, Teacher, as_teacher
from keras_distill.teachers._calibrated import Calibrated
from keras_distill.teachers._clusters import ClusterTargets
from keras_distill.teachers._combine import (
    Combine,
    ConfidenceWeighted,
    EntropyWeighted,
    GradientBased,
    MeanLogits,
    MeanLoss,
    MeanProbs,
    Stochastic,
    UncertaintyWeighted,
)
from keras_distill.teachers._crf import crf_marginals
from keras_distill.teachers._ensemble import Ensemble
from keras_distill.teachers._fast import Agreement, Fast, agreement
from keras_distill.teachers._gate import LearnedGate
from keras_distill.teachers._indexed import Indexed
from keras_distill.teachers._members import Members
from keras_distill.teachers._monte_carlo import MonteCarloDropout
from keras_distill.teachers._n_best import NBest, n_best
from keras_distill.teachers._order import RankTargets, SortedDifferences
from keras_distill.teachers._peers import DeepestExit, GatedPeers, Peers
from keras_distill.teachers._permuted import PermutedDarkKnowledge
from keras_distill.teachers._policy_buffer import PolicyBuffer
from keras_distill.teachers._precomputed import Precomputed
from keras_distill.teachers._snapshot import Snapshot
from keras_distill.teachers._virtual import VirtualTeacher
from keras_distill.teachers.foreign import Foreign, from_callable, from_litert, from_onnx, from_saved_model
from keras_distill.teachers.store import Stored, StoreProblem, label, label_with_ray, repair, verify

__all__ = [
    "Agreement",
    "Calibrated",
    "ClusterTargets",
    "Combine",
    "ConfidenceWeighted",
    "DeepestExit",
    "Ensemble",
    "EntropyWeighted",
    "Fast",
    "Foreign",
    "GatedPeers",
    "GradientBased",
    "Indexed",
    "LearnedGate",
    "MeanLogits",
    "MeanLoss",
    "MeanProbs",
    "Members",
    "MonteCarloDropout",
    "NBest",
    "Peers",
    "PermutedDarkKnowledge",
    "PolicyBuffer",
    "Precomputed",
    "Preprocessed",
    "RankTargets",
    "Single",
    "Snapshot",
    "SortedDifferences",
    "Stochastic",
    "StoreProblem",
    "Stored",
    "StoredTeacherError",
    "Teacher",
    "UncertaintyWeighted",
    "VirtualTeacher",
    "agreement",
    "as_teacher",
    "crf_marginals",
    "from_callable",
    "from_litert",
    "from_onnx",
    "from_saved_model",
    "label",
    "label_with_ray",
    "n_best",
    "repair",
    "verify",
]
