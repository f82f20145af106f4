"""Structures of losses, temperatures and outputs, in which None is a leaf that means "skip this one"."""

from __future__ import annotations

from typing import Any

import keras

from keras_distill import taps
from keras_distill._checks import error
from keras_distill._typing import Structure
from keras_distill.teachers._base import known_model


def flat_with_none(structure: Any) -> list[Any]:
    """Flatten a structure of losses or temperatures, keeping None as a leaf."""
    if isinstance(structure, dict):
        return [leaf for key in sorted(structure) for leaf in flat_with_none(structure[key])]
    if isinstance(structure, (list, tuple)):
        return [leaf for item in structure for leaf in flat_with_none(item)]
    return [structure]


def map_with_none(function: Any, structure: Any) -> Any:
    """Apply a function to each leaf of a structure, None included."""
    if isinstance(structure, dict):
        return {key: map_with_none(function, item) for key, item in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [map_with_none(function, item) for item in structure]
    return function(structure)


def flat_as(structure: Any, outputs: Structure, owner: str, what: str) -> list[Any]:
    """Flatten ``structure`` in the order in which Keras flattens ``outputs``, one leaf for each output."""
    flat = keras.tree.flatten(outputs)
    if isinstance(outputs, dict) and isinstance(structure, dict) and set(structure) == set(outputs):
        # Keras flattens dictionaries in the order of their sorted keys.
        return flat_with_none({key: structure[key] for key in outputs})
    leaves = flat_with_none(structure)
    if len(leaves) != len(flat):
        raise error(owner, f"one {what} for each of the {len(flat)} outputs", f"{len(leaves)}: {structure!r}")
    return leaves


def is_leaf(structure: Any) -> bool:
    """Return whether this is a single item, not a structure."""
    return not isinstance(structure, (dict, list, tuple))


def deserialized(config: Any) -> Any:
    """Undo ``serialize_keras_object`` on each leaf of a structure."""
    if isinstance(config, dict) and "class_name" in config:
        return keras.saving.deserialize_keras_object(config)
    if isinstance(config, dict):
        return {key: deserialized(item) for key, item in config.items()}
    return [deserialized(item) for item in config] if isinstance(config, list) else config


def output_shapes(model: Any) -> list[tuple[int | None, ...]] | None:
    """Return the shapes of a model's outputs; None if they are unknown before it is called."""
    model = known_model(model)
    if model is None or not getattr(model, "outputs", None):
        return None
    return [tuple(tensor.shape) for tensor in model.outputs]


def check_layers(owner: str, teacher: Any, teacher_names: list[str], student: Any, student_names: list[str]) -> None:
    """Raise ``ValueError`` if a named layer does not exist; a teacher of several models checks its own names.

    Args:
        owner: name shown in the error message.
        teacher: a model or a teacher.
        teacher_names: taps of the teacher.
        student: a model.
        student_names: taps of the student.
    """
    model = known_model(teacher)
    if model is not None:
        taps.Taps(model, teacher_names, owner=f"{owner} (teacher)")
    taps.Taps(student, student_names, owner=f"{owner} (student)")
