"""A fingerprint of a teacher: the same for the same weights and architecture, in every process."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import keras

_INCIDENTAL = {"name", "trainable", "build_config", "compile_config", "registered_name", "module", "shared_object_id"}


def teacher_fingerprint(teacher: keras.Model) -> str:
    """Return a SHA-256 of the teacher's weights and configuration, without layer names.

    Args:
        teacher: a built teacher.

    Returns:
        64 hexadecimal digits.
    """
    identity = getattr(teacher, "identity", None)
    if identity is not None:  # a model of another runtime, whose weights are not Keras'
        return hashlib.sha256(identity.encode()).hexdigest()
    digest = hashlib.sha256()
    for weight in teacher.weights:
        array = keras.ops.convert_to_tensor(weight).numpy()
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    digest.update(_config_text(lambda: keras.saving.serialize_keras_object(teacher), teacher).encode())
    return digest.hexdigest()


def config_fingerprint(model: keras.Model, *, compiled: bool = False) -> str:
    """Return a SHA-256 of a model's configuration without layer names, the same in every process.

    Args:
        model: any model.
        compiled: whether to use its compile configuration instead of the model's.

    Returns:
        64 hexadecimal digits.
    """
    make = model.get_compile_config if compiled else lambda: keras.saving.serialize_keras_object(model)
    return hashlib.sha256(_config_text(make, model).encode()).hexdigest()


def _config_text(make: Callable[[], Any], model: keras.Model) -> str:
    try:
        config = json.loads(json.dumps(make(), default=lambda value: type(value).__name__))
    except (NotImplementedError, TypeError, ValueError):  # a subclassed model without get_config
        config = {"class_name": type(model).__name__}
    names: dict[str, str] = {}
    _collect(config, names)
    return re.sub(r" at 0x[0-9a-f]+", "", json.dumps(_plain(config, names), sort_keys=True))  # no addresses


def _collect(value: Any, names: dict[str, str]) -> None:
    """Number the names of layers in the order in which they first appear."""
    if isinstance(value, dict):
        if isinstance(value.get("name"), str):
            names.setdefault(value["name"], f"#{len(names)}")
        for key in sorted(value):
            _collect(value[key], names)
    elif isinstance(value, list):
        for each in value:
            _collect(each, names)


def _plain(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each, names) for key, each in value.items() if key not in _INCIDENTAL}
    if isinstance(value, list):
        return [_plain(each, names) for each in value]
    return names.get(value, value) if isinstance(value, str) else value
