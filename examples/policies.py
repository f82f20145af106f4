"""Distil a deep Q-network into a student with a fraction of its parameters (policy distillation, DAgger).

The teacher is a short double DQN. The student never sees a reward: it learns the teacher's values in the states that
the teacher visits, then in those that it visits itself. Run (2 minutes on one core; ``--smoke``: less than one):
``python examples/policies.py``; ``--environment Acrobot-v1`` for another one. Needs ``keras-distill[policies]``. Return
over 100 episodes of CartPole-v1 (500 is the most), one seed, 2026-11-29: teacher 500; student of 1.1 % of its
parameters 500 from the teacher's states and 500 from its own.
"""

import argparse
import json
import pathlib

import gymnasium
import keras
import numpy as np
import tensorflow as tf

from keras_distill import losses, regimes


def network(inputs: int, units: int, actions: int) -> keras.Model:
    """Two hidden layers."""
    layers = [keras.layers.Dense(units, "relu") for _ in range(2)]
    return keras.Sequential([keras.Input((inputs,)), *layers, keras.layers.Dense(actions)])


def train_dqn(
    name: str, steps: int, seed: int = 0, units: int = 256, *, rate: float = 1e-3, batch: int = 128
) -> keras.Model:
    """Train a double DQN in 8 parallel environments; keep the weights with the best return.

    Every 256 steps, 128 batches are learned with a fixed target network, as one compiled function: the schedule that RL
    Baselines3 Zoo uses for CartPole.

    Args:
        name: of an environment with discrete actions.
        steps: in all environments together.
        seed: of weights, environments and exploration.
        units: of each hidden layer.
        rate: of Adam.
        batch: transitions in a batch.

    Returns:
        The Q-network.
    """
    keras.utils.set_random_seed(seed)
    envs = gymnasium.make_vec(name, num_envs=8, vectorization_mode="sync")
    rng, size = np.random.default_rng(seed), envs.single_observation_space.shape[0]
    q, target = (network(size, units, int(envs.single_action_space.n)) for _ in range(2))
    target.set_weights(q.get_weights())
    optimizer = keras.optimizers.Adam(rate, clipnorm=10.0)
    optimizer.build(q.trainable_variables)

    @tf.function
    def values(states):
        return q(states)

    @tf.function(jit_compile=True)
    def learn(*batches):
        for i in tf.range(128):
            states, actions, rewards, after, ended = (each[i] for each in batches)
            best = tf.argmax(q(after), axis=1)
            later = tf.gather(target(after), best, axis=1, batch_dims=1)
            wanted = rewards + 0.99 * (1.0 - ended) * later
            with tf.GradientTape() as tape:
                gap = tf.abs(tf.gather(q(states), actions, axis=1, batch_dims=1) - wanted)
                loss = tf.reduce_mean(tf.where(gap < 1.0, 0.5 * gap**2, gap - 0.5))
            slopes = tape.gradient(loss, q.trainable_variables)
            optimizer.apply_gradients(zip(slopes, q.trainable_variables, strict=True))

    capacity = 100_000
    kinds = ((size,), "float32"), ((), "int64"), ((), "float32"), ((size,), "float32"), ((), "float32")
    memory = [np.zeros((capacity, *shape), kind) for shape, kind in kinds]
    filled, best_return, best_weights = 0, -np.inf, q.get_weights()
    states, _ = envs.reset(seed=seed)
    reset_next = np.zeros(8, bool)
    for step in range(steps // 8):
        epsilon = max(0.05, 1.0 - 6.0 * step * 8 / steps)
        greedy = values(tf.constant(states, "float32")).numpy().argmax(1)
        actions = np.where(rng.random(8) < epsilon, rng.integers(0, envs.single_action_space.n, 8), greedy)
        after, rewards, terminated, truncated, _ = envs.step(actions)
        for i in np.flatnonzero(~reset_next):  # the step after the end of an episode only resets
            for store, entry in zip(memory, (states[i], actions[i], rewards[i], after[i], terminated[i]), strict=True):
                store[filled % capacity] = entry
            filled += 1
        states, reset_next = after, np.logical_or(terminated, truncated)
        if filled >= 1000 and step % 32 == 31:
            rows = rng.integers(0, min(filled, capacity), (128, batch))
            learn(*(tf.constant(store[rows]) for store in memory))
            target.set_weights(q.get_weights())
        if step % max(32, steps // 320) == 31 and epsilon < 0.5:  # 20 episodes that are not used to evaluate students
            found = regimes.policy_return(q, name, episodes=20, seed=5000).mean
            if found >= best_return:
                best_return, best_weights = found, q.get_weights()
                print(f"step {8 * step}: {found:.1f}", flush=True)
    q.set_weights(best_weights)
    return q


def main() -> None:
    """Train the teacher, distil it in two ways, compare the returns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--environment", default="CartPole-v1")
    parser.add_argument("--out", type=pathlib.Path, help="also write the returns here, as JSON")
    options = parser.parse_args()
    steps, rounds, states, episodes = (1280, 2, 320, 4) if options.smoke else (50_000, 5, 2000, 100)
    teacher = train_dqn(options.environment, steps, rate=2.3e-3, batch=64)
    size, actions = teacher.input_shape[1], teacher.output_shape[1]
    returns = {"teacher": regimes.policy_return(teacher, options.environment, episodes=episodes, seed=10_000)}
    print(f"teacher   {teacher.count_params():6d} parameters: {returns['teacher'].mean:7.1f}", flush=True)
    for actor in ("teacher", "student"):
        keras.utils.set_random_seed(1)
        student = network(size, 24, actions)
        distiller = regimes.PolicyDistiller(
            teacher, student, options.environment, loss=losses.PolicyTargets(0.1), actor=actor
        )
        distiller.compile(keras.optimizers.Adam(3e-3))
        distiller.fit(rounds, states_per_round=states, epochs=4)
        found = distiller.evaluate(episodes, seed=10_000)
        returns[f"states of the {actor}"] = found
        print(f"student   {student.count_params():6d} parameters, states of the {actor}: {found.mean:7.1f} "
              f"[{found.low:.1f}, {found.high:.1f}]", flush=True)  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps({name: list(found[:3]) for name, found in returns.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
