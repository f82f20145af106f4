"""Policy distillation: a student learns the teacher's values in states that the teacher or the student visits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_distill import losses as losses_room
from keras_distill._checks import choice, error, integer, number
from keras_distill.regimes._policy_return import PolicyReturn, environments_of, policy_return
from keras_distill.teachers import PolicyBuffer
from keras_distill.teachers._policy_buffer import action_values


class PolicyDistiller:
    """Distils policies in rounds: gathers states with the teacher's values and trains the student on all of them.

    With ``actor="student"`` the first round follows the teacher and the others follow the student, so that the teacher
    corrects the student's own mistakes (DAgger). ``actor="teacher"`` follows the teacher in every round. Several
    teachers, with one environment each, teach one student with several heads (multi-task policy distillation): its
    outputs are a list in the order of the teachers, and states shorter than its input are zero-padded.

    Args:
        teacher: a ``keras.Model`` or a function from states to action values or logits (discrete actions), or to means
            and log-variances side by side (a box of actions); or a list of these.
        student: a functional or sequential ``keras.Model`` with outputs of the same meaning.
        environment: a name such as ``"CartPole-v1"``, a ``gymnasium.vector.VectorEnv``, or a list of these.
        loss: loss between teacher and student, or a list; None uses ``losses.PolicyTargets()`` for discrete actions and
            ``losses.GaussianKL()`` for a box.
        actor: "student" or "teacher".
        epsilon: probability, in 0..1, of a random action while gathering.
        num_environments: >= 1, number of parallel environments for a name.
        path: a directory for the replay buffers (one folder per task); None keeps them in memory.
        capacity: >= 1, number of states to keep per task.
        seed: >= 0, seed of environments, actions and the order of batches.

    Attributes:
        buffers: the replay buffers of the tasks, a list of ``teachers.PolicyBuffer``.

    Raises:
        ValueError: if there are not as many environments as teachers and heads, or an option does not fit.

    Reference:
        Rusu et al., "Policy Distillation", ICLR 2016, arXiv:1511.06295; Ross, Gordon, Bagnell (DAgger), AISTATS 2011.
        Differs: tasks are mixed within a batch, not episode by episode.
    """

    def __init__(
        self,
        teacher: Any,
        student: keras.Model,
        environment: Any,
        *,
        loss: Any = None,
        actor: str = "student",
        epsilon: float = 0.05,
        num_environments: int = 8,
        path: Any = None,
        capacity: int = 1_000_000,
        seed: int = 0,
    ) -> None:
        owner = type(self).__name__
        self.teachers = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
        named = list(environment) if isinstance(environment, (list, tuple)) else [environment]
        if len(named) != len(self.teachers) or len(student.outputs) != len(self.teachers):
            got = f"{len(self.teachers)}, {len(named)} and {len(student.outputs)}"
            raise error(owner, "as many teachers as environments and heads of the student", got)
        self.student = student
        self.actor = choice(owner, "actor", actor, ("student", "teacher"))
        self.epsilon = number(owner, "epsilon", epsilon, low=0.0, high=1.0)
        self.seed = integer(owner, "seed", seed, low=0)
        count = integer(owner, "num_environments", num_environments, low=1)
        self.environments = [environments_of(owner, each, count) for each in named]
        given: Sequence[Any] = loss if isinstance(loss, (list, tuple)) else [loss] * len(named)
        self.losses = [
            each if each is not None else _usual_loss(environments.single_action_space)
            for each, environments in zip(given, self.environments, strict=True)
        ]
        folders = [None if path is None else f"{path}/{index}" for index in range(len(named))]
        self.buffers = [PolicyBuffer(folder, capacity=capacity) for folder in folders]
        self.policies = [self._head(index) for index in range(len(named))]
        self._rounds = 0
        for environments, head in zip(self.environments, student.outputs, strict=True):
            space = environments.single_action_space
            wanted = int(space.n) if hasattr(space, "n") else 2 * math.prod(space.shape)
            if head.shape[-1] != wanted:
                raise error(owner, f"a student with {wanted} outputs for {space}", head.shape[-1])

    def _head(self, index: int) -> Any:
        """Return the student's policy for one task, as a function of that task's states."""
        if len(self.student.outputs) == 1:
            return self.student
        acts = action_values(keras.Model(self.student.inputs, self.student.outputs[index]))
        return lambda states: acts(self._padded(states))

    def _padded(self, states: np.ndarray) -> np.ndarray:
        width = self.student.inputs[0].shape[-1]
        if states.shape[-1] > width:
            advice = "Give the student an input as wide as the widest task's state"
            raise error(type(self).__name__, f"states of at most {width} numbers", states.shape[-1], advice)
        return np.pad(states, [(0, 0)] * (states.ndim - 1) + [(0, width - states.shape[-1])])

    def compile(self, optimizer: Any = "adam", **kwargs: Any) -> None:
        """Set the optimizer; ``fit`` makes a new one if this is not called.

        Args:
            optimizer: as in ``keras.Model.compile``.
            **kwargs: as in ``keras.Model.compile``, except ``loss``.
        """
        self.student.compile(optimizer, loss=self.losses if len(self.losses) > 1 else self.losses[0], **kwargs)

    def fit(
        self,
        rounds: int = 5,
        *,
        states_per_round: int = 2000,
        epochs: int = 5,
        batch_size: int = 64,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int = 0,
    ) -> dict[str, list[float]]:
        """Gather and train, round by round; call it again to continue.

        Args:
            rounds: >= 1.
            states_per_round: >= 1, states gathered per round and task.
            epochs: >= 1, passes over the whole buffer in each round.
            batch_size: >= 1.
            callbacks: as in ``keras.Model.fit``, for every round.
            verbose: as in ``keras.Model.fit``.

        Returns:
            One number per round: "loss" at its end, "states" in the buffer, and "mean_return" of the episodes that
            ended while gathering (by the actor, with its random actions), averaged over tasks.

        Raises:
            ValueError: as ``teachers.PolicyBuffer.gather`` does.
        """
        owner = type(self).__name__
        for name, value in (("rounds", rounds), ("states_per_round", states_per_round), ("epochs", epochs)):
            integer(owner, name, value, low=1)
        if not self.student.compiled:
            self.compile()
        history: dict[str, list[float]] = {"loss": [], "states": [], "mean_return": []}
        for _ in range(rounds):
            found = [self._gather(index, states_per_round) for index in range(len(self.buffers))]
            batches = self._batches(batch_size)
            result = self.student.fit(batches, epochs=epochs, shuffle=False, callbacks=list(callbacks), verbose=verbose)
            self._rounds += 1
            history["loss"].append(float(result.history["loss"][-1]))
            history["states"].append(float(sum(len(buffer) for buffer in self.buffers)))
            history["mean_return"].append(float(np.mean([each["mean_return"] for each in found])))
        return history

    def _gather(self, index: int, num_states: int) -> dict[str, float]:
        follows_student = self.actor == "student" and len(self.buffers[index]) > 0
        return self.buffers[index].gather(
            self.environments[index],
            self.teachers[index],
            num_states=num_states,
            actor=self.policies[index] if follows_student else None,
            epsilon=self.epsilon,
            seed=self.seed + 1000 * self._rounds + index,
        )

    def _batches(self, batch_size: int) -> Any:
        seed = self.seed + self._rounds
        if len(self.buffers) == 1:
            return self.buffers[0].batches(batch_size, seed=seed)
        return _Mixed(self.buffers, self._padded, batch_size, seed)

    def evaluate(self, episodes: int = 100, *, environment: Any = None, seed: int = 1_000_000) -> PolicyReturn:
        """Run the student greedily in seeded episodes of its only task; see ``policy_return``.

        Args:
            episodes: >= 2.
            environment: a name; None takes that of the environments used for gathering.
            seed: >= 0, of the first episode.

        Returns:
            A ``PolicyReturn``.

        Raises:
            ValueError: if there are several tasks, or the environment has no name.
        """
        if len(self.policies) > 1:
            advice = "Call regimes.policy_return(distiller.policies[i], name)"
            raise error(type(self).__name__, "one task", len(self.policies), advice)
        spec = getattr(self.environments[0], "spec", None)
        name = environment if environment is not None else getattr(spec, "id", None)
        if name is None:
            raise error(type(self).__name__, "environment, a name", "None", "These environments have none")
        return policy_return(self.policies[0], name, episodes=episodes, seed=seed)


def _usual_loss(space: Any) -> keras.losses.Loss:
    return losses_room.PolicyTargets() if hasattr(space, "n") else losses_room.GaussianKL()


class _Mixed(keras.utils.PyDataset):
    """Batches with equal shares of all tasks; each head counts only on the states of its own task."""

    def __init__(self, buffers: list[PolicyBuffer], padded: Any, batch_size: int, seed: int) -> None:
        super().__init__()
        share = max(1, batch_size // len(buffers))
        self._tasks = [buffer.batches(share, seed=seed + index) for index, buffer in enumerate(buffers)]
        self._padded = padded

    def __len__(self) -> int:
        return min(len(task) for task in self._tasks)

    def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
        parts = [task[index] for task in self._tasks]
        states = np.concatenate([self._padded(states) for states, _ in parts])
        values, weights, start = [], [], 0
        for _, known in parts:
            whole, weight = np.zeros((len(states), known.shape[1]), "float32"), np.zeros(len(states), "float32")
            whole[start : start + len(known)], weight[start : start + len(known)] = known, 1.0
            values.append(whole)
            weights.append(weight)
            start += len(known)
        return states, tuple(values), tuple(weights)

    def on_epoch_end(self) -> None:
        """Draw the order of the next epoch in every task."""
        for task in self._tasks:
            task.on_epoch_end()
