"""Equal-mass, classwise, kernel and bin-free calibration errors, and the Brier score's parts."""

import numpy as np
import pytest
from scipy.special import softmax

from keras_distill import metrics
from tests.golden.record_metrics import load
from tests.metrics.test_calibration import section_l, some

TIED = ("ties16", "uniform", "onehot", "mixed01")


@pytest.mark.parametrize("case", [pytest.param(c, id=i) for i, c in load("adaptive_ece").items()])
@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_equal_mass_error_equals_the_recorded_one(case, norm):
    ours = metrics.adaptive_calibration_error(
        case["inputs"]["labels"], case["inputs"]["probs"], num_bins=case["hyper_parameters"]["n_bins"], norm=norm
    )
    assert ours == pytest.approx(case["outputs"][norm], abs=1e-7)


@pytest.mark.parametrize("case", [pytest.param(c, id=i) for i, c in load("classwise_ece").items()])
def test_classwise_error_equals_the_recorded_one(case):
    y, p, bins = case["inputs"]["labels"], case["inputs"]["probs"], case["hyper_parameters"]["n_bins"]
    guo = metrics.classwise_calibration_error(y, p, num_bins=bins, convention="guo")
    assert guo == pytest.approx(case["outputs"]["l1"], abs=1e-6)
    for convention, name in (
        ("torchmetrics", "bins [a, b) instead of (a, b]"),
        ("right_closed", "first bin closed: probability exactly 0 counted"),
    ):
        ours = metrics.classwise_calibration_error(y, p, num_bins=bins, convention=convention)
        assert ours == pytest.approx(case["variants"][name], abs=1e-6)


def test_published_values_of_the_reference():
    logits, y = section_l()

    def classwise(**options):
        return metrics.classwise_calibration_error(y, logits, from_logits=True, **options)

    for groups, value in ((10, 0.2592379906), (15, 0.2484851800)):
        ours = metrics.adaptive_calibration_error(y, logits, num_bins=groups, from_logits=True)
        assert ours == pytest.approx(value, abs=1e-10)
    assert classwise() == pytest.approx(0.1375496449, abs=1e-10)
    assert classwise(adaptive=True) == pytest.approx(0.1229594189, abs=1e-10)
    assert classwise(adaptive=True, threshold=0.01) == pytest.approx(0.1818317751, abs=1e-10)
    mmce = metrics.maximum_mean_calibration_error(y, logits, from_logits=True)
    assert mmce == pytest.approx(0.0942316035, abs=1e-10)
    pooled = metrics.expected_calibration_error(np.eye(4, dtype=int)[y], softmax(logits, 1), task="multilabel")
    assert pooled == pytest.approx(0.0953296262, abs=1e-10)


def test_streaming_equal_mass_error_is_near_the_exact_one():
    """Also where nearly all confidences lie above 0.999, which no equal-width histogram would resolve."""
    random = np.random.default_rng(2)
    for scale in (1.0, 20.0):
        logits = random.normal(size=(4000, 10)) * scale
        y = np.where(random.uniform(size=4000) < 0.8, logits.argmax(1), random.integers(0, 10, 4000))
        for norm in ("l1", "l2", "max"):
            metric = metrics.AdaptiveCalibrationError(norm=norm, from_logits=True)
            for part in np.array_split(np.arange(4000), 7):
                metric.update_state(y[part], logits[part])
            exact = metrics.adaptive_calibration_error(y, logits, norm=norm, from_logits=True)
            assert float(metric.result()) == pytest.approx(exact, abs=2e-3)


def test_equal_weights_change_nothing_and_weight_zero_removes():
    p, y, w = some()
    exact = metrics.adaptive_calibration_error(y, p)
    assert metrics.adaptive_calibration_error(y, p, sample_weight=np.full(400, 3.0)) == pytest.approx(exact, abs=1e-12)
    half = np.arange(400) % 2
    removed = metrics.adaptive_calibration_error(y, p, sample_weight=half)
    assert removed == pytest.approx(metrics.adaptive_calibration_error(y[half == 1], p[half == 1]), abs=1e-12)
    # unequal weights: the streaming metric has the same bins
    metric = metrics.AdaptiveCalibrationError()
    metric.update_state(y, p, sample_weight=w)
    assert float(metric.result()) == pytest.approx(metrics.adaptive_calibration_error(y, p, sample_weight=w), abs=2e-3)


def test_kernel_error_equals_its_double_sum_and_streams():
    p, y, w = some()
    c = p.max(1)
    for weights in (np.ones(400), w):
        r = weights * ((p.argmax(1) == y) - c)
        expected = np.sqrt(r @ np.exp(-2.5 * np.abs(c[:, None] - c)) @ r) / weights.sum()
        assert metrics.maximum_mean_calibration_error(y, p, sample_weight=weights) == pytest.approx(expected, abs=1e-12)
        metric = metrics.MaximumMeanCalibrationError()
        metric.update_state(y, p, sample_weight=weights)
        assert float(metric.result()) ** 2 == pytest.approx(expected**2, abs=1e-4)


def test_bin_free_error_equals_its_definition_with_ties():
    p, y, _ = some()
    p = np.round(p, 1)
    c, right = p.max(1), p.argmax(1) == y
    expected = max(abs((c - right)[c <= t].sum()) for t in np.unique(c)) / 400
    assert metrics.kolmogorov_smirnov_calibration_error(y, p) == pytest.approx(expected, abs=1e-12)


def test_threshold_leaves_out_small_probabilities_and_their_counts():
    p, y, _ = some(200, 5)
    expected = []
    for k in range(5):
        kept = p[:, k] > 0.05
        q, answer = p[kept, k], y[kept] == k
        index = np.floor(q * 15)
        gaps = [abs((q - answer)[index == b].sum()) for b in range(15)]
        expected.append(sum(gaps) / kept.sum())
    ours = metrics.classwise_calibration_error(y, p, threshold=0.05)
    assert ours == pytest.approx(np.mean(expected), abs=1e-12)


def test_brier_parts_add_up_and_each_is_its_definition():
    p, y, w = some()
    parts = metrics.brier_decomposition(y, p, sample_weight=w, num_bins=10)
    score = metrics.brier_score(y, p, sample_weight=w)
    assert parts.brier == pytest.approx(score, abs=1e-12)
    total = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bin
    assert total == pytest.approx(score, abs=1e-12)
    frequency = np.array([np.average(y == k, weights=w) for k in range(7)])
    assert parts.uncertainty == pytest.approx((frequency * (1 - frequency)).sum(), abs=1e-12)
    reliability = resolution = 0.0
    for k in range(7):
        for b in range(10):
            inside = np.floor(p[:, k] * 10) == b
            if inside.any():
                mass = w[inside].sum() / w.sum()
                seen = np.average(y[inside] == k, weights=w[inside])
                reliability += mass * (np.average(p[inside, k], weights=w[inside]) - seen) ** 2
                resolution += mass * (seen - frequency[k]) ** 2
    assert parts.reliability == pytest.approx(reliability, abs=1e-12)
    assert parts.resolution == pytest.approx(resolution, abs=1e-12)
    # exact if forecasts are constant within bins
    coarse = np.tile([[0.75, 0.25], [0.25, 0.75]], (20, 1))
    assert metrics.brier_decomposition(np.arange(40) % 3 % 2, coarse, num_bins=4).within_bin == pytest.approx(
        0, abs=1e-15
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: metrics.ClasswiseCalibrationError(3).update_state([0], [[0.5, 0.5]]),
            "num_classes = 3 classes, got 2",
        ),
        (lambda: metrics.ClasswiseCalibrationError(3, threshold=2), "expected threshold >= 0 and <= 1"),
        (lambda: metrics.BrierComponent(3, "sharpness"), "expected component to be one of"),
        (lambda: metrics.adaptive_calibration_error([0], [[0.5, 0.5]], num_bins=0), "num_bins to be an integer >= 1"),
    ],
)
def test_bad_arguments_raise_a_clear_error(call, text):
    with pytest.raises(ValueError, match=text):
        call()
