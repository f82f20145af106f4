"""Every change that the package makes on disk goes through here, so that tests can interrupt each one of them.

Three rules make it safe to kill the process at any moment. A file or folder is written under a hidden name, then
renamed. Anything to be deleted is first renamed to a hidden name. A writer holds a lock that the operating system
releases when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no file locks on this platform: concurrent writers go undetected
    fcntl = None  # type: ignore[assignment]

WRITING, REMOVING = ".writing-", ".removing-"
#: A hidden file from another machine counts as abandoned after this long without a write.
LEASE_SECONDS = 900.0


# ------------------------------------------------------------------------------------------------ single operations


def read(path: Path) -> bytes:
    """Return the bytes of a file."""
    return path.read_bytes()


def digest(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_folder(path: Path, *, parents: bool = False, exist_ok: bool = False) -> None:
    """Make a folder."""
    path.mkdir(parents=parents, exist_ok=exist_ok)


def write(path: Path, content: bytes) -> None:
    """Write a whole file under the given name."""
    path.write_bytes(content)


def fill(path: Path, function: Callable[[], Any]) -> Any:
    """Call a third-party function that writes the file or folder ``path``, and return its result."""
    return function()


def rename(old: Path, new: Path) -> None:
    """Give a file or folder another name in one step; a file at that name is replaced."""
    os.replace(old, new)


def remove(path: Path) -> None:
    """Remove a file; one that is gone already is no error."""
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder with everything inside; one that is gone already is no error."""
    shutil.rmtree(path, ignore_errors=not path.exists())


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------ whole or not at all


def writer_name() -> str:
    """Return a name for a hidden file: an identifier of the machine's current boot, and a random number.

    A process id would be ambiguous across machines and containers.
    """
    return f"{_boot()}.{uuid.uuid4().hex}"


def written(function: Callable[[Any], Any]) -> bytes:
    """Return the bytes that ``function`` writes to the stream it is given, for ``put``."""
    content = io.BytesIO()
    function(content)
    return content.getvalue()


def put(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new, never a part."""
    aside = path.with_name(f"{WRITING}{path.name}-{writer_name()}")
    try:
        write(aside, content)
        flush(aside)
        rename(aside, path)
        flush(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(aside)
        raise


def take_away(folder: Path) -> None:
    """Remove a folder so that a kill never leaves half of it under its own name."""
    aside = folder.with_name(f"{REMOVING}{uuid.uuid4().hex}")
    rename(folder, aside)
    remove_tree(aside)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Create the empty hidden file ``path`` and lock it while the block runs: others see that its writer is alive."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: the lease decides
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # another process removed it as abandoned before it was locked
    try:
        yield
    finally:
        os.close(descriptor)


def is_left_over(path: Path) -> bool:
    """Return whether the writer of a hidden file is certainly dead.

    Its lock must be free, which is proof on the machine that wrote it. Not every shared file system shows the locks of
    other machines, so their files must also have been unchanged for ``LEASE_SECONDS``.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
        if f"-{_boot()}." in path.name and fcntl is not None:
            return True
        return time.time() - os.fstat(descriptor).st_mtime > LEASE_SECONDS
    finally:
        os.close(descriptor)


def _boot() -> str:
    """Return an identifier of this machine's current boot, the same in all its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:12]
    except OSError:
        return f"{uuid.getnode():012x}"


# ------------------------------------------------------------------------------------------------ one writer


class Lock:
    """A lock for one writer at a time; the operating system releases it when the process ends, even by a kill.

    It belongs to the open file, not to the process as POSIX record locks do: closing another handle of the same file
    does not release it, and two holders within one process exclude each other.

    Args:
        path: a folder, or a file, which is created if it is missing and never deleted.
        part: which part of a file to lock, counted from 0; None locks all of it.

    Raises:
        BlockingIOError: if another writer holds the lock.
        OSError: if the file cannot be opened.
    """

    def __init__(self, path: Path, part: int | None = None) -> None:
        folder = path.is_dir()
        self._descriptor: int | None = os.open(path, os.O_RDONLY if folder else os.O_CREAT | os.O_RDWR, 0o666)
        try:
            _lock(self._descriptor, folder, part)
        except OSError as problem:
            if problem.errno in (errno.EAGAIN, errno.EACCES):
                self.release()
                raise BlockingIOError(*problem.args) from problem
            # The file system has no locks: concurrent writers go undetected.

    def release(self) -> None:
        """Release the lock; releasing it twice is no error."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *problem: object) -> None:
        self.release()


def _lock(descriptor: int, folder: bool, part: int | None) -> None:
    if fcntl is None:
        return
    if folder:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    start, length = (0, 0) if part is None else (1 + part, 1)  # length 0: to the end of time
    if hasattr(fcntl, "F_OFD_SETLK"):
        # struct flock of 64-bit Linux: type, whence, start, length, process (0 for a lock of the open file).
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0))
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
