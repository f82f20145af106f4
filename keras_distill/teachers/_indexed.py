"""A teacher that knows the index of each example in the training set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import error
from keras_distill.teachers._base import Around, gradient


@keras.saving.register_keras_serializable(package="keras_distill")
class Indexed(Around):
    """A teacher for terms that remember examples (``terms.ContrastiveMemory``): inputs come as ``(inputs, index)``.

    The index is an example's position in the training set, the same in each epoch: ``fit((x, np.arange(len(x))), y)``,
    or ``dataset.enumerate().map(lambda i, xy: ((xy[0], i), xy[1]))`` before shuffling. The student sees the inputs
    alone.

    Args:
        model: a Keras model or a teacher.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Example:
        >>> import keras, numpy as np
        >>> teacher = Indexed(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))
        >>> student_inputs, heard = teacher.split((np.ones((4, 2)), np.arange(4)))
        >>> student_inputs.shape, teacher.listen(heard, [":index"])[1][":index"].numpy()
        ((4, 2), array([0, 1, 2, 3], dtype=int32))
    """

    index_name = ":index"  # of the tap; no layer can have this name

    def split(self, x: Any) -> tuple[Any, Any]:
        """Return the student's inputs, and the teacher's with the index."""
        if not isinstance(x, (list, tuple)) or len(x) != 2:
            raise error("Indexed", "inputs of the form (inputs, index)", type(x).__name__, "See its docstring")
        inputs, index = x
        student, teacher = self.model.split(inputs)
        return student, (teacher, index)

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Run the model once; the tap ``":index"`` is the index, (batch,) int32. See ``Teacher.listen``."""
        inputs, index = teacher_x
        outputs, tapped = self.model.listen(
            inputs, [tap for tap in taps if tap != self.index_name], **gradient(differentiable)
        )
        return outputs, {**tapped, self.index_name: ops.reshape(ops.cast(index, "int32"), (-1,))}

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"name": self.name, "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Indexed:
        """Rebuild the teacher from ``get_config``."""
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"], custom_objects)})
