"""Runs the teacher over a dataset once and stores its answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from keras_distill import _files
from keras_distill._checks import choice, integer
from keras_distill.teachers.store import _files as files
from keras_distill.teachers.store._labeller import Labeller
from keras_distill.teachers.store._stored import Stored
from keras_distill.teachers.store._views import Augment

_OWNER = "label"


def label(
    teacher: keras.Model,
    dataset: tf.data.Dataset,
    path: str | Path,
    *,
    top_k: int | None = None,
    dtype: str = "float16",
    features: Sequence[str] = (),
    members: bool = True,
    num_views: int = 1,
    augment: Augment | None = None,
    seed: int = 0,
    examples_per_shard: int | None = None,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    progress: bool = True,
) -> Stored | None:
    """Write a teacher's outputs for a dataset to disk, so that training never runs the teacher (FKD).

    Finished shards are kept: repeat the same call after a crash or a kill, and it resumes where it stopped and ends
    with the same bytes. Memory does not grow with the dataset.

    Args:
        teacher: a Keras model or any of ``keras_distill.teachers``.
        dataset: yields x, (x, y) or (x, y, sample_weight), batched, in a repeatable order. Only x is used. The sequence
            length may vary between batches if the shape of the outputs does not (one answer per text); otherwise pad
            all to one length.
        path: a directory, created if missing.
        top_k: number of classes of each output to keep, with the sum of the others' probabilities, which are then
            treated as equal; the manifest and ``Stored.divergence`` give the resulting error. None keeps all. Train
            with ``losses.TopKSoftTargets(k, missing="tail")``, which compares only the others' sum; above temperature 1
            and with many classes, also ``missing="ignore"``.
        dtype: ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"int8"`` (256 levels between minimum and maximum).
        features: names of layers whose outputs are also stored, for feature terms.
        members: whether to store each member of an ensemble (exact at every temperature) or only their combination.
        num_views: number of random views of each example to label; needs ``augment``.
        augment: maps one example and a (2,) int32 seed to the input of both networks, by stateless random operations
            such as ``tf.image.stateless_random_crop``. ``Stored.attach`` reproduces exactly these views.
        seed: seed of the views.
        examples_per_shard: None for 4096, or as many as fit into 64 MB. A kill loses the work on one shard.
        shard: (i, n): write only every n-th shard, from the i-th on, so that n machines share the work.
        overwrite: True discards an existing store.
        progress: show a bar, if rich is installed.

    Returns:
        The store; None while shards of other writers are missing.

    Raises:
        ValueError: if an argument is wrong, or the teacher gives NaN or numbers beyond the dtype.
        StoredTeacherError: if there is a store of another teacher, dataset or settings at ``path``, another writer is
            active, or the disk is full.

    Example:
        >>> import keras, numpy as np, tempfile, tensorflow as tf
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> dataset = tf.data.Dataset.from_tensor_slices(np.eye(4, 2, dtype="float32")).batch(2)
        >>> stored = label(model, dataset, tempfile.mkdtemp(), progress=False)
        >>> stored.num_examples, stored.bytes_per_example
        (4, 14)

    Reference:
        Shen, Xing, "A fast knowledge distillation framework for visual recognition", ECCV 2022, arXiv:2112.01528.
        Differs: ``top_k`` stores log-probabilities and the others' mass, so that a temperature can still be applied.
    """
    number, count = shard
    integer(_OWNER, "shard[1]", count, low=1)
    choice(_OWNER, "shard[0]", number, range(count))
    path = Path(path)
    with files.writing(path, (number, count)):
        if overwrite:
            clear(path)
        files.remove_leftovers(path, alone=count == 1)
        options = {"top_k": top_k, "dtype": dtype, "features": list(features), "members": members,
                   "num_views": num_views, "seed": seed, "examples_per_shard": examples_per_shard}  # fmt: skip
        work = Labeller(teacher, dataset, augment, **options)
        manifest = work.begin(path)
        if not manifest["complete"]:
            work.run(path, number, count, progress)
        return Stored(path) if files.read_manifest(path)["complete"] else None


def clear(path: Path) -> None:
    """Remove a store's files and nothing else."""
    _files.remove(path / "manifest.json")
    for file in path.glob("shard-*.tfrecord"):
        _files.remove(file)
