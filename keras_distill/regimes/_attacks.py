"""Adversarial examples: small changes of inputs, within a box, that raise a model's loss most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill._checks import error, integer, number


@keras.saving.register_keras_serializable(package="keras_distill")
class ProjectedGradient:
    """Moves inputs by at most ``epsilon`` per value, in steps along the sign of the loss gradient (PGD).

    Choose it to measure how robust a model is, and inside ``AdversarialTraining``. It needs gradients with respect to
    the inputs and costs ``num_steps`` training passes. A model with vanishing gradients may look robust without being
    so: compare several numbers of steps, and another kind of attack.

    Formula: x_0 = x + u, u uniform in [-epsilon, epsilon]; x_{i+1} = clip(x_i + step_size * sign(gradient of loss)),
    clipped to x +- epsilon and to ``low``..``high``. No value moves by more than ``epsilon``, not even one that is out
    of bounds.

    Args:
        epsilon: > 0, in the unit of the inputs.
        step_size: > 0, in the same unit; 2.5 * epsilon / num_steps if None.
        num_steps: >= 1.
        low: least value that an input may have.
        high: greatest value, above ``low``.
        random_start: whether to start at a random point of the box instead of the input.
        seed: >= 0, of the random start.

    Raises:
        ValueError: if an argument is out of bounds.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("linear")])
        >>> attack = ProjectedGradient(0.25, num_steps=3, random_start=False)
        >>> attack(model, np.array([[0.5, 0.5]]), np.array([0]))
        array([[0.25, 0.75]], dtype=float32)

    Reference:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083,
        section 2.1. Differs: nothing.
    """

    def __init__(
        self,
        epsilon: float,
        step_size: float | None = None,
        num_steps: int = 10,
        *,
        low: float = 0.0,
        high: float = 1.0,
        random_start: bool = True,
        seed: int = 0,
    ) -> None:
        owner = type(self).__name__
        self.epsilon = number(owner, "epsilon", epsilon, above=0.0, advice="It is in the unit of the inputs")
        self.num_steps = integer(owner, "num_steps", num_steps, low=1)
        size = 2.5 * self.epsilon / self.num_steps if step_size is None else step_size
        self.step_size = number(owner, "step_size", size, above=0.0)
        self.low, self.high = number(owner, "low", low), number(owner, "high", high)
        if self.low >= self.high:
            raise error(owner, "low < high", f"{self.low} and {self.high}")
        self.random_start, self.seed = bool(random_start), integer(owner, "seed", seed, low=0)

    def __str__(self) -> str:
        """Return a description of the attack, for a report."""
        name = "FGSM" if self.num_steps == 1 and not self.random_start else f"PGD of {self.num_steps} steps"
        return f"{name}, epsilon {self.epsilon:g}"

    def perturb(self, loss: Callable[[Any], Any], x: Any, seed: Any = None) -> Any:
        """Return perturbed inputs, in a graph or eagerly; no gradient flows through them.

        Args:
            loss: maps inputs to one value per example, to be raised; examples must not depend on each other.
            x: (batch, ...), float.
            seed: a ``keras.random.SeedGenerator`` for a random start; None starts at ``x``.

        Returns:
            Tensor of the shape and type of ``x``.
        """
        x = ops.stop_gradient(ops.convert_to_tensor(x))
        least = ops.maximum(x - self.epsilon, ops.minimum(x, self.low))
        most = ops.minimum(x + self.epsilon, ops.maximum(x, self.high))
        moved = x
        if seed is not None and self.random_start:
            noise = keras.random.uniform(ops.shape(x), -self.epsilon, self.epsilon, dtype=x.dtype, seed=seed)
            moved = ops.clip(x + noise, least, most)

        def step(index: Any, moved: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                tape.watch(moved)
                value = ops.sum(loss(moved))
            uphill = ops.sign(tape.gradient(value, moved))
            return index + 1, ops.clip(moved + self.step_size * uphill, least, most)

        _, moved = tf.while_loop(
            lambda index, _: index < self.num_steps, step, (0, moved), maximum_iterations=self.num_steps
        )
        return ops.stop_gradient(moved)

    def __call__(
        self, model: keras.Model, x: Any, labels: Any, *, from_logits: bool = True, batch_size: int = 256
    ) -> np.ndarray:
        """Return inputs on which the model's cross-entropy is high; equal seeds give equal examples.

        Args:
            model: a model with output (examples, classes), run in inference mode.
            x: (examples, ...), float.
            labels: (examples,), integer.
            from_logits: whether the model gives logits or probabilities.
            batch_size: >= 1.

        Returns:
            Array of the shape of ``x``, float32.

        Raises:
            ValueError: if there is not one integer label for each example.
        """
        owner = type(self).__name__
        x, labels = labelled_examples(owner, x, labels)
        size, seed = integer(owner, "batch_size", batch_size, low=1), keras.random.SeedGenerator(self.seed)

        @tf.function(reduce_retracing=True)
        def moved(rows: Any, truth: Any) -> Any:
            def loss(inputs: Any) -> Any:
                return cross_entropy(model(inputs, training=False), truth, from_logits=from_logits)

            return self.perturb(loss, rows, seed)

        parts = [
            moved(tf.constant(x[i : i + size]), tf.constant(labels[i : i + size])).numpy()
            for i in range(0, len(x), size)
        ]
        return np.concatenate(parts) if parts else x

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        names = ("epsilon", "step_size", "num_steps", "low", "high", "random_start", "seed")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ProjectedGradient:
        """Rebuild the attack from ``get_config``."""
        return cls(**config)


def fast_gradient_sign(epsilon: float, *, low: float = 0.0, high: float = 1.0) -> ProjectedGradient:
    """Return the one-step attack along the sign of the gradient at the input (FGSM).

    Choose it when time is short: it is much weaker than ``ProjectedGradient`` with several steps.

    Formula: clip(x + epsilon * sign(gradient of the loss), low, high).

    Args:
        epsilon: > 0, in the unit of the inputs.
        low: least value that an input may have.
        high: greatest value, above ``low``.

    Returns:
        A ``ProjectedGradient``.

    Raises:
        ValueError: if an argument is out of bounds.

    Example:
        >>> str(fast_gradient_sign(0.1))
        'FGSM, epsilon 0.1'

    Reference:
        Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572.
        Differs: nothing.
    """
    return ProjectedGradient(epsilon, epsilon, 1, low=low, high=high, random_start=False)


def labelled_examples(owner: str, x: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs as float32 and labels as arrays, or raise if there is not one integer label for each example.

    Args:
        owner: name shown in the error message.
        x: (examples, ...).
        labels: (examples,), integer.
    """
    x, labels = np.asarray(x, "float32"), np.asarray(labels)
    if labels.shape != (len(x),) or not np.issubdtype(labels.dtype, np.integer):
        raise error(owner, "one integer label for each example", f"{labels.dtype} of shape {labels.shape}")
    return x, labels


def cross_entropy(outputs: Any, labels: Any, *, from_logits: bool = True) -> Any:
    """Return -log p of the label of each example, (batch,), float32.

    Args:
        outputs: (batch, classes), logits or probabilities.
        labels: (batch,) or (batch, 1) integer, or (batch, classes) shares.
        from_logits: whether ``outputs`` are logits.
    """
    outputs, labels = ops.cast(outputs, "float32"), ops.convert_to_tensor(labels)
    logs = ops.log_softmax(outputs, axis=-1) if from_logits else ops.log(ops.maximum(outputs, 1e-38))
    if len(labels.shape) == 2 and labels.shape[-1] == logs.shape[-1]:
        return -ops.sum(ops.cast(labels, "float32") * logs, axis=-1)
    labels = ops.reshape(labels, (-1,)) if len(labels.shape) == 2 else labels
    return -ops.sum(ops.one_hot(ops.cast(labels, "int32"), logs.shape[-1]) * logs, axis=-1)
