"""Loads ``.keras`` files that may come from untrusted sources: inspects them first, then loads them in safe mode."""

from __future__ import annotations

import contextlib
import json
import math
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import keras

from keras_distill._checks import error

MOST_UNPACKED_BYTES = 16 * 2**30
_MOST_RATIO = 200  # weights hardly compress; a zip bomb does
_MOST_NESTING = 100
_LEAST_LIMIT_BYTES = 2**26
_TIMES_THE_FILE = 4  # a teacher that follows a student is one model in the file and two in memory
_counting = threading.Lock()


def load_model(
    owner: str, path: Path, *, most_bytes: int = MOST_UNPACKED_BYTES, most_weight_bytes: int | None = None
) -> keras.Model:
    """Load a ``.keras`` file in safe mode, after inspecting its contents.

    Args:
        owner: name shown in the error message.
        path: a ``.keras`` file.
        most_bytes: refuse archives that unpack to more than this.
        most_weight_bytes: refuse models whose weights need more memory than this; None allows four times the weights in
            the file, and at least 64 MB.

    Returns:
        The model, not compiled.

    Raises:
        ValueError: if the file is missing, damaged, or not safe to load.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise error(owner, "a path that ends in .keras", str(path))
    if not path.is_file():
        raise error(owner, "a .keras file", f"nothing at {path}")
    stored = _look_inside(owner, path, most_bytes)
    most = max(_LEAST_LIMIT_BYTES, _TIMES_THE_FILE * stored) if most_weight_bytes is None else most_weight_bytes
    try:
        with _at_most(most):
            model = keras.saving.load_model(str(path), compile=False, safe_mode=True)
    except Exception as problem:  # MemoryError among them: a hostile size
        too_large = next((each for each in _causes(problem) if isinstance(each, _TooLargeError)), None)
        if too_large is not None:
            got = f"{path}, whose configuration asks for {too_large.needed} bytes or more"
            advice = "Allow more with most_weight_bytes if you trust the file"
            raise error(owner, f"a model whose weights take at most {most} bytes", got, advice) from problem
        first = next((line for line in str(problem).splitlines() if line.strip()), "")
        raise error(
            owner,
            "a .keras file that loads in safe mode",
            f"{path}: {type(problem).__name__}: {first[:300]}",
            "Import the module that registers its custom layers first; Lambda layers cannot be loaded safely",
        ) from problem
    if not isinstance(model, keras.Model):
        raise error(owner, "a .keras file of a keras.Model", f"a {type(model).__name__} in {path}")
    return model


class _TooLargeError(Exception):
    def __init__(self, needed: int) -> None:
        super().__init__(f"the configuration asks for {needed} bytes")
        self.needed = needed


def _causes(problem: BaseException | None) -> Iterator[BaseException]:
    while problem is not None:
        yield problem
        problem = problem.__cause__ or problem.__context__


@contextlib.contextmanager
def _at_most(most: int) -> Iterator[None]:
    """Count the weights that this thread's layers ask for, each before it is allocated."""
    original, thread, needed = keras.layers.Layer.add_weight, threading.get_ident(), 0

    def add_weight(self: Any, shape: Any = None, *args: Any, **kwargs: Any) -> Any:
        nonlocal needed
        if threading.get_ident() == thread:
            dtype = keras.backend.standardize_dtype(kwargs.get("dtype") or self.variable_dtype)
            bits = next((width for width in (64, 16, 8) if dtype.endswith(str(width))), 32)
            needed += math.prod(shape if isinstance(shape, (list, tuple)) else (shape or 1,)) * bits // 8
            if needed > most:
                raise _TooLargeError(needed)
        return original(self, shape, *args, **kwargs)

    with _counting:
        keras.layers.Layer.add_weight = add_weight  # type: ignore[method-assign]
        try:
            yield
        finally:
            keras.layers.Layer.add_weight = original  # type: ignore[method-assign]


def _look_inside(owner: str, path: Path, most_bytes: int) -> int:
    """Refuse an archive that ``keras.Model.save`` does not write; return how many bytes its weights take."""

    def refuse(got: str, problem: BaseException | None = None) -> ValueError:
        failure = error(owner, "a .keras archive as keras.Model.save writes it", f"{path}: {got}")
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
                raise refuse("two members with the same name")
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
            return sum(member.file_size for member in members if member.filename.endswith(".h5"))
    except ValueError as problem:
        if str(problem).startswith(owner):
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
