"""Applies gradients; plain Adam uses TensorFlow's fused kernel, every other optimizer its own step.

Keras writes Adam as about ten operations, each of which reads and writes every weight or its moments. In a step that
XLA does not compile, this takes a sixth of the time of a large MLP. TensorFlow has the same formula as one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf


def by_xla(model: keras.Model) -> bool:
    """Return whether XLA compiles the training step of a compiled model.

    Args:
        model: the model that is fitted.
    """
    return bool(model.jit_compile and not model.run_eagerly)


def update(
    optimizer: keras.optimizers.Optimizer, gradients: Sequence[Any], weights: Sequence[Any], xla: bool = False
) -> None:
    """Apply gradients.

    Args:
        optimizer: applies them; clipping, decay, averages and accumulation are always its own.
        gradients: one for each weight: a tensor, the rows of an embedding, or None.
        weights: the variables.
        xla: whether XLA compiles the step: it fuses Keras' operations, so everything is left to the optimizer.
    """
    if xla or not is_plain_adam(optimizer) or tf.distribute.has_strategy():
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return
    # For this call only, bypassing Keras' __setattr__, which would track it.
    object.__setattr__(optimizer, "update_step", _fused_step(optimizer))
    try:
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
    finally:
        object.__delattr__(optimizer, "update_step")


def is_plain_adam(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether this is Keras' own Adam or AdamW, and not a subclass.

    Args:
        optimizer: any optimizer.
    """
    return type(optimizer) in (keras.optimizers.Adam, keras.optimizers.AdamW) and not optimizer.amsgrad


def _fused_step(optimizer: Any) -> Callable[[Any, Any, Any], None]:
    """Return an ``update_step`` that computes the same as Adam's own."""
    keras_own = optimizer.update_step
    # Computed once per step; Keras computes them for every weight.
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
