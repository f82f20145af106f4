"""Rejection and detection metrics: exact functions against oracles, streaming classes against the exact functions."""

import numpy as np
import pytest
from scipy import integrate
from scipy.special import softmax
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from keras_distill import metrics
from tests.golden.record_metrics import load
from tests.metrics.test_calibration import section_l, some

AURC = load("aurc")
TIED = ("ties16", "uniform", "onehot", "mixed01", "n1")


def losses_and_confidence(case):
    y, p = case["inputs"]["labels"], case["inputs"]["probs"].astype(float)
    return (p.argmax(1) != y).astype(float), p.max(1)


@pytest.mark.parametrize("case", AURC.values(), ids=list(AURC))
def test_areas_equal_the_recorded_ones(case):
    losses, confidence = losses_and_confidence(case)
    out = {name: float(value) for name, value in case["outputs"].items()}
    merged = metrics.area_under_risk_coverage(losses, -confidence, convention="merged")
    assert merged == pytest.approx(out["aurc_trapezoid_ties_merged_from_zero"], abs=1e-12)
    augrc = metrics.area_under_generalized_risk_coverage(losses, -confidence)
    assert augrc == pytest.approx(out["augrc_trapezoid_ties_merged_from_zero"], abs=1e-12)
    excess = metrics.area_under_risk_coverage(losses, -confidence, convention="merged", excess=True)
    assert excess == pytest.approx(merged - out["aurc_optimal_continuous"], abs=1e-12)
    mean = metrics.area_under_risk_coverage(losses, -confidence)
    if len(np.unique(confidence)) == len(confidence) and len(confidence) > 1:
        assert mean == pytest.approx(out["aurc_plugin"], abs=1e-12)
        trapezoid = metrics.area_under_risk_coverage(losses, -confidence, convention="trapezoid")
        assert trapezoid == pytest.approx(out["aurc_trapezoid_normalised"], abs=1e-12)
        general = metrics.area_under_generalized_risk_coverage(losses, -confidence, convention="trapezoid")
        assert general == pytest.approx(out["augrc_trapezoid_normalised"], abs=1e-12)
    elif "aurc_plugin_best_tie_order" in out:
        assert out["aurc_plugin_best_tie_order"] <= mean + 1e-12
        assert mean <= out["aurc_plugin_worst_tie_order"] + 1e-12


def test_equal_scores_give_the_mean_over_all_their_orders():
    from itertools import permutations

    losses, groups = np.array([0.0, 1, 1, 0, 1]), [(0,), (1, 2, 3), (4,)]
    values = []
    for middle in permutations(groups[1]):
        order = [0, *middle, 4]
        values.append(np.mean(np.cumsum(losses[order]) / np.arange(1, 6)))
    ours = metrics.area_under_risk_coverage(losses, [0.1, 0.5, 0.5, 0.5, 0.9])
    assert ours == pytest.approx(np.mean(values), abs=1e-12)


def test_published_values_of_the_reference():
    logits, y = section_l()
    p = softmax(logits, 1)
    losses, uncertainty = p.argmax(1) != y, 1 - p.max(1)
    assert metrics.area_under_risk_coverage(losses, uncertainty) == pytest.approx(0.2343492678, abs=1e-10)
    excess = metrics.area_under_risk_coverage(losses, uncertainty, excess=True)
    assert excess == pytest.approx(0.2027896958, abs=1e-10)
    trapezoid = metrics.area_under_risk_coverage(losses, uncertainty, convention="trapezoid")
    assert trapezoid == pytest.approx(0.2363438882, abs=1e-10)
    general = metrics.area_under_generalized_risk_coverage(losses, uncertainty, convention="trapezoid")
    assert general == pytest.approx(0.1135593220, abs=1e-10)
    assert metrics.risk_at_coverage(losses, uncertainty, coverage=0.8) == pytest.approx(0.2083333333, abs=1e-10)
    assert metrics.auroc(losses, uncertainty) == pytest.approx(0.5279503106, abs=1e-10)


def test_rejection_ratio_equals_the_areas_of_its_curves():
    """Polygons of the rejection curve, drawn point by point: reject the k least certain, count the errors kept."""
    random = np.random.default_rng(0)
    losses = (random.uniform(size=60) < 0.3).astype(float)
    uncertainty = random.normal(size=60) + losses

    def area(order):
        kept = [losses[order[: 60 - k]].sum() / 60 for k in range(61)]
        return integrate.trapezoid(kept, dx=1 / 60)

    model = area(np.argsort(uncertainty))
    oracle = area(np.argsort(losses, kind="stable"))
    chance = losses.mean() / 2
    expected = (chance - model) / (chance - oracle)
    assert metrics.prediction_rejection_ratio(losses, uncertainty) == pytest.approx(expected, abs=1e-12)
    assert metrics.prediction_rejection_ratio(losses, losses) == pytest.approx(1.0, abs=1e-12)
    assert metrics.prediction_rejection_ratio(losses, -losses) == pytest.approx(-1.0, abs=1e-12)
    assert metrics.prediction_rejection_ratio(losses, np.zeros(60)) == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(metrics.prediction_rejection_ratio(np.zeros(5), np.arange(5)))


def test_risk_and_coverage_are_inverse():
    losses, uncertainty = [0, 0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4, 0.5]
    for coverage, risk in ((0.2, 0.0), (0.4, 0.0), (0.41, 1 / 3), (0.8, 0.25), (1.0, 0.4)):
        assert metrics.risk_at_coverage(losses, uncertainty, coverage=coverage) == pytest.approx(risk, abs=1e-12)
    assert metrics.coverage_at_risk(losses, uncertainty, risk=0.3) == 0.8
    assert metrics.coverage_at_risk(losses, uncertainty, risk=0.0) == 0.4
    assert np.isnan(metrics.coverage_at_risk([1, 0], [0.1, 0.2], risk=0.2))


def scores(n=500, ties=False, seed=4):
    random = np.random.default_rng(seed)
    positive = (random.uniform(size=n) < 0.3).astype(int)
    score = random.normal(size=n) * 3 + positive * 2
    return positive, np.round(score) if ties else score, random.uniform(0.2, 2.0, n)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_detection_equals_scikit_learn(ties, weighted):
    positive, score, w = scores(ties=ties)
    w = w if weighted else None
    ours = metrics.auroc(positive, score, sample_weight=w)
    assert ours == pytest.approx(roc_auc_score(positive, score, sample_weight=w), abs=1e-12)
    ours = metrics.average_precision(positive, score, sample_weight=w)
    assert ours == pytest.approx(average_precision_score(positive, score, sample_weight=w), abs=1e-12)
    fpr, tpr, _ = roc_curve(positive, score, sample_weight=w, drop_intermediate=False)
    for recall in (0.5, 0.95, 1.0):
        ours = metrics.fpr_at_recall(positive, score, recall=recall, sample_weight=w)
        assert ours == pytest.approx(fpr[np.argmax(tpr >= recall - 1e-12)], abs=1e-12)
        nearest = metrics.fpr_at_recall(positive, score, recall=recall, convention="nearest", sample_weight=w)
        distance = np.abs(tpr[1:] - recall)  # either of two equally near thresholds is right
        near = fpr[1:][np.isclose(distance, distance.min(), atol=1e-12)]
        assert np.isclose(near, nearest, atol=1e-12).any()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("factor", [1.0, 1e-6, -1e4])
def test_streaming_detection_is_near_the_exact_value_at_any_scale(ties, factor):
    positive, score, w = scores(2000, ties)
    positive = positive if factor > 0 else 1 - positive
    score = score * factor
    pairs = [
        (metrics.DetectionAUROC(), metrics.auroc),
        (metrics.DetectionAUPR(), metrics.average_precision),
        (metrics.DetectionFPR(), metrics.fpr_at_recall),
    ]
    for metric, exact in pairs:
        for part in np.array_split(np.arange(2000), 3):
            metric.update_state(positive[part], score[part], sample_weight=w[part])
        expected = exact(positive, score, sample_weight=w)
        near = 1e-6 if ties else 6e-3 if isinstance(metric, metrics.DetectionFPR) else 1e-3
        assert float(metric.result()) == pytest.approx(expected, abs=near)


@pytest.mark.parametrize("score", ["max_probability", "entropy", "margin", "energy"])
def test_streaming_rejection_is_near_the_exact_value(score):
    p, y, w = some(3000)
    logits = np.log(p) + 0.3 * np.arange(3000)[:, None] / 3000
    uncertainty = np.asarray(metrics.uncertainty_score(logits, kind=score, from_logits=True))
    losses = p.argmax(1) != y
    pairs = [
        (metrics.AreaUnderRiskCoverage(score, True), metrics.area_under_risk_coverage, {}),
        (metrics.AreaUnderRiskCoverage(score, True, excess=True), metrics.area_under_risk_coverage, {"excess": True}),
        (
            metrics.AreaUnderRiskCoverage(score, True, "merged"),
            metrics.area_under_risk_coverage,
            {"convention": "merged"},
        ),
        (metrics.AreaUnderGeneralizedRiskCoverage(score, True), metrics.area_under_generalized_risk_coverage, {}),
        (metrics.RiskAtCoverage(0.7, score, True), metrics.risk_at_coverage, {"coverage": 0.7}),
        (metrics.PredictionRejectionRatio(score, True), metrics.prediction_rejection_ratio, {}),
        (metrics.FailureAUROC(score, True), metrics.auroc, {}),
    ]
    for metric, exact, options in pairs:
        for part in np.array_split(np.arange(3000), 4):
            metric.update_state(y[part], logits[part], sample_weight=w[part])
        expected = exact(losses, uncertainty, sample_weight=w, **options)
        assert float(metric.result()) == pytest.approx(expected, abs=2e-3), metric.name


def test_scores_equal_their_definitions_and_saturated_logits_keep_their_order():
    p, _, _ = some(20, 4)
    z = np.log(p) + 1.7
    top = np.sort(p, axis=1)
    for outputs, logits in ((p, False), (z, True)):
        for kind, expected in {
            "max_probability": np.log((1 - top[:, -1]) / top[:, -1]),
            "entropy": -(p * np.log(p)).sum(1),
            "margin": np.log(top[:, -2] / top[:, -1]),
        }.items():
            ours = metrics.uncertainty_score(outputs, kind=kind, from_logits=logits)
            np.testing.assert_allclose(ours, expected, atol=1e-12)
    np.testing.assert_allclose(metrics.uncertainty_score(z, kind="energy", from_logits=True), -1.7, atol=1e-12)
    sure = np.array([[40.0, 0.0], [60.0, 0.0]], np.float32)  # both probabilities are exactly 1 in float32
    np.testing.assert_allclose(metrics.uncertainty_score(sure, from_logits=True), [-40, -60], rtol=1e-6)
    with pytest.raises(ValueError, match='expected from_logits=True for score "energy", got False'):
        metrics.uncertainty_score(p, kind="energy")


def test_degenerate_data():
    assert np.isnan(metrics.auroc([1, 1], [0.1, 0.2])) and np.isnan(metrics.auroc([0, 0], [0.1, 0.2]))
    assert np.isnan(metrics.average_precision([0, 0], [0.1, 0.2]))
    assert np.isnan(metrics.fpr_at_recall([0, 0], [0.1, 0.2])) and np.isnan(metrics.fpr_at_recall([1, 1], [0.1, 0.2]))
    assert np.isnan(metrics.auroc([0, 1, 1], [0.1, np.nan, 0.3]))
    for metric in (metrics.DetectionAUROC(), metrics.DetectionAUPR(), metrics.DetectionFPR()):
        assert np.isnan(metric.result())
        metric.update_state([0, 1], [0.1, np.nan])
        assert np.isnan(metric.result())
    for metric in (metrics.AreaUnderRiskCoverage(), metrics.RiskAtCoverage(), metrics.PredictionRejectionRatio()):
        assert np.isnan(metric.result())
    assert metrics.area_under_risk_coverage([1], [0.3]) == pytest.approx(1.0)
    assert metrics.area_under_risk_coverage([0], [0.3]) == 0.0
    assert metrics.area_under_risk_coverage(np.ones(60), np.arange(60)) == pytest.approx(1.0, abs=1e-12)
    assert metrics.area_under_generalized_risk_coverage(np.ones(60), np.arange(60)) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: metrics.RiskAtCoverage(0.0), "expected coverage > 0 and <= 1, got 0.0"),
        (lambda: metrics.DetectionFPR(1.5), "expected recall > 0 and <= 1"),
        (lambda: metrics.AreaUnderRiskCoverage("msp"), "expected score to be one of 'max_probability'"),
        (lambda: metrics.AreaUnderRiskCoverage("energy"), "from_logits=True"),
        (lambda: metrics.area_under_risk_coverage([0], [1], convention="geifman"), "expected convention to be one of"),
        (
            lambda: metrics.area_under_risk_coverage([0, 1], [1, 2], convention="trapezoid", sample_weight=[1, 2]),
            "no sample_weight",
        ),
    ],
)
def test_bad_arguments_raise_a_clear_error(call, text):
    with pytest.raises(ValueError, match=text):
        call()
