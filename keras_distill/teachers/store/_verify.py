"""Verifies every byte of a store, and labels only the damaged shards again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_distill import _files
from keras_distill.teachers._base import StoredTeacherError
from keras_distill.teachers.store import _files as files
from keras_distill.teachers.store._label import label
from keras_distill.teachers.store._labeller import Labeller
from keras_distill.teachers.store._stored import Stored
from keras_distill.teachers.store._views import Augment


@dataclasses.dataclass(frozen=True)
class StoreProblem:
    """One problem of a store.

    Attributes:
        shard: number of the damaged shard; None if the problem concerns the whole store.
        file: the file's name.
        what: description of the problem.
    """

    shard: int | None
    file: str
    what: str

    def __str__(self) -> str:
        """Return the problem as one line."""
        return f"{self.file}: {self.what}"


def verify(path: str | Path) -> list[StoreProblem]:
    """Read every byte of a store and return its problems.

    Args:
        path: the directory that ``label`` wrote.

    Returns:
        The problems; an empty list for a complete, unchanged store.

    Raises:
        StoredTeacherError: if there is no readable manifest to compare with.
    """
    path = Path(path)
    manifest = files.read_manifest(path, "verify")
    found: list[StoreProblem] = []
    there = files.find_shards(path)
    if manifest["complete"]:
        for index, entry in enumerate(manifest["shards"]):
            file = path / entry["file"]
            what = _damage(file, entry["bytes"]) or _wrong_records(file, index, entry, manifest)
            if what is not None:
                found.append(StoreProblem(index, entry["file"], what))
    else:
        found.append(StoreProblem(None, "manifest.json", f"incomplete: {len(there)} finished shards"))
        for index, shard in there.items():
            what = _damage(shard.file, None)
            if what is not None:
                found.append(StoreProblem(index, shard.file.name, what))
    known = {entry["file"] for entry in manifest.get("shards", [])} or {each.file.name for each in there.values()}
    for file in sorted(path.glob("shard-*.tfrecord")):
        if file.name not in known:
            found.append(StoreProblem(None, file.name, "belongs to no shard of the manifest"))
    return found


def _damage(file: Path, size: int | None) -> str | None:
    if not file.exists():
        return "missing"
    try:
        actual = file.stat().st_size
        if size is not None and actual != size:
            return f"{actual} bytes instead of {size}"
        if files.digest_of(file) != file.name.rsplit("-", 1)[1].split(".")[0]:
            return "its bytes do not match its digest"
    except OSError as problem:
        return f"unreadable: {problem}"
    return None


def _wrong_records(file: Path, index: int, entry: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    try:
        if files.Shard(index, file, "").header()["settings"] != files.settings_digest(manifest):
            return "its first record is of another teacher or other settings"
        return files.wrong_records(file, index, entry, manifest)
    except (OSError, StoredTeacherError) as problem:
        return f"unreadable: {problem}"


def repair(
    teacher: keras.Model,
    dataset: tf.data.Dataset,
    path: str | Path,
    *,
    augment: Augment | None = None,
    progress: bool = True,
) -> Stored | None:
    """Remove the shards that ``verify`` finds damaged, and label them again; good ones are untouched.

    Args:
        teacher: the teacher that wrote the store.
        dataset: the dataset that was labelled; the batch size may differ.
        path: the store.
        augment: as given to ``label``.
        progress: show a bar, if rich is installed.

    Returns:
        The store; None while shards of other writers are missing.

    Raises:
        StoredTeacherError: if teacher, dataset or settings do not match the store.
    """
    path = Path(path)
    manifest = files.read_manifest(path, "repair")
    options: dict[str, Any] = {key: value for key, value in manifest["options"].items() if key != "augment"}
    problems = verify(path)
    if problems:
        with files.writing(path, (0, 1)):
            # Checked before anything is removed: a wrong teacher must not cost a shard.
            Labeller(teacher, dataset, augment, **options).fit_to(path, manifest)
            for problem in problems:
                if problem.file != "manifest.json":
                    _files.remove(path / problem.file)
            opened = {k: v for k, v in manifest.items() if k not in ("shards", "count", "dataset", "digest")}
            files.write_manifest(path, {**opened, "complete": False})
    return label(teacher, dataset, path, augment=augment, progress=progress, **options)
