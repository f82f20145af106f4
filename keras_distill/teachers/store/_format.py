"""The layout of one row of a store: a fingerprint of the input, then the teacher's outputs as bytes.

A row is ``[fingerprint, 8 bytes] [field] [field] ...``, little-endian, with the same length throughout the store. A
record of the TFRecord file is a block of rows, so that many examples are read and decoded at once. An ``OutputSpec``
defines how an output becomes fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error

DTYPES = ("float32", "float16", "bfloat16", "int8")
_FINGERPRINT_BYTES = 8


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of a row: its name, its shape per example and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Size per example."""
        return int(np.prod(self.shape, dtype="int64")) * tf.dtypes.as_dtype(self.dtype).size


@dataclasses.dataclass(frozen=True)
class OutputSpec:
    """One output of the teacher, or one of its features, and how it is stored.

    Attributes:
        name: ``"output"``, ``"output/head"``, ``"feature/layer"``.
        shape: per example.
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"int8"``.
        top_k: number of classes to keep; None for all.
        by_row: for int8, one scale per row along the last axis (logits) instead of one per example (features).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    top_k: int | None = None
    by_row: bool = True

    @property
    def fields(self) -> list[Field]:
        """The arrays that a row holds for this output."""
        rows = self.shape[:-1]
        values = self.shape if self.top_k is None else (*rows, self.top_k)
        found = [Field(f"{self.name}:values", values, self.dtype)]
        if self.top_k is not None:
            found.append(Field(f"{self.name}:classes", values, _index_dtype(self.shape[-1])))
            found.append(Field(f"{self.name}:rest", (*rows, 1), "float32"))
        if self.dtype == "int8":
            scales = (*rows, 1) if self.by_row else (1,) * len(self.shape)
            found += [Field(f"{self.name}:{part}", scales, "float32") for part in ("low", "step")]
        return found

    def encode(self, tensor: tf.Tensor) -> list[tf.Tensor]:
        """Return the fields for a batch: (batch, *shape), float."""
        tensor = tf.cast(tensor, tf.float32)
        extra: list[tf.Tensor] = []
        if self.top_k is not None:
            log_probs = tensor - tf.reduce_logsumexp(tensor, axis=-1, keepdims=True)
            tensor, classes = tf.math.top_k(log_probs, k=self.top_k)
            kept = tf.reduce_sum(tf.one_hot(classes, self.shape[-1], dtype=tf.float32), axis=-2)
            others = tf.where(kept > 0, -np.inf, log_probs)
            rest = tf.reduce_logsumexp(others, axis=-1, keepdims=True)
            extra = [tf.cast(classes, _index_dtype(self.shape[-1])), rest]
        if self.dtype == "int8":
            axes = [-1] if self.by_row else list(range(1, len(self.shape) + 1))
            low = tf.reduce_min(tensor, axis=axes, keepdims=True)
            step = (tf.reduce_max(tensor, axis=axes, keepdims=True) - low) / 255.0
            level = tf.round(tf.math.divide_no_nan(tensor - low, step)) - 128.0
            return [tf.cast(tf.clip_by_value(level, -128.0, 127.0), tf.int8), *extra, low, step]
        return [tf.cast(tensor, self.dtype), *extra]

    def decode(self, fields: dict[str, Any]) -> tf.Tensor:
        """Return (batch, *shape), float32, from the fields by name."""
        values = tf.cast(fields[f"{self.name}:values"], tf.float32)
        if self.dtype == "int8":
            values = (values + 128.0) * fields[f"{self.name}:step"] + fields[f"{self.name}:low"]
        if self.top_k is None:
            return values
        num_classes = self.shape[-1]
        classes = tf.cast(fields[f"{self.name}:classes"], tf.int32)
        # The classes left out share their mass equally (marginal smoothing).
        others = fields[f"{self.name}:rest"] - np.log(num_classes - self.top_k).astype("float32")
        flat = tf.reshape(classes, (-1, self.top_k))
        rows = tf.broadcast_to(tf.range(tf.shape(flat)[0])[:, None], tf.shape(flat))
        dense = tf.repeat(tf.reshape(others, (-1, 1)), num_classes, axis=1)
        dense = tf.tensor_scatter_nd_update(dense, tf.stack([rows, flat], -1), tf.reshape(values, (-1, self.top_k)))
        return tf.reshape(dense, (-1, *self.shape))

    def divergence(self, tensor: tf.Tensor, encoded: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return (batch,): KL from the exact distribution to the decoded one, at temperature 1.

        Args:
            tensor: (batch, *shape), the logits that were encoded.
            encoded: their fields, from ``encode``.

        Returns:
            Nats, float32, the mean over an example's rows.
        """
        fields = dict(zip((field.name for field in self.fields), encoded, strict=True))
        p, q = (tf.nn.log_softmax(tf.cast(each, tf.float32)) for each in (tensor, self.decode(fields)))
        each = tf.reduce_sum(tf.where(tf.math.is_finite(p), tf.exp(p) * (p - q), 0.0), axis=-1)
        return tf.reduce_mean(tf.reshape(each, (tf.shape(tensor)[0], -1)), axis=1)

    def config(self) -> dict[str, Any]:
        """Return the manifest's entry for this output."""
        return {**dataclasses.asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OutputSpec:
        """Rebuild the spec from the manifest."""
        return cls(**{**config, "shape": tuple(config["shape"])})


def _index_dtype(num_classes: int) -> str:
    return "uint8" if num_classes <= 256 else "uint16" if num_classes <= 65536 else "int32"


def row_bytes(specs: Sequence[OutputSpec]) -> int:
    """Return the length of a row."""
    return _FINGERPRINT_BYTES + sum(field.num_bytes for spec in specs for field in spec.fields)


def rows_per_block(length: int) -> int:
    """Return how many rows of ``length`` bytes make a block of about 64 KB, a power of two."""
    return 2 ** max(0, min(10, (65536 // length).bit_length() - 1))


def fingerprint(x: Any) -> tf.Tensor:
    """Return a 64-bit number for each example of a batch of inputs: the farmhash of its bytes.

    It is the same on every machine and independent of batch size and order.

    Args:
        x: a tensor (batch, ...) or a structure of them.

    Returns:
        (batch,), int64.
    """
    hashes = [tf.fingerprint(leaf) for leaf in keras.tree.flatten(x)]
    one = hashes[0] if len(hashes) == 1 else tf.fingerprint(tf.concat(hashes, axis=1))
    return tf.bitcast(one, tf.int64)


def to_bytes(fingerprints: tf.Tensor, fields: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return (batch, row bytes), uint8."""
    batch = tf.shape(fingerprints)[0]
    parts = [fingerprints[:, None], *fields]
    return tf.concat([tf.reshape(_bytes(part), (batch, -1)) for part in parts], axis=1)


def _bytes(tensor: tf.Tensor) -> tf.Tensor:
    return tensor if tensor.dtype == tf.uint8 else tf.bitcast(tensor, tf.uint8)


def rows_of(block: tf.Tensor, specs: Sequence[OutputSpec]) -> tf.Tensor:
    """Return (rows, row bytes), uint8, of a block: a scalar string."""
    return tf.reshape(tf.io.decode_raw(block, tf.uint8), (-1, row_bytes(specs)))


def fingerprints_of(raw: tf.Tensor) -> tf.Tensor:
    """Return (rows,), int64, from (rows, row bytes), uint8."""
    return tf.bitcast(raw[:, :_FINGERPRINT_BYTES], tf.int64)


def from_bytes(raw: tf.Tensor, specs: Sequence[OutputSpec]) -> dict[str, tf.Tensor]:
    """Return the fields by name, from rows of ``rows_of``."""
    fields, start = {}, _FINGERPRINT_BYTES
    for spec in specs:
        for field in spec.fields:
            part = raw[:, start : start + field.num_bytes]
            start += field.num_bytes
            fields[field.name] = _typed(part, field)
    return fields


def _typed(part: tf.Tensor, field: Field) -> tf.Tensor:
    dtype = tf.dtypes.as_dtype(field.dtype)
    if dtype == tf.uint8:
        return tf.reshape(part, (-1, *field.shape))
    if dtype.size == 1:
        return tf.bitcast(tf.reshape(part, (-1, *field.shape)), dtype)
    return tf.bitcast(tf.reshape(part, (-1, *field.shape, dtype.size)), dtype)


def input_specs(owner: str, x: Any) -> list[dict[str, Any]]:
    """Return shape per example and dtype of each input, for the manifest, from a batch or batched specs."""
    found = []
    for leaf in keras.tree.flatten(x):
        if isinstance(leaf, (tf.RaggedTensor, tf.RaggedTensorSpec, tf.SparseTensor, tf.SparseTensorSpec)):
            got = type(leaf).__name__
            raise error(owner, "dense inputs", got, "Pad to one length with .to_tensor(shape=...) before batching")
        found.append({"shape": [None if d is None else int(d) for d in leaf.shape[1:]], "dtype": leaf.dtype.name})
    return found
