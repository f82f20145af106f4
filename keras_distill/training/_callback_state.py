"""What callbacks must remember when a killed run is resumed: saved and loaded with the model's weights."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np


class CallbackState(keras.layers.Layer):
    """States of callbacks by name, written wherever Keras writes weights: in checkpoints, backups and ``save``.

    It belongs to a model without being tracked as one of its layers: it has no variables, does not count as a layer and
    appears in no graph. A file may lack the state of a callback, which then starts afresh.
    """

    def __init__(self) -> None:
        super().__init__(name="callback_memory")
        self.built = True
        # Bypasses Keras' tracking, which would wrap the dictionary in its own class.
        object.__setattr__(self, "states", {})

    def save_own_variables(self, store: Any) -> None:
        """Write each state as the bytes of its JSON text.

        Args:
            store: where Keras writes them.
        """
        for name, state in self.states.items():
            store[name] = np.frombuffer(json.dumps(state).encode(), dtype="uint8")

    def load_own_variables(self, store: Any) -> None:
        """Replace the states by those that were saved.

        Args:
            store: where Keras keeps them.
        """
        self.states.clear()
        for name in store.keys():
            self.states[name] = json.loads(np.asarray(store[name], dtype="uint8").tobytes().decode())


def callback_state(model: keras.Model) -> CallbackState:
    """Return the callback state of ``model``, creating it if needed.

    Args:
        model: the model that is fitted.
    """
    # Files saved by earlier versions use this name.
    state = vars(model).get("_memory")
    if state is None:
        state = CallbackState()
        object.__setattr__(model, "_memory", state)
    return state
