"""Who teaches whom, and when: peers, generations, chains, stages, folds, policies, and models fused into one."""

from keras_distill.regimes._adversaries import BatchStatistics, ClassInversion, Disagreement, GeneratorObjective, Shown
from keras_distill.regimes._base import Measured, Regime, Round
from keras_distill.regimes._chain import AssistantChain
from keras_distill.regimes._data_free import DataFree
from keras_distill.regimes._driver import Alone
from keras_distill.regimes._generations import BornAgain
from keras_distill.regimes._generators import make_generator, synthesize
from keras_distill.regimes._mutual import MutualLearning
from keras_distill.regimes._policies import PolicyDistiller, PolicyReturn, policy_return
from keras_distill.regimes._stages import Stage, Stages
from keras_distill.regimes._text import TinyBert, bert_to_bilstm, distilbert, every_other, minilm, tinybert

__all__ = [
    "Alone",
    "AssistantChain",
    "BatchStatistics",
    "BornAgain",
    "ClassInversion",
    "DataFree",
    "Disagreement",
    "GeneratorObjective",
    "Measured",
    "MutualLearning",
    "PolicyDistiller",
    "PolicyReturn",
    "Regime",
    "Round",
    "Shown",
    "Stage",
    "Stages",
    "TinyBert",
    "bert_to_bilstm",
    "distilbert",
    "every_other",
    "make_generator",
    "minilm",
    "policy_return",
    "synthesize",
    "tinybert",
]
