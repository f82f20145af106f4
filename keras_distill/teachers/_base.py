"""The base class of teachers, which defines what a teacher sees of a batch and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import taps as taps_room
from keras_distill._checks import error
from keras_distill._typing import Structure
from keras_distill.teachers._members import Members

_PACKAGE = "keras_distill"


class StoredTeacherError(ValueError):
    """A store of teacher outputs does not fit: another dataset or order, or a damaged file."""


class Teacher(keras.Model):
    """Base of all teachers other than a plain ``keras.Model``. Subclasses define ``listen``.

    A teacher is a Keras model, so its weights are saved with the distiller. Calling it returns the combined logits, so
    ``teacher.predict`` and ``teacher.evaluate`` work. It never changes the models it is made of.
    """

    @property
    def runs(self) -> bool:
        """Whether it runs a model on each batch, rather than reading stored answers."""
        return True

    def split(self, x: Any) -> tuple[Any, Any]:
        """Return the student's part of a batch's inputs, and the teacher's."""
        return x, x

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Run the teacher once, in inference mode.

        Args:
            teacher_x: the teacher's inputs, from ``split``.
            taps: names of layers whose outputs are also returned.
            differentiable: whether a gradient flows through the answers to ``teacher_x``, as training a generator
                requires; False stops it. The teacher's own weights are never trained.

        Returns:
            The outputs (a tensor, a structure, or ``Members``) and a dict from tap name to tensor.

        Raises:
            ValueError: if a gradient is requested but the answers are not computed from ``teacher_x``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define listen().")

    def call(self, x: Any, training: bool = False) -> Any:
        """Return the combined outputs; ``training`` has no effect."""
        return resolved(self.listen(self.split(x)[1])[0])

    def build(self, input_shape: Any = None) -> None:
        """Do nothing: the inner models are built when they first run."""
        self.built = True

    @property
    def trainable(self) -> bool:
        """False once a distiller has the teacher: only ``trainable_parts`` are trained."""
        return keras.Model.trainable.fget(self)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.Model.trainable.fset(self, value)
        for part in self.trainable_parts:
            part.trainable = True

    @property
    def trainable_parts(self) -> list[keras.layers.Layer]:
        """Layers of the teacher that are trained along with the student; none, except for a learned gate."""
        return []

    def translate(self, problem: Exception) -> Exception:
        """Return the error to raise in place of one that TensorFlow raised while this teacher was in use."""
        return problem

    @property
    def hears_student(self) -> bool:
        """Whether it answers only after the student's pass, through ``listen_to``."""
        return False

    def listen_to(
        self, student_outputs: Structure, taps: dict[str, Any], batch: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """Answer after the student's pass; called instead of ``listen`` if ``hears_student``.

        Args:
            student_outputs: the student's outputs, through which gradients flow unless stopped here.
            taps: the tensors that terms tap from the student, by name.
            batch: the batch (inputs, labels, weights, extra fields); None if only shapes matter.

        Returns:
            As ``listen``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define listen_to().")

    @property
    def needs_labels(self) -> bool:
        """Whether it cannot answer without the labels of a batch."""
        return False

    def after_update(self, student: keras.Model, step: Any) -> None:
        """Follow the student after an update; called inside the traced step.

        Args:
            student: the model that has been updated.
            step: number of updates so far, an integer tensor.
        """

    @property
    def states_of_training(self) -> list[Any]:
        """Variables that change in training and that a resumed run needs; by default, the random states."""
        return [generator.state for generator in self.seed_generators]

    @property
    def seed_generators(self) -> list[keras.random.SeedGenerator]:
        """The sources of the teacher's randomness; empty for a deterministic teacher."""
        return []

    def reseed(self, number: int) -> None:
        """Restart the randomness from ``number`` and the teacher's own seed; no-op for a deterministic teacher."""
        for index, generator in enumerate(self.seed_generators):
            seed = (generator._initial_seed + 1_000_003 * number + 7919 * index) % (2**31)
            generator.state.assign(ops.convert_to_tensor([seed, 0], generator.state.dtype))


def resolved(outputs: Structure) -> Any:
    """Replace each ``Members`` in a structure of outputs by its combined logits."""
    return keras.tree.map_structure(lambda each: each.predictive() if isinstance(each, Members) else each, outputs)


def silent(outputs: Structure, differentiable: bool = False) -> Any:
    """Stop the gradient of each tensor in a structure unless ``differentiable``."""
    if differentiable:
        return outputs
    return keras.tree.map_structure(ops.stop_gradient, outputs)


def gradient(differentiable: bool) -> dict[str, bool]:
    """Return the keyword arguments for an inner teacher's ``listen``, which may lack ``differentiable``."""
    return {"differentiable": True} if differentiable else {}


def refuse_gradient(teacher: Teacher, differentiable: bool) -> None:
    """Raise ``ValueError`` if a gradient is requested from a teacher that Keras does not run on the inputs."""
    if differentiable:
        owner = type(teacher).__name__
        advice = "Give the Keras model itself"
        raise error(owner, "a teacher that Keras runs on the inputs, for a gradient to them", owner, advice)


def as_teacher(model: Any, owner: str = "teachers") -> Teacher:
    """Return ``model`` if it is a teacher, else wrap the Keras model in ``Single``.

    Args:
        model: a ``keras.Model`` or a ``teachers.Teacher``.
        owner: name shown in the error message.

    Returns:
        A teacher.

    Raises:
        ValueError: if ``model`` is neither.

    Example:
        >>> import keras
        >>> type(as_teacher(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]))).__name__
        'Single'
    """
    if isinstance(model, Teacher):
        return model
    if isinstance(model, keras.Model):
        return Single(model)
    raise error(owner, "a keras.Model or a teachers.Teacher", type(model).__name__)


def refuse_probabilities(owner: str, model: Any) -> None:
    """Raise ``ValueError`` if a model certainly ends in softmax or sigmoid."""
    model = model.model if isinstance(model, (Single, Preprocessed)) else model
    if isinstance(model, Teacher):
        return
    for activation in taps_room.final_activation(model):
        if activation is not None:
            got = f"model {model.name!r}, which ends in {activation}"
            raise error(owner, "members that give logits", got, "Use taps.without_softmax(model)")


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Single(Teacher):
    """One Keras model as a teacher; ``Distiller`` wraps a plain model in it.

    Args:
        model: any Keras model.
        **kwargs: passed on to ``keras.Model`` (``name``).
    """

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(model, keras.Model):
            raise error(type(self).__name__, "a keras.Model", type(model).__name__)
        self.model = model

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Run the model once with ``training=False``; see ``Teacher.listen``."""
        outputs, tapped = taps_room.Taps(self.model, taps, owner=type(self).__name__)(teacher_x, training=False)
        return silent(outputs, differentiable), silent(tapped, differentiable)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"name": self.name, "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Single:
        """Rebuild the teacher from ``get_config``."""
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"], custom_objects)})


def known_model(teacher: Any) -> keras.Model | None:
    """Return the single Keras model whose layers and outputs can be inspected; None for other kinds of teacher.

    Args:
        teacher: a ``keras.Model`` or a ``Teacher``.
    """
    if isinstance(teacher, Single):
        return known_model(teacher.model)
    return None if isinstance(teacher, Teacher) else teacher


class Around(Teacher):
    """Base of teachers that change the inputs or outputs of an inner teacher and delegate everything else.

    Args:
        model: a Keras model or a teacher.
        **kwargs: passed on to ``keras.Model`` (``name``).
    """

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = as_teacher(model, type(self).__name__)

    def split(self, x: Any) -> tuple[Any, Any]:
        """Split as the inner teacher does."""
        return self.model.split(x)

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Run the inner teacher once; see ``Teacher.listen``."""
        return self.model.listen(teacher_x, taps, **gradient(differentiable))

    @property
    def runs(self) -> bool:
        """As the inner teacher's."""
        return self.model.runs

    def translate(self, problem: Exception) -> Exception:
        """As the inner teacher's."""
        return self.model.translate(problem)

    @property
    def trainable_parts(self) -> list[keras.layers.Layer]:
        """As the inner teacher's."""
        return self.model.trainable_parts

    @property
    def seed_generators(self) -> list[keras.random.SeedGenerator]:
        """As the inner teacher's."""
        return self.model.seed_generators

    @property
    def states_of_training(self) -> list[Any]:
        """As the inner teacher's."""
        return self.model.states_of_training

    def after_update(self, student: keras.Model, step: Any) -> None:
        """Follow the student as the inner teacher does."""
        self.model.after_update(student, step)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Preprocessed(Around):
    """A teacher that sees a function of the batch: another resolution, modality or tokenisation.

    Args:
        model: a Keras model or a teacher.
        fn: function from the batch's inputs to the teacher's; TensorFlow or Keras operations, traced into the step. To
            save the distiller, give a Keras layer or a function registered with
            ``keras.saving.register_keras_serializable``.
        student_fn: function from the batch's inputs to the student's; None leaves them unchanged.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Example:
        >>> import keras, numpy as np
        >>> hears = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> hears.set_weights([np.array([[1.0], [10.0]])])
        >>> teacher = Preprocessed(hears, fn=lambda x: x["sound"], student_fn=lambda x: x["image"])
        >>> batch = {"sound": np.array([[1.0, 2.0]]), "image": np.zeros((1, 5))}
        >>> teacher(batch).numpy(), teacher.split(batch)[0].shape
        (array([[21.]], dtype=float32), (1, 5))
    """

    def __init__(
        self,
        model: keras.Model,
        fn: Callable[[Any], Any],
        student_fn: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        for name, each in (("fn", fn), ("student_fn", student_fn or fn)):
            if not callable(each):
                raise error("Preprocessed", f"{name} to be a function or a layer", each)
        if not self.runs:
            advice = "Label with teachers.label(Preprocessed(...), dataset)"
            raise error("Preprocessed", "a teacher that runs a model", "a stored one", advice)
        self.fn = fn
        self.student_fn = student_fn

    def split(self, x: Any) -> tuple[Any, Any]:
        """Return the student's inputs, and ``fn`` of the inputs for the teacher."""
        return (x if self.student_fn is None else self.student_fn(x)), self.model.split(self.fn(x))[1]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        serialize = keras.saving.serialize_keras_object
        parts: Iterable[str] = ("model", "fn", "student_fn")
        return {"name": self.name, **{part: serialize(getattr(self, part)) for part in parts}}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Preprocessed:
        """Rebuild the teacher from ``get_config``."""
        made = {part: keras.saving.deserialize_keras_object(config[part], custom_objects) for part in config}
        return cls(**made)
