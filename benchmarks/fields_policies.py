"""Do small policies keep a teacher's return? A double DQN distilled into a tenth and a fiftieth of its parameters.

The teacher is the DQN of ``examples/policies.py``; its best weights are selected on twenty separate episodes. Students
learn its values at the same states, with KL, NLL or squared error; at a fiftieth of the parameters from the teacher's
states or from their own (DAgger); one body with a head for each environment learns from all teachers, and a soft tree
of depth 3 is an interpretable policy. Returns are means over 100 seeded episodes not used in training, the same for
every policy. The temperature of KL is a tenth of the mean gap between the teacher's best and worst action. The quick
version trains briefly and only checks that everything runs.
"""

from __future__ import annotations

import runpy
from typing import Any

from benchmarks import _harness, _resume

# isort: split
import gymnasium
import keras
import numpy as np

from keras_distill import losses, regimes, students, teachers

# Steps, learning rate and batch of each teacher: the settings of RL Baselines3 Zoo, with fewer updates per step.
TEACHERS = {
    "CartPole-v1": (50_000, 2.3e-3, 64),
    "Acrobot-v1": (60_000, 1e-3, 128),
    "LunarLander-v3": (150_000, 6.3e-4, 128),
}
ROUNDS = {True: (4, 4000), False: (1, 1000)}  # with states gathered in each
CLAIM = (
    "A student with a tenth of the parameters keeps 95 % of the return; KL >= NLL >= MSE; DAgger >= the teacher's "
    "states."
)


def student_of(teacher: keras.Model, share: float) -> keras.Model:
    """Two hidden layers, with the largest width within this fraction of the teacher's parameters."""
    inputs, outputs = teacher.input_shape[1], teacher.output_shape[1]
    width = max(w for w in range(2, 129) if w * (inputs + w + outputs + 2) + outputs <= share * teacher.count_params())
    layers = [keras.layers.Dense(width, "relu"), keras.layers.Dense(width, "relu"), keras.layers.Dense(outputs)]
    return keras.Sequential([keras.Input((inputs,)), *layers])


def tree_of(teacher: keras.Model) -> keras.Model:
    """A soft tree of depth 3, with seven linear decisions."""
    tree = students.SoftDecisionTree(3, teacher.output_shape[1], loss="mixture")
    return keras.Sequential([keras.Input(teacher.input_shape[1:]), tree])


def distilled(
    teacher: keras.Model, name: str, student: keras.Model, loss: Any, actor: str, seed: int, rounds: int, states: int
) -> float:
    """Return the student's mean return."""
    distiller = regimes.PolicyDistiller(teacher, student, name, loss=loss, actor=actor, seed=seed)
    distiller.compile(keras.optimizers.Adam(3e-3), jit_compile=False)
    distiller.fit(rounds, states_per_round=states, epochs=4)
    return distiller.evaluate(seed=10_000).mean


def one_body(found: dict[str, tuple[keras.Model, float]], seed: int, rounds: int, states: int) -> dict[str, float]:
    """Return the returns of one student with a head per environment."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((max(teacher.input_shape[1] for teacher, _ in found.values()),))
    hidden = keras.layers.Dense(96, "relu")(keras.layers.Dense(96, "relu")(inputs))
    heads = [keras.layers.Dense(teacher.output_shape[1])(hidden) for teacher, _ in found.values()]
    distiller = regimes.PolicyDistiller(
        [teacher for teacher, _ in found.values()],
        keras.Model(inputs, heads),
        list(found),
        loss=[losses.PolicyTargets(sharpness) for _, sharpness in found.values()],
        seed=seed,
    )
    distiller.compile(keras.optimizers.Adam(3e-3), jit_compile=False)
    distiller.fit(rounds, states_per_round=states, epochs=4)
    policies = zip(found, distiller.policies, strict=True)
    return {name: regimes.policy_return(policy, name, seed=10_000).mean for name, policy in policies}


def share_of(value: float, best: float) -> float:
    """Divide a return by the teacher's; Acrobot's are negative, so -100 is 5 % worse than -95."""
    return value / best if best > 0 else best / value


def compare(name: str, options: Any, report: _harness.Report, run: _resume.Runs) -> tuple[keras.Model, float, float]:
    """Train the teacher of one environment, then all its students; return it, KL's temperature and a tenth's return."""
    steps, rate, batch = TEACHERS[name] if options.full else (4000, 2e-3, 64)
    rounds, states = ROUNDS[options.full]
    kept = options.out / f"fields_policies.{name}.{steps}.keras"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        train = runpy.run_path(str(_harness.ROOT / "examples" / "policies.py"))["train_dqn"]
        train(name, steps, rate=rate, batch=batch).save(kept)
    teacher = keras.models.load_model(kept)
    buffer = teachers.PolicyBuffer()
    buffer.gather(gymnasium.make_vec(name, num_envs=8, vectorization_mode="sync"), teacher, num_states=2000)
    sharpness = 0.1 * float(np.ptp(buffer.values, axis=1).mean())
    best = run(f"{name} teacher", lambda: regimes.policy_return(teacher, name, seed=10_000)[:3])
    kl = losses.PolicyTargets(sharpness)
    more = 2 * rounds  # the smallest students need more rounds
    plans = {
        "KL, a tenth": (0.1, kl, "teacher", rounds),
        "NLL, a tenth": (0.1, losses.PolicyTargets(target="nll"), "teacher", rounds),
        "MSE, a tenth": (0.1, losses.PolicyTargets(target="mse"), "teacher", rounds),
        "KL, a fiftieth": (0.02, kl, "teacher", more),
        "KL, a fiftieth, DAgger": (0.02, kl, "student", more),
        "soft tree of depth 3, DAgger": (0.0, kl, "student", more),
    }

    def result(plan: str, seed: int) -> float:
        share, loss, actor, times = plans[plan]

        def trained() -> float:
            keras.utils.set_random_seed(seed)
            student = student_of(teacher, share) if share else tree_of(teacher)
            return distilled(teacher, name, student, loss, actor, seed, times, states)

        return run(f"{name} {plan} {seed}", trained)

    found = {plan: [result(plan, seed) for seed in range(options.seeds)] for plan in plans}
    means = {plan: float(np.mean(each)) for plan, each in found.items()}
    report.add(
        {"environment": name, "parameters": teacher.count_params(), "sharpness": sharpness, "seeds": options.seeds},
        {"teacher": best, "returns": found, "means": means},
    )
    tenth, fiftieth = means["KL, a tenth"], means["KL, a fiftieth"]
    report.verdict(f"{name}: return of a tenth over the teacher's", share_of(tenth, best[0]), at_least=0.95)
    report.verdict(f"{name}: KL less NLL", tenth - means["NLL, a tenth"], at_least=0.0)
    report.verdict(f"{name}: NLL less MSE", means["NLL, a tenth"] - means["MSE, a tenth"], at_least=0.0)
    gain = means["KL, a fiftieth, DAgger"] - fiftieth
    report.verdict(f"{name}: DAgger less the teacher's states, a fiftieth", gain, at_least=0.0)
    readable = share_of(means["soft tree of depth 3, DAgger"], best[0])
    report.verdict(f"{name}: return of the soft tree over the teacher's", readable, at_least=0.95)
    return teacher, sharpness, tenth


def main() -> None:
    """Compare in each environment, then all of them with one body."""
    which = {"nargs": "+", "choices": list(TEACHERS), "default": None, "help": "which ones"}
    options = _harness.arguments(__doc__ or "", environments=which, seeds={"type": int, "default": None})
    options.seeds = options.seeds or (3 if options.full else 1)
    report = _harness.Report("fields_policies", CLAIM, options)
    run = _resume.Runs(options.out / f"fields_policies.{'full' if options.full else 'quick'}.runs.json")
    names = options.environments or (list(TEACHERS) if options.full else ["CartPole-v1"])
    found = {name: compare(name, options, report, run) for name in names}
    if len(found) > 1:
        pairs = {name: (teacher, sharpness) for name, (teacher, sharpness, _) in found.items()}
        label, size = " + ".join(found), ROUNDS[options.full]
        returns = [run(f"{label} {seed}", lambda s=seed: one_body(pairs, s, *size)) for seed in range(options.seeds)]
        means = {name: float(np.mean([each[name] for each in returns])) for name in found}
        report.add({"environment": label, "seeds": options.seeds}, {"returns": returns, "means": means})
        for name, mean in means.items():
            share = share_of(mean, found[name][2])
            report.verdict(f"{name}: one body for all over a student of its own", share, at_least=0.95)
    report.write()
    run.finish()


if __name__ == "__main__":
    main()
