"""The update of the student's weights: the optimizer's own; of Adam, TensorFlow's one pass over each weight.

Keras writes Adam as some ten operations, each of which reads and writes every weight or its moments again. In a step
that XLA does not compile that is a sixth of the time of a large MLP. TensorFlow has the same formula as one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


def by_xla(model: keras.Model) -> bool:
    """Return whether XLA compiles this model's training step.

    Args:
        model: a compiled one.
    """
    return bool(model.jit_compile and not model.run_eagerly)


def update(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any], weights: Sequence[Any], xla: bool = False
) -> None:
    """Apply gradients.

    Args:
        optimizer: what applies them; all it does beside Adam's formula (clipping, decay, averages, accumulation) stays.
        gradients: one for each of the weights: a tensor, the rows of an embedding, or None.
        weights: what is trained.
        xla: whether XLA compiles the step: it fuses what Keras writes, and all is left to the optimizer.
    """
    if xla or not is_plain_adam(optimizer) or tf.distribute.has_strategy():
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return
    # Of this object and for this call alone: not through Keras' __setattr__, which would keep it.
    object.__setattr__(optimizer, "update_step", _in_one_pass(optimizer))
    try:
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
    finally:
        object.__delattr__(optimizer, "update_step")


def is_plain_adam(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether this is Keras' Adam or AdamW, not what a user made of it.

    Args:
        optimizer: what applies the gradients.
    """
    return type(optimizer) in (keras.optimizers.Adam, keras.optimizers.AdamW) and not optimizer.amsgrad


def _in_one_pass(optimizer: Any) -> Callable[[Any, Any, Any], None]:
    """Return an ``update_step`` that computes what Adam's own does."""
    keras_own = optimizer.update_step
    # Once, where Keras computes them anew for every weight.
    step = tf.cast(optimizer.iterations + 1, tf.float32)
    powers = [tf.pow(tf.cast(beta, tf.float32), step) for beta in (optimizer.beta_1, optimizer.beta_2)]

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        if isinstance(gradient, tf.IndexedSlices) or variable.dtype != tf.float32:
            keras_own(gradient, variable, learning_rate)
            return
        index = optimizer._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=optimizer._momentums[index].value.handle,
            v=optimizer._velocities[index].value.handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=tf.cast(learning_rate, tf.float32),
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            epsilon=optimizer.epsilon,
            grad=tf.cast(gradient, tf.float32),
        )

    return update_step
