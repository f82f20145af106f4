"""Readable models that imitate a teacher on tables: trees, rules, linear and additive models."""

from keras_distill.explain._surrogates._audit import Audit, audit
from keras_distill.explain._surrogates._hard_tree import HardTree
from keras_distill.explain._surrogates._local import LocalExplanation, local_surrogate
from keras_distill.explain._surrogates._surrogate import Fidelity, Surrogate, surrogate

__all__ = ["Audit", "Fidelity", "HardTree", "LocalExplanation", "Surrogate", "audit", "local_surrogate", "surrogate"]
