"""Peers teach each other: the step equals the formula, weight 0 is plain training, and all modes agree."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import NonFiniteLossError, callbacks
from keras_distill.regimes import MutualLearning
from tests.models import batch, copy_of, log_softmax, mlp, replicas, softmax

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def linear(seed):
    return mlp(4, seed=seed)


def gradient(x, y, own, others, weight):
    """The formula's gradient with respect to a linear student's kernel and bias, in float64."""
    count = len(x)
    p = softmax(own)
    onehot = np.eye(4)[y]
    pull = p - onehot + weight * np.mean([p - softmax(other) for other in others], axis=0)
    return x.T.astype("float64") @ pull / count, pull.sum(0) / count


@pytest.mark.parametrize(
    ("mode", "update"),
    [({}, "together"), ({}, "in_turn"), ({"jit_compile": True}, "in_turn"), ({"run_eagerly": True}, "together")],
    ids=str,
)
def test_a_step_is_the_formula(update, mode):
    x, y = batch(12)
    peers = [linear(seed) for seed in range(3)]
    weights = [[w.astype("float64") for w in peer.get_weights()] for peer in peers]
    mutual = MutualLearning(peers, mutual_weight=0.7, update=update)
    mutual.compile(keras.optimizers.SGD(0.5), CROSS_ENTROPY, **mode)
    history = mutual.fit(x, y, batch_size=12, verbose=0).history
    logits = [x @ kernel + bias for kernel, bias in weights]
    first = -log_softmax(logits[0])[np.arange(12), y].mean()
    assert history["student_0_loss"][0] == pytest.approx(first, rel=1e-5)
    for k in range(3):
        steps = gradient(x, y, logits[k], [logits[i] for i in range(3) if i != k], 0.7)
        weights[k] = [w - 0.5 * g for w, g in zip(weights[k], steps, strict=True)]
        if update == "in_turn":
            logits[k] = x @ weights[k][0] + weights[k][1]
    for peer, expected in zip(mutual.students, weights, strict=True):
        for got, want in zip(peer.get_weights(), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=2e-6)


def test_mutual_weight_zero_equals_separate_plain_fits():
    x, y = batch(24)
    fit = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    peers, alone = [linear(0), linear(1)], [linear(0), linear(1)]
    mutual = MutualLearning(peers, mutual_weight=0.0)
    mutual.compile(keras.optimizers.SGD(0.1, momentum=0.9), CROSS_ENTROPY)
    mutual.fit(x, y, **fit)
    for peer, model in zip(peers, alone, strict=True):
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), CROSS_ENTROPY)
        model.fit(x, y, **fit)
        for one, two in zip(peer.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-7)


def test_identical_peers_give_each_other_no_gradient():
    x, _ = batch(16)
    first = mlp(8, 4, seed=3)
    mutual = MutualLearning([first, copy_of(first)])
    mutual.compile(keras.optimizers.SGD(1.0))
    before = first.get_weights()
    mutual.fit(x, verbose=0)
    for one, two in zip(before, first.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-7)


def test_two_replicas_equal_one():
    x, y = batch(20)
    results = []
    for count in (1, 2):
        with replicas(count).scope():
            mutual = MutualLearning([mlp(8, 4, seed=1), mlp(5, 4, seed=2)])
            mutual.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY)
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        history = mutual.fit(data, epochs=2, verbose=0).history
        results.append([*(w for peer in mutual.students for w in peer.get_weights()), history["mutual_loss"]])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    x, y = batch(24)
    fit = {"epochs": 3, "batch_size": 12, "shuffle": False, "verbose": 0}

    def made():
        init = keras.initializers.GlorotUniform(seed=3)
        dropping = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(8, kernel_initializer=init), keras.layers.Dropout(0.3, seed=5),
             keras.layers.BatchNormalization(), keras.layers.Dense(4, kernel_initializer=init)]
        )  # fmt: skip
        mutual = MutualLearning([dropping, mlp(5, 4, seed=2)])
        mutual.compile({"student_0": keras.optimizers.Adam(0.01), "student_1": "sgd"}, CROSS_ENTROPY, run_eagerly=True)
        return mutual

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    whole = made()
    expected = whole.fit(x, y, **fit).history
    with pytest.raises(KeyboardInterrupt):
        made().fit(x, y, callbacks=[callbacks.Backup(tmp_path), Stop()], **fit)
    resumed = made()
    got = resumed.fit(x, y, callbacks=[callbacks.Backup(tmp_path)], **fit).history
    assert got == expected
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    resumed.save(tmp_path / "mutual.keras")
    loaded = keras.saving.load_model(tmp_path / "mutual.keras")
    for regime in (loaded, resumed):
        regime.fit(x, y, **{**fit, "epochs": 1})
    for one, two in zip(loaded.students[1].get_weights(), resumed.students[1].get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "player"), [({}, 0), ({}, 1), ({"jit_compile": True}, 1), ({"steps_per_execution": 3}, 0)], ids=str
)
def test_one_failing_player_skips_every_players_update(mode, player):
    x, y = batch(24)
    peers = [mlp(8, 4, seed=1), mlp(5, 4, seed=2)]
    mutual = MutualLearning(peers)
    mutual.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY, **mode)
    peers[player].layers[0].kernel.assign(np.full((6, (8, 5)[player]), np.nan))
    before = [peer.get_weights() for peer in peers]
    message = rf"MutualLearning: .*student_{player}_loss at step 0.*All models keep"
    with pytest.raises(NonFiniteLossError, match=message):
        mutual.fit(x, y, batch_size=8, verbose=0)
    for peer, weights in zip(peers, before, strict=True):
        for one, two in zip(peer.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(one, two)


def test_callbacks_control_the_weight_and_the_temperature():
    x, y = batch(16)
    mutual = MutualLearning([linear(0), linear(1)])
    mutual.compile("sgd", CROSS_ENTROPY, metrics=["accuracy"])
    steer = [
        callbacks.TemperatureScheduler(lambda epoch: 4.0 - epoch),
        callbacks.CalibrationMonitor((x, y)),
    ]
    history = mutual.fit(x, y, epochs=2, verbose=0, callbacks=steer, validation_data=(x, y)).history
    assert history["temperature"] == [4.0, 3.0]
    assert history["val_ece"][0] != history["val_ece"][1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MutualLearning([linear(0)]), r"MutualLearning: expected at least 2 students, got 1\."),
        (lambda: MutualLearning([mlp(4), mlp(5)]), "expected students with outputs of one shape"),
        (lambda: MutualLearning([linear(0), linear(1)], mutual_weight=-1.0), "expected mutual_weight >= 0"),
        (lambda: MutualLearning([linear(0), linear(1)], update="never"), "expected update to be one of 'together'"),
        (lambda: MutualLearning([linear(0), linear(1)], term="kl"), "expected a term on final outputs"),
        (lambda: (lambda one: MutualLearning([one, one]))(linear(0)), "expected models that share no weights"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
