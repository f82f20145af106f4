"""Three low-rank factorisations of a convolution at a third of its parameters, compared before any training."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from keras_distill import students


def compare(model: keras.Model, inputs: np.ndarray, judge: Any) -> dict[str, float]:
    """Return the results of ``judge`` for the model with each 3 x 3 convolution at a third of its parameters.

    ``outputs`` is 3 x 3 to r channels, then 1 x 1; ``spatial`` 3 x 1 to r, then 1 x 3; ``tucker`` 1 x 1, 3 x 3, 1 x 1
    with equal fractions of input and output channels. These use the best approximation of the kernel alone; the model
    gets the product of the factors, which has the same outputs. ``outputs on data`` is what ``students.factorize``
    does, with the same ranks as ``outputs``.
    """
    convolutions = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (3, 3) and layer.kernel.shape[2] > 1
    ]
    ranks = {layer.name: _outputs_rank(layer.kernel.shape) for layer in convolutions}
    found = {"outputs on data": judge(students.factorize(model, inputs, ranks=ranks).model)}
    kept = model.get_weights()
    for name, approximate in {"outputs": _outputs, "spatial": _spatial, "tucker": _tucker}.items():
        for layer in convolutions:
            kernel, *bias = layer.get_weights()
            layer.set_weights([approximate(kernel.astype("float64")), *bias])
        found[name] = judge(model)
        model.set_weights(kept)
    return found


def _outputs_rank(shape: Any) -> int:
    rows, columns = math.prod(shape[:3]), shape[3]
    return max(1, int(rows * columns / 3 / (rows + columns)))


def _truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def _outputs(kernel: np.ndarray) -> np.ndarray:
    return _truncated(kernel.reshape(-1, kernel.shape[3]), _outputs_rank(kernel.shape)).reshape(kernel.shape)


def _spatial(kernel: np.ndarray) -> np.ndarray:
    height, width, inputs, outputs = kernel.shape
    rank = max(1, int(kernel.size / 3 / (height * inputs + width * outputs)))
    matrix = kernel.transpose(0, 2, 1, 3).reshape(height * inputs, width * outputs)
    return _truncated(matrix, rank).reshape(height, inputs, width, outputs).transpose(0, 2, 1, 3)


def _tucker(kernel: np.ndarray) -> np.ndarray:
    height, width, inputs, outputs = kernel.shape
    square, linear = height * width * inputs * outputs, inputs**2 + outputs**2
    part = (math.sqrt(linear**2 + 4 * square * kernel.size / 3) - linear) / (2 * square)
    for axis, size in ((2, inputs), (3, outputs)):
        unfolded = np.moveaxis(kernel, axis, 0).reshape(size, -1)
        basis = np.linalg.svd(unfolded, full_matrices=False)[0][:, : max(1, int(part * size))]
        kernel = np.moveaxis(np.tensordot(basis @ basis.T, kernel, axes=(1, axis)), 0, axis)
    return kernel
