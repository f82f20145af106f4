"""Distil a CartPole policy from a network into a decision tree with a few thresholds.

Run: python examples/cartpole_tree.py  (10 CPU seconds; --smoke: fewer episodes)

The teacher is a small network trained by the cross-entropy method. The tree is fitted to the teacher's actions in the
states that the tree itself visits (VIPER's loop: act, label with the teacher, fit again). Needs gymnasium.

On 2 cores, 2026-11-29, one seed, 30 episodes that nobody trained on (target: 95% of the teacher at depth <= 4):

    depth 1,  2 leaves: return 157.3 of 500.0, 31%
    depth 2,  4 leaves: return 492.6 of 500.0, 99%

    Bastani, Pu, Solar-Lezama, "Verifiable Reinforcement Learning via Policy Extraction", NeurIPS 2018, arXiv:1805.08328
"""

import argparse

import gymnasium
import keras
import numpy as np

from keras_distill import explain

COLUMNS = ["position", "speed", "angle", "turn"]


def policy(weights: np.ndarray) -> keras.Model:
    """One hidden layer of eight tanh units; the logits of left and right."""
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2, use_bias=False)]
    )
    model.set_weights([weights[:32].reshape(4, 8), weights[32:40], weights[40:].reshape(8, 2)])
    return model


def fast(weights: np.ndarray):
    """The same policy in NumPy, for acting in the environment."""
    first, bias, second = weights[:32].reshape(4, 8), weights[32:40], weights[40:].reshape(8, 2)
    return lambda state: int(np.argmax(np.tanh(state @ first + bias) @ second))


def play(act, episodes: int, seed: int) -> tuple[float, np.ndarray]:
    """Return the mean return and the visited states."""
    environment = gymnasium.make("CartPole-v1")
    states, total = [], 0.0
    for episode in range(episodes):
        state, _ = environment.reset(seed=seed + episode)
        done = False
        while not done:
            states.append(state)
            state, reward, ended, cut, _ = environment.step(act(state))
            total += reward
            done = ended or cut
    return total / episodes, np.array(states, "float32")


def as_function(made: explain.Surrogate):
    """The surrogate's plain Python code, compiled: a thousand times as fast as a model on one row."""
    scope: dict = {}
    exec(made.to_code("act"), scope)
    return scope["act"]


def teacher_weights(rounds: int, crowd: int, rng: np.random.Generator) -> np.ndarray:
    """Cross-entropy method: sample policies, keep the best fifth, sample near them."""
    mean, spread = np.zeros(56), np.ones(56)
    for round_ in range(rounds):
        tries = mean + spread * rng.standard_normal((crowd, 56))
        returns = [play(fast(each), 2, 1000 * round_)[0] for each in tries]
        best = tries[np.argsort(returns)[-crowd // 5 :]]
        mean, spread = best.mean(0), best.std(0) + 0.1 / (1 + round_)
        if np.mean(np.sort(returns)[-crowd // 5 :]) >= 500 and round_ >= rounds // 2:
            break
    return mean


def main() -> None:
    """Train the teacher, then the tree, and compare their returns on unseen episodes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="fewer episodes")
    smoke = parser.parse_args().smoke
    rounds, crowd, test_episodes = (8, 20, 5) if smoke else (15, 40, 30)
    weights = teacher_weights(rounds, crowd, np.random.default_rng(0))
    teacher = policy(weights)
    earned, states = play(fast(weights), 5, 50_000)

    for depth in (1, 2, 3, 4):
        seen, best = states, (-1.0, None)
        for round_ in range(4 if smoke else 12):  # the teacher also labels the states that the tree visits
            made = explain.surrogate(teacher, seen, "tree", max_depth=depth, feature_names=COLUMNS, class_names="LR")
            reward, visited = play(as_function(made), 5, 60_000 + 10 * round_)
            seen = np.concatenate([seen, visited])
            best = max(best, (reward, made), key=lambda pair: pair[0])  # chosen on training episodes
        made = best[1]
        reward, most = (play(each, test_episodes, 90_000)[0] for each in (as_function(made), fast(weights)))
        print(f"depth {depth}, {made.size:2d} leaves: return {reward:.1f} of {most:.1f}", end=", ")
        print(f"{100 * reward / most:.0f}%; agrees on {100 * made.fidelity.value:.1f}% of held-out states")
        if reward >= 0.95 * most:
            break
    print(f"the teacher's own states: return {earned:.1f}")
    print(*made.rules(), sep="\n")
    print("\n" + made.to_code("act"))


if __name__ == "__main__":
    main()
