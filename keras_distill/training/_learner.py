"""One trained model: its weights, the state that its forward pass changes, and the optimizer that updates it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_distill import adapters
from keras_distill.terms import DistillationLoss
from keras_distill.training import _fused_adam


class Learner:
    """A model, the layers trained along with it, and their optimizer.

    Args:
        model: the model that is trained.
        parts: further layers or models whose trainable weights the same optimizer updates (adapters, a learned gate).
        optimizer: a ``keras.optimizers.Optimizer``.
        name: name shown in error messages, where several models are trained; empty where there is only one.
    """

    def __init__(
        self,
        model: keras.Model,
        parts: Sequence[keras.layers.Layer] = (),
        optimizer: Any = None,
        name: str = "",
    ) -> None:
        self.model = model
        self.parts = tuple(parts)
        self.optimizer = optimizer
        self.name = name

    @property
    def weights(self) -> list[Any]:
        """The variables that the optimizer updates, each once, the model's first."""
        found = {id(weight): weight for part in (self.model, *self.parts) for weight in part.trainable_weights}
        return list(found.values())

    @property
    def scales_loss(self) -> bool:
        """Whether the optimizer scales the loss against float16 underflow and skips bad steps itself."""
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def build_optimizer(self) -> None:
        """Create the optimizer's variables if there are none yet and there is something to train."""
        weights = self.weights
        if weights and not self.optimizer.built:
            self.optimizer.build(weights)

    def moving_state(self) -> list[tuple[Any, tf.Tensor]]:
        """Return the variables that a training pass writes, with their values before it.

        These are BatchNorm's statistics and the vectors and kernels of spectral normalisation. Terms are left out: they
        write only schedules, and memories, which are as large as the data set and refuse non-finite values themselves.
        """
        own = (DistillationLoss, adapters.MemoryBank)
        layers = [layer for part in (self.model, *self.parts) for layer in part._flatten_layers() if layer.trainable]
        found = [v for layer in layers if not isinstance(layer, own) for v in layer._non_trainable_variables]
        found += [layer.kernel for layer in layers if isinstance(layer, keras.layers.SpectralNormalization)]
        floats = [v for v in found if "float" in keras.backend.standardize_dtype(v.dtype)]
        return [(variable, tf.identity(variable)) for variable in floats]

    def update(self, gradients: Sequence[Any], *, xla: bool = False) -> None:
        """Apply one gradient to each of the weights.

        Args:
            gradients: in the order of ``weights``: tensors, rows of embeddings, or None.
            xla: whether XLA compiles the step.
        """
        _fused_adam.update(self.optimizer, gradients, self.weights, xla=xla)
