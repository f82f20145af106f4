"""Scalers fitted after training, against recorded optima, scikit-learn and SciPy; wrapped, saved and exported."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import optimize
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from keras_distill import calibration, metrics
from keras_distill.calibration import IsotonicCalibrator, TemperatureScaler, VectorScaler
from tests.golden.record_metrics import load
from tests.metrics.test_calibration import section_l

SCALERS = [TemperatureScaler, VectorScaler, IsotonicCalibrator]


def over_confident(n=600, classes=4, factor=3.0, seed=0):
    random = np.random.default_rng(seed)
    true = random.normal(size=(n, classes)) * 1.2
    labels = np.array([random.choice(classes, p=row) for row in softmax(true, axis=1)])
    return true * factor + np.linspace(0, 1, classes), labels


def mean_nll(logits, labels, weights=None):
    return np.average(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels], weights=weights)


class Given(ClassifierMixin, BaseEstimator):
    """A fitted scikit-learn classifier that returns its inputs: logits, or their softmax."""

    def __init__(self, classes=4, probabilities=False):
        self.classes, self.probabilities = classes, probabilities
        self.classes_ = np.arange(classes)

    def fit(self, x, y):
        return self

    def predict(self, x):
        return x.argmax(axis=1)

    def predict_proba(self, x):
        return softmax(x, axis=1) if self.probabilities else x


class GivenLogits(Given):
    def decision_function(self, x):
        return x


@pytest.mark.parametrize("case", [pytest.param(c, id=i) for i, c in load("temperature_scaling").items()])
def test_temperature_equals_the_recorded_optimum(case):
    logits, labels, out = case["inputs"]["logits"], case["inputs"]["labels"], case["outputs"]
    scaler = TemperatureScaler().fit(logits, labels)
    assert scaler.temperature == pytest.approx(float(out["temperature"]), rel=1e-9)
    assert scaler.nll_before == pytest.approx(float(out["nll_before"]), abs=1e-12)
    assert scaler.nll_after == pytest.approx(float(out["nll_after"]), abs=1e-12)
    after = metrics.expected_calibration_error(labels, scaler.scale(logits), from_logits=True, convention="guo")
    assert after == pytest.approx(float(out["ece15_after"]), abs=1e-6)


def test_published_temperature_of_the_reference():
    logits, labels = section_l()
    scaler = TemperatureScaler().fit(logits, labels)
    assert scaler.temperature == pytest.approx(1.4114373613, abs=1e-9)
    assert scaler.nll_after == pytest.approx(0.8856381413, abs=1e-10)
    ece = metrics.expected_calibration_error(labels, logits / scaler.temperature, from_logits=True)
    assert ece == pytest.approx(0.1945922432, abs=1e-7)


def test_temperature_equals_scikit_learns():
    logits, labels = over_confident()
    theirs = CalibratedClassifierCV(FrozenEstimator(GivenLogits()), method="temperature").fit(logits, labels)
    ours = softmax(np.asarray(TemperatureScaler().fit(logits, labels).scale(logits), float), axis=1)
    np.testing.assert_allclose(ours, theirs.predict_proba(logits), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_isotonic_equals_scikit_learns_also_on_new_data(classes):
    logits, labels = over_confident(classes=classes)
    frozen = FrozenEstimator(Given(classes, probabilities=True))
    theirs = CalibratedClassifierCV(frozen, method="isotonic").fit(logits, labels)
    scaler = IsotonicCalibrator().fit(logits, labels)
    for data in (logits, over_confident(300, classes, 8.0, seed=1)[0]):
        expected = theirs.predict_proba(data)
        wide = calibration.IsotonicScaling(scaler.inputs, scaler.outputs, dtype="float64")
        np.testing.assert_allclose(np.exp(wide(data)), expected, atol=1e-9)
        # in float32 a probability at a step of the curve may be rounded to either side
        off = np.abs(softmax(np.asarray(scaler.scale(data), float), axis=1) - expected).max(axis=1)
        assert np.quantile(off, 0.99) < 2e-5


def test_vector_scaling_is_at_the_minimum():
    logits, labels = over_confident()
    scaler = VectorScaler().fit(logits, labels)

    def nll(flat):
        return mean_nll(logits * flat[:4] + flat[4:], labels)

    here = np.concatenate([scaler.factors, scaler.offsets])
    assert scaler.nll_after == pytest.approx(nll(here), abs=1e-12)
    assert nll(here) == pytest.approx(optimize.minimize(nll, here + 0.1, method="BFGS").fun, abs=1e-8)
    gradient = optimize.approx_fprime(here, nll, 1e-6)
    np.testing.assert_allclose(gradient, 0, atol=2e-6)
    assert scaler.offsets.mean() == pytest.approx(0, abs=1e-12)
    assert scaler.nll_after < TemperatureScaler().fit(logits, labels).nll_after  # it contains temperature scaling
    strong = VectorScaler(penalty=1e6).fit(logits, labels)
    np.testing.assert_allclose(strong.factors, 1 / TemperatureScaler().fit(logits, labels).temperature, atol=1e-3)


class TestLaws:
    @pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
    def test_one_temperature_changes_no_prediction_and_does_not_increase_the_nll(self, factor):
        logits, labels = over_confident(factor=factor)
        scaler = TemperatureScaler().fit(logits, labels)
        np.testing.assert_array_equal(np.asarray(scaler.scale(logits)).argmax(1), logits.argmax(1))
        assert scaler.nll_after <= scaler.nll_before
        assert scaler.nll_after == pytest.approx(mean_nll(logits / scaler.temperature, labels), abs=1e-12)
        for other in (0.99, 1.01):
            assert mean_nll(logits / (scaler.temperature * other), labels) > scaler.nll_after

    def test_scaling_the_logits_scales_the_temperature(self):
        logits, labels = over_confident()
        one, four = (TemperatureScaler().fit(logits * f, labels).temperature for f in (1.0, 4.0))
        assert four == pytest.approx(4 * one, rel=1e-9)

    @pytest.mark.parametrize("make", SCALERS)
    def test_weights_count_as_copies_and_zero_removes(self, make):
        logits, labels = over_confident(300)
        copies = np.random.default_rng(1).integers(0, 3, 300)
        weighted = make().fit(logits, labels, sample_weight=copies)
        repeated = make().fit(np.repeat(logits, copies, axis=0), np.repeat(labels, copies))
        np.testing.assert_allclose(weighted.scale(logits), repeated.scale(logits), rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("make", SCALERS)
    def test_one_hot_labels_and_sequences_are_the_same_data(self, make):
        logits, labels = over_confident(120)
        expected = np.asarray(make().fit(logits, labels).scale(logits))
        one_hot = make().fit(logits, np.eye(4)[labels]).scale(logits)
        np.testing.assert_allclose(one_hot, expected, atol=1e-6)
        shaped = make().fit(logits.reshape(12, 10, 4), labels.reshape(12, 10)).scale(logits.reshape(12, 10, 4))
        np.testing.assert_allclose(np.reshape(shaped, (120, 4)), expected, atol=1e-6)


def test_one_logit_is_two_classes():
    logits, labels = over_confident(classes=2)
    gap = logits[:, 1] - logits[:, 0]
    two = TemperatureScaler().fit(logits, labels).temperature
    assert TemperatureScaler().fit(gap, labels).temperature == pytest.approx(two, rel=1e-9)
    assert TemperatureScaler().fit(gap[:, None], labels[:, None]).temperature == pytest.approx(two, rel=1e-9)


def test_impossible_classes_contribute_nothing():
    logits, labels = over_confident()
    masked = np.concatenate([logits, np.full((600, 1), -np.inf)], axis=1)
    expected = TemperatureScaler().fit(logits, labels).temperature
    assert TemperatureScaler().fit(masked, labels).temperature == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("name", "temperature"), [("all_correct", 0.01), ("all_argmin", 10000.0), ("constant", 1.0)])
def test_without_an_optimum_the_bound_is_used_with_a_warning(name, temperature):
    case = next(case for key, case in load("temperature_scaling_degenerate").items() if name in key)
    with pytest.warns(RuntimeWarning, match="no best temperature inside"):
        scaler = TemperatureScaler().fit(case["inputs"]["logits"], case["inputs"]["labels"])
    assert scaler.temperature == temperature
    assert np.isfinite(scaler.nll_after) and scaler.nll_after <= scaler.nll_before


def student():
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(6, activation="tanh"), keras.layers.Dense(4)])


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.drop = keras.layers.Dense(4), keras.layers.Dropout(0.5)

    def call(self, inputs, training=None):
        return self.drop(self.dense(inputs), training=training)


def functional():
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((3,), name="b")}
    joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    return keras.Model(inputs, keras.layers.Dense(4)(joined))


@pytest.mark.parametrize("make", SCALERS)
@pytest.mark.parametrize("model", [student, Subclassed, functional])
def test_wrapped_saved_loaded_and_exported_give_the_scaled_logits(make, model, tmp_path):
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 5)).astype("float32")
    x = {"a": x[:, :2], "b": x[:, 2:]} if model is functional else x
    net = model()
    logits = net.predict(x, verbose=0)
    labels = np.where(random.uniform(size=64) < 0.6, logits.argmax(1), random.integers(0, 4, 64))
    scaler = make().fit(logits * 3, labels)
    wrapped = scaler.wrap(net)
    expected = np.asarray(scaler.scale(logits))
    assert np.abs(expected - logits).max() > 0.05
    np.testing.assert_allclose(wrapped.predict(x, verbose=0), expected, atol=1e-5)
    wrapped.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), expected, atol=1e-5)
    wrapped.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(served.serve(x), expected, atol=1e-5)
    assert len(wrapped.trainable_weights) == len(net.trainable_weights)  # the scaling is not trainable


@pytest.mark.parametrize("make", SCALERS)
def test_config_carries_the_fitted_numbers_and_layers_run_in_half_precision_and_xla(make):
    logits, labels = over_confident()
    scaler = make().fit(logits, labels)
    expected = np.asarray(scaler.scale(logits))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(scaler))
    np.testing.assert_allclose(again.scale(logits), expected, atol=1e-6)
    unfitted = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(make()))
    with pytest.raises(ValueError, match=f"{make.__name__}: expected a fitted scaler, got an unfitted one. Call fit"):
        unfitted.scale(logits)
    layer = scaler.layer()
    half = layer(logits.astype(np.float16))
    assert half.dtype == "float32"
    np.testing.assert_allclose(half, scaler.scale(logits.astype(np.float16).astype(np.float32)), atol=1e-5)
    compiled = tf.function(layer, autograph=False, jit_compile=True)(tf.constant(logits, tf.float32))
    np.testing.assert_allclose(softmax(compiled, axis=1), softmax(expected, axis=1), atol=1e-4)


def test_isotonic_curve_equals_numpy_interpolation_at_and_between_its_points():
    random = np.random.default_rng(3)
    xs = np.sort(random.uniform(0.1, 0.9, (3, 7)), axis=1)
    ys = np.sort(random.uniform(size=(3, 7)), axis=1)
    layer = calibration.IsotonicScaling(xs, ys)
    p = random.dirichlet(np.ones(3), size=200)
    p[:7] = np.stack([xs[0], (1 - xs[0]) / 2, (1 - xs[0]) / 2], axis=1)
    after = np.stack([np.interp(p[:, k], xs[k], ys[k]) for k in range(3)], axis=1)
    after /= after.sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(layer(np.log(p))), after, atol=2e-6)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: TemperatureScaler(0.0), "expected temperature > 0, got 0.0"),
        (lambda: TemperatureScaler(bounds=(2.0, 3.0)), "expected bounds on either side of 1"),
        (lambda: TemperatureScaler().fit([[1.0, 2.0]], [0, 1]), "one label per row of logits, and at least one, got 2"),
        (lambda: TemperatureScaler().fit(np.zeros((0, 2)), []), "got 0 labels for 0 rows"),
        (lambda: TemperatureScaler().fit([[1.0, 2.0]], [2]), "expected labels from 0 to 1, got 2"),
        (lambda: TemperatureScaler().fit([[1.0, -np.inf]], [1]), "-inf for classes that are not the label"),
        (lambda: TemperatureScaler().fit([[1.0, np.nan]], [0]), "expected logits that are finite"),
        (lambda: TemperatureScaler().fit([[1.0, 2.0]], [0], sample_weight=[0]), "not all 0"),
        (lambda: VectorScaler(factors=[1.0]), "factors and offsets together"),
        (lambda: VectorScaler().fit([[1.0, -np.inf]], [0]), "VectorScaler: expected finite logits"),
        (lambda: IsotonicCalibrator(inputs=[[0, 1]]), "inputs and outputs together"),
        (lambda: TemperatureScaler(2.0).wrap("student"), "expected a keras.Model, got str"),
        (
            lambda: TemperatureScaler(2.0).wrap(keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])),
            r"a model that gives logits, got one that ends in softmax. Use taps.without_softmax\(model\)",
        ),
    ],
)
def test_bad_arguments_raise_a_clear_error(call, text):
    with pytest.raises(ValueError, match=text):
        call()
