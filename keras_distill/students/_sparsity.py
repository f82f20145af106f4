"""Measures the benefit of zeros in a model: bytes after compression, and time."""

from __future__ import annotations

import dataclasses
import gzip

import keras
import numpy as np

from keras_distill._checks import error
from keras_distill.students import _graph, _litert

_OWNER = "sparsity"
#: A time below this fraction of the dense one counts as faster; smaller differences are timing noise.
_FASTER = 0.9


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """The benefit of a model's zeros, compared with the same model without zeros.

    Args:
        zeros: fraction of zeros in the kernels, 0 to 1.
        file_bytes: size of the float32 LiteRT file, which stores zeros like other numbers.
        gzip_bytes: size of that file after gzip.
        dense_gzip_bytes: the same without zeros.
        latency_ratio: time of one example over that without zeros, both in LiteRT on one thread in the same rounds.
    """

    zeros: float
    file_bytes: int
    gzip_bytes: int
    dense_gzip_bytes: int
    latency_ratio: float

    def __str__(self) -> str:
        """Return the finding as one sentence."""
        smaller = "a smaller file" if self.gzip_bytes < 0.95 * self.dense_gzip_bytes else "no smaller file"
        faster = "and faster here" if self.latency_ratio < _FASTER else "not faster"
        return (
            f"{self.zeros:.0%} zeros: {smaller} ({self.gzip_bytes:,} bytes after gzip, {self.dense_gzip_bytes:,} "
            f"without zeros), {faster} ({self.latency_ratio:.2f} of the time)"
        )


def sparsity(model: keras.Model) -> Sparsity:
    """Measure the benefit of a pruned model's zeros: its file size after gzip, and its time in LiteRT.

    Use it after ``callbacks.MagnitudePruning``, before promising anything: zeros compress, but LiteRT multiplies by
    them at the same speed. For a faster model, use ``from_teacher``.

    The model is compared with a copy whose zeros are replaced by random numbers of the size of the other weights.

    Args:
        model: a built Functional or Sequential model. It is not changed.

    Returns:
        A ``Sparsity``; printed, it says whether the file is smaller and whether the model is faster.

    Raises:
        ValueError: if the model has no graph or no kernels, LiteRT cannot convert it, or its runtime is missing.

    Example:
        >>> model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(50)])
        >>> kernel, bias = model.get_weights()
        >>> model.set_weights([kernel * (np.abs(kernel) > np.quantile(np.abs(kernel), 0.9)), bias])
        >>> str(sparsity(model)).split(" (")[0]
        '90% zeros: a smaller file'

    Reference:
        Zhu, Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878, section 5 (sparse formats have their own cost).
        Differs: gzip stands for every sparse format, and time is measured.
    """
    _graph.check_graph(_OWNER, model)
    kernels = [index for index, weight in enumerate(model.weights) if len(weight.shape) > 1]
    if not kernels:
        raise error(_OWNER, "a model with weights of two or more axes", f"{model.name!r}, which has none")
    values = model.get_weights()
    zeros = sum(int((values[index] == 0).sum()) for index in kernels) / sum(values[index].size for index in kernels)
    sparse = _litert.convert(_OWNER, model)
    twin = _graph.Builder(model, lambda *_: None).build()
    rng = np.random.default_rng(0)
    twin.set_weights([_filled(v, rng) if index in kernels else v for index, v in enumerate(values)])
    dense = _litert.convert(_OWNER, twin)
    packed, packed_dense = (len(gzip.compress(content, mtime=0)) for content in (sparse, dense))
    return Sparsity(zeros, len(sparse), packed, packed_dense, _litert.latency_ratio(sparse, dense))


def _filled(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a kernel with its zeros replaced by weights about as large as its others."""
    others = value[value != 0]
    scale = float(others.std()) if len(others) > 1 else 1.0
    return np.where(value == 0, rng.normal(scale=scale or 1.0, size=value.shape), value).astype(value.dtype)
