"""Costs of decisions: by hand, and properties on calibrated probabilities."""

import numpy as np
import pytest

from keras_distill import metrics


def draw(count=20000, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.beta(0.5, 2, count)
    return (rng.random(count) < p).astype(int), p


def test_bayes_threshold_is_best_where_probabilities_are_calibrated():
    y, p = draw()
    costs = {"false_positive": 1.0, "false_negative": 4.0}
    bayes = metrics.decision_cost(y, p, **costs)
    assert bayes.threshold == 0.2
    grid = [metrics.decision_cost(y, p, threshold=t, **costs).cost for t in np.linspace(0, 1, 41)]
    assert bayes.cost <= min(grid) * 1.01
    assert metrics.best_threshold(y, p, **costs) == pytest.approx(0.2, abs=0.05)
    assert bayes.cost == pytest.approx(bayes.false_positives + 4 * bayes.false_negatives)


def test_the_best_threshold_is_that_of_a_full_search_also_for_overconfident_probabilities():
    y, p = draw(300, seed=3)
    p = np.round(p**3, 2)
    costs = {"false_positive": 1.0, "false_negative": 4.0}
    found = metrics.decision_cost(y, p, threshold=metrics.best_threshold(y, p, **costs), **costs).cost
    edges = np.concatenate([[0], np.unique(p) + 0.005])
    assert found == min(metrics.decision_cost(y, p, threshold=min(t, 1.0), **costs).cost for t in edges)


def test_abstention_is_taken_where_it_is_cheaper():
    y, p = draw()
    costs = {"false_positive": 1.0, "false_negative": 1.0}
    without, cheap = metrics.decision_cost(y, p, **costs), metrics.decision_cost(y, p, abstain=0.1, **costs)
    assert cheap.cost < without.cost
    assert cheap.abstained == pytest.approx(np.mean((p > 0.1) & (p < 0.9)))
    assert metrics.decision_cost(y, p, abstain=0.51, **costs)[:4] == without[:4]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda c: metrics.decision_cost([0, 2], [0.1, 0.2], **c), "decision_cost: expected labels 0 or 1, got [0, 2]"),
        (lambda c: metrics.decision_cost([0], [1.2], **c), "expected probabilities between 0 and 1, got others."),
        (lambda c: metrics.decision_cost([0], [0.1], abstain=0, **c), "expected abstain > 0, got 0.0."),
        (lambda c: metrics.best_threshold([0], [], **c), "as many labels as probabilities, got 1 and 0."),
    ],
)
def test_bad_input_raises_a_clear_error(make, words):
    with pytest.raises(ValueError) as caught:
        make({"false_positive": 1.0, "false_negative": 4.0})
    assert words in str(caught.value)
