"""Several trainings in sequence, resumable after a kill."""

from __future__ import annotations

import abc
import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import _files
from keras_distill._checks import error, integer
from keras_distill.callbacks import Backup
from keras_distill.distiller import Distiller
from keras_distill.regimes._answers import Answers
from keras_distill.regimes._base import Regime
from keras_distill.regimes._rounds import Measured, Round
from keras_distill.training import Batch

_FINISHED = "finished.json"


class Training(NamedTuple):
    """One training of a driver.

    Attributes:
        name: name of the training and of its files, unique within the driver.
        make: maps the finished students to the model to fit: a ``Distiller``, a regime, or a plain model.
        compile_arguments: differences from the driver's own ``compile``.
        fit_arguments: differences from the driver's own ``fit``.
    """

    name: str
    make: Callable[[list[keras.Model]], keras.Model]
    compile_arguments: dict[str, Any] = {}  # noqa: RUF012 -- never written to
    fit_arguments: dict[str, Any] = {}  # noqa: RUF012 -- never written to


class Driver(abc.ABC):
    """Base of regimes that consist of several fits: generations, chains, stages.

    Args:
        directory: where finished students and backups are kept, so that a killed run, restarted with the same
            arguments, repeats at most the current epoch; None keeps nothing.
        seed: >= 0. Every training starts from ``keras.utils.set_random_seed(seed + its number)``, so that a resumed
            driver reproduces the same weights and orders; None does not change Keras' random state.
        store_answers: whether to compute every teacher's answers to all of ``x`` once, before the training that it
            teaches, and look them up afterwards; they are also kept in ``directory``. For data in one array that is the
            same in every epoch. Validation then shows only the loss on the labels.
    """

    owner = "Driver"

    def __init__(
        self, directory: str | Path | None = None, seed: int | None = None, store_answers: bool = False
    ) -> None:
        self._answers = Answers(self.owner, directory) if store_answers else None
        self.directory = None if directory is None else Path(directory)
        self.seed = None if seed is None else integer(self.owner, "seed", seed, low=0)
        self.histories: dict[str, dict[str, list[float]]] = {}
        self.students: list[keras.Model] = []
        self._compile_arguments: dict[str, Any] | None = None

    @abc.abstractmethod
    def trainings(self) -> Iterable[Training]:
        """Return the trainings, in order."""

    @property
    def student(self) -> keras.Model:
        """The student of the last training."""
        if not self.students:
            raise error(self.owner, "fit to be called before student is read", "no finished training")
        return self.students[-1]

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, metrics: Any = None, **kwargs: Any) -> None:
        """Configure every training.

        Args:
            optimizer: as in Keras; copied for every training.
            loss: supervised loss in any form that Keras takes.
            metrics: as in Keras.
            **kwargs: passed on to the ``compile`` of every training.
        """
        self._compile_arguments = {"optimizer": optimizer, "loss": loss, "metrics": metrics, **kwargs}

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> keras.callbacks.History:
        """Run every training on the same data.

        Args:
            x: as in ``keras.Model.fit``.
            y: as in ``keras.Model.fit``.
            **kwargs: passed on to the ``fit`` of every training.

        Returns:
            The history of the last training; ``histories`` holds all of them by name.

        Raises:
            ValueError: if ``compile`` was not called, or the directory belongs to another run.
        """
        if self._compile_arguments is None:
            raise error(self.owner, "compile to be called before fit", "fit")
        if self._answers is not None:
            self._answers.begin(x)
        trainings = list(self.trainings())
        self.histories, self.students = self._finished([each.name for each in trainings])
        history = keras.callbacks.History()
        for number, each in enumerate(trainings):
            if number < len(self.students):
                history.history = self.histories[each.name]
                continue
            if self.seed is not None:
                keras.utils.set_random_seed(self.seed + number)
            history = self._run(each, x, y, kwargs)
        return history

    def heard(self, name: str, teacher: Any) -> Any:
        """Return the teacher of a training, or its stored answers if ``store_answers``.

        Args:
            name: name of the teacher, the same in every run.
            teacher: a trained model or teacher.
        """
        return teacher if self._answers is None else self._answers.of(name, teacher)

    def prepared(self, each: Training, trainer: keras.Model) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a training's ``compile`` and ``fit``; an empty one by default.

        Args:
            each: the training.
            trainer: the model to fit.
        """
        return contextlib.nullcontext()

    def compiled(self, each: Training, trainer: keras.Model) -> None:
        """Run after a training's ``compile``; does nothing by default.

        Args:
            each: the training.
            trainer: the model to fit.
        """
        return None

    def _run(self, each: Training, x: Any, y: Any, kwargs: dict[str, Any]) -> keras.callbacks.History:
        trainer = each.make(self.students)
        arguments = {**(self._compile_arguments or {}), **each.compile_arguments}
        if self._answers is not None and isinstance(trainer, Distiller):
            arguments.setdefault("evaluate_distillation", False)  # there are no answers for other examples
        fit = {**kwargs, **each.fit_arguments}
        if self.directory is not None:
            backup = Backup(self.directory / f"{each.name}.backup")
            fit["callbacks"] = [*(fit.get("callbacks") or []), backup]
        with self.prepared(each, trainer):
            trainer.compile(**{**arguments, "optimizer": _fresh(arguments["optimizer"])})
            self.compiled(each, trainer)
            history = trainer.fit(x, y, **fit)
        self.students.append(getattr(trainer, "student", trainer))
        self.histories[each.name] = {name: [float(v) for v in values] for name, values in history.history.items()}
        self._keep(each.name)
        return history

    def _keep(self, name: str) -> None:
        """Write the finished student, then the list of finished students, each atomically."""
        if self.directory is None:
            return
        _files.make_folder(self.directory, parents=True, exist_ok=True)
        aside = self.directory / f".{name}.keras"
        _files.fill(aside, lambda: self.students[-1].save(aside))
        _files.flush(aside)
        _files.rename(aside, self.directory / f"{name}.keras")
        text = json.dumps({"owner": self.owner, "histories": self.histories})
        _files.put(self.directory / _FINISHED, text.encode())

    def _finished(self, names: list[str]) -> tuple[dict[str, Any], list[keras.Model]]:
        if self.directory is None or not (self.directory / _FINISHED).is_file():
            return {}, []
        try:
            facts = json.loads((self.directory / _FINISHED).read_text(encoding="utf-8"))
            owner, histories = facts["owner"], dict(facts["histories"])
        except (ValueError, KeyError, TypeError) as problem:
            advice = "Remove the directory to begin afresh"
            raise error(self.owner, f"the record of a run in {self.directory}", f"{problem}", advice) from None
        if owner != self.owner or list(histories) != names[: len(histories)]:
            got = f"one of {owner} with {', '.join(histories)}"
            raise error(self.owner, f"a directory of this run ({', '.join(names)})", got, "Give another directory")
        return histories, [keras.saving.load_model(self.directory / f"{name}.keras") for name in histories]


@keras.saving.register_keras_serializable(package="keras_distill")
class Alone(Regime):
    """One student that learns from the labels: plain ``fit`` with the guard, resumable bit for bit.

    Args:
        student: a built model.
        name: name of this model.
    """

    owner = "Alone"

    def __init__(self, student: keras.Model, name: str = "alone") -> None:
        super().__init__({"student": student}, part_names=["student_loss"], name=name)

    @property
    def student(self) -> keras.Model:
        """The student."""
        return self.players["student"]

    def rounds(self) -> list[Round]:
        """Return the single round."""
        return [Round(("student",), self._learn)]

    def _learn(self, batch: Batch, training: bool) -> Measured:
        outputs = self.student(batch.inputs, training=training)
        loss = self.supervised(batch, outputs)
        return Measured({"student": ops.cast(loss, "float32")}, (("student_loss", loss),), outputs)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"name": self.name, "student": keras.saving.serialize_keras_object(self.student)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Alone:
        """Rebuild the regime from ``get_config``."""
        return cls(**{**config, "student": keras.saving.deserialize_keras_object(config["student"], custom_objects)})


def _fresh(optimizer: Any) -> Any:
    """Return a copy of an optimizer without its state, or the name of one."""
    if isinstance(optimizer, keras.optimizers.Optimizer):
        return type(optimizer).from_config(optimizer.get_config())
    return optimizer


def made(owner: str, make: Any, name: str) -> keras.Model:
    """Return the result of ``make`` if it is a built Keras model, else raise.

    Args:
        owner: name shown in the message.
        make: a function without arguments.
        name: name of the function, for the message.
    """
    model = make()
    if not isinstance(model, keras.Model):
        raise error(owner, f"{name} to return a keras.Model", type(model).__name__)
    if not model.built:
        raise error(owner, f"{name} to return a built model", f"{model.name!r}, which is not", "Start with keras.Input")
    return model
