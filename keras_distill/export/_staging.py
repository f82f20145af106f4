"""Writes to a hidden place, then renames: readers never see a partial export, and a failed one leaves nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from keras_distill import _files
from keras_distill._checks import error, integer


def make_directory(owner: str, directory: str | os.PathLike[str]) -> tuple[Path, list[Path]]:
    """Create ``directory`` with its parents and check that it is writable.

    Args:
        owner: name shown in the error message.
        directory: path to create; may exist.

    Returns:
        The path, and the directories that were created (deepest first), for ``remove_empty``.

    Raises:
        ValueError: if the path is not a directory or is not writable.
    """
    path = Path(directory)
    created: list[Path] = []
    probe = path
    while not probe.exists() and probe != probe.parent:
        created.append(probe)
        probe = probe.parent
    advice = "Give a directory that you may create and write to"
    try:
        _files.make_folder(path, parents=True, exist_ok=True)
    except OSError as problem:
        raise error(owner, "a writable output directory", f"{path} ({problem.strerror})", advice) from problem
    trial = path / f"{_files.WRITING}{_files.writer_name()}"
    try:
        _files.make_folder(trial)
        trial.rmdir()
    except OSError as problem:
        remove_empty(created)
        raise error(owner, "a writable output directory", f"{path} ({problem.strerror})", advice) from problem
    return path, created


def remove_empty(directories: list[Path]) -> None:
    """Remove those of ``directories`` that are empty, in the order given.

    Args:
        directories: deepest first, as ``make_directory`` returns them.
    """
    for directory in directories:
        with contextlib.suppress(OSError):
            directory.rmdir()


def versions(directory: Path) -> list[int]:
    """List the version numbers under ``directory`` as TensorFlow Serving reads them: its purely numeric children.

    Args:
        directory: base path of one model.

    Returns:
        Sorted version numbers; empty if there are none.
    """
    if not directory.is_dir():
        return []
    return sorted(int(child.name) for child in directory.iterdir() if child.name.isdecimal() and child.name.isascii())


@contextlib.contextmanager
def _whole(owner: str, aside: Path, final: Path) -> Iterator[None]:
    """Create the folder ``aside`` and remove it at the end; file system errors become one message."""
    try:
        _files.make_folder(aside)
        yield
    except OSError as problem:
        raise error(owner, f"to write {final}", str(problem), "Free disk space, and export again") from problem
    finally:
        with contextlib.suppress(OSError):
            _files.remove_tree(aside)


@contextlib.contextmanager
def staged_version(owner: str, directory: str | os.PathLike[str], version: int | None) -> Iterator[tuple[Path, Path]]:
    """Yield a hidden path to fill, renamed to ``directory/<version>`` when the block ends without an error.

    Its name is hidden and not numeric, so a server that polls ``directory`` ignores it. An error leaves nothing.

    Args:
        owner: name shown in the error message.
        directory: base path of the model.
        version: version number; None takes the next one.

    Yields:
        ``(aside, final)``: the directory to fill, and the path it gets.

    Raises:
        ValueError: if the version exists or is not a positive integer, or the directory is not writable.
    """
    if version is not None:
        version = integer(owner, "version", version, low=1)
    base, created = make_directory(owner, directory)
    try:
        chosen = version if version is not None else max(versions(base), default=0) + 1
        final = base / str(chosen)
        if final.exists():
            raise error(owner, "a version that does not exist yet", f"{final}", "Leave version out for the next one")
        aside = base / f"{_files.WRITING}{_files.writer_name()}"
        with _whole(owner, aside, final):
            yield aside, final
            _files.rename(aside, final)
    except BaseException:
        remove_empty(created)
        raise


@contextlib.contextmanager
def staged_files(owner: str, path: str | os.PathLike[str], suffix: str) -> Iterator[Path]:
    """Yield a path in a hidden directory with the final name; all files there are moved to their place at the end.

    Args:
        owner: name shown in the error message.
        path: the final file; it is replaced if it exists.
        suffix: required extension, with the dot.

    Yields:
        A path with the same name in a hidden directory.

    Raises:
        ValueError: if the suffix is wrong or the directory is not writable.
    """
    final = Path(path)
    if final.suffix != suffix:
        raise error(owner, f"a path that ends in {suffix}", str(final))
    base, created = make_directory(owner, final.parent)
    aside = base / f"{_files.WRITING}{_files.writer_name()}"
    try:
        with _whole(owner, aside, final):
            yield aside / final.name
            for part in sorted(aside.iterdir(), key=lambda p: p.name == final.name):
                _files.rename(part, base / part.name)
    except BaseException:
        remove_empty(created)
        raise
