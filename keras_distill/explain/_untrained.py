"""The same architecture with fresh weights: the floor of every agreement."""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error


def untrained(model: keras.Model, x: Any, seed: int = 0) -> keras.Model:
    """Return an untrained model of the same architecture.

    Args:
        model: any Keras model that can be recreated from its configuration.
        x: one or more examples, (examples, ...), to build its weights.
        seed: seed of the fresh weights.

    Returns:
        The new model; ``model`` is not changed.

    Raises:
        ValueError: if the model cannot be recreated from its configuration.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> fresh = untrained(model, np.zeros((1, 2)))
        >>> fresh.count_params() == model.count_params()
        True
    """
    before = random.getstate(), np.random.get_state()
    own = seed + 1_000_003  # differs from the seed with which the user trained the model
    random.seed(own)  # Keras draws the seeds of initialisers from here
    np.random.seed(own)
    try:
        fresh = type(model).from_config(_without_seeds(model.get_config()))
        fresh(np.asarray(x)[:1])
    except Exception as problem:
        advice = "Pass an untrained model as floor"
        got = f"{model.name!r} ({type(problem).__name__})"
        raise error("explain.untrained", "a model that its configuration describes", got, advice) from problem
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    return fresh


def _without_seeds(config: Any) -> Any:
    """Remove the seeds of initialisers, with which a configuration would reproduce the old initial weights."""
    if isinstance(config, dict):
        return {key: None if key == "seed" else _without_seeds(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_seeds(value) for value in config)
    return config
