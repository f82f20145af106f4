"""What of a distiller is written to files: all of it by ``save``, all but the teacher in weights and exports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_distill._multi_worker import TrainsOnManyWorkers
from keras_distill._settings import from_config


class SavesWithoutTeacher(TrainsOnManyWorkers):
    """Base of ``Distiller``: saving, loading and the configuration. Reads ``teacher``, ``student`` and the settings."""

    @contextlib.contextmanager
    def _without_teacher(self) -> Iterator[None]:
        self._frozen.hidden = True
        try:
            yield
        finally:
            self._frozen.hidden = False

    def save_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save what training changes (student, adapters, optimizer, schedules), without the teacher.

        Args:
            filepath: ends in ``.weights.h5``.
            *args: as in Keras.
            **kwargs: as in Keras.
        """
        with self._without_teacher():
            super().save_weights(filepath, *args, **kwargs)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Load what ``save_weights`` saved; the teacher stays as it is.

        Args:
            filepath: as given to ``save_weights``.
            *args: as in Keras.
            **kwargs: as in Keras.
        """
        with self._without_teacher():
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
        """Save this model's own numbers, and the states of random generators that Keras leaves out.

        Args:
            store: where Keras wants them.
        """
        super().save_own_variables(store)
        for index, variable in enumerate(self._random_states()):
            store[f"random_state_{index}"] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Load what ``save_own_variables`` saved.

        Args:
            store: where Keras keeps it.
        """
        states = {key: store[key] for key in list(store.keys()) if key.startswith("random_state_")}
        super().load_own_variables({key: store[key] for key in store.keys() if key not in states})
        for index, variable in enumerate(self._random_states()):
            if f"random_state_{index}" in states:
                variable.assign(states[f"random_state_{index}"])

    def _random_states(self) -> list[Any]:
        layers = [layer for part in (self.student, *self._own_terms) for layer in part._flatten_layers()]
        return [generator.state for layer in layers for generator in layer._seed_generators]

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to make this distiller again."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "teacher": serialize(self.teacher),
            "student": serialize(self.student),
            "distillation_losses": [serialize(term) for term in self.distillation_losses],
            "distillation_loss_weights": [setting.config for setting in self._weight_settings],
            "student_loss_weight": self._student_setting.config,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        """Make the distiller that ``get_config`` described.

        Args:
            config: from ``get_config``.
            custom_objects: as in Keras.

        Returns:
            A distiller with fresh weights.
        """
        config = dict(config)
        with keras.saving.custom_object_scope(custom_objects or {}):
            for key in ("teacher", "student"):
                config[key] = keras.saving.deserialize_keras_object(config[key])
            terms = config["distillation_losses"]
            config["distillation_losses"] = [keras.saving.deserialize_keras_object(term) for term in terms]
        config["distillation_loss_weights"] = [from_config(each) for each in config["distillation_loss_weights"]]
        config["student_loss_weight"] = from_config(config["student_loss_weight"])
        return cls(**config)

    def get_compile_config(self) -> dict[str, Any]:
        """Return what ``compile_from_config`` needs."""
        own = {"evaluate_distillation": self.evaluate_distillation, "stop_on_non_finite": self.stop_on_non_finite}
        return {**super().get_compile_config(), **own} if self.compiled else {}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved distiller was, with an optimizer whose state can be loaded.

        Args:
            config: from ``get_compile_config``.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)
