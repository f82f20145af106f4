"""Teachers' answers to one array of inputs, computed once.

Kept apart from ``_driver.py``: it knows teachers and files, while a driver knows rounds of training.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill import _files
from keras_distill._checks import error
from keras_distill.teachers import Precomputed


class Answers:
    """Stores each teacher's answers to one array, in memory and, if given, in a directory.

    Args:
        owner: name shown in error messages.
        directory: where answers are kept beyond the process; None keeps them only in memory.
    """

    def __init__(self, owner: str, directory: str | Path | None) -> None:
        self.owner = owner
        self.directory = None if directory is None else Path(directory)
        self._known: dict[str, np.ndarray] = {}
        self._x: np.ndarray | None = None
        self._digest = ""

    def begin(self, x: Any) -> None:
        """Set the inputs; answers to other inputs are dropped.

        Args:
            x: (examples, ...), an array.

        Raises:
            ValueError: if ``x`` is anything else.
        """
        if not isinstance(x, np.ndarray):
            advice = "Label a dataset with teachers.label, and train on the store"
            raise error(self.owner, "x to be one NumPy array with store_answers=True", type(x).__name__, advice)
        digest = hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16]
        if digest != self._digest:
            self._known.clear()
        self._x, self._digest = x, digest

    def of(self, name: str, teacher: keras.Model) -> Precomputed:
        """Return a teacher with the precomputed answers of ``teacher``.

        Args:
            name: name of the teacher, the same in every run.
            teacher: a trained model or teacher.
        """
        if name not in self._known:
            path = None if self.directory is None else self.directory / f"answers-{name}-{self._digest}.npy"
            if path is not None and path.exists():
                self._known[name] = np.load(path, allow_pickle=False)
            else:
                self._known[name] = np.asarray(teacher.predict(self._x, batch_size=256, verbose=0))
                if path is not None:
                    _files.make_folder(path.parent, parents=True, exist_ok=True)
                    _files.put(
                        path, _files.written(lambda stream: np.save(stream, self._known[name], allow_pickle=False))
                    )
        return Precomputed(self._known[name], self._x)
