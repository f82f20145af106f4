"""Who teaches whom, and when: players and rounds."""

from keras_distill.regimes._policies import PolicyDistiller, PolicyReturn, policy_return

__all__ = ["PolicyDistiller", "PolicyReturn", "policy_return"]
