"""Calibration errors and proper scores against recorded public implementations, scikit-learn and their definition."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from keras_distill import metrics
from tests.golden.record_metrics import load
from tests.models import replicas

ECE = load("ece")
BINARY = load("binary_ece")
NORMS = ("l1", "l2", "max")


def section_l():
    """The calibration data of the algorithm reference, with its published values."""
    n, k = np.arange(60)[:, None], np.arange(4)[None]
    logits = 2.5 * np.sin(0.7 * n + 1.9 * k) + 1.5 * np.cos(0.31 * n * (k + 1))
    i = np.arange(60)
    return logits, np.where(i % 3 == 0, ((3 * i + i * i) // 5) % 4, logits.argmax(1))


def some(n=400, classes=7, seed=0):
    """Probabilities of an overconfident model, labels, and weights."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, classes)) * 2.5
    labels = np.array([random.choice(classes, p=row) for row in softmax(logits / 2, axis=1)])
    return softmax(logits, axis=1), labels, random.uniform(0.1, 3.0, n)


def ece_by_definition(confidence, right, num_bins, norm, weights=None):
    """Float64 NumPy, one bin at a time; no score may lie on an edge."""
    weights = np.ones(len(confidence)) if weights is None else weights
    gaps, masses = [], []
    for low in np.arange(num_bins) / num_bins:
        inside = (confidence > low) & (confidence < low + 1 / num_bins)
        if inside.any():
            masses.append(weights[inside].sum() / weights.sum())
            gaps.append(abs(np.average((confidence - right)[inside], weights=weights[inside])))
    gaps, masses = np.array(gaps), np.array(masses)
    return {"l1": gaps @ masses, "l2": np.sqrt(gaps**2 @ masses), "max": gaps.max(), "average": gaps.mean()}[norm]


@pytest.mark.parametrize("case", ECE.values(), ids=list(ECE))
def test_multiclass_error_equals_the_recorded_ones_in_every_norm_and_convention(case):
    y, p, out = case["inputs"]["labels"], case["inputs"]["probs"], case["outputs"]
    bins = case["hyper_parameters"]["n_bins"]

    def ours(norm, convention):
        return metrics.expected_calibration_error(y, p, num_bins=bins, norm=norm, convention=convention)

    for norm in NORMS:
        torchmetrics = case["variants"][f"torchmetrics multiclass_calibration_error {norm}"]
        assert ours(norm, "torchmetrics") == pytest.approx(torchmetrics, abs=1e-6)
        assert ours(norm, "torchmetrics") == pytest.approx(out[f"{norm}_left_closed"], abs=1e-6)
        assert ours(norm, "guo") == pytest.approx(out[norm], abs=1e-6)
        assert ours(norm, "right_closed") == pytest.approx(out[norm], abs=1e-6)  # no confidence is 0
    if not case["id"].startswith("ece/c2_"):  # netcal treats that case as binary; see below
        for norm, name in (("l1", "ECE (l1)"), ("max", "MCE (max)"), ("average", "ACE (mean gap of non-empty bins)")):
            netcal = case["variants"].get(f"netcal {name}")
            if isinstance(netcal, float):
                assert ours(norm, "left_closed") == pytest.approx(netcal, abs=1e-6)


@pytest.mark.parametrize("case", BINARY.values(), ids=list(BINARY))
def test_binary_error_equals_the_recorded_ones(case):
    y, p, out = case["inputs"]["labels"], case["inputs"]["probs"], case["outputs"]
    for norm in NORMS:
        options = {"num_bins": case["hyper_parameters"]["n_bins"], "norm": norm, "task": "binary"}
        torchmetrics = case["variants"][f"torchmetrics binary_calibration_error {norm}"]
        assert metrics.expected_calibration_error(y, p, **options) == pytest.approx(torchmetrics, abs=1e-6)
        right = metrics.expected_calibration_error(y, p, convention="right_closed", **options)
        assert right == pytest.approx(out[f"positive_class_{norm}"], abs=1e-6)
        both = np.stack([1 - p, p], axis=-1)
        both[p == 0.5] = 0.5
        top = {**options, "task": "multiclass", "convention": "right_closed"}
        if not np.isin(p, (0.0, 1.0)).any():  # float32 1 - p is inexact, but no tie is broken by it
            expected = out[f"top_label_{norm}"]
            assert metrics.expected_calibration_error(y, both, **top) == pytest.approx(expected, abs=1e-5)


def test_two_classes_read_as_binary_equal_netcal():
    case = ECE["ece/c2_n100/bins10"]
    ours = metrics.expected_calibration_error(
        case["inputs"]["labels"], case["inputs"]["probs"][:, 1], num_bins=10, task="binary", convention="left_closed"
    )
    assert ours == pytest.approx(case["variants"]["netcal ECE (l1)"], abs=1e-6)


def test_published_values_of_the_reference():
    logits, y = section_l()
    for bins, values in {
        10: (0.2199953875, 0.3857197342, 0.2586001761),
        15: (0.2426656384, 0.5509131746, 0.2896611086),
    }.items():
        for norm, value in zip(("l1", "max", "l2"), values, strict=True):
            for convention in ("torchmetrics", "left_closed", "right_closed", "guo"):
                ours = metrics.expected_calibration_error(
                    y, logits, num_bins=bins, norm=norm, from_logits=True, convention=convention
                )
                assert ours == pytest.approx(value, abs=1e-7 if convention == "torchmetrics" else 1e-10)
    assert metrics.negative_log_likelihood(y, logits, from_logits=True) == pytest.approx(0.9234441019, abs=1e-10)
    assert metrics.brier_score(y, logits, from_logits=True) == pytest.approx(0.4470583741, abs=1e-10)
    assert metrics.negative_log_likelihood(y, softmax(logits, 1)) == pytest.approx(0.9234441019, abs=1e-10)


@pytest.mark.parametrize(
    ("convention", "value"), [("right_closed", 0.2125), ("left_closed", 0.2625), ("torchmetrics", 0.3375)]
)
def test_published_example_on_the_edges_of_bins(convention, value):
    c = np.array([0.5, 0.6, 0.6, 0.8, 1, 1, 0.9, 0.7])
    right = np.array([1, 0, 1, 1, 1, 0, 1, 0])
    p = np.stack([c, 1 - c], axis=-1)
    y = np.where(right == 1, p.argmax(1), 1 - p.argmax(1))
    ours = metrics.expected_calibration_error(y, p, num_bins=5, convention=convention)
    assert ours == pytest.approx(value, abs=1e-6)


def test_published_documentation_examples_of_torchmetrics():
    for norm, value in zip(NORMS, (0.2900, 0.2918, 0.3167), strict=True):
        ours = metrics.expected_calibration_error(
            [0, 0, 1, 1, 1], [0.25, 0.25, 0.55, 0.75, 0.75], num_bins=2, norm=norm, task="binary"
        )
        assert ours == pytest.approx(value, abs=5e-5)
    p = [[0.25, 0.20, 0.55], [0.55, 0.05, 0.40], [0.10, 0.30, 0.60], [0.90, 0.05, 0.05]]
    for norm, value in zip(NORMS, (0.2000, 0.2082, 0.2333), strict=True):
        assert metrics.expected_calibration_error([0, 1, 2, 0], p, num_bins=3, norm=norm) == pytest.approx(
            value, abs=5e-5
        )


@pytest.mark.parametrize("norm", [*NORMS, "average"])
@pytest.mark.parametrize("weighted", [False, True])
def test_error_equals_its_definition_with_and_without_weights(norm, weighted):
    p, y, w = some()
    w = w if weighted else None
    expected = ece_by_definition(p.max(1), p.argmax(1) == y, 15, norm, w)
    assert metrics.expected_calibration_error(y, p, norm=norm, sample_weight=w) == pytest.approx(expected, abs=1e-6)


def test_right_closed_bins_are_those_of_scikit_learn_with_ties_zeros_and_ones():
    case = BINARY["binary_ece/b_ties16/bins8"]
    y, p = case["inputs"]["labels"], case["inputs"]["probs"].copy()
    p[:3], p[3:6] = 0.0, 1.0
    frequency, mean = calibration_curve(y, p, n_bins=8)
    bins = metrics.reliability_bins(y, p, num_bins=8, task="binary", convention="right_closed")
    filled = bins.weight > 0
    np.testing.assert_allclose(bins.accuracy[filled], frequency, atol=1e-12)
    np.testing.assert_allclose(bins.confidence[filled], mean, atol=1e-12)


def test_over_and_under_confidence_add_up_to_the_error():
    p, y, _ = some()
    both, over, under = (metrics.expected_calibration_error(y, p, side=s) for s in ("both", "over", "under"))
    assert over > 0.05 and under < 0.01
    assert over + under == pytest.approx(both, abs=1e-12)
    # an underconfident model: the labels are the predictions
    assert metrics.expected_calibration_error(p.argmax(1), p, side="over") == 0.0


def test_multilabel_pools_the_entries():
    random = np.random.default_rng(3)
    p = random.uniform(size=(50, 4))
    y = (random.uniform(size=(50, 4)) < p**2).astype(int)
    pooled = metrics.expected_calibration_error(y.reshape(-1), p.reshape(-1), task="binary")
    assert metrics.expected_calibration_error(y, p, task="multilabel") == pytest.approx(pooled, abs=1e-12)
    assert metrics.brier_score(y, p, task="multilabel") == pytest.approx(np.mean((p - y) ** 2), abs=1e-12)
    assert metrics.negative_log_likelihood(y, p, task="multilabel") == pytest.approx(
        np.mean([log_loss(y[:, k], p[:, k]) for k in range(4)]), abs=1e-10
    )
    logits = np.log(p / (1 - p))
    for function in (metrics.brier_score, metrics.negative_log_likelihood):
        from_logits = function(y, logits, from_logits=True, task="multilabel")
        assert from_logits == pytest.approx(function(y, p, task="multilabel"), abs=1e-12)


class TestEdges:
    def test_one_example(self):
        assert metrics.expected_calibration_error([0], [[0.7, 0.3]]) == pytest.approx(0.3, abs=1e-6)
        assert metrics.expected_calibration_error([1], [[0.7, 0.3]], norm="max") == pytest.approx(0.7, abs=1e-6)

    def test_certain_and_correct_is_zero_certain_and_wrong_is_one(self):
        p = np.eye(4)[[0, 1, 2, 3]]
        for norm in (*NORMS, "average"):
            assert metrics.expected_calibration_error([0, 1, 2, 3], p, norm=norm) == 0.0
            assert metrics.expected_calibration_error([1, 2, 3, 0], p, norm=norm) == 1.0

    def test_equal_outputs_predict_the_first_class(self):
        p = np.full((4, 250), 1 / 250)
        assert metrics.expected_calibration_error([0, 0, 1, 2], p) == pytest.approx(0.5 - 1 / 250, abs=1e-6)

    def test_float32_tie_at_an_edge_goes_where_torchmetrics_puts_it(self):
        # torch.linspace(0, 1, 16)[3] is one float32 step above the nearest float32 to 0.2; 0.2 itself lies below it
        below, at = np.float32(0.2), np.nextafter(np.float32(0.2), np.float32(1))
        bins = metrics.reliability_bins([1, 1], np.array([below, at]), task="binary")
        np.testing.assert_array_equal(bins.weight[2:4], [1, 1])

    def test_no_example_is_nan_not_zero(self):
        for metric in (metrics.ExpectedCalibrationError(), metrics.BrierScore(), metrics.NegativeLogLikelihood()):
            assert np.isnan(metric.result())

    def test_impossible_input_gives_nan(self):
        logits = [[4.0, -3.0], [1.0, 2.0]]
        for function in (metrics.expected_calibration_error, metrics.brier_score, metrics.negative_log_likelihood):
            assert np.isnan(function([0, 1], logits))  # logits taken for probabilities
            assert np.isnan(function([0, 2], [[0.5, 0.5], [0.5, 0.5]]))  # no such class
            assert np.isnan(function([0, -1], [[0.5, 0.5], [0.5, 0.5]]))

    @pytest.mark.parametrize("classes", [3, 100, 150])
    def test_a_nan_output_makes_the_result_nan(self, classes):
        for place in (0, 2, classes - 1):
            p = np.full((4, classes), 1.0 / classes)
            p[3, place] = np.nan
            assert np.isnan(metrics.expected_calibration_error([0, 0, 0, place], p))

    @pytest.mark.parametrize("classes", [3, 100, 150, 1000])
    def test_ties_are_decided_by_the_first_class(self, classes):
        p = np.random.default_rng(0).integers(0, 4, (200, classes)) / 4.0  # each row has several maxima
        bins = metrics.reliability_bins(p.argmax(1), p)
        assert bins.accuracy[bins.weight > 0] == pytest.approx(1.0)
        assert bins.weight.sum() == 200

    def test_weight_zero_removes_even_padding_labels_and_nan(self):
        p, y = [[0.7, 0.3], [np.nan, np.nan]], [0, -1]
        for function in (metrics.expected_calibration_error, metrics.brier_score, metrics.negative_log_likelihood):
            alone = function([0], [[0.7, 0.3]])
            assert function(y, p, sample_weight=[1, 0]) == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda f: metrics.ExpectedCalibrationError(from_logits=f),
        lambda f: metrics.ExpectedCalibrationError(10, "l2", f, convention="guo"),
        lambda f: metrics.BrierScore(f),
        lambda f: metrics.NegativeLogLikelihood(f),
        lambda f: metrics.ClasswiseCalibrationError(7, from_logits=f, threshold=0.05),
        lambda f: metrics.BrierComponent(7, "reliability", from_logits=f),
        lambda f: metrics.AdaptiveCalibrationError(from_logits=f),
        lambda f: metrics.MaximumMeanCalibrationError(f),
        lambda f: metrics.AreaUnderRiskCoverage(from_logits=f),
        lambda f: metrics.AreaUnderGeneralizedRiskCoverage(from_logits=f),
        lambda f: metrics.RiskAtCoverage(from_logits=f),
        lambda f: metrics.PredictionRejectionRatio(from_logits=f),
        lambda f: metrics.FailureAUROC(from_logits=f),
    ],
)
def test_streaming_laws(make, from_logits):
    """Any batches = one; weight 2 = two copies; one-hot = ids; graph = eager; config and state round trips."""
    p, y, _ = some(300)
    outputs = np.log(p) if from_logits else p

    def value(labels, rows, cuts=(), weights=None, metric=None):
        metric = metric or make(from_logits)
        weights = np.ones(len(rows)) if weights is None else weights
        for part in np.split(np.arange(len(rows)), cuts):
            metric.update_state(labels[part], rows[part], sample_weight=weights[part])
        return float(metric.value())

    whole = value(y, outputs)
    assert whole > 0
    assert value(y, outputs, (1, 2, 130)) == pytest.approx(whole, rel=1e-11)
    order = np.random.default_rng(0).permutation(300)
    assert value(y[order], outputs[order]) == pytest.approx(whole, rel=1e-9)
    assert value(np.eye(7)[y], outputs) == pytest.approx(whole, rel=1e-12)
    copies = np.random.default_rng(1).integers(0, 3, 300)
    repeated = np.repeat(np.arange(300), copies)
    assert value(y, outputs, weights=copies) == pytest.approx(value(y[repeated], outputs[repeated]), rel=1e-9)

    compiled = make(from_logits)
    if from_logits:  # as in a training step, in its precision
        step = tf.function(compiled.update_state, jit_compile=True, reduce_retracing=True, autograph=False)
        for part in (slice(0, 200), slice(200, 300)):
            step(tf.constant(y[part]), tf.constant(outputs[part], tf.float32))
        assert float(tf.function(compiled.value, jit_compile=True, autograph=False)()) == pytest.approx(whole, rel=2e-5)

    again = type(compiled).from_config(keras.saving.deserialize_keras_object(compiled.get_config()))
    assert again.get_config() == compiled.get_config()
    assert value(y, outputs, metric=again) == pytest.approx(whole, rel=1e-12)
    assert again.result().dtype == "float32"
    again.reset_state()
    assert value(y, outputs, metric=again) == pytest.approx(whole, rel=1e-12)


def test_counts_beyond_float32_are_exact():
    """A float32 count stops growing at 2**24 + 1 examples."""
    metric = metrics.ExpectedCalibrationError(num_bins=4)
    metric.sums.assign(np.array([[0, 0, 0, 2**26, 0], [0, 0, 0, 2**26 * 0.75, 0], [0, 0, 0, 2**26, 0]]))
    for _ in range(3):
        metric.update_state([0], [[0.8, 0.2]])
    assert metric.bins.weight[3] == 2**26 + 3
    nll = metrics.NegativeLogLikelihood()
    nll.update_state([0], [[0.5, 0.5]], sample_weight=[2**25])
    nll.update_state([0], [[0.25, 0.75]], sample_weight=[1])
    assert float(nll.total) - 2**25 * np.log(2) == pytest.approx(np.log(4), abs=1e-1)
    assert float(nll.weight) == 2**25 + 1


def test_two_replicas_equal_one():
    p, y, w = some(64)
    strategy = replicas(2)
    with strategy.scope():
        every = [metrics.ExpectedCalibrationError(), metrics.BrierScore(), metrics.AreaUnderRiskCoverage()]
    data = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices((y, p, w)).batch(32))

    @tf.function(autograph=False)
    def step(batch):
        strategy.run(lambda a, b, c: [metric.update_state(a, b, sample_weight=c) for metric in every] and None, batch)

    for batch in data:
        step(batch)
    for metric in every:
        alone = type(metric)()
        alone.update_state(y, p, sample_weight=w)
        assert float(metric.result()) == pytest.approx(float(alone.result()), rel=1e-6)


def test_in_compile_with_masks_and_half_precision():
    """As ``metrics`` of a Keras model: padded positions are excluded, float16 outputs are cast to float32."""
    y = np.array([[1, 2, 0], [2, 0, 0]])
    model = keras.Sequential(
        [keras.Input((3,), dtype="int32"), keras.layers.Embedding(5, 4, mask_zero=True), keras.layers.Dense(3)]
    )
    ece = metrics.ExpectedCalibrationError(from_logits=True)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), weighted_metrics=[ece])
    x = np.array([[1, 2, 0], [3, 0, 0]])
    value = model.evaluate(x, y, verbose=0, return_dict=True)["ece"]
    kept = x > 0
    expected = metrics.expected_calibration_error(y[kept], model.predict(x, verbose=0)[kept], from_logits=True)
    assert value == pytest.approx(expected, abs=1e-6)
    assert float(ece.sums[0].numpy().sum()) == 3.0

    half = np.array([[3.0, 1.0], [0.5, 2.0]], np.float16)
    assert metrics.negative_log_likelihood([0, 0], half, from_logits=True) == pytest.approx(
        np.mean([np.log1p(np.exp(-2)), 1.5 + np.log1p(np.exp(-1.5))]), abs=1e-6
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: metrics.ExpectedCalibrationError(0), "expected num_bins to be an integer >= 1, got 0"),
        (
            lambda: metrics.ExpectedCalibrationError(norm="l3"),
            "expected norm to be one of 'l1', 'l2', 'max', 'average'",
        ),
        (lambda: metrics.ExpectedCalibrationError(task="multi"), "expected task to be one of"),
        (lambda: metrics.ExpectedCalibrationError(convention="sklearn"), "expected convention to be one of"),
        (lambda: metrics.expected_calibration_error([0, 1], [0.1, 0.2]), r"at least 2 classes, got shape \(2,\)"),
        (lambda: metrics.expected_calibration_error([[0, 1, 1]], [[0.1, 0.9]]), "class ids or one-hot rows"),
        (lambda: metrics.brier_score([0, 1, 1], [0.1, 0.9], task="binary"), "in the shape of y_pred"),
        (lambda: metrics.NegativeLogLikelihood(epsilon=0.7), "expected epsilon >= 0 and <= 0.5, got 0.7"),
        (lambda: metrics.brier_score([0], [[0.1, 0.9]], sample_weight=[[1, 1]]), "sample_weight of at most 1 axes"),
    ],
)
def test_bad_arguments_raise_a_clear_error(call, text):
    with pytest.raises(ValueError, match=text):
        call()
