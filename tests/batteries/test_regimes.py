"""Every regime in every mode of ``fit``: XLA, several steps at once, replicas, mixed precision; with a NaN; resumed.

What a regime computes has its own oracle in ``tests/regimes`` and ``tests/teachers``. Here each is compared with
itself, trained plainly.
"""

import functools
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import (
    Distiller,
    LogitsDistillation,
    NonFiniteLossError,
    callbacks,
    regimes,
    students,
    teachers,
    terms,
)
from tests.batteries.resume_cases import CopyAt
from tests.models import batch, copy_of, mlp, replicas

X, Y = batch(12)
Y = Y.astype("int32")
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
pytestmark = pytest.mark.slow


def branches(gate=False):
    x = keras.Input((6,))
    init = [keras.initializers.GlorotUniform(seed=seed) for seed in range(4)]
    trunk = keras.layers.Dense(5, "relu", kernel_initializer=init[0], name="trunk")(x)
    made = keras.Model(x, [keras.layers.Dense(4, kernel_initializer=init[1 + i])(trunk) for i in range(2)])
    if not gate:
        return made
    made = students.with_gate(made, "trunk")
    made.get_layer("gate").kernel.assign(init[3]((5, 2)))
    return made


def exits():
    made = students.with_exits(mlp(5, 4, seed=1), ["dense_0"])
    made.get_layer("exit_dense_0").kernel.assign(keras.initializers.GlorotUniform(seed=3)((5, 4)))
    return made


def peers():
    return [mlp(8, 4, seed=1), mlp(5, 4, seed=2)]


def snapshot():
    student = mlp(5, 4, seed=1)
    return Distiller(teachers.Snapshot(student, decay=0.9), student, LogitsDistillation(2.0))


def judged(heard=1.0, weight=0.5):
    both = [LogitsDistillation(2.0), terms.Discriminator(hidden_units=(5,), name="judge")]
    both[1].build_from(np.zeros((1, 4)), np.zeros((1, 4)))  # a player whose initial weights the tests read
    return Distiller(mlp(8, 4, seed=3), mlp(5, 4, seed=1), both, [heard, weight])


def attacked(robust_weight=0.5):
    attack = regimes.ProjectedGradient(0.1, num_steps=2, low=-9.0, high=9.0, random_start=False)
    student, teacher = mlp(5, 4, seed=1), mlp(8, 4, seed=3)
    return regimes.AdversarialTraining(student, attack, teacher, robust="teacher", robust_weight=robust_weight)


MADE = {
    "Alone": lambda: regimes.Alone(mlp(5, 4, seed=1)),
    "MutualLearning": lambda: regimes.MutualLearning(peers()),
    "MutualLearning in turn": lambda: regimes.MutualLearning(peers(), update="in_turn"),
    "MutualLearning of old weights": lambda: regimes.MutualLearning(peers(), exchange_every_steps=2),
    "Amalgamation": lambda: regimes.Amalgamation(
        [mlp(2, seed=1), mlp(3, seed=2)], [[0, 1], [1, 2, 3]], mlp(5, 4, seed=3)
    ),
    "DataFree": lambda: regimes.DataFree(
        mlp(8, 4, seed=1), mlp(5, 4, seed=2), mlp(8, 6, inputs=3, seed=3, activation="tanh"), student_steps=2
    ),
    "AdversarialTraining": attacked,
    "Discriminator": judged,
    "Peers": lambda: Distiller(teachers.Peers(), branches(), LogitsDistillation(2.0)),
    "GatedPeers": lambda: Distiller(
        teachers.GatedPeers(), branches(True), LogitsDistillation(2.0, ["kl_divergence"] * 2 + [None, None])
    ),
    "DeepestExit": lambda: Distiller(teachers.DeepestExit(), exits(), LogitsDistillation(2.0, ["kl_divergence", None])),
    "VirtualTeacher": lambda: Distiller(teachers.VirtualTeacher(0.9), mlp(5, 4, seed=1), LogitsDistillation(4.0)),
    "Snapshot": snapshot,
    "DifferentiallyPrivate": lambda: regimes.DifferentiallyPrivate(
        mlp(5, 4, seed=1), num_examples=12, batch_size=4, noise=0.1, teacher=mlp(8, 4, seed=3), seed=5
    ),
    "labels by confidence": lambda: Distiller(
        mlp(8, 4, seed=1), mlp(5, 4, seed=2), regimes._generations.LabelsByConfidence(), student_loss_weight=0.2
    ),
}
LOSSES = {
    "DifferentiallyPrivate": None,
    "Peers": [CROSS_ENTROPY] * 2,
    "GatedPeers": [CROSS_ENTROPY] * 3 + [None],
    "DeepestExit": [CROSS_ENTROPY] * 2,
}
# Refused before training: samples differ in size, gradients are per device, clipping is exact in float32 only.
REFUSED = {
    "xla, several steps": "expected jit_compile=False, because batches differ in size",
    "replicas": "expected a single device",
    "mixed": "expected a student in float32",
}
MODES = {
    "xla, several steps": {"jit_compile": True, "steps_per_execution": 3},
    "eager": {"run_eagerly": True},
    "replicas": {"jit_compile": False},
}


def make(name, scope=None, **mode):
    """Make and compile a regime."""
    keras.utils.set_random_seed(0)
    with scope or tf.distribute.get_strategy().scope():
        made = MADE[name]()
        made.compile(keras.optimizers.SGD(0.1, momentum=0.9), LOSSES.get(name, CROSS_ENTROPY), **mode)
    return made


def fit(made, name, callbacks=()):
    """Train for two epochs of three steps."""
    if name == "DataFree":
        made.fit(steps=3, epochs=2, batch_size=4, verbose=0, callbacks=list(callbacks))
        return
    if name == "DifferentiallyPrivate":
        made.fit(X, Y, epochs=2, verbose=0, callbacks=list(callbacks))
        return
    outputs = len(LOSSES.get(name, [0]))
    labels = tuple([Y] * outputs) if outputs > 1 else Y
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensor_slices((X, labels)).batch(4).with_options(options)
    made.fit(data, epochs=2, verbose=0, callbacks=list(callbacks))


def run(name, scope=None, callbacks=(), **mode):
    """Make a regime, train it and return it."""
    made = make(name, scope, **mode)
    fit(made, name, callbacks)
    return made


@functools.cache
def backed_up(name):
    """Return a regime's plainly trained weights, and the backup that a kill in its second epoch would leave."""
    folder = Path(tempfile.mkdtemp(prefix="regime-"))
    watch = [callbacks.Backup(folder / "one"), CopyAt(folder / "one", folder / "two")]
    trained = run(name, callbacks=watch, jit_compile=False)
    return [np.asarray(w) for w in trained.get_weights()], folder / "two"


def plain(name):
    return backed_up(name)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MADE)
def test_every_mode_trains_the_same_student(name, mode):
    if name == "DataFree" and mode == "replicas":
        pytest.skip("each replica draws noise of its own, so the examples are not those of one replica")
    scope = replicas(2).scope() if mode == "replicas" else None
    options = MODES[mode]
    if name == "DifferentiallyPrivate" and mode in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[mode]):
            run(name, scope=scope, **options)
        if mode == "replicas":
            return
        options = {**options, "jit_compile": False}
    got = run(name, scope=scope, **options).get_weights()
    wanted = plain(name)
    if name == "DataFree" and "xla" in mode:  # XLA draws different noise than the kernels: two XLA programs agree
        wanted = run(name, jit_compile=True).get_weights()
    for one, two in zip(wanted, got, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


@pytest.mark.parametrize("name", MADE)
def test_mixed_precision_moves_float32_weights_as_float32_does(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        if name == "DifferentiallyPrivate":
            with pytest.raises(ValueError, match=REFUSED["mixed"]):
                MADE[name]()
            return
        made = make(name, jit_compile=False)
        start = made.get_weights()
        fit(made, name)
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(np.asarray(two).dtype == one.dtype for one, two in zip(plain(name), made.get_weights(), strict=True))
    first, exact, half = (
        np.concatenate([np.ravel(each).astype("float64") for each in weights])
        for weights in (start, plain(name), made.get_weights())
    )
    # A ReLU near zero may switch in half precision, so single weights differ by more.
    assert np.linalg.norm(half - exact) < 0.1 * np.linalg.norm(exact - first)


def players_of(made):
    if isinstance(made, regimes.Regime):
        return made.players
    trained = [each for each in made.distillation_losses if each.trainable_variables]
    return {"student": made.student, **{each.name: each for each in trained}}


@pytest.mark.parametrize("name", MADE)
def test_a_nan_in_any_player_skips_every_players_update(name):
    made = make(name, jit_compile=False)
    start, players = made.get_weights(), players_of(made)
    first = name.split(" ", 1)[0]
    owner = first if first in regimes.__all__ else "Distiller"
    for player in players.values():
        made.set_weights(start)
        values = player.get_weights()
        player.set_weights([np.full_like(values[0], np.nan), *values[1:]])
        # Weights of the players only: private training counts a step before it reads the data, even if it fails.
        before = [w for each in players.values() for w in each.get_weights()]
        with pytest.raises(NonFiniteLossError, match=f"{owner}: "):
            fit(made, name)
        after = [w for each in players.values() for w in each.get_weights()]
        for one, two in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", MADE)
def test_a_resumed_run_ends_with_the_same_bits(name):
    expected, backup = backed_up(name)
    watch = CopyAt(None, None)
    resumed = run(name, callbacks=[callbacks.Backup(backup), watch], jit_compile=False)
    assert watch.begun == [1]
    for one, two in zip(expected, resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


# Drivers run several fits of the regimes above; functions only train Distillers. These have their own batteries.
OTHERS = {
    "Contrastive", "ProjectedGradient", "TrainingPrivacy",
    "AssistantChain", "BatchStatistics", "BornAgain", "ClassInversion", "CrossValidation", "Disagreement",
    "GeneratorObjective", "Measured", "OutOfFold", "PeerExchange", "PolicyDistiller", "PolicyReturn", "PrivacyReport",
    "PrivateLabels", "PrivateVotes", "Regime", "Round", "Shown", "Stage", "Stages", "TinyBert",
}  # fmt: skip


def test_every_regime_is_in_the_battery():
    classes = {name for name in regimes.__all__ if name[0].isupper()}
    assert classes - OTHERS == {name.split()[0] for name in MADE} & classes


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def private(**more):
    settings = {"num_examples": 12, "batch_size": 12, "noise": 1e-9, "clip": 100.0, "seed": 0, **more}
    made = regimes.DifferentiallyPrivate(mlp(5, 4, seed=1), **settings)
    made.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    made.fit(X, Y, epochs=3, verbose=0)
    return made.student.get_weights()


def test_private_training_without_noise_or_clipping_is_plain_and_without_weight_has_no_teacher():
    plainly = mlp(5, 4, seed=1)
    plainly.compile(keras.optimizers.SGD(0.1, momentum=0.9), CROSS_ENTROPY)
    plainly.fit(X, Y, batch_size=12, epochs=3, shuffle=False, verbose=0)
    for one, two in zip(plainly.get_weights(), private(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    noisy = {"noise": 1.0, "clip": 0.5, "batch_size": 4}
    for one, two in zip(private(**noisy), private(teacher=mlp(8, 4), teacher_weight=0.0, **noisy), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("mode", ["xla", "mixed precision", "a NaN"])
def test_private_votes_are_the_same_in_every_mode_and_their_student_goes_on(mode, tmp_path):
    def label(folder, mode=None):
        keras.config.set_dtype_policy("mixed_bfloat16" if mode == "mixed precision" else "float32")
        try:
            voters = [mlp(5, 4, seed=10 * number) for number in range(9)]
        finally:
            keras.config.set_dtype_policy("float32")
        for voter in voters:
            voter.compile(jit_compile=mode == "xla")
        if mode == "a NaN":
            voters[3].layers[-1].bias.assign([np.nan, 0.0, 0.0, 0.0])
        votes = regimes.PrivateVotes(voters, answer_noise=0.3, directory=folder, seed=2)
        if mode != "a NaN":
            return votes.label(X, max_epsilon=1e4, delta=1e-5)
        with pytest.raises(ValueError, match="PrivateVotes: expected finite outputs from teacher 3"):
            votes.label(X, max_epsilon=1e4, delta=1e-5)
        assert votes.report(1e-5).num_asked == 0  # no teacher has voted: no privacy is spent
        votes.teachers[3] = mlp(5, 4, seed=30)
        return votes.label(X, max_epsilon=1e4, delta=1e-5)

    def train(found, *watch):
        student = regimes.Alone(mlp(5, 4, seed=1))
        student.compile(keras.optimizers.SGD(0.1, momentum=0.9), CROSS_ENTROPY, run_eagerly=True)
        x, y = X[found.answered], found.labels[found.answered]
        student.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=list(watch))
        return student.get_weights()

    pytest.importorskip("dp_accounting")
    plainly = label(tmp_path / "plain")
    found = label(tmp_path / "votes", mode)
    np.testing.assert_array_equal(found.labels, plainly.labels)
    with pytest.raises(KeyboardInterrupt):
        train(found, callbacks.Backup(tmp_path / "backup"), Stop())
    again = label(tmp_path / "votes")  # a new process: labels already paid for are returned again
    assert again.report == found.report
    for one, two in zip(train(plainly), train(again, callbacks.Backup(tmp_path / "backup")), strict=True):
        np.testing.assert_array_equal(one, two)


def test_weight_zero_is_plain_training():
    plainly = copy_of(mlp(5, 4, seed=1))
    plainly.compile(keras.optimizers.SGD(0.1, momentum=0.9), CROSS_ENTROPY)
    plainly.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    alone = run("Alone", jit_compile=False).student
    mutual = regimes.MutualLearning([mlp(5, 4, seed=1), mlp(8, 4, seed=2)], mutual_weight=0.0)
    mutual.compile(keras.optimizers.SGD(0.1, momentum=0.9), CROSS_ENTROPY)
    mutual.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    student = mlp(5, 4, seed=1)
    taught = Distiller(teachers.VirtualTeacher(0.9), student, LogitsDistillation(4.0), [0.0], student_loss_weight=0.5)
    taught.compile(keras.optimizers.SGD(0.2, momentum=0.9), CROSS_ENTROPY)  # the labels have weight one half
    taught.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    zero = [attacked(robust_weight=0.0), judged(0.0, 0.0)]
    for made, rate in zip(zero, (0.1, 0.2), strict=True):
        made.compile(keras.optimizers.SGD(rate, momentum=0.9), CROSS_ENTROPY)
        made.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    for model in (alone, mutual.student, student, *(made.student for made in zero)):
        for one, two in zip(plainly.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-6)
