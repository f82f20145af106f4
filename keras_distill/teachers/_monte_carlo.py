"""One model sampled several times with its dropout on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import taps as taps_room
from keras_distill._checks import error, integer
from keras_distill._typing import Tensor
from keras_distill.teachers._base import Teacher, refuse_probabilities, silent
from keras_distill.teachers._combine import Combine
from keras_distill.teachers._ensemble import combine_rule
from keras_distill.teachers._members import Members

_layers = keras.layers
_DROPOUTS = (_layers.Dropout, _layers.AlphaDropout, _layers.GaussianDropout, _layers.Attention)


def dropout_layers(model: keras.Model, also: tuple[type, ...] = ()) -> list[tuple[Any, list[Any]]]:
    """Return each layer of ``model`` with dropout in training mode, and the owners of its randomness.

    Args:
        model: any Keras model.
        also: further layer classes, of the user's own, that only apply dropout.

    Returns:
        Pairs of layer and the objects (the layer itself, or an RNN's cells) whose ``seed_generator`` it draws from.
    """
    found: list[tuple[Any, list[Any]]] = []
    for _, layer in taps_room.walk(model):
        if any(layer is known for known, _ in found):
            continue
        if isinstance(layer, _layers.RNN):
            cells = layer.cell.cells if isinstance(layer.cell, _layers.StackedRNNCells) else [layer.cell]
            drops = [c for c in cells if getattr(c, "dropout", 0) or getattr(c, "recurrent_dropout", 0)]
            if drops:
                found.append((layer, drops))
        elif isinstance(layer, (*_DROPOUTS, *also)):
            found.append((layer, [layer]))
    return found


@contextlib.contextmanager
def _dropping(layers: Sequence[tuple[Any, list[Any]]], seeds: keras.random.SeedGenerator) -> Iterator[None]:
    """Run only ``layers`` in training mode, drawing from ``seeds``; everything is restored afterwards."""
    with contextlib.ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            earlier = vars(owner).get(name)
            object.__setattr__(owner, name, value)
            if earlier is None:
                stack.callback(object.__delattr__, owner, name)
            else:
                stack.callback(object.__setattr__, owner, name, earlier)

        for layer, owners in layers:
            replace(layer, "call", _with_training(layer.call))
            for owner in owners:
                if getattr(owner, "seed_generator", None) is not None:
                    replace(owner, "seed_generator", seeds)
        yield


def _with_training(call: Any) -> Any:
    def dropping(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **{**kwargs, "training": True})

    return dropping


@keras.saving.register_keras_serializable(package="keras_distill")
class MonteCarloDropout(Teacher):
    """A model with dropout on and everything else (BatchNorm) in inference mode, sampled ``num_samples`` times.

    Each pass draws fresh masks, one per sample and example, so the student learns from the mean over masks, and
    ``Members`` shows how much the samples differ. All samples of a batch run as one larger batch. The model is not
    changed.

    Args:
        model: a Keras model with dropout somewhere inside: Dropout and its relatives, attention, RNN layers.
        num_samples: number of samples per example; 10 or more for the spread, 1 is enough for an unbiased mean.
        seed: seed of the masks; the same seed gives the same masks in the same order.
        combine: as in ``Ensemble``.
        also: further layer classes of your own to run with ``training=True``.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Raises:
        ValueError: if the model has no dropout, ends in softmax, or shares a dropout mask over the batch.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(2)])
        >>> teacher = MonteCarloDropout(model, num_samples=8)
        >>> members, _ = teacher.listen(np.ones((3, 4), "float32"))
        >>> members.members.shape
        TensorShape([3, 8, 2])

    Reference:
        Gal, Ghahramani, "Dropout as a Bayesian approximation", 2016; Bulò, Porzi, Kontschieder, "Dropout
        distillation", ICML 2016.
    """

    def __init__(
        self,
        model: keras.Model,
        num_samples: int = 10,
        seed: int = 0,
        combine: str | Combine = "mean_probs",
        also: tuple[type, ...] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner = "MonteCarloDropout"
        if not isinstance(model, keras.Model) or isinstance(model, Teacher):
            raise error(owner, "a keras.Model", type(model).__name__)
        refuse_probabilities(owner, model)
        self.model = model
        self.num_samples = integer(owner, "num_samples", num_samples, low=1)
        self.seed = integer(owner, "seed", seed, low=0)
        self.combine = combine_rule(owner, combine)
        self.also = tuple(also)
        self.masks = keras.random.SeedGenerator(self.seed)
        found = dropout_layers(model, self.also)
        if model.built and not found:
            advice = "Use the model itself as the teacher"
            raise error(owner, "a model with dropout", f"model {model.name!r}, which has none", advice)
        for layer, _ in found:
            if isinstance(layer, _layers.Dropout) and layer.noise_shape and layer.noise_shape[0] is not None:
                got = f"noise_shape={layer.noise_shape} in layer {layer.name!r}"
                raise error(owner, "one dropout mask per example", got, "Let noise_shape start with None")

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Run the model once on ``num_samples`` copies of the batch; features are the mean over the samples."""
        count = self.num_samples
        copies = keras.tree.map_structure(lambda t: ops.repeat(ops.convert_to_tensor(t), count, axis=0), teacher_x)

        def apart(tensor: Tensor) -> Any:
            return ops.reshape(tensor, (-1, count, *ops.shape(tensor)[1:]))

        with _dropping(dropout_layers(self.model, self.also), self.masks):
            outputs, tapped = taps_room.Taps(self.model, taps, owner="MonteCarloDropout")(copies, training=False)
        outputs, tapped = silent(outputs, differentiable), silent(tapped, differentiable)
        features = keras.tree.map_structure(lambda t: ops.mean(apart(t), axis=1), tapped)
        return keras.tree.map_structure(lambda t: Members(apart(t), self.combine), outputs), features

    @property
    def seed_generators(self) -> list[keras.random.SeedGenerator]:
        """The source of the masks."""
        return [self.masks]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "model": serialize(self.model),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "combine": serialize(self.combine),
            "also": [serialize(each) for each in self.also],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MonteCarloDropout:
        """Rebuild the teacher from ``get_config``."""
        deserialize = keras.saving.deserialize_keras_object
        made = {part: deserialize(config[part], custom_objects) for part in ("model", "combine")}
        also = tuple(deserialize(each, custom_objects) for each in config["also"])
        return cls(**{**config, **made, "also": also})
