"""Labelling on a Ray cluster: two real workers, one of them really killed."""

import os
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import teachers

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def make_teacher():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(5)])


def make_dataset():
    x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
    return tf.data.Dataset.from_tensor_slices(x).batch(8)


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
             runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[3]), "TF_CPP_MIN_LOG_LEVEL": "3",
                                       "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "-1"}})  # fmt: skip
    yield
    ray.shutdown()


def contents(path):
    return {file.name: file.read_bytes() for file in Path(path).iterdir()}


def test_a_killed_worker_is_replaced_and_the_store_equals_that_of_one_machine(tmp_path, cluster):
    workers = tmp_path / "workers"
    workers.mkdir()

    def teacher_in_worker():
        (workers / str(os.getpid())).touch()
        return make_teacher()

    def slow_dataset():
        def slowly(x):
            return tf.ensure_shape(tf.py_function(lambda t: (time.sleep(0.1), t)[1], [x], tf.float32), (None, 4))

        return make_dataset().map(slowly)

    killed = []

    def kill_one():
        """Kill a worker as soon as a shard is there."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            others = [int(file.name) for file in workers.iterdir() if int(file.name) != os.getpid()]
            if others and list((tmp_path / "ray").glob("shard-*")):
                os.kill(others[0], signal.SIGKILL)
                killed.append(others[0])
                return
            time.sleep(0.05)

    import threading

    killer = threading.Thread(target=kill_one)
    killer.start()
    options = {"examples_per_shard": 16, "dtype": "float32", "progress": False}
    stored = teachers.label_with_ray(teacher_in_worker, slow_dataset, tmp_path / "ray", num_workers=2, **options)
    killer.join()
    assert killed and len(list(workers.iterdir())) >= 3 and stored.num_examples == 200
    teachers.label(make_teacher(), make_dataset(), tmp_path / "local", **options)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    before = contents(tmp_path / "ray")
    teachers.label_with_ray(make_teacher, make_dataset, tmp_path / "ray", **options)  # nothing left to do
    assert contents(tmp_path / "ray") == before


def test_options_are_checked_before_the_cluster_is_contacted(tmp_path):
    with pytest.raises(ValueError, match=r"label_with_ray: expected options among top_k.* got \['topk'\]"):
        teachers.label_with_ray(make_teacher, make_dataset, tmp_path, topk=3)
