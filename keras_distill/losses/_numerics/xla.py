"""Detects tracing, and compiles single functions with XLA inside a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def eager() -> bool:
    """Return whether ops run eagerly, that is, no graph is being traced."""
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
    """Return ``function``, exempt from AutoGraph, whose rewriting costs several times as much as the calls.

    TensorFlow's map converts its function even in eager mode.
    """
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(function)
