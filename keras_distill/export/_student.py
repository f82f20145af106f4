"""Run the Keras student: the reference that every export is compared with."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error, number
from keras_distill.export._inputs import Inputs, batches

#: Most examples per call when an export is checked.
CHECK_BATCH = 256


def check_student(owner: str, student: Any) -> None:
    """Refuse what is not a built student alone.

    Args:
        owner: who complains.
        student: what the user gave.

    Raises:
        ValueError: if it is no model, is a distiller, or has no weights yet.
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
        owner: who complains.
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
        owner: who complains.
        student: the model.
        inputs: its description.
        examples: one array per input.
        made_up: whether the examples are random, for the error message.

    Returns:
        Outputs by name, in order; the single output of a student is called ``"outputs"``.

    Raises:
        ValueError: if the student cannot be run on made-up inputs, or has no array outputs.
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
    """Name the outputs of a student: dictionary keys, else the names of its output layers.

    Args:
        student: the model.
        structure: what it gives.

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
