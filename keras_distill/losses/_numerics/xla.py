"""Whether code is being traced, and functions that XLA compiles on their own within a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def eager() -> bool:
    """Return whether ops run at once, that is, whether no graph is being traced."""
    import tensorflow as tf

    return tf.executing_eagerly()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function``, compiled by XLA when called in a graph, whether or not the surrounding step is.

    Eager calls run it op by op. Each new shape is compiled again, so this pays only where many ops would otherwise
    read a large tensor again and again.
    """
    import tensorflow as tf

    return function if eager() else tf.function(function, jit_compile=True, autograph=False)


def as_written(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function``, as code that AutoGraph leaves alone: rewriting all it calls costs several times the calls.

    TensorFlow's map converts what it is given even in eager mode.
    """
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)
