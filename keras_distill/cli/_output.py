"""A folder of results: proven to be writable before anything is trained, and filled only with what is finished."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from keras_distill import _files
from keras_distill._checks import error

_UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def output_folder(owner: str, out: str) -> Iterator[tuple[Path, Path]]:
    """Prove that ``out`` can be written to, and yield it with a folder aside that vanishes at the end.

    What a killed run has left aside vanishes as well; a folder that another run is filling has a lock and stays.

    Args:
        owner: name shown in the error message.
        out: the folder; made if missing.

    Raises:
        ValueError: if nothing can be written there.
    """
    folder = Path(out)
    missing = next((each for each in (folder, *folder.parents) if each.parent.exists() and not each.exists()), None)
    aside = folder / f"{_UNFINISHED}{_files.writer_name()}"
    try:
        _files.make_folder(folder, parents=True, exist_ok=True)
        _files.make_folder(aside)
        lock = _files.Lock(aside)
        for left in folder.glob(f"{_UNFINISHED}*"):
            with contextlib.suppress(OSError), _files.Lock(left):  # ours, and those of living runs, are locked
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
    """Put a finished file or folder in its place; what stood there goes away with the folder aside.

    Args:
        aside: of ``output_folder``.
        folder: of ``output_folder``.
        name: relative path in both.
    """
    target = folder / name
    _files.make_folder(target.parent, parents=True, exist_ok=True)
    if target.is_dir():
        _files.rename(target, aside / f"old-{target.name}")
    _files.rename(aside / name, target)
