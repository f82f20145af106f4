"""Linear-chain CRF: the last layer of a tagger whose neighbouring tags depend on each other."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import losses
from keras_distill._checks import error, integer
from keras_distill._typing import Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class LinearChainCrf(keras.layers.Layer):
    """Scores of tags and of their transitions (CRF): put it after the layer that outputs one score per tag.

    Its output is a tensor of potentials. ``losses.CrfNegativeLogLikelihood`` trains on it, ``losses.crf_decode``
    returns the likeliest tags, and ``losses.crf_log_marginals``, or ``teachers.crf_marginals`` for a whole model, the
    tag probabilities of each token.

    Args:
        num_tags: >= 1.
        **kwargs: as for ``keras.layers.Layer``.

    Call:
        scores (batch, tokens, num_tags), float. Returns (batch, tokens, num_tags, num_tags): at [t, i, j] the score of
        tag j at token t plus that of tag j following tag i. The Keras mask of the scores is passed on.

    Raises:
        ValueError: if ``num_tags`` is below 1 or the last axis of the scores has another size.

    Example:
        >>> import keras
        >>> LinearChainCrf(3)(keras.ops.zeros((2, 5, 3))).shape
        TensorShape([2, 5, 3, 3])
    """

    def __init__(self, num_tags: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_tags = integer("LinearChainCrf", "num_tags", num_tags, low=1)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Create the transition scores."""
        if len(input_shape) != 3 or input_shape[-1] != self.num_tags:
            raise error("LinearChainCrf", f"scores of shape (batch, tokens, {self.num_tags})", str(tuple(input_shape)))
        self.transitions = self.add_weight(shape=(self.num_tags, self.num_tags), name="transitions")
        self.start = self.add_weight(shape=(self.num_tags,), initializer="zeros", name="start")
        self.built = True

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """Return the potentials."""
        kept = ops.ones_like(inputs[..., 0], dtype="bool") if mask is None else ops.cast(mask, "bool")
        first = ops.logical_and(kept, ops.equal(ops.cumsum(ops.cast(kept, "int32"), axis=1), 1))
        before = ops.where(first[..., None, None], self.start, self.transitions)
        return inputs[..., None, :] + ops.cast(before, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return (batch, tokens, num_tags, num_tags)."""
        return (*input_shape, self.num_tags)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "num_tags": self.num_tags}


@keras.saving.register_keras_serializable(package="keras_distill")
class CrfMarginals(keras.layers.Layer):
    """Log-probability of each tag at each token, from potentials: ``losses.crf_log_marginals`` as a layer.

    Args:
        **kwargs: as for ``keras.layers.Layer``.

    Call:
        potentials (batch, tokens, tags, tags). Returns (batch, tokens, tags), float32, log-probabilities: logits whose
        softmax is the marginal distribution.

    Example:
        >>> import keras
        >>> CrfMarginals()(keras.ops.zeros((1, 4, 2, 2))).shape
        TensorShape([1, 4, 2])
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """Return the log-marginals."""
        return losses.crf_log_marginals(potentials=inputs, mask=mask)

    def compute_output_spec(self, inputs: Tensor, mask: Tensor = None) -> keras.KerasTensor:
        """Return (batch, tokens, tags), float32."""
        return keras.KerasTensor(inputs.shape[:-1], dtype="float32")
