"""Adapters for terms over several layers: attention-based fusion, embeddings of whole layers, a memory bank."""

from __future__ import annotations

import abc
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.adapters._base import Adapter
from keras_distill.adapters._projections import Shape, two
from keras_distill.adapters._regressors import normalization
from keras_distill.losses._features import maps


@keras.saving.register_keras_serializable(package="keras_distill")
class AttentionFusion(Adapter):
    """Fusion of a student's stage with the residual of deeper stages, gated by attention maps (ABF of ReviewKD).

    ``fusion([stage, residual])``, or ``fusion(stage)`` for the deepest, returns (output, fused): the output is compared
    with the teacher's stage, and the fused map is the residual for the next shallower stage.

    Args:
        filters: >= 1, the teacher's channels.
        hidden_filters: >= 1, the channels of the residual passed on, the same at every stage.
        size: (height, width) of the teacher's map; None keeps the student's.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> AttentionFusion(7, 6).compute_output_shape([(None, 4, 4, 5), (None, 2, 2, 6)])
        ((None, 4, 4, 7), (None, 4, 4, 6))

    Reference:
        Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044, section 3.2.
        Differs: nothing.
    """

    def __init__(self, filters: int, hidden_filters: int, size: tuple[int, int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = _checks.integer("AttentionFusion", "filters", filters, low=1)
        self.hidden_filters = _checks.integer("AttentionFusion", "hidden_filters", hidden_filters, low=1)
        self.size = None if size is None else two("AttentionFusion", size)
        options = {"padding": "same", "dtype": self.dtype_policy}
        self.reduce = keras.layers.Conv2D(self.hidden_filters, 1, use_bias=False, name="reduce", **options)
        self.expand = keras.layers.Conv2D(self.filters, 3, use_bias=False, name="expand", **options)
        self.gates = keras.layers.Conv2D(2, 1, activation="sigmoid", name="gates", **options)
        self.reduce_norm = normalization(self.dtype_policy, "reduce_norm")
        self.expand_norm = normalization(self.dtype_policy, "expand_norm")

    def build(self, input_shape: Any) -> None:
        """Create the variables; those of the gates only if there is a residual."""
        stage, residual = _stage_and_residual(input_shape)
        out, fused = self.compute_output_shape(input_shape)
        self.reduce.build(stage)
        self.reduce_norm.build((*stage[:-1], self.hidden_filters))
        self.expand.build(fused)
        self.expand_norm.build(out)
        if residual is not None:
            self.gates.build((*stage[:-1], 2 * self.hidden_filters))
        super().build(input_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Return (output, fused)."""
        stage, residual = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
        fused = self.reduce_norm(self.reduce(stage), training=training)
        if residual is not None:
            residual = _nearest(residual, fused.shape[1:3])
            gates = self.gates(ops.concatenate([fused, residual], axis=-1))
            fused = fused * gates[..., :1] + residual * gates[..., 1:]
        if self.size is not None:
            fused = _nearest(fused, self.size)
        return self.expand_norm(self.expand(fused), training=training), fused

    def compute_output_shape(self, input_shape: Any) -> tuple[Shape, Shape]:
        """Return the shapes of output and fused map."""
        stage, _ = _stage_and_residual(input_shape)
        places = stage[1:3] if self.size is None else self.size
        return (stage[0], *places, self.filters), (stage[0], *places, self.hidden_filters)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        size = None if self.size is None else list(self.size)
        return {**super().get_config(), "filters": self.filters, "hidden_filters": self.hidden_filters, "size": size}


def _stage_and_residual(input_shape: Any) -> tuple[Shape, Shape | None]:
    if isinstance(input_shape[0], int) or input_shape[0] is None:
        return tuple(input_shape), None
    return tuple(input_shape[0]), tuple(input_shape[1])


def _nearest(features: Tensor, size: Any) -> Tensor:
    """Resize a map by repeating the nearest cell: new row i is old row floor(i * old / new)."""
    for axis, wanted in enumerate(size, start=1):
        length = features.shape[axis]
        if length != wanted:
            features = ops.take(features, np.arange(wanted) * length // wanted, axis=axis)
    return features


class _TwoLayerEmbedding(Adapter, abc.ABC):
    """Two linear maps with a ReLU between them, scaled to length 1."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = _checks.integer(type(self).__name__, "units", units, low=1)
        self.first = keras.layers.Dense(2 * self.units, activation="relu", dtype=self.dtype_policy, name="first")
        self.second = keras.layers.Dense(self.units, dtype=self.dtype_policy, name="second")

    @abc.abstractmethod
    def _width(self, input_shape: Shape) -> int | None:
        """Return the number of columns of ``_rows`` for inputs of this shape."""

    @abc.abstractmethod
    def _rows(self, inputs: Tensor) -> Tensor:
        """Return the vector to embed of each example, (batch, width)."""

    def build(self, input_shape: Shape) -> None:
        """Create the variables."""
        width = self._width(input_shape)
        self.first.build((None, width))
        self.second.build((None, 2 * self.units))
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        """Return (batch, units), rows of length 1."""
        return maps.unit(self.second(self.first(self._rows(inputs))))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the output."""
        return (input_shape[0], self.units)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="keras_distill")
class LayerEmbedding(_TwoLayerEmbedding):
    """Embedding of a whole layer from the mean over its positions, for attention between layers; any batch size.

    Args:
        units: >= 1, the same for every layer of teacher and student.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> LayerEmbedding(32).compute_output_shape((None, 8, 8, 64))
        (None, 32)
    """

    def _width(self, input_shape: Shape) -> int | None:
        return input_shape[-1]

    def _rows(self, inputs: Tensor) -> Tensor:
        return ops.mean(inputs, axis=tuple(range(1, len(inputs.shape) - 1))) if len(inputs.shape) > 2 else inputs


@keras.saving.register_keras_serializable(package="keras_distill")
class SimilarityEmbedding(_TwoLayerEmbedding):
    """Embedding of a whole layer from each example's similarities to the batch, as published (SemCKD).

    Its input width is the batch size, which must not change: drop the last, smaller batch. ``LayerEmbedding`` has no
    such restriction.

    Args:
        units: >= 1, the same for every layer; a quarter of the batch size is usual.
        batch_size: >= 1, size of every batch.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> SimilarityEmbedding(2, batch_size=8).compute_output_shape((8, 4, 4, 64))
        (8, 2)

    Reference:
        Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, arXiv:2012.03236, section 3.
        Differs: nothing.
    """

    def __init__(self, units: int, *, batch_size: int, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.batch_size = _checks.integer("SimilarityEmbedding", "batch_size", batch_size, low=1)

    def _width(self, input_shape: Shape) -> int | None:
        return self.batch_size

    def _rows(self, inputs: Tensor) -> Tensor:
        if inputs.shape[0] not in (None, self.batch_size):
            advice = "Batch with drop_remainder=True, or use adapters.LayerEmbedding"
            raise _checks.error("SimilarityEmbedding", f"a batch of {self.batch_size}", inputs.shape[0], advice)
        flat = maps.flat(inputs)
        return ops.reshape(ops.matmul(flat, ops.transpose(flat)), [-1, self.batch_size])

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "batch_size": self.batch_size}


@keras.saving.register_keras_serializable(package="keras_distill")
class MemoryBank(Adapter):
    """One embedding for each example of the training set, the negatives of ``terms.ContrastiveMemory`` (CRD).

    ``candidates(indices)`` reads, ``update(embeddings, indices)`` writes, and ``normalizer(scores)`` is a constant
    fixed by the first batch. Use one replica only: several would write independently.

    Args:
        num_examples: >= 1, size of the training set; indices are smaller.
        units: >= 1, the width of the embeddings.
        momentum: between 0 and 1, weight of the old embedding in an update.
        seed: seed of the initial embeddings.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> import numpy as np
        >>> bank = MemoryBank(5, 2, momentum=0.0)
        >>> bank.update(np.array([[3.0, 4.0]]), np.array([1]))
        >>> bank.candidates(np.array([1])).numpy()
        array([[0.6, 0.8]], dtype=float32)

    Reference:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699, section 3.
        Differs: nothing.
    """

    def __init__(
        self, num_examples: int, units: int = 128, *, momentum: float = 0.5, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_examples = _checks.integer("MemoryBank", "num_examples", num_examples, low=1)
        self.units = _checks.integer("MemoryBank", "units", units, low=1)
        self.momentum = _checks.number("MemoryBank", "momentum", momentum, low=0.0, high=1.0)
        self.seed = seed
        bound = (3.0 / self.units) ** 0.5
        self.memory = self.add_weight(
            name="memory",
            shape=(self.num_examples, self.units),
            initializer=keras.initializers.RandomUniform(-bound, bound, seed=seed),
            trainable=False,
        )
        self.constant = self.add_weight(name="constant", shape=(), initializer="zeros", trainable=False)
        self.built = True

    def candidates(self, indices: Any) -> Tensor:
        """Return the embeddings of the examples ``indices``: (..., units)."""
        return ops.take(self.memory, indices, axis=0)

    def call(self, inputs: Tensor) -> Tensor:
        """Return ``candidates`` of integer indices."""
        return self.candidates(inputs)

    def update(self, embeddings: Any, indices: Any) -> None:
        """Mix (batch, units) embeddings into those of ``indices`` and scale them to length 1.

        An embedding that is not finite does not change the memory.
        """
        embeddings, before = ops.stop_gradient(ops.cast(embeddings, self.memory.dtype)), self.candidates(indices)
        mixed = maps.unit(self.momentum * before + (1.0 - self.momentum) * embeddings)
        mixed = ops.where(ops.all(ops.isfinite(mixed), axis=-1, keepdims=True), mixed, before)
        self.memory.assign(ops.scatter_update(self.memory, ops.expand_dims(indices, -1), mixed))

    def normalizer(self, scores: Tensor, training: bool = True) -> Tensor:
        """Return the constant; the first call computes it from its batch.

        Args:
            scores: any shape: inner products over the contrast temperature.
            training: False does not store the constant.

        Returns:
            (), the mean of exp(scores) times ``num_examples``, of the first call.
        """
        first = ops.mean(ops.exp(ops.stop_gradient(ops.cast(scores, "float32")))) * self.num_examples
        constant = ops.where(self.constant > 0.0, self.constant, first)
        if training:
            self.constant.assign(ops.where(ops.isfinite(constant), constant, self.constant))
        return ops.reshape(constant, ())

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the candidates."""
        return (*tuple(input_shape), self.units)

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {
            **super().get_config(),
            "num_examples": self.num_examples,
            "units": self.units,
            "momentum": self.momentum,
            "seed": self.seed,
        }
