"""States that a policy has visited, with the teacher's values there, in memory or on disk."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill import _files
from keras_distill._checks import error, integer, number

_OWNER = "PolicyBuffer"


def action_values(policy: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return a policy as a function of arrays: a Keras model is traced once, any other callable is used as it is.

    Args:
        policy: a ``keras.Model``, or a function from (environments, ...) states to (environments, outputs).

    Returns:
        The function; float32 arrays in and out.
    """
    if isinstance(policy, keras.Model):
        traced = tf.function(lambda states: policy(states, training=False), reduce_retracing=True)
        return lambda states: traced(tf.convert_to_tensor(states, "float32")).numpy().astype("float32")
    return lambda states: np.asarray(policy(states), "float32")


def choose_actions(values: np.ndarray, space: Any, *, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Return one action per environment: greedy, or a random one with probability ``epsilon``.

    Args:
        values: (environments, outputs): action values or logits; for a box of actions, means followed by log-variances.
        space: the action space of one environment (``gymnasium.spaces``): discrete, or a box.
        epsilon: in 0..1; for a box the probability with which an action is drawn from the policy's Gaussian.
        rng: source of randomness.

    Returns:
        (environments,) integers, or (environments, dimensions) float32 within the box.
    """
    explores = rng.random(len(values)) < epsilon
    if hasattr(space, "n"):
        return np.where(explores, rng.integers(0, space.n, len(values)), values.argmax(-1))
    size = math.prod(space.shape)
    mean, spread = values[:, :size], np.exp(0.5 * values[:, size : 2 * size])
    drawn = mean + explores[:, None] * spread * rng.normal(size=mean.shape)
    return np.clip(drawn.reshape(-1, *space.shape), space.low, space.high).astype(space.dtype)


class PolicyBuffer:
    """Replay buffer of a teacher: visited states and the teacher's values there, gathered in vectorised environments.

    ``gather`` follows the teacher (epsilon-greedy) or any other policy, such as the student (DAgger), and always
    records the teacher's values. With a path, every call writes one pair of ``.npy`` files, which are memory-mapped:
    the buffer may be larger than memory, survives a kill, and resumes where it stopped.

    Args:
        path: a directory, created if missing; None keeps everything in memory.
        capacity: >= 1, number of states to keep; beyond it, the oldest calls of ``gather`` are dropped.

    Raises:
        ValueError: if capacity is below 1, path cannot be written to, or the files there do not fit each other.

    Example:
        >>> buffer = PolicyBuffer()
        >>> buffer.add(np.zeros((5, 4)), np.eye(5, 2))
        >>> len(buffer), buffer.states.shape, buffer.values.shape
        (5, (5, 4), (5, 2))

    Reference:
        Rusu et al., "Policy Distillation", ICLR 2016, arXiv:1511.06295, section 3; Ross, Gordon, Bagnell, "A Reduction
        of Imitation Learning and Structured Prediction to No-Regret Online Learning" (DAgger), AISTATS 2011.
        Differs: the size is counted in states, not in hours of play.
    """

    def __init__(self, path: str | os.PathLike | None = None, *, capacity: int = 1_000_000) -> None:
        self.capacity = integer(_OWNER, "capacity", capacity, low=1)
        self.path = None if path is None else Path(path)
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._numbers: list[int] = []
        if self.path is not None:
            try:
                _files.make_folder(self.path, parents=True, exist_ok=True)
            except OSError as problem:
                advice = "Give a directory that you may write to"
                raise error(_OWNER, f"to write into {self.path}", str(problem), advice) from problem
            for file in sorted(self.path.glob("values-*.npy")):
                part = int(file.stem.split("-")[1])
                self._open(part)

    def _files(self, part: int) -> tuple[Path, Path]:
        folder = self.path or Path()
        return folder / f"states-{part:06d}.npy", folder / f"values-{part:06d}.npy"

    def _open(self, part: int) -> None:
        try:
            states, values = (np.load(file, mmap_mode="r", allow_pickle=False) for file in self._files(part))
        except (OSError, ValueError) as problem:
            advice = "Delete the files of this number, or gather into an empty directory"
            raise error(_OWNER, f"a readable part {part} at {self.path}", str(problem), advice) from None
        self._check(states, values)
        self._parts.append((states, values))
        self._numbers.append(part)

    def _check(self, states: np.ndarray, values: np.ndarray) -> None:
        if states.ndim < 2 or values.ndim != 2 or len(states) != len(values):
            got = f"{states.shape} and {values.shape}"
            raise error(_OWNER, "states (examples, ...) and values (examples, outputs) of equal length", got)
        if self._parts:
            known = self._parts[0][0].shape[1:], self._parts[0][1].shape[1:]
            if (states.shape[1:], values.shape[1:]) != known:
                got = f"{states.shape[1:]} and {values.shape[1:]}"
                raise error(
                    _OWNER, f"states and values of shapes {known[0]} and {known[1]}", got, "Use one buffer each"
                )

    def __len__(self) -> int:
        return sum(len(values) for _, values in self._parts)

    @property
    def states(self) -> np.ndarray:
        """All states, (examples, ...), float32; a copy in memory if the buffer is on disk."""
        self._check_filled()
        return np.concatenate([states for states, _ in self._parts])

    @property
    def values(self) -> np.ndarray:
        """The teacher's values, (examples, outputs), float32; a copy in memory if the buffer is on disk."""
        self._check_filled()
        return np.concatenate([values for _, values in self._parts])

    def _check_filled(self) -> None:
        if not self._parts:
            raise error(_OWNER, "at least one gathered state", "an empty buffer", "Call gather() or add() first")

    def add(self, states: Any, values: Any) -> None:
        """Append states with the teacher's values; drop the oldest parts beyond the capacity.

        Args:
            states: (examples, ...), finite.
            values: (examples, outputs), finite.

        Raises:
            ValueError: if the shapes do not fit, or a number is not finite.
        """
        states, values = np.asarray(states, "float32"), np.asarray(values, "float32")
        self._check(states, values)
        for name, array in (("states", states), ("teacher's values", values)):
            if not np.isfinite(array).all():
                raise error(_OWNER, f"finite {name}", "NaN or infinity")
        if self.path is None:
            self._parts.append((states, values))
            self._numbers.append(len(self._numbers))
        else:
            part = self._numbers[-1] + 1 if self._numbers else 0
            for file, array in zip(self._files(part), (states, values), strict=True):  # values last: part complete
                content = io.BytesIO()
                np.save(content, array)
                try:
                    _files.put(file, content.getvalue())
                except OSError as problem:
                    raise error(_OWNER, f"to write {file}", str(problem), "Free disk space; gather again") from problem
            self._open(part)
        while len(self._parts) > 1 and len(self) - len(self._parts[0][0]) >= self.capacity:
            self._parts.pop(0)
            oldest = self._numbers.pop(0)
            if self.path is not None:
                for file in reversed(self._files(oldest)):
                    _files.remove(file)

    def gather(
        self,
        environments: Any,
        teacher: Any,
        *,
        num_states: int,
        actor: Any = None,
        epsilon: float = 0.05,
        seed: int = 0,
    ) -> dict[str, float]:
        """Act in vectorised environments and record every state with the teacher's values.

        Args:
            environments: a ``gymnasium.vector.VectorEnv``, such as ``gymnasium.make_vec("CartPole-v1", 8)``.
            teacher: a ``keras.Model`` or a function from states to action values or logits (discrete actions), or to
                means and log-variances side by side (a box).
            num_states: >= 1, number of states to add; rounded up to whole steps of all environments.
            actor: the policy that acts; None uses the teacher. With the student this is DAgger.
            epsilon: probability, in 0..1, of a random action instead of the actor's.
            seed: >= 0, seed of the environments and of the random actions.

        Returns:
            "states", "episodes", "mean_return" and "mean_length" of the episodes that ended; NaN where none did.

        Raises:
            ValueError: if a reward is NaN, all episodes end at their first step, the teacher gives the same values
                everywhere, or its outputs do not fit the actions.
        """
        integer(_OWNER, "num_states", num_states, low=1)
        number(_OWNER, "epsilon", epsilon, low=0.0, high=1.0)
        space, rng = environments.single_action_space, np.random.default_rng(seed)
        told = action_values(teacher)
        acts = told if actor is None or actor is teacher else action_values(actor)
        states, _ = environments.reset(seed=integer(_OWNER, "seed", seed, low=0))
        count = len(states)
        resets_at_once = str(environments.metadata.get("autoreset_mode")).endswith("SAME_STEP")
        ended = np.zeros(count, bool)  # by the last step: the next step resets, ignoring the action
        lengths, rewards_so_far = np.zeros(count, int), np.zeros(count)
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        episodes: list[tuple[float, int]] = []
        total = 0
        while total < num_states:
            values = told(states)
            _check_outputs(values, space)
            decided = values if acts is told else acts(states)
            alive = ~ended
            kept.append((np.array(states[alive], "float32"), values[alive]))
            total += int(alive.sum())
            actions = choose_actions(decided, space, epsilon=epsilon, rng=rng)
            states, rewards, terminated, truncated, _ = environments.step(actions)
            if not np.isfinite(np.asarray(rewards, "float64")).all():
                advice = "Fix the environment: returns are undefined"
                raise error(_OWNER, "finite rewards", "NaN or infinity", advice)
            lengths += alive
            rewards_so_far += np.where(alive, rewards, 0.0)
            ended = np.logical_or(terminated, truncated)
            episodes += [(float(rewards_so_far[i]), int(lengths[i])) for i in np.flatnonzero(ended)]
            lengths[ended], rewards_so_far[ended] = 0, 0.0
            if resets_at_once:
                ended = np.zeros(count, bool)
            if len(episodes) >= 20 and max(length for _, length in episodes) <= 1:
                advice = "Check the environment's reset and step"
                raise error(_OWNER, "episodes longer than one step", f"{len(episodes)} that end at once", advice)
        new_states, new_values = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        if len(new_values) > 1 and np.ptp(new_values, axis=0).max() == 0.0 and np.ptp(new_states, axis=0).max() > 0.0:
            advice = "Nothing can be learned from it: check its weights and inputs"
            raise error(_OWNER, "a teacher whose values depend on the state", "the same values everywhere", advice)
        self.add(new_states, new_values)
        means = np.mean(episodes, axis=0) if episodes else (math.nan, math.nan)
        return {
            "states": float(len(new_states)),
            "episodes": float(len(episodes)),
            "mean_return": float(means[0]),
            "mean_length": float(means[1]),
        }

    def batches(self, batch_size: int = 64, *, seed: int | None = 0) -> keras.utils.PyDataset:
        """Return batches (states, teacher's values) for ``fit``, with ``PolicyTargets`` as a Keras loss.

        Args:
            batch_size: >= 1; the last batch of an epoch may be smaller.
            seed: seed of the order, which is new in each epoch; None keeps the order of gathering.

        Returns:
            A ``keras.utils.PyDataset``; states are read from disk on demand.

        Raises:
            ValueError: if the buffer is empty or batch_size is below 1.
        """
        self._check_filled()
        return _Batches(list(self._parts), integer(_OWNER, "batch_size", batch_size, low=1), seed)


def _check_outputs(values: np.ndarray, space: Any) -> None:
    expected = int(space.n) if hasattr(space, "n") else 2 * math.prod(space.shape)
    if values.ndim != 2 or values.shape[1] != expected:
        kind = "one value per action" if hasattr(space, "n") else "a mean and a log-variance per dimension"
        raise error(_OWNER, f"{expected} outputs of the teacher ({kind})", values.shape)
    if not np.isfinite(values).all():
        raise error(_OWNER, "finite values of the teacher", "NaN or infinity", "Check its weights and inputs")


class _Batches(keras.utils.PyDataset):
    """Batches of several parts in one random order per epoch."""

    def __init__(self, parts: list[tuple[np.ndarray, np.ndarray]], batch_size: int, seed: int | None) -> None:
        super().__init__()
        self._parts, self._batch_size = parts, batch_size
        self._starts = np.cumsum([0] + [len(values) for _, values in parts])
        self._rng = None if seed is None else np.random.default_rng(seed)
        self._order = np.arange(self._starts[-1])
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        wanted = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        part = np.searchsorted(self._starts, wanted, side="right") - 1
        both = [np.empty((len(wanted), *array.shape[1:]), "float32") for array in self._parts[0]]
        for each in np.unique(part):
            here = part == each
            for out, array in zip(both, self._parts[each], strict=True):
                out[here] = array[wanted[here] - self._starts[each]]
        return both[0], both[1]

    def on_epoch_end(self) -> None:
        """Draw a new order for the next epoch."""
        if self._rng is not None:
            self._order = self._rng.permutation(self._starts[-1])
