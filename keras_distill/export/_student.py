"""Runs the Keras student, the reference for every export."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import taps
from keras_distill._checks import error, number
from keras_distill.export._inputs import Inputs, batches

#: Largest number of examples per call when an export is checked.
CHECK_BATCH = 256


def check_student(owner: str, student: Any) -> None:
    """Refuse anything but a built student.

    Args:
        owner: name shown in the error message.
        student: the argument to check.

    Raises:
        ValueError: if it is not a model, is a distiller, or has no weights yet.
    """
    if not isinstance(student, keras.Model):
        raise error(owner, "student to be a keras.Model", type(student).__name__)
    if hasattr(student, "student") and hasattr(student, "teacher"):
        raise error(owner, "the student alone", f"a {type(student).__name__}", "Pass distiller.student")
    if not student.built:
        raise error(owner, "a built student", f"'{student.name}' without weights", "Call it once on real inputs")


def temperature_value(owner: str, temperature: Any) -> float:
    """Read a calibration temperature from a number or from a scaler that holds one.

    Args:
        owner: name shown in the error message.
        temperature: None, a number, or an object with a ``temperature``.

    Returns:
        A positive number; 1.0 for None.

    Raises:
        ValueError: if it is not above 0.
    """
    if temperature is None:
        return 1.0
    value = getattr(temperature, "temperature", temperature)
    if keras.ops.is_tensor(value) or isinstance(value, np.ndarray | keras.Variable):
        value = float(np.asarray(keras.ops.convert_to_numpy(value)))
    return number(owner, "temperature", value, above=0, advice="Use None for uncalibrated probabilities")


def run_student(
    owner: str, student: keras.Model, inputs: Inputs, examples: list[np.ndarray], made_up: bool
) -> dict[str, np.ndarray]:
    """Run the Keras student as ``model(x, training=False)``.

    Args:
        owner: name shown in the error message.
        student: the model.
        inputs: its description.
        examples: one array per input.
        made_up: whether the examples are generated, for the error message.

    Returns:
        Outputs by name, in order; a single output is named ``"outputs"``.

    Raises:
        ValueError: if the student cannot be run on generated inputs, or has no array outputs.
    """
    parts: list[list[np.ndarray]] = []
    for batch in batches(examples, CHECK_BATCH):
        try:
            structure = student(inputs.pack([tf.convert_to_tensor(array) for array in batch]), training=False)
        except Exception as problem:
            if not made_up:
                raise
            raise error(
                owner, "a student that runs on made-up inputs", f"{type(problem).__name__}", "Pass check_inputs"
            ) from problem
        parts.append([np.asarray(keras.ops.convert_to_numpy(leaf)) for leaf in keras.tree.flatten(structure)])
    names = output_names(student, structure)
    return {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}


def output_names(student: keras.Model, structure: Any) -> list[str]:
    """Return the names of a student's outputs: dictionary keys, else the names of its output layers.

    Args:
        student: the model.
        structure: its outputs.

    Returns:
        One name per flat output, unique.
    """
    leaves = keras.tree.flatten_with_path(structure)
    if len(leaves) == 1:
        return ["outputs"]
    layer_names = list(getattr(student, "output_names", []))
    names: list[str] = []
    for position, (path, _) in enumerate(leaves):
        keys = [part for part in path if isinstance(part, str)]
        fallback = layer_names[position] if len(layer_names) == len(leaves) else f"output_{position}"
        name = "_".join(keys) or fallback
        names.append(name if name not in names else f"{name}_{position}")
    return names


def in_float32(owner: str, student: keras.Model) -> keras.Model:
    """Return a student that computes in float32: itself, or a copy with the same weights if it uses 16 bits.

    Args:
        owner: name shown in the error message.
        student: the model.

    Returns:
        A model that the converters accept.

    Raises:
        ValueError: if a subclassed model computes in 16 bits, because it cannot be copied layer by layer.
    """
    if not computes_in_half(student):
        return student

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        return layer.__class__.from_config(_with_float32(config))

    try:
        twin = keras.models.clone_model(student, clone_function=copy, recursive=True)
        twin.set_weights(student.get_weights())
    except Exception as problem:
        raise error(
            owner,
            "a student in float32, or a Functional or Sequential one that can be copied into it",
            f"'{student.name}' in 16 bits",
            "Build the same model under keras.config.set_dtype_policy('float32') and copy the weights",
        ) from problem
    return twin


def computes_in_half(model: keras.Model) -> bool:
    """Return whether any layer of a model computes in float16 or bfloat16.

    Args:
        model: any model.

    Returns:
        True or False.
    """
    return any(layer.compute_dtype in ("float16", "bfloat16") for _, layer in taps.walk(model))


def _with_float32(config: Any) -> Any:
    """Replace every dtype policy in a layer's configuration, nested layers included."""
    if isinstance(config, dict):
        return {
            key: "float32" if key == "dtype" and _is_half(value) else _with_float32(value)
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(_with_float32(value) for value in config)
    return config


def _is_half(value: Any) -> bool:
    name = value.get("config", {}).get("name", "") if isinstance(value, dict) else str(value)
    return "float16" in name  # float16, bfloat16, mixed_float16, mixed_bfloat16
