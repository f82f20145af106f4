"""Whether a graph is being made, and what of it is compiled on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def eager() -> bool:
    """Return whether ops run at once: no graph is being made."""
    import tensorflow as tf

    return tf.executing_eagerly()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` of tensors, which in a graph is a program of XLA's, whether or not what is around it is one.

    Eager calls run it op by op. Each shape is compiled anew: worth it where much is read again for every op.
    """
    import tensorflow as tf

    return function if eager() else tf.function(function, jit_compile=True, autograph=False)
