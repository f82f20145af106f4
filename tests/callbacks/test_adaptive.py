"""Adaptive callbacks: hysteresis as in Keras, measurements against NumPy, and state that survives a kill."""

import keras
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation
from keras_distill.callbacks import AdaptiveTemperature, AdaptiveWeights, EarlyStoppedDistillation
from tests.models import batch, copy_of, kd, log_softmax, mlp, softmax

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = batch(12)
HELD_OUT_X, HELD_OUT_Y = batch(10, seed=5)


def distiller(terms=None, weights=None, share=0.25, rate=0.0, loss=CROSS_ENTROPY, eager=True):
    made = Distiller(
        mlp(4, seed=1, name="teacher"),
        mlp(4, seed=9, name="student"),
        terms or [LogitsDistillation(8.0)],
        weights,
        student_loss_weight=share,
    )
    made.compile(keras.optimizers.SGD(rate), loss, run_eagerly=eager, jit_compile=False)
    return made


def fit(made, *callbacks, epochs=3, **kwargs):
    given = {"batch_size": 6, "shuffle": False, "verbose": 0, "callbacks": list(callbacks), **kwargs}
    return made.fit(X, Y, epochs=epochs, **given).history


def drive(callback, made, name, values):
    """Run a callback over epochs with these values in the logs; return the temperature of each epoch."""
    callback.set_model(made)
    seen = []
    for epoch, value in enumerate(values):
        callback.on_epoch_begin(epoch)
        logs = {name: value}
        callback.on_epoch_end(epoch, logs)
        seen.append(logs)
    return seen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(("patience", "min_delta", "cooldown"), [(1, 0.0, 0), (2, 0.1, 0), (3, 0.0, 2), (1, 0.05, 3)])
def test_a_plateau_is_defined_as_in_keras(seed, mode, patience, min_delta, cooldown):
    """ReduceLROnPlateau with the same arguments cuts the learning rate at the same epochs."""
    rng = np.random.default_rng(seed)
    values = (np.linspace(1, 0.5, 25) + rng.normal(0, 0.15, 25)).tolist()
    values = values if mode == "min" else [-value for value in values]
    same = {"mode": mode, "factor": 0.8, "patience": patience, "min_delta": min_delta, "cooldown": cooldown}
    made = distiller(rate=8.0)
    keras_own = keras.callbacks.ReduceLROnPlateau("val_x", min_lr=1.0, **same)
    keras_own.set_model(made)
    keras_own.on_train_begin()
    ours = AdaptiveTemperature("val_x", **same)
    ours.set_model(made)
    moved = 0
    for epoch, value in enumerate(values):
        ours.on_epoch_begin(epoch)
        ours.on_epoch_end(epoch, {"val_x": value})
        keras_own.on_epoch_end(epoch, {"val_x": value})
        assert made.distillation_losses[0].temperature == pytest.approx(float(made.optimizer.learning_rate), rel=1e-5)
        moved = max(moved, 8.0 - made.distillation_losses[0].temperature)
    assert moved > 0 or (patience, cooldown) == (3, 2)


@pytest.mark.parametrize("monotone", [True, False])
def test_progress_moves_the_temperature_by_the_formula(monotone):
    values = [0.2, 0.9, 0.9, 0.1, 0.1, 0.1, 2.0]
    made = distiller()
    callback = AdaptiveTemperature(
        "val_agreement", "progress", smoothing=0.5, patience=1, monotone=monotone, min_temperature=2, max_temperature=6
    )
    seen = [logs["temperature"] for logs in drive(callback, made, "val_agreement", values)]
    smooth, now, expected = 0.0, 6.0, []
    for value in values:
        expected.append(now)
        smooth = 0.5 * smooth + 0.5 * min(max(value, 0), 1)
        wished = 2 + 4 * (1 - smooth)
        now = min(now, wished) if monotone else wished
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert (np.diff(seen).max() > 0) is not monotone


def test_progress_of_a_loss_is_measured_against_its_first_value():
    callback = AdaptiveTemperature("val_loss", "progress", smoothing=0.0, patience=1, max_temperature=5.0)
    seen = [logs["temperature"] for logs in drive(callback, distiller(), "val_loss", [2.0, 1.5, 0.5, 3.0])]
    np.testing.assert_allclose(seen, [5.0, 5.0, 4.0, 2.0], rtol=1e-6)  # progress 0, 1/4, 3/4


def test_progress_waits_for_patience_and_for_enough():
    callback = AdaptiveTemperature("acc", "progress", smoothing=0.0, patience=2, min_delta=0.2, max_temperature=11.0)
    values = [0.1, 0.1, 0.3, 0.3, 0.35, 0.35, 0.6, 0.3, 0.6, 0.6, 0.0]
    seen = [logs["temperature"] for logs in drive(callback, distiller(), "acc", values)]
    np.testing.assert_allclose(seen, [11, 11, 11, 11, 8, 8, 8, 8, 8, 8, 5], rtol=1e-6)


def test_the_gap_equals_the_terms_loss_at_temperature_one():
    """With a ragged last batch, at any temperature; the temperature is restored afterwards."""
    terms = [LogitsDistillation(8.0), FeatureDistillation("mse"), LogitsDistillation(4.0)]
    made = distiller(terms, rate=0.1)
    callback = AdaptiveTemperature(validation_data=(HELD_OUT_X, HELD_OUT_Y), batch_size=4, patience=9, term=0)
    history = fit(made, callback)
    teacher, student = (model(HELD_OUT_X).numpy() for model in (made.teacher, made.student))
    assert history["gap"][-1] == pytest.approx(kd(teacher, student, 1.0).mean(), rel=1e-5)
    assert len(set(history["gap"])) == 3
    assert [terms[0].temperature, terms[2].temperature] == [8.0, 4.0]
    both = AdaptiveTemperature(validation_data=(HELD_OUT_X,), batch_size=4, patience=9)
    history = fit(made, both, epochs=1)
    teacher, student = (model(HELD_OUT_X).numpy() for model in (made.teacher, made.student))
    assert history["gap"][-1] == pytest.approx(2 * kd(teacher, student, 1.0).mean(), rel=1e-5)


@pytest.mark.parametrize("eager", [True, False])
def test_training_follows_the_gap(eager):
    made = distiller(rate=0.5, share=0.0, eager=eager)
    data = (HELD_OUT_X, HELD_OUT_Y)
    callback = AdaptiveTemperature("gap", "progress", validation_data=data, smoothing=0.5, patience=1)
    first = kd(*(model(HELD_OUT_X).numpy() for model in (made.teacher, made.student)), 1.0).mean()
    history = fit(made, callback, epochs=4)
    smooth, expected = 0.0, [8.0]
    for gap in history["gap"]:
        smooth = 0.5 * smooth + 0.5 * min(max(1 - gap / first, 0), 1)
        expected.append(1 + 7 * (1 - smooth))
    np.testing.assert_allclose(history["temperature"], expected[:4], rtol=1e-4)
    assert history["temperature"][-1] < 8.0
    assert made.distillation_losses[0].temperature == pytest.approx(expected[4], rel=1e-4)


def test_distillation_stops_when_early_stopping_of_keras_would():
    rng = np.random.default_rng(3)
    for patience, min_delta in [(1, 0.0), (2, 0.05), (4, 0.0)]:
        values = (1 / np.arange(1, 20) + rng.normal(0, 0.05, 19)).tolist()
        made = distiller(weights=[3.0])
        keras_own = keras.callbacks.EarlyStopping("val_loss", patience=patience, min_delta=min_delta)
        keras_own.set_model(made)
        keras_own.on_train_begin()
        for epoch, value in enumerate(values):
            keras_own.on_epoch_end(epoch, {"val_loss": value})
            if keras_own.stopped_epoch:
                break
        ours = EarlyStoppedDistillation("val_loss", patience=patience, min_delta=min_delta)
        weights = [logs["distillation_loss_weight"] for logs in drive(ours, made, "val_loss", values)]
        stopped = keras_own.stopped_epoch + 1
        assert weights == [3.0] * stopped + [0.0] * (len(values) - stopped)


def test_after_distillation_stops_training_is_plain_training():
    made = distiller(rate=0.3, share=0.1)
    fit(made, EarlyStoppedDistillation(None, max_epochs=1))
    alone = mlp(4, seed=9)
    one = distiller(rate=0.3, share=0.1)
    fit(one, epochs=1)
    alone.set_weights(one.student.get_weights())
    alone.compile(keras.optimizers.SGD(0.3), CROSS_ENTROPY, run_eagerly=True)
    alone.fit(X, Y, epochs=2, batch_size=6, shuffle=False, verbose=0)
    for ours, plain in zip(made.student.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-7)


def test_min_epochs_fading_and_one_term_of_two():
    terms = [LogitsDistillation(2.0), LogitsDistillation(4.0)]
    made = distiller(terms, [1.0, 2.0], share=0.5)
    callback = EarlyStoppedDistillation("val_loss", patience=1, min_epochs=3, fade_epochs=2, term=1)
    seen = drive(callback, made, "val_loss", [1.0] * 7)
    assert [logs["distillation_loss_weight_1"] for logs in seen] == [2.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0]
    assert made.distillation_loss_weights == [1.0, 0.0]
    assert made.student_loss_weight == 0.5
    keeps = EarlyStoppedDistillation(None, max_epochs=2, final_student_loss_weight=None)
    drive(keeps, made, "val_loss", [1.0] * 3)
    assert (made.distillation_loss_weights, made.student_loss_weight) == ([0.0, 0.0], 0.5)


def gradient_norms(made):
    """Gradients of the supervised loss and two terms at temperatures 1 and 4, for a student of one dense layer."""
    teacher, student = (model(HELD_OUT_X).numpy().astype("float64") for model in (made.teacher, made.student))
    norms = []
    for to_logits in (
        softmax(student) - np.eye(4)[HELD_OUT_Y],
        softmax(student) - softmax(teacher),
        4.0 * (softmax(student / 4) - softmax(teacher / 4)),
    ):
        kernel, bias = HELD_OUT_X.T @ to_logits / len(HELD_OUT_X), to_logits.mean(0)
        norms.append(np.sqrt((kernel**2).sum() + (bias**2).sum()))
    return norms


def losses(made):
    teacher, student = (model(HELD_OUT_X).numpy() for model in (made.teacher, made.student))
    supervised = -np.take_along_axis(log_softmax(student), HELD_OUT_Y[:, None], -1).mean()
    return [supervised, kd(teacher, student, 1.0).mean(), kd(teacher, student, 4.0).mean()]


def two_terms():
    return [LogitsDistillation(1.0), LogitsDistillation(4.0)]


@pytest.mark.parametrize("eager", [True, False])
def test_weights_equalise_gradient_norms(eager):
    made = distiller(two_terms(), [1.0, 2.0], eager=eager)
    fit(made, AdaptiveWeights((HELD_OUT_X, HELD_OUT_Y), smoothing=0.0, min_delta=0.0, steps=None), epochs=1)
    _, one, four = gradient_norms(made)
    common = (one + 2 * four) / 3
    np.testing.assert_allclose(made.distillation_loss_weights, [common / one, 2 * common / four], rtol=1e-5)


def test_weights_equalise_gradient_norms_with_that_of_the_labels():
    made = distiller([LogitsDistillation(4.0)], [2.0])
    data = tf.data.Dataset.from_tensor_slices((HELD_OUT_X, HELD_OUT_Y)).batch(16)
    fit(made, AdaptiveWeights(data, relative_to="student_loss", smoothing=0.0, min_delta=0.0), epochs=1)
    supervised, _, four = gradient_norms(made)
    assert made.distillation_loss_weights[0] == pytest.approx(2 * supervised / four, rel=1e-5)


def test_uncertainty_weighting_minimises_kendalls_objective():
    made = distiller(two_terms())
    fit(made, AdaptiveWeights((HELD_OUT_X, HELD_OUT_Y), "uncertainty", smoothing=0.0, min_delta=0.0), epochs=1)
    measured, weights = np.array(losses(made)[1:]), made.distillation_loss_weights
    found = scipy.optimize.minimize(lambda s: sum(np.exp(-s) * measured + s / 2), np.zeros(2), tol=1e-10).x
    assert weights[0] / weights[1] == pytest.approx(np.exp(found[1] - found[0]), rel=1e-4)
    assert np.dot(weights, measured) == pytest.approx(sum(measured), rel=1e-5)
    made = distiller(two_terms())
    against = AdaptiveWeights((HELD_OUT_X, HELD_OUT_Y), "uncertainty", relative_to="student_loss", smoothing=0.0)
    fit(made, against, epochs=1)
    supervised, one, four = losses(made)
    np.testing.assert_allclose(made.distillation_loss_weights, [supervised / one, supervised / four], rtol=1e-5)


def test_weights_are_smoothed_bounded_and_move_only_when_it_matters():
    data = (HELD_OUT_X, HELD_OUT_Y)
    made = distiller(two_terms(), rate=0.5, share=0.0)
    smooth = AdaptiveWeights(data, "uncertainty", smoothing=0.25, min_delta=0.0)
    logarithms = None

    class Oracle(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            nonlocal logarithms
            new = np.log(losses(made)[1:])
            logarithms = new if logarithms is None else 0.25 * logarithms + 0.75 * new

    fit(made, Oracle(), smooth, epochs=3)
    magnitudes = np.exp(logarithms)
    np.testing.assert_allclose(made.distillation_loss_weights, magnitudes.mean() / magnitudes, rtol=1e-4)

    made = distiller(two_terms(), [1.0, 0.0])
    fit(made, AdaptiveWeights(data), epochs=1)
    assert made.distillation_loss_weights == [1.0, 0.0]

    made = distiller(two_terms())
    fit(made, AdaptiveWeights(data, "uncertainty", max_weight=1.01, min_weight=1.0, min_delta=0.0), epochs=1)
    assert sorted(made.distillation_loss_weights) == pytest.approx([1.0, 1.01])

    made = distiller(two_terms())
    history = fit(made, AdaptiveWeights(data, patience=2), epochs=4)
    assert history["distillation_loss_weight_0"][:2] == [1.0, 1.0]
    assert history["distillation_loss_weight_0"][2] != 1.0
    made = distiller(two_terms())
    fit(made, AdaptiveWeights(data, min_delta=1e3), epochs=2)
    assert made.distillation_loss_weights == [1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveTemperature(), "validation_data to measure the gap on, got None"),
        (lambda: AdaptiveTemperature("val_loss", validation_data=(X,)), "validation_data only with monitor='gap'"),
        (lambda: AdaptiveTemperature("x", "gap"), "rule to be one of 'plateau', 'progress'"),
        (lambda: AdaptiveTemperature("x", min_temperature=0.0), "min_temperature > 0, got 0.0"),
        (lambda: AdaptiveTemperature("x", max_temperature=0.5), "max_temperature >= 1, got 0.5"),
        (lambda: AdaptiveTemperature("x", factor=1), "factor other than 1, got 1"),
        (lambda: AdaptiveTemperature("x", patience=0), "patience to be an integer >= 1, got 0"),
        (lambda: AdaptiveTemperature("x", mode="up"), "mode to be one of 'auto', 'min', 'max'"),
        (lambda: AdaptiveTemperature(validation_data=iter([X])), "validation_data that can be read every epoch"),
        (lambda: fit(distiller(), AdaptiveTemperature("val_x")), "monitor 'val_x' in the logs, got .*'loss'"),
        (
            lambda: drive(AdaptiveTemperature("x"), distiller(), "x", [float("nan")]),
            "x in the logs to be a finite number, got nan",
        ),
        (
            lambda: fit(distiller(), AdaptiveTemperature("loss", max_temperature=4.0)),
            "temperature between 1 and 4 at the start, got 8.0",
        ),
        (lambda: EarlyStoppedDistillation(None), "monitor or max_epochs to stop by, got neither"),
        (lambda: EarlyStoppedDistillation(min_epochs=3, max_epochs=2), r"max_epochs >= min_epochs \(3\), got 2"),
        (lambda: EarlyStoppedDistillation(fade_epochs=0), "fade_epochs to be an integer >= 1, got 0"),
        (
            lambda: fit(distiller(share=0.0, loss=None), EarlyStoppedDistillation("loss")),
            "a supervised loss to train on when distillation ends, got none",
        ),
        (lambda: AdaptiveWeights((X, Y), "norm"), "method to be one of 'gradient_norm', 'uncertainty'"),
        (lambda: fit(distiller(), AdaptiveWeights((X, Y))), "at least 2 terms to balance, got 1"),
        (
            lambda: fit(distiller(share=0.0, loss=None), AdaptiveWeights((X,), relative_to="student_loss")),
            "a supervised loss to balance against, got None",
        ),
        (
            lambda: fit(distiller(two_terms(), [0.0, 0.0]), AdaptiveWeights((X, Y))),
            "a distillation loss weight above 0 at the start",
        ),
        (
            lambda: fit(
                distiller([LogitsDistillation(), FeatureDistillation("cosine_similarity")]),
                AdaptiveWeights((X, Y), "uncertainty"),
            ),
            "uncertainty of term 1 >= 0, got -0",
        ),
        (lambda: fit(distiller(two_terms()), AdaptiveWeights((X[:0], Y[:0]))), "at least one batch"),
        (lambda: AdaptiveTemperature("x").state, "the callback to be passed to fit before its state is read"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=rf"(Adaptive|EarlyStopped)\w+: expected .*{message}"):
        make()


def test_a_policy_needs_a_distiller():
    model = copy_of(mlp(4))
    model.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"AdaptiveTemperature: expected to be passed to the fit of"):
        model.fit(X, Y, verbose=0, callbacks=[AdaptiveTemperature("loss")])
