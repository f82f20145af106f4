"""Two workers, each a process of its own, train as one; killed and started again they end where they would have."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_distill import teachers
from tests.models import batch, mlp

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def start(folder, name, case, config=None, kill=""):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    environment.pop("TF_CONFIG", None)
    if config is not None:
        environment["TF_CONFIG"] = json.dumps(config)
    log = (folder / f"{name}.log").open("w")
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.worker_job", case, str(folder / name), kill]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def start_cluster(folder, case, kill=""):
    """Start two workers on free ports; ``kill`` is for the second."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("localhost", 0))
    cluster = {"worker": [f"localhost:{each.getsockname()[1]}" for each in sockets]}
    for each in sockets:
        each.close()
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": index}} for index in range(2)]
    return [start(folder, f"worker{i}", case, task, kill if i == 1 else "") for i, task in enumerate(tasks)]


def finish(folder, processes):
    """Wait for all; return whether they ended well: a machine that stands still for 10 s breaks a job."""
    codes = [process.wait(900) for process in processes]
    logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
    assert not any(codes) or "heartbeat" in logs, logs
    return not any(codes)


def run_cluster(folder, case):
    assert any(finish(folder, start_cluster(folder, case)) for _ in range(5))


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
    """What one process gives: weights, history and evaluation."""
    folder = tmp_path_factory.mktemp("alone")
    assert finish(folder, [start(folder, "alone", "live")])
    return result(folder, "alone")


def test_two_workers_equal_one_process(tmp_path, alone):
    run_cluster(tmp_path, "live")
    for name in ("worker0", "worker1"):
        assert_equal(result(tmp_path, name), alone)


def test_each_worker_gets_the_labels_of_its_own_examples_from_a_store(tmp_path, alone):
    x, y = batch(34)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    store = tmp_path / "store"
    # Several shards: sharded by files, each worker would read its own part of the labels but not of the examples.
    teachers.label(
        mlp(8, 4, seed=1), data, store, dtype="float32", features=["dense_0"], examples_per_shard=8, progress=False
    )
    run_cluster(tmp_path, f"stored:{store}")
    assert_equal(result(tmp_path, "worker0"), alone)


def test_a_worker_killed_in_the_middle_of_an_epoch_and_the_job_started_again(tmp_path, alone):
    case = f"backup:{tmp_path / 'backups'}"
    for _ in range(5):
        first, second = start_cluster(tmp_path, case, kill="2,1")
        code = second.wait(900)
        first.kill()  # as a job's manager does: the other worker may wait for its peer for long
        first.wait()
        if code == -signal.SIGKILL:
            break
        finish(tmp_path, [second])
    assert code == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "backups").iterdir()) == ["epoch-000001", "epoch-000002"]
    run_cluster(tmp_path, case)
    got = result(tmp_path, "worker0")
    assert_equal(got, alone)
    assert len(got[1]["history"]["loss"]) == 4
