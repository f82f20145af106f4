"""Split conformal: the exact coverage of its theorem, the three scores, and one model to save."""

import keras
import numpy as np
import pytest

from keras_distill import calibration, metrics


def test_coverage_over_many_samples_is_that_of_the_theorem():
    """With continuous scores the coverage is ceil((n + 1) c) / (n + 1) exactly, on average over calibration sets."""
    rng = np.random.default_rng(0)
    count, inside = 19, []
    for _ in range(4000):
        y = rng.standard_t(3, size=count + 1)
        conformal = calibration.SplitConformal(0.8).fit(np.zeros((count, 1)), y[:count])
        inside.append(abs(y[count]) <= conformal.margins[0])
    assert np.mean(inside) == pytest.approx(16 / 20, abs=0.02)


@pytest.mark.parametrize("kind", ["absolute", "gaussian", "quantiles"])
def test_intervals_have_the_stated_coverage_for_each_horizon(kind):
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (4000, 1))
    spread = np.exp(x) * np.array([[0.2, 1.0]])
    y = x + spread * rng.normal(size=(4000, 2))
    mean = np.repeat(x, 2, 1)
    outputs = {
        "absolute": mean,
        "gaussian": np.concatenate([mean, np.log(spread**2) - 3.0], 1),  # strongly overconfident
        "quantiles": np.stack([mean - 0.1 * spread, mean, mean + 0.1 * spread], -1),
    }[kind]
    conformal = calibration.SplitConformal(0.9, kind).fit(outputs[:2000], y[:2000])
    low, high = conformal.intervals(outputs[2000:])
    for horizon in range(2):
        found = metrics.interval_coverage(y[2000:, horizon], low[:, horizon], high[:, horizon])
        assert 0.88 <= found.coverage <= 0.92
    if kind == "gaussian":  # the margin undoes the overconfidence: the width follows the noise
        np.testing.assert_allclose(conformal.margins, 1.645 * np.exp(1.5), rtol=0.07)


def test_a_wrapped_model_holds_its_margins_when_it_is_saved(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    x, y = np.random.default_rng(0).normal(size=(50, 3)).astype("float32"), np.zeros((50, 2))
    conformal = calibration.SplitConformal().fit(model.predict(x, verbose=0), y)
    wrapped = conformal.wrap(model)
    wrapped.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    low, high = conformal.intervals(model.predict(x, verbose=0))
    found = again.predict(x, verbose=0)
    np.testing.assert_allclose(found["low"], low, rtol=1e-6)
    np.testing.assert_allclose(found["high"], high, rtol=1e-6)
    np.testing.assert_allclose(found["high"] - found["low"], np.tile(2 * conformal.margins, (50, 1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: calibration.SplitConformal(1.0), "expected coverage > 0 and <= 1, got 1.0."),
        (lambda: calibration.SplitConformal(kind="x"), "SplitConformal: expected kind to be one of 'absolute'"),
        (
            lambda: calibration.SplitConformal(0.9).fit(np.zeros((5, 1)), np.zeros(5)),
            "SplitConformal.fit: expected at least 9 examples for a coverage of 0.9, got 5.",
        ),
        (lambda: calibration.SplitConformal().fit(np.zeros((20, 2)), np.zeros(20)), "that fit each other"),
        (lambda: calibration.SplitConformal().fit(np.full((20, 1), np.nan), np.zeros(20)), "finite outputs"),
        (lambda: calibration.SplitConformal().layer(), "expected fitted margins, got none."),
    ],
)
def test_bad_input_raises_a_clear_error(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
