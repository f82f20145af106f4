"""A folder of results, checked for write access before training, and filled only with finished files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from keras_distill import _files
from keras_distill._checks import error

_UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def output_folder(owner: str, out: str) -> Iterator[tuple[Path, Path]]:
    """Check that ``out`` is writable, and yield it with a temporary folder that is removed at the end.

    Leftovers of killed runs are removed as well; the folder of an active run is locked and kept.

    Args:
        owner: name shown in the error message.
        out: the folder, created if missing.

    Raises:
        ValueError: if it is not writable.
    """
    folder = Path(out)
    missing = next((each for each in (folder, *folder.parents) if each.parent.exists() and not each.exists()), None)
    aside = folder / f"{_UNFINISHED}{_files.writer_name()}"
    try:
        _files.make_folder(folder, parents=True, exist_ok=True)
        _files.make_folder(aside)
        lock = _files.Lock(aside)
        for left in folder.glob(f"{_UNFINISHED}*"):
            with contextlib.suppress(OSError), _files.Lock(left):  # ours, and those of active runs, are locked
                _files.remove_tree(left)
    except OSError as failure:
        with contextlib.suppress(OSError):
            _files.remove_tree(missing or aside)
        advice = "Choose another folder with --out"
        raise error(owner, "a folder that can be written to", f"{out} ({failure.strerror})", advice) from failure
    with lock:
        try:
            yield folder, aside
        except BaseException:
            with contextlib.suppress(OSError):
                _files.remove_tree(missing or aside)
            raise
        _files.remove_tree(aside)


def move(aside: Path, folder: Path, name: str) -> None:
    """Move a finished file or folder to its place; what it replaces is removed with the temporary folder.

    Args:
        aside: temporary folder, from ``output_folder``.
        folder: output folder, from ``output_folder``.
        name: relative path in both.
    """
    target = folder / name
    _files.make_folder(target.parent, parents=True, exist_ok=True)
    if target.is_dir():
        _files.rename(target, aside / f"old-{target.name}")
    _files.rename(aside / name, target)
