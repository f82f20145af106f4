"""Active dropout, snapshots and averages of the student: against NumPy, with the model unchanged."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill
from keras_distill import teachers
from keras_distill.terms import LogitsDistillation

rng = np.random.default_rng(1)
X = rng.normal(size=(8, 6)).astype("float32")


def network(rate, norm=True, seed=None):
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dropout(rate, seed=seed)])
    layers = [keras.Input((6,)), inner] + ([keras.layers.BatchNormalization()] if norm else [])
    model = keras.Sequential([*layers, keras.layers.Dropout(rate, name="last"), keras.layers.Dense(3)])
    model.set_weights([rng.uniform(0.5, 1.5, size=w.shape) for w in model.get_weights()])
    return model


def test_rate_zero_is_the_model():
    model = network(0.0)
    members, _ = teachers.MonteCarloDropout(model, num_samples=4).listen(X)
    expected = np.asarray(model(X))
    # Four passes in one batch are summed in another order: a logit near zero has the rounding error of its large terms.
    for m in range(4):
        np.testing.assert_allclose(members.members[:, m], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(members.knowledge_uncertainty() < 1e-6, np.ones(8, bool))
    one, _ = teachers.MonteCarloDropout(model, num_samples=1).listen(X)
    np.testing.assert_array_equal(one.resolve(3.0), model(X))


def test_dropout_is_active_and_batch_norm_is_not():
    """Dropout of one linear layer has known moments; BatchNorm's statistics and mode must not enter them."""
    x = keras.Input((6,))
    normed = keras.layers.BatchNormalization()
    y = keras.layers.Dense(1, use_bias=False)(keras.layers.Dropout(0.25)(normed(x)))
    model = keras.Model(x, y)
    weights = [rng.uniform(0.5, 2, size=w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    teacher = teachers.MonteCarloDropout(model, num_samples=4000, combine="mean_logits")
    heard = np.asarray(teacher.listen(X[:2])[0].members)[..., 0].astype("float64")
    gamma, beta, mean, variance, kernel = weights
    terms = ((X[:2] - mean) / np.sqrt(variance + 1e-3) * gamma + beta) * kernel[:, 0]
    spread = np.sqrt((terms**2).sum(1) * 0.25 / 0.75)
    assert np.all(np.abs(heard.mean(1) - terms.sum(1)) < 5 * spread / np.sqrt(4000))
    np.testing.assert_allclose(heard.std(1), spread, rtol=0.1)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before.astype("float32"), after)


@pytest.mark.parametrize("run", ["eager", "graph", "xla"])
def test_the_seed_determines_the_dropout_masks(run):
    model = network(0.5, seed=3)
    own_state = [g.state.numpy() for g in (layer.seed_generator for layer in model.layers if layer.name == "last")]

    def listener(seed):
        teacher = teachers.MonteCarloDropout(model, num_samples=3, seed=seed)

        def listen(x):
            return teacher.listen(x)[0].members

        return teacher, {"eager": lambda: listen, "graph": lambda: tf.function(listen, autograph=False),
                         "xla": lambda: tf.function(listen, autograph=False, jit_compile=True)}[run]()  # fmt: skip

    teacher, listen = listener(5)
    first, second = np.asarray(listen(X)), np.asarray(listen(X))
    assert np.abs(first - second).max() > 0.1  # fresh masks in each pass
    again, other = listener(5)[1], listener(6)[1]
    np.testing.assert_allclose(again(X), first, rtol=1e-6)
    np.testing.assert_allclose(again(X), second, rtol=1e-6)
    assert np.abs(np.asarray(other(X)) - first).max() > 0.1
    teacher.reseed(17)
    numbered = np.asarray(listen(X))
    listen(X)
    teacher.reseed(17)
    np.testing.assert_array_equal(listen(X), numbered)
    # The model's own random state has not changed.
    np.testing.assert_array_equal(
        own_state[0], next(layer for layer in model.layers if layer.name == "last").seed_generator.state.numpy()
    )


def test_nothing_is_left_on_the_model():
    model = network(0.5)
    every = list(model._flatten_layers())
    before = [dict(vars(layer)) for layer in every]
    output = np.asarray(model(X))
    teacher = teachers.MonteCarloDropout(model, num_samples=2)
    teacher.listen(X, ["last"])
    with pytest.raises(ValueError):
        teacher.listen(X[:, :2])  # also after a pass that failed
    for layer, was in zip(every, before, strict=True):
        assert "call" not in vars(layer)
        assert vars(layer).get("seed_generator") is was.get("seed_generator")
    np.testing.assert_array_equal(model(X), output)


def test_recurrent_and_attention_dropout_count_too():
    x = keras.Input((5, 4))
    recurrent = keras.Model(x, keras.layers.Dense(2)(keras.layers.LSTM(8, dropout=0.5)(x)))
    attends = keras.layers.MultiHeadAttention(2, 4, dropout=0.5)(x, x)
    attention = keras.Model(x, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(attends)))
    batch = rng.normal(size=(3, 5, 4)).astype("float32")
    for model in (recurrent, attention):
        members = np.asarray(teachers.MonteCarloDropout(model, num_samples=6).listen(batch)[0].members)
        assert np.all(members.std(axis=1) > 1e-4)
        np.testing.assert_allclose(members.mean(1), model(batch), atol=6 * members.std())


def test_own_dropout_classes_can_be_named():
    class Noise(keras.layers.Layer):
        def call(self, x, training=False):
            return x + 1.0 if training else x

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dropout(0.0), Noise()])
    np.testing.assert_array_equal(teachers.MonteCarloDropout(model)(X), teachers.MonteCarloDropout(model)(X))
    heard, _ = teachers.MonteCarloDropout(model, also=(Noise,), combine="mean_logits").listen(X)
    np.testing.assert_allclose(heard.resolve(1.0), X + 1.0, rtol=1e-6)


def test_taps_are_means_over_the_samples():
    model = network(0.0)
    _, tapped = teachers.MonteCarloDropout(model, num_samples=3).listen(X, ["last"])
    np.testing.assert_allclose(tapped["last"], keras_distill.taps.Taps(model, ["last"])(X)[1]["last"], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]), "expected a model with dropout, got"),
        (lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dropout(0.5), keras.layers.Softmax()]),
         "expected members that give logits"),
        (lambda: keras.Sequential([keras.Input((4, 2)), keras.layers.Dropout(0.5, noise_shape=(1, 4, 2))]),
         r"expected one dropout mask per example, got noise_shape=\(1, 4, 2\)"),
        (lambda: "model", "expected a keras.Model, got str"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        teachers.MonteCarloDropout(make())


def student():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])


def train(teacher, own=None, epochs=2, callbacks=(), **compiled):
    keras.utils.set_random_seed(7)
    own = own or student()
    distiller = keras_distill.Distiller(teacher, own, LogitsDistillation(temperature=2.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.05), **(compiled or {"run_eagerly": True}))  # four steps cost less
    history = distiller.fit(X, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))
    return history.history["loss"], distiller


def test_a_distiller_with_dropout_rate_zero_trains_as_with_the_model():
    model = network(0.0)
    plain, _ = train(model)
    heard, _ = train(teachers.MonteCarloDropout(model, num_samples=3))
    np.testing.assert_allclose(heard, plain, rtol=1e-5)


def test_a_saved_monte_carlo_teacher_resumes(tmp_path):
    model = network(0.3)
    losses, distiller = train(teachers.MonteCarloDropout(model, num_samples=3, seed=2))
    again, _ = train(teachers.MonteCarloDropout(model, num_samples=3, seed=2))
    np.testing.assert_allclose(losses, again, rtol=1e-6)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.teacher.num_samples == 3 and loaded.teacher.seed == 2
    for a, b in zip(loaded.teacher.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------------------------------------- snapshots


def test_the_mean_teacher_is_the_running_average():
    own = network(0.0)
    teacher = teachers.Snapshot(own, decay=0.9)
    expected = [w.astype("float64") for w in own.get_weights()]
    for _ in range(3):
        own.set_weights([w + rng.normal(size=w.shape) for w in own.get_weights()])
        expected = [0.9 * e + 0.1 * w for e, w in zip(expected, own.get_weights(), strict=True)]
        teacher.update(own)
    for got, want in zip(teacher.model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_a_snapshot_follows_the_student_while_it_is_trained(steps_per_execution):
    own = student()
    own.set_weights([rng.normal(size=w.shape) for w in own.get_weights()])
    start = own.get_weights()
    follower = teachers.Snapshot(own, decay=0.0, every_steps=4)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((own.get_weights(), follower.model.get_weights()))

    train(network(0.0), own, epochs=3, callbacks=[follower.follow(own), Watch()],
          steps_per_execution=steps_per_execution)  # 2 steps per epoch  # fmt: skip
    np.testing.assert_array_equal(seen[0][1][0], start[0])
    np.testing.assert_array_equal(seen[1][1][0], seen[1][0][0])
    np.testing.assert_array_equal(seen[2][1][0], seen[1][0][0])
    assert np.abs(seen[2][0][0] - seen[2][1][0]).max() > 0


def test_a_snapshot_is_a_copy_and_can_teach(tmp_path):
    own = student()
    teacher = teachers.Snapshot(own, decay=0.5)
    own.set_weights([w + 1.0 for w in own.get_weights()])
    _, distiller = train(teacher, own, callbacks=[teacher.follow(own)])
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras").teacher
    assert (loaded.decay, loaded.every_steps) == (0.5, 1)
    np.testing.assert_allclose(loaded(X), teacher(X), rtol=1e-6)
    assert np.abs(np.asarray(teacher(X)) - own(X)).max() > 0
    assert not any(v is w for v in teacher.variables for w in own.variables)
    with pytest.raises(ValueError, match=r"Snapshot: expected decay >= 0 and <= 1, got 1.5"):
        teachers.Snapshot(own, decay=1.5)
