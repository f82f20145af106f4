"""Importance scores of channels, one for each group of slots.

Kept apart from ``_from_teacher.py``: it holds the formulas of papers and changes no layer.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill.students import _graph
from keras_distill.students._channels import Channels
from keras_distill.students._inputs import check_inputs, input_batches


def channel_scores(model: keras.Model, channels: Channels, score: str, data: Any, seed: int) -> np.ndarray:
    """Return a score for each root slot; higher scores are kept longer.

    ``"magnitude"`` averages the norm of a channel's weights over the layers that produce or read it, each layer's norms
    divided by their mean, so that layers of different scale count alike. ``"activation"`` uses the layers that read it,
    and multiplies by the mean absolute value of the channel on ``data``.
    """
    if score == "random":
        return np.random.default_rng(seed).random(len(channels.roots))
    total = np.zeros(len(channels.roots))
    times = np.zeros(len(channels.roots))

    def add(slots: np.ndarray, values: np.ndarray) -> None:
        np.add.at(total, channels.roots[slots], values / max(float(values.mean()), 1e-12))
        np.add.at(times, channels.roots[slots], 1)

    sizes = _mean_sizes(model, data) if score == "activation" else {}
    for record in channels.records.values():
        if not record.axes:
            continue
        values = record.layer.get_weights()
        if record.consumes is not None:
            weight, axis = record.consumes
            slots = record.axes[weight][axis]
            norms = _norms(values[weight], axis)
            seen = sizes.get(id(record.layer))
            if score == "activation" and seen is not None:
                norms = norms * (seen if len(seen) == len(norms) else 1.0)
            add(slots, norms)
        if record.produces and score == "magnitude":
            weight, axis = _columns(record)
            add(record.outputs, _norms(values[weight], axis))
    return total / np.maximum(times, 1)


def _columns(record: Any) -> tuple[int, int]:
    """Return the weight that produces the outputs, and its axis."""
    kernels = [index for index, weight in enumerate(record.layer.weights) if len(weight.shape) > 1]
    return next(
        (index, axis) for index in kernels for axis, slots in record.axes[index].items() if slots is record.outputs
    )


def _norms(value: np.ndarray, axis: int) -> np.ndarray:
    rows = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)
    return np.linalg.norm(rows, axis=1)


def _mean_sizes(model: keras.Model, data: Any) -> dict[int, np.ndarray]:
    """Return the mean absolute value of each layer's inputs, by channel."""
    sums: dict[int, Any] = {}
    counts: dict[int, int] = {}

    def see(path: str, layer: Any, args: Any, results: Any) -> None:
        first = _graph.flat(args)[0] if _graph.flat(args) else None
        if first is None or not _graph.is_kernel_layer(layer) or len(first.shape) < 2:
            return
        size = keras.ops.convert_to_numpy(keras.ops.abs(keras.ops.cast(first, "float32")))
        rows = size.reshape(-1, size.shape[-1])
        sums[id(layer)] = sums.get(id(layer), 0.0) + rows.sum(0)
        counts[id(layer)] = counts.get(id(layer), 0) + len(rows)

    for batch in input_batches("from_teacher", data):
        _graph.run_arrays(model, check_inputs("from_teacher", model, batch), see)
    return {key: value / counts[key] for key, value in sums.items()}
