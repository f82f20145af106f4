"""The same architecture with fresh weights: the floor of every agreement."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_distill._checks import error


def untrained(model: keras.Model, x: Any, seed: int = 0) -> keras.Model:
    """Return a model of the same architecture that has learned nothing.

    Args:
        model: any Keras model that can be made again from its configuration.
        x: one example or more, (examples, ...), to build its weights.
        seed: of the fresh weights. The global random state is set from it.

    Returns:
        The new model; ``model`` is left alone.

    Raises:
        ValueError: if the model cannot be made from its configuration.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> fresh = untrained(model, np.zeros((1, 2)))
        >>> fresh.count_params() == model.count_params()
        True
    """
    keras.utils.set_random_seed(seed + 1_000_003)  # not the seed that a user trained the model from
    try:
        fresh = type(model).from_config(_without_seeds(model.get_config()))
        fresh(np.asarray(x)[:1])
    except Exception as problem:
        advice = "Pass an untrained model yourself, as floor"
        got = f"{model.name!r} ({type(problem).__name__})"
        raise error("explain.untrained", "a model that its configuration describes", got, advice) from problem
    return fresh


def _without_seeds(config: Any) -> Any:
    """Take the seeds off initialisers: a configuration remembers them, and fresh weights would be the old ones."""
    if isinstance(config, dict):
        return {key: None if key == "seed" else _without_seeds(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_seeds(value) for value in config)
    return config
