"""Scores of forecasts against numerical integration and each other."""

import numpy as np
import pytest
from scipy import integrate, stats

from keras_distill import metrics


@pytest.mark.parametrize(("label", "mean", "spread"), [(0.0, 0.0, 1.0), (3.0, 1.0, 0.5), (-1.0, 2.0, 4.0)])
def test_gaussian_crps_is_the_integral_of_its_definition(label, mean, spread):
    def square(x):
        return (stats.norm.cdf(x, mean, spread) - (x >= label)) ** 2

    expected = sum(integrate.quad(square, a, b, limit=200)[0] for a, b in ((-60, label), (label, 60)))
    assert float(metrics.gaussian_crps(label, mean, spread)) == pytest.approx(expected, rel=1e-6)


def test_ensemble_crps_is_its_double_sum_and_approaches_the_gaussian_and_the_quantiles():
    rng = np.random.default_rng(0)
    y, members = rng.normal(size=7), rng.normal(size=(7, 9))
    pairs = np.abs(members[:, :, None] - members[:, None, :]).mean((1, 2))
    np.testing.assert_allclose(
        metrics.ensemble_crps(y, members), np.abs(members - y[:, None]).mean(1) - pairs / 2, rtol=1e-12
    )
    levels = (np.arange(4000) + 0.5) / 4000
    many = stats.norm.ppf(levels)
    assert float(metrics.ensemble_crps(0.7, many)) == pytest.approx(float(metrics.gaussian_crps(0.7, 0, 1)), rel=1e-3)
    assert 2 * metrics.quantile_score(0.7, many, levels).mean() == pytest.approx(
        float(metrics.gaussian_crps(0.7, 0, 1)), rel=1e-3
    )


def test_mixture_quantiles_are_where_the_mixture_reaches_the_level():
    rng = np.random.default_rng(1)
    means, spread = rng.normal(size=(6, 4)) * 3, rng.uniform(0.2, 2, (6, 4))
    levels = [0.05, 0.3, 0.5, 0.95]
    got = metrics.mixture_quantiles(means, spread, levels)
    reached = stats.norm.cdf(got[:, None, :], means[..., None], spread[..., None]).mean(1)
    np.testing.assert_allclose(reached, [levels] * 6, atol=1e-9)
    one = metrics.mixture_quantiles([[2.0]], [[3.0]], levels)
    np.testing.assert_allclose(one[0], stats.norm.ppf(levels, 2, 3), rtol=1e-9)


def test_coverage_counts_and_the_interval_score_is_two_quantile_scores():
    rng = np.random.default_rng(2)
    y, low = rng.normal(size=300), rng.normal(size=300) - 1
    high = low + rng.uniform(0, 3, 300)
    got = metrics.interval_coverage(y, low, high, nominal=0.8)
    assert got.coverage == pytest.approx(np.mean((low <= y) & (y <= high)))
    assert got.below == pytest.approx(np.mean(y < low)) and got.width == pytest.approx(np.mean(high - low))
    both = metrics.quantile_score(y, np.stack([low, high], -1), [0.1, 0.9]).sum(-1).mean()
    assert got.score == pytest.approx(2 / 0.2 * both)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: metrics.gaussian_crps([1.0], [0.0], [0.0]), "expected standard_deviations > 0, got 0.0."),
        (lambda: metrics.gaussian_crps([1.0], [0.0, 1.0], [1.0]), "labels and means and standard_deviations of one"),
        (lambda: metrics.ensemble_crps([1.0], [1.0]), "ensemble_crps: expected members of shape (1, 'members')"),
        (lambda: metrics.ensemble_crps(1.0, [np.nan]), "expected members without NaN, got 1 of them."),
        (lambda: metrics.quantile_score([1.0], [[1.0]], [1.0]), "expected levels between 0 and 1, got [1.0]."),
        (lambda: metrics.interval_coverage([1.0], [2.0], [1.0]), "expected low <= high, got 1 crossed intervals."),
        (lambda: metrics.mixture_quantiles([1.0], [1.0], [0.0]), "mixture_quantiles: expected levels between 0 and 1"),
    ],
)
def test_bad_input_raises_a_clear_error(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
