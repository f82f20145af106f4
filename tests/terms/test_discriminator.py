"""A discriminator learns from both models, the student learns to deceive it: each against its formula."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, teachers
from keras_distill.terms import Discriminator
from tests.models import batch, batches, copy_of, mlp

X, _ = batch(16)
TEACHER, STUDENT = mlp(8, 4, seed=1), mlp(8, 4, seed=2)


def standardized(z):
    z = np.asarray(z, "float64")
    return (z - z.mean(-1, keepdims=True)) / z.std(-1, ddof=1, keepdims=True)


def judged(term, rows):
    """The discriminator in float64."""
    for index, layer in enumerate(term.judges):
        rows = np.where(rows > 0, rows, 0.2 * rows) if index else rows
        rows = rows @ np.asarray(layer.layer.kernel, "float64") + np.asarray(layer.layer.bias, "float64")
    return rows[:, 0]


def softplus(x):
    return np.logaddexp(0, x)


def made(**kwargs):
    keras.utils.set_random_seed(0)
    term = Discriminator(hidden_units=(8, 8), **kwargs)
    term.build_from(TEACHER(X), STUDENT(X))
    return term


def test_the_value_is_the_formula():
    term = made(student_weight=0.3)
    theirs, own = (judged(term, standardized(model(X))) for model in (TEACHER, STUDENT))
    expected = softplus(-theirs) + softplus(own) + 0.3 * softplus(-own)
    np.testing.assert_allclose(term.values(TEACHER(X), STUDENT(X), training=False), expected, rtol=1e-4)


def test_the_student_gets_its_own_gradient_and_the_discriminator_its_own():
    term = made(student_weight=0.7)
    student = tf.Variable(STUDENT(X))
    with tf.GradientTape(persistent=True) as tape:
        value = tf.reduce_sum(term.values(TEACHER(X), student, training=False))
        deceive = tf.reduce_sum(0.7 * tf.math.softplus(-term.judge(_rows(student))))
        tell = tf.reduce_sum(tf.math.softplus(-term.judge(_rows(TEACHER(X)))))
        tell += tf.reduce_sum(tf.math.softplus(term.judge(tf.stop_gradient(_rows(student)))))
    np.testing.assert_allclose(tape.gradient(value, student), tape.gradient(deceive, student), rtol=1e-4, atol=1e-5)
    weights = [weight.value for layer in term.judges for weight in layer.layer.trainable_variables]
    for one, two in zip(tape.gradient(value, weights), tape.gradient(tell, weights), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def _rows(z):
    z = tf.convert_to_tensor(z)
    centred = z - tf.reduce_mean(z, -1, keepdims=True)
    return centred / (tf.math.reduce_std(z, -1, keepdims=True) * (4 / 3) ** 0.5)


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}], ids=str)
def test_spectral_norms_are_bounded_and_a_saved_run_goes_on(mode, tmp_path):
    distiller = Distiller(TEACHER, copy_of(STUDENT), made(), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.01), **mode)
    distiller.fit(batches(X, size=16), epochs=30, verbose=0)
    term = distiller.distillation_losses[0]
    for layer in term.judges:
        assert np.linalg.norm(layer.layer.kernel, 2) < 1.3  # one step behind the subtracted norm
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    for each in (distiller, loaded):
        each.fit(X, epochs=1, batch_size=16, shuffle=False, verbose=0)
    for one, two in zip(distiller.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_the_gradient_penalty_is_the_gradients_and_moves_the_weights():
    term = made(gradient_penalty=3.0)
    rows, own = _rows(TEACHER(X)), standardized(STUDENT(X))
    dense = [(np.asarray(each.kernel, "float64"), np.asarray(each.bias, "float64")) for each in term.judges]

    def judged(z):
        for index, (kernel, bias) in enumerate(dense):
            z = np.where(z > 0, z, 0.2 * z) if index else z
            z = z @ kernel + bias
        return z[:, 0]

    with tf.GradientTape() as tape:
        tape.watch(rows)
        logit = tf.reduce_sum(term.judge(rows))
    steep = tape.gradient(logit, rows).numpy()
    np.testing.assert_allclose(term.slope(rows), steep, atol=1e-6)
    expected = softplus(-judged(standardized(TEACHER(X)))) + softplus(judged(own)) + softplus(-judged(own))
    expected += 1.5 * (steep.astype("float64") ** 2).sum(-1)
    np.testing.assert_allclose(term.values(TEACHER(X), STUDENT(X), training=False), expected, rtol=1e-4)
    distiller = Distiller(TEACHER, copy_of(STUDENT), term, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.01))
    distiller.fit(batches(X, size=16), epochs=60, verbose=0)
    assert np.abs(term.slope(rows)).max() < 0.6 * np.abs(steep).max()
    assert Discriminator.from_config(term.get_config()).gradient_penalty == 3.0


def test_every_member_of_an_ensemble_is_a_teacher():
    term, other = made(), mlp(8, 4, seed=5)
    one, two = (term.values(each(X), STUDENT(X), training=False) for each in (TEACHER, other))
    members = teachers.Members(tf.stack([TEACHER(X), other(X)], 1), teachers.MeanProbs())
    found = term.values(members, STUDENT(X), training=False)
    np.testing.assert_allclose(found, (np.asarray(one) + np.asarray(two)) / 2, rtol=1e-5)
    ensemble = teachers.Ensemble([copy_of(TEACHER), copy_of(other)])
    distiller = Distiller(ensemble, copy_of(STUDENT), [LogitsDistillation(), made()], [1.0, 0.1], 0.0)
    distiller.compile("adam")
    assert np.isfinite(distiller.fit(X, batch_size=16, verbose=0).history["total_loss"][0])


def test_features_are_averaged_over_positions():
    maps = np.random.default_rng(0).normal(size=(2, 16, 3, 3, 4)).astype("float32")
    term = made()
    np.testing.assert_allclose(
        term.values(*maps, training=False), term.values(*maps.mean((2, 3)), training=False), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Discriminator("hidden"), "a layer of each model, or of neither"),
        (lambda: Discriminator(hidden_units=()), "hidden_units to be a list of numbers of units"),
        (lambda: Discriminator(student_weight=-1.0), "expected student_weight >= 0"),
        (lambda: Discriminator(gradient_penalty=-1.0), "expected gradient_penalty >= 0"),
        (
            lambda: made().validate_outputs(np.zeros((2, 4)), np.zeros((2, 3))),
            "equally many channels of teacher and student",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
