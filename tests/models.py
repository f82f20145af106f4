"""Small models and data that several test files use."""

import keras
import numpy as np
import tensorflow as tf


def mlp(*units, inputs=6, seed=0, name=None, activation="relu"):
    """Dense layers named dense_0, dense_1, ...; the last one is linear."""
    layers = [keras.Input((inputs,))]
    for index, size in enumerate(units):
        last = index == len(units) - 1
        init = keras.initializers.GlorotUniform(seed=seed + index)
        layers.append(
            keras.layers.Dense(
                size, activation=None if last else activation, kernel_initializer=init, name=f"dense_{index}"
            )
        )
    return keras.Sequential(layers, name=name)


def batch(examples=32, inputs=6, classes=4, seed=0):
    """Inputs and integer labels."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(examples, inputs)).astype("float32"), rng.integers(0, classes, examples)


def batches(*arrays, size=32):
    """The arrays in batches, for many epochs: from arrays, Keras builds a new pipeline in each, ten times as slow."""
    options = tf.data.Options()
    options.autotune.enabled = False
    slices = arrays[0] if len(arrays) == 1 else arrays
    return tf.data.Dataset.from_tensor_slices(slices).batch(size).with_options(options)


def copy_of(model):
    """A model with the same weights."""
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def softmax(z, axis=-1):
    z = np.asarray(z, "float64")
    z = z - z.max(axis, keepdims=True)
    e = np.exp(z)
    return e / e.sum(axis, keepdims=True)


def log_softmax(z, axis=-1):
    z = np.asarray(z, "float64")
    z = z - z.max(axis, keepdims=True)
    return z - np.log(np.exp(z).sum(axis, keepdims=True))


def kd(teacher, student, temperature):
    """T**2 KL(teacher || student) per example, in float64."""
    # In float64 before the division: NumPy 1 would divide in float32.
    teacher, student = (np.asarray(logits, "float64") / temperature for logits in (teacher, student))
    return temperature**2 * (softmax(teacher) * (log_softmax(teacher) - log_softmax(student))).sum(-1)


def replicas(count):
    """A strategy over the first logical CPUs; of one, what runs without any strategy.

    Reduced on one device: TensorFlow's CPU collectives give each new strategy the same instance keys, so that a second
    strategy in one process fails with "Shape mismatch in the collective instance".
    """
    if count == 1:
        return tf.distribute.get_strategy()
    devices = [f"CPU:{index}" for index in range(count)]
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())
