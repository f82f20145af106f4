"""The implementation of ``label``, which writes a store shard by shard."""

from __future__ import annotations

import concurrent.futures
import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import _files
from keras_distill._checks import choice, error, integer
from keras_distill._typing import Structure, Tensor
from keras_distill.teachers._base import as_teacher, resolved
from keras_distill.teachers._combine import Stochastic
from keras_distill.teachers._gate import LearnedGate
from keras_distill.teachers._members import Members
from keras_distill.teachers.store import _files as files
from keras_distill.teachers.store import _format as layout
from keras_distill.teachers.store._forks import refuse_after_fork
from keras_distill.teachers.store._progress import progress_bar
from keras_distill.teachers.store._stored import Stored
from keras_distill.teachers.store._teacher_id import teacher_fingerprint
from keras_distill.teachers.store._views import Augment, view_of

_SHARD_BYTES = 64 * 2**20
_SHARD_EXAMPLES = 4096
_OWNER = "label"


class Labeller:
    """A teacher, a dataset and the settings of a store, able to write any of its shards.

    Args:
        teacher: as in ``label``.
        dataset: as in ``label``.
        augment: as in ``label``.
        **options: as in ``label``.
    """

    def __init__(self, teacher: keras.Model, dataset: tf.data.Dataset, augment: Augment | None, **options: Any) -> None:
        refuse_after_fork(_OWNER)
        self.teacher = as_teacher(teacher, _OWNER)
        self.features = tuple(options["features"])
        top_k = options["top_k"]
        if top_k is not None:
            integer(_OWNER, "top_k", top_k, low=1)
        choice(_OWNER, "dtype", options["dtype"], layout.DTYPES)
        if integer(_OWNER, "num_views", options["num_views"], low=1) > 1 and augment is None:
            raise error(_OWNER, "augment=... to make several views", "None")
        if not isinstance(dataset, tf.data.Dataset):
            advice = "Make one with tf.data.Dataset.from_tensor_slices(arrays).batch(128)"
            raise error(_OWNER, "a tf.data.Dataset of batches", type(dataset).__name__, advice)
        if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise error(_OWNER, "a finite dataset", "an endless one", "Put .repeat() after attach(), not here")
        self.dataset, self.augment, self.options = dataset, augment, options
        self._look_at_first_batch()
        self.teacher_print = teacher_fingerprint(self.teacher)

    def _look_at_first_batch(self) -> None:
        for element in self.dataset.take(1):
            self.batch_size = int(tf.shape(keras.tree.flatten(_x(element))[0])[0])
            if self.batch_size == 0:
                advice = "Drop empty batches: dataset.unbatch().batch(128)"
                raise error(_OWNER, "at least one example in the first batch", "an empty batch", advice)
            break
        else:
            raise error(_OWNER, "at least one batch of data", "an empty dataset")
        for x in self._inputs().take(1):
            self.inputs = layout.input_specs(_OWNER, x)
            outputs, tapped = self._ask(x)
            self._first = layout.fingerprint(x)
            _warn_of_constant([*self._leaves(outputs, tapped)], self._first.numpy())
        self.specs: list[layout.OutputSpec] = []
        self.template = {
            "outputs": self._describe(outputs, "output"),
            "features": {name: self._leaf(tapped[name], f"feature/{name}", None) for name in self.features},
        }
        self.length = layout.row_bytes(self.specs)
        self.block = layout.rows_per_block(self.length)
        wanted = self.options["examples_per_shard"] or min(_SHARD_EXAMPLES, max(1, _SHARD_BYTES // self.length))
        self.batches_per_shard = max(1, integer(_OWNER, "examples_per_shard", wanted, low=1) // self.batch_size)
        self._structure = x
        self._records: dict[tuple[Any, ...], Any] = {}

    def _records_of(self, x: Any) -> Any:
        """Return ``_to_records`` of a batch; batches whose length differs from the first share a second graph."""
        leaves = keras.tree.flatten(x)
        lengths = tuple(tuple(leaf.shape[1:]) for leaf in leaves)
        if lengths not in self._records:
            seen = tuple(tuple(each["shape"]) for each in self.inputs)
            if lengths != seen:
                self._check_lengths(x, lengths)
            of_any = tuple(
                tuple(size if size == own else None for size, own in zip(*pair, strict=True))
                for pair in zip(seen, lengths, strict=True)
            )
            self._records[lengths] = self._records.setdefault(of_any, self._graph_for(of_any))
        return self._records[lengths](*leaves)

    def _graph_for(self, lengths: tuple[Any, ...]) -> Any:
        dtypes = (each["dtype"] for each in self.inputs)
        signature = [tf.TensorSpec((None, *sizes), dtype) for sizes, dtype in zip(lengths, dtypes, strict=True)]
        return tf.function(self._to_records, input_signature=signature)

    def _check_lengths(self, x: Any, lengths: tuple[Any, ...]) -> None:
        """Raise unless the answers to a batch of another length have the same shape: all rows have one length."""
        for spec, tensor in zip(self.specs, self._leaves(*self._ask(x)), strict=True):
            if tuple(tensor.shape[1:]) != spec.shape:
                expected = f"{spec.name} of shape {spec.shape} for every example, as for the first batch"
                got = f"{tuple(tensor.shape[1:])} for a batch of inputs {', '.join(map(str, lengths))}"
                advice = "Pad all batches to one length: dataset.padded_batch(size, padded_shapes=...)"
                raise error(_OWNER, expected, got, advice)

    def _inputs(self) -> tf.data.Dataset:
        """The inputs only, view after view."""
        dataset, views = self.dataset, self.options["num_views"]
        if self.augment is None:
            return dataset.map(lambda *element: _x(element[0] if len(element) == 1 else element))
        augment, seed = self.augment, self.options["seed"]
        every = tf.data.Dataset.range(views).flat_map(lambda view: view_of(dataset, augment, view, seed, True))
        return every.map(lambda *element: _x(element[0] if len(element) == 1 else element))

    def _ask(self, x: Any) -> tuple[Any, dict[str, Any]]:
        outputs, tapped = self.teacher.listen(self.teacher.split(x)[1], self.features)
        return (outputs if self.options["members"] else resolved(outputs)), tapped

    # -------------------------------------------------------------------------------- what is stored, and how

    def _describe(self, outputs: Structure, name: str) -> Any:
        """Describe the outputs' structure as JSON; its leaves are indices of specs."""
        if isinstance(outputs, Members):
            if isinstance(outputs.combine, (Stochastic, LearnedGate)):
                got = type(outputs.combine).__name__
                raise error(_OWNER, "a rule without training or randomness", got, "Use members=False")
            found = {"members": self._leaf(outputs.members, name, self.options["top_k"])}
            if outputs.spread is not None:
                found["spread"] = self._leaf(outputs.spread, f"{name}/spread", None, "float32")
            return {**found, "combine": keras.saving.serialize_keras_object(outputs.combine)}
        if isinstance(outputs, dict):
            return {"dict": {key: self._describe(each, f"{name}/{key}") for key, each in sorted(outputs.items())}}
        if isinstance(outputs, (list, tuple)):
            kind = "list" if isinstance(outputs, list) else "tuple"
            return {kind: [self._describe(each, f"{name}/{i}") for i, each in enumerate(outputs)]}
        return {"tensor": self._leaf(outputs, name, self.options["top_k"])}

    def _leaf(self, tensor: Tensor, name: str, top_k: int | None, dtype: str | None = None) -> int:
        shape = tuple(tensor.shape[1:])
        top_k = top_k if top_k is not None and shape and shape[-1] > top_k else None
        by_row = not name.startswith("feature/")
        self.specs.append(layout.OutputSpec(name, shape, dtype or self.options["dtype"], top_k, by_row))
        return len(self.specs) - 1

    def _leaves(self, outputs: Structure, tapped: dict[str, Any]) -> Iterator[Any]:
        for each in keras.tree.flatten(outputs):  # sorted keys, as in _describe
            yield from ([each.members] + ([] if each.spread is None else [each.spread])
                        if isinstance(each, Members) else [each])  # fmt: skip
        yield from (tapped[name] for name in self.features)

    def _to_records(self, *x: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """Return the records of a batch, and whether they can be stored.

        Returns:
            (batch, length) uint8 records, (batch,) fingerprints, (outputs, batch) bool, and for each output stored with
            ``top_k``, by name, the resulting divergence, (batch,).
        """
        x = keras.tree.pack_sequence_as(self._structure, x)
        found = layout.fingerprint(x)
        fields, fine, lost = [], [], {}
        for spec, tensor in zip(self.specs, self._leaves(*self._ask(x)), strict=True):
            encoded = spec.encode(tf.ensure_shape(tensor, (None, *spec.shape)))
            fields += encoded
            if spec.top_k is not None:
                lost[spec.name] = spec.divergence(tensor, encoded)
            wide = tf.reshape(tf.cast(tensor, tf.float32), (tf.shape(tensor)[0], -1))
            good = tf.reduce_all(tf.math.logical_not(tf.math.is_nan(wide)), axis=1)
            if spec.dtype == "int8":
                good &= tf.reduce_all(tf.math.is_finite(wide), axis=1)
            elif spec.top_k is None:
                narrow = tf.reshape(tf.cast(encoded[0], tf.float32), tf.shape(wide))
                good &= tf.reduce_all(tf.equal(tf.math.is_finite(narrow), tf.math.is_finite(wide)), axis=1)
            fine.append(good)
        return layout.to_bytes(found, fields), found, tf.stack(fine), lost

    # -------------------------------------------------------------------------------- settings and their store

    def settings(self) -> dict[str, Any]:
        """Return the settings that identify a store: everything but the data itself."""
        file = getattr(self.teacher, "fingerprint", None)
        return {
            "teacher": self.teacher_print,
            **({} if file is None else {"teacher_file": file}),
            "inputs": self.inputs,
            "outputs": [spec.config() for spec in self.specs],
            "template": self.template,
            "row_bytes": self.length,
            "rows_per_block": self.block,
            "batch_size": self.batch_size,
            "batches_per_shard": self.batches_per_shard,
            "options": {**self.options, "augment": self.augment is not None},
        }

    def begin(self, path: Path) -> dict[str, Any]:
        """Resume the store at ``path``, or begin it.

        Returns:
            The manifest.

        Raises:
            StoredTeacherError: if the existing store does not fit.
        """
        if (path / "manifest.json").exists():
            there = files.read_manifest(path, _OWNER)
            self.fit_to(path, there)
            if there["complete"]:
                Stored(path).compare_first(self._first.numpy())
            return there
        self.settings_digest = files.settings_digest(self.settings())
        manifest = files.new_manifest(self.settings())
        files.write_manifest(path, manifest)
        return manifest

    def fit_to(self, path: Path, there: dict[str, Any]) -> None:
        """Adopt the batch size of a store; raise unless teacher and settings match it."""
        if there["batch_size"] != self.batch_size:
            self.dataset = self.dataset.rebatch(there["batch_size"])
            self._look_at_first_batch()
        self._same(path, there)
        self.settings_digest = files.settings_digest(self.settings())

    def _same(self, path: Path, there: dict[str, Any]) -> None:
        here = self.settings()
        advice = "Use another path, or overwrite=True to discard what is there"
        # The options first: another ``top_k`` also changes the outputs.
        first = [part for part in ("teacher", "teacher_file", "options") if part in here]
        for part in dict.fromkeys([*first, *here]):
            ours, theirs = here[part], there.get(part)
            if ours == theirs:
                continue
            got = f"{part} {theirs} instead of {ours}"
            if part == "teacher":
                got = "one of another teacher"
            elif isinstance(ours, dict) and isinstance(theirs, dict):
                names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
                got = ", ".join(f"{name}={theirs.get(name)!r} instead of {ours.get(name)!r}" for name in names)
            raise files.stored_error(f"the store begun at {path} to fit this label()", got, advice, _OWNER)

    # -------------------------------------------------------------------------------- the work

    def run(self, path: Path, number: int, count: int, progress: bool) -> None:
        """Write the missing shards of part ``number`` of ``count``; complete the manifest once no shard is missing."""
        rows = 0
        cardinality = int(self.dataset.cardinality())
        total = cardinality * self.batch_size * self.options["num_views"] if cardinality >= 0 else None
        batches = enumerate(self._inputs().prefetch(2))
        pending: list[concurrent.futures.Future] = []
        with progress_bar(f"labelling {path.name}", total, progress) as advance, ThreadPoolExecutor(1) as writer:
            for index, group in itertools.groupby(batches, key=lambda each: each[0] // self.batches_per_shard):
                inputs = (x for _, x in group)
                done = files.find_shards(path).get(index)
                if done is not None:
                    found = [layout.fingerprint(x).numpy() for x in inputs]
                    self._still_fits(done, hashlib.sha256(b"".join(each.tobytes() for each in found)).hexdigest())
                    size = sum(len(each) for each in found)
                    advance(size)
                elif index % count == number:
                    parts, header = self._gather(index, inputs, rows, advance)
                    size = header["count"]
                    for each in pending:
                        each.result()
                    pending = [writer.submit(files.write_shard, path, index, header, parts, self.block)]
                else:
                    size = sum(_size(x) for x in inputs)
                    advance(size)
                rows += size
            for each in pending:
                each.result()
        self.complete(path, index + 1)

    def _gather(
        self, index: int, inputs: Iterable[Any], first_row: int, advance: Callable[[int], None]
    ) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Run the teacher over a shard's batches, waiting only for the last; return the rows and the header."""
        self.teacher.reseed(index)
        heard = []
        for x in inputs:
            heard.append(self._records_of(x))
            advance(_size(x))
        parts, prints, row = [], hashlib.sha256(), 0
        kept = [spec.name for spec in self.specs if spec.top_k is not None]
        sums = dict.fromkeys(kept, 0.0)
        for records, found, fine, lost in heard:
            self._refuse(fine.numpy(), first_row + row)
            sums = {name: total + float(lost[name].numpy().sum(dtype="float64")) for name, total in sums.items()}
            parts.append(records.numpy())
            prints.update(found.numpy().tobytes())
            row += len(parts[-1])
        header = {"shard": index, "count": row, "inputs": prints.hexdigest(), "settings": self.settings_digest}
        if sums:  # rounded: last digits differ between machines, which would change the shard's name
            header["divergence"] = {name: float(f"{total / max(row, 1):.4g}") for name, total in sums.items()}
        return parts, header

    def _refuse(self, fine: np.ndarray, first_row: int) -> None:
        if not fine.all():
            output, row = np.argwhere(~fine)[0]
            spec = self.specs[output]
            advice = "Use dtype='float32' or 'bfloat16' if the numbers are too large; NaN comes from the teacher"
            got = f"NaN or a number beyond {spec.dtype} for example {first_row + row}"
            raise error(_OWNER, f"{spec.name} that {spec.dtype} can hold", got, advice)

    def write_one(self, path: Path, index: int) -> int:
        """Write only shard ``index``; return its number of examples."""
        inputs = self._inputs().skip(index * self.batches_per_shard).take(self.batches_per_shard)
        parts, header = self._gather(index, inputs, 0, lambda size: None)
        files.write_shard(path, index, header, parts, self.block)
        return header["count"]

    def num_shards(self) -> int:
        """Return the dataset's number of shards; iterates over it if its cardinality is unknown."""
        count = int(self.dataset.cardinality())
        if count < 0:
            count = int(self.dataset.reduce(tf.constant(0, tf.int64), lambda sofar, *element: sofar + 1))
        return -(-count * self.options["num_views"] // self.batches_per_shard)

    def _still_fits(self, shard: files.Shard, inputs: str) -> None:
        header = shard.header()
        advice = "Fix the order (no unseeded shuffle before label), or use overwrite=True"
        if header["settings"] != self.settings_digest:
            raise files.stored_error(f"shard {shard.index} to be of this teacher", "another one's", advice, _OWNER)
        if header["inputs"] != inputs:
            got = "other examples, or another order, than when it was written"
            raise files.stored_error(f"the examples of finished shard {shard.index}", got, advice, _OWNER)

    def complete(self, path: Path, num_shards: int) -> None:
        """Write the final manifest if every shard is there."""
        shards = files.find_shards(path)
        if set(shards) != set(range(num_shards)):
            extra = set(shards) - set(range(num_shards))
            if extra:
                got = f"shard {min(extra)} of a longer dataset"
                raise files.stored_error(f"{num_shards} shards", got, "Use overwrite=True", _OWNER)
            return
        headers = [shards[index].header() for index in range(num_shards)]
        table = [
            {"file": shards[i].file.name, "count": head["count"], "bytes": shards[i].file.stat().st_size}
            for i, head in enumerate(headers)
        ]
        dataset = hashlib.sha256("".join(head["inputs"] for head in headers).encode()).hexdigest()
        rows = sum(head["count"] for head in headers)
        extra_facts = {"complete": True, "count": rows, "shards": table, "dataset": {"fingerprint": dataset}}
        names = [spec.name for spec in self.specs if spec.top_k is not None]
        if names and all(set(head.get("divergence", ())) == set(names) for head in headers):  # absent in older versions
            costs = {name: sum(head["divergence"][name] * head["count"] for head in headers) for name in names}
            extra_facts["divergence"] = {name: float(cost) / rows for name, cost in costs.items()}
        files.write_manifest(path, {**files.new_manifest(self.settings()), **extra_facts})
        for file in path.glob("shard-*.tfrecord"):  # duplicates of a shard, from a machine with other rounding
            if file.name not in {each["file"] for each in table}:
                _files.remove(file)


def _warn_of_constant(answers: list[Any], fingerprints: np.ndarray) -> None:
    """Warn if different examples of the first batch get identical answers."""
    count = len(np.unique(fingerprints))
    arrays = [np.asarray(each) for each in answers]
    if count > 1 and all((array == array[:1]).all() for array in arrays):
        warnings.warn(
            f"label: expected answers that depend on the example, got the same for all {count} of the first batch. "
            "Nothing can be learned from such a teacher: check its weights and inputs.",
            stacklevel=4,
        )


def _x(element: Any) -> Any:
    return element[0] if isinstance(element, tuple) else element


def _size(x: Any) -> int:
    return int(keras.tree.flatten(x)[0].shape[0])
