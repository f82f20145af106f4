"""Pairs a dataset with the records of a store, example by example, with the checks inside the graph.

Kept apart from ``_stored.py``: it builds a tf.data pipeline, while the teacher reads what that pipeline yields.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill.teachers.store import _files as files
from keras_distill.teachers.store import _format as layout
from keras_distill.teachers.store._views import Augment, view_of

if TYPE_CHECKING:
    from keras_distill.teachers.store._stored import Stored

_OWNER = "Stored.attach"
# Followed by the index of the batch's first example, and 1 or 0 for each example present on both sides.
SAME_EXAMPLES = "Stored.attach: 1 where the example is the one that was labelled, else 0, from number"
_BUFFER_BYTES = 1 << 20


def rows(store: Stored, manifest: dict[str, Any], first: Any, count: int, batch_size: int) -> tf.data.Dataset:
    """Return ``count`` rows of the store from row ``first`` (an int or a scalar tensor), in batches of uint8 rows."""
    specs, block = store.specs, manifest["rows_per_block"]
    names = tf.constant([f"{store.directory}/{shard['file']}" for shard in manifest["shards"]])
    starts = tf.constant(np.cumsum([0] + [shard["count"] for shard in manifest["shards"]])[:-1], tf.int64)
    first = tf.cast(first, tf.int64)
    shard = tf.searchsorted(starts, first[None], side="right")[0] - 1
    skipped_blocks, skipped_rows = (first - starts[shard]) // block, (first - starts[shard]) % block

    def read(name: tf.Tensor) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(name, buffer_size=_BUFFER_BYTES).skip(1)  # the header

    # Each pipeline function costs about 10 ms at the start of an epoch, so a single shard skips the one for many.
    many = len(manifest["shards"]) > 1
    records = tf.data.Dataset.from_tensor_slices(names[shard:]).flat_map(read) if many else read(names[0])
    blocks = records.skip(skipped_blocks)
    decoded = blocks.map(lambda each: layout.rows_of(each, specs))
    if tf.get_static_value(skipped_rows) != 0:  # not zero, or unknown
        decoded = decoded.enumerate().map(lambda i, each: each[tf.where(i == 0, skipped_rows, 0) :])
    batches = decoded.rebatch(batch_size).take(-(-count // batch_size))
    last = count % batch_size
    if last == 0 or manifest["count"] == count:
        return batches
    # The store's next row belongs to the next view.
    whole = tf.constant(count // batch_size, tf.int64)
    return batches.enumerate().map(lambda i, each: each[: tf.where(i == whole, last, batch_size)])


def attached(
    store: Stored,
    manifest: dict[str, Any],
    dataset: tf.data.Dataset,
    augment: Augment | None,
    view: int | None,
    views_together: bool = False,
) -> tf.data.Dataset:
    """See ``Stored.attach``."""
    if not isinstance(dataset, tf.data.Dataset):
        raise files.stored_error("a tf.data.Dataset", type(dataset).__name__, owner=_OWNER)
    options = manifest["options"]
    views = options["num_views"]
    if bool(options["augment"]) != (augment is not None):
        got = "one" if augment is not None else "None"
        expected = "the augment function that label() was given" if options["augment"] else "augment=None, as for label"
        raise files.stored_error(expected, got, owner=_OWNER)
    if view is not None and not 0 <= view < views:
        raise files.stored_error(f"a view from 0 to {views - 1}", view, owner=_OWNER)
    if views_together and view is not None:
        raise files.stored_error("view=None with views_together=True", view, owner=_OWNER)
    count = manifest["count"] // views
    batched = _is_batched(dataset, None if augment is not None else manifest["inputs"])
    first = next(iter(dataset.take(1)), None)
    if first is None:
        raise files.stored_error(f"{count} examples", "an empty dataset", owner=_OWNER)
    batch_size = int(tf.shape(keras.tree.flatten(_x(first))[0])[0]) if batched else 1
    known = _count_fits(dataset, batched, batch_size, count)

    def one_view(number: Any) -> tf.data.Dataset:
        seen = dataset if augment is None else view_of(dataset, augment, number, options["seed"], batched)
        stored = rows(store, manifest, tf.cast(number, tf.int64) * count, count, batch_size)
        return _paired(seen, stored, store, batched, batch_size, count, known)

    def all_views(augment: Augment) -> tf.data.Dataset:
        """Read each element once and replace it by all of its views."""
        seen = view_of(dataset, augment, 0, options["seed"], batched, several=views)
        stored = tuple(rows(store, manifest, number * count, count, batch_size) for number in range(views))
        zipped = tf.data.Dataset.zip(stored)
        together = _paired(seen, zipped, store, batched, batch_size, count, known, several=True)
        return together if batched else together.unbatch()

    chosen = view if view is not None else (0 if views == 1 else None)
    if views_together and views > 1 and augment is not None:
        whole = all_views(augment)
    else:
        whole = one_view(chosen) if chosen is not None else tf.data.Dataset.range(views).flat_map(one_view)
    for element in seen_first(dataset, augment, options, chosen or 0, batched):
        found = layout.fingerprint(keras.tree.map_structure(lambda t: t if batched else t[None], _x(element)))
        store.compare_first(found.numpy(), (chosen or 0) * count)
    if known:
        length = int(dataset.cardinality()) * (1 if chosen is not None or (views_together and batched) else views)
        whole = whole.apply(tf.data.experimental.assert_cardinality(length))
    # With sharding by files, each worker of a cluster would get its own part of the records but not of the examples.
    setting = tf.data.Options()
    setting.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return whole.with_options(setting)


def seen_first(dataset: Any, augment: Augment | None, options: dict, view: int, batched: bool) -> tf.data.Dataset:
    """Return the first element of the dataset as the teacher saw it."""
    first = dataset.take(1)
    return first if augment is None else view_of(first, augment, view, options["seed"], batched)


def _x(element: Any) -> Any:
    return element[0] if isinstance(element, tuple) else element


def _is_batched(dataset: tf.data.Dataset, inputs: list[dict[str, Any]] | None) -> bool:
    specs = keras.tree.flatten(_x(dataset.element_spec))
    if inputs is None:  # augmentation may change shapes; only batches have an unknown first dimension
        return specs[0].shape.rank is not None and specs[0].shape.rank > 0 and specs[0].shape[0] is None
    shapes = [tuple(spec.shape) for spec in specs]
    plain = [tuple(each["shape"]) for each in inputs]
    if len(shapes) == len(plain):
        if all(len(s) == len(p) + 1 and _agree(s[1:], p) for s, p in zip(shapes, plain, strict=True)):
            return True
        if all(len(s) == len(p) and _agree(s, p) for s, p in zip(shapes, plain, strict=True)):
            return False
    advice = "Use the dataset that was labelled"
    raise files.stored_error(f"inputs of shape {plain} per example", f"{shapes}", advice, _OWNER)


def _agree(shape: tuple, other: tuple) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(shape, other, strict=True))


def _count_fits(dataset: tf.data.Dataset, batched: bool, batch_size: int, rows: int) -> bool:
    """Compare the number of batches, if known, with the number of stored examples."""
    count = int(dataset.cardinality())
    if count == tf.data.INFINITE_CARDINALITY:
        raise files.stored_error("a finite dataset", "an endless one", "Put .repeat() after attach()", _OWNER)
    if count == tf.data.UNKNOWN_CARDINALITY:
        return False
    whole, rest = divmod(rows, batch_size)
    allowed = {whole + bool(rest)} | ({whole} if _drops_remainder(dataset, batched) else set())
    if count not in allowed:
        got = f"{count} batches of {batch_size}" if batched else f"{count}"
        last = count * batch_size
        missing = f"{last}" if not batched else f"between {last - batch_size + 1} and {last}"
        short = count < min(allowed)
        advice = f"The first missing one is number {missing}" if short else f"The first surplus one is number {rows}"
        raise files.stored_error(f"{rows} examples, as labelled", got, advice, _OWNER)
    return True


def _drops_remainder(dataset: tf.data.Dataset, batched: bool) -> bool:
    return batched and keras.tree.flatten(_x(dataset.element_spec))[0].shape[0] is not None


def _paired(
    dataset: tf.data.Dataset,
    stored: tf.data.Dataset,
    store: Stored,
    batched: bool,
    batch_size: int,
    rows: int,
    known: bool,
    several: bool = False,
) -> tf.data.Dataset:
    """Zip the two with checks; if the number of batches is unknown, also check which ends first.

    With ``several``, both hold tuples with one entry per view, which are joined into one batch.
    """
    specs = store.specs

    def pair(index: tf.Tensor, element: Any, raw: Any) -> Any:
        if not several:
            return one(index, element, raw)
        join = tf.concat if batched else tf.stack
        views = [one(index, *each) for each in zip(element, raw, strict=True)]
        return keras.tree.map_structure(lambda *tensors: join(tensors, 0), *views)

    def one(index: tf.Tensor, element: Any, raw: tf.Tensor) -> Any:
        x = _x(element)
        ours = layout.fingerprint(keras.tree.map_structure(lambda t: t if batched else t[None], x))
        same = _same_examples(ours, layout.fingerprints_of(raw), index * batch_size, batch_size)
        with tf.control_dependencies([same]):
            x = keras.tree.map_structure(tf.identity, x)
        fields = layout.from_bytes(raw, specs)
        if not batched:
            fields = {name: field[0] for name, field in fields.items()}
        carried = {"inputs": x, "stored_teacher": fields}
        return (carried, *element[1:]) if isinstance(element, tuple) else carried

    if known:
        both = tf.data.Dataset.zip((dataset, stored)).enumerate()
        return both.map(lambda i, each: pair(i, *each), num_parallel_calls=tf.data.AUTOTUNE)

    left, right = _with_end(dataset), _with_end(stored)
    limit = tf.constant(rows, tf.int64)
    drops = _drops_remainder(dataset, batched)

    def meet(index: tf.Tensor, ours: Any, theirs: Any) -> Any:
        (here, element), (there, batch) = ours, theirs
        reached = tf.minimum(index * batch_size, limit)
        short = limit - reached < batch_size if drops else tf.constant(False)
        ends = [
            _demand(tf.logical_or(there, tf.logical_not(here)), reached, "surplus"),
            _demand(tf.logical_or(here, tf.logical_or(tf.logical_not(there), short)), reached, "missing"),
        ]
        with tf.control_dependencies(ends):
            return tf.identity(here), element, batch

    both = tf.data.Dataset.zip((left, right)).enumerate().map(lambda i, each: (i, meet(i, *each)))
    real = both.filter(lambda i, each: each[0])
    return real.map(lambda i, each: pair(i, each[1], each[2]), num_parallel_calls=tf.data.AUTOTUNE)


def _with_end(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Append a final element of zeros; each element gets a flag that says whether it is real."""

    def nothing(spec: Any) -> tf.Tensor:
        shape = [1 if size is None else size for size in spec.shape]
        return tf.fill(shape, "") if spec.dtype == tf.string else tf.zeros(shape, spec.dtype)

    end = keras.tree.map_structure(nothing, dataset.element_spec)
    marked = dataset.map(lambda *element: (True, element[0] if len(element) == 1 else element))
    return marked.concatenate(tf.data.Dataset.from_tensors((False, end)))


def _same_examples(ours: tf.Tensor, theirs: tf.Tensor, first: tf.Tensor, batch_size: int) -> tf.Operation:
    """Assert equal fingerprints; ``Stored.translate`` finds the first differing example from the flags.

    Uses few ops and no branches, because each runs for every batch and is compiled at the start of each epoch.
    """
    sizes = tf.size(ours), tf.size(theirs)
    both = tf.minimum(*sizes)
    flags = tf.equal(ours[:both], theirs[:both])
    same = tf.logical_and(tf.reduce_all(flags), tf.equal(*sizes))
    # The raw op, because tf.debugging.Assert wraps anything but strings in a branch.
    return tf.raw_ops.Assert(condition=same, data=[SAME_EXAMPLES, first, flags], summarize=batch_size)


def _demand(condition: tf.Tensor, index: tf.Tensor, what: str) -> tf.Operation:
    # One string, because further numbers would turn the assertion into a branch.
    text = tf.strings.join(["Stored.attach: example ", tf.strings.as_string(index), " of the dataset ", what])
    return tf.debugging.Assert(condition, [text])
