"""Do small policies keep a teacher's return? A double DQN distilled into a tenth and a fiftieth of its parameters.

The teacher is the DQN of ``examples/policies.py``, its best weights by ten episodes kept aside. Students learn its
values at the same states, with KL, NLL or squared error; at a fiftieth of the parameters from the teacher's states or
from their own (DAgger). Returns are means over 100 seeded episodes that no training saw, the same for every policy.
The temperature of KL is a tenth of the mean gap between the teacher's best and worst action. The quick version trains
little: it shows that all of it runs.
"""

from __future__ import annotations

import runpy
from typing import Any

from benchmarks import _harness, _resume

# isort: split
import gymnasium
import keras
import numpy as np

from keras_distill import losses, regimes, teachers

CLAIM = "A tenth of the parameters keep 95 % of the return; KL >= NLL >= MSE; DAgger >= the teacher's states."


def student_of(teacher: keras.Model, share: float) -> keras.Model:
    """Two hidden layers whose width gives at most this share of the teacher's parameters."""
    inputs, outputs = teacher.input_shape[1], teacher.output_shape[1]
    width = max(w for w in range(2, 129) if w * (inputs + w + outputs + 2) + outputs <= share * teacher.count_params())
    layers = [keras.layers.Dense(width, "relu"), keras.layers.Dense(width, "relu"), keras.layers.Dense(outputs)]
    return keras.Sequential([keras.Input((inputs,)), *layers])


def distilled(teacher: keras.Model, name: str, share: float, loss: Any, actor: str, seed: int, rounds: int) -> float:
    """Return the student's mean return."""
    keras.utils.set_random_seed(seed)
    distiller = regimes.PolicyDistiller(teacher, student_of(teacher, share), name, loss=loss, actor=actor, seed=seed)
    distiller.compile(keras.optimizers.Adam(3e-3), jit_compile=False)
    distiller.fit(rounds, states_per_round=2000, epochs=4)
    return distiller.evaluate(seed=10_000).mean


def compare(name: str, options: Any, report: _harness.Report, run: _resume.Runs) -> None:
    """Train the teacher of one environment, then all its students."""
    steps, seeds, rounds = (60_000, 3, 3) if options.full else (4000, 1, 1)
    kept = options.out / f"fields_policies.{name}.{steps}.keras"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        runpy.run_path(str(_harness.ROOT / "examples" / "policies.py"))["train_dqn"](name, steps).save(kept)
    teacher = keras.models.load_model(kept)
    buffer = teachers.PolicyBuffer()
    buffer.gather(gymnasium.make_vec(name, num_envs=8, vectorization_mode="sync"), teacher, num_states=2000)
    sharpness = 0.1 * float(np.ptp(buffer.values, axis=1).mean())
    best = run(f"{name} teacher", lambda: regimes.policy_return(teacher, name, seed=10_000)[:3])
    plans = {
        "KL, a tenth": (0.1, losses.PolicyTargets(sharpness), "teacher"),
        "NLL, a tenth": (0.1, losses.PolicyTargets(target="nll"), "teacher"),
        "MSE, a tenth": (0.1, losses.PolicyTargets(target="mse"), "teacher"),
        "KL, a fiftieth": (0.02, losses.PolicyTargets(sharpness), "teacher"),
        "KL, a fiftieth, DAgger": (0.02, losses.PolicyTargets(sharpness), "student"),
    }

    def result(plan: str, seed: int) -> float:
        return run(f"{name} {plan} {seed}", lambda: distilled(teacher, name, *plans[plan], seed, rounds))

    found = {plan: [result(plan, seed) for seed in range(seeds)] for plan in plans}
    means = {plan: float(np.mean(each)) for plan, each in found.items()}
    report.add({"environment": name, "sharpness": sharpness}, {"teacher": best, "returns": found, "means": means})
    # Returns of Acrobot are negative: -100 is 5 % worse than -95.
    share = means["KL, a tenth"] / best[0] if best[0] > 0 else best[0] / means["KL, a tenth"]
    report.verdict(f"{name}: return of a tenth over the teacher's", share, at_least=0.95)
    report.verdict(f"{name}: KL less NLL", means["KL, a tenth"] - means["NLL, a tenth"], at_least=0.0)
    report.verdict(f"{name}: NLL less MSE", means["NLL, a tenth"] - means["MSE, a tenth"], at_least=0.0)
    gain = means["KL, a fiftieth, DAgger"] - means["KL, a fiftieth"]
    report.verdict(f"{name}: DAgger less the teacher's states, a fiftieth", gain, at_least=0.0)


def main() -> None:
    """Compare in each environment."""
    options = _harness.arguments(__doc__ or "")
    report = _harness.Report("fields_policies", CLAIM, options)
    run = _resume.Runs(options.out / f"fields_policies.{'full' if options.full else 'quick'}.runs.json")
    for name in ("CartPole-v1", "Acrobot-v1") if options.full else ("CartPole-v1",):
        compare(name, options, report, run)
    report.write()
    run.finish()


if __name__ == "__main__":
    main()
