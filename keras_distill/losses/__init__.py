"""How two tensors differ: pure functions with one value per example, and their class twins for terms and configs."""

from keras_distill.losses._base import FeatureLoss, LogitsLoss
from keras_distill.losses._soft_targets import SoftTargets, soft_targets

__all__ = [
    "FeatureLoss",
    "LogitsLoss",
    "SoftTargets",
    "soft_targets",
]
