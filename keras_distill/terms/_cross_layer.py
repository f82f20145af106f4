"""A term in which attention decides which teacher layer teaches which student layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import adapters, losses
from keras_distill._checks import error, integer
from keras_distill._typing import Structure, Tensor
from keras_distill.losses._features.maps import pool
from keras_distill.terms._stages import StagesDistillation


@keras.saving.register_keras_serializable(package="keras_distill")
class CrossLayerAttention(StagesDistillation):
    """Every teacher layer may teach every student layer; attention learns how much (semantic calibration, SemCKD).

    Choose it when it is not clear which layers of two architectures correspond. It trains one adapter per pair of
    layers and one embedding per layer, so its cost grows with the product of the two numbers of layers. The learned
    weights can be inspected: ``attention`` is their mean over the last batch, and ``report.layer_attention`` draws it.

    Formula: mean over student layers s of sum over teacher layers t of attention_st * mean((adapter_st(f_s) - f_t)**2).

    Args:
        teacher_layer_names: taps of the teacher, each (batch, height, width, channels).
        student_layer_names: taps of the student, each (batch, height, width, channels); their number may differ.
        units: >= 1, width of the embeddings that are compared.
        batch_size: None embeds the mean over positions, for any batch size. A number embeds each example's
            similarities to the batch, as published; every batch must then have that size (``drop_remainder=True``).
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if a list is empty, a layer is unknown, or a tap is not a map of known size.

    Example:
        >>> term = CrossLayerAttention(["block1", "block2", "block3"], ["b1", "b2"])
        >>> len(term.teacher_taps), len(term.student_taps)
        (3, 2)

    Reference:
        Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, arXiv:2012.03236.
        Differs: the embedding is of pooled features unless ``batch_size`` is given.
    """

    def __init__(
        self,
        teacher_layer_names: Sequence[str],
        student_layer_names: Sequence[str],
        units: int = 32,
        batch_size: int | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(teacher_layer_names, student_layer_names, name, **kwargs)
        owner = type(self).__name__
        self.units = integer(owner, "units", units, low=1)
        self.batch_size = None if batch_size is None else integer(owner, "batch_size", batch_size, low=1)
        self.keys: list[keras.layers.Layer] = []
        self.queries: list[keras.layers.Layer] = []
        # One flat list, row by row: Keras 3.12 does not save layers in a list of lists.
        self.pairs: list[keras.layers.Layer] = []

    def _embedding(self, shape: tuple) -> keras.layers.Layer:
        if self.batch_size is None:
            made = adapters.LayerEmbedding(self.units)
        else:
            made = adapters.SimilarityEmbedding(self.units, batch_size=self.batch_size)
        made.build(shape)
        return made

    def _build_shapes(self, teacher_shapes: list[tuple], student_shapes: list[tuple]) -> None:
        self.keys = [self._embedding(shape) for shape in teacher_shapes]
        self.queries = [self._embedding(shape) for shape in student_shapes]
        pairs = []
        for student, teacher in itertools.product(student_shapes, teacher_shapes):
            adapter = adapters.BottleneckRegressor(teacher[-1])
            adapter.build((None, *_smaller(student, teacher), student[-1]))
            pairs.append(adapter)
        self.pairs = pairs
        self._seen = self.add_weight(
            name="attention",
            shape=(len(student_shapes), len(teacher_shapes)),
            initializer=keras.initializers.Constant(1.0 / len(teacher_shapes)),
            trainable=False,
            dtype="float32",
            aggregation="mean",
        )

    @property
    def attention(self) -> np.ndarray:
        """How much each teacher layer (column) taught each student layer (row) in the last training batch."""
        if not self.built:
            raise error(type(self).__name__, "a built term", "one that has not seen data", "Call fit first")
        return ops.convert_to_numpy(ops.convert_to_tensor(self._seen))

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
    ) -> Any:
        """Return the loss of each example, (batch,)."""
        keys = [embed(ops.stop_gradient(tensor)) for embed, tensor in zip(self.keys, teacher_outputs, strict=True)]
        queries = [embed(tensor) for embed, tensor in zip(self.queries, student_outputs, strict=True)]
        attention = losses.layer_attention(queries=ops.stack(queries, axis=1), keys=ops.stack(keys, axis=1))
        if training:
            self._seen.assign(ops.stop_gradient(ops.mean(attention, axis=0)))
        pairs = iter(self.pairs)
        adapted = [
            [
                next(pairs)(pool(student, _smaller(student.shape, teacher.shape)), training=training)
                for teacher in teacher_outputs
            ]
            for student in student_outputs
        ]
        return losses.semantic_calibration(
            teacher_features=list(teacher_outputs), student_features=adapted, attention=attention
        )

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {
            **super().get_config(),
            "units": self.units,
            "batch_size": self.batch_size,
        }


def _smaller(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the size at which two maps are compared: the smaller height and width."""
    return [min(a, b) for a, b in zip(one[1:3], other[1:3], strict=True)]
