"""Fault injection: the fixture ``faults`` interrupts every operation that ``keras_distill._files`` does on disk.

- ``crash_points(folder, act)`` gives a copy of ``folder`` as a SIGKILL before each operation would have left it (and in
  the middle of those that are not one step), because clean-up code of Python does not run there;
- ``each_failure(kind, act)`` runs ``act`` again and again; the first, second, ... operation of that kind fails.
"""

import contextlib
import errno
import hashlib
import shutil

from keras_distill import _files

CHANGES = ("make_folder", "write", "fill", "rename", "remove", "remove_tree", "flush")
FAILURES = {
    "disk full": (("make_folder", "write", "fill", "flush"), errno.ENOSPC),
    "unreadable": (("read", "digest"), errno.EIO),
    "forbidden": (("make_folder", "write", "fill", "rename", "remove", "remove_tree"), errno.EACCES),
}


def contents(folder):
    """The contents of a folder by relative path: bytes of files, None for folders."""
    if not folder.exists():
        return {}
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


class Faults:
    def __init__(self, monkeypatch, scratch):
        self.monkeypatch = monkeypatch
        self.scratch = scratch

    def crash_points(self, folder, act):
        """Run ``act``; return one copy of ``folder`` for each different state that a kill could have left."""
        found = {}

        def keep(change=None):
            number = len(found)
            copy = self.scratch / f"crash-{number}"
            if folder.exists():
                shutil.copytree(folder, copy)
            if change is not None:
                change(copy)
            state = hashlib.sha256(repr(sorted(contents(copy).items())).encode()).hexdigest()
            if state in found:
                shutil.rmtree(copy, ignore_errors=True)
            else:
                found[state] = copy

        def inside(path, copy):
            with contextlib.suppress(ValueError):
                return copy / path.relative_to(folder)
            return copy / "elsewhere"

        def half(path):
            def change(copy):
                file = inside(path, copy)
                if file.is_file():
                    content = file.read_bytes()
                    file.write_bytes(content[: len(content) // 2])

            return change

        def half_removed(path):
            def change(copy):
                for file in [each for each in sorted(inside(path, copy).rglob("*")) if each.is_file()][:1]:
                    file.unlink()

            return change

        def interrupted(name, original):
            def operation(path, *args, **kwargs):
                keep()
                if name == "remove_tree":
                    keep(half_removed(path))
                result = original(path, *args, **kwargs)
                if name in ("write", "fill"):
                    keep(half(path))
                return result

            return operation

        with self.monkeypatch.context() as patch:
            for name in CHANGES:
                patch.setattr(_files, name, interrupted(name, getattr(_files, name)))
            act()
        keep()
        return list(found.values())

    def each_failure(self, kind, act, every=1):
        """Call ``act(number)`` with the number-th operation failing, until no operation is left to fail.

        ``every`` is the step of ``number``.

        Returns:
            How many operations were made to fail.
        """
        names, code = FAILURES[kind]
        number = 0
        while True:
            calls = [0]

            def failing(original, calls=calls, number=number):
                def operation(path, *args, **kwargs):
                    calls[0] += 1
                    if calls[0] == number + 1:
                        raise OSError(code, "injected fault", str(path))
                    return original(path, *args, **kwargs)

                return operation

            with self.monkeypatch.context() as patch:
                for name in names:
                    patch.setattr(_files, name, failing(getattr(_files, name)))
                act(number)
            if calls[0] <= number:
                return number
            number += every
