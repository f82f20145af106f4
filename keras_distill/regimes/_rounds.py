"""Rounds of training, and the checks of their players."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras

from keras_distill._checks import error
from keras_distill.training import Batch


class Measured(NamedTuple):
    """The result of one round on a batch.

    Attributes:
        losses: the loss of each trained player by name: a float32 scalar, the mean over this replica's batch.
        parts: (name, value) pairs for the logs; the names are those in ``Regime.part_names``.
        outputs: outputs of the evaluated student, or any tensor whose first axis is the batch.
        watched: further (name, value) pairs that must be finite, causes before effects.
    """

    losses: dict[str, Any]
    parts: tuple[tuple[str, Any], ...]
    outputs: Any
    watched: tuple[tuple[str, Any], ...] = ()


class Round(NamedTuple):
    """One part of a step, which updates some players on one loss each.

    Attributes:
        trains: names of the players to update.
        measure: maps a batch, and whether this is training, to the losses.
        times: number of repetitions within one step.
    """

    trains: tuple[str, ...]
    measure: Callable[[Batch, bool], Measured]
    times: int = 1


def check_players(owner: str, players: dict[str, Any], teachers: dict[str, Any]) -> None:
    """Raise ``ValueError`` if a player is not a built model, or shares weights with another or with a teacher.

    Args:
        owner: name shown in error messages.
        players: name to model.
        teachers: name to model or teacher.
    """
    for name, model in players.items():
        if not isinstance(model, keras.Model):
            raise error(owner, f"a keras.Model as {name}", f"{type(model).__name__}: {model!r}"[:120])
        if not model.built:
            raise error(owner, f"a built model as {name}", f"{model.name!r}, which is not", "Call it once on a batch")
    owners: dict[int, str] = {}
    for name, model in [*players.items(), *teachers.items()]:
        for variable in model.trainable_variables if name in players else model.variables:
            other = owners.setdefault(id(variable), name)
            if other != name:
                advice = "Give each its own layers: keras.models.clone_model(model)"
                raise error(owner, "models that share no weights", f"{other} and {name}, which do", advice)


def listeners(teachers: Mapping[str, Any]) -> list[Any]:
    """Return the teachers that are not plain Keras models.

    Args:
        teachers: name to model or teacher.
    """
    return [teacher for teacher in teachers.values() if hasattr(teacher, "states_of_training")]
