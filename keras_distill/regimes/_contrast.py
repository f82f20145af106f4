"""A generator objective against repetition: each example is contrasted with earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_distill._checks import error, integer, number
from keras_distill.regimes._objectives import GeneratorObjective, Shown
from keras_distill.taps import Taps


class Contrastive(GeneratorObjective):
    """Examples whose teacher features differ from all others in this batch and before it (CMI).

    Choose it in addition to another objective, when the generator repeats the same few examples:
    ``Disagreement() + Contrastive("hidden")``. It costs a second pass of the teacher and a memory of ``num_examples``
    feature vectors, which is saved and resumed with the regime.

    Formula: -weight * mean_i log(e(f_i, v_i) / (e(f_i, v_i) + sum_{j != i} e(f_i, f_j) + sum_m e(f_i, m))), with
    e(a, b) = exp(cosine(a, b) / temperature), f_i the features of example i, averaged over positions, v_i those of a
    view of it, and m those in the memory. Afterwards the batch replaces the oldest features in the memory.

    Args:
        layer_name: the teacher's tap, usually the penultimate layer.
        num_examples: >= 1, size of the memory.
        temperature: > 0, no unit.
        weight: >= 0.
        view: maps a batch of examples and a ``keras.random.SeedGenerator`` to views of the same shape. None: images are
            shifted by up to an eighth of their height and width, vectors get noise of deviation 0.1.
        seed: >= 0, of the views.

    Raises:
        ValueError: if an argument is out of bounds; in ``DataFree``, if the teacher has no such layer.

    Example:
        >>> import keras
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="z")]) for _ in "ts")
        >>> from keras_distill.regimes import DataFree, Disagreement
        >>> regime = DataFree(teacher, student, objective=Disagreement() + Contrastive("z", num_examples=32))
        >>> regime.compile("adam")
        >>> history = regime.fit(steps=2, epochs=1, batch_size=8, verbose=0)

    Reference:
        Fang et al., "Contrastive Model Inversion for Data-Free Knowledge Distillation", IJCAI 2021, arXiv:2105.08584,
        eq. 4-6. Differs: there is no projection head to train, so the memory keeps features in place of images.
    """

    def __init__(
        self,
        layer_name: str,
        num_examples: int = 4096,
        temperature: float = 0.2,
        weight: float = 1.0,
        view: Callable[[Any, Any], Any] | None = None,
        seed: int = 0,
    ) -> None:
        owner = "Contrastive"
        if not isinstance(layer_name, str):
            raise error(owner, "the name of a layer of the teacher", layer_name)
        self.layer_name = layer_name
        self.num_examples = integer(owner, "num_examples", num_examples, low=1)
        self.temperature = number(owner, "temperature", temperature, above=0.0)
        self.weight = number(owner, "weight", weight, low=0.0)
        self.view = shifted if view is None else view
        self.seed = integer(owner, "seed", seed, low=0)
        self.memory: _Memory | None = None

    def states(self, teacher: keras.Model, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        """Make the memory and return it."""
        self._taps = Taps(teacher, [self.layer_name], owner="Contrastive")
        _, found = self._taps(ops.zeros((1, *shape)), training=False)
        units = rows_of(found[self.layer_name]).shape[-1]
        self.memory = _Memory(self.num_examples, units, self.seed)
        return [self.memory]

    def taps(self, teacher: keras.Model) -> list[str]:
        """Return the layer whose features are compared."""
        return [self.layer_name]

    def generator_loss(self, shown: Shown, teacher: keras.Model) -> Any:
        """Return the contrastive loss, and add the batch to the memory."""
        if self.memory is None:
            raise error("Contrastive", "to be used by DataFree, which makes its memory", "a call without it")
        memory = self.memory
        own = rows_of(shown.taps[self.layer_name])
        _, found = self._taps(self.view(shown.examples, memory.seeds), training=False)
        same = ops.sum(own * rows_of(found[self.layer_name]), axis=-1, keepdims=True)
        batch = ops.matmul(own, ops.transpose(own))
        batch = ops.where(ops.eye(ops.shape(own)[0], dtype="bool"), -1e9, batch)
        before = ops.matmul(own, ops.transpose(ops.stop_gradient(ops.convert_to_tensor(memory.features))))
        # Rows not filled yet are zero and do not count.
        before = ops.where(ops.arange(self.num_examples)[None] < memory.filled.value, before, -1e9)
        logits = ops.concatenate([same, batch, before], axis=-1) / self.temperature
        memory.remember(ops.stop_gradient(own))
        return -self.weight * ops.mean(ops.log_softmax(logits, axis=-1)[:, 0])


class _Memory(keras.layers.Layer):
    """A ring buffer of the features of the last examples.

    Args:
        num_examples: capacity.
        units: width of the features.
        seed: of the views.
    """

    def __init__(self, num_examples: int, units: int, seed: int) -> None:
        super().__init__(name="contrastive_memory", dtype="float32")
        self.num_examples = num_examples
        make = {"initializer": "zeros", "trainable": False}
        self.features = self.add_weight(shape=(num_examples, units), name="features", **make)
        self.next = self.add_weight(shape=(), dtype="int32", name="next", **make)
        self.filled = self.add_weight(shape=(), dtype="int32", name="filled", **make)
        self.seeds = keras.random.SeedGenerator(seed)
        self.built = True

    def remember(self, rows: Any) -> None:
        """Replace the oldest features; of a batch larger than the memory, keep the last ones."""
        rows = rows[-self.num_examples :]
        count = ops.shape(rows)[0]
        places = (self.next.value + ops.arange(count)) % self.num_examples
        # Non-finite features stop the step and must not stay in the memory.
        rows = ops.where(ops.all(ops.isfinite(rows), axis=-1, keepdims=True), rows, 0.0)
        self.features.assign(ops.scatter_update(self.features.value, places[:, None], rows))
        self.next.assign((self.next.value + count) % self.num_examples)
        self.filled.assign(ops.minimum(self.filled.value + count, self.num_examples))


def rows_of(features: Any) -> Any:
    """Return features of unit length, (batch, channels), averaged over positions.

    Args:
        features: (batch, ..., channels).
    """
    features = ops.cast(features, "float32")
    axes = tuple(range(1, len(features.shape) - 1))
    return ops.normalize(ops.mean(features, axis=axes) if axes else features, axis=-1)


def shifted(examples: Any, seed: Any) -> Any:
    """Return images shifted by a common offset, with edges repeated, or vectors with a little noise.

    Args:
        examples: (batch, height, width, channels) or (batch, features).
        seed: a ``keras.random.SeedGenerator``.
    """
    if len(examples.shape) != 4:
        return examples + keras.random.normal(ops.shape(examples), stddev=0.1, dtype=examples.dtype, seed=seed)
    for axis in (1, 2):
        size = examples.shape[axis]
        most = max(1, size // 8)
        by = keras.random.randint((), -most, most + 1, seed=seed)
        examples = ops.take(examples, ops.clip(ops.arange(size) + by, 0, size - 1), axis=axis)
    return examples
