"""Co-distillation: peers that learn from predictions of stale weights, in one process or in one each."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import callbacks
from keras_distill.regimes import MutualLearning, PeerExchange
from tests.models import batch, mlp, replicas, softmax
from tests.processes import Child

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = batch(24)
FIT = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}


def made(every_steps=2, exchange=None, peers=None, **compiled):
    peers = [mlp(8, 4, seed=1), mlp(5, 4, seed=2)] if peers is None else peers
    mutual = MutualLearning(peers, exchange_every_steps=every_steps, exchange=exchange)
    mutual.compile(keras.optimizers.Adam(0.05), CROSS_ENTROPY, **compiled)
    return mutual


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}, {"steps_per_execution": 3}], ids=str)
def test_peers_learn_from_the_weights_of_the_last_exchange(mode):
    students = [mlp(4, seed=seed) for seed in range(3)]
    weights = [[w.astype("float64") for w in student.get_weights()] for student in students]
    mutual = MutualLearning(students, mutual_weight=0.7, exchange_every_steps=2)
    mutual.compile(keras.optimizers.SGD(0.5), CROSS_ENTROPY, **mode)
    mutual.fit(X, Y, **FIT)
    old = [list(each) for each in weights]
    for step in range(6):
        rows = slice(8 * (step % 3), 8 * (step % 3) + 8)
        x, onehot = X[rows].astype("float64"), np.eye(4)[Y[rows]]
        said = [softmax(x @ kernel + bias) for kernel, bias in old]
        for k, (kernel, bias) in enumerate(weights):
            p = softmax(x @ kernel + bias)
            pull = (p - onehot + 0.7 * np.mean([p - said[other] for other in range(3) if other != k], 0)) / 8
            weights[k] = [kernel - 0.5 * x.T @ pull, bias - 0.5 * pull.sum(0)]
        if (step + 1) % 2 == 0:
            old = [list(each) for each in weights]
    for student, expected in zip(mutual.students, weights, strict=True):
        for got, want in zip(student.get_weights(), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=5e-6)


def test_two_replicas_equal_one():
    results = []
    for count in (1, 2):
        with replicas(count).scope():
            mutual = made()
        mutual.fit(tf.data.Dataset.from_tensor_slices((X[:20], Y[:20])).batch(8), epochs=2, verbose=0)
        results.append([w for student in mutual.students for w in student.get_weights()])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_a_resumed_run_still_learns_from_the_exchanged_weights(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    whole = made(run_eagerly=True)  # six steps cost less than a trace
    whole.fit(X, Y, **FIT)
    with pytest.raises(KeyboardInterrupt):
        made(run_eagerly=True).fit(X, Y, callbacks=[callbacks.Backup(tmp_path), Stop()], **FIT)
    resumed = made(run_eagerly=True)
    resumed.fit(X, Y, callbacks=[callbacks.Backup(tmp_path)], **FIT)
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    resumed.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.exchange_every_steps == 2
    np.testing.assert_allclose(loaded.students[1](X), resumed.students[1](X), rtol=1e-6)


def worker(directory, index, epochs=2, stop=""):
    """One of two processes."""
    return Child(work, directory, index, epochs, stop)


def work(directory, index, epochs, stop):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 5:
                os._exit(9)

    exchange = PeerExchange(f"{directory}/exchange", index, 2, timeout_seconds=300)
    mutual = made(2, exchange)
    more = [callbacks.Backup(f"{directory}/backup-{index}", delete_checkpoint=False), *([Stop()] if stop else [])]
    mutual.fit(X, Y, callbacks=more, **{**FIT, "epochs": epochs})
    np.savez(f"{directory}/worker-{index}.npz", *mutual.student.get_weights())


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["", "killed"])
def test_two_processes_equal_two_peers_in_one_process(tmp_path, stop):
    together = made()
    together.fit(X, Y, **{**FIT, "epochs": 3})
    processes = [worker(tmp_path, 0, 3), worker(tmp_path, 1, 3, stop)]
    if stop:  # in the middle of an epoch; the other waits
        assert processes[1].wait() == 9, processes[1].read()
        processes[1] = worker(tmp_path, 1, 3)
    assert [process.wait() for process in processes] == [0, 0], [process.read() for process in processes]
    for index, student in enumerate(together.students):
        with np.load(tmp_path / f"worker-{index}.npz") as arrays:
            for name, want in zip(arrays.files, student.get_weights(), strict=True):
                np.testing.assert_allclose(arrays[name], want, atol=1e-6)


def test_one_worker_publishes_its_weights_and_reads_its_peers(tmp_path):
    """A worker whose peer does not train: its files, its trained student, and the weights it receives."""
    peers = [mlp(8, 4, seed=1), mlp(5, 4, seed=2)]
    still = peers[1].get_weights()
    other = PeerExchange(tmp_path, 1, 2)
    for step in (0, 2, 4, 6):
        other.show(step, still)
    mutual = made(2, PeerExchange(tmp_path, 0, 2), peers)
    mutual.fit(X, Y, **FIT)
    np.testing.assert_array_equal(other.see(6, 0)[0], mutual.student.get_weights()[0])
    np.testing.assert_array_equal(mutual.students[1].get_weights()[0], still[0])
    assert list(mutual.players) == ["student_0"]
    assert np.abs(mutual.students[0].get_weights()[0] - mlp(8, 4, seed=1).get_weights()[0]).max() > 0.01
    waiting = PeerExchange(tmp_path, 0, 2, timeout_seconds=0.05)
    with pytest.raises(ValueError, match="the weights of worker 1 at step 99, got none within 0"):
        waiting.see(99, 1)
    waiting.forget(before=6)
    assert sorted(path.name for path in tmp_path.glob("worker-0*")) == ["worker-0-step-000000006.npz"]


def test_the_cluster_configuration_gives_this_workers_index(monkeypatch):
    config = '{"cluster": {"worker": ["a:1", "b:1", "c:1"]}, "task": {"type": "worker", "index": 2}}'
    monkeypatch.setenv("TF_CONFIG", config)
    exchange = PeerExchange("somewhere")
    assert (exchange.index, exchange.num_workers) == (2, 3)
    monkeypatch.delenv("TF_CONFIG")
    with pytest.raises(ValueError, match="PeerExchange: expected TF_CONFIG with this task's index"):
        PeerExchange("somewhere")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made(0), "MutualLearning: expected exchange_every_steps to be an integer >= 1, got 0"),
        (
            lambda: MutualLearning([mlp(4), mlp(4, seed=1)], update="in_turn", exchange_every_steps=2),
            "expected update='together' with exchange_every_steps, got 'in_turn'",
        ),
        (lambda: made(None, PeerExchange("d", 0, 2)), "expected exchange_every_steps with exchange, got None"),
        (lambda: made(2, "directory"), "expected exchange to be a regimes.PeerExchange"),
        (lambda: made(2, PeerExchange("d", 0, 3)), "expected a student for each of 3 workers, got 2"),
        (lambda: PeerExchange("d", 2, 2), "PeerExchange: expected index below num_workers=2, got 2"),
        (
            lambda: made(3, PeerExchange("d", 0, 2), steps_per_execution=2).fit(X, Y, verbose=0),
            "expected exchange_every_steps to be a multiple of steps_per_execution=2, got 3",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
