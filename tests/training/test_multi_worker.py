"""Two worker processes train as one; killed and restarted, they end with the same result."""

import json
import signal
import socket

import numpy as np
import pytest
import tensorflow as tf

from keras_distill import teachers
from tests.models import batch, mlp
from tests.processes import Child
from tests.training import worker_job

pytestmark = pytest.mark.slow
REGIMES = ("peers", "generations", "stages")


def start_cluster(folder, cases, kill=None):
    """Start two workers on free ports; ``kill`` is for the second."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("localhost", 0))
    cluster = {"worker": [f"localhost:{each.getsockname()[1]}" for each in sockets]}
    for each in sockets:
        each.close()
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": index}} for index in range(2)]
    return [
        Child(worker_job.work, cases, str(folder / f"worker{i}"), kill if i == 1 else None,
              environment={"TF_CONFIG": json.dumps(task)})
        for i, task in enumerate(tasks)
    ]  # fmt: skip


def finish(processes):
    """Wait for all; return whether they succeeded: a job fails if the machine stalls for 10 s."""
    codes = [process.wait(900) for process in processes]
    logs = "\n".join(process.read()[-2000:] for process in processes)
    assert not any(codes) or "heartbeat" in logs, logs
    return not any(codes)


def result(folder, name):
    with np.load(folder / f"{name}.npz") as arrays:
        return [arrays[key] for key in arrays.files], json.loads((folder / f"{name}.json").read_text())


def assert_equal(got, expected):
    for a, b in zip(got[0], expected[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert got[1].keys() == expected[1].keys()
    for part in expected[1]:
        for name, value in expected[1][part].items():
            np.testing.assert_allclose(got[1][part][name], value, rtol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The results of one process: weights, history and evaluation."""
    folder = tmp_path_factory.mktemp("alone")
    worker_job.train(tf.distribute.get_strategy(), "live", folder / "alone")
    worker_job.train_regimes(tf.distribute.get_strategy(), folder / "alone")
    return {name: result(folder, f"alone-{name}") for name in ("live", *REGIMES)}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The results of two workers, live, with a store, and resumed after a kill; all in one cluster, started twice."""
    folder = tmp_path_factory.mktemp("together")
    x, y = batch(34)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    # Several shards: sharded by files, each worker would read its own part of the labels but not of the examples.
    options = {"dtype": "float32", "features": ["dense_0"], "examples_per_shard": 8, "progress": False}
    teachers.label(mlp(8, 4, seed=1), data, folder / "store", **options)
    backup = f"backup:{folder / 'backups'}"
    for _ in range(5):
        first, second = start_cluster(folder, [backup], kill=(2, 1))
        code = second.wait(900)
        first.kill()  # as a job manager does: the other worker may wait long for its peer
        if code == -signal.SIGKILL:
            break
        finish([second])
    assert code == -signal.SIGKILL
    assert sorted(path.name for path in (folder / "backups").iterdir()) == ["epoch-000001", "epoch-000002"]
    for number in range(5):
        crashes = folder / f"crashes-{number}"
        crashes.mkdir()
        cases = [backup, "live", "regimes", f"stored:{folder / 'store'}", f"crashes:{crashes}"]
        if finish(start_cluster(folder, cases)):
            return folder
    pytest.fail("no cluster came to its end")


def test_two_workers_equal_one_process(together, alone):
    for worker in ("worker0", "worker1"):
        assert_equal(result(together, f"{worker}-live"), alone["live"])


@pytest.mark.parametrize("name", REGIMES)
def test_two_workers_train_a_regime_as_one_process_does(together, alone, name):
    for worker in ("worker0", "worker1"):
        assert_equal(result(together, f"{worker}-{name}"), alone[name])


def test_each_worker_gets_the_labels_of_its_own_examples_from_a_store(together, alone):
    assert_equal(result(together, "worker0-stored"), alone["live"])


def test_a_worker_killed_in_the_middle_of_an_epoch_and_the_job_started_again(together, alone):
    got = result(together, "worker0-backup")
    assert_equal(got, alone["live"])
    assert len(got[1]["history"]["loss"]) == 4


@pytest.fixture(scope="module")
def resumed(together):
    """For each worker: its runs from copies of the backup directory, the first one uninterrupted."""
    return [json.loads((together / f"worker{i}-crashes.json").read_text()) for i in range(2)]


def test_a_kill_in_each_state_of_the_directory_is_resumed_bit_for_bit_by_both_workers(resumed):
    runs = [each[:-1] for each in resumed]
    assert [name for name, *_ in runs[0]] == [name for name, *_ in runs[1]]
    assert len(runs[0]) >= 9  # the first of them uninterrupted
    expected = runs[0][0][1:]
    assert len(expected[1]["loss"]) == 2
    for (name, *one), (_, *two) in zip(*runs, strict=True):
        assert one == expected, name
        assert two == expected, name


def test_workers_that_find_different_backups_are_refused(resumed):
    for *_, (_, message) in resumed:
        assert message.startswith("Backup: expected all workers to find the same backups in ")
        assert ", got workers that resume after epochs 1, 0. Give all of them one directory" in message
