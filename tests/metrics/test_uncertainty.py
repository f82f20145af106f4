"""Uncertainties against recorded high-precision values and closed forms; the special functions against SciPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from keras_distill import metrics
from keras_distill.losses._numerics.special import digamma, log_gamma
from keras_distill.metrics import dirichlet_entropy, dirichlet_uncertainty, ensemble_uncertainty
from tests.golden.record_metrics import load


@pytest.mark.parametrize("case", [pytest.param(c, id=i) for i, c in load("ensemble_uncertainty").items()])
def test_ensemble_equals_the_recorded_values(case):
    from_logits = "member_logits" in case["inputs"]
    members = case["inputs"]["member_logits" if from_logits else "member_probs"].transpose(1, 0, 2)
    out, count = case["outputs"], members.shape[1]
    for dtype, atol in ((np.float64, 2e-13), (np.float32, 2e-7)):
        ours = ensemble_uncertainty(members.astype(dtype), from_logits=from_logits)
        assert ours.total.dtype == np.dtype(dtype).name
        expected = {"total": "total_entropy", "data": "expected_entropy", "knowledge": "mutual_information"}
        expected["reverse_mutual_information"] = "reverse_mutual_information"
        for part, name in expected.items():
            if name in out:
                np.testing.assert_allclose(
                    getattr(ours, part), out[name], atol=atol, rtol=3e-7 if atol > 1e-9 else 1e-13
                )
        if "expected_pairwise_kl" in out and count > 1:  # recorded including the zeros of the diagonal
            pairs = out["expected_pairwise_kl"] * count / (count - 1)
            np.testing.assert_allclose(ours.expected_pairwise_kl, pairs, rtol=3e-7, atol=atol)


def test_float32_keeps_the_knowledge_of_nearly_identical_members():
    case = load("ensemble_uncertainty")["ensemble_uncertainty/nearly_identical"]
    members = case["inputs"]["member_logits"].transpose(1, 0, 2)
    assert members.dtype == np.float32
    ours = ensemble_uncertainty(members, from_logits=True).knowledge
    np.testing.assert_allclose(
        ours, case["outputs"]["mutual_information"], rtol=1e-6
    )  # 2.4e-7: plain float32 is 10 % off


def test_published_values_of_the_reference():
    i, j = np.arange(4)[:, None], np.arange(5)[None]
    s, t = 2 * np.sin(1 + 1.3 * i + 0.7 * j * (i + 1)), 3 * np.cos(0.5 + 0.9 * i - 1.1 * j)
    ours = ensemble_uncertainty(np.stack([t, t + 0.5 * s, t - 0.5 * s], axis=1), from_logits=True)
    for value, expected in zip(ours[:3], (0.9139510164, 0.8383422111, 0.0756088052), strict=True):
        assert np.mean(value) == pytest.approx(expected, abs=1e-10)
    ours = dirichlet_uncertainty(np.exp(s) + 1)
    for value, expected in zip(ours[:3], (1.3229369077, 1.2200594729, 0.1028774348), strict=True):
        assert np.mean(value) == pytest.approx(expected, abs=1e-10)
    assert np.mean(dirichlet_entropy(np.exp(s) + 1)) == pytest.approx(-5.6736635152, abs=1e-10)


@pytest.mark.parametrize("case", [pytest.param(c, id=i) for i, c in load("dirichlet_uncertainty").items()])
def test_dirichlet_equals_the_recorded_values(case):
    out = case["outputs"]
    offset = case["hyper_parameters"]["model_offset"]
    alpha = np.exp(case["inputs"]["student_logits"].astype(float)) + offset
    ours = dirichlet_uncertainty(alpha)
    for part, name in {
        "total": "entropy_of_expected",
        "data": "expected_entropy",
        "knowledge": "mutual_information",
        "expected_pairwise_kl": "epkl",
    }.items():
        np.testing.assert_allclose(getattr(ours, part), out[name], atol=1e-12)
    np.testing.assert_allclose(dirichlet_entropy(alpha), out["differential_entropy"], atol=1e-11)
    metric = metrics.MeanUncertainty("knowledge", "dirichlet", from_logits=True, offset=offset)
    metric.update_state(None, case["inputs"]["student_logits"])
    assert float(metric.result()) == pytest.approx(out["mean_mutual_information"], rel=1e-6)


def test_dirichlet_uncertainties_are_the_means_over_its_samples():
    """Members sampled from the Dirichlet have, on average, the uncertainties of the closed forms."""
    alpha = np.array([0.7, 2.0, 5.0])
    members = np.random.default_rng(0).dirichlet(alpha, size=(1, 200_000))
    sampled, closed = ensemble_uncertainty(members), dirichlet_uncertainty(alpha[None])
    for part in ("total", "data", "knowledge", "variance"):
        assert float(getattr(sampled, part)[0]) == pytest.approx(float(getattr(closed, part)[0]), abs=2e-3), part
    reverse = np.mean((members[0].mean(0) * (np.log(members[0].mean(0)) - np.log(members[0]))).sum(1))
    assert float(closed.reverse_mutual_information[0]) == pytest.approx(reverse, rel=0.02)
    assert float(dirichlet_entropy(alpha)) == pytest.approx(stats.dirichlet(alpha).entropy(), abs=1e-12)


def test_dirichlet_is_stable_from_tiny_to_huge_concentrations():
    for scale in (1e-3, 1.0, 1e3, 1e6):
        alpha = scale * np.array([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]])
        mean = alpha / alpha.sum(1, keepdims=True)
        a0 = alpha.sum(1)
        data = -(mean * (special.digamma(alpha + 1) - special.digamma(a0 + 1)[:, None])).sum(1)
        knowledge = special.entr(mean).sum(1) - data
        ours = dirichlet_uncertainty(alpha.astype(np.float32))
        np.testing.assert_allclose(ours.knowledge, knowledge, rtol=1e-5, atol=1e-12)
        np.testing.assert_allclose(ours.data, data, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(ours.variance, (mean * (1 - mean)).sum(1) / (a0 + 1), rtol=1e-6)


def test_laws_of_the_decomposition():
    random = np.random.default_rng(1)
    members = random.dirichlet(np.ones(4), size=(6, 3))
    ours = ensemble_uncertainty(members)
    np.testing.assert_allclose(ours.total, ours.data + ours.knowledge, atol=1e-12)
    np.testing.assert_allclose(ours.variance, members.var(axis=1).sum(-1), atol=1e-12)
    one = ensemble_uncertainty(members[:, :1])
    for part in (one.knowledge, one.variance, one.expected_pairwise_kl, one.reverse_mutual_information):
        np.testing.assert_allclose(part, 0, atol=1e-12)
    permuted = ensemble_uncertainty(members[:, [2, 0, 1]])
    np.testing.assert_allclose(permuted.knowledge, ours.knowledge, atol=1e-12)
    shifted = ensemble_uncertainty(np.log(members) + 1e3, from_logits=True)
    np.testing.assert_allclose(shifted.knowledge, ours.knowledge, atol=1e-10)


def test_classes_that_a_member_rules_out():
    ours = ensemble_uncertainty([[[1.0, 0.0], [0.5, 0.5]]])
    np.testing.assert_allclose(ours.data, np.log(2) / 2, rtol=1e-6)
    assert np.isinf(ours.reverse_mutual_information)
    np.testing.assert_allclose(ours.knowledge, stats.entropy([0.75, 0.25]) - np.log(2) / 2, rtol=1e-6)
    masked = np.array([[[0.0, 1.0, -np.inf], [2.0, 0.5, -np.inf]]])
    kept = ensemble_uncertainty(masked[..., :2], from_logits=True)
    for ours, expected in zip(ensemble_uncertainty(masked, from_logits=True)[:4], kept[:4], strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_mean_uncertainty_streams_uses_weights_and_runs_in_xla():
    members = np.random.default_rng(2).dirichlet(np.ones(4), size=(30, 5)).astype(np.float32)
    weights = np.random.default_rng(3).uniform(0, 2, 30)
    for kind in metrics.Uncertainty._fields:
        metric = metrics.MeanUncertainty(kind)
        assert metric.name == f"{kind}_uncertainty"
        step = tf.function(
            lambda x, w, metric=metric: metric.update_state(None, x, w),
            jit_compile=kind == "knowledge",
            autograph=False,
        )
        for part in (slice(0, 20), slice(20, 30)):
            step(tf.constant(members[part]), tf.constant(weights[part]))
        expected = np.average(np.asarray(getattr(ensemble_uncertainty(members), kind)), weights=weights)
        assert float(metric.result()) == pytest.approx(expected, rel=1e-6)
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
        assert again.get_config() == metric.get_config()


def test_special_functions_equal_scipy_with_their_gradients():
    x = np.logspace(-4, 7, 1001)
    scale = np.maximum(1, np.abs(special.digamma(x)))
    np.testing.assert_allclose(digamma(x) / scale, special.digamma(x) / scale, atol=1e-13)
    scale = np.maximum(1, np.abs(special.gammaln(x)))
    np.testing.assert_allclose(log_gamma(x) / scale, special.gammaln(x) / scale, atol=1e-13)
    tensor = tf.constant(x)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(tensor)
        values = (log_gamma(tensor), digamma(tensor))
    np.testing.assert_allclose(tape.gradient(values[0], tensor), special.digamma(x), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(tape.gradient(values[1], tensor), special.polygamma(1, x), rtol=1e-11)


@pytest.mark.parametrize("weighted", [False, True])
def test_variance_of_a_gaussian_mixture_equals_sampling_without_noise(weighted):
    """Quantiles instead of samples: their mean and variance are those of the mixture, without our formulas."""
    random = np.random.default_rng(5)
    means, log_variances, logits = (random.normal(size=(2, 3, 2)) for _ in range(3))
    levels = (np.arange(200_000) + 0.5) / 200_000
    draws = stats.norm.ppf(levels)[:, None, None, None] * np.exp(log_variances / 2) + means
    weights = special.softmax(logits, axis=1) if weighted else np.full(logits.shape, 1 / 3)
    mean = (weights * draws.mean(0)).sum(1)
    total = (weights * ((draws - mean[:, None]) ** 2).mean(0)).sum(1)
    within = (weights * draws.var(0)).sum(1)
    parts = metrics.mixture_uncertainty(means, log_variances, weight_logits=logits if weighted else None)
    for got, expected in zip(parts, (mean, total, within, total - within), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)


def test_normal_inverse_gamma_equals_the_moments_of_its_distributions():
    random = np.random.default_rng(6)
    mean, strength, shape, scale = random.normal(size=5), *random.uniform(1.5, 4.0, size=(3, 5))
    parts = metrics.normal_inverse_gamma_uncertainty(np.stack([mean, *np.log([strength, shape - 1, scale])], axis=-1))
    noise = stats.invgamma(shape, scale=scale).mean()
    expected = (mean, noise + noise / strength, noise, noise / strength)
    for got, each in zip(parts, expected, strict=True):
        np.testing.assert_allclose(np.ravel(got), each, rtol=1e-5)


def test_bad_arguments_raise_a_clear_error():
    with pytest.raises(ValueError, match="expected kind to be one of 'total', 'data'"):
        metrics.MeanUncertainty("epistemic")
    with pytest.raises(ValueError, match=r"expected members of shape \(..., members, classes\), got shape \(2,\)"):
        ensemble_uncertainty([0.5, 0.5])
