"""Who teaches whom, and when: peers, generations, chains, stages, folds, policies, and models fused into one."""

from keras_distill.regimes._base import Measured, Regime, Round
from keras_distill.regimes._mutual import MutualLearning
from keras_distill.regimes._policies import PolicyDistiller, PolicyReturn, policy_return

__all__ = [
    "Measured",
    "MutualLearning",
    "PolicyDistiller",
    "PolicyReturn",
    "Regime",
    "Round",
    "policy_return",
]
