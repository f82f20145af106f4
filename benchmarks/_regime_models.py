"""The networks that ``benchmarks.regimes`` trains."""

from __future__ import annotations

from typing import Any

import keras

DENSE = False  # set by the command line


def network(width: int = 16, shape: tuple[int, ...] = (28, 28, 1), branches: int = 1) -> keras.Model:
    """Three convolutions with BatchNormalization, and a linear head; several branches share the first two blocks.

    With ``DENSE`` the blocks are layers of 256 units, which memorise 10,000 images.
    """

    def block(h: Any, filters: int, name: str) -> Any:
        h = keras.layers.Conv2D(filters, 3, 2, "same", use_bias=False)(h)
        return keras.layers.ReLU(name=name)(keras.layers.BatchNormalization(momentum=0.9)(h))

    def dense(h: Any, filters: int, name: str) -> Any:
        return keras.layers.Dense(256, "relu", name=name)(h)

    x = keras.Input(shape)
    made = dense if DENSE else block
    trunk = made(made(keras.layers.Flatten()(x) if DENSE else x, width, "block0"), 2 * width, "block1")
    tops = [made(trunk, 4 * width, "block2" if i == 0 else f"block2_{i}") for i in range(branches)]
    outputs = [keras.layers.Dense(10)(top if DENSE else keras.layers.GlobalAveragePooling2D()(top)) for top in tops]
    return keras.Model(x, outputs if branches > 1 else outputs[0])


def deep_network() -> keras.Model:
    """Six convolutions with BatchNormalization, two of each size, and a linear head; it overfits 10,000 images."""
    x = h = keras.Input((28, 28, 1))
    for block in range(3):
        for last in (False, True):
            h = keras.layers.Conv2D(16 * 2**block, 3, 1 if last else 2, "same", use_bias=False)(h)
            h = keras.layers.BatchNormalization(momentum=0.9)(h)
            h = keras.layers.ReLU(name=f"block{block}" if last else None)(h)
    return keras.Model(x, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(h)))


def plain(depth: int) -> keras.Model:
    """A plain CNN of 2, 4 or 10 convolutions as in the assistants' paper: pooling after each stage, a dense head."""
    stages = {2: ((1, 16), (1, 16)), 4: ((2, 16), (2, 32)), 10: ((3, 16), (3, 32), (4, 64))}[depth]
    x = h = keras.Input((32, 32, 3))
    for count, filters in stages:
        for _ in range(count):
            h = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(h)
            h = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(h))
        h = keras.layers.MaxPooling2D()(h)
    return keras.Model(x, keras.layers.Dense(10)(keras.layers.Flatten()(h)))
