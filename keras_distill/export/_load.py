"""Read a ``.keras`` file that somebody else may have written: looked at first, then loaded in safe mode."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error

_OWNER = "load_student"
_MOST_UNPACKED_BYTES = 16 * 2**30
_MOST_RATIO = 200  # weights hardly compress; a zip bomb does
_MOST_NESTING = 100


def load_student(path: str | os.PathLike[str], *, most_bytes: int = _MOST_UNPACKED_BYTES) -> keras.Model:
    """Load a ``.keras`` file in safe mode, after looking at what is inside.

    Nothing in the file is executed: no pickles, no Lambda layers, no names outside Keras and what you registered with
    ``keras.saving``. Members that would be written outside their directory, links, and archives that unpack to far
    more than their size are refused.

    Args:
        path: a ``.keras`` file.
        most_bytes: refuse archives that unpack to more.

    Returns:
        The model, not compiled. A saved ``Distiller`` gives its student.

    Raises:
        ValueError: if the file is missing, damaged, or not safe to load.

    Example:
        >>> import keras, tempfile
        >>> file = tempfile.mkdtemp() + "/student.keras"
        >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(file)
        >>> load_student(file).output_shape
        (None, 3)
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise error(_OWNER, "a path that ends in .keras", str(path))
    if not path.is_file():
        raise error(_OWNER, "a .keras file", f"nothing at {path}")
    _look_inside(path, most_bytes)
    try:
        model = keras.saving.load_model(str(path), compile=False, safe_mode=True)
    except Exception as problem:  # MemoryError among them: a hostile size
        first = next((line for line in str(problem).splitlines() if line.strip()), "")
        raise error(
            _OWNER,
            "a .keras file that loads in safe mode",
            f"{path}: {type(problem).__name__}: {first[:300]}",
            "Import the module that registers its custom layers first; Lambda layers cannot be loaded safely",
        ) from problem
    if not isinstance(model, keras.Model):
        raise error(_OWNER, "a .keras file of a keras.Model", f"a {type(model).__name__} in {path}")
    return model.student if isinstance(getattr(model, "student", None), keras.Model) else model


def _look_inside(path: Path, most_bytes: int) -> None:
    def refuse(got: str, problem: BaseException | None = None) -> ValueError:
        failure = error(_OWNER, "a .keras archive as keras.Model.save writes it", f"{path}: {got}")
        failure.__cause__ = problem
        return failure

    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                name = PurePosixPath(member.filename)
                if name.is_absolute() or ".." in name.parts or "\\" in member.filename or "\0" in member.filename:
                    raise refuse(f"member {member.filename!r}, which points out of its directory")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise refuse(f"member {member.filename!r}, which is a link")
            names = [member.filename for member in members]
            if len(set(names)) != len(names):
                raise refuse("two members of one name")
            total = sum(member.file_size for member in members)
            if total > most_bytes or total > _MOST_RATIO * max(path.stat().st_size, 2**16):
                raise refuse(f"{total} bytes when unpacked")
            for part in ("metadata.json", "config.json"):
                if part not in names:
                    raise refuse(f"no {part}")
                content = json.loads(archive.read(part))
                if not isinstance(content, dict):
                    raise refuse(f"{part} that holds no object")
                if _nesting(content) > _MOST_NESTING:
                    raise refuse(f"{part} nested too deeply")
            damaged = archive.testzip()
            if damaged is not None:
                raise refuse(f"member {damaged!r} is damaged")
    except ValueError as problem:
        if str(problem).startswith(_OWNER):
            raise
        raise refuse(f"{type(problem).__name__}: {problem}", problem) from problem
    except Exception as problem:  # damaged archives raise whatever their codec raises
        raise refuse(f"{type(problem).__name__}: {problem}", problem) from problem


def _nesting(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if deepest > _MOST_NESTING:
            break
    return deepest


def read_arrays(owner: str, path: Path, expected: str) -> dict[str, np.ndarray]:
    """Read an ``.npy`` or ``.npz`` file of numbers and text; nothing in it is unpickled.

    Args:
        owner: who complains.
        path: the file.
        expected: what it should be, for the error message.

    Returns:
        Arrays by name; the array of an ``.npy`` file is called ``""``.

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
