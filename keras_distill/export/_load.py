"""Reads untrusted files: a student's ``.keras`` file, and arrays for a comparison."""

from __future__ import annotations

import os
from pathlib import Path

import keras
import numpy as np

from keras_distill import _model_files
from keras_distill._checks import error


def load_student(
    path: str | os.PathLike[str],
    *,
    most_bytes: int = _model_files.MOST_UNPACKED_BYTES,
    most_weight_bytes: int | None = None,
) -> keras.Model:
    """Load a ``.keras`` file in safe mode, after inspecting its contents.

    Nothing in the file is executed: no pickles, no Lambda layers, and no names outside Keras other than those
    registered with ``keras.saving``. Members that would be written outside their directory, links, and archives that
    unpack to far more than their size are refused. Weights requested by the configuration are counted before each is
    allocated.

    Args:
        path: a ``.keras`` file.
        most_bytes: refuse archives that unpack to more than this.
        most_weight_bytes: refuse models whose weights need more memory than this. None allows four times the weights in
            the file, and at least 64 MB.

    Returns:
        The model, not compiled; for a saved ``Distiller``, its student.

    Raises:
        ValueError: if the file is missing, damaged, too large, or not safe to load.

    Example:
        >>> import keras, tempfile
        >>> file = tempfile.mkdtemp() + "/student.keras"
        >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(file)
        >>> load_student(file).output_shape
        (None, 3)
    """
    model = _model_files.load_model(
        "load_student", Path(path), most_bytes=most_bytes, most_weight_bytes=most_weight_bytes
    )
    return model.student if isinstance(getattr(model, "student", None), keras.Model) else model


def read_arrays(owner: str, path: Path, expected: str) -> dict[str, np.ndarray]:
    """Read an ``.npy`` or ``.npz`` file of numbers and text; nothing in it is unpickled.

    Args:
        owner: name shown in the error message.
        path: the file.
        expected: description of the expected file, for the error message.

    Returns:
        Arrays by name; that of an ``.npy`` file is named ``""``.

    Raises:
        ValueError: if the file is missing, damaged, or holds anything else.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            arrays = {"": content}
        else:
            with content:
                arrays = {name: content[name] for name in content.files}
    except Exception as problem:  # damaged archives raise whatever their codec raises
        raise error(owner, expected, f"{path} ({type(problem).__name__})") from problem
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in "fiubSU" for array in arrays.values()):
        raise error(owner, expected, f"{path} with other content")
    return arrays
