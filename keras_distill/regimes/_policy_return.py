"""The return of a policy in seeded, greedy episodes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from keras_distill._checks import error, integer, optional
from keras_distill.teachers._policy_buffer import action_values, choose_actions


class PolicyReturn(NamedTuple):
    """Returns of seeded episodes.

    Attributes:
        mean: mean of the returns.
        low: lower end of the 95% interval of the mean (normal approximation).
        high: upper end of that interval.
        returns: (episodes,), in the order of the seeds.
    """

    mean: float
    low: float
    high: float
    returns: np.ndarray


def environments_of(owner: str, environment: Any, count: int) -> Any:
    """Return vectorised environments: those given, or ``count`` environments of a name, in this process.

    Args:
        owner: name shown in the error message.
        environment: a ``gymnasium.vector.VectorEnv``, or a name.
        count: >= 1, number of environments for a name.
    """
    if not isinstance(environment, str):
        return environment
    with optional(owner, "gymnasium", "policies"):
        import gymnasium
    return gymnasium.make_vec(environment, num_envs=count, vectorization_mode="sync")


def policy_return(
    policy: Any, environment: Any, *, episodes: int = 100, seed: int = 0, max_steps: int = 10_000
) -> PolicyReturn:
    """Run seeded episodes greedily, and return their returns with a confidence interval.

    Episode i starts from seed + i for every policy, so that policies face the same initial states.

    Args:
        policy: a ``keras.Model`` or a function from states to action values, logits, or means and log-variances.
        environment: a name such as ``"CartPole-v1"``, or a ``gymnasium.vector.VectorEnv`` with one environment for
            each episode.
        episodes: >= 2.
        seed: >= 0, of the first episode.
        max_steps: >= 1, number of steps after which an episode counts as ended.

    Returns:
        A ``PolicyReturn``.

    Raises:
        ValueError: if a reward is NaN, every episode ends at its first step, or an argument does not fit.
    """
    owner = "policy_return"
    episodes = integer(owner, "episodes", episodes, low=2)
    environments = environments_of(owner, environment, episodes)
    if environments.num_envs != episodes:
        advice = "Give the environment's name, or make_vec(name, num_envs=episodes)"
        raise error(owner, f"{episodes} environments, one for each episode", environments.num_envs, advice)
    acts, rng = action_values(policy), np.random.default_rng(seed)
    states, _ = environments.reset(seed=[integer(owner, "seed", seed, low=0) + i for i in range(episodes)])
    returns, running, steps = np.zeros(episodes), np.ones(episodes, bool), 0
    while running.any() and steps < integer(owner, "max_steps", max_steps, low=1):
        actions = choose_actions(acts(states), environments.single_action_space, epsilon=0.0, rng=rng)
        states, rewards, terminated, truncated, _ = environments.step(actions)
        if not np.isfinite(np.asarray(rewards, "float64")[running]).all():
            raise error(owner, "finite rewards", "NaN or infinity", "Fix the environment: returns are undefined")
        returns += np.where(running, rewards, 0.0)
        running &= ~np.logical_or(terminated, truncated)
        steps += 1
        if steps == 1 and not running.any():
            advice = "Check the environment's reset and step"
            raise error(owner, "episodes longer than one step", f"{episodes} that end at once", advice)
    if isinstance(environment, str):
        environments.close()
    half = 1.96 * returns.std(ddof=1) / math.sqrt(episodes)
    return PolicyReturn(float(returns.mean()), float(returns.mean() - half), float(returns.mean() + half), returns)
