"""Who teaches whom, and when: peers, generations, chains, stages, folds, policies, and models fused into one."""

from keras_distill.regimes._base import Measured, Regime, Round
from keras_distill.regimes._chain import AssistantChain
from keras_distill.regimes._driver import Alone
from keras_distill.regimes._generations import BornAgain
from keras_distill.regimes._mutual import MutualLearning
from keras_distill.regimes._policies import PolicyDistiller, PolicyReturn, policy_return
from keras_distill.regimes._stages import Stage, Stages
from keras_distill.regimes._text import TinyBert, bert_to_bilstm, distilbert, every_other, minilm, tinybert

__all__ = [
    "Alone",
    "AssistantChain",
    "BornAgain",
    "Measured",
    "MutualLearning",
    "PolicyDistiller",
    "PolicyReturn",
    "Regime",
    "Round",
    "Stage",
    "Stages",
    "TinyBert",
    "bert_to_bilstm",
    "distilbert",
    "every_other",
    "minilm",
    "policy_return",
    "tinybert",
]
