"""Training runs that tests start as separate processes, kill and restart; see ``test_faults*.py``."""

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, callbacks
from tests.models import batch, mlp

EPOCHS, STEPS, BATCH = 12, 10, 8


class KillAt(keras.callbacks.Callback):
    """Send SIGKILL to this process after a number of steps."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def student():
    init = keras.initializers.GlorotUniform(seed=3)
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(16, "relu", kernel_initializer=init), keras.layers.BatchNormalization(),
         keras.layers.Dropout(0.3, seed=4), keras.layers.Dense(4, kernel_initializer=init)]
    )  # fmt: skip


def make():
    """Everything that has state to resume: Adam, dropout, BatchNorm, schedules, an adaptive callback."""
    decay = keras.optimizers.schedules.PolynomialDecay(4.0, EPOCHS * STEPS, end_learning_rate=1.0)
    rate = keras.optimizers.schedules.CosineDecay(0.02, EPOCHS * STEPS)
    distiller = Distiller(mlp(8, 4, seed=1), student(), LogitsDistillation(decay), [1.0], student_loss_weight=0.4)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(rate), cross_entropy, metrics=["accuracy"])
    return distiller


def shuffled(epoch):
    """The order of the examples in an epoch, a function of its number only."""
    return tf.random.experimental.stateless_shuffle(tf.range(STEPS * BATCH), tf.stack([0, tf.cast(epoch, tf.int32)]))


def train(directory, *more, epochs=EPOCHS, change=None):
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    x, y = batch(EPOCHS * BATCH)
    backup = callbacks.Backup(directory, delete_checkpoint=False)
    numbers = tf.data.Dataset.range(backup.epoch, epochs)
    ids = numbers.flat_map(lambda epoch: tf.data.Dataset.from_tensor_slices(shuffled(epoch)))
    data = ids.map(lambda i: (tf.gather(x, i), tf.gather(y, i))).batch(BATCH)
    if change is not None:
        data = data.enumerate(backup.epoch * STEPS).map(change)
    distiller = make()
    policy = callbacks.EarlyStoppedDistillation("val_loss", patience=2, fade_epochs=4)
    history = distiller.fit(
        data, epochs=epochs, steps_per_epoch=STEPS, validation_data=(x[80:], y[80:]), verbose=0,
        callbacks=[policy, *more, backup],
    )  # fmt: skip
    return distiller, history


def whole(directory, out, *more):
    """Train to the end, and save everything that must be the same after a resume."""
    distiller, history = train(directory, *more)
    arrays = [*distiller.get_weights(), *(v.numpy() for v in distiller.optimizer.variables)]
    np.savez(out, *arrays)
    Path(f"{out}.json").write_text(json.dumps([history.epoch, history.history], default=float))


def stop_after(directory, epochs):
    """Train some of the epochs: leaves the files of a run killed at the beginning of the next epoch."""
    train(directory, StopAfter(int(epochs)))


class StopAfter(keras.callbacks.Callback):
    """Ends this process after an epoch's backup."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epochs:
            os._exit(0)


def on_a_full_disk(directory, out):
    """From the fourth epoch on, limit the size of files to less than a backup."""

    class Fill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    whole(directory, out, Fill())


def with_a_nan(directory, step):
    """One input of one batch is NaN."""
    train(directory, change=lambda i, each: (tf.where(i == int(step), float("nan"), 1.0) * each[0], each[1]))


def with_a_broken_record(directory, step):
    """One batch cannot be read."""

    def change(i, each):
        check = tf.debugging.Assert(i != int(step), [f"the record at step {step} cannot be read"])
        with tf.control_dependencies([check]):
            return tf.identity(each[0]), each[1]

    train(directory, change=change)


def with_a_teacher_too_large():
    """The teacher allocates terabytes for one tensor."""

    class Huge(keras.layers.Layer):
        def call(self, x):
            many = keras.ops.tile(x[:, :1], (1, 2_000_000))
            return x + keras.ops.sum(keras.ops.matmul(many[:, :, None], many[:, None, :]))

    teacher = keras.Sequential([keras.Input((6,)), Huge(name="too_large"), keras.layers.Dense(4)])
    distiller = Distiller(teacher, mlp(5, 4), LogitsDistillation(), student_loss_weight=0.0)
    distiller.compile("sgd")
    distiller.fit(batch(8)[0], verbose=0)


def apart(function, *arguments):
    """Run a function in a separate process, forked before TensorFlow runs anything; return its id."""
    child = os.fork()
    if child:
        return child
    try:
        function(*arguments)
        sys.stdout.flush()
        os._exit(0)
    finally:
        import traceback

        traceback.print_exc()
        os._exit(1)


def serve():
    """Run the jobs that standard input names, one after the other, each forked from this process with its imports.

    A line is a JSON list: the file for what the job prints, the job's name, its arguments. Two lines answer it: the id
    of the process, and its exit code.
    """

    def job(pipe, name, *arguments):
        os.dup2(pipe, 1)
        os.dup2(pipe, 2)
        os.close(pipe)
        globals()[name](*arguments)

    for line in sys.stdin:
        log, *what = json.loads(line)
        printed, pipe = os.pipe()  # not a file: jobs may not be able to write one
        child = apart(job, pipe, *what)
        os.close(pipe)
        print(child, flush=True)
        with open(printed, "rb") as stream:
            Path(log).write_bytes(stream.read())
        print(ended(child), flush=True)


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_while_writing(directory, out):
    """Kill a run as soon as it starts writing a backup; return whether the kill came in time."""
    child = apart(whole, directory, out)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if list(Path(directory).glob(".writing-*/state.weights.h5")):
            os.kill(child, signal.SIGKILL)
            return ended(child) == -signal.SIGKILL
        time.sleep(0.0005)
    return False


def kill_and_resume(folder):
    """Once uninterrupted, once killed 20 times: 16 times after a random number of steps, 4 times while writing."""
    folder = Path(folder)
    if ended(apart(whole, folder / "one", folder / "expected.npz")):
        raise SystemExit("the uninterrupted run failed")
    dice, kills = random.Random(7), []
    for number in range(20):
        if number % 5 == 4:
            if killed_while_writing(folder / "many", folder / "got.npz"):
                kills.append("writing")
            continue
        steps = dice.randint(1, 14)
        code = ended(apart(whole, folder / "many", folder / "got.npz", KillAt(steps)))
        if code != -signal.SIGKILL:
            raise SystemExit(f"expected a kill, got {code}")
        kills.append(steps)
    if ended(apart(whole, folder / "many", folder / "got.npz")):
        raise SystemExit("the last run failed")
    sys.stdout.write(json.dumps(kills) + "\n")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
