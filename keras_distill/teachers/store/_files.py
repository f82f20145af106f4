"""The files of a store: shards that appear whole or not at all, a manifest that says complete or not, a lock."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill._checks import error
from keras_distill.teachers._base import StoredTeacherError
from keras_distill.teachers.store._manifest import SHARD, check_manifest

try:
    import fcntl
except ImportError:  # no byte locks on this platform: two writers are then not noticed
    fcntl = None  # type: ignore[assignment]

FORMAT_VERSION = 1
_FORMAT = "keras_distill stored teacher"
_FRAME_BYTES = 16  # TFRecord's length and two checksums
_in_this_process: set[tuple[str, int]] = set()
_guard = threading.Lock()


def stored_error(expected: str, got: Any, advice: str = "", owner: str = "Stored") -> StoredTeacherError:
    """Make the room's error, in the package's one sentence."""
    return StoredTeacherError(str(error(owner, expected, got, advice)))


# ---------------------------------------------------------------------------------------------------- the manifest


def canonical(value: Any) -> bytes:
    """Return one spelling of a JSON value, for digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest in one rename, with its own digest inside."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    body["digest"] = hashlib.sha256(canonical(body)).hexdigest()
    text = json.dumps(body, indent=1, sort_keys=True) + "\n"
    write_whole(path / "manifest.json", lambda file: file.write_text(text))


def read_manifest(path: Path, owner: str = "Stored") -> dict[str, Any]:
    """Read and check the manifest, before anything that it says is used.

    Raises:
        StoredTeacherError: if there is none, it is damaged, of another format version, or not what ``label`` writes.
    """
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text())
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
        raise stored_error(f"an unchanged {file}", "one that does not fit its digest", owner=owner)
    try:
        check_manifest(manifest)
    except ValueError as problem:
        advice = "Label again, and ask where this store comes from"
        raise stored_error(f"{file} as label() writes it", str(problem), advice, owner) from None
    for shard in manifest.get("shards", []):
        _confine(path / shard["file"])
    return manifest


def new_manifest(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a store in which nothing is finished yet."""
    return {"format": _FORMAT, "format_version": FORMAT_VERSION, "complete": False, **settings}


# ---------------------------------------------------------------------------------------------------- shards


@dataclasses.dataclass(frozen=True)
class Shard:
    """One finished file: its number, its name's digest, and what its first record says."""

    index: int
    file: Path
    digest: str

    def header(self) -> dict[str, Any]:
        """Return the first record: number of the ``shard``, ``count`` of rows, digests of ``inputs`` and ``settings``.

        Raises:
            StoredTeacherError: if it cannot be read.
        """
        try:
            with self.file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(12)[:8])
                return json.loads(stream.read(length) if length < 10_000 else b"")
        except (OSError, ValueError, struct.error) as problem:
            advice = f"Look with: keras-distill store verify {self.file.parent}"
            raise stored_error(f"a readable shard {self.file}", str(problem) or "nothing", advice) from None


def _confine(file: Path) -> None:
    """Refuse a link that leads out of the store."""
    if file.is_symlink() and file.resolve().parent != file.parent.resolve():
        advice = "Copy the file itself into the store"
        raise stored_error(f"the files of the store in {file.parent}", f"{file.name}, a link out of it", advice)


def find_shards(path: Path) -> dict[int, Shard]:
    """Return the finished shards by number; of two versions of one shard the one whose name comes first."""
    found: dict[int, Shard] = {}
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        match = SHARD.fullmatch(file.name)
        if match is not None:
            _confine(file)
            found.setdefault(int(match[1]), Shard(int(match[1]), file, match[2]))
    return found


def digest_of(file: Path) -> str:
    """Return the first 128 bits of the file's SHA-256, as in its name."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]


def write_shard(path: Path, index: int, header: dict[str, Any], batches: list[np.ndarray], block: int) -> Shard:
    """Write one shard under a temporary name, then give it its own: it appears whole or not at all.

    Args:
        path: of the store.
        index: number of the shard.
        header: its first record.
        batches: (rows, row bytes) uint8 arrays.
        block: rows per record of the file.

    Returns:
        The finished shard.

    Raises:
        StoredTeacherError: if the disk is full or refuses; the finished shards are kept.
    """
    temporary = path / f".writing-{index:06d}-{os.getpid()}"
    rows = np.concatenate(batches)
    records = [canonical(header), *(rows[i : i + block].tobytes() for i in range(0, len(rows), block))]
    expected = sum(_FRAME_BYTES + len(record) for record in records)
    try:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for record in records:
                writer.write(record)
        size = temporary.stat().st_size
        if size != expected:
            raise OSError(f"{size} of {expected} bytes were written")
        _flush(temporary)
        digest = digest_of(temporary)
        shard = Shard(index, path / f"shard-{index:06d}-{digest}.tfrecord", digest)
        temporary.rename(shard.file)
        _flush(path)
    except (OSError, tf.errors.OpError) as problem:
        temporary.unlink(missing_ok=True)
        advice = "The finished shards are kept: make room and run the same label() again"
        raise stored_error(f"to write shard {index} in {path}", str(problem), advice, "label") from problem
    return shard


def write_whole(file: Path, write: Any) -> None:
    """Let ``write`` fill a temporary file, then put it in place of ``file``."""
    temporary = file.with_name(f".writing-{file.name}-{os.getpid()}")
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(file)
        _flush(file.parent)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise stored_error(f"to write {file}", str(problem), "Make room and run it again", "label") from problem


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of writers that were killed."""
    for file in path.glob(".writing-*"):
        pid = file.name.rsplit("-", 1)[1]
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()) or int(pid) == os.getpid():
            file.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------- one writer


@contextlib.contextmanager
def writing(path: Path, part: tuple[int, int]) -> Iterator[None]:
    """Hold the store's lock while writing: all of it, or the part ``(i, n)``. The system frees it with the process.

    Raises:
        StoredTeacherError: if another writer, of this process or another, holds it.
    """
    number, count = part
    advice = "Wait for it, or give each writer its own shard=(i, n)"
    taken = stored_error(f"to be the only writer of {path}", "another one at work", advice, "label")
    store = str(path.resolve())
    key = (store, number if count > 1 else -1)
    with _guard:
        mine = {each for each in _in_this_process if each[0] == store}
        if key in mine or (count == 1 and mine) or (store, -1) in mine:
            raise taken
        _in_this_process.add(key)
    try:
        with (path / ".lock").open("a+b") as lock:
            try:
                if fcntl is not None and count == 1:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 0)  # every byte, to the end of time
                elif fcntl is not None:
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + number)
            except OSError:
                raise taken from None
            yield
    finally:
        with _guard:
            _in_this_process.discard(key)
