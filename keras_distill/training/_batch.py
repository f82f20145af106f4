"""The data that one training step sees, and a model's answer to them, each as a named tuple."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_distill._checks import error
from keras_distill._typing import Structure


class Batch(NamedTuple):
    """One batch, as terms and regimes receive it.

    Attributes:
        inputs: the inputs as the dataset gives them, before a teacher splits them.
        labels: the targets, or None.
        weights: the sample weights, or None.
        extra: fields of a dictionary of inputs that the student does not take (boxes, domains, lengths), by name.
        ignored: the class that the supervised loss of each output ignores (``ignore_class``), or one for all outputs;
            None for a loss that ignores none. Empty if unknown.
    """

    inputs: Any
    labels: Any = None
    weights: Any = None
    extra: dict[str, Any] = {}  # noqa: RUF012 -- never written to
    ignored: tuple[int | None, ...] = ()

    @classmethod
    def of(cls, data: Structure, model: keras.Model | None = None) -> Batch:
        """Make a batch from the data that Keras passes to a step.

        Args:
            data: ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.
            model: the model whose named inputs are not extra fields; with None, nothing is extra.

        Returns:
            The batch.

        Raises:
            ValueError: if it is known to be empty, unless it is a replica's part of a larger batch.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        _refuse_empty(x)
        return cls(x, y, sample_weight, extra_fields(x, model))


class Heard(NamedTuple):
    """The results of one forward pass.

    Attributes:
        outputs: the model's outputs: a tensor, a structure, or ``teachers.Members``.
        taps: tensors of named layers, by the name of the tap.
    """

    outputs: Any
    taps: dict[str, Any] = {}  # noqa: RUF012 -- never written to


def extra_fields(inputs: Structure, model: keras.Model | None) -> dict[str, Any]:
    """Return the entries of a dictionary of inputs that ``model`` has no input for.

    Args:
        inputs: a batch's inputs.
        model: a Functional model, whose inputs have names; for any other model nothing is extra.
    """
    if model is None or not isinstance(inputs, dict) or not getattr(model, "inputs", None):
        return {}
    structure = getattr(model, "input", None)  # a Sequential that was built by its first call has none
    taken = set(structure) if isinstance(structure, dict) else set()
    taken |= {tensor.name for tensor in model.inputs}
    return {name: value for name, value in inputs.items() if name not in taken}


def _refuse_empty(inputs: Any) -> None:
    """Raise if a batch has no examples: its mean is undefined, and each layer fails on it differently."""
    lengths = [each.shape[0] for each in keras.tree.flatten(inputs) if len(getattr(each, "shape", ())) > 0]
    if lengths and all(length == 0 for length in lengths):
        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            advice = "Drop empty batches: dataset.unbatch().batch(32)"
            raise error("Distiller", "at least one example in every batch", "an empty batch", advice)
