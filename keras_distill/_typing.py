"""Names for what annotations cannot check: Keras and TensorFlow are untyped for a type checker."""

from __future__ import annotations

from typing import Any, TypeAlias

#: What ``keras.ops`` takes and gives: a tensor, a variable, an array, or a number.
Tensor: TypeAlias = Any

#: A tensor, or lists, tuples and dictionaries of tensors.
Structure: TypeAlias = Any
