"""Several data sets in one ``fit``: each example has its own task's labels, and weight 0 for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error, integer, number


def task_probabilities(sizes: Mapping[str, int], exponent: float = 0.75) -> dict[str, float]:
    """Return the probability of each task, proportional to its size to the power of ``exponent``.

    Args:
        sizes: examples of each task, >= 1.
        exponent: 0 to 1; 0 draws all tasks equally often, 1 all examples equally often.

    Returns:
        Probabilities that sum to 1.

    Raises:
        ValueError: if there is no task, a size is below 1 or the exponent is out of bounds.

    Example:
        >>> task_probabilities({"large": 10000, "small": 625}, exponent=0.75)
        {'large': 0.8888888888888888, 'small': 0.1111111111111111}

    Reference:
        Clark et al., "BAM! Born-Again Multi-Task Networks", 2019, arXiv:1907.04829, section 4.1. Differs: nothing.
    """
    owner = "data.task_probabilities"
    number(owner, "exponent", exponent, low=0.0, high=1.0)
    if not sizes:
        raise error(owner, "at least one task", "none")
    powers = {name: integer(owner, f"size of {name!r}", size, low=1) ** exponent for name, size in sizes.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


def sample_tasks(
    tasks: Mapping[str, tuple[Any, Any]],
    *,
    batch_size: int,
    exponent: float = 0.75,
    num_batches: int | None = None,
    seed: int = 0,
) -> tf.data.Dataset:
    """Mix the examples of several tasks, drawn by size**0.75, into batches for a student with one output per task.

    Every batch is ``(x, y, sample_weight)``: y and sample_weight are dictionaries by task. An example's own task has
    weight 1; the others have weight 0 and labels 0, so no loss or distillation term counts them.

    Args:
        tasks: name of the student's output -> (x, labels); x an array or a structure of arrays of the same structure in
            all tasks; labels (examples, ...): integers, one per example or per token, or floats whose last axis is a
            row of targets.
        batch_size: >= 1.
        exponent: 0 to 1, see ``task_probabilities``.
        num_batches: >= 1, batches per epoch; None: as many as all examples fill.
        seed: seed of the order; each epoch draws anew.

    Returns:
        A dataset of known length, for ``fit``.

    Raises:
        ValueError: if there is no task, a task has no examples or unequal numbers of inputs and labels, or the inputs
            of two tasks differ in structure or shape.

    Example:
        >>> x = np.zeros((6, 2), "float32")
        >>> mixed = sample_tasks({"intent": (x, np.ones(6)), "mood": (x[:3], np.ones(3))}, batch_size=4)
        >>> inputs, labels, weights = next(iter(mixed))
        >>> sorted(labels), np.unique(weights["intent"] + weights["mood"]).tolist()
        (['intent', 'mood'], [1.0])
    """
    owner = "data.sample_tasks"
    integer(owner, "batch_size", batch_size, low=1)
    sizes = {name: _size(owner, name, *pair) for name, pair in tasks.items()}
    chances = task_probabilities(sizes, exponent)
    _check_alike(owner, {name: x for name, (x, _) in tasks.items()})
    labels = {name: np.asarray(y) for name, (_, y) in tasks.items()}
    parts = []
    for index, (name, (x, y)) in enumerate(tasks.items()):
        fill = {other: tf.zeros(each.shape[1:], each.dtype) for other, each in labels.items()}
        weight = {other: tf.fill(_weight_shape(each), float(other == name)) for other, each in labels.items()}

        def complete(x: Any, y: Any, name: str = name, fill: dict = fill, weight: dict = weight) -> Any:
            return x, {**fill, name: y}, weight

        part = tf.data.Dataset.from_tensor_slices((x, np.asarray(y)))
        shuffled = part.shuffle(sizes[name], seed=seed + index, reshuffle_each_iteration=True).repeat()
        parts.append(shuffled.map(complete))
    count = num_batches or -(-sum(sizes.values()) // batch_size)
    integer(owner, "num_batches", count, low=1)
    mixed = tf.data.Dataset.sample_from_datasets(parts, list(chances.values()), seed=seed, stop_on_empty_dataset=False)
    options = tf.data.Options()
    options.autotune.enabled = False
    return mixed.batch(batch_size).take(count).with_options(options).prefetch(2)


def _size(owner: str, name: str, x: Any, y: Any) -> int:
    counts = {len(each) for each in keras.tree.flatten(x)} | {len(y)}
    if len(counts) != 1 or 0 in counts:
        raise error(owner, f"as many inputs as labels for {name!r}, at least one", f"{sorted(counts)}")
    return counts.pop()


def _weight_shape(labels: np.ndarray) -> tuple[int, ...]:
    """Return the shape of one example's weight: one per class id, one per row of a distribution."""
    return labels.shape[1:] if labels.dtype.kind in "iub" else labels.shape[1:-1]


def _check_alike(owner: str, inputs: Mapping[str, Any]) -> None:
    first, *others = inputs
    for other in others:
        shapes = [[np.shape(a)[1:] for a in keras.tree.flatten(inputs[name])] for name in (first, other)]
        if shapes[0] != shapes[1]:
            got = f"{shapes[0]} and {shapes[1]}"
            raise error(owner, f"inputs of one shape in {first!r} and {other!r}", got, "Pad them to one length")
