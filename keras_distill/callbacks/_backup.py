"""Backups that survive a kill at any moment, a full disk and a damaged file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_distill._checks import error, integer
from keras_distill.callbacks._steering import plain
from keras_distill.training._multi_worker import is_chief

_OWNER = "Backup"
_WEIGHTS, _FACTS = "state.weights.h5", "backup.json"


class Backup(keras.callbacks.BackupAndRestore):
    """Backs up a training run after each epoch, and goes on from the last good backup when ``fit`` is called again.

    Choose it over ``keras.callbacks.BackupAndRestore`` where runs are killed: a backup appears whole or not at all, is
    checked by its SHA-256 before it is used, and the one before it is kept. It holds what ``save_weights`` holds
    (student, adapters, optimizer, schedules, what the adaptive callbacks remember, states of random generators) and the
    history. The resumed run ends with the same bits as one that was never killed if the examples of an epoch depend on
    its number alone; see the example. Under several workers give all of them one shared directory: the chief writes it.

    Of callbacks of Keras that remember something (``EarlyStopping``, ``ReduceLROnPlateau``) nothing is kept.

    Args:
        directory: made if it is not there; nothing else may live in it. Removed when ``fit`` ends well.
        num_kept: >= 1, backups on disk at any time.
        delete_checkpoint: False: leave the backups when ``fit`` ends well.

    Raises:
        ValueError: by ``fit``, if there are backups and all are damaged.
        OSError: by ``fit``, if a backup cannot be written; those before it stay.

    Example:
        >>> import keras, numpy as np, tempfile, tensorflow as tf
        >>> from keras_distill import Distiller, LogitsDistillation
        >>> x = tf.data.Dataset.from_tensor_slices(np.eye(8, 4, dtype="float32"))
        >>> backup = Backup(tempfile.mkdtemp())
        >>> epochs = tf.data.Dataset.range(backup.epoch, 3)  # after a kill: from the epoch that comes next
        >>> data = epochs.flat_map(lambda epoch: x.shuffle(8, seed=epoch)).batch(4)
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> distiller = Distiller(teacher, student, LogitsDistillation(), student_loss_weight=0.0)
        >>> distiller.compile("sgd")
        >>> history = distiller.fit(data, epochs=3, steps_per_epoch=2, callbacks=[backup], verbose=0)
        >>> len(history.history["loss"])
        3
    """

    def __init__(self, directory: str | Path, num_kept: int = 2, delete_checkpoint: bool = True) -> None:
        super().__init__(str(directory), delete_checkpoint=delete_checkpoint)
        self.directory = Path(directory)
        self.num_kept = integer(_OWNER, "num_kept", num_kept, low=1)
        self._logs: dict[str, list[Any]] = {}
        self._resumed = 0

    @property
    def epoch(self) -> int:
        """The epoch that ``fit`` would begin with: 0, or the one after the last good backup's."""
        good = next((facts for _, facts, problem in self._found() if problem is None), None)
        return 0 if good is None else good["epoch"]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Load the last good backup, if there is one, and say which ones were damaged."""
        self._logs, self._resumed, damaged = {}, 0, []
        for folder, facts, problem in self._found():
            if problem is not None:
                damaged.append((folder, problem))
                continue
            if not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self.model.load_weights(str(folder / _WEIGHTS))
            self.model._initial_epoch = self._resumed = facts["epoch"]
            self._logs = facts["history"]
            self.model.history.history = {name: list(values) for name, values in self._logs.items()}
            break
        told = "; ".join(f"{folder.name}: {problem}" for folder, problem in damaged)
        if damaged and not self._resumed:
            advice = "Remove the directory to begin afresh"
            raise error(_OWNER, f"a whole backup in {self.directory}", told, advice)
        if damaged:
            warnings.warn(f"Backup: damaged ({told}). Training goes on after epoch {self._resumed}.", stacklevel=2)
        if is_chief(self.model.distribute_strategy):
            for useless in [folder for folder, _ in damaged] + list(self.directory.glob(".writing-*")):
                shutil.rmtree(useless)
            with self._writing():
                pass  # a directory that cannot be written shows now, not after an epoch

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the epochs before the kill in the history."""
        if epoch == self._resumed:
            self.model.history.epoch = list(range(epoch))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write a backup, then remove the oldest."""
        for name, value in (logs or {}).items():
            self._logs.setdefault(name, []).append(plain(value))
        if not is_chief(self.model.distribute_strategy):
            # Reading what is summed over workers takes all of them; only the chief keeps it.
            with tempfile.TemporaryDirectory() as scratch:
                self.model.save_weights(f"{scratch}/{_WEIGHTS}")
            return
        with self._writing() as aside:
            _check_space(aside / "space", self.model)
            self.model.save_weights(str(aside / _WEIGHTS))
            facts = {"epoch": epoch + 1, "sha256": _sha256(aside / _WEIGHTS), "history": self._logs}
            (aside / _FACTS).write_text(json.dumps(facts))
            for path in (aside / _WEIGHTS, aside / _FACTS, aside):
                _to_disk(path)
            aside.rename(self.directory / f"epoch-{epoch + 1:06d}")
        for folder in self._folders()[self.num_kept :]:
            shutil.rmtree(folder)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Do nothing: a backup is made after an epoch, where the order of the data can be found again."""

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Remove the backups: the run is done."""
        if self.delete_checkpoint and is_chief(self.model.distribute_strategy):
            for folder in self._folders():
                shutil.rmtree(folder)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Path]:
        """Give a folder to write into; whatever happens, none is left."""
        aside = self.directory / f".writing-{os.getpid()}"
        try:
            aside.mkdir(parents=True)
            yield aside
        except Exception as problem:
            # HDF5 wraps the system's answer in errors of other kinds.
            if not isinstance(problem, OSError) and "errno" not in str(problem):
                raise
            kept = f"The backup of epoch {self.epoch} is whole" if self.epoch else "There is no backup"
            raise OSError(f"Backup: expected to write into {self.directory}, got {problem}. {kept}.") from problem
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted(self.directory.glob("epoch-*"), reverse=True)

    def _found(self) -> Any:
        """Yield the backups, the newest first: folder, facts and what is wrong with it, or None."""
        for folder in self._folders():
            try:
                facts = json.loads((folder / _FACTS).read_text())
                whole = facts["sha256"] == _sha256(folder / _WEIGHTS)
                yield folder, facts, None if whole else f"{_WEIGHTS} has changed since it was written"
            except (OSError, ValueError, KeyError) as problem:
                yield folder, {}, f"{type(problem).__name__} {problem}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_space(path: Path, model: keras.Model) -> None:
    """Write as many bytes as a backup may take, and remove them: on a full disk HDF5 would kill the process."""
    variables = [*model.variables, *model.optimizer.variables]
    needed = 2**20 + sum(8192 + math.prod(v.shape) * (8 if "64" in v.dtype else 4) for v in variables)
    with path.open("wb") as file:
        for _ in range(-(-needed // 2**20)):
            file.write(bytes(2**20))
    path.unlink()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
