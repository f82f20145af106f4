"""A teacher whose logits of all classes but the predicted one are shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import integer
from keras_distill._typing import Tensor
from keras_distill.teachers._base import Around, gradient, resolved, silent


@keras.saving.register_keras_serializable(package="keras_distill")
class PermutedDarkKnowledge(Around):
    """A teacher whose logits, except the largest, are permuted anew for each example (DKPP).

    Choose it as a control: it still teaches the teacher's confidence, but not how classes resemble each other.

    Args:
        model: a Keras model or a teacher, with logits of shape (batch, classes).
        seed: >= 0, seed of the permutations.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
        >>> logits = PermutedDarkKnowledge(model)(np.array([[5.0, 1.0, 2.0]], "float32")).numpy()
        >>> float(logits[0, 0]), sorted(logits[0, 1:].tolist())
        (5.0, [1.0, 2.0])

    Reference:
        Furlanello et al., "Born-Again Neural Networks", ICML 2018, arXiv:1805.04770, section 3.3 (DKPP).
        Differs: nothing.
    """

    def __init__(self, model: keras.Model, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.seed = integer("PermutedDarkKnowledge", "seed", seed, low=0)
        self.orders = keras.random.SeedGenerator(self.seed)

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Run the teacher once and permute its logits; see ``Teacher.listen``."""
        outputs, tapped = self.model.listen(teacher_x, taps, **gradient(differentiable))
        permuted = keras.tree.map_structure(self._permuted, resolved(outputs))
        return silent(permuted, differentiable), tapped

    def _permuted(self, logits: Tensor) -> Any:
        top = ops.one_hot(ops.argmax(logits, axis=-1), logits.shape[-1], dtype="bool")
        # Sorting random keys permutes uniformly. The largest logit has the smallest key in both orders, so it stays.
        keys = ops.where(top, -1.0, keras.random.uniform(ops.shape(logits), seed=self.orders))
        places = ops.where(top, -1.0, ops.cast(ops.arange(logits.shape[-1]), "float32"))
        shuffled = ops.take_along_axis(logits, ops.argsort(keys, axis=-1), axis=-1)
        return ops.take_along_axis(shuffled, ops.argsort(ops.argsort(places, axis=-1), axis=-1), axis=-1)

    @property
    def seed_generators(self) -> list[keras.random.SeedGenerator]:
        """The source of the permutations, and the inner teacher's."""
        return [self.orders, *self.model.seed_generators]

    @property
    def states_of_training(self) -> list[Any]:
        """The random state, and the inner teacher's."""
        return [self.orders.state, *self.model.states_of_training]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"name": self.name, "model": keras.saving.serialize_keras_object(self.model), "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> PermutedDarkKnowledge:
        """Rebuild the teacher from ``get_config``."""
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"], custom_objects)})
