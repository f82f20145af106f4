"""SavedModel for TensorFlow Serving: versioned, named outputs, compared with the Keras student before it is seen."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error, number
from keras_distill.export._heads import Head, describe_heads
from keras_distill.export._inputs import Inputs, batches, describe_inputs
from keras_distill.export._parity import Export, compare, tolerance_for
from keras_distill.export._staging import staged_version

_OWNER = "saved_model"
_CHECK_BATCH = 256


def saved_model(
    student: keras.Model,
    directory: str | os.PathLike[str],
    version: int | None = None,
    *,
    check_inputs: Any = None,
    check_labels: Any = None,
    from_logits: Any = None,
    task: Any = None,
    labels: Any = None,
    temperature: Any = None,
    uncertainty: bool = False,
    tolerance: float | None = None,
    input_signature: Any = None,
) -> Export:
    """Export a student as ``directory/<version>/`` for TensorFlow Serving, checked against the Keras model.

    The SavedModel is written aside, loaded again, run on ``check_inputs`` and compared with the student; only then is
    it renamed to its version number, so a server that polls ``directory`` never sees half a model. If the two
    disagree, nothing stays on disk.

    Signature ``serving_default``: inputs by the student's input names, batch dimension dynamic, other unknown
    dimensions kept. Outputs, float32 whatever the student computes in (prefixed ``<output>_`` where it has several):
    ``probabilities``; ``logits`` (of a softmax or sigmoid head: the logarithms, so that softmax or sigmoid of
    ``logits`` gives the probabilities back); ``classes``, int64, the most probable class, or 0/1 per unit of a binary
    head; with ``labels`` also ``labels`` and ``scores``, class names and probabilities, most probable first; with
    ``uncertainty`` also ``entropy`` (nats) and ``confidence``. A regression output gives ``values`` alone.

    Args:
        student: a built ``keras.Model``: ``distiller.student``, not the distiller.
        directory: base path of the model; its last part is the name TensorFlow Serving knows it by.
        version: integer >= 1 that does not exist yet; None takes the next one.
        check_inputs: what the student is called with, real examples; None makes up inputs that fit the specs.
        check_labels: integer labels of ``check_inputs``: adds accuracy and calibration error to the result.
        from_logits: whether the student gives logits; None looks at its last activation. A dictionary by output name
            for several outputs. Needed for subclassed models that give probabilities.
        task: ``"classification"``, ``"binary"`` or ``"regression"``, or a dictionary by output name. None: one unit or
            a sigmoid is binary, anything else classification.
        labels: class names, or a dictionary of them by output name.
        temperature: calibration: a number > 0 or an object with a ``temperature`` (``calibration.TemperatureScaler``);
            probabilities are those of ``logits / temperature``. None is 1.
        uncertainty: serve ``entropy`` and ``confidence`` of the (calibrated) probabilities.
        tolerance: largest difference allowed between export and student: of probabilities, and of logits relative to
            the largest one. None: 1e-5, or 1e-2 for a student that computes in half precision.
        input_signature: structure of ``keras.InputSpec`` for a student that does not know its inputs.

    Returns:
        An ``Export``: usable as a path, with the measured differences.

    Raises:
        ValueError: if an argument does not fit, the version exists, or the export disagrees with the student.

    Example:
        >>> import keras, tempfile
        >>> student = keras.Sequential([keras.Input((4,), name="features"), keras.layers.Dense(3)])
        >>> base = tempfile.mkdtemp()
        >>> exported = saved_model(student, base + "/student")
        >>> exported.path.name, exported.max_difference < 1e-5
        ('1', True)
    """
    check_student(_OWNER, student)
    inputs = describe_inputs(_OWNER, student, input_signature, check_inputs)
    examples = inputs.random() if check_inputs is None else inputs.flatten(_OWNER, check_inputs)
    raw = run_student(_OWNER, student, inputs, examples, made_up=check_inputs is None)
    heads = describe_heads(
        _OWNER,
        student,
        raw,
        task=task,
        from_logits=from_logits,
        labels=labels,
        temperature=temperature_value(_OWNER, temperature),
        uncertainty=uncertainty,
    )
    for head, value in zip(heads, raw.values(), strict=True):
        head.check_values(_OWNER, value)
    allowed = tolerance_for(_OWNER, tolerance, student)

    with staged_version(_OWNER, directory, version) as (aside, final):
        archive = keras.export.ExportArchive()
        holder = tf.Module()
        holder.student = student  # tracks lookup tables; variables are those the endpoints use, and no others
        archive.track(holder)
        archive.add_endpoint("serving_default", serving_function(student, inputs, heads), list(inputs.specs))
        archive.write_out(str(aside), verbose=False)
        served = run_saved_model(aside, inputs, examples)
        result = compare(_OWNER, "saved_model", final, heads, raw, served, check_labels, allowed)
        result = result.with_size(aside)
    return result


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
    for batch in batches(examples, _CHECK_BATCH):
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


def serving_function(student: keras.Model, inputs: Inputs, heads: list[Head]) -> Any:
    """Make the function behind ``serving_default``: flat tensors in, named tensors out.

    Args:
        student: the model.
        inputs: its description.
        heads: how to read its outputs.

    Returns:
        A function for ``ExportArchive.add_endpoint``.
    """

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        raw = keras.tree.flatten(student(inputs.pack(tensors), training=False))
        out: dict[str, tf.Tensor] = {}
        for head, value in zip(heads, raw, strict=True):
            out.update(head.outputs(value))
        return out

    return serve


def run_saved_model(
    path: str | os.PathLike[str], inputs: Inputs, examples: list[np.ndarray], batch_size: int = _CHECK_BATCH
) -> dict[str, np.ndarray]:
    """Load a SavedModel with ``tf.saved_model.load`` and run ``serving_default``.

    Args:
        path: the version directory.
        inputs: names and dtypes.
        examples: one array per input.
        batch_size: most examples per call.

    Returns:
        Arrays by output name.
    """
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    parts: list[dict[str, np.ndarray]] = []
    for batch in batches(examples, batch_size):
        feeds = {name: tf.convert_to_tensor(array) for name, array in zip(inputs.names, batch, strict=True)}
        parts.append({name: value.numpy() for name, value in signature(**feeds).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
