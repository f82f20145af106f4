"""The four constructors of foreign teachers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from keras_distill._typing import Structure
from keras_distill.teachers.foreign._teacher import Foreign

_MOST_BYTES = 2 * 2**30


def from_callable(
    function: Callable[[Any], Any],
    *,
    preprocess: Callable[[Any], Any] | None = None,
    outputs: Structure = None,
    activation: Any = None,
    batch_size: int | None = None,
    num_threads: int = 1,
    fingerprint: str | None = None,
    name: str | None = None,
) -> Foreign:
    """Make a teacher from any function of arrays: a scikit-learn or LightGBM model, a client of a server, a simulator.

    A live teacher calls the function from the graph with NumPy arrays in each training step, which XLA cannot compile
    (``compile(jit_compile="auto")`` takes care of this). It is better to store the answers once:
    ``teachers.label(teacher, dataset, path)``. A ``tf.function`` stays inside the graph. A plain function that itself
    runs TensorFlow needs a second inter-op thread, which one core does not give by itself; a warning says so.

    Args:
        function: maps a batch of inputs, (batch, ...) arrays in the dataset's own structure, to an array (batch, ...),
            a list of arrays, or a dict of arrays by name.
        preprocess: maps the batch's inputs to those of ``function``; TensorFlow or Keras operations, traced into the
            step, outside of any gradient. None passes them on unchanged.
        outputs: which named outputs are the teacher's final outputs: None for all (a plain tensor if there is one), a
            name, a list of names, or a dict from new names to the model's. List outputs are named "output_0",
            "output_1", ...
        activation: the model's last activation, to be undone: "softmax" (outputs are probabilities; their logarithms
            are used), "sigmoid" (log-odds are used), or None for logits and other numbers; or a dict by output name.
            It is undone for taps of that output as well.
        batch_size: the largest number of rows per call; None for the whole batch, divided among the threads. A
            ``tf.function`` is called with exactly this number, the last rows being zeros that are dropped.
        num_threads: number of concurrent calls, for thread-safe functions.
        fingerprint: identifies the model's version in the manifest of a store, so that a change is noticed. None uses a
            SHA-256 of the function's code and of the objects it holds.
        name: of the Keras model that the teacher is.

    Returns:
        A ``teachers.Foreign``: give it to ``Distiller`` or to ``teachers.label``.

    Raises:
        ValueError: if ``function`` cannot be called or an option is unknown.

    Example:
        >>> import numpy as np
        >>> teacher = from_callable(lambda x: np.stack([1 - x[:, 0], x[:, 0]], axis=1), activation="softmax")
        >>> np.exp(teacher(np.array([[0.25]], "float32"))).round(2)
        array([[0.75, 0.25]], dtype=float32)
    """
    return Foreign("callable", function=function, preprocess=preprocess, outputs=outputs, activation=activation,
                   batch_size=batch_size, num_threads=num_threads, fingerprint=fingerprint, name=name)  # fmt: skip


def _from_file(format: str, path: str | os.PathLike[str], **options: Any) -> Foreign:
    teacher = Foreign(format, path=os.fspath(path), **options)
    _ = teacher.engine  # raises errors now, not in the first step
    wanted = options["outputs"]
    if wanted is not None:
        teacher._wanted([])
    return teacher


def from_saved_model(
    path: str | os.PathLike[str],
    *,
    signature: str = "serving_default",
    preprocess: Callable[[Any], Any] | None = None,
    outputs: Structure = None,
    activation: Any = None,
    sha256: str | None = None,
    max_bytes: int = _MOST_BYTES,
    name: str | None = None,
) -> Foreign:
    """Make a teacher from a TensorFlow SavedModel of any origin; it runs inside the graph.

    The graph is inspected before it is loaded, and refused if it calls Python or reads other files; links to files
    outside the directory are refused.

    Args:
        path: the directory with ``saved_model.pb``.
        signature: the name of the signature to call.
        preprocess: see ``from_callable``.
        outputs: see ``from_callable``; names are the signature's.
        activation: see ``from_callable``.
        sha256: the expected digest, as ``teacher.fingerprint`` gives it; None accepts any and records it.
        max_bytes: the largest size of all files together.
        name: of the Keras model that the teacher is.

    Returns:
        A ``teachers.Foreign``.

    Raises:
        ValueError: if the directory, its size, its digest, its signature or an operation of its graph is refused.

    Example:
        >>> import tempfile, tensorflow as tf
        >>> module, path = tf.Module(), tempfile.mkdtemp()
        >>> module.double = tf.function(lambda x: {"twice": 2.0 * x}, input_signature=[tf.TensorSpec((None, 1))])
        >>> tf.saved_model.save(module, path, signatures=module.double)
        >>> from_saved_model(path)(tf.constant([[3.0]])).numpy()
        array([[6.]], dtype=float32)
    """
    return _from_file("saved_model", path, preprocess=preprocess, outputs=outputs, activation=activation,
                      fingerprint=sha256, max_bytes=max_bytes, options={"signature": signature}, name=name)  # fmt: skip


def from_onnx(
    path: str | os.PathLike[str],
    *,
    preprocess: Callable[[Any], Any] | None = None,
    outputs: Structure = None,
    activation: Any = None,
    batch_size: int | None = None,
    num_threads: int = 1,
    sha256: str | None = None,
    max_bytes: int = _MOST_BYTES,
    name: str | None = None,
) -> Foreign:
    """Make a teacher from an ONNX file, run by ONNX Runtime (extra ``onnx``): a PyTorch model, for instance.

    Such models usually take channels first: ``preprocess=lambda x: tf.transpose(x, [0, 3, 1, 2])``. External weight
    files are loaded only from the model's directory. For XLA and speed see ``from_callable``.

    Args:
        path: a file that ends in .onnx.
        preprocess: see ``from_callable``.
        outputs: see ``from_callable``; names are the file's.
        activation: see ``from_callable``.
        batch_size: see ``from_callable``; a file with a fixed batch size is called with it.
        num_threads: see ``from_callable``.
        sha256: the expected digest of the file; None accepts any and records it as ``teacher.fingerprint``.
        max_bytes: the largest size, external data included.
        name: of the Keras model that the teacher is.

    Returns:
        A ``teachers.Foreign``.

    Raises:
        ValueError: if onnxruntime is missing, or the file, its size or its digest is refused.

    Example:
        >>> teacher = from_onnx("resnet.onnx", activation="softmax")  # doctest: +SKIP
    """
    return _from_file("onnx", path, preprocess=preprocess, outputs=outputs, activation=activation, fingerprint=sha256,
                      batch_size=batch_size, num_threads=num_threads, max_bytes=max_bytes, name=name)  # fmt: skip


def from_litert(
    path: str | os.PathLike[str],
    *,
    preprocess: Callable[[Any], Any] | None = None,
    outputs: Structure = None,
    activation: Any = None,
    batch_size: int | None = None,
    num_threads: int = 1,
    sha256: str | None = None,
    max_bytes: int = _MOST_BYTES,
    name: str | None = None,
) -> Foreign:
    """Make a teacher from a LiteRT (TensorFlow Lite) file, run by ai-edge-litert (extra ``litert``).

    A quantised file takes and returns float32: its own scales are applied on both sides. Each thread has its own
    interpreter. For XLA and speed see ``from_callable``.

    Args:
        path: a file that ends in .tflite.
        preprocess: see ``from_callable``.
        outputs: see ``from_callable``; names are those of the file's signature, or of its tensors if it has none.
        activation: see ``from_callable``.
        batch_size: see ``from_callable``; a file with a fixed batch size is called with it.
        num_threads: see ``from_callable``.
        sha256: the expected digest of the file; None accepts any and records it as ``teacher.fingerprint``.
        max_bytes: the largest size.
        name: of the Keras model that the teacher is.

    Returns:
        A ``teachers.Foreign``.

    Raises:
        ValueError: if ai-edge-litert is missing, or the file, its size or its digest is refused.

    Example:
        >>> teacher = from_litert("selfie_segmentation.tflite", activation="sigmoid")  # doctest: +SKIP
    """
    return _from_file("litert", path, preprocess=preprocess, outputs=outputs, activation=activation, fingerprint=sha256,
                      batch_size=batch_size, num_threads=num_threads, max_bytes=max_bytes, name=name)  # fmt: skip
