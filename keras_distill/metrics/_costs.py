"""Cost of decisions at a threshold, with the option to abstain."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_distill._checks import array, error, number
from keras_distill._typing import Tensor


class DecisionCost(NamedTuple):
    """Cost of the decisions on a set of examples.

    Attributes:
        cost: mean cost per example.
        threshold: smallest probability at which an example is classified as positive.
        false_positives: fraction of all examples.
        false_negatives: fraction of all examples.
        abstained: fraction of all examples without a decision.
    """

    cost: float
    threshold: float
    false_positives: float
    false_negatives: float
    abstained: float


def decision_cost(
    labels: Tensor,
    probabilities: Tensor,
    *,
    false_positive: float,
    false_negative: float,
    abstain: float | None = None,
    threshold: float | None = None,
) -> DecisionCost:
    """Mean cost of decisions from probabilities of the positive class.

    The default threshold is Bayes', false_positive / (false_positive + false_negative), which is optimal for calibrated
    probabilities. With a cost for abstaining, no decision is made where the expected cost of the cheaper decision
    exceeds it.

    Args:
        labels: (examples,) 0 or 1.
        probabilities: (examples,) between 0 and 1.
        false_positive: > 0, cost of one false positive.
        false_negative: > 0, cost of one false negative.
        abstain: > 0, cost of one abstention; None allows no abstention.
        threshold: between 0 and 1, or None for Bayes'.

    Returns:
        A ``DecisionCost``.

    Raises:
        ValueError: if a label or a probability is out of range, or a cost is not above 0.

    Example:
        >>> round(decision_cost([0, 1, 1], [0.2, 0.3, 0.9], false_positive=1.0, false_negative=1.0).cost, 3)
        0.333

    Reference:
        Elkan, "The Foundations of Cost-Sensitive Learning", IJCAI 2001; Chow, "On optimum recognition error and
        reject tradeoff", 1970. Differs: nothing.
    """
    labels, probabilities, costs = _checked(
        "decision_cost", labels, probabilities, false_positive, false_negative, abstain
    )
    bayes = costs[0] / (costs[0] + costs[1])
    used = bayes if threshold is None else number("decision_cost", "threshold", threshold, low=0.0, high=1.0)
    positive = probabilities >= used
    passed = np.zeros(len(labels), bool)
    if abstain is not None:
        passed = np.where(positive, (1 - probabilities) * costs[0], probabilities * costs[1]) > abstain
    wrong_up, wrong_down = positive & ~labels & ~passed, ~positive & labels & ~passed
    total = wrong_up * costs[0] + wrong_down * costs[1] + passed * (abstain or 0.0)
    means = (float(each.mean()) for each in (wrong_up, wrong_down, passed))
    return DecisionCost(float(total.mean()), float(used), *means)


def best_threshold(labels: Tensor, probabilities: Tensor, *, false_positive: float, false_negative: float) -> float:
    """Return the threshold of lowest cost on held-out examples, for probabilities that may not be calibrated.

    Args:
        labels: (examples,) 0 or 1, held out.
        probabilities: (examples,) between 0 and 1.
        false_positive: > 0, cost of one false positive.
        false_negative: > 0, cost of one false negative.

    Returns:
        A threshold between 0 and 1, midway between two neighbouring probabilities.

    Raises:
        ValueError: as for ``decision_cost``.

    Example:
        >>> best_threshold([0, 0, 1], [0.1, 0.25, 0.5], false_positive=1.0, false_negative=1.0)
        0.375
    """
    labels, probabilities, costs = _checked("best_threshold", labels, probabilities, false_positive, false_negative, 1)
    order = np.argsort(probabilities, kind="stable")
    p, y = probabilities[order], labels[order]
    # A cut after i examples classifies those below it as negative: positives below are missed, negatives above wrong.
    missed = np.concatenate([[0], np.cumsum(y)])
    wrong = (~y).sum() - np.concatenate([[0], np.cumsum(~y)])
    total = missed * costs[1] + wrong * costs[0]
    edges = np.concatenate([[0.0], 0.5 * (p[1:] + p[:-1]), [1.0]])
    possible = np.concatenate([[True], p[1:] > p[:-1], [True]])
    if p[-1] >= 1.0:
        possible[-1] = False
    return float(edges[np.argmin(np.where(possible, total, np.inf))])


def _checked(
    owner: str, labels: Tensor, probabilities: Tensor, *costs: Any
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    labels, probabilities = array(owner, labels).ravel(), array(owner, probabilities).ravel()
    if labels.shape != probabilities.shape or labels.size == 0:
        raise error(owner, "as many labels as probabilities", f"{labels.size} and {probabilities.size}")
    if not np.isin(labels, (0, 1)).all():
        raise error(owner, "labels 0 or 1", f"[{', '.join(f'{label:g}' for label in np.unique(labels)[:5])}]")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise error(owner, "probabilities between 0 and 1", "others", "Apply a sigmoid to logits first")
    names = ("false_positive", "false_negative", "abstain")
    found = [number(owner, n, c, above=0.0) for n, c in zip(names, costs, strict=True) if c is not None]
    return labels.astype(bool), probabilities, found
