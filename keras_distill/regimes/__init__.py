"""Who teaches whom, and when: peers, generations, chains, stages, folds, and models fused into one."""

from keras_distill.regimes._base import Measured, Regime, Round
from keras_distill.regimes._mutual import MutualLearning

__all__ = ["Measured", "MutualLearning", "Regime", "Round"]
