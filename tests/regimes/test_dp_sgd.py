"""Private updates: each example's gradient is clipped as if it were alone, and epsilon is the accountant's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import regimes
from keras_distill.regimes._example_gradients import clipped_sum
from tests.models import log_softmax, mlp

dp_accounting = pytest.importorskip("dp_accounting")
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 6)).astype("float32"), RNG.integers(0, 4, 40)
layers = keras.layers


def dense():
    return keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh"), mlp(4, inputs=8)])


def convolutional():
    image = keras.Input((6,))
    x = layers.Reshape((3, 2, 1))(layers.Rescaling(2.0)(image))
    one = layers.Conv2D(3, 2, padding="same", activation="relu")(x)
    two = layers.Conv2D(3, (2, 1), strides=(2, 1), use_bias=False)(one)
    x = layers.Dense(5, "relu")(layers.Reshape((2, 3))(two))  # Dense over positions
    return keras.Model(image, layers.Dense(4)(layers.Concatenate()([layers.Flatten()(x), layers.Flatten()(one)])))


def values_of(labels):
    return lambda z: tf.nn.sparse_softmax_cross_entropy_with_logits(labels, z)


@pytest.mark.parametrize("make", [dense, convolutional])
@pytest.mark.parametrize("clip", [0.3, 100.0])
def test_each_example_is_clipped_alone(make, clip):
    model = make()
    weights, keep = model.trainable_variables, RNG.integers(0, 2, 40).astype("float32")

    @tf.function(autograph=False)
    def step(x, y, keep):
        return clipped_sum(model, weights, x, values_of(y), clip, keep)

    found, outputs = step(X, Y, keep)
    np.testing.assert_allclose(outputs, model(X), atol=1e-6)
    expected = [np.zeros(w.shape) for w in weights]
    for x, y, kept in zip(X, Y, keep, strict=True):
        with tf.GradientTape() as tape:
            value = values_of([y])(model(x[None]))[0]
        gradients = [np.asarray(g, "float64") for g in tape.gradient(value, [w.value for w in weights])]
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        for total, gradient in zip(expected, gradients, strict=True):
            total += kept * min(1.0, clip / norm) * gradient
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


def made(student=None, **more):
    settings = {"num_examples": 40, "batch_size": 10, "noise": 1.2, "clip": 0.5, "seed": 0, **more}
    return regimes.DifferentiallyPrivate(mlp(8, 4) if student is None else student, **settings)


def test_a_step_is_the_noisy_sum_over_the_expected_batch_size():
    regime, teacher = made(noise=1e-9), mlp(8, 4, seed=5)
    both = made(mlp(8, 4), noise=1e-9, batch_size=40, teacher=teacher, teacher_weight=0.25, temperature=2.0)
    both.compile(keras.optimizers.SGD(1.0))
    start = both.student.get_weights()
    weights = both.student.trainable_variables

    def values(z):
        p, q = (tf.nn.log_softmax(each / 2.0) for each in (teacher(X), z))
        return 0.75 * values_of(Y)(z) + 0.25 * 4.0 * tf.reduce_sum(tf.exp(p) * (p - q), -1)

    gradients, _ = clipped_sum(both.student, weights, X, values, 0.5)
    both.fit(X, Y, verbose=0)
    for before, after, gradient in zip(start, both.student.get_weights(), gradients, strict=True):
        np.testing.assert_allclose(after, before - np.asarray(gradient) / 40, atol=1e-5)
    # Without examples only the noise moves the weights.
    regime = made(batch_size=1, noise=3.0, num_examples=40)
    regime.compile(keras.optimizers.SGD(1.0))
    moved = np.concatenate([np.ravel(each) for each in regime._normal([np.zeros((300, 40)), np.zeros(8000)])])
    assert moved.mean() == pytest.approx(0.0, abs=0.03) and moved.std() == pytest.approx(1.0, abs=0.02)
    regime.seed = None
    secure = np.concatenate([np.ravel(each) for each in regime._normal([np.zeros((300, 40)), np.zeros(8000)])])
    assert secure.std() == pytest.approx(1.0, abs=0.02) and abs(np.corrcoef(moved, secure)[0, 1]) < 0.03


def test_a_teacher_alone_needs_no_labels():
    teacher = mlp(8, 4, seed=5)
    regime = made(mlp(8, 4), teacher=teacher, teacher_weight=1.0, noise=0.01)
    regime.compile(keras.optimizers.SGD(1.0))
    history = regime.fit(X, epochs=12, verbose=0).history["private_loss"]
    assert history[-1] < 0.8 * history[0]


def test_every_example_is_drawn_with_its_probability():
    regime = made(num_examples=2000, batch_size=100, seed=None)
    x = np.arange(2000.0)[:, None]
    batches = [(rows[:-1, 0], keep) for rows, _, keep in regime._drawn(x, np.zeros(2000, int)).as_numpy_iterator()]
    assert len(batches) == 20 and all(keep[:-1].all() and not keep[-1] for _, keep in batches)
    sizes = np.array([len(rows) for rows, _ in batches])
    deviation = np.sqrt(2000 * 0.05 * 0.95)
    assert abs(sizes.mean() - 100) < 4 * deviation / np.sqrt(20) and 0.5 < sizes.std() / deviation < 1.6
    assert all(len(set(rows)) == len(rows) for rows, _ in batches)


def test_epsilon_is_the_accountants_and_steps_survive(tmp_path):
    regime = made()
    assert regime.report(1e-5).epsilon == 0.0
    regime.compile("adam", metrics=["accuracy"])
    history = regime.fit(X, Y, epochs=3, verbose=0, validation_data=(X, Y)).history
    assert set(history) >= {"private_loss", "val_private_loss", "accuracy"}
    accountant = dp_accounting.rdp.RdpAccountant()
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(1.2)), 12)
    report = regime.report(1e-5)
    assert report.epsilon == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-9)
    assert (report.num_steps, report.sampling_rate, report.noise) == (12, 0.25, 1.2)
    regime.save_weights(tmp_path / "w.weights.h5")
    again = made()
    again.compile("adam")
    again.load_weights(tmp_path / "w.weights.h5")
    assert again.report(1e-5) == report


def test_a_private_student_learns():
    x = np.repeat(np.eye(4, dtype="float32"), 250, 0) + RNG.normal(0, 0.3, (1000, 4)).astype("float32")
    y = np.repeat(np.arange(4), 250)
    student = mlp(4, inputs=4)
    regime = made(student, num_examples=1000, batch_size=100, noise=1.0, seed=None)
    regime.compile(keras.optimizers.SGD(2.0))
    regime.fit(x, y, epochs=4, verbose=0)
    assert np.mean(np.asarray(student(x)).argmax(-1) == y) > 0.85
    assert regime.report(1e-4).epsilon < 8
    loss = -log_softmax(np.asarray(student(x)))[np.arange(1000), y].mean()
    assert regime.evaluate(x, y, verbose=0, return_dict=True)["private_loss"] == pytest.approx(loss, rel=1e-4)


def network(*more):
    return keras.Sequential([keras.Input((6,)), *more, layers.Dense(4)])


def shared():
    both, inputs = layers.Dense(6), keras.Input((6,))
    return keras.Model(inputs, layers.Dense(4)(both(both(inputs))))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: made(network(layers.BatchNormalization())), r"without BatchNormalization, which mixes"),
    (lambda: made(network(layers.Dropout(0.5))), r"a student without stochastic layers, got 'dropout"),
    (lambda: made(network(layers.LayerNormalization())), r"plain Dense and Conv2D layers, got LayerNormalization"),
    (lambda: made(network(layers.Dense(3, kernel_regularizer="l2"))), r"without losses of its own, got 1 losses"),
    (lambda: made(shared()), r"whose layers are each called once"),
    (lambda: made(noise=0.0), r"DifferentiallyPrivate: expected noise > 0"),
    (lambda: made(clip=-1.0), r"expected clip > 0"),
    (lambda: made(batch_size=41), r"expected batch_size <= 40, the number of examples, got 41"),
    (lambda: made(teacher_weight=0.5), r"a teacher beside teacher_weight, got none"),
    (lambda: made().report(0.0), r"expected delta > 0"),
    (lambda: made().fit(X[:9], Y[:9]), r"an array of all 40 private examples, got ndarray of 9"),
    (lambda: made().fit(X, Y, batch_size=3), r"steps that draw their examples at random, got batch_size"),
    (lambda: made().fit(X), r"labels, which are learned"),
    (lambda: made().compile("sgd", loss="mse"), r"no loss: it is the cross-entropy"),
    (lambda: made().compile("sgd", jit_compile=True), r"jit_compile=False, because batches differ in size"),
])  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
