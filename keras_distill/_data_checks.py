"""Looks at data before training starts: what can be seen without reading a dataset from its source."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error
from keras_distill.taps import gives_logits

_SPARSE = {"sparse_categorical_crossentropy", "sparsecategoricalcrossentropy"}
_DENSE = {"categorical_crossentropy", "categoricalcrossentropy"}


def check_data(distiller: Any, x: Any, y: Any, where: str) -> None:
    """Raise ``ValueError`` if there is no data, or the labels cannot be right.

    Args:
        distiller: compiled.
        x: what ``fit`` or ``evaluate`` was given.
        y: the same.
        where: ``"fit"`` or ``"evaluate"``, for the message.

    Raises:
        ValueError: in one sentence, naming what was expected.
    """
    owner = f"Distiller.{where}"
    targets: Any = y
    if x is None:
        raise error(owner, "data", "None")
    if isinstance(x, tf.data.Dataset):
        if x.cardinality().numpy() == 0:
            raise error(owner, "at least one batch of data", "an empty dataset")
        spec = x.element_spec
        targets = spec[1] if isinstance(spec, tuple) and len(spec) > 1 else None
    elif isinstance(x, keras.utils.PyDataset):
        if x.num_batches == 0:
            raise error(owner, "at least one batch of data", "an empty dataset")
        return
    elif _is_arrays(x):
        if any(len(array) == 0 for array in keras.tree.flatten(x)):
            raise error(owner, "at least one example", "an empty array")
    else:
        return  # a generator or a data loader: nothing is known before it runs
    if targets is None:
        _check_no_labels(distiller, owner)
    elif not keras.tree.is_nested(targets) and not keras.tree.is_nested(distiller.loss):
        _check_labels(distiller, targets, owner)


def warn_of_probabilities(loss: Any, student: keras.Model) -> None:
    """Warn where Keras will take logits for probabilities: its cross-entropies do, unless told ``from_logits=True``.

    Args:
        loss: as given to ``compile``.
        student: whose outputs the loss sees.
    """
    if not gives_logits(student):
        return
    for each in keras.tree.flatten(loss):
        kind = _loss_kind(each)
        configured = each.get_config() if isinstance(each, keras.losses.Loss) else {}
        if "crossentropy" in kind and not configured.get("from_logits", False):
            warnings.warn(
                f"Distiller.compile: the student {student.name!r} gives logits, but the loss {kind} takes its outputs "
                "for probabilities. Give an object with from_logits=True, such as "
                "keras.losses.SparseCategoricalCrossentropy(from_logits=True).",
                stacklevel=3,
            )
            return


def _is_arrays(x: Any) -> bool:
    flat = keras.tree.flatten(x)
    return bool(flat) and all(hasattr(array, "shape") and hasattr(array, "__len__") for array in flat)


def _terms_that_need_labels(distiller: Any) -> list[str]:
    found = []
    for term in distiller.distillation_losses:
        losses = keras.tree.flatten(getattr(term, "loss", None))
        found += [type(loss).__name__ for loss in losses if getattr(loss, "needs_labels", False)]
    return found


def _check_no_labels(distiller: Any, owner: str) -> None:
    if distiller.student_loss_weight > 0:
        advice = "Give y, or student_loss_weight=0 to learn from the teacher alone"
        raise error(owner, f"labels while student_loss_weight is {distiller.student_loss_weight:g}", "none", advice)
    needed = _terms_that_need_labels(distiller)
    if needed:
        raise error(owner, f"labels, which {needed[0]} needs", "none")


def _loss_kind(loss: Any) -> str:
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return str(name).lower()


def _check_labels(distiller: Any, targets: Any, owner: str) -> None:
    outputs = getattr(distiller.student, "outputs", None)
    if not outputs or len(outputs) != 1 or targets.shape.__len__() is None:
        return
    shape, kind = tuple(outputs[0].shape), _loss_kind(distiller.loss)
    got, rank, classes = tuple(targets.shape), len(targets.shape), shape[-1]
    column = rank == len(shape) and got[-1] == 1
    if kind in _SPARSE and rank != len(shape) - 1 and not column:
        advice = "Use CategoricalCrossentropy for one-hot labels" if got[-1] == classes else "Look at the shape of y"
        raise error(owner, f"integer labels of rank {len(shape) - 1} for {kind}", f"shape {got}", advice)
    if kind in _DENSE and (rank != len(shape) or got[-1] != classes):
        advice = "Use SparseCategoricalCrossentropy for integer labels"
        raise error(owner, f"one-hot labels with {classes} columns for {kind}", f"shape {got}", advice)
    if kind not in _SPARSE and not _terms_that_need_labels(distiller):
        return
    if isinstance(targets, (np.ndarray, tf.Tensor)) and classes is not None and (rank == len(shape) - 1 or column):
        ids = np.asarray(targets)
        ignored = getattr(distiller.loss, "ignore_class", None)
        ids = ids[ids != ignored] if ignored is not None else ids
        if ids.size and not np.issubdtype(ids.dtype, np.bool_) and (ids.min() < 0 or ids.max() >= classes):
            bad = ids.min() if ids.min() < 0 else ids.max()
            advice = "Check that the labels fit the number of classes of the student's output"
            raise error(owner, f"labels from 0 to {classes - 1}", bad.item(), advice)
