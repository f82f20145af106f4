"""A teacher whose answers are arrays in memory, such as from ``teacher.predict``, looked up for each example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill._checks import error
from keras_distill._typing import Structure
from keras_distill.teachers._base import Teacher, refuse_gradient, silent

_OWNER = "Precomputed"
_UNKNOWN = "Precomputed: an example is not among the inputs given"
_BATCH = 4096


@keras.saving.register_keras_serializable(package="keras_distill")
class Precomputed(Teacher):
    """Answers computed before training, as in tutorials: ``Precomputed(teacher.predict(x), x)``, then ``fit(x, y)``.

    Choose it for a data set that fits into memory and is not augmented; ``teachers.label`` writes to disk and checks
    more. Each example finds its row by a 64-bit fingerprint of its bytes, so shuffling, batching, sharding over
    replicas and XLA change nothing. An example that is not among ``inputs`` stops training: include the rows of the
    validation data (concatenated), and make random augmentation part of the student's model.

    Without ``inputs`` the batch carries the row indices: ``fit((x, np.arange(len(x))), y)``, and the student sees only
    the first part.

    Args:
        outputs: (examples, ...), an array or a structure of them: logits, or probabilities for terms that take them.
        inputs: the student's inputs, as given to ``fit``: (examples, ...), an array or a structure of them; floats are
            cast to Keras' precision, as in ``fit``. Equal examples share the row of the first.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Raises:
        ValueError: if there are no rows, or not one row for each example.

    Example:
        >>> import keras, numpy as np
        >>> x, logits = np.array([[1.0], [2.0], [3.0]]), np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
        >>> teacher = Precomputed(logits, x)
        >>> teacher(np.array([[3.0], [1.0]], "float32")).numpy()
        array([[0., 3.],
               [0., 1.]], dtype=float32)
    """

    def __init__(self, outputs: Any, inputs: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        arrays = [_array(each, "outputs") for each in keras.tree.flatten(outputs)]
        counts = {len(each) for each in arrays}
        if len(counts) != 1 or 0 in counts:
            raise error(_OWNER, "outputs with one row for each example", f"arrays of {sorted(counts)} rows")
        (self.num_examples,) = counts
        object.__setattr__(self, "_template", keras.tree.map_structure(lambda each: None, outputs))
        self.by_inputs = inputs is not None
        self._tables = [self._constant(each, f"output_{index}") for index, each in enumerate(arrays)]
        if self.by_inputs:
            sizes = {len(each) for each in keras.tree.flatten(inputs)}
            if sizes != {self.num_examples}:
                expected = f"inputs of {self.num_examples} examples, one for each row of outputs"
                raise error(_OWNER, expected, f"{sorted(sizes)}", "Keep the order of the data in teacher.predict")
            prints = _fingerprints_of_all(inputs)
            order = np.argsort(prints, kind="stable")
            self._prints = self._constant(prints[order], "fingerprints")
            self._rows = self._constant(order.astype("int32"), "rows")

    def _constant(self, array: np.ndarray, name: str) -> Any:
        variable = self.add_weight(
            shape=array.shape, dtype=array.dtype.name, initializer="zeros", trainable=False, name=name
        )
        variable.assign(array)
        return variable

    @property
    def runs(self) -> bool:
        """False: the answers were computed before."""
        return False

    def split(self, x: Any) -> tuple[Any, Any]:
        """Return the student's inputs, and the key to the rows: the same inputs, or the index given with them."""
        if self.by_inputs:
            return x, x
        if isinstance(x, (list, tuple)) and len(x) == 2:
            return x[0], x[1]
        return x, None  # prediction does not use the teacher

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Return the rows of these examples; see ``Teacher.listen``."""
        refuse_gradient(self, differentiable)
        if taps:
            advice = "Store features with teachers.label(..., features=[...])"
            raise error(_OWNER, "terms on outputs alone", f"one on layer {taps[0]!r}", advice)
        if self.by_inputs:
            wanted = fingerprints(teacher_x)
            place = _first_not_below(self._prints, wanted, self.num_examples)
            known = ops.equal(ops.take(self._prints, place), wanted)
            rows = ops.take(self._rows, place)
        else:
            if teacher_x is None:
                advice = "Feed (x, np.arange(len(x))), or give Precomputed the inputs"
                raise error(_OWNER, "inputs of the form (inputs, index)", "inputs alone", advice)
            rows = ops.reshape(ops.cast(teacher_x, "int32"), (-1,))
            known = ops.logical_and(rows >= 0, rows < self.num_examples)
            rows = ops.clip(rows, 0, self.num_examples - 1)
        # XLA drops assertions; there the row is NaN, which also stops training.
        tf.debugging.Assert(tf.reduce_all(known), [_UNKNOWN])

        def answer(table: Any) -> Any:
            found = ops.take(table, rows, axis=0)
            fine = ops.reshape(known, (-1, *[1] * (len(found.shape) - 1)))
            return ops.where(fine, found, ops.cast(float("nan"), found.dtype))

        return silent(keras.tree.pack_sequence_as(self._template, list(map(answer, self._tables)))), {}

    def translate(self, problem: Exception) -> Exception:
        """Return a clear error in place of TensorFlow's about an unknown example."""
        if _UNKNOWN not in str(problem):
            return problem
        what = "examples that were given with their outputs" if self.by_inputs else "an index of a row of outputs"
        advice = "Give the rows of the validation data too, and augment inside the student; or use teachers.label"
        return error(_OWNER, what, "another one", advice)

    def get_config(self) -> dict[str, Any]:
        """Return shapes and structure; the arrays themselves are saved as weights."""
        tables = [{"shape": list(each.shape), "dtype": each.dtype} for each in self._tables]
        template = keras.tree.pack_sequence_as(self._template, list(range(len(tables))))
        return {"name": self.name, "tables": tables, "template": template, "by_inputs": self.by_inputs}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Precomputed:
        """Rebuild the teacher from ``get_config``, without its weights, which are loaded afterwards."""
        tables = [np.zeros(each["shape"], each["dtype"]) for each in config["tables"]]
        outputs = keras.tree.map_structure(lambda index: tables[index], config["template"])
        inputs = np.zeros((len(tables[0]), 1), "float32") if config["by_inputs"] else None
        return cls(outputs, inputs, name=config["name"])


def _array(values: Any, name: str) -> np.ndarray:
    array = ops.convert_to_numpy(values) if ops.is_tensor(values) else np.asarray(values)
    if array.ndim < 1 or (array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16"):
        raise error(
            _OWNER, f"{name} as arrays of numbers, one row per example", f"{array.dtype} of shape {array.shape}"
        )
    return array if array.dtype.name in ("float16", "bfloat16", "float32") else array.astype("float32")


def _fingerprints_of_all(inputs: Structure) -> np.ndarray:
    leaves = [
        ops.convert_to_numpy(each) if ops.is_tensor(each) else np.asarray(each) for each in keras.tree.flatten(inputs)
    ]
    found = []
    for start in range(0, len(leaves[0]), _BATCH):
        part = [each[start : start + _BATCH] for each in leaves]
        found.append(fingerprints(part).numpy())
    return np.concatenate(found)


def fingerprints(x: Any) -> Any:
    """Return a 64-bit number for each example of a batch: (batch,) int64, in integer arithmetic that XLA compiles.

    Args:
        x: (batch, ...), a tensor or a structure of them; numbers or text.
    """
    total: Any = 0
    for index, leaf in enumerate(keras.tree.flatten(x)):
        words = _words(tf.convert_to_tensor(leaf))
        factors = np.random.Philox(key=index).random_raw(int(words.shape[1])).astype("int64") | 1
        # Mixed first: the low bits of most floats are zero, and would stay zero in sums of products.
        mixed = words * tf.constant(-7046029254386353131, tf.int64)
        mixed = tf.bitwise.bitwise_xor(mixed, tf.bitwise.right_shift(mixed, tf.constant(29, tf.int64)))
        total += tf.reduce_sum(mixed * factors, axis=1)
    return total


def _words(x: tf.Tensor) -> tf.Tensor:
    """Return the bits of each example's numbers: (batch, numbers), int64."""
    if x.dtype == tf.string:
        x = tf.strings.to_hash_bucket_fast(x, 2**62)
    if x.dtype.is_floating:
        x = x if x.dtype.size == 2 else tf.cast(x, keras.config.floatx())
        x = tf.bitcast(x, {2: tf.int16, 4: tf.int32, 8: tf.int64}[x.dtype.size])
    size = int(np.prod(x.shape[1:], dtype="int64"))
    return tf.reshape(tf.cast(x, tf.int64), (-1, size))


def _first_not_below(numbers: Any, wanted: Any, count: int) -> Any:
    """Return the leftmost insertion index of each of ``wanted`` in the sorted ``numbers``, at most the last index."""
    place = ops.zeros_like(wanted, dtype="int32")
    step = 1 << max(count - 1, 0).bit_length()
    while step >= 1:
        ahead = ops.minimum(place + step, count)
        below = ops.take(numbers, ahead - 1) < wanted
        place = ops.where(below, ahead, place)
        step //= 2
    return ops.minimum(place, count - 1)
