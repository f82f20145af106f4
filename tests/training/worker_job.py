"""One process of a cluster (or the only one): trains, and writes what came out; see ``test_multi_worker.py``."""

import json
import os
import signal

import keras
import numpy as np
import tensorflow as tf

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, callbacks, teachers
from tests.models import batch, mlp

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
    """Train the cases one after another: a process that has joined a cluster stays in it."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    for case in cases:
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
