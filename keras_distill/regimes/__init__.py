"""Training regimes: peers, generations, chains, stages, folds, policies, and models fused into one."""

from keras_distill.regimes._adversaries import BatchStatistics, ClassInversion, Disagreement
from keras_distill.regimes._attacks import ProjectedGradient, fast_gradient_sign
from keras_distill.regimes._averaging import average_weights, greedy_soup
from keras_distill.regimes._base import Regime
from keras_distill.regimes._chain import AssistantChain
from keras_distill.regimes._contrast import Contrastive
from keras_distill.regimes._cross_validation import CrossValidation, cross_validate
from keras_distill.regimes._data_free import DataFree
from keras_distill.regimes._dp_sgd import DifferentiallyPrivate
from keras_distill.regimes._driver import Alone
from keras_distill.regimes._exchange import PeerExchange
from keras_distill.regimes._folds import OutOfFold, cross_fit
from keras_distill.regimes._fusion import Amalgamation, amalgamate, fuse
from keras_distill.regimes._generations import BornAgain
from keras_distill.regimes._generators import make_generator, synthesize
from keras_distill.regimes._impressions import data_impressions
from keras_distill.regimes._mutual import MutualLearning
from keras_distill.regimes._objectives import GeneratorObjective, Shown
from keras_distill.regimes._policies import PolicyDistiller
from keras_distill.regimes._policy_return import PolicyReturn, policy_return
from keras_distill.regimes._privacy import PrivacyReport, TrainingPrivacy
from keras_distill.regimes._private import PrivateLabels, PrivateVotes
from keras_distill.regimes._robust import AdversarialTraining
from keras_distill.regimes._robust_recipes import ard, rslad
from keras_distill.regimes._rounds import Measured, Round
from keras_distill.regimes._stages import Stage, Stages
from keras_distill.regimes._text import TinyBert, distilbert, every_other, minilm, tinybert
from keras_distill.regimes._text_to_lstm import bert_to_bilstm

__all__ = [
    "AdversarialTraining",
    "Alone",
    "Amalgamation",
    "AssistantChain",
    "BatchStatistics",
    "BornAgain",
    "ClassInversion",
    "Contrastive",
    "CrossValidation",
    "DataFree",
    "DifferentiallyPrivate",
    "Disagreement",
    "GeneratorObjective",
    "Measured",
    "MutualLearning",
    "OutOfFold",
    "PeerExchange",
    "PolicyDistiller",
    "PolicyReturn",
    "PrivacyReport",
    "PrivateLabels",
    "PrivateVotes",
    "ProjectedGradient",
    "Regime",
    "Round",
    "Shown",
    "Stage",
    "Stages",
    "TinyBert",
    "TrainingPrivacy",
    "amalgamate",
    "ard",
    "average_weights",
    "bert_to_bilstm",
    "cross_fit",
    "cross_validate",
    "data_impressions",
    "distilbert",
    "every_other",
    "fast_gradient_sign",
    "fuse",
    "greedy_soup",
    "make_generator",
    "minilm",
    "policy_return",
    "rslad",
    "synthesize",
    "tinybert",
]
