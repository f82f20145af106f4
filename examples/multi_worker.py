"""Distillation on several machines: the same code everywhere, TF_CONFIG defines the roles, a killed job is resumed.

Run here with two workers on this machine: ``python examples/multi_worker.py`` (a minute; ``--smoke`` for less).
Expected: both workers print the same losses and the same test accuracy, and the chief writes ``student.keras``.

On a cluster every machine runs ``python examples/multi_worker.py --worker --folder /shared/run`` with its own
TF_CONFIG; all of them see the folder, with the teacher in it (``--make-teacher``). If a worker dies, stop the others
and restart the job: it resumes after the last complete epoch, as an epoch's order depends only on its number.

Kubernetes (Kubeflow's training operator writes TF_CONFIG by itself)::

    apiVersion: kubeflow.org/v1
    kind: TFJob
    metadata: {name: distill}
    spec:
      runPolicy: {backoffLimit: 20}
      tfReplicaSpecs:
        Worker:
          replicas: 4
          restartPolicy: OnFailure
          template:
            spec:
              containers:
                - name: tensorflow  # the operator requires this name
                  image: registry.example.com/distill:1
                  command: [python, examples/multi_worker.py, --worker, --folder, /shared/run]
                  volumeMounts: [{name: shared, mountPath: /shared}]
              volumes: [{name: shared, persistentVolumeClaim: {claimName: shared}}]

Slurm (``sbatch --requeue --nodes=4 --ntasks-per-node=1``; ``--slurm`` makes TF_CONFIG from Slurm's variables)::

    srun --kill-on-bad-exit=1 python examples/multi_worker.py --worker --slurm --folder /shared/run

Ray Train (its ``TensorflowTrainer`` writes TF_CONFIG in each worker; ``max_failures`` starts the job again)::

    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.tensorflow import TensorflowTrainer
    from multi_worker import train

    TensorflowTrainer(
        lambda: train("/shared/run", epochs=10),
        scaling_config=ScalingConfig(num_workers=4),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=20)),
    ).fit()
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile

import keras
import tensorflow as tf
from keras import layers

import keras_distill
from keras_distill import callbacks, data

BATCH = 128  # over all workers


def network(width: int) -> keras.Model:
    """A network for 8x8 digits."""
    dense = [layers.Dense(width, "relu") for _ in range(2)]
    return keras.Sequential([keras.Input((64,)), *dense, layers.Dense(10)])


def train(folder: str, epochs: int) -> None:
    """Train one student from one teacher; every worker runs this, on one machine or on many."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else
    worker = strategy.cluster_resolver.task_id or 0
    digits, backup = data.load("digits"), callbacks.Backup(f"{folder}/backups")
    x, y = digits.train.inputs.reshape(-1, 64), digits.train.labels
    steps = len(y) // BATCH

    def order(epoch: tf.Tensor) -> tf.data.Dataset:
        ids = tf.random.experimental.stateless_shuffle(tf.range(len(y)), tf.stack([0, tf.cast(epoch, tf.int32)]))
        return tf.data.Dataset.from_tensor_slices(ids[: steps * BATCH])

    batches = tf.data.Dataset.range(backup.epoch, epochs).flat_map(order).batch(BATCH, drop_remainder=True)
    batches = batches.map(lambda ids: (tf.gather(x, ids), tf.gather(y, ids)))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = batches.with_options(options)
    test = tf.data.Dataset.from_tensor_slices((digits.test.inputs.reshape(-1, 64), digits.test.labels)).batch(BATCH)

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with strategy.scope():
        teacher = keras.models.load_model(f"{folder}/teacher.keras", compile=False)
        term = keras_distill.LogitsDistillation(temperature=4.0)
        distiller = keras_distill.Distiller(teacher, network(32), term, student_loss_weight=0.1)
        distiller.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    history = distiller.fit(batches, epochs=epochs, steps_per_epoch=steps, callbacks=[backup], verbose=0).history
    result = distiller.evaluate(test.with_options(options), verbose=0, return_dict=True)
    print(f"worker {worker}: loss {history['loss'][0]:.6f} -> {history['loss'][-1]:.6f}, ", end="")
    print(f"test accuracy {result['accuracy']:.4f}", flush=True)
    if worker == 0:
        distiller.student.save(f"{folder}/student.keras")


def make_teacher(folder: str) -> None:
    """Train a teacher if there is none: done once, before the job."""
    digits = data.load("digits").train
    keras.utils.set_random_seed(0)
    teacher = network(256)
    teacher.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    teacher.fit(digits.inputs.reshape(-1, 64), digits.labels, batch_size=64, epochs=5, verbose=0)
    teacher.save(f"{folder}/teacher.keras")


def config_of_slurm() -> str:
    """Make TF_CONFIG from Slurm's variables, one task on each node."""
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    hosts = subprocess.check_output(command, text=True).split()
    task = {"type": "worker", "index": int(os.environ["SLURM_PROCID"])}
    return json.dumps({"cluster": {"worker": [f"{host}:12345" for host in hosts]}, "task": task})


def here(folder: str, arguments: list[str]) -> int:
    """Start two workers on this machine."""
    with socket.socket() as one, socket.socket() as two:  # two free ports
        one.bind(("localhost", 0))
        two.bind(("localhost", 0))
        cluster = {"worker": [f"localhost:{each.getsockname()[1]}" for each in (one, two)]}
    processes = []
    for index in range(2):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        command = [sys.executable, __file__, "--worker", "--folder", folder, *arguments]
        processes.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": config}))
    return max(process.wait() for process in processes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a short run")
    parser.add_argument("--worker", action="store_true", help="be one worker of the cluster in TF_CONFIG")
    parser.add_argument("--slurm", action="store_true", help="make TF_CONFIG from Slurm's variables")
    parser.add_argument("--make-teacher", action="store_true", help="train the teacher and stop")
    parser.add_argument("--folder", default=tempfile.mkdtemp(), help="shared by all workers")
    options = parser.parse_args()
    if options.slurm:
        os.environ["TF_CONFIG"] = config_of_slurm()
    if options.worker:
        train(options.folder, epochs=4 if options.smoke else 40)
    else:
        make_teacher(options.folder)
        sys.exit(0 if options.make_teacher else here(options.folder, ["--smoke"] if options.smoke else []))
