"""Risk-coverage curves and their areas, from exact groups of equal uncertainty or from a histogram's cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_distill._checks import choice, error, number
from keras_distill._typing import Tensor
from keras_distill.losses._numerics.special import digamma
from keras_distill.metrics._histogram import exact_groups

# In this file "groups" are the weights and summed losses of examples of equal uncertainty, most certain first.


def _before(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the running sums before and after each group."""
    after = ops.cumsum(values)
    return after - values, after


def _ratio(numerator: Any, denominator: Any) -> Tensor:
    """Return numerator / denominator, 0 where the denominator is 0."""
    filled = ops.not_equal(denominator, 0.0)
    return ops.where(filled, numerator, 0.0) / ops.where(filled, denominator, ops.ones_like(denominator))


def mean_risk(weight: Tensor, loss: Any) -> Tensor:
    """Mean over i = 1..n of the risk of the i most certain, averaged over the orders within each group."""
    count, _ = _before(weight)
    lost, _ = _before(loss)
    rate = _ratio(loss, weight)
    harmonic = digamma(count + weight + 1.0) - digamma(count + 1.0)
    return ops.sum(loss + (lost - count * rate) * harmonic) / ops.sum(weight)


def merged_risk(weight: Tensor, loss: Any) -> Tensor:
    """Trapezoidal area of the risk over coverage, one point per group, with the first risk extended to coverage 0."""
    count, count_after = _before(weight)
    lost, lost_after = _before(loss)
    risk = _ratio(lost_after, count_after)
    previous = ops.where(count > 0, _ratio(lost, count), risk)
    return ops.sum(weight * (previous + risk)) / 2.0 / ops.sum(weight)


def generalized_risk(weight: Tensor, loss: Any) -> Tensor:
    """Area under (loss of the covered / all examples) over coverage from 0; exact for any order within groups."""
    lost, lost_after = _before(loss)
    return ops.sum(weight * (lost + lost_after)) / 2.0 / ops.square(ops.sum(weight))


def optimal_risk(weight: Tensor, loss: Any, convention: str) -> Tensor:
    """Area for the order that puts all errors last."""
    total, wrong = ops.sum(weight), ops.sum(loss)
    if convention == "mean":
        zero = ops.zeros_like(wrong)
        return mean_risk(ops.stack([total - wrong, wrong]), ops.stack([zero, wrong]))
    rate = wrong / total
    right = 1.0 - rate
    return rate + right * ops.log(ops.where(right > 0, right, ops.ones_like(right)))


def risk_at(weight: Tensor, loss: Any, coverage: float) -> Tensor:
    """Risk of the ceil(coverage * n) most certain examples."""
    count, count_after = _before(weight)
    lost, _ = _before(loss)
    total = ops.sum(weight)
    wanted = ops.minimum(ops.ceil(coverage * total - 1e-9), total)
    group = ops.argmax(ops.cast(count_after >= wanted - 1e-9, "int32"))
    inside = ops.take(_ratio(loss, weight), group) * (wanted - ops.take(count, group))
    return (ops.take(lost, group) + inside) / wanted + total * 0.0


def rejection_ratio(weight: Tensor, loss: Any) -> Tensor:
    """(area random - area model) / (area random - area oracle) of the rejection curve."""
    rate = ops.sum(loss) / ops.sum(weight)
    return (rate / 2.0 - generalized_risk(weight, loss)) / (rate / 2.0 - ops.square(rate) / 2.0)


def _groups(losses: Any, uncertainty: Tensor, sample_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return exact groups as float64 tensors."""
    weight, loss = exact_groups(uncertainty, sample_weight, losses)
    return ops.convert_to_tensor(weight), ops.convert_to_tensor(loss)


def risk_coverage_curve(
    losses: Any, uncertainty: Tensor, *, sample_weight: Tensor = None
) -> tuple[np.ndarray, np.ndarray]:
    """Risk-coverage curve: mean loss of the most certain examples, with each distinct uncertainty as threshold.

    Args:
        losses: (n,), 1 for an error and 0 for a right answer, or any loss >= 0.
        uncertainty: (n,), higher is less certain.
        sample_weight: (n,) or None.

    Returns:
        Coverage, ending at 1, and risk, each (distinct uncertainties,), float64.

    Example:
        >>> coverage, risk = risk_coverage_curve([0, 1, 1], [0.1, 0.5, 0.5])
        >>> print(coverage.round(2), risk.round(2))
        [0.33 1.  ] [0.   0.67]
    """
    weight, loss = exact_groups(uncertainty, sample_weight, losses)
    return np.cumsum(weight) / weight.sum(), np.cumsum(loss) / np.cumsum(weight)


def area_under_risk_coverage(
    losses: Any,
    uncertainty: Tensor,
    *,
    convention: str = "mean",
    excess: bool = False,
    sample_weight: Tensor = None,
) -> float:
    """Exact area under the risk-coverage curve (AURC) of arrays; see ``AreaUnderRiskCoverage``.

    Args:
        losses: (n,), 1 for an error and 0 for a right answer.
        uncertainty: (n,), higher is less certain.
        convention: "mean", "merged" or "trapezoid" (torch-uncertainty: from coverage 1/n, divided by 1 - 1/n).
        excess: subtract the area of the best order of the same errors ("mean" and "merged").
        sample_weight: (n,) or None; weights count as numbers of copies. Not for "trapezoid".

    Returns:
        The area; equal uncertainties are averaged over their orders (for "merged" they form one point).

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> print(f"{area_under_risk_coverage([0, 1], [0.1, 0.9]):.2f}")
        0.25
    """
    owner = "area_under_risk_coverage"
    choice(owner, "convention", convention, ("mean", "merged", "trapezoid"))
    weight, loss = _groups(losses, uncertainty, sample_weight)
    if convention == "trapezoid":
        if excess:
            raise error(owner, 'excess=False with convention="trapezoid"', "True")
        lost = _losses_in_order(owner, weight, loss, sample_weight)
        return _trapezoid(lost / np.arange(1, len(lost) + 1))
    area = mean_risk(weight, loss) if convention == "mean" else merged_risk(weight, loss)
    return float(area - optimal_risk(weight, loss, convention) if excess else area)


def area_under_generalized_risk_coverage(
    losses: Any, uncertainty: Tensor, *, convention: str = "merged", sample_weight: Tensor = None
) -> float:
    """Exact area under the generalised risk-coverage curve (AUGRC); see ``AreaUnderGeneralizedRiskCoverage``.

    Args:
        losses: (n,), 1 for an error and 0 for a right answer.
        uncertainty: (n,), higher is less certain.
        convention: "merged" (from coverage 0, as Traub et al.) or "trapezoid" (torch-uncertainty: from 1/n, divided by
            1 - 1/n).
        sample_weight: (n,) or None. Not for "trapezoid".

    Returns:
        The area.

    Raises:
        ValueError: if an option does not fit.

    Example:
        >>> print(area_under_generalized_risk_coverage([0, 1], [0.1, 0.9]))
        0.125
    """
    owner = "area_under_generalized_risk_coverage"
    choice(owner, "convention", convention, ("merged", "trapezoid"))
    weight, loss = _groups(losses, uncertainty, sample_weight)
    if convention == "trapezoid":
        lost = _losses_in_order(owner, weight, loss, sample_weight)
        return _trapezoid(lost / len(lost))
    return float(generalized_risk(weight, loss))


def _losses_in_order(owner: str, weight: Tensor, loss: Any, sample_weight: Tensor) -> np.ndarray:
    """Return the expected losses among the i most certain examples, i = 1..n."""
    if sample_weight is not None:
        raise error(owner, 'no sample_weight with convention="trapezoid"', "weights", 'Use convention="merged"')
    counts = np.asarray(weight).astype(int)
    return np.cumsum(np.repeat(np.asarray(loss) / counts, counts))


def _trapezoid(values: np.ndarray) -> float:
    """Mean height of the polygon through ``values`` at equal distances; NaN for fewer than two."""
    return float((values[:-1] + values[1:]).mean() / 2) if len(values) > 1 else float("nan")


def risk_at_coverage(losses: Any, uncertainty: Tensor, *, coverage: float = 0.8, sample_weight: Tensor = None) -> float:
    """Exact mean loss of the ceil(coverage * n) most certain examples; see ``RiskAtCoverage``.

    Args:
        losses: (n,), 1 for an error and 0 for a right answer.
        uncertainty: (n,), higher is less certain; the mean is taken over ties.
        coverage: above 0, at most 1.
        sample_weight: (n,) or None; weights count as numbers of copies.

    Returns:
        The risk.

    Raises:
        ValueError: if coverage is out of range.

    Example:
        >>> print(risk_at_coverage([0, 1, 1], [0.1, 0.5, 0.9], coverage=0.6))  # two examples kept
        0.5
    """
    number("risk_at_coverage", "coverage", coverage, above=0.0, high=1.0)
    return float(risk_at(*_groups(losses, uncertainty, sample_weight), coverage))


def coverage_at_risk(losses: Any, uncertainty: Tensor, *, risk: float, sample_weight: Tensor = None) -> float:
    """Largest coverage whose risk is at most ``risk``; thresholds lie between distinct uncertainties.

    Args:
        losses: (n,), 1 for an error and 0 for a right answer.
        uncertainty: (n,), higher is less certain.
        risk: >= 0, the allowed error rate.
        sample_weight: (n,) or None.

    Returns:
        The coverage, or NaN if even the most certain examples exceed the risk.

    Raises:
        ValueError: if risk is negative.

    Example:
        >>> print(coverage_at_risk([0, 0, 1, 1], [0.1, 0.2, 0.5, 0.9], risk=0.4))  # 1 of 3 wrong
        0.75
    """
    number("coverage_at_risk", "risk", risk, low=0.0)
    coverage, risks = risk_coverage_curve(losses, uncertainty, sample_weight=sample_weight)
    allowed = coverage[risks <= risk]
    return float(allowed[-1]) if len(allowed) else float("nan")


def prediction_rejection_ratio(losses: Any, uncertainty: Tensor, *, sample_weight: Tensor = None) -> float:
    """Exact prediction rejection ratio (PRR) of arrays; see ``PredictionRejectionRatio``.

    Args:
        losses: (n,), 1 for an error and 0 for a right answer.
        uncertainty: (n,), higher is less certain.
        sample_weight: (n,) or None.

    Returns:
        1 for an oracle, 0 for chance; NaN if nothing or everything is wrong.

    Example:
        >>> print(prediction_rejection_ratio([0, 1, 0, 1], [0.1, 0.8, 0.2, 0.9]))
        1.0
    """
    return float(rejection_ratio(*_groups(losses, uncertainty, sample_weight)))
