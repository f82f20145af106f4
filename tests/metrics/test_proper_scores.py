"""Brier score and negative log-likelihood against recorded values, scikit-learn and their definitions."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import brier_score_loss

from keras_distill import metrics
from tests.golden.record_metrics import load
from tests.metrics.test_calibration import some


def golden(algorithm):
    return [pytest.param(case, id=name) for name, case in load(algorithm).items()]


@pytest.mark.parametrize("case", golden("brier"))
def test_brier_equals_the_recorded_value_and_scikit_learn(case):
    y, p = case["inputs"]["labels"], case["inputs"]["probs"]
    assert metrics.brier_score(y, p) == pytest.approx(case["outputs"]["brier"], abs=1e-6)
    classes = np.arange(p.shape[1])
    assert metrics.brier_score(y, p.astype(float)) == pytest.approx(
        brier_score_loss(y, (p / p.sum(1, keepdims=True)).astype(float), labels=classes, scale_by_half=False), abs=1e-5
    )


@pytest.mark.parametrize("case", golden("nll_from_probabilities"))
def test_nll_equals_the_recorded_value_and_is_infinite_where_the_label_is_ruled_out(case):
    y, p = case["inputs"]["labels"], case["inputs"]["probs"]
    assert metrics.negative_log_likelihood(y, p) == pytest.approx(float(case["outputs"]["nll"]), abs=1e-6)


def test_clipped_nll_is_scikit_learns():
    case = load("nll_from_probabilities")["nll/onehot"]
    y, p = case["inputs"]["labels"], case["inputs"]["probs"].astype(float)
    ours = metrics.negative_log_likelihood(y, p, epsilon=float(np.finfo(float).eps))
    name = "scikit-learn log_loss (clips to the machine epsilon of the dtype, float64 input)"
    assert ours == pytest.approx(case["variants"][name], abs=1e-9)


@pytest.mark.parametrize("case", golden("binary_brier_nll"))
def test_binary_scores_equal_the_recorded_ones(case):
    y, p = case["inputs"]["labels"], case["inputs"]["probs"]
    assert metrics.brier_score(y, p, task="binary") == pytest.approx(case["outputs"]["brier"], abs=1e-6)
    nll = metrics.negative_log_likelihood(y, p, task="binary")
    assert nll == pytest.approx(float(case["outputs"]["nll"]), abs=1e-6)


def test_soft_labels_give_the_expected_score():
    p, _, _ = some(50, 3)
    soft = softmax(np.random.default_rng(1).normal(size=(50, 3)), axis=1)
    nll = -(soft * np.log(p)).sum(1).mean()
    assert metrics.negative_log_likelihood(soft, p) == pytest.approx(nll, abs=1e-12)
    assert metrics.brier_score(soft, p) == pytest.approx(((p - soft) ** 2).sum(1).mean(), abs=1e-12)


def test_nll_of_extreme_and_impossible_logits_is_exact():
    z = np.array([[1e4, -1e4, 0.0], [5.0, -np.inf, 5.0]], np.float32)
    assert metrics.negative_log_likelihood([1, 0], z, from_logits=True) == pytest.approx(
        (2e4 + np.log(2)) / 2, rel=1e-7
    )
    one_hot = np.eye(3)[[1, 0]]
    assert metrics.negative_log_likelihood(one_hot, z, from_logits=True) == pytest.approx(
        (2e4 + np.log(2)) / 2, rel=1e-7
    )
