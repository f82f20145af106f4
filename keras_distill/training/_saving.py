"""What a model in training saves: ``save()`` writes everything; weight files and exports leave teachers out.

A subclass declares two things: the members that weight files leave out (``_hide``), and the states of training that
Keras does not save by itself (``_states_of_training``: random generators, a teacher that changes with its student).
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import keras

from keras_distill.training._multi_worker import TrainsOnManyWorkers


class SavesTraining(TrainsOnManyWorkers):
    """Base of everything that is fitted; defines saving and loading."""

    def _hide(self, **members: Any) -> None:
        """Store members where Keras does not track them: they are not trained, counted, or written to weight files."""
        # A plain object, because Keras saves every model that it finds in attributes, lists and dictionaries.
        object.__setattr__(self, "_hidden", types.SimpleNamespace(members=members, now=False))

    def _member(self, name: str) -> Any:
        """Return a hidden member; it raises ``AttributeError`` while weights without it are written."""
        if self._hidden.now:
            raise AttributeError(f"{name} is hidden while weights without it are written.")
        return self._hidden.members[name]

    @contextlib.contextmanager
    def _without_hidden_members(self) -> Iterator[None]:
        self._hidden.now = True
        try:
            yield
        finally:
            self._hidden.now = False

    def _states_of_training(self) -> dict[str, Any]:
        """Return variables that Keras does not save but a resumed run needs, by stable names."""
        return {}

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save everything: the trained models, the teacher, optimizers, schedules; not the teacher's own optimizer.

        Args:
            filepath: ends in ``.keras``.
            *args: as in Keras.
            **kwargs: as in Keras.
        """
        models = [layer for member in self._hidden.members.values() for layer in member._flatten_layers()]
        kept = [(model, vars(model)["optimizer"]) for model in models if vars(model).get("optimizer") is not None]
        try:
            for model, _ in kept:
                vars(model)["optimizer"] = None
            super().save(filepath, *args, **kwargs)
        finally:
            for model, optimizer in kept:
                vars(model)["optimizer"] = optimizer

    def save_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save what training changes (trained models, adapters, optimizers, schedules), without the teacher.

        Args:
            filepath: ends in ``.weights.h5``.
            *args: as in Keras.
            **kwargs: as in Keras.
        """
        with self._without_hidden_members():
            super().save_weights(filepath, *args, **kwargs)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Load what ``save_weights`` saved; the teacher stays as it is.

        Args:
            filepath: as given to ``save_weights``.
            *args: as in Keras.
            **kwargs: as in Keras.
        """
        with self._without_hidden_members():
            super().load_weights(filepath, *args, **kwargs)

    def export(self, filepath: Any, *args: Any, **kwargs: Any) -> Any:
        """Export the student alone, as ``keras.Model.export`` does; see also ``keras_distill.export``.

        Args:
            filepath: as in Keras.
            *args: as in Keras.
            **kwargs: as in Keras.

        Returns:
            As in Keras.
        """
        return self.student.export(filepath, *args, **kwargs)

    def save_own_variables(self, store: Any) -> None:
        """Save this model's own numbers, and the states of training that Keras leaves out.

        Args:
            store: where Keras writes them.
        """
        super().save_own_variables(store)
        for name, variable in self._states_of_training().items():
            store[name] = keras.ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        """Load what ``save_own_variables`` saved.

        Args:
            store: where Keras keeps it.
        """
        states = self._states_of_training()
        known = {key: store[key] for key in list(store.keys()) if key.startswith(_STATES)}
        super().load_own_variables({key: store[key] for key in store.keys() if key not in known})
        for name, variable in states.items():
            if name in known:
                variable.assign(known[name])


def without_compile(config: Any) -> Any:
    """Return a serialised teacher without its compile configuration: it is no longer trained.

    Args:
        config: from ``serialize_keras_object``.
    """
    if isinstance(config, dict):
        return {key: without_compile(value) for key, value in config.items() if key != "compile_config"}
    return [without_compile(each) for each in config] if isinstance(config, list) else config


_STATES = ("random_state_", "teacher_state_")


def states_of_training(layers: Any, teachers: Any) -> dict[str, Any]:
    """Return the random states of the trained layers, and the state that their teachers keep between steps.

    Args:
        layers: models and terms that are trained.
        teachers: ``teachers.Teacher`` objects.
    """
    flat = [layer for part in layers for layer in part._flatten_layers()]
    states = [generator.state for layer in flat for generator in layer._seed_generators]
    found = {f"random_state_{index}": state for index, state in enumerate(states)}
    moving = [variable for teacher in teachers for variable in teacher.states_of_training]
    return found | {f"teacher_state_{index}": variable for index, variable in enumerate(moving)}
