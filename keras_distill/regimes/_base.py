"""The base of every regime: players, each with an optimizer, and rounds that define who is trained on what."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill._checks import error
from keras_distill._typing import Structure
from keras_distill.regimes._rounds import Measured, Round, check_players, listeners
from keras_distill.training import Batch, Guard, Learner, Trainer, Update
from keras_distill.training._callback_state import callback_state
from keras_distill.training._objective import num_replicas, replica_share
from keras_distill.training._saving import states_of_training
from keras_distill.training._trainer import add_to_mean, num_examples, with_loss_scale


class Regime(Trainer, abc.ABC):
    """Base of regimes that train more than one model, or one model in more than one way.

    A subclass names its players and defines its rounds; this class owns the tape, the guard, the updates, each
    replica's share, the moving state, logs, saving and resuming. It is compiled and fitted like any Keras model;
    ``compile`` copies one optimizer for every player, or takes ``{player: optimizer}``.

    Args:
        players: name to model. Every model must be built.
        teachers: frozen models or teachers by name, hidden from Keras so that they are not trained, counted or
            exported.
        part_names: names of the parts shown in the logs.
        name: name of this model.

    Raises:
        ValueError: if a player is not a built model, two players share weights, or a player is also a teacher.
    """

    owner = "Regime"

    def __init__(
        self,
        players: Mapping[str, keras.Model],
        *,
        teachers: Mapping[str, Any] | None = None,
        part_names: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        super().__init__(name=name, autocast=False)
        teachers = dict(teachers or {})
        check_players(self.owner, dict(players), teachers)
        self._hide(**teachers)
        for teacher in teachers.values():
            teacher.trainable = False
        self.players = dict(players)
        self._part_trackers = [keras.metrics.Mean(name=each) for each in part_names]
        self._guard = Guard(self, self.owner, "All models keep their", listeners(teachers))
        callback_state(self)
        self.built = True

    # ------------------------------------------------------------------ what a subclass writes

    @abc.abstractmethod
    def rounds(self) -> list[Round]:
        """Return the rounds of one training step, in order."""

    def after_update(self, step: Any) -> None:
        """Run after the updates of a step, inside the traced step; does nothing by default.

        Args:
            step: number of steps so far, an integer tensor.
        """

    # ------------------------------------------------------------------ what a subclass calls

    def supervised(self, batch: Batch, outputs: Structure) -> Any:
        """Return the loss given to ``compile`` between a batch's labels and ``outputs``; 0 if there is none."""
        if self._compile_loss is None or batch.labels is None:
            return ops.zeros((), "float32")
        return ops.cast(self._compile_loss(batch.labels, outputs, batch.weights), "float32") * num_replicas()

    # ------------------------------------------------------------------ Keras' protocol

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        metrics: Any = None,
        *,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: Any = "auto",
        stop_on_non_finite: bool = True,
    ) -> None:
        """Configure training.

        Args:
            optimizer: as in Keras, copied for every player; or a dictionary with one for each player.
            loss: supervised loss in any form that Keras takes.
            metrics: as in Keras; they see the outputs of ``student``.
            weighted_metrics: as in Keras.
            run_eagerly: as in Keras.
            steps_per_execution: as in Keras.
            jit_compile: as in Keras.
            stop_on_non_finite: whether to stop ``fit`` at the first NaN or infinite number, keeping the last finite
                weights.

        Raises:
            ValueError: if a player has no optimizer, or an optimizer no player.
        """
        optimizers = self._optimizers_for(optimizer)
        self._configure(
            list(optimizers.values()),
            loss=loss,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            stop_on_non_finite=stop_on_non_finite,
        )
        self._player_optimizers = list(optimizers.values())  # an attribute of the model, so that Keras saves them
        self._learners = {
            name: Learner(model, self.parts_of(name), optimizers[name], name) for name, model in self.players.items()
        }
        for learner in self._learners.values():
            if not learner.weights:
                raise error(self.owner, f"{learner.name} with trainable weights", "none")
            learner.optimizer.build(learner.weights)

    def parts_of(self, player: str) -> Sequence[keras.layers.Layer]:
        """Return further layers to train along with a player; none by default.

        Args:
            player: name of the player.
        """
        return ()

    def _optimizers_for(self, optimizer: Any) -> dict[str, Any]:
        if isinstance(optimizer, Mapping):
            if set(optimizer) != set(self.players):
                expected = f"an optimizer for each of {', '.join(self.players)}"
                raise error(self.owner, expected, ", ".join(optimizer) or "none")
            made = {name: keras.optimizers.get(optimizer[name]) for name in self.players}
        else:
            first = keras.optimizers.get(optimizer)
            made = {name: type(first).from_config(first.get_config()) for name in self.players}
        return {name: with_loss_scale(each, self.players[name]) for name, each in made.items()}

    def call(self, inputs: Structure, training: bool | None = None) -> Any:
        """Return the outputs of ``student``."""
        return self.student(inputs, training=training)

    def train_step(self, data: Structure) -> dict[str, Any]:
        """Run all rounds of one step on one batch.

        Args:
            data: ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.

        Returns:
            The logs: name to value.
        """
        batch = Batch.of(data, self.student)
        self._advance_settings()
        measured: list[Measured] = []
        for each in self.rounds():
            for _ in range(each.times):
                last = self._play(each, batch)
            measured.append(last)
        self.after_update(self.optimizer.iterations)
        self._track(measured)
        return self._logs(batch, measured[0].outputs)

    def test_step(self, data: Structure) -> dict[str, Any]:
        """Evaluate one batch; changes nothing but the metrics.

        Args:
            data: ``x``, ``(x, y)`` or ``(x, y, sample_weight)``.

        Returns:
            The logs: name to value.
        """
        batch = Batch.of(data, self.student)
        measured = [each.measure(batch, False) for each in self.rounds()]
        self._track(measured)
        logs, scheduled = self._logs(batch, measured[0].outputs), self._scheduled()
        return {name: value for name, value in logs.items() if name not in scheduled}

    def _play(self, turn: Round, batch: Batch) -> Measured:
        learners = [self._learners[name] for name in turn.trains]
        states = [learner.moving_state() for learner in learners]
        with tf.GradientTape() as tape:
            measured = turn.measure(batch, True)
            share = replica_share(measured.outputs)
            total = ops.zeros((), "float32")
            for learner in learners:
                own = [ops.sum(ops.cast(loss, "float32")) for loss in learner.model.losses]
                loss = measured.losses[learner.name] * share + (sum(own) / num_replicas() if own else 0.0)
                total = total + ops.cast(learner.optimizer.scale_loss(loss), "float32")
        gradients = tape.gradient(total, [learner.weights for learner in learners])
        updates = [Update(*each) for each in zip(learners, gradients, states, strict=True)]
        if self.stop_on_non_finite:
            named = [*measured.watched, *measured.parts]
            named += [(f"the loss of {name}", measured.losses[name]) for name in turn.trains]
            self._guard.apply(named, updates)
        else:
            for update in updates:
                update.learner.update(update.gradients, xla=bool(self.jit_compile and not self.run_eagerly))
        return measured

    def _track(self, measured: Sequence[Measured]) -> None:
        parts = {name: value for each in measured for name, value in each.parts}
        total = sum(value for each in measured for value in each.losses.values())
        count = num_examples(measured[0].outputs)
        add_to_mean(self._loss_tracker, total, count)
        for tracker in self._part_trackers:
            add_to_mean(tracker, parts[tracker.name], count)

    def _logs(self, batch: Batch, outputs: Structure) -> dict[str, Any]:
        if batch.labels is None:
            return self._unlabelled_logs()
        return self.compute_metrics(batch.inputs, batch.labels, outputs, sample_weight=batch.weights)

    def _states_of_training(self) -> dict[str, Any]:
        return states_of_training([self], listeners(self._hidden.members))

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved regime was, with optimizers whose state can be loaded.

        Args:
            config: from ``get_compile_config``.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))

    def get_compile_config(self) -> dict[str, Any]:
        """Return what ``compile_from_config`` needs."""
        if not self.compiled:
            return {}
        serialize = keras.saving.serialize_keras_object
        optimizers = {name: serialize(learner.optimizer) for name, learner in self._learners.items()}
        names = ("loss", "metrics", "weighted_metrics", "run_eagerly", "steps_per_execution", "jit_compile")
        config = super().get_compile_config()
        own = {"optimizer": optimizers, "stop_on_non_finite": self.stop_on_non_finite}
        return {name: config[name] for name in names if name in config} | own
