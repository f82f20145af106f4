"""The files of a store: shards that are written atomically, a manifest that marks completion, and a lock."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill import _files
from keras_distill._checks import error
from keras_distill.teachers._base import StoredTeacherError
from keras_distill.teachers.store._manifest import SHARD, check_manifest

FORMAT_VERSION = 1
SETTINGS = ("teacher", "teacher_file", "inputs", "outputs", "template", "row_bytes", "rows_per_block", "batch_size",
            "batches_per_shard", "options")  # fmt: skip
_FORMAT = "keras_distill stored teacher"
_FRAME_BYTES = 16  # TFRecord's length and two checksums
MOST_HEADER_BYTES = 10_000
# Names of earlier versions' hidden files, with a process id, which means nothing on another machine.
_BY_PROCESS = re.compile(r"\.writing-.*-\d+")


def stored_error(expected: str, got: Any, advice: str = "", owner: str = "Stored") -> StoredTeacherError:
    """Build a ``StoredTeacherError`` in the package's error format."""
    return StoredTeacherError(str(error(owner, expected, got, advice)))


# ---------------------------------------------------------------------------------------------------- the manifest


def canonical(value: Any) -> bytes:
    """Return the canonical bytes of a JSON value, for digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest atomically, with its own digest inside."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    body["digest"] = hashlib.sha256(canonical(body)).hexdigest()
    text = json.dumps(body, indent=1, sort_keys=True) + "\n"
    try:
        _files.put(path / "manifest.json", text.encode())
    except OSError as problem:
        advice = "Free disk space and run it again"
        raise stored_error(f"to write {path / 'manifest.json'}", str(problem), advice, "label") from problem


def read_manifest(path: Path, owner: str = "Stored") -> dict[str, Any]:
    """Read and validate the manifest before any of it is used.

    Raises:
        StoredTeacherError: if it is missing, damaged, of another format version, or not written by ``label``.
    """
    file = path / "manifest.json"
    try:
        manifest = json.loads(_files.read(file))
    except FileNotFoundError:
        advice = "Write one with teachers.label(teacher, dataset, path)"
        raise stored_error(f"a store of teacher outputs at {path}", "no manifest.json", advice, owner) from None
    except (OSError, ValueError, RecursionError) as problem:
        raise stored_error(f"a readable {file}", str(problem), "Label again with overwrite=True", owner) from None
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise stored_error(f"{file} of a stored teacher", "another JSON file", owner=owner)
    if manifest.get("format_version") != FORMAT_VERSION:
        advice = "Read it with the version of keras_distill that wrote it, or label again"
        raise stored_error(f"format version {FORMAT_VERSION}", manifest.get("format_version"), advice, owner)
    body = {key: value for key, value in manifest.items() if key != "digest"}
    if hashlib.sha256(canonical(body)).hexdigest() != manifest.get("digest"):
        raise stored_error(f"an unchanged {file}", "one that does not match its digest", owner=owner)
    try:
        check_manifest(manifest)
    except ValueError as problem:
        advice = "Label again, and check where this store comes from"
        raise stored_error(f"{file} as label() writes it", str(problem), advice, owner) from None
    for shard in manifest.get("shards", []):
        _confine(path / shard["file"])
    return manifest


def new_manifest(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a store with no finished shards."""
    return {"format": _FORMAT, "format_version": FORMAT_VERSION, "complete": False, **settings}


# ---------------------------------------------------------------------------------------------------- shards


@dataclasses.dataclass(frozen=True)
class Shard:
    """One finished file: its number, the digest in its name, and its first record."""

    index: int
    file: Path
    digest: str

    def header(self) -> dict[str, Any]:
        """Return the first record: ``shard`` number, row ``count``, digests of ``inputs`` and ``settings``.

        Raises:
            StoredTeacherError: if it cannot be read.
        """
        try:
            with self.file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(12)[:8])
                header = json.loads(stream.read(length) if length < MOST_HEADER_BYTES else b"")
            texts = isinstance(header, dict) and all(isinstance(header.get(key), str) for key in ("inputs", "settings"))
            if not texts or header.get("shard") != self.index or type(header.get("count")) is not int:
                raise ValueError("a first record that no label() writes")
            return header
        except (OSError, ValueError, RecursionError, struct.error) as problem:
            advice = f"Run: keras-distill store verify {self.file.parent}"
            raise stored_error(f"a readable shard {self.file}", str(problem) or "nothing", advice) from None


def _confine(file: Path) -> None:
    """Refuse a link that points outside the store."""
    if file.is_symlink() and file.resolve().parent != file.parent.resolve():
        advice = "Copy the file itself into the store"
        raise stored_error(f"the files of the store in {file.parent}", f"{file.name}, a link out of it", advice)


def find_shards(path: Path) -> dict[int, Shard]:
    """Return the finished shards by number; of two versions of a shard, the one whose name sorts first."""
    found: dict[int, Shard] = {}
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        match = SHARD.fullmatch(file.name)
        if match is not None:
            _confine(file)
            found.setdefault(int(match[1]), Shard(int(match[1]), file, match[2]))
    return found


def digest_of(file: Path) -> str:
    """Return the first 128 bits of the file's SHA-256, as in its name."""
    return _files.digest(file)[:32]


def wrong_records(file: Path, index: int, entry: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    """Compare a shard's first record and all record lengths with the manifest, reading nothing else.

    TensorFlow trusts the lengths in the file, and an absurd one would crash the process.

    Args:
        file: the shard.
        index: its number.
        entry: its entry in the manifest: ``count`` and ``bytes``.
        manifest: the store's manifest, already checked.

    Returns:
        What is wrong, or None.

    Raises:
        StoredTeacherError: if the first record cannot be read.
        OSError: if the file cannot be read.
    """
    header = Shard(index, file, "").header()
    if header["count"] != entry["count"]:
        return "its first record does not fit the manifest"
    block, row = manifest["rows_per_block"], manifest["row_bytes"]
    with file.open("rb") as stream:
        size = stream.seek(0, 2)
        (first,) = struct.unpack("<Q", _at(stream, 0))
        position, rows = _FRAME_BYTES + first, entry["count"]
        while rows > 0 and position + _FRAME_BYTES <= size:
            (length,) = struct.unpack("<Q", _at(stream, position))
            if length != min(rows, block) * row:
                return f"a record of {length} bytes instead of {min(rows, block) * row}"
            position, rows = position + _FRAME_BYTES + length, rows - block
        if rows > 0 or position != size:
            return f"{size} bytes, which its records do not fill"
    return None


def _at(stream: Any, position: int) -> bytes:
    stream.seek(position)
    return stream.read(8)


def settings_digest(settings: dict[str, Any]) -> str:
    """Return the digest that identifies a store, stored in the first record of each shard.

    Args:
        settings: a manifest, or ``Labeller.settings()``.
    """
    return hashlib.sha256(canonical({part: settings[part] for part in SETTINGS if part in settings})).hexdigest()[:16]


def write_shard(path: Path, index: int, header: dict[str, Any], batches: list[np.ndarray], block: int) -> Shard:
    """Write one shard atomically: under a temporary name, then renamed.

    Args:
        path: path of the store.
        index: number of the shard.
        header: its first record.
        batches: (rows, row bytes) uint8 arrays.
        block: rows per record of the file.

    Returns:
        The finished shard.

    Raises:
        StoredTeacherError: if the disk is full or cannot be written; the finished shards are kept.
    """
    temporary = path / f"{_files.WRITING}{index:06d}-{_files.writer_name()}"
    rows = np.concatenate(batches)
    records = [canonical(header), *(rows[i : i + block].tobytes() for i in range(0, len(rows), block))]
    expected = sum(_FRAME_BYTES + len(record) for record in records)

    def write() -> None:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for record in records:
                writer.write(record)

    try:
        with _files.held(temporary):
            _files.fill(temporary, write)
            size = temporary.stat().st_size
            if size != expected:
                raise OSError(f"{size} of {expected} bytes were written")
            _files.flush(temporary)
            digest = digest_of(temporary)
            shard = Shard(index, path / f"shard-{index:06d}-{digest}.tfrecord", digest)
            _files.rename(temporary, shard.file)
        _files.flush(path)
    except (OSError, tf.errors.OpError) as problem:
        with contextlib.suppress(OSError):
            _files.remove(temporary)
        advice = "The finished shards are kept: free disk space and run the same label() again"
        raise stored_error(f"to write shard {index} in {path}", str(problem), advice, "label") from problem
    return shard


def remove_leftovers(path: Path, alone: bool) -> None:
    """Remove the hidden files of killed writers, never those of live ones.

    Args:
        path: of the store.
        alone: whether this writer holds the lock on the whole store.
    """
    for file in path.glob(f"{_files.WRITING}*"):
        if _files.is_left_over(file) or (alone and _BY_PROCESS.fullmatch(file.name)):
            _files.remove(file)


# ---------------------------------------------------------------------------------------------------- one writer


@contextlib.contextmanager
def writing(path: Path, part: tuple[int, int]) -> Iterator[None]:
    """Create the store's directory and hold its lock, for all of it or for the part ``(i, n)``.

    The system releases the lock when the process ends.

    Raises:
        StoredTeacherError: if another writer, in this process or another, holds it, or the directory cannot be written.
    """
    number, count = part
    refused = f"to write into {path}"
    try:
        _files.make_folder(path, parents=True, exist_ok=True)
        lock = _files.Lock(path / ".lock", None if count == 1 else number)
    except BlockingIOError:
        advice = "Wait for it, or give each writer its own shard=(i, n)"
        raise stored_error(f"to be the only writer of {path}", "another active writer", advice, "label") from None
    except OSError as problem:
        raise stored_error(refused, str(problem), "Give a directory that you may write to", "label") from None
    with lock:
        try:
            yield
        except OSError as problem:
            raise stored_error(refused, str(problem), "Free disk space and run it again", "label") from problem
