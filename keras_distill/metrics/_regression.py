"""Uncertainty of regression: the variance, split into data (noise) and knowledge uncertainty."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from keras_distill._checks import error, with_axes
from keras_distill.metrics._examples import as_float


class VarianceParts(NamedTuple):
    """A prediction and its variance, each (..., outputs), in units of the output and its square.

    Attributes:
        mean: the prediction.
        total: data + knowledge.
        data: variance that more knowledge would not remove (noise, aleatoric).
        knowledge: variance due to limited knowledge of the mean (epistemic).
    """

    mean: Any
    total: Any
    data: Any
    knowledge: Any


def mixture_uncertainty(means: Any, log_variances: Any, *, weight_logits: Any = None) -> VarianceParts:
    """Split the variance of an ensemble of Gaussians, or of a Gaussian mixture, into noise and disagreement.

    Formula: law of total variance: data = sum_c w_c * v_c, knowledge = sum_c w_c * (m_c - mean)**2.

    Args:
        means: (..., members, outputs).
        log_variances: same shape, natural logarithm.
        weight_logits: same shape, logits of the mixture's weights; None for equal weights.

    Returns:
        A ``VarianceParts`` of (..., outputs) tensors.

    Raises:
        ValueError: if there are fewer than 2 axes.

    Example:
        >>> import numpy as np
        >>> parts = mixture_uncertainty([[-1.0], [1.0]], np.log([[3.0], [5.0]]))  # two members, one output
        >>> [round(float(each[0]), 4) for each in parts]
        [0.0, 5.0, 4.0, 1.0]
    """
    means, log_variances = (ops.cast(as_float(each), "float32") for each in (means, log_variances))
    if len(means.shape) < 2:
        raise error("mixture_uncertainty", "means of shape (..., members, outputs)", f"shape {means.shape}")
    if tuple(means.shape) != tuple(log_variances.shape) or means.shape[-2] == 0:
        got = f"shapes {tuple(means.shape)} and {tuple(log_variances.shape)}"
        raise error("mixture_uncertainty", "means and log_variances of one shape, of one member or more", got)
    weights: Any
    if weight_logits is None:
        weights = 1.0 / means.shape[-2]
    else:
        weights = ops.softmax(ops.cast(as_float(weight_logits), "float32"), axis=-2)
    mean = ops.sum(weights * means, axis=-2)
    data = ops.sum(weights * ops.exp(log_variances), axis=-2)
    knowledge = ops.sum(weights * ops.square(means - ops.expand_dims(mean, -2)), axis=-2)
    return VarianceParts(mean, data + knowledge, data, knowledge)


def normal_inverse_gamma_uncertainty(outputs: Any) -> VarianceParts:
    """Split the variance predicted by an evidential regression head into data and knowledge, in closed form.

    Formula: data = b / (a - 1), knowledge = b / (v (a - 1)).

    Args:
        outputs: (..., 4 * outputs): all means, all log v, all log(a - 1), all log b, as for
            ``losses.normal_inverse_gamma``.

    Returns:
        A ``VarianceParts`` of (..., outputs) tensors.

    Raises:
        ValueError: if the last axis is not a multiple of 4.

    Example:
        >>> import numpy as np
        >>> parts = normal_inverse_gamma_uncertainty(np.log([[1.0, 4.0, 1.0, 2.0]]))  # m = 0, v = 4, a = 2, b = 2
        >>> [round(float(each[0, 0]), 4) for each in parts]
        [0.0, 2.5, 2.0, 0.5]

    Reference:
        Amini et al., "Deep Evidential Regression", NeurIPS 2020, arXiv:1910.02600, eq. 5. Differs: nothing.
    """
    owner = "normal_inverse_gamma_uncertainty"
    outputs = with_axes(owner, as_float(outputs), "outputs of shape (..., 4 * outputs)")
    if outputs.shape[-1] % 4:
        raise error(owner, "4 numbers per output", f"{outputs.shape[-1]}")
    mean, log_v, log_a, log_b = ops.split(outputs, 4, axis=-1)
    data, knowledge = ops.exp(log_b - log_a), ops.exp(log_b - log_a - log_v)
    return VarianceParts(mean, data + knowledge, data, knowledge)
