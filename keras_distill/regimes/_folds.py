"""Folds, and teachers that answer only for examples they have not seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import _files
from keras_distill._checks import error, integer, number
from keras_distill._typing import Structure
from keras_distill.teachers import Precomputed


class OutOfFold(Precomputed):
    """The result of ``cross_fit``: a teacher whose answer to each example comes from a model that never saw it.

    Args:
        answers: (examples, classes), logits.
        inputs: (examples, ...), the student's inputs.
        folds: (examples,), the fold in which each example was held out.
    """

    def __init__(self, answers: np.ndarray, inputs: np.ndarray, folds: np.ndarray) -> None:
        super().__init__(answers, inputs)
        object.__setattr__(self, "answers", answers)
        object.__setattr__(self, "folds", folds)


def cross_fit(
    make_teacher: Callable[[], keras.Model],
    data: Structure,
    num_folds: int = 5,
    *,
    fit_arguments: Mapping[str, Any] | None = None,
    loss_correction: float = 0.0,
    directory: str | Path | None = None,
    seed: int = 0,
) -> OutOfFold:
    """Train one teacher per fold on the other folds, and collect its answers to the fold it never saw.

    Choose it when the teacher overfits: on its own training examples its answers are close to the labels and carry no
    uncertainty. It costs ``num_folds`` trainings of the teacher.

    Equal examples share a fold, found by their fingerprints, so that no copy leaks into a teacher's training.

    Args:
        make_teacher: returns a new, compiled Keras model with logits.
        data: (x, y) of arrays with integer labels, or a finite ``tf.data.Dataset`` of such batches.
        num_folds: 2 to the number of examples; each class needs as many examples.
        fit_arguments: arguments of each teacher's ``fit`` (``epochs``, ``batch_size``, ``verbose``).
        loss_correction: gamma, 0 to 1: the answers become log(p + gamma * (y - p)), the corrected target.
        directory: where answers of finished folds are kept, so that a killed run can resume; None keeps nothing.
        seed: >= 0, of the folds.

    Returns:
        A teacher for ``Distiller``; ``folds`` and ``answers`` are arrays in the order of ``data``.

    Raises:
        ValueError: if there are fewer than 2 folds or more than examples, a class has fewer examples than folds, the
            teacher is not compiled, or the directory belongs to another run.

    Reference:
        Dao et al., "Knowledge Distillation as Semiparametric Inference", ICLR 2021, arXiv:2104.09732, algorithm 1 and
        section 5. Differs: nothing.
    """
    owner = "cross_fit"
    x, y = arrays_of(owner, data)
    gamma = number(owner, "loss_correction", loss_correction, low=0.0, high=1.0)
    folds = stratified_folds(y, num_folds, seed=seed, groups=fingerprints(x), owner=owner)
    memory = _Memory(owner, directory, {"folds": _digest(folds), "data": _digest(x), "labels": _digest(y)})
    answers: np.ndarray | None = None
    for fold in range(num_folds):
        held = folds == fold
        logits = memory.read(fold)
        if logits is None:
            keras.utils.set_random_seed(seed + fold)
            teacher = make_teacher()
            if not isinstance(teacher, keras.Model) or not teacher.compiled:
                raise error(owner, "make_teacher to return a compiled keras.Model", teacher)
            teacher.fit(x[~held], y[~held], **(fit_arguments or {}))
            logits = np.asarray(teacher.predict(x[held], verbose=0), "float32")
            memory.write(fold, logits)
        answers = np.zeros((len(x), *logits.shape[1:]), "float32") if answers is None else answers
        answers[held] = logits
    return OutOfFold(_corrected(np.asarray(answers), y, gamma), x, folds)


def _corrected(logits: np.ndarray, y: np.ndarray, gamma: float) -> np.ndarray:
    if gamma == 0.0:
        return logits
    z = logits.astype("float64")
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    target = p + gamma * (np.eye(p.shape[-1])[y] - p)
    return np.log(np.maximum(target, np.finfo("float32").tiny)).astype("float32")


def stratified_folds(
    labels: np.ndarray, num_folds: int, *, seed: int = 0, groups: np.ndarray | None = None, owner: str = "folds"
) -> np.ndarray:
    """Return the fold of each example, with equal numbers of each class per fold and groups kept together.

    Args:
        labels: (examples,), integers.
        num_folds: 2 to the number of examples.
        seed: >= 0.
        groups: (examples,), or None: examples of one group share a fold.
        owner: name shown in error messages.

    Returns:
        (examples,), int.

    Raises:
        ValueError: if there are too few examples, in a class or in total.
    """
    integer(owner, "num_folds", num_folds, low=2, advice="One fold would leave nothing to train on")
    if num_folds > len(labels):
        raise error(owner, f"num_folds <= {len(labels)}, the number of examples", num_folds)
    first = np.arange(len(labels))
    if groups is not None:
        _, first_of, inverse = np.unique(groups, return_index=True, return_inverse=True)
        first = first_of[inverse.reshape(-1)]
    folds = np.zeros(len(labels), int)
    heads = np.unique(first)
    random = np.random.default_rng(integer(owner, "seed", seed, low=0))
    start = 0
    for label in np.unique(labels):
        own = heads[labels[heads] == label]
        if len(own) < num_folds:
            got = f"{len(own)} of class {label}"
            raise error(owner, f"at least {num_folds} different examples of each class", got, "Use fewer folds")
        # Each class continues where the previous one ended, so that the folds differ by at most one example.
        folds[random.permutation(own)] = (start + np.arange(len(own))) % num_folds
        start = (start + len(own)) % num_folds
    return folds[first]


def arrays_of(owner: str, data: Structure) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and integer labels as arrays.

    Args:
        owner: name shown in error messages.
        data: (x, y) of arrays, or a finite dataset of such batches.
    """
    if isinstance(data, tf.data.Dataset):
        batches = [keras.utils.unpack_x_y_sample_weight(batch)[:2] for batch in data.as_numpy_iterator()]
        if not batches:
            raise error(owner, "at least one batch of data", "an empty dataset")
        data = tuple(np.concatenate([batch[part] for batch in batches]) for part in range(2))
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise error(owner, "data (x, y) of arrays, or a tf.data.Dataset", type(data).__name__)
    x, y = np.asarray(data[0]), np.asarray(data[1])
    y = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise error(owner, "integer labels of shape (examples,)", f"{y.dtype} of shape {y.shape}")
    if len(x) != len(y):
        raise error(owner, "as many labels as examples", f"{len(y)} for {len(x)}")
    return x, y


def fingerprints(x: np.ndarray) -> np.ndarray:
    """Return eight bytes for each example, equal for equal examples.

    Args:
        x: (examples, ...).
    """
    return np.array([hashlib.sha256(row.tobytes()).digest()[:8] for row in np.ascontiguousarray(x)])


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


class _Memory:
    """Answers of finished folds in a directory, each written atomically."""

    def __init__(self, owner: str, directory: str | Path | None, identity: dict[str, str]) -> None:
        self._directory = None if directory is None else Path(directory)
        if self._directory is None:
            return
        _files.make_folder(self._directory, parents=True, exist_ok=True)
        record = self._directory / "run.json"
        if not record.exists():
            _files.put(record, json.dumps(identity).encode())
        elif json.loads(record.read_text(encoding="utf-8")) != identity:
            raise error(owner, f"the directory {directory} to be of this run", "one of other data or folds")

    def read(self, fold: int) -> np.ndarray | None:
        path = None if self._directory is None else self._directory / f"fold-{fold}.npy"
        return np.load(path, allow_pickle=False) if path is not None and path.exists() else None

    def write(self, fold: int, logits: np.ndarray) -> None:
        if self._directory is not None:
            _files.put(
                self._directory / f"fold-{fold}.npy",
                _files.written(lambda stream: np.save(stream, logits, allow_pickle=False)),
            )
