"""Uncertainty of ensemble members or of a Dirichlet, split into total = data + knowledge."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill._checks import choice, error, number, with_axes
from keras_distill._typing import Tensor
from keras_distill.losses._numerics.special import digamma, log_gamma
from keras_distill.metrics._examples import as_float, read_weights
from keras_distill.metrics._streaming import MeanOverExamples, float64
from keras_distill.metrics._top_class import checked_probability

KINDS = ("total", "data", "knowledge", "variance", "expected_pairwise_kl", "reverse_mutual_information")


class Uncertainty(NamedTuple):
    """Uncertainties of each example; all (batch,), in nats, except ``variance`` (no unit).

    Attributes:
        total: entropy of the mean distribution.
        data: mean entropy of the distributions, which more knowledge would not remove (aleatoric).
        knowledge: total - data, the mutual information of class and member, or disagreement (epistemic).
        variance: variance of the class probabilities, summed over classes.
        expected_pairwise_kl: mean KL divergence between two different members.
        reverse_mutual_information: mean KL divergence from the mean distribution to the members.
    """

    total: Any
    data: Any
    knowledge: Any
    variance: Any
    expected_pairwise_kl: Any
    reverse_mutual_information: Any


def _plogp(probabilities: Tensor, logs: Any) -> Tensor:
    """Return sum over the last axis of p * log, with 0 * log = 0."""
    zero = ops.equal(probabilities, 0.0)
    return ops.sum(ops.where(zero, ops.zeros_like(logs), probabilities * logs), axis=-1)


def _xlog(values: Tensor) -> Tensor:
    """Return log(values), and -inf instead of NaN where values <= 0."""
    positive = values > 0
    return ops.where(positive, ops.log(ops.where(positive, values, ops.ones_like(values))), -float("inf"))


def ensemble_uncertainty(members: Tensor, *, from_logits: bool = False) -> Uncertainty:
    """Split the uncertainty of an ensemble, or of MC-dropout passes, into data and knowledge.

    Choose it whenever there are several predictions per example; for a Dirichlet student see ``dirichlet_uncertainty``.
    Computed in float64, because knowledge is a small difference that float32 loses below 1e-7.

    Formula: with members p^m and their mean p: total = H(p), data = mean_m H(p^m), knowledge = total - data,
    variance = sum_k var_m p^m_k, reverse mutual information = mean_m KL(p || p^m), expected pairwise KL = mean over
    pairs m != l of KL(p^m || p^l).

    Args:
        members: (..., members, classes): probabilities, or logits with ``from_logits``.
        from_logits: whether ``members`` are logits.

    Returns:
        An ``Uncertainty`` of (...,) tensors in the dtype of ``members`` (at least float32). With one member knowledge
        is 0. The last two are infinite if a member gives probability 0 to a class that another allows.

    Raises:
        ValueError: if ``members`` has fewer than 2 axes.

    Example:
        >>> import numpy as np
        >>> u = ensemble_uncertainty(np.array([[[1.0, 0.0], [0.0, 1.0]]]))  # two sure members that disagree
        >>> print(f"{float(u.total[0]):.4f} {float(u.data[0]):.4f} {float(u.knowledge[0]):.4f}")
        0.6931 0.0000 0.6931

    Reference:
        Depeweg et al., "Decomposition of Uncertainty in Bayesian Deep Learning", 2018, arXiv:1710.07283, section 3;
        Malinin, Gales, "Uncertainty Estimation in Autoregressive Structured Prediction", 2021, arXiv:2002.07650.
        Differs: nothing.
    """
    members = as_float(members)
    if len(members.shape) < 2:
        raise error("ensemble_uncertainty", "members of shape (..., members, classes)", f"shape {members.shape}")
    wide, count = float64(members), members.shape[-2]
    if from_logits:
        logs = ops.log_softmax(wide, axis=-1)
        probabilities = ops.exp(logs)
    else:
        probabilities = checked_probability(wide)
        logs = _xlog(probabilities)
    mean = ops.mean(probabilities, axis=-2)
    log_mean = _xlog(mean)
    total = 0.0 - _plogp(mean, log_mean)
    data = 0.0 - ops.mean(_plogp(probabilities, logs), axis=-1)
    knowledge = ops.maximum(total - data, 0.0)
    reverse = ops.maximum(-total - _plogp(mean, ops.mean(logs, axis=-2)), 0.0)
    pairwise = (knowledge + reverse) * (count / (count - 1) if count > 1 else 1.0)
    variance = ops.sum(ops.mean(ops.square(probabilities - mean[..., None, :]), axis=-2), axis=-1)
    return Uncertainty(*(ops.cast(v, members.dtype) for v in (total, data, knowledge, variance, pairwise, reverse)))


def dirichlet_uncertainty(concentrations: Any) -> Uncertainty:
    """Split the uncertainty of a Dirichlet distribution over class probabilities, in closed form.

    Choose it for students of ``EnD²``, Proxy-Dirichlet or evidential heads: one pass, no sampling. Computed in float64.

    Formula: with a_0 = sum_k a_k and mean p = a / a_0: total = H(p), data = -sum_k p_k (digamma(a_k + 1) -
    digamma(a_0 + 1)), knowledge = total - data, variance = sum_k p_k (1 - p_k) / (a_0 + 1), expected pairwise KL =
    (classes - 1) / a_0, reverse mutual information = sum_k p_k (log p_k - digamma(a_k) + digamma(a_0)).

    Args:
        concentrations: (..., classes), > 0.

    Returns:
        An ``Uncertainty`` of (...,) tensors in the dtype of ``concentrations`` (at least float32).

    Example:
        >>> import numpy as np
        >>> u = dirichlet_uncertainty(np.array([[1.0, 1.0]]))  # uniform over the probability of heads
        >>> print(f"{float(u.total[0]):.4f} {float(u.data[0]):.4f}")  # log 2, and the mean entropy: 1/2
        0.6931 0.5000

    Reference:
        Malinin, Gales, "Predictive Uncertainty Estimation via Prior Networks", 2018, arXiv:1802.10501, section 3.2;
        Ryabinin, Malinin, Gales, "Scaling Ensemble Distribution Distillation", 2021, arXiv:2105.06987, appendix A.
        Differs: nothing.
    """
    expected = "concentrations of shape (..., classes)"
    concentrations = with_axes("dirichlet_uncertainty", as_float(concentrations), expected)
    alpha = float64(concentrations)
    precision = ops.sum(alpha, axis=-1)
    total_alpha = precision[..., None]
    mean = alpha / total_alpha
    log_mean = ops.log(alpha) - ops.log(total_alpha)
    total = -ops.sum(mean * log_mean, axis=-1)
    data = -ops.sum(mean * (digamma(alpha + 1.0) - digamma(total_alpha + 1.0)), axis=-1)
    knowledge = ops.maximum(total - data, 0.0)
    variance = ops.sum(mean * (1.0 - mean), axis=-1) / (precision + 1.0)
    pairwise = (alpha.shape[-1] - 1.0) / precision
    reverse = ops.sum(mean * (log_mean - digamma(alpha) + digamma(total_alpha)), axis=-1)
    parts = (total, data, knowledge, variance, pairwise, ops.maximum(reverse, 0.0))
    return Uncertainty(*(ops.cast(part, concentrations.dtype) for part in parts))


def dirichlet_entropy(concentrations: Any) -> Tensor:
    """Differential entropy of a Dirichlet distribution, computed in float64.

    Formula: sum_k log Gamma(a_k) - log Gamma(a_0) - sum_k (a_k - 1) (digamma(a_k) - digamma(a_0)).

    Args:
        concentrations: (..., classes), > 0.

    Returns:
        (...,), nats, in the dtype of ``concentrations`` (at least float32); unbounded below.

    Example:
        >>> import numpy as np
        >>> print(f"{float(dirichlet_entropy(np.array([1.0, 1.0, 1.0]))):.4f}")  # uniform: -log Gamma(3) = -log 2
        -0.6931
    """
    concentrations = with_axes("dirichlet_entropy", as_float(concentrations), "concentrations of shape (..., classes)")
    alpha = float64(concentrations)
    precision = ops.sum(alpha, axis=-1, keepdims=True)
    volume = ops.sum(log_gamma(alpha), axis=-1) - log_gamma(precision)[..., 0]
    value = volume - ops.sum((alpha - 1.0) * (digamma(alpha) - digamma(precision)), axis=-1)
    return ops.cast(value, concentrations.dtype)


@keras.saving.register_keras_serializable(package="keras_distill")
class MeanUncertainty(MeanOverExamples):
    """Mean over examples of one kind of uncertainty of the model's output; ignores the labels.

    Choose it to log during training whether a student keeps its teacher's diversity (``kind="knowledge"``).

    Args:
        kind: "total", "data", "knowledge", "variance", "expected_pairwise_kl" or "reverse_mutual_information".
        source: "members": ``y_pred`` is (..., members, classes); "dirichlet": (..., classes) concentrations.
        from_logits: whether members are logits; for "dirichlet" the concentrations are exp(y_pred) + ``offset``.
        offset: >= 0, added to the exponentials of a Dirichlet's logits; 1 for Proxy-Dirichlet heads.
        name: name in the logs; None: "<kind>_uncertainty".
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> knowledge = MeanUncertainty("knowledge")
        >>> knowledge.update_state([0], [[[1.0, 0.0], [0.0, 1.0]]])
        >>> print(f"{float(knowledge.result()):.4f}")  # log 2
        0.6931
    """

    def __init__(
        self,
        kind: str = "knowledge",
        source: str = "members",
        from_logits: bool = False,
        offset: float = 0.0,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        owner = type(self).__name__
        self.kind = choice(owner, "kind", kind, KINDS)
        self.source = choice(owner, "source", source, ("members", "dirichlet"))
        self.offset = number(owner, "offset", offset, low=0.0)
        super().__init__(name=name or f"{kind}_uncertainty", dtype=dtype)
        self.from_logits = bool(from_logits)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch; ``y_true`` may be None."""
        outputs = as_float(y_pred)
        if self.source == "members":
            parts = ensemble_uncertainty(outputs, from_logits=self.from_logits)
        else:
            parts = dirichlet_uncertainty(ops.exp(float64(outputs)) + self.offset if self.from_logits else outputs)
        values = getattr(parts, self.kind)
        weights = read_weights(type(self).__name__, sample_weight, ops.shape(values), len(values.shape))
        self.add(ops.reshape(values, (-1,)), weights)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        names = ("kind", "source", "from_logits", "offset")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
