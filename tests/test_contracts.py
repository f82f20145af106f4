"""One battery over every loss on logits: what must hold for all of them, values and gradients.

A new loss starts as a line in ``CASES``; ``test_every_public_loss_is_here`` fails until it has one.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses
from tests.models import log_softmax, softmax

Y = np.array([1, 0, 3, 2, 2, 4])


@dataclasses.dataclass(frozen=True)
class Case:
    loss: Any
    zero_at_match: bool = True
    shift_invariant: bool = True
    per_example: bool = True
    oracle: Any = None  # float64, per example, of (teacher, student), at temperature 1


def xlogy(p, log_q):
    return np.where(p > 0, p * np.where(p > 0, log_q, 0.0), 0.0).sum(-1)


def kl(t, s):
    return xlogy(softmax(t), log_softmax(t) - log_softmax(s))


def log_sigmoid(z):
    return -np.logaddexp(0.0, -z)


def bernoulli(t, s):
    each = np.exp(log_sigmoid(t)) * (log_sigmoid(t) - log_sigmoid(s))
    return (each + np.exp(log_sigmoid(-t)) * (log_sigmoid(-t) - log_sigmoid(-s))).sum(-1)


def jsd(t, s):
    m = np.logaddexp(log_softmax(t), log_softmax(s)) - np.log(2.0)
    return 0.5 * xlogy(softmax(t), log_softmax(t) - m) + 0.5 * xlogy(softmax(s), log_softmax(s) - m)


def without(z, rows):
    return np.array([np.delete(row, label) for row, label in zip(z, rows, strict=True)])


def dkd(t, s):
    rows = np.arange(len(t))
    rest_t, rest_s = without(t, Y), without(s, Y)

    def gap(z, rest):
        top = rest.max(-1)
        return z[rows, Y] - (top + np.log(np.exp(rest - top[:, None]).sum(-1)))

    return bernoulli(gap(t, rest_t)[:, None], gap(s, rest_s)[:, None]) + 8.0 * kl(rest_t, rest_s)


def nkd(t, s):
    rows = np.arange(len(t))
    first = -softmax(t)[rows, Y] * log_softmax(s)[rows, Y]
    return first - 1.5 * xlogy(softmax(without(t, Y)), log_softmax(without(s, Y)))


def wsld(t, s):
    rows = np.arange(len(t))
    ratio = log_softmax(s)[rows, Y] / (-log_softmax(t)[rows, Y] + 1e-7)
    return -(1 - np.exp(ratio)) * xlogy(softmax(t), log_softmax(s))


CASES = {
    "SoftTargets": Case(losses.SoftTargets(), oracle=kl),
    "ReverseSoftTargets": Case(losses.ReverseSoftTargets(), oracle=lambda t, s: kl(s, t)),
    "JensenShannon": Case(losses.JensenShannon(), oracle=jsd),
    "TotalVariation": Case(losses.TotalVariation(), oracle=lambda t, s: 0.5 * np.abs(softmax(t) - softmax(s)).sum(-1)),
    "LogitMatching": Case(
        losses.LogitMatching(), shift_invariant=False, oracle=lambda t, s: 0.5 * np.square(t - s).sum(-1)
    ),
    "LogitMatching centred": Case(losses.LogitMatching(center=True)),
    "ProbabilityMatching": Case(
        losses.ProbabilityMatching(), oracle=lambda t, s: np.square(softmax(t) - softmax(s)).sum(-1)
    ),
    "DecoupledSoftTargets": Case(losses.DecoupledSoftTargets(), oracle=dkd),
    "NormalizedSoftTargets": Case(losses.NormalizedSoftTargets(), zero_at_match=False, oracle=nkd),
    "WeightedSoftLabels": Case(losses.WeightedSoftLabels(), zero_at_match=False, oracle=wsld),
    "ClassCorrelation": Case(losses.ClassCorrelation(), per_example=False),
    "StandardizedSoftTargets": Case(losses.StandardizedSoftTargets()),
    "BinarySoftTargets": Case(losses.BinarySoftTargets(), shift_invariant=False, oracle=bernoulli),
    "BinarySoftTargets mean": Case(
        losses.BinarySoftTargets("mean"), shift_invariant=False, oracle=lambda t, s: bernoulli(t, s) / t.shape[-1]
    ),
    "HardTargets": Case(
        losses.HardTargets(),
        zero_at_match=False,
        oracle=lambda t, s: -log_softmax(s)[np.arange(len(t)), t.argmax(-1)],
    ),
    "TopKSoftTargets": Case(losses.TopKSoftTargets(k=6), oracle=kl),
    "GaussianKL": Case(losses.GaussianKL(), shift_invariant=False),
    "RegressionMatching": Case(
        losses.RegressionMatching(), shift_invariant=False, oracle=lambda t, s: np.square(t - s).sum(-1)
    ),
}
NAMES = sorted(CASES)
PER_EXAMPLE = [name for name in NAMES if CASES[name].per_example]


def logits(scale=2.0, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(6, 6)) * scale).astype("float32"), (rng.normal(size=(6, 6)) * scale).astype("float32")


def values(name, t, s, temperature=1.0, mask=None, labels=Y):
    return CASES[name].loss.values(
        tf.convert_to_tensor(t), tf.convert_to_tensor(s), temperature=temperature, labels=labels, mask=mask
    )


def gradient(name, t, s, temperature=1.0):
    s = tf.convert_to_tensor(s)
    with tf.GradientTape() as tape:
        tape.watch(s)
        total = tf.reduce_sum(values(name, t, s, temperature))
    return tape.gradient(total, s).numpy()


def test_every_public_loss_is_here():
    public = {
        name
        for name in losses.__all__
        if isinstance(getattr(losses, name), type)
        and issubclass(getattr(losses, name), losses.LogitsLoss)
        and name != "LogitsLoss"
        and not getattr(losses, name).needs_members
    }
    assert public == {name.split()[0] for name in CASES}


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].zero_at_match])
def test_zero_at_the_match_and_positive_elsewhere(name):
    t, s = logits()
    np.testing.assert_allclose(values(name, t, t), 0.0, atol=3e-6)
    assert np.all(np.asarray(values(name, t, s)) > 1e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].shift_invariant])
def test_a_constant_added_to_the_logits_changes_nothing(name):
    t, s = logits()
    expected = values(name, t, s, 2.0)
    np.testing.assert_allclose(values(name, t + 3.0, s - 5.0, 2.0), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("scale", [2.0, 1e2, 1e4])
@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].oracle is not None])
def test_values_are_those_of_float64_at_any_size(name, scale):
    t, s = logits(scale)
    expected = CASES[name].oracle(t.astype("float64"), s.astype("float64"))
    np.testing.assert_allclose(values(name, t, s), expected, rtol=2e-6, atol=1e-7 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_agrees_with_finite_differences_of_the_oracle(name):
    t, s = logits(1.0)
    case = CASES[name]
    got = gradient(name, t, s)
    direction = np.random.default_rng(1).normal(size=s.shape)
    if name == "WeightedSoftLabels":  # its weight is held fixed in the gradient
        fixed = wsld(t.astype("float64"), s.astype("float64")) / -xlogy(softmax(t), log_softmax(s))
        total = lambda z: (-fixed * xlogy(softmax(t), log_softmax(z))).sum()  # noqa: E731
        step = 1e-5
    elif case.oracle is not None:
        total = lambda z: case.oracle(t.astype("float64"), z).sum()  # noqa: E731
        step = 1e-5
    else:
        total = lambda z: float(np.sum(values(name, t, z.astype("float32"))))  # noqa: E731
        step = 1e-2
    wide = s.astype("float64")
    slope = (total(wide + step * direction) - total(wide - step * direction)) / (2 * step)
    tolerance = 1e-4 if case.oracle is not None else 2e-2
    np.testing.assert_allclose((got * direction).sum(), slope, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "GaussianKL"])
def test_gradients_stay_finite_and_bounded_at_1e4(name):
    t, s = logits(1e4)
    got = gradient(name, t, s, 4.0)
    assert not np.isnan(got).any()
    # softmax losses: |d/dz| <= T per unit weight; squared errors: |s - t|.
    bound = 2.0 * np.abs(s - t).max() if "Matching" in name else 8.0 * 4.0 * 10
    assert np.abs(got).max() <= bound


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_reaches_the_teacher(name):
    t, s = (tf.constant(each) for each in logits())
    with tf.GradientTape() as tape:
        tape.watch(t)
        total = tf.reduce_sum(values(name, t, s))
    assert tape.gradient(total, t) is None or not np.any(tape.gradient(total, t))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_the_batch_does_not_matter(name):
    t, s = logits()
    order = np.array([3, 1, 5, 0, 2, 4])
    expected = np.asarray(values(name, t, s))
    got = values(name, t[order], s[order], labels=Y[order])
    np.testing.assert_allclose(got, expected[order] if CASES[name].per_example else expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in PER_EXAMPLE if not CASES[n].loss.needs_labels])
def test_weight_zero_removes_and_weight_two_is_two_copies(name):
    t, s = logits()
    loss = CASES[name].loss
    weighted = loss(t, s, sample_weight=np.array([2.0, 0, 1, 1, 1, 1])) * 6
    index = [0, 0, 2, 3, 4, 5]
    np.testing.assert_allclose(weighted, loss(t[index], s[index]) * 6, rtol=1e-5)


# A part or a weight at temperature 1; regressions, which have no temperature.
OTHER_RULE = (
    "NormalizedSoftTargets",
    "WeightedSoftLabels",
    "GaussianKL",
    "RegressionMatching",
    "StandardizedSoftTargets",  # standardising undoes the division
)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHER_RULE])
def test_temperature_divides_logits_and_multiplies_by_its_square(name):
    t, s = logits()
    scaled = 9.0 * np.asarray(values(name, t / 3.0, s / 3.0))
    np.testing.assert_allclose(values(name, t, s, 3.0), scaled, rtol=1e-5, atol=1e-5)
    if CASES[name].per_example:
        np.testing.assert_allclose(values(name, t, s, np.full(6, 3.0, "float32")), scaled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_masked_positions_never_count_and_an_empty_mask_gives_zero(name):
    t, s = logits()
    t, s = (np.stack([z, z[::-1]]) for z in (t, s))  # (2, 6, 6)
    labels = np.stack([Y, Y[::-1]])
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]], bool)
    dirty = s.copy()
    dirty[~mask] = np.nan
    got = np.mean(values(name, t, dirty, mask=mask, labels=labels))
    kept = values(name, t[mask], s[mask], labels=labels[mask])
    np.testing.assert_allclose(got, np.mean(kept), rtol=1e-5)
    empty = values(name, t, dirty, mask=np.zeros_like(mask), labels=labels)
    np.testing.assert_array_equal(np.asarray(empty), np.zeros_like(empty))


@pytest.mark.parametrize("mode", ["graph", "xla", "float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_eager_graph_xla_and_half_precision_agree(name, mode):
    t, s = logits()
    if mode in ("graph", "xla"):

        def run(a, b):
            with tf.GradientTape() as tape:
                tape.watch(b)
                value = tf.reduce_sum(values(name, a, b, 2.0))
            return value, tape.gradient(value, b)

        value, slope = tf.function(run, jit_compile=mode == "xla")(tf.constant(t), tf.constant(s))
        np.testing.assert_allclose(value, np.sum(values(name, t, s, 2.0)), rtol=1e-5)
        np.testing.assert_allclose(slope, gradient(name, t, s, 2.0), rtol=1e-4, atol=1e-5)
        return
    t, s = (tf.cast(z, mode) for z in (t, s))
    exact = values(name, tf.cast(t, tf.float32), tf.cast(s, tf.float32))
    got = values(name, t, s)
    assert got.dtype == tf.float32
    np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize("name", NAMES)
def test_configuration_round_trip(name):
    loss = CASES[name].loss
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()
    t, s = (tf.constant(z) for z in logits())
    np.testing.assert_array_equal(again.values(t, s, labels=Y), loss.values(t, s, labels=Y))
