"""Policies: gathering, learning and refused input, on real environments of gymnasium."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, LogitsDistillation, losses, regimes, teachers

gymnasium = pytest.importorskip("gymnasium")
from gymnasium import spaces  # noqa: E402


def balancing(states):
    """A teacher of CartPole-v1 that never falls."""
    push = 3 * states[:, 2] + states[:, 3] + 0.1 * states[:, 0] + 0.2 * states[:, 1]
    return np.stack([-push, push], 1)


def network(*units, inputs=4, seed=0):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(size, "relu") for size in units[:-1]]
    return keras.Sequential([keras.Input((inputs,)), *layers, keras.layers.Dense(units[-1])])


class Line(gymnasium.Env):
    """A point on a line that is rewarded for being near 0; options make it faulty."""

    def __init__(self, length=5, reward=None, action_space=None):
        self.observation_space = spaces.Box(-9, 9, (2,))
        self.action_space = action_space or spaces.Discrete(2)
        self.length, self.reward = length, reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.uniform(-1, 1)
        return self._state(), {}

    def _state(self):
        return np.float32([self.place, self.steps])

    def step(self, action):
        self.steps += 1
        self.place += np.sum(action) if isinstance(self.action_space, spaces.Box) else 0.5 * (2 * action - 1)
        reward = -abs(self.place) if self.reward is None else self.reward
        return self._state(), reward, self.steps >= self.length, False, {}


def lines(count=4, mode=gymnasium.vector.AutoresetMode.NEXT_STEP, **options):
    return gymnasium.vector.SyncVectorEnv([lambda: Line(**options)] * count, autoreset_mode=mode)


def home(states):
    return np.stack([states[:, 0], -states[:, 0]], 1)


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_a_buffer_contains_each_visited_state_once_with_the_teachers_values(mode):
    buffer = teachers.PolicyBuffer()
    mode = getattr(gymnasium.vector.AutoresetMode, mode)
    found = buffer.gather(lines(mode=mode), home, num_states=60, epsilon=0.0, seed=3)
    assert found["episodes"] == 12 and found["mean_length"] == 5
    assert len(buffer) == 60
    steps = buffer.states[:, 1]
    np.testing.assert_array_equal(np.bincount(steps.astype(int)), [12] * 5)  # never the state after the last step
    np.testing.assert_array_equal(buffer.values, home(buffer.states))
    # The teacher walks home: after two steps it is within one step of it.
    assert np.abs(buffer.states[steps >= 2, 0]).max() <= 0.5 + 1e-6


def test_dagger_follows_the_actor_and_labels_with_the_teacher():
    def away(states):
        return -home(states)

    buffer = teachers.PolicyBuffer()
    buffer.gather(lines(), home, actor=away, num_states=60, epsilon=0.0)
    last = buffer.states[buffer.states[:, 1] == 4]
    assert np.abs(last[:, 0]).min() >= 2.0 - 1e-6  # four steps of 0.5 away
    np.testing.assert_array_equal(buffer.values, home(buffer.states))
    random = teachers.PolicyBuffer()
    random.gather(lines(20), home, num_states=4000, epsilon=1.0)
    second = random.states[random.states[:, 1] == 1]
    assert 0.4 < np.mean(np.abs(second[:, 0]) > 0.5) < 0.6  # half the random steps lead away


def test_a_replay_buffer_on_disk_equals_one_in_memory_and_can_be_extended(tmp_path):
    memory, disk = teachers.PolicyBuffer(capacity=120), teachers.PolicyBuffer(tmp_path, capacity=120)
    for seed in range(4):
        for buffer in (memory, disk):
            buffer.gather(lines(), home, num_states=40, seed=seed)
    again = teachers.PolicyBuffer(tmp_path, capacity=120)
    for other in (disk, again):
        np.testing.assert_array_equal(other.states, memory.states)
        np.testing.assert_array_equal(other.values, memory.values)
    assert len(memory) == 120 and len(list(tmp_path.glob("*.npy"))) == 6
    for one, two in zip(memory.batches(32, seed=5), again.batches(32, seed=5), strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], home(one[0]))
    again.add(np.zeros((2, 2)), np.zeros((2, 2)))
    assert len(teachers.PolicyBuffer(tmp_path)) == 122
    next(iter(sorted(tmp_path.glob("values-*")))).write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"PolicyBuffer: expected a readable part 1 at"):
        teachers.PolicyBuffer(tmp_path)


def test_training_from_the_replay_buffer_equals_training_with_the_live_teacher():
    teacher = network(8, 2, seed=1)
    buffer = teachers.PolicyBuffer()
    buffer.gather(gymnasium.make_vec("CartPole-v1", 4), teacher, num_states=200)
    loss = losses.PolicyTargets(0.1)
    student, other = network(4, 2), network(4, 2)
    student.compile(keras.optimizers.SGD(0.1), loss=loss, jit_compile=False)
    student.fit(buffer.batches(50, seed=None), epochs=2, shuffle=False, verbose=0)
    distiller = Distiller(teacher, other, LogitsDistillation(loss=loss), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    labels = np.zeros((len(buffer), 1), "int32")
    distiller.fit(buffer.states, labels, batch_size=50, epochs=2, shuffle=False, verbose=0)
    for one, two in zip(student.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-6)


def test_a_student_learns_to_balance_and_its_return_is_that_of_single_episodes():
    student = network(8, 2)
    distiller = regimes.PolicyDistiller(balancing, student, "CartPole-v1", loss=losses.PolicyTargets(0.1))
    distiller.compile(keras.optimizers.Adam(0.02))
    history = distiller.fit(2, states_per_round=1500, epochs=3)
    assert history["states"][0] < history["states"][1] and history["loss"][1] < history["loss"][0]
    found = distiller.evaluate(episodes=8, seed=11)
    alone = []
    for episode in range(8):
        environment = gymnasium.make("CartPole-v1")
        state, total, done = environment.reset(seed=11 + episode)[0], 0.0, False
        while not done:
            action = int(np.argmax(student(state[None])))
            state, reward, terminated, truncated, _ = environment.step(action)
            total, done = total + reward, terminated or truncated
        alone.append(total)
    np.testing.assert_array_equal(found.returns, alone)
    assert found.mean == np.mean(alone) and found.low <= found.mean <= found.high
    assert found.mean > 400


def test_a_gaussian_policy_learns_means_and_spreads():
    box = spaces.Box(-1, 1, (1,))

    def teacher(states):
        return np.stack([-0.8 * states[:, 0], np.full(len(states), -1.0)], 1)

    student = network(2, inputs=2)
    distiller = regimes.PolicyDistiller(teacher, student, lines(action_space=box), epsilon=0.5)
    distiller.compile(keras.optimizers.Adam(0.05, beta_2=0.9))
    distiller.fit(3, states_per_round=300, epochs=20)
    states = distiller.buffers[0].states
    np.testing.assert_allclose(student.predict(states, verbose=0), teacher(states), atol=0.1)


def test_tasks_share_a_body_and_each_head_learns_from_its_own_teacher():
    inputs = keras.Input((4,))
    keras.utils.set_random_seed(0)
    body = keras.layers.Dense(16, "relu")(inputs)
    student = keras.Model(inputs, [keras.layers.Dense(2)(body), keras.layers.Dense(2)(body)])
    tasks = [balancing, home], ["CartPole-v1", lines()]
    distiller = regimes.PolicyDistiller(tasks[0], student, tasks[1], loss=losses.PolicyTargets(0.1))
    distiller.compile(keras.optimizers.Adam(0.02))
    distiller.fit(2, states_per_round=800, epochs=4)
    for buffer, teacher, policy in zip(distiller.buffers, tasks[0], distiller.policies, strict=True):
        states = buffer.states
        np.testing.assert_array_equal(buffer.values, teacher(states))
        assert np.mean(policy(states).argmax(-1) == teacher(states).argmax(-1)) > 0.9
    assert regimes.policy_return(distiller.policies[0], "CartPole-v1", episodes=5).mean > 100


def trained(tasks, student, rate, batch_size, seed=0):
    environments = [lines() for _ in tasks] if isinstance(tasks, list) else lines()
    loss = losses.PolicyTargets(0.5)
    distiller = regimes.PolicyDistiller(tasks, student, environments, loss=loss, actor="teacher", seed=seed)
    distiller.compile(keras.optimizers.SGD(rate), run_eagerly=True)
    distiller.fit(1, states_per_round=40, epochs=1, batch_size=batch_size)
    return student.get_weights()


def test_one_task_of_many_is_the_single_distiller_and_tasks_that_share_nothing_do_not_meet():
    def away(states):
        return -home(states)

    single = trained(home, network(4, 2, inputs=2, seed=1), 0.1, 16)
    other = trained(away, network(4, 2, inputs=2, seed=2), 0.1, 16, seed=1)
    body = network(4, 2, inputs=2, seed=1)
    listed = trained([home], keras.Model(body.inputs, [body.outputs[0]]), 0.1, 16)
    np.testing.assert_array_equal(
        np.concatenate([w.ravel() for w in listed]), np.concatenate([w.ravel() for w in single])
    )
    bodies = [network(4, 2, inputs=2, seed=seed) for seed in (1, 2)]
    inputs = keras.Input((2,))
    # A batch of 32 holds 16 states of each task, and its mean is over 32: twice the rate.
    together = trained([home, away], keras.Model(inputs, [each(inputs) for each in bodies]), 0.2, 32)
    for one, two in zip(together, [*single, *other], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: teachers.PolicyBuffer().gather(lines(reward=np.nan), home, num_states=9),
            "PolicyBuffer: expected finite rewards, got NaN or infinity.",
        ),
        (
            lambda: teachers.PolicyBuffer().gather(lines(length=1), home, num_states=99),
            "PolicyBuffer: expected episodes longer than one step, got 20 that end at once.",
        ),
        (
            lambda: teachers.PolicyBuffer().gather(lines(), lambda s: np.ones((len(s), 2)), num_states=9),
            "PolicyBuffer: expected a teacher whose values depend on the state, got the same values everywhere.",
        ),
        (
            lambda: teachers.PolicyBuffer().gather(lines(), lambda s: np.ones((len(s), 3)), num_states=9),
            "PolicyBuffer: expected 2 outputs of the teacher (one value per action), got (4, 3).",
        ),
        (lambda: teachers.PolicyBuffer().batches(), "PolicyBuffer: expected at least one gathered state"),
        (lambda: teachers.PolicyBuffer(capacity=0), "PolicyBuffer: expected capacity to be an integer >= 1, got 0."),
        (lambda: teachers.PolicyBuffer().gather(lines(), home, num_states=9, epsilon=2), "expected epsilon"),
        (
            lambda: regimes.policy_return(home, lines(length=1), episodes=4),
            "policy_return: expected episodes longer than one step, got 4 that end at once.",
        ),
        (
            lambda: regimes.policy_return(home, lines(reward=np.nan), episodes=4),
            "policy_return: expected finite rewards",
        ),
        (lambda: regimes.policy_return(home, lines(), episodes=5), "expected 5 environments, one for each episode"),
        (lambda: regimes.PolicyDistiller(home, network(3, inputs=2), lines()), "expected a student with 2 outputs"),
        (lambda: regimes.PolicyDistiller([home], network(2), [lines()] * 2), "as many teachers as environments"),
        (lambda: regimes.PolicyDistiller(home, network(2), lines(), actor="me"), "actor to be one of"),
    ],
)
def test_bad_input_raises_a_clear_error(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
