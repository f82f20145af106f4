"""Trains one student in stages with different terms, frozen layers or optimizers."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_distill._checks import choice, error, integer
from keras_distill.regimes._driver import Driver, Training
from keras_distill.taps import walk


class Stage:
    """One stage of ``Stages``.

    Args:
        model: the model to fit: a ``Distiller``, a regime or a plain model; or a function from the previous stage's
            student to one of these, for a student that grows.
        epochs: >= 1, length of the stage; None: as given to ``fit``.
        freeze: patterns of layer names, as in ``taps.list_taps``, to freeze in this stage (``"block1*"``); everything
            else is trained.
        optimizer: None: a fresh copy of the one given to ``Stages.compile``; ``"keep"``: the previous stage's optimizer
            continues with its moments; or a separate optimizer for this stage.
        name: name of the stage; ``"stage_0"`` and so on if None.
        **compile_arguments: differences from ``Stages.compile`` (``loss``, ``metrics``, ``jit_compile``).

    Raises:
        ValueError: if an argument is out of bounds.
    """

    def __init__(
        self,
        model: keras.Model | Callable[[keras.Model], keras.Model],
        epochs: int | None = None,
        *,
        freeze: Sequence[str] = (),
        optimizer: Any = None,
        name: str | None = None,
        **compile_arguments: Any,
    ) -> None:
        if not isinstance(model, keras.Model) and not callable(model):
            raise error("Stage", "a model, or a function of the previous stage's student", model)
        self.model = model
        self.epochs = None if epochs is None else integer("Stage", "epochs", epochs, low=1)
        self.freeze = [freeze] if isinstance(freeze, str) else list(freeze)
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            choice("Stage", "optimizer", optimizer, (None, "keep"))
        self.optimizer = optimizer
        self.name = name
        self.compile_arguments = compile_arguments


class Stages(Driver):
    """Trains one student in stages: hints, then logits; a head, then all layers; a small model, then a larger one.

    Choose it when one ``fit`` is not enough, because terms, frozen layers or the optimizer change. Give every stage a
    ``Distiller`` around the same student.

    Args:
        stages: the stages, in order: ``Stage`` objects, or the model to fit in each.
        directory: where finished stages are kept for a killed run to resume; None keeps nothing.
        seed: >= 0, for the orders of the data; None does not change Keras' random state.

    Attributes:
        student: the student of the last stage.
        histories: the history of each stage, by name.

    Raises:
        ValueError: if there is no stage, two have the same name, or a frozen pattern matches no layer.

    Example:
        >>> import keras, numpy as np
        >>> from keras_distill import Distiller, FeatureDistillation, LogitsDistillation
        >>> teacher, student = (
        ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(3)])
        ...     for _ in "ts"
        ... )
        >>> hints = Distiller(teacher, student, FeatureDistillation("mse", "hidden", "hidden"), student_loss_weight=0.0)
        >>> logits = Distiller(teacher, student, LogitsDistillation(4.0), student_loss_weight=0.0)
        >>> stages = Stages([Stage(hints, epochs=2, name="hints"), Stage(logits, epochs=3, freeze="hidden")])
        >>> stages.compile("adam")
        >>> history = stages.fit(np.ones((8, 4), "float32"), verbose=0)
        >>> {name: len(each["loss"]) for name, each in stages.histories.items()}
        {'hints': 2, 'stage_1': 3}

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", 2015, arXiv:1412.6550, algorithm 1 (hints, then logits).
        Differs: any number of stages.
    """

    owner = "Stages"

    def __init__(self, stages: Sequence[Stage], directory: str | Path | None = None, seed: int | None = None) -> None:
        super().__init__(directory, seed)
        if not isinstance(stages, (list, tuple)) or not stages:
            raise error(self.owner, "a list of regimes.Stage objects", stages)
        self.stages = [each if isinstance(each, Stage) else Stage(each) for each in stages]
        self._names = [stage.name or f"stage_{number}" for number, stage in enumerate(self.stages)]
        if len(set(self._names)) < len(self._names):
            raise error(self.owner, "stages with distinct names", ", ".join(self._names))
        self._last_optimizer: Any = None

    def trainings(self) -> Iterable[Training]:
        """Return one training for each stage."""
        for name, stage in zip(self._names, self.stages, strict=True):
            yield Training(
                name,
                functools.partial(self._trainer, stage),
                {**stage.compile_arguments, **_own_optimizer(stage)},
                {} if stage.epochs is None else {"epochs": stage.epochs},
            )

    def _trainer(self, stage: Stage, done: list[keras.Model]) -> keras.Model:
        if isinstance(stage.model, keras.Model):
            trainer = stage.model
            student = getattr(trainer, "student", trainer)
            if done and done[-1] is not student:  # loaded from the previous stage's file
                student.set_weights(done[-1].get_weights())
            return trainer
        if not done:
            raise error(self.owner, "a model in the first stage", "a function, which needs a student")
        return stage.model(done[-1])

    def _stage_of(self, each: Training) -> Stage:
        return self.stages[self._names.index(each.name)]

    @contextlib.contextmanager
    def prepared(self, each: Training, trainer: keras.Model) -> Iterator[None]:
        """Freeze the stage's frozen layers; keep its optimizer for the next stage.

        Args:
            each: the training.
            trainer: the model to fit.
        """
        with _frozen(self.owner, getattr(trainer, "student", trainer), self._stage_of(each).freeze):
            yield
        self._last_optimizer = trainer.optimizer

    def compiled(self, each: Training, trainer: keras.Model) -> None:
        """Carry over the optimizer's state from the previous stage if the stage keeps it.

        Args:
            each: the training.
            trainer: the model to fit.
        """
        if self._stage_of(each).optimizer != "keep":
            return
        if self._last_optimizer is None:
            advice = "A resumed run cannot keep it: start afresh, or use a fresh optimizer for the stage"
            raise error(self.owner, "a previous stage in this process for optimizer='keep'", "none", advice)
        if not trainer.optimizer.built:
            trainer.optimizer.build(trainer.trainable_variables)
        _carry_over(self._last_optimizer, trainer.optimizer)


def _own_optimizer(stage: Stage) -> dict[str, Any]:
    return {"optimizer": stage.optimizer} if isinstance(stage.optimizer, keras.optimizers.Optimizer) else {}


def _carry_over(old: Any, new: Any) -> None:
    """Copy the step and, for weights that both optimizers update, every slot of the old optimizer to the new one."""
    if type(old) is not type(new):
        raise error("Stages", f"the optimizer of the previous stage ({type(old).__name__})", type(new).__name__)
    places = {id(variable): index for index, variable in enumerate(old._trainable_variables)}
    new.iterations.assign(old.iterations)
    for name, slots in vars(old).items():
        if not isinstance(slots, list) or len(slots) != len(places) or name == "_trainable_variables":
            continue
        for index, variable in enumerate(new._trainable_variables):
            if id(variable) in places:
                getattr(new, name)[index].assign(slots[places[id(variable)]])


@contextlib.contextmanager
def _frozen(owner: str, model: keras.Model, patterns: Sequence[str]) -> Iterator[None]:
    """Freeze layers whose names match, and restore them afterwards."""
    layers = list(walk(model))
    chosen = []
    for pattern in patterns:
        found = [layer for name, layer in layers if fnmatch.fnmatch(name, pattern)]
        if not found:
            raise error(owner, f"a layer of {model.name!r} to freeze", repr(pattern), "See taps.list_taps(model)")
        chosen += found
    before = [(layer, layer.trainable) for layer in chosen]
    try:
        for layer in chosen:
            layer.trainable = False
        yield
    finally:
        for layer, value in before:
            layer.trainable = value
