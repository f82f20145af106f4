"""Schedules are exact functions of the step: in Python, in a graph, after saving, and inside a distiller."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import schedules

DECAY = keras.optimizers.schedules.PolynomialDecay(4.0, 10, end_learning_rate=1.0)
COSINE = keras.optimizers.schedules.CosineDecay(3.0, 8)

# A schedule and its expected value at each step, in float64.
CASES = [
    (schedules.Linear(8.0, 2.0, 6), lambda n: 8 - min(n, 6)),
    (schedules.Linear(0.1, 0.7, 7), lambda n: 0.1 + 0.6 * min(n, 7) / 7),
    (schedules.Linear(3.0, 3.0, 1), lambda n: 3.0),
    (schedules.WarmUp(0.8, 5), lambda n: 0.8 * min(n, 5) / 5),
    (schedules.WarmUp(2.0, 4, start=3.0), lambda n: 3 - min(n, 4) / 4),
    (schedules.WarmUp(DECAY, 4), lambda n: (4 - 0.3 * min(n, 10)) * min(n, 4) / 4),
    (schedules.Join([5.0], []), lambda n: 5.0),
    (schedules.Join([5.0, 2.0, 1.0], [3, 7]), lambda n: 5.0 if n < 3 else 2.0 if n < 7 else 1.0),
    (schedules.Join([schedules.Linear(8, 4, 4), DECAY], [4]), lambda n: 8 - n if n < 4 else 4 - 0.3 * min(n - 4, 10)),
    (
        schedules.WarmUp(schedules.Join([1.0, COSINE], [5]), 2),
        lambda n: min(n, 2) / 2 * (1.0 if n < 5 else 1.5 * (1 + np.cos(np.pi * min(n - 5, 8) / 8))),
    ),
    (schedules.annealing(4, 8), lambda n: max(4 - n // 2, 1)),
    (schedules.annealing(2, 5), lambda n: 2.0 if n < 3 else 1.0),
]
IDS = [f"{i}-{type(case[0]).__name__}" for i, case in enumerate(CASES)]


@pytest.mark.parametrize(("schedule", "oracle"), CASES, ids=IDS)
def test_value_at_every_step_in_python_graph_and_xla(schedule, oracle):
    expected = [oracle(n) for n in range(20)]
    plain = [float(np.asarray(schedule(n))) for n in range(20)]
    np.testing.assert_allclose(plain, expected, rtol=1e-6, atol=1e-6)
    for jit in (False, True):
        traced = tf.function(lambda step: tf.cast(schedule(step), tf.float32), autograph=False, jit_compile=jit)
        values = [float(traced(tf.constant(n, tf.int64))) for n in range(20)]
        np.testing.assert_allclose(values, plain, rtol=1e-6, atol=1e-6)
        assert traced.experimental_get_tracing_count() == 1


@pytest.mark.parametrize(("schedule", "oracle"), CASES, ids=IDS)
def test_a_saved_schedule_has_the_same_values_after_loading(schedule, oracle):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    assert [float(np.asarray(again(n))) for n in range(20)] == [float(np.asarray(schedule(n))) for n in range(20)]


@pytest.mark.parametrize(("schedule", "oracle"), CASES, ids=IDS)
def test_bounds_hold_at_every_step_and_are_reached(schedule, oracle):
    known = schedules.bounds(schedule)
    values = [oracle(n) for n in range(40)]
    least, greatest = known
    assert least <= min(values) + 1e-9
    assert greatest >= max(values) - 1e-9
    if isinstance(schedule, (schedules.Linear, keras.optimizers.schedules.PiecewiseConstantDecay)):
        assert known == pytest.approx((min(values), max(values)))


def test_bounds_show_a_temperature_that_reaches_zero():
    for schedule in (
        schedules.Linear(4.0, 0.0, 100),
        schedules.WarmUp(4.0, 10),
        schedules.Join([3.0, schedules.Linear(3.0, -1.0, 5)], [1000]),
        keras.optimizers.schedules.PolynomialDecay(4.0, 10, end_learning_rate=0.0),
        keras.optimizers.schedules.PiecewiseConstantDecay([3], [1.0, 0.0]),
        keras.optimizers.schedules.CosineDecay(4.0, 10),
        keras.optimizers.schedules.CosineDecayRestarts(4.0, 10),
    ):
        assert schedules.bounds(schedule)[0] <= 0.0
    assert schedules.bounds(2.5) == (2.5, 2.5)
    warm = keras.optimizers.schedules.CosineDecay(2.0, 10, alpha=0.5, warmup_target=6.0, warmup_steps=5)
    values = [float(warm(step)) for step in range(20)]
    assert schedules.bounds(warm) == pytest.approx((min(values), max(values))) == (2.0, 6.0)
    assert schedules.bounds(keras.optimizers.schedules.ExponentialDecay(4.0, 10, 0.5)) is None


def test_annealing_divides_any_number_of_steps_among_the_temperatures():
    for most, steps in ((7, 7), (7, 100), (10, 33), (3, 4)):
        schedule = schedules.annealing(most, steps)
        values = [float(schedule(n)) for n in range(steps)]
        assert values == sorted(values, reverse=True)
        lengths = [values.count(t) for t in range(1, most + 1)]
        assert sum(lengths) == steps
        assert max(lengths) - min(lengths) <= 1
        assert float(schedule(steps + 50)) == 1.0


def test_a_linear_schedule_reaches_its_ends_exactly():
    schedule = schedules.Linear(1 / 3, 2 / 3, 3)
    assert float(schedule(0)) == np.float32(1 / 3)
    assert float(schedule(3)) == float(schedule(10**7)) == np.float32(2 / 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.Linear(float("nan"), 1.0, 5), "Linear: expected start to be a finite number, got nan"),
        (lambda: schedules.Linear(1.0, "2", 5), "Linear: expected end to be a finite number, got 2"),
        (lambda: schedules.Linear(1.0, 2.0, 0), "Linear: expected num_steps to be an integer >= 1, got 0"),
        (lambda: schedules.Linear(1.0, 2.0, 2.5), "Linear: expected num_steps to be an integer >= 1, got 2.5"),
        (lambda: schedules.WarmUp(None, 5), "WarmUp: expected target to be a finite number, got None"),
        (lambda: schedules.WarmUp(1.0, -1), "WarmUp: expected num_steps to be an integer >= 1, got -1"),
        (lambda: schedules.Join([], []), "Join: expected a list of at least one schedule or number"),
        (lambda: schedules.Join([1.0, 2.0], []), "Join: expected 1 boundaries for 2 schedules"),
        (lambda: schedules.Join([1.0, 2.0, 3.0], [5, 5]), "Join: expected increasing boundaries"),
        (lambda: schedules.Join([1.0, 2.0], [0]), r"Join: expected boundaries\[0\] to be an integer >= 1, got 0"),
        (lambda: schedules.annealing(1, 5), "annealing: expected max_temperature to be an integer >= 2, got 1"),
        (lambda: schedules.annealing(7, 6), "annealing: expected num_steps to be an integer >= 7, got 6"),
        (lambda: schedules.bounds("fast"), "bounds: expected value to be a finite number, got fast"),
    ],
)
def test_bad_arguments_raise_a_clear_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
