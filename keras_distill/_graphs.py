"""What of a graph is compiled on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` of tensors, which in a graph is a program of XLA's, whether or not what is around it is one.

    Eager calls run it op by op. Each shape is compiled anew: worth it where much is read again for every op.
    """
    import tensorflow as tf

    return function if tf.executing_eagerly() else tf.function(function, jit_compile=True, autograph=False)
