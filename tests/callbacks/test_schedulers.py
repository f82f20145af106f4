"""Schedulers of temperature and weights: the next epoch trains with the values they set, without retracing."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation
from keras_distill.callbacks import TemperatureScheduler, WeightScheduler
from keras_distill.losses import SoftTargets
from tests.models import batch, copy_of, kd, log_softmax, mlp

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = batch(12)


class Counted(SoftTargets):
    """Soft targets that count how often they are traced."""

    traces = 0

    def values(self, *args, **kwargs):
        Counted.traces += 1
        return super().values(*args, **kwargs)


def distiller(terms=None, weights=None, share=0.25, rate=0.0, loss=CROSS_ENTROPY, eager=True):
    made = Distiller(
        mlp(4, seed=1, name="teacher"),
        mlp(4, seed=9, name="student"),
        terms or [LogitsDistillation(2.0)],
        weights,
        student_loss_weight=share,
    )
    made.compile(keras.optimizers.SGD(rate), loss, run_eagerly=eager, jit_compile=False)
    return made


def fit(made, *callbacks, epochs=3, **kwargs):
    return made.fit(
        X, Y, epochs=epochs, batch_size=6, shuffle=False, verbose=0, callbacks=list(callbacks), **kwargs
    ).history


def logits(made):
    return made.teacher.predict(X, verbose=0), made.student.predict(X, verbose=0)


def test_each_epoch_trains_at_its_own_temperature_and_logs_it():
    made = distiller()
    history = fit(made, TemperatureScheduler(lambda epoch: [1.0, 4.0, 2.5][epoch]))
    assert history["temperature"] == [1.0, 4.0, 2.5]
    expected = [kd(*logits(made), temperature).mean() for temperature in (1.0, 4.0, 2.5)]
    np.testing.assert_allclose(history["distillation_loss"], expected, rtol=1e-5)


def test_a_constant_schedule_equals_a_constant():
    scheduled, constant = distiller([LogitsDistillation(9.0)], rate=0.5), distiller([LogitsDistillation(3.0)], rate=0.5)
    fit(scheduled, TemperatureScheduler(lambda epoch: 3))
    fit(constant)
    for one, two in zip(scheduled.student.get_weights(), constant.student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_changes_do_not_retrace():
    made = distiller([LogitsDistillation(2.0, loss=Counted())], eager=False)
    fit(made)
    before = Counted.traces
    temperature = TemperatureScheduler(lambda epoch: 1.0 + epoch)
    weight = WeightScheduler(lambda epoch: 0.5 * epoch)
    share = WeightScheduler(lambda epoch: 0.1 * epoch, weight="student_loss_weight")
    history = fit(made, temperature, weight, share)
    assert Counted.traces == before
    supervised = -np.take_along_axis(log_softmax(logits(made)[1]), Y[:, None], -1).mean()
    expected = [0.1 * e * supervised + (1 - 0.1 * e) * 0.5 * e * kd(*logits(made), 1.0 + e).mean() for e in range(3)]
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-5)


def test_a_second_argument_without_default_is_the_current_value():
    assert fit(distiller(), TemperatureScheduler(lambda epoch, now: now * 2))["temperature"] == [4.0, 8.0, 16.0]
    assert fit(distiller(), TemperatureScheduler(lambda epoch, base=3.0: base + epoch))["temperature"] == [3, 4, 5]
    curve = keras.optimizers.schedules.PolynomialDecay(5.0, 2, end_learning_rate=1.0)
    assert fit(distiller(), TemperatureScheduler(curve))["temperature"] == [5.0, 3.0, 1.0]


def test_a_term_is_chosen_by_index_name_or_itself():
    terms = [LogitsDistillation(2.0, name="first"), LogitsDistillation(3.0, name="second")]
    for term in (1, "second", terms[1]):
        made = distiller(terms)
        history = fit(made, TemperatureScheduler(lambda epoch: 7.0, term=term), epochs=1)
        assert history["temperature_of_term_1"] == [7.0]
        assert "temperature_of_term_0" not in history
        assert [each.temperature for each in terms] == [2.0, 7.0]
        terms[1].temperature = 3.0
    history = fit(distiller(terms), TemperatureScheduler(lambda epoch, now: now + 1), epochs=1)
    assert history["temperature_of_term_0"] == [3.0]
    assert history["temperature_of_term_1"] == [4.0]


def test_the_only_temperature_is_logged_as_temperature():
    terms = [FeatureDistillation("mse"), LogitsDistillation(2.0)]
    assert fit(distiller(terms), TemperatureScheduler(lambda epoch: 5.0), epochs=1)["temperature"] == [5.0]


def test_it_ends_a_schedule_of_steps():
    curve = keras.optimizers.schedules.PolynomialDecay(8.0, 100)
    made = distiller([LogitsDistillation(curve)])
    history = fit(made, TemperatureScheduler(lambda epoch: 2.0))
    np.testing.assert_allclose(history["distillation_loss"], kd(*logits(made), 2.0).mean(), rtol=1e-5)
    assert history["temperature"] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "got 0.0"), (-1, "got -1.0"), (float("nan"), "got nan"), (None, "got None"), (np.ones(2), "got array")],
)
def test_a_schedule_that_leaves_the_bounds_is_an_error_before_the_epoch_trains(value, shown):
    made = distiller(rate=0.5)
    reference = distiller(rate=0.5)
    fit(reference, epochs=2)
    with pytest.raises(ValueError, match=rf"TemperatureScheduler: expected schedule\(2\) > 0, {shown}"):
        fit(made, TemperatureScheduler(lambda epoch: 2.0 if epoch < 2 else value))
    for one, two in zip(made.student.get_weights(), reference.student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert made.distillation_losses[0].temperature == 2.0


def test_weights_follow_the_epoch():
    terms = [LogitsDistillation(1.0), LogitsDistillation(4.0)]
    made = distiller(terms, [1.0, 2.0])
    history = fit(made, WeightScheduler(lambda epoch: 4.0 - epoch, term=0))
    assert history["distillation_loss_weight_0"] == [4.0, 3.0, 2.0]
    assert "distillation_loss_weight_1" not in history
    one, four = (kd(*logits(made), temperature).mean() for temperature in (1.0, 4.0))
    np.testing.assert_allclose(history["distillation_loss"], [w * one + 2 * four for w in (4, 3, 2)], rtol=1e-5)
    history = fit(made, WeightScheduler(lambda epoch, now: now / 2), epochs=1)
    assert (history["distillation_loss_weight_0"], history["distillation_loss_weight_1"]) == ([1.0], [1.0])


def test_weights_out_of_bounds():
    with pytest.raises(ValueError, match=r"WeightScheduler: expected schedule\(1\) >= 0, got -1"):
        fit(distiller(), WeightScheduler(lambda epoch: -epoch))
    with pytest.raises(ValueError, match=r"WeightScheduler: expected schedule\(0\) >= 0 and <= 1, got 1.5"):
        fit(distiller(), WeightScheduler(lambda epoch: 1.5, weight="student_loss_weight"))
    unlabelled = distiller(share=0.0, loss=None)
    share = WeightScheduler(lambda epoch: 0.5 * epoch, weight="student_loss_weight")
    with pytest.raises(ValueError, match=r"a loss while schedule\(1\) is 0.5, got None. Give compile"):
        unlabelled.fit(X, epochs=2, verbose=0, callbacks=[share])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TemperatureScheduler(3.0), "schedule to be a function of the epoch, got 3.0"),
        (lambda: TemperatureScheduler(lambda: 3.0), "schedule to be a function of the epoch, or .* got 0 arguments"),
        (lambda: TemperatureScheduler(lambda a, b, c: 3.0), "schedule to be a function .* got 3 arguments"),
        (lambda: WeightScheduler(lambda e: 1.0, weight="loss"), "weight to be one of 'distillation_loss_weight'"),
        (lambda: WeightScheduler(lambda e: 1.0, term=0, weight="student_loss_weight"), "term only with"),
        (lambda: fit(distiller(), TemperatureScheduler(lambda e: 1.0, term=1)), "an index from 0 to 0, got 1"),
        (lambda: fit(distiller(), TemperatureScheduler(lambda e: 1.0, term="logits")), "got 'logits'. Nearest: 'log"),
        (lambda: fit(distiller(), TemperatureScheduler(lambda e: 1.0, term=LogitsDistillation())), "index, its name"),
        (
            lambda: fit(distiller([FeatureDistillation("mse")]), TemperatureScheduler(lambda e: 1.0)),
            "a term with a temperature to control, got none",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=f"Scheduler: expected .*{message}"):
        make()


def test_a_plain_model_is_refused():
    model = mlp(4)
    model.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"expected to be passed to the fit of .* got Sequential"):
        model.fit(X, Y, verbose=0, callbacks=[TemperatureScheduler(lambda epoch: 1.0)])


class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_with_the_same_numbers(tmp_path):
    def steering():
        halve = TemperatureScheduler(lambda epoch, now: now * 0.75 if epoch else 8.0)
        return [halve, WeightScheduler(lambda epoch, now: now + epoch)]

    def make():
        made = distiller(rate=0.5)
        made.student.set_weights(start.get_weights())
        return made

    start = copy_of(mlp(4, seed=9))
    whole, resumed = make(), make()
    expected = fit(whole, *steering(), epochs=4)
    with pytest.raises(KeyboardInterrupt):
        fit(make(), keras.callbacks.BackupAndRestore(tmp_path), *steering(), Kill(), epochs=4)
    got = fit(resumed, keras.callbacks.BackupAndRestore(tmp_path), *steering(), epochs=4)
    for name in ("temperature", "distillation_loss_weight", "loss"):
        np.testing.assert_allclose(got[name], expected[name][2:], rtol=1e-6)
    for one, two in zip(whole.student.get_weights(), resumed.student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
