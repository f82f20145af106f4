"""LiteRT, ONNX and OpenVINO files by Keras' own converters, each run in its runtime before it is kept."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import choice, error, integer, number, optional
from keras_distill.export._card import ModelCard, check_card, check_folder, write_card
from keras_distill.export._heads import describe_heads
from keras_distill.export._inputs import Inputs, batches, describe_inputs
from keras_distill.export._parity import Export, compare
from keras_distill.export._runtimes import FORMATS, Runtime, flat_outputs, latency, open_runtime, runtime_package
from keras_distill.export._staging import staged_files
from keras_distill.export._student import CHECK_BATCH, check_student, in_float32, run_student
from keras_distill.students import edge_quantized, quantized_bits, served_model

#: Largest number of examples that int8 calibration reads.
MOST_REPRESENTATIVE = 500
#: The first Keras that writes the format for every student (the extras in setup.cfg require it).
LEAST_KERAS = {"litert": (3, 15), "onnx": (3, 12), "openvino": (3, 13)}
#: By precision: largest allowed difference of probabilities, and least agreement of classes.
_LIMITS = {None: (1e-4, 0.999), "float16": (2e-2, 0.99), "dynamic": (0.2, 0.97), "int8": (0.5, 0.95)}
#: The same for trained quantisation, by activation bits.
_TRAINED_LIMITS = {8: (0.5, 0.999), None: (0.5, 0.995)}


def litert(
    student: keras.Model,
    path: str | os.PathLike[str],
    quantize: str | None = None,
    *,
    representative_data: Any = None,
    check_inputs: Any = None,
    check_labels: Any = None,
    from_logits: Any = None,
    task: Any = None,
    tolerance: float | None = None,
    min_agreement: float | None = None,
    input_signature: Any = None,
    latency_batch_sizes: Sequence[int] = (1, 32),
    card: ModelCard | None = None,
) -> Export:
    """Convert a student to a ``.tflite`` file for phones and small devices, checked in the LiteRT runtime.

    The file returns the student's outputs (logits or probabilities), with float32 inputs and outputs at any internal
    precision, so that the same program reads every variant. It is written to a temporary place, run on ``check_inputs``
    and compared; if it differs by more than the tolerance, an error is raised and no file is kept.

    Args:
        student: a built ``keras.Model``.
        path: ends in ``.tflite``; replaced if it exists.
        quantize: None (float32), ``"float16"`` (half the size), ``"dynamic"`` (weights in 8 bits) or ``"int8"``
            (weights and activations in 8 bits; needs ``representative_data``). A student from
            ``students.quantization_aware`` takes None: its trained quantisation is written.
        representative_data: for int8: real inputs as the student takes them, or a ``tf.data.Dataset`` of batches of
            them; at most 500 examples are read.
        check_inputs: real examples to compare on; None generates some.
        check_labels: integer labels of ``check_inputs``; they add accuracy and calibration error.
        from_logits: as in ``saved_model``.
        task: as in ``saved_model``.
        tolerance: largest difference allowed in probabilities. None: 1e-4 in float32, 0.02 in float16, 0.2 for dynamic,
            0.5 for int8 (because of examples near a decision boundary; ``min_agreement`` is the effective check).
        min_agreement: smallest fraction of examples with the student's class. None: 0.999, 0.99, 0.97, 0.95; for
            trained quantisation 0.999 with 8-bit activations, else 0.995.
        input_signature: as in ``saved_model``.
        latency_batch_sizes: batch sizes to time on one thread; empty for none.
        card: facts about the student for the ``MODEL_CARD.md`` and ``distillation.json`` beside the file; the card of a
            directory lists every export of one student.

    Returns:
        An ``Export`` with differences, agreement, accuracy, calibration error, size and latency.

    Raises:
        ValueError: if an argument does not fit, the converter fails, or the file disagrees with the student.

    Example:
        >>> import keras, tempfile
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> exported = litert(student, tempfile.mkdtemp() + "/student.tflite", latency_batch_sizes=())
        >>> exported.format, exported.agreement
        ('litert', 1.0)
    """
    owner = "litert"
    choice(owner, "quantize", quantize, _LIMITS)
    if (quantize == "int8") != (representative_data is not None):
        expected = "representative_data for quantize='int8', and only for it"
        raise error(owner, expected, f"quantize={quantize!r}", "Pass some hundred real inputs")
    options: dict[str, Any] = {}
    if quantize is not None:
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        options["target_spec"] = {"supported_types": [tf.float16]}
    check_student(owner, student)
    inputs = describe_inputs(owner, student, input_signature, check_inputs)
    if quantize == "int8":
        examples = _representative(owner, inputs, representative_data)
        options["representative_dataset"] = lambda: _one_by_one(inputs, examples)
        options["target_spec"] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]}
    settings = dict(check_inputs=check_inputs, check_labels=check_labels, from_logits=from_logits, task=task)
    usual = _LIMITS[quantize]
    trained = quantized_bits(student)
    if trained is not None:
        if quantize is not None:
            expected = "quantize=None for a student from quantization_aware"
            raise error(owner, expected, repr(quantize), "Its trained quantisation is written")
        usual = _TRAINED_LIMITS[trained[1]]
    limits = _limits(owner, usual, tolerance, min_agreement)
    return _export(owner, student, path, ".tflite", inputs, options, settings, limits, latency_batch_sizes, card)


def onnx(
    student: keras.Model,
    path: str | os.PathLike[str],
    *,
    opset_version: int | None = None,
    check_inputs: Any = None,
    check_labels: Any = None,
    from_logits: Any = None,
    task: Any = None,
    tolerance: float | None = None,
    min_agreement: float | None = None,
    input_signature: Any = None,
    latency_batch_sizes: Sequence[int] = (1, 32),
    card: ModelCard | None = None,
) -> Export:
    """Convert a student to an ``.onnx`` file, checked in ONNX Runtime.

    The file returns the student's outputs (logits or probabilities). A file that disagrees with the student is not
    kept.

    Args:
        student: a built ``keras.Model``.
        path: ends in ``.onnx``; replaced if it exists.
        opset_version: ONNX opset; None leaves it to the converter.
        check_inputs: as in ``litert``.
        check_labels: as in ``litert``.
        from_logits: as in ``saved_model``.
        task: as in ``saved_model``.
        tolerance: largest difference allowed, of probabilities. None: 1e-4; 0.5 if 8-bit activations were trained.
        min_agreement: least fraction of examples with the student's class. None: 0.999.
        input_signature: as in ``saved_model``.
        latency_batch_sizes: as in ``litert``.
        card: as in ``litert``.

    Returns:
        An ``Export``.

    Raises:
        ValueError: as in ``litert``.
    """
    owner = "onnx"
    with optional(owner, "tf2onnx", "onnx"):
        import tf2onnx  # noqa: F401 -- Keras' exporter imports it
    check_student(owner, student)
    inputs = describe_inputs(owner, student, input_signature, check_inputs)
    options = {} if opset_version is None else {"opset_version": integer(owner, "opset_version", opset_version, low=7)}
    settings = dict(check_inputs=check_inputs, check_labels=check_labels, from_logits=from_logits, task=task)
    limits = _limits(owner, _usual(student), tolerance, min_agreement)
    return _export(owner, student, path, ".onnx", inputs, options, settings, limits, latency_batch_sizes, card)


def openvino(
    student: keras.Model,
    path: str | os.PathLike[str],
    *,
    check_inputs: Any = None,
    check_labels: Any = None,
    from_logits: Any = None,
    task: Any = None,
    tolerance: float | None = None,
    min_agreement: float | None = None,
    input_signature: Any = None,
    latency_batch_sizes: Sequence[int] = (1, 32),
    card: ModelCard | None = None,
) -> Export:
    """Convert a student to OpenVINO's ``.xml`` and ``.bin``, checked in its runtime, in float32.

    The files return the student's outputs (logits or probabilities). Files that disagree with it are not kept. Your own
    program should also compile them with ``INFERENCE_PRECISION_HINT: f32``, or measure the error of bfloat16.

    Args:
        student: a built ``keras.Model``.
        path: ends in ``.xml``; it and the ``.bin`` beside it are replaced if they exist.
        check_inputs: as in ``litert``.
        check_labels: as in ``litert``.
        from_logits: as in ``saved_model``.
        task: as in ``saved_model``.
        tolerance: largest difference allowed, of probabilities. None: 1e-4; 0.5 if 8-bit activations were trained.
        min_agreement: least fraction of examples with the student's class. None: 0.999.
        input_signature: as in ``saved_model``.
        latency_batch_sizes: as in ``litert``.
        card: as in ``litert``.

    Returns:
        An ``Export``, whose size is that of both files.

    Raises:
        ValueError: as in ``litert``.
    """
    owner = "openvino"
    check_student(owner, student)
    inputs = describe_inputs(owner, student, input_signature, check_inputs)
    settings = dict(check_inputs=check_inputs, check_labels=check_labels, from_logits=from_logits, task=task)
    limits = _limits(owner, _usual(student), tolerance, min_agreement)
    return _export(owner, student, path, ".xml", inputs, {}, settings, limits, latency_batch_sizes, card)


def _usual(student: keras.Model) -> tuple[float, float]:
    """Return the limits of a float format; another runtime may round differently to 8 bits."""
    trained = quantized_bits(student)
    return _LIMITS[None] if trained is None or trained[1] is None else _TRAINED_LIMITS[trained[1]]


def _limits(
    owner: str, usual: tuple[float, float], tolerance: float | None, min_agreement: float | None
) -> tuple[float, float]:
    usual_tolerance, usual_agreement = usual
    if tolerance is not None:
        usual_tolerance = number(owner, "tolerance", tolerance, low=0)
    if min_agreement is not None:
        usual_agreement = number(owner, "min_agreement", min_agreement, low=0, high=1)
    return usual_tolerance, usual_agreement


def _export(
    owner: str,
    student: keras.Model,
    path: str | os.PathLike[str],
    suffix: str,
    inputs: Inputs,
    options: dict[str, Any],
    settings: dict[str, Any],
    limits: tuple[float, float],
    latency_batch_sizes: Sequence[int],
    card: ModelCard | None,
) -> Export:
    kind = FORMATS[suffix]
    runtime_package(owner, kind)  # first, because the check needs it
    if not keras_writes(kind):
        expected = f"Keras {'.'.join(map(str, LEAST_KERAS[kind]))} or newer"
        raise error(owner, expected, keras.__version__, f"Run: pip install 'keras-distill[{kind}]'")
    check_card(owner, card)
    earlier = check_folder(owner, Path(path), student)
    sizes = [integer(owner, "latency_batch_sizes", size, low=1) for size in latency_batch_sizes]
    made_up = settings["check_inputs"] is None
    arrays = inputs.random() if made_up else inputs.flatten(owner, settings["check_inputs"])
    raw = run_student(owner, student, inputs, arrays, made_up=made_up)
    heads = describe_heads(owner, student, raw, task=settings["task"], from_logits=settings["from_logits"])
    for head, value in zip(heads, raw.values(), strict=True):
        head.check_values(owner, value)
    exportable = in_float32(owner, student)
    tolerance, min_agreement = limits
    if exportable is not student:
        tolerance = max(tolerance, 1e-2)
    with staged_files(owner, path, suffix) as aside:
        _convert(owner, kind, exportable, aside, inputs, options)
        run = open_runtime(owner, aside)
        given = _run_all(owner, run, inputs, arrays, list(raw))
        served: dict[str, np.ndarray] = {}
        for head, value in zip(heads, given, strict=True):
            served.update(head.expected(value))
        result = compare(owner, kind, Path(path), heads, raw, served, settings["check_labels"], tolerance)
        if result.agreement is not None and result.agreement < min_agreement:
            raise error(
                owner,
                f"the export to give the student's class for at least {min_agreement:g} of the examples",
                f"{result.agreement:.4g} of {result.num_examples}",
                "Nothing was kept. Use a finer precision, or lower min_agreement if you accept it",
            )
        result = result.with_size(aside.parent)
        times = {size: _time(owner, aside, inputs, arrays, size) for size in sizes}
        result = dataclasses.replace(result, latency_ms=times)
        write_card(aside.parent, student, inputs, heads, result, card, earlier)
    return result


def keras_writes(kind: str) -> bool:
    """Return whether this Keras is new enough for the format."""
    return tuple(int(part) for part in keras.__version__.split(".")[:2]) >= LEAST_KERAS[kind]


def _convert(owner: str, kind: str, student: keras.Model, path: Path, inputs: Inputs, options: dict[str, Any]) -> None:
    trained = quantized_bits(student)
    if trained is not None:
        student = served_model(student)
        if kind == "litert" and trained[1] is not None:
            options = {"optimizations": [tf.lite.Optimize.DEFAULT]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from the converters; the comparison catches a wrong file
            student.export(
                str(path), format=kind, verbose=False, input_signature=[inputs.pack(inputs.specs)], **options
            )
    except Exception as problem:
        first = next((line for line in str(problem).splitlines() if line.strip()), "")
        raise error(
            owner, f"a student that the {kind} converter can convert", f"{type(problem).__name__}: {first[:300]}"
        ) from problem
    if kind == "litert" and trained is not None and trained[1] is None:
        path.write_bytes(edge_quantized(owner, path.read_bytes(), trained[0]))


def _run_all(
    owner: str, run: Runtime, inputs: Inputs, arrays: list[np.ndarray], names: Sequence[str]
) -> list[np.ndarray]:
    parts = []
    for batch in batches(arrays, CHECK_BATCH):
        try:
            out = run(dict(zip(inputs.names, batch, strict=True)))
        except Exception as problem:
            first = (str(problem).splitlines() or [""])[0]
            raise error(owner, "an export that runs", f"{type(problem).__name__}: {first}") from problem
        parts.append(flat_outputs(owner, out, names))
    return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


def _time(owner: str, path: Path, inputs: Inputs, arrays: list[np.ndarray], size: int) -> dict[str, float]:
    run = open_runtime(owner, path, num_threads=1)
    feeds = {name: array[np.arange(size) % len(array)] for name, array in zip(inputs.names, arrays, strict=True)}
    return latency(lambda: run(feeds))


def _representative(owner: str, inputs: Inputs, data: Any) -> list[np.ndarray]:
    if isinstance(data, tf.data.Dataset):
        taken: list[list[np.ndarray]] = []
        for batch in data:
            taken.append(inputs.flatten(owner, batch, "representative_data"))
            if sum(len(arrays[0]) for arrays in taken) >= MOST_REPRESENTATIVE:
                break
        if not taken:
            raise error(owner, "representative_data with examples", "an empty dataset")
        arrays = [np.concatenate(parts) for parts in zip(*taken, strict=True)]
    else:
        arrays = inputs.flatten(owner, data, "representative_data")
    return [array[:MOST_REPRESENTATIVE] for array in arrays]


def _one_by_one(inputs: Inputs, arrays: list[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for row in batches(arrays, 1):
        yield dict(zip(inputs.names, row, strict=True))
