"""Inputs synthesised from a trained classifier, without data or generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill._checks import error, integer, number
from keras_distill.regimes._generators import input_shape


def data_impressions(
    teacher: keras.Model,
    num_examples: int,
    *,
    scales: Sequence[float] = (1.0, 0.1),
    temperature: float = 20.0,
    steps: int = 1500,
    learning_rate: float = 0.01,
    batch_size: int = 100,
    seed: int = 0,
) -> np.ndarray:
    """Return inputs for which a teacher's answers follow the similarity of its classes (zero-shot distillation).

    Choose it when there are no data and a generator collapses, or to keep examples in a file. It is slow: every batch
    takes ``steps`` passes. Distil on the result with ``Distiller`` at the same temperature.

    Formula: w_k are the columns of the last layer's kernel, of unit length; c_k = w_k^T w, scaled to the range 0 to 1,
    is the row of class k. Targets y ~ Dirichlet(scale * c_k), equally many of each class and scale. Inputs start as
    N(0, 1) and minimise -sum_k y_k log softmax(z / temperature)_k by Adam.

    Args:
        teacher: a model with one input, whose last layer is a ``Dense`` that gives logits.
        num_examples: >= 1.
        scales: > 0 each; small values make answers of a single class.
        temperature: > 0, no unit.
        steps: >= 1, Adam steps for each batch.
        learning_rate: > 0, in the unit of the inputs.
        batch_size: >= 1.
        seed: >= 0, seed of targets and inputs.

    Returns:
        Array of shape (num_examples, ...), float32.

    Raises:
        ValueError: if the last layer is not a ``Dense`` with logits, or an argument is out of bounds.

    Example:
        >>> import keras
        >>> data_impressions(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), 5, steps=2).shape
        (5, 4)

    Reference:
        Nayak et al., "Zero-Shot Knowledge Distillation in Deep Networks", ICML 2019, arXiv:1905.08114, sec. 3.1-3.4.
        Differs: a small positive number is added to each concentration, because a Dirichlet's must be positive; inputs
        start from a normal distribution, for teachers with centred inputs.
    """
    owner = "data_impressions"
    shape, kernel = input_shape(teacher, owner), _last_kernel(owner, teacher)
    for name, value in (("num_examples", num_examples), ("steps", steps), ("batch_size", batch_size)):
        integer(owner, name, value, low=1)
    number(owner, "temperature", temperature, above=0.0)
    number(owner, "learning_rate", learning_rate, above=0.0)
    scales = [number(owner, "each of scales", each, above=0.0) for each in scales]
    if not scales:
        raise error(owner, "at least one scale", "none", "Use (1.0, 0.1)")
    rng = np.random.default_rng(integer(owner, "seed", seed, low=0))
    targets = dirichlet_targets(kernel, num_examples, scales, rng)
    optimizer = keras.optimizers.Adam(learning_rate)
    size = min(batch_size, num_examples)
    inputs = tf.Variable(tf.zeros((size, *shape)))
    optimizer.build([inputs])
    first = [tf.identity(each.value) for each in optimizer.variables]

    @tf.function
    def settle(wanted: Any) -> None:
        for _ in tf.range(steps):
            with tf.GradientTape() as tape:
                logits = ops.cast(teacher(inputs, training=False), "float32") / temperature
                loss = -tf.reduce_sum(wanted * ops.log_softmax(logits, axis=-1))
            optimizer.apply([tape.gradient(loss, inputs)], [inputs])

    found = []
    for start in range(0, num_examples, size):
        wanted = targets[start : start + size]
        count = len(wanted)
        wanted = np.resize(wanted, (size, wanted.shape[1]))  # the last batch is padded, to avoid retracing
        inputs.assign(rng.normal(size=(size, *shape)))
        for variable, value in zip(optimizer.variables, first, strict=True):
            variable.assign(value)
        settle(tf.constant(wanted, "float32"))
        found.append(inputs.numpy()[:count])
    return np.concatenate(found).astype("float32")


def dirichlet_targets(kernel: np.ndarray, num_examples: int, scales: Sequence[float], rng: Any) -> np.ndarray:
    """Return (num_examples, classes) distributions, alternating over classes and scales.

    Args:
        kernel: (features, classes), kernel of the last layer.
        num_examples: number of distributions.
        scales: factors of the concentrations.
        rng: NumPy random generator.
    """
    units = kernel / np.maximum(np.linalg.norm(kernel, axis=0, keepdims=True), 1e-12)
    alike = units.T @ units
    least, most = alike.min(-1, keepdims=True), alike.max(-1, keepdims=True)
    alike = (alike - least) / np.maximum(most - least, 1e-12)
    places = np.arange(num_examples)
    chosen = np.asarray(scales)[places // len(alike) % len(scales)]
    concentrations = chosen[:, None] * alike[places % len(alike)] + 1e-6
    # Each Dirichlet is a row of gamma variables, divided by their sum. Tiny concentrations may give zeros only.
    drawn = rng.gamma(concentrations) + 1e-30
    return drawn / drawn.sum(-1, keepdims=True)


def _last_kernel(owner: str, teacher: keras.Model) -> np.ndarray:
    last = teacher.layers[-1] if getattr(teacher, "layers", None) else teacher
    linear = isinstance(last, keras.layers.Dense) and last.activation is keras.activations.linear
    if not linear:
        advice = "Remove a softmax with taps.without_softmax(model)"
        raise error(owner, "a teacher whose last layer is a Dense that gives logits", type(last).__name__, advice)
    return np.asarray(keras.ops.convert_to_numpy(last.kernel), "float64")
