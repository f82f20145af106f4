"""Adaptive conformal intervals: the theorem's bound for any series, a plain Python reference, no look-ahead."""

import math

import numpy as np
import pytest

from keras_distill import calibration, metrics

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("rate", [0.005, 0.05])
@pytest.mark.parametrize("series", ["rougher", "jumps", "never inside"])
def test_the_share_of_misses_is_within_the_theorem_s_bound(series, rate):
    steps = 600
    spread = {"rougher": np.linspace(1, 20, steps), "jumps": np.where(np.arange(steps) // 100 % 2, 9.0, 1.0)}
    y = RNG.normal(size=steps) * spread.get(series, 1.0)
    if series == "never inside":  # each label is farther away than all previous ones
        y = 10.0 * 1.02 ** np.arange(steps)
    adaptive = calibration.AdaptiveConformal(0.9, rate=rate, window=50).fit(np.zeros(50), RNG.normal(size=50))
    low, high = adaptive.follow(np.zeros(steps), y)
    missed = ((y < low[:, 0]) | (y > high[:, 0])).mean()
    assert abs(missed - 0.1) <= (0.9 + rate) / (rate * steps) + 1e-12
    if series == "rougher":
        split = calibration.SplitConformal(0.9).fit(np.zeros(50), RNG.normal(size=50))
        assert metrics.interval_coverage(y, *(each[:, 0] for each in split.intervals(np.zeros(steps)))).coverage < 0.4


def test_late_labels_equal_a_plain_python_implementation():
    kind, rate, window, delays = "quantiles", 0.03, 40, (0, 2)
    middle = RNG.normal(size=(150, 2))
    outputs = np.stack([middle - 0.5, middle + 0.7], -1)
    y = middle + RNG.normal(size=(150, 2)) * np.linspace(1, 3, 150)[:, None]
    adaptive = calibration.AdaptiveConformal(0.8, kind, rate=rate, window=window).fit(outputs[:60], y[:60])
    first = calibration.SplitConformal(0.8, kind).fit(outputs[20:60], y[20:60])
    np.testing.assert_allclose(adaptive.margins, first.margins)
    np.testing.assert_allclose(adaptive.intervals(outputs[60:70]), first.intervals(outputs[60:70]), rtol=1e-6)
    low, high = adaptive.follow(outputs[60:], y[60:], delays)
    for output in range(2):
        known = [max(lo - v, v - hi) for (lo, hi), v in zip(outputs[:60, output], y[:60, output], strict=True)][
            -window:
        ]
        level, answers = 0.2, []
        for step in range(90):
            place = math.ceil((len(known) + 1) * (1 - level) - 1e-9)
            margin = math.inf if place > len(known) else sorted(known)[place - 1]
            lo, hi = outputs[60 + step, output]
            answers.append((lo - margin, hi + margin))
            if step >= delays[output]:
                told = step - delays[output]
                value = y[60 + told, output]
                level += rate * (0.2 - (not answers[told][0] <= value <= answers[told][1]))
                lo, hi = outputs[60 + told, output]
                known = [*known, max(lo - value, value - hi)][-window:]
        np.testing.assert_allclose(np.stack([low[:, output], high[:, output]], 1), answers, atol=1e-9)
        assert adaptive.levels[output] == pytest.approx(level)


def test_a_label_has_no_effect_before_it_arrives_and_gaussian_margins_scale_with_the_deviation():
    outputs = np.concatenate([np.zeros((80, 1)), RNG.normal(size=(80, 1))], 1)
    y = RNG.normal(size=80)
    runs = []
    for changed in (0.0, 100.0):
        y[50] += changed
        adaptive = calibration.AdaptiveConformal(0.9, "gaussian", window=30).fit(outputs[:30], y[:30])
        runs.append(np.concatenate(adaptive.follow(outputs[30:], y[30:], 3), 1))
    np.testing.assert_array_equal(runs[0][:24], runs[1][:24])  # label 20 arrives after interval 23
    assert (runs[0][24:] != runs[1][24:]).any()
    half = (runs[0][:4, 1] - runs[0][:4, 0]) / 2  # the margin is the initial one until a label arrives
    np.testing.assert_allclose(half / np.exp(0.5 * outputs[30:34, 1]), half[0] / np.exp(0.5 * outputs[30, 1]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: calibration.AdaptiveConformal(rate=0.0), "AdaptiveConformal: expected rate > 0, got 0"),
        (lambda a: calibration.AdaptiveConformal().margins, "expected initial scores, got none. Call fit"),
        (
            lambda a: calibration.AdaptiveConformal().fit(np.zeros(5), np.zeros(5)),
            "expected at least ten examples, got 5",
        ),
        (lambda a: a.follow(np.zeros((4, 2)), np.zeros((4, 2))), "expected 1 outputs, as in fit, got 2"),
        (lambda a: a.follow(np.zeros(4), np.zeros(4), -1), "expected delays >= 0, one number or 1, got -1"),
        (lambda a: a.follow(np.zeros(4), np.full(4, np.nan)), "expected finite outputs and labels, got NaN"),
    ],
)
def test_inconsistent_arguments_raise_a_clear_error(call, words):
    fitted = calibration.AdaptiveConformal().fit(np.zeros(20), np.arange(20.0))
    with pytest.raises(ValueError, match=words):
        call(fitted)
