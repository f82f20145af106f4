"""One process of a cluster (or the only one): trains and writes its results; see ``test_multi_worker.py``."""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, callbacks, regimes, teachers
from keras_distill.training._multi_worker import is_chief
from tests.faults import Faults
from tests.models import batch, mlp
from tests.processes import wait_for

EPOCHS, BATCH = 4, 8


class KillAt(keras.callbacks.Callback):
    """SIGKILL to this worker in the middle of an epoch."""

    def __init__(self, epoch, step):
        super().__init__()
        self.when = (epoch, step)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.when:
            os.kill(os.getpid(), signal.SIGKILL)


def work(cases, out, kill=None):
    """Train the cases one after another, since a process that has joined a cluster stays in it."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    for case in cases:
        kind, _, path = case.partition(":")
        if kind == "crashes":
            resume_everywhere(strategy, Path(path), out)
        elif kind == "regimes":
            train_regimes(strategy, out)
        else:
            train(strategy, case, out, kill)


def train(strategy, case, out, kill=None):
    """Train one case, ``live``, ``stored:<store>`` or ``backup:<directory>``; ``kill`` is an epoch and a step."""
    kind, _, path = case.partition(":")
    x, y = batch(34)  # the last batch of 8 has 2 examples
    data = tf.data.Dataset.from_tensor_slices((x, y, np.linspace(0.0, 2.0, 34).astype("float32"))).batch(BATCH)
    with strategy.scope():
        teacher = teachers.Stored(path) if kind == "stored" else mlp(8, 4, seed=1)
        adapter = keras.layers.Dense(8, kernel_initializer=keras.initializers.GlorotUniform(seed=9))
        terms = [LogitsDistillation(2.0), FeatureDistillation("mse", "dense_0", "dense_0", adapter=adapter)]
        distiller = Distiller(teacher, mlp(5, 4, seed=2), terms, student_loss_weight=0.4)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, weighted_metrics=["accuracy"])
    if kind == "stored":
        data = teacher.attach(data)  # with the right auto-shard policy
    else:
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        data = data.with_options(options)
    more = [callbacks.Backup(path, delete_checkpoint=False)] if kind == "backup" else []
    more += [KillAt(*kill)] if kill else []
    history = distiller.fit(data, epochs=EPOCHS, verbose=0, callbacks=more).history
    evaluated = distiller.evaluate(data, verbose=0, return_dict=True)
    np.savez(f"{out}-{kind}.npz", *[weight.numpy() for weight in distiller.trainable_weights])
    with open(f"{out}-{kind}.json", "w") as file:
        json.dump({"history": history, "evaluate": evaluated}, file, default=float)


def train_regimes(strategy, out):
    """Train peers, generations and stages; write the weights and the history of each."""
    x, y = batch(18)  # the last batch of 8 has 2 examples
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = data.with_options(options)
    with strategy.scope():  # drivers create models and optimizers during fit
        student, teacher = mlp(5, 4, seed=2), mlp(5, 4, seed=1)
        hints = Distiller(teacher, student, FeatureDistillation("mse", "dense_0", "dense_0"))
        logits = Distiller(teacher, student, LogitsDistillation(2.0))
        made = {
            "peers": regimes.MutualLearning([mlp(5, 4, seed=3), mlp(8, 4, seed=4)]),
            "generations": regimes.BornAgain(lambda: mlp(5, 4, seed=5), num_generations=1),
            "stages": regimes.Stages([regimes.Stage(hints), regimes.Stage(logits, freeze="dense_0")]),
        }
        for name, regime in made.items():
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            regime.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
            history = regime.fit(data, epochs=2, verbose=0).history
            models = getattr(regime, "students", None) or [regime.student]
            np.savez(f"{out}-{name}.npz", *[weight for model in models for weight in model.get_weights()])
            with open(f"{out}-{name}.json", "w") as file:
                json.dump({"history": history}, file, default=float)


def interrupt(epoch):
    if epoch == 1:
        raise KeyboardInterrupt


def names_in(directory):
    """The names in a directory; of a hidden one, only what it is for."""
    found = directory.iterdir() if directory.exists() else ()
    return frozenset(path.name.split("-")[0] if path.name.startswith(".") else path.name for path in found)


def resume_everywhere(strategy, folder, out):
    """Train while the chief copies the directory of backups before each operation on a file; resume one of each kind.

    Workers must agree on what they find, which is a matter of names. How much of a hidden folder was written or removed
    concerns each process alone, and ``tests/callbacks/test_backup.py`` resumes all of that. The models are made once:
    before each run all their state is set back to the beginning. Writes one line for each run: the name of the copy, a
    hash of weights and of the optimizer's state, and the history. At the end each worker is given a directory of its
    own.
    """
    data = tf.data.Dataset.from_tensor_slices(batch(10)).batch(BATCH)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = data.with_options(options)
    with strategy.scope():
        student = keras.Sequential([*mlp(5, 4, seed=2).layers, keras.layers.Dropout(0.3, seed=4)])
        distiller = Distiller(mlp(8, 4, seed=1), student, LogitsDistillation(2.0))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
        distiller.build((None, 6))
        distiller.optimizer.build(distiller.trainable_variables)
    beginning = f"{out}-beginning.weights.h5"
    distiller.save_weights(beginning)
    runs = []

    def run(directory):
        distiller.load_weights(beginning)
        given = [callbacks.Backup(directory, num_kept=1)]
        if not is_chief(strategy):  # the chief must wait for it before it removes the leftovers of a finished run
            given.insert(0, keras.callbacks.LambdaCallback(on_train_begin=lambda logs: time.sleep(0.2)))
        fitted = distiller.fit(data, epochs=2, verbose=0, callbacks=given)
        state = [*distiller.get_weights(), *(each.numpy() for each in distiller.optimizer.variables)]
        bits = hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in state)).hexdigest()
        assert not is_chief(strategy) or not list(directory.iterdir())
        runs.append([directory.name, bits, fitted.history, fitted.epoch])

    listed = folder / "states.json"
    if is_chief(strategy):
        with pytest.MonkeyPatch.context() as patch:
            (folder / "states").mkdir()
            states = Faults(patch, folder / "states").crash_points(folder / "run", lambda: run(folder / "run"))
            states = {names_in(state): state for state in states}.values()
        aside = listed.with_suffix(".part")
        aside.write_text(json.dumps(list(map(str, states))))
        aside.rename(listed)
    else:
        run(folder / "run")
    wait_for(listed.exists)
    for state in json.loads(listed.read_text()):
        run(Path(state))
    stop = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: interrupt(epoch))
    with pytest.raises(KeyboardInterrupt):
        distiller.fit(data, epochs=2, verbose=0, callbacks=[callbacks.Backup(folder / "common"), stop])
    own = folder / f"own-{is_chief(strategy)}"
    if is_chief(strategy):
        shutil.copytree(folder / "common", own)
    with pytest.raises(ValueError) as apart:
        distiller.fit(data, epochs=2, verbose=0, callbacks=[callbacks.Backup(own)])
    runs.append(["apart", str(apart.value)])
    Path(f"{out}-crashes.json").write_text(json.dumps(runs))
