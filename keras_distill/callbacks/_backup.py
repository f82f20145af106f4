"""Backups that withstand a kill at any moment, a full disk, a damaged file and a second run in the same directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_distill import _files
from keras_distill._checks import error, integer
from keras_distill.callbacks._steering import plain
from keras_distill.teachers.store._teacher_id import config_fingerprint, teacher_fingerprint
from keras_distill.training._multi_worker import is_chief, numbers_of_workers

_OWNER = "Backup"
_WEIGHTS, _FACTS = "state.weights.h5", "backup.json"
_NAMES = {"package": "another version of keras_distill", "model": "another model, term or setting",
          "teacher": "another teacher", "compile": "another optimizer, loss or metric", "seed": "another seed",
          "steps": "another number of steps per epoch", "identity": "another identity=..."}  # fmt: skip
# This process's directory locks, with the thread whose fit took each. An exception ends fit without a callback.
_locks: dict[str, tuple[_files.Lock, threading.Thread]] = {}


class Backup(keras.callbacks.BackupAndRestore):
    """Backs up a training run after each epoch, and resumes from the last good backup when ``fit`` is called again.

    Choose it over ``keras.callbacks.BackupAndRestore`` where runs are killed: a backup is written atomically and
    verified by SHA-256 before use, and the previous one is kept. It holds what ``save_weights`` holds (student,
    adapters, optimizer, schedules, state of the adaptive callbacks, random states) and the history. The resumed run
    ends bit-identical to an uninterrupted one if the examples of an epoch depend only on its number; see the example.
    Several workers need one shared directory, which the chief writes.

    A backup identifies its run: the configuration of the models, terms and optimizer, the teacher's weights, the seed
    of ``keras.utils.set_random_seed``, the steps per epoch, the version of the package and ``identity``. A run that
    differs is refused, and so is a second run in the directory while the first is active.

    The state of Keras' own callbacks (``EarlyStopping``, ``ReduceLROnPlateau``) is not saved.

    Args:
        directory: created if missing, for backups only, and removed when ``fit`` succeeds.
        num_kept: >= 1, number of backups to keep on disk.
        delete_checkpoint: False keeps the backups when ``fit`` succeeds.
        identity: what else must match for a run to resume, such as ``data.fingerprint`` or the text of a configuration
            file: text, a number, or a dictionary or list of them. A callback cannot see the data by itself.
        same_run: False resumes from the backups of any run whose weights fit.

    Raises:
        ValueError: by ``fit``, if there are backups and all are damaged, they are those of another run, or the workers
            of a cluster find different ones.
        OSError: from ``fit``, if a backup cannot be written (earlier ones are kept), or another run is active.

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

    def __init__(
        self,
        directory: str | Path,
        num_kept: int = 2,
        delete_checkpoint: bool = True,
        identity: Any = None,
        same_run: bool = True,
    ) -> None:
        super().__init__(str(directory), delete_checkpoint=delete_checkpoint)
        self.directory = Path(directory)
        self.num_kept = integer(_OWNER, "num_kept", num_kept, low=1)
        try:
            self.identity = None if identity is None else json.loads(json.dumps(identity, sort_keys=True))
        except (TypeError, ValueError):
            expected = "identity of text, numbers, lists and dictionaries"
            raise error(_OWNER, expected, type(identity).__name__, "Give data.fingerprint, not the data") from None
        self.same_run = bool(same_run)
        self._logs: dict[str, list[Any]] = {}
        self._resumed = 0
        self._run: dict[str, Any] = {}

    @property
    def epoch(self) -> int:
        """The epoch at which ``fit`` would start: 0, or the one after the last good backup."""
        good = next((facts for _, facts, problem in self._found() if problem is None), None)
        return 0 if good is None else good["epoch"]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Load the last good backup of this run, if any, and warn of damaged ones."""
        self._logs, self._resumed, damaged = {}, 0, []
        self._run = _identity_of(self.model, (self.params or {}).get("steps"), self.identity)
        chief = is_chief(self.model.distribute_strategy)
        if chief:
            with self._refused():
                self._take_lock()
        for folder, facts, problem in self._found():
            if problem is not None:
                damaged.append((folder, problem))
                continue
            self._refuse_a_stranger(folder, facts)
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
            raise error(_OWNER, f"an undamaged backup in {self.directory}", told, advice)
        if damaged:
            warnings.warn(f"Backup: damaged ({told}). Training resumes after epoch {self._resumed}.", stacklevel=2)
        # All have read before the chief removes anything: of a run that had ended, that is every backup.
        epochs = numbers_of_workers(self.model.distribute_strategy, self._resumed)
        if len(set(epochs)) > 1:
            advice = "Give all of them one directory on a shared file system"
            got = f"workers that resume after epochs {', '.join(map(str, epochs))}"
            raise error(_OWNER, f"all workers to find the same backups in {self.directory}", got, advice)
        if chief:
            for pattern in (f"{_files.WRITING}*", f"{_files.REMOVING}*"):
                for left_over in self.directory.glob(pattern):
                    _files.remove_tree(left_over)
            for folder, _ in damaged:
                _files.take_away(folder)
            with self._writing():
                pass  # fails now, not after an epoch, if the directory is not writable

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Restore the history of the epochs before the kill."""
        if epoch == self._resumed:
            self.model.history.epoch = list(range(epoch))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write a backup, then remove the oldest."""
        for name, value in (logs or {}).items():
            self._logs.setdefault(name, []).append(plain(value))
        if not is_chief(self.model.distribute_strategy):
            # Reading variables summed over workers involves all of them; only the chief keeps the result.
            with tempfile.TemporaryDirectory() as scratch:
                self.model.save_weights(f"{scratch}/{_WEIGHTS}")
            return
        with self._writing() as aside:
            weights = aside / _WEIGHTS
            _check_space(aside / "space", self.model)
            _files.fill(weights, lambda: self.model.save_weights(str(weights)))
            body = {"epoch": epoch + 1, "weights": _files.digest(weights), "history": self._logs, "run": self._run}
            _files.write(aside / _FACTS, _sealed(body))
            for path in (weights, aside / _FACTS, aside):
                _files.flush(path)
            final = self.directory / f"epoch-{epoch + 1:06d}"
            if final.exists():  # of a run that went on from an earlier backup
                _files.take_away(final)
            _files.rename(aside, final)
            _files.flush(self.directory)
        with self._refused():
            for folder in self._folders()[self.num_kept :]:
                _files.take_away(folder)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Do nothing: backups are made after epochs, where the order of the data can be reproduced."""

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Remove the backups, oldest first, because the run is complete."""
        if not self.model.history.epoch:  # killed after the last epoch, with nothing left to do
            self.model.history.epoch = list(range(self._resumed))
        if not is_chief(self.model.distribute_strategy):
            return
        if self.delete_checkpoint:
            with self._refused():
                for folder in reversed(self._folders()):
                    _files.take_away(folder)
        held = _locks.pop(self._key(), None)
        if held is not None:
            held[0].release()

    def _key(self) -> str:
        return str(self.directory.resolve())

    def _take_lock(self) -> None:
        """Become the only writer of the directory until ``fit`` ends or the process does."""
        _files.make_folder(self.directory, parents=True, exist_ok=True)
        held = _locks.get(self._key())
        if held is not None and (held[1] is threading.current_thread() or not held[1].is_alive()):
            held[0].release()  # held by a fit in this process that an exception ended
        try:
            _locks[self._key()] = _files.Lock(self.directory), threading.current_thread()
        except BlockingIOError:
            advice = "Wait for it, or give each run its own directory."
            message = f"Backup: expected to be the only run in {self.directory}, got another active one. {advice}"
            raise BlockingIOError(message) from None

    def _refuse_a_stranger(self, folder: Path, facts: dict[str, Any]) -> None:
        theirs = facts["run"]
        if theirs is None:  # written before backups identified their run
            warnings.warn(f"Backup: {folder} does not name its run; it is assumed to be this one's.", stacklevel=3)
            return
        differs = [text for part, text in _NAMES.items() if theirs.get(part) != self._run.get(part)]
        if differs and self.same_run:
            advice = "Give each run its own directory, or same_run=False to resume from another run's backup"
            raise error(_OWNER, f"backups of this run in {self.directory}", f"one with {', '.join(differs)}", advice)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Path]:
        """Yield a temporary folder to write into, which is removed in any case."""
        aside = self.directory / f"{_files.WRITING}{_files.writer_name()}"
        try:
            with self._refused():
                _files.make_folder(aside, parents=True)
                yield aside
        finally:
            with contextlib.suppress(OSError):
                _files.remove_tree(aside)

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """Turn file system errors into one message that also says what is safe."""
        try:
            yield
        except Exception as problem:
            # HDF5 wraps system errors in other types.
            ours = str(problem).startswith(_OWNER)
            if ours or (not isinstance(problem, OSError) and "errno" not in str(problem)):
                raise
            kept = f"The backup of epoch {self.epoch} is intact" if self.epoch else "There is no backup"
            raise OSError(f"Backup: expected to write into {self.directory}, got {problem}. {kept}.") from problem

    def _folders(self) -> list[Path]:
        return sorted(self.directory.glob("epoch-*"), reverse=True)

    def _found(self) -> Any:
        """Yield the backups, newest first: folder, facts, and the problem or None."""
        for folder in self._folders():
            try:
                facts = _opened(_files.read(folder / _FACTS))
                if folder.name != f"epoch-{facts['epoch']:06d}":
                    raise ValueError(f"it is the backup of epoch {facts['epoch']}")
                whole = facts["weights"] == _files.digest(folder / _WEIGHTS)
                yield folder, facts, None if whole else f"{_WEIGHTS} has changed since it was written"
            except (OSError, ValueError, RecursionError) as problem:
                yield folder, {}, f"{type(problem).__name__} {problem}"


def _identity_of(model: keras.Model, steps: int | None, identity: Any) -> dict[str, Any]:
    """Return what identifies a run, as plain values.

    Computed once per optimizer object, because callbacks may later change temperatures and rates of the same run.
    """
    known, parts = vars(model).get("_backup_identity", (None, {}))
    if known is not model.optimizer:
        teacher = getattr(model, "teacher", None)
        parts = {
            "package": getattr(sys.modules["keras_distill"], "__version__", ""),
            "model": config_fingerprint(model),
            "teacher": teacher_fingerprint(teacher) if isinstance(teacher, keras.Model) else None,
            "compile": config_fingerprint(model, compiled=True),
            "seed": tf.compat.v1.random.get_seed(1)[0],
        }
        object.__setattr__(model, "_backup_identity", (model.optimizer, parts))
    return {**parts, "steps": steps, "identity": identity}


def _sealed(body: Mapping[str, Any]) -> bytes:
    """Return the facts as JSON text inside JSON, beside the SHA-256 of that text."""
    text = json.dumps(body)
    return json.dumps({"body": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()


def _opened(content: bytes) -> dict[str, Any]:
    """Return the facts that ``_sealed`` wrote.

    Raises:
        ValueError: if they were changed.
    """
    outer = json.loads(content)
    keys = set(outer) if isinstance(outer, dict) else set()
    if keys == {"epoch", "sha256", "history"}:  # from an earlier version, which hashed only the weights
        facts = {"epoch": outer["epoch"], "weights": outer["sha256"], "history": outer["history"], "run": None}
    else:
        if keys != {"body", "sha256"} or not isinstance(outer["body"], str):
            raise ValueError("it is not what Backup writes")
        if hashlib.sha256(outer["body"].encode("utf-8", "replace")).hexdigest() != outer["sha256"]:
            raise ValueError("it has changed since it was written")
        facts = json.loads(outer["body"])
    history = facts["history"]
    if type(facts["epoch"]) is not int or facts["epoch"] < 1 or not isinstance(history, dict):
        raise ValueError("it is not what Backup writes")
    if not all(isinstance(values, list) and len(values) <= facts["epoch"] for values in history.values()):
        raise ValueError("its history is not what Backup writes")
    return facts


def _check_space(path: Path, model: keras.Model) -> None:
    """Write and remove as many bytes as a backup may take, because HDF5 would crash the process on a full disk."""
    variables = [*model.variables, *model.optimizer.variables]
    needed = 2**20 + sum(8192 + math.prod(v.shape) * (8 if "64" in v.dtype else 4) for v in variables)

    def write() -> None:
        with path.open("wb") as file:
            for _ in range(-(-needed // 2**20)):
                file.write(bytes(2**20))

    _files.fill(path, write)
    _files.remove(path)
