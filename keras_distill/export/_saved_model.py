"""SavedModel for TensorFlow Serving: versioned, with named outputs, compared with the student before publication."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import choice, integer
from keras_distill.export._card import ModelCard, check_card, write_card
from keras_distill.export._heads import Head, describe_heads
from keras_distill.export._inputs import Inputs, batches, describe_inputs
from keras_distill.export._parity import Export, compare, tolerance_for
from keras_distill.export._serve_check import write_parity
from keras_distill.export._signatures import (
    METHODS,
    Endpoint,
    ImageBytes,
    check_endpoint,
    example_endpoint,
    image_endpoint,
    text_endpoint,
)
from keras_distill.export._staging import staged_version
from keras_distill.export._student import CHECK_BATCH, check_student, run_student, temperature_value
from keras_distill.export._warmup import example_log, predict_log, write_warmup

_OWNER = "saved_model"


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
    image: ImageBytes | None = None,
    text: Any = None,
    examples: bool = False,
    warmup_batch_sizes: Sequence[int] = (),
    card: ModelCard | None = None,
) -> Export:
    """Export a student as ``directory/<version>/`` for TensorFlow Serving, checked against the Keras model.

    The SavedModel is written to a hidden directory, reloaded, run on ``check_inputs`` and compared with the student;
    only then is it renamed to its version number, so a server that polls ``directory`` never sees a partial model. If
    the two disagree, nothing is left on disk.

    Signature ``serving_default``: inputs by the student's input names, batch dimension dynamic, other unknown
    dimensions kept. Outputs, always float32 (prefixed ``<output>_`` if there are several): ``probabilities``;
    ``logits`` (of a softmax or sigmoid head: the logarithms, so that softmax or sigmoid of ``logits`` gives the
    probabilities back); ``classes``, int64, the most probable class, or 0/1 per unit of a binary head; with ``labels``
    also ``labels`` and ``scores``, class names and probabilities, most probable first; with ``uncertainty`` also
    ``entropy`` (nats) and ``confidence``. A regression output gives only ``values``.

    Args:
        student: a built ``keras.Model``: ``distiller.student``, not the distiller.
        directory: base path of the model; its last part is the model's name in TensorFlow Serving.
        version: integer >= 1 that does not exist yet; None takes the next one.
        check_inputs: real examples, as the student takes them; None generates inputs that fit the specs.
        check_labels: integer labels of ``check_inputs``; they add accuracy and calibration error to the result.
        from_logits: whether the student returns logits; None inspects its last activation. A dictionary by output name
            for several outputs. Needed for subclassed models that return probabilities.
        task: ``"classification"``, ``"binary"`` or ``"regression"``, or a dictionary by output name. None: one unit or
            a sigmoid is binary, anything else classification.
        labels: class names, or a dictionary of them by output name.
        temperature: calibration: a number > 0 or an object with a ``temperature`` (``calibration.TemperatureScaler``);
            probabilities are those of ``logits / temperature``. None is 1.
        uncertainty: serve ``entropy`` and ``confidence`` of the (calibrated) probabilities.
        tolerance: largest difference allowed between export and student, in probabilities, and in logits relative to
            the largest one. None: 1e-5, or 1e-2 for a student that computes in half precision.
        input_signature: structure of ``keras.InputSpec`` for a student that does not know its inputs.
        image: an ``ImageBytes`` adds the signature ``image_bytes``, which takes encoded JPEG or PNG files.
        text: the preprocessing of a text student (a layer or function of a (batch,) string tensor), or True for a
            student that takes strings: adds the signature ``text``.
        examples: whether to add ``classify`` (or ``regress``), which takes serialized ``tf.train.Example``, one feature
            per input.
        warmup_batch_sizes: one warm-up request per size and signature goes into ``assets.extra``, made of
            ``check_inputs``; needs the extra ``[serving]``.
        card: facts about the student for the ``MODEL_CARD.md`` and ``distillation.json`` in the version directory,
            which TensorFlow Serving ignores.

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
    check_card(_OWNER, card)
    for name, flag in (("uncertainty", uncertainty), ("examples", examples)):
        choice(_OWNER, name, flag, (False, True))
    inputs = describe_inputs(_OWNER, student, input_signature, check_inputs)
    arrays = inputs.random() if check_inputs is None else inputs.flatten(_OWNER, check_inputs)
    raw = run_student(_OWNER, student, inputs, arrays, made_up=check_inputs is None)
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
    sizes = [integer(_OWNER, "warmup_batch_sizes", size, low=1) for size in warmup_batch_sizes]
    serve = serving_function(student, inputs, heads)
    endpoints: list[Endpoint] = []
    if image is not None:
        endpoints.append(image_endpoint(_OWNER, image, inputs, serve))
    if text is not None and text is not False:
        endpoints.append(text_endpoint(_OWNER, text, inputs, serve))
    if examples:
        endpoints.append(example_endpoint(_OWNER, inputs, heads, serve, arrays))

    with staged_version(_OWNER, directory, version) as (aside, final):
        archive = keras.export.ExportArchive()
        holder = tf.Module()
        holder.student = student  # tracks lookup tables; variables are only those used by the endpoints
        if isinstance(text, keras.layers.Layer | tf.Module):
            holder.text = text
        archive.track(holder)
        archive.add_endpoint("serving_default", serve, list(inputs.specs))
        for endpoint in endpoints:
            archive.add_endpoint(endpoint.name, endpoint.function, [endpoint.spec])
        archive.write_out(str(aside), verbose=False)
        _name_methods(aside, endpoints)
        signatures = tf.saved_model.load(str(aside)).signatures
        served = run_signature(signatures["serving_default"], inputs.names, arrays)
        result = compare(_OWNER, "saved_model", final, heads, raw, served, check_labels, allowed)
        for endpoint in endpoints:
            expected = run_signature(signatures["serving_default"], inputs.names, endpoint.student_inputs)
            got = run_signature(signatures[endpoint.name], [str(endpoint.spec.name)], [endpoint.examples])
            check_endpoint(_OWNER, endpoint, got, expected)
        if sizes:
            write_warmup(_OWNER, aside, _warmup_logs(final.parent.name, inputs, arrays, endpoints, sizes))
        write_parity(aside, student, inputs, heads, allowed)
        result = result.with_size(aside)
        write_card(aside, student, inputs, heads, result, card)
    return result


def _name_methods(path: Path, endpoints: list[Endpoint]) -> None:
    """Give classify and regress signatures the method names that TensorFlow Serving expects."""
    special = [endpoint.name for endpoint in endpoints if endpoint.name in METHODS]
    if special:
        updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(path))
        for name in special:
            updater.replace_method_name(signature_key=name, method_name=METHODS[name])
        updater.save()


def _warmup_logs(
    model: str, inputs: Inputs, examples: list[np.ndarray], endpoints: list[Endpoint], sizes: list[int]
) -> list[Any]:
    def of_size(array: np.ndarray, size: int) -> np.ndarray:
        return array[np.arange(size) % len(array)]

    logs = []
    for size in sizes:
        feeds = {name: of_size(array, size) for name, array in zip(inputs.names, examples, strict=True)}
        logs.append(predict_log(_OWNER, model, "serving_default", feeds))
        for endpoint in endpoints:
            batch = of_size(endpoint.examples, size)
            if endpoint.name in METHODS:
                logs.append(example_log(_OWNER, model, endpoint.name, list(batch)))
            else:
                logs.append(predict_log(_OWNER, model, endpoint.name, {str(endpoint.spec.name): batch}))
    return logs


def serving_function(student: keras.Model, inputs: Inputs, heads: list[Head]) -> Any:
    """Make the function behind ``serving_default``, from flat tensors to named tensors.

    Args:
        student: the model.
        inputs: its description.
        heads: interpretation of its outputs.

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


def run_signature(signature: Any, names: Sequence[str], arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Run a signature of ``tf.saved_model.load`` in batches.

    Args:
        signature: the function.
        names: names of its inputs.
        arrays: one per input.

    Returns:
        Arrays by output name.
    """
    parts: list[dict[str, np.ndarray]] = []
    for batch in batches(arrays, CHECK_BATCH):
        feeds = {name: tf.convert_to_tensor(array) for name, array in zip(names, batch, strict=True)}
        parts.append({name: value.numpy() for name, value in signature(**feeds).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
