"""Networks that turn noise into a teacher's inputs, and data sets made by them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill._checks import error, integer


def make_generator(teacher: keras.Model, noise_size: int = 100, width: int = 128) -> keras.Model:
    """Return an untrained generator whose outputs have the shape of ``teacher``'s inputs.

    Use it as a start; any Keras model from (batch, noise_size) to the teacher's input works. Vectors come from two
    dense layers, images from two up-sampled convolutions. The last layer is a BatchNormalization, so that the outputs
    start centred with variance 1 and learn their range.

    Args:
        teacher: a model with one input of known shape: (features,) or (height, width, channels).
        noise_size: >= 1, length of a noise vector.
        width: >= 1, units or filters of the widest layer.

    Returns:
        A built Keras model.

    Raises:
        ValueError: if the teacher does not have one input of such a shape.

    Example:
        >>> import keras
        >>> make_generator(keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten()])).output_shape
        (None, 28, 28, 1)

    Reference:
        Micaelli, Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019,
        arXiv:1905.09768. Differs: sizes follow the teacher's input.
    """
    shape = input_shape(teacher, "make_generator")
    integer("make_generator", "noise_size", noise_size, low=1)
    integer("make_generator", "width", width, low=1)
    layers = keras.layers
    noise = keras.Input((noise_size,), name="noise")
    if len(shape) == 1:
        x = noise
        for units in (width, 2 * width):
            x = layers.LeakyReLU(0.2)(layers.BatchNormalization()(layers.Dense(units)(x)))
        return keras.Model(noise, layers.BatchNormalization()(layers.Dense(shape[0])(x)), name="generator")
    height, breadth, channels = shape
    low = (-(-height // 4), -(-breadth // 4))
    x = layers.Dense(low[0] * low[1] * width)(noise)
    x = layers.BatchNormalization()(layers.Reshape((*low, width))(x))
    for filters in (width, width // 2 or 1):
        x = layers.UpSampling2D()(x)
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.LeakyReLU(0.2)(layers.BatchNormalization()(x))
    x = layers.Conv2D(channels, 3, padding="same")(x)
    spare = (4 * low[0] - height, 4 * low[1] - breadth)
    if any(spare):
        x = layers.Cropping2D(((0, spare[0]), (0, spare[1])))(x)
    return keras.Model(noise, layers.BatchNormalization()(x), name="generator")


def synthesize(generator: keras.Model, num_examples: int, *, seed: int = 0, batch_size: int = 256) -> np.ndarray:
    """Return inputs made from noise, to inspect, to keep, or for further distillation.

    Args:
        generator: a model from noise (batch, noise_size) to inputs, trained by ``DataFree``.
        num_examples: >= 1.
        seed: >= 0, seed of the noise.
        batch_size: >= 1.

    Returns:
        Array of shape (num_examples, ...), float32.

    Example:
        >>> import keras
        >>> generator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> synthesize(generator, 5).shape
        (5, 2)
    """
    integer("synthesize", "num_examples", num_examples, low=1)
    noise = np.random.default_rng(seed).normal(size=(num_examples, generator.input_shape[-1])).astype("float32")
    parts = [generator(noise[i : i + batch_size], training=False) for i in range(0, num_examples, batch_size)]
    return np.concatenate([keras.ops.convert_to_numpy(part) for part in parts]).astype("float32")


def input_shape(model: Any, owner: str) -> tuple[int, ...]:
    """Return the shape of one example of a model's single input.

    Args:
        model: a Keras model.
        owner: name shown in the message.
    """
    inputs = getattr(model, "inputs", None)
    shape = tuple(inputs[0].shape[1:]) if inputs and len(inputs) == 1 else None
    if shape is None or None in shape or len(shape) not in (1, 3):
        got = "no such input" if shape is None else f"shape {shape}"
        advice = "Give a generator of your own"
        raise error(owner, "a teacher with one input, (features,) or (height, width, channels)", got, advice)
    return shape
