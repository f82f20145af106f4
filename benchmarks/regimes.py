"""The gain of each regime on a small convolutional student, compared with label smoothing and ensembles of equal cost.

Fashion-MNIST, 10,000 training images, a student of 24,000 parameters, 10 epochs of Adam with a cosine decay; the
assistants' row is CIFAR-10 (10,000 images, JPEG), the hints' row MNIST (10,000). The last epoch is reported. Settings
are those of the papers or the defaults of this package; none was tuned. Rows are trained one by one and kept, so that
they can be run separately::

    python -m benchmarks.regimes --full --rows baselines,mutual   # these rows, and a report of what is known
    python -m benchmarks.regimes --full                           # every row that is missing, then the report
    python -m benchmarks.regimes --full --rows none               # only the report

``--dense`` trains the rows of peers, generations and baselines with a network that overfits: three layers of 256 units,
30 epochs, with a separate report (``regimes_dense``). All rows are trained for one seed after another, so that a killed
run leaves complete tables of fewer seeds. ``cost`` compares a step of ``MutualLearning`` with its forward and backward
passes alone, and has a separate report.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import _harness, _resume

# isort: split
import keras
import numpy as np
import tensorflow as tf

from benchmarks import _regime_models, step_time
from benchmarks import _regime_rows as trained
from keras_distill import regimes

CLAIM = "Each regime beats the same student trained alone by the margin of its paper."
COST_CLAIM = "A step of a regime costs no more than its forward and backward passes, and its updates."
Mean = Callable[[str, str], float]


class Found:
    """Means over seeds of the rows' results.

    Args:
        runs: row to one result for each seed.
    """

    def __init__(self, runs: Mapping[str, list[trained.Scores]]) -> None:
        self.by_way: dict[str, list[dict[str, float]]] = {}
        for several in runs.values():
            for run in several:
                for way, scores in run.items():
                    self.by_way.setdefault(way, []).append(scores)

    def values(self, way: str, key: str = "accuracy") -> np.ndarray:
        """Return one value for each seed."""
        return np.array([scores[key] for scores in self.by_way[way]])

    def gain(self, way: str, over: str) -> float:
        """The mean difference in accuracy of two methods, in points, over their common seeds."""
        one, two = self.values(way), self.values(over)
        count = min(len(one), len(two))
        return float(np.mean(one[:count]) - np.mean(two[:count]))

    def ratio(self, way: str, over: str) -> float:
        """The ratio of two methods' negative log-likelihoods."""
        one, two = self.values(way, "nll"), self.values(over, "nll")
        count = min(len(one), len(two))
        return float(np.mean(one[:count]) / np.mean(two[:count]))


def verdicts(report: _harness.Report, found: Found) -> None:
    """Evaluate every target whose rows are complete."""

    def judge(ways: list[str], target: str, value: Callable[[], float], **bound: float) -> None:
        if all(way in found.by_way for way in ways):
            report.verdict(target, round(value(), 4), **bound)

    def gain(way: str, over: str, points: float) -> None:
        judge([way, over], f"points of {way} over {over}", lambda: found.gain(way, over), at_least=points)

    def ratio(way: str, over: str, most: float) -> None:
        judge([way, over], f"NLL of {way} over that of {over}", lambda: found.ratio(way, over), at_most=most)

    gain("mutual: mean peer", "alone", 0.5)
    ratio("mutual: mean peer", "alone", 0.85)
    gain("gated peers: ensemble", "gated peers: best branch", 0.0)
    gain("exits taught: deepest", "exits: the network alone", 0.0)
    gain("exits taught: mean of exits", "exits: the network alone", 1.0)
    ratio("born again: generation 1", "alone", 0.96)
    gain("born again: ensemble of 3", "alone", 0.6)
    gain("virtual teacher", "alone", 0.5)
    gain("500 labels: mean teacher's student", "500 labels: alone", 1.0)
    gain("FitNet: hints, then logits", "FitNet: logits alone", 0.0)
    ratio("folds: student out of fold", "folds: student in fold", 1.0)
    gain("fusion: fused", "fusion: average of weights", 0.0)
    gain("fusion: fused, probabilities", "fusion: average of weights", 0.0)
    ways = [f"chain: student {way}" for way in ("alone", "teacher's", "assistant's")]

    def ordered() -> float:
        alone, taught, chained = (found.values(way) for way in ways)
        return float(np.mean((alone < taught) & (taught <= chained)))

    judge(ways, "share of seeds with alone < teacher's <= chain's", ordered, at_least=0.8)
    for baseline in ("label smoothing", "ensemble of 2 alone"):
        gain("mutual: mean peer", baseline, 0.0)
        gain("mutual: ensemble of 2", baseline, 0.0)
    for way in ("gated peers: ensemble", "born again: generation 1"):
        gain(way, "label smoothing", 0.0)
    for way in ("born again: ensemble of 3", "gated peers: ensemble"):
        gain(way, "ensemble of 3 alone", 0.0)


def cost(full: bool) -> dict[str, Any]:
    """Compare a step of two peers with its forward and backward passes, and with these and the updates."""
    peers = [trained.network() for _ in range(2)]
    regime = regimes.MutualLearning(peers)
    data = step_time.batches((28, 28, 1), trained.BATCH)
    steps = 20 if full else 2
    step = step_time.training(regime, data, steps, xla=False, steps_per_execution=1)
    bare = [trained.network() for _ in range(2)]
    optimizers = [keras.optimizers.Adam(1e-4) for _ in bare]
    for model, optimizer in zip(bare, optimizers, strict=True):
        optimizer.build(model.trainable_variables)

    def passes(update: bool) -> Callable[[], int]:
        iterator = iter(data)

        @tf.function
        def once(x: Any, y: Any) -> Any:
            weights = [model.trainable_variables for model in bare]
            with tf.GradientTape() as tape:
                logits = [model(x, training=True) for model in bare]
                hard = [tf.nn.sparse_softmax_cross_entropy_with_logits(y, each) for each in logits]
                logs = [tf.nn.log_softmax(each) for each in logits]
                soft = [
                    tf.reduce_sum(tf.exp(tf.stop_gradient(a)) * (tf.stop_gradient(a) - b), -1)
                    for a, b in (logs, logs[::-1])
                ]
                loss = tf.reduce_mean(tf.add_n([*hard, *soft]))
            gradients = tape.gradient(loss, weights)
            for optimizer, own, each in zip(optimizers, weights, gradients, strict=True):
                if update:
                    optimizer.apply_gradients(zip(each, own, strict=True))
            # Every gradient is asked for, and little is added up.
            return loss + sum(tf.reduce_sum(g[..., 0] if g.shape.rank > 1 else g) for each in gradients for g in each)

        def run() -> int:
            for _ in range(steps):
                last = once(*next(iterator))
            float(last)
            return steps

        return run

    programs = {"regime": step, "passes": passes(False), "passes and updates": passes(True)}
    samples = _harness.paired(programs, rounds=15 if full else 2)
    found: dict[str, Any] = {
        f"{name}, cpu ms": round(1e3 * samples.seconds(name, "cpu").median, 3) for name in programs
    }
    for name in ("passes", "passes and updates"):
        ratio = samples.ratio("regime", name, "cpu")
        found |= {f"step over {name}": round(ratio.median, 4), f"step over {name}, interval": str(ratio)}
    return found


def main() -> None:
    """Train the missing rows, then report all results."""
    names = [*trained.ROWS, "cost"]
    options = _harness.arguments(
        __doc__,
        rows={"default": ",".join(names)},
        seeds={"type": int, "default": 3},
        held_out={"action": "store_true"},
        dense={"action": "store_true", "help": "a network that overfits"},
        keep={"type": Path, "default": Path(tempfile.gettempdir()) / "keras_distill_regimes"},
    )
    chosen = options.rows.split(",")
    for name in chosen:
        if name not in (*names, "none"):
            raise SystemExit(f"rows: {', '.join(names)}; got {name}")
    kind = ("full" if options.full else "quick") + ("_held_out" if options.held_out else "")
    kind += "_dense" * options.dense
    _regime_models.DENSE = options.dense
    if options.dense:
        chosen = [name for name in chosen if name in ("baselines", "mutual", "gated", "born_again")]
    runs = _resume.Runs(options.out / f"regimes_runs_{kind}.json")
    for seed in range(options.seeds if options.full else 1):
        for name in (each for each in trained.ROWS if each in chosen):
            source, run = trained.ROWS[name]
            task = trained.Task.load(source, options.full, options.held_out, 30 if options.dense else 10)
            kept = trained.Kept(options.keep / kind, task)
            runs(f"{name}/{seed}", lambda run=run, task=task, kept=kept, seed=seed: run(task, kept, seed))
            keras.backend.clear_session()
        if "cost" in chosen:
            runs("cost/0", lambda: cost(options.full))
    known = {
        name: [runs.known[key] for key in sorted(runs.known) if key.split("/")[0] == name] for name in trained.ROWS
    }
    if any(known.values()):
        report = _harness.Report("regimes_dense" if options.dense else "regimes", CLAIM, options)
        found = Found(known)
        for way, scores in found.by_way.items():
            mean = {key: round(float(np.mean(found.values(way, key))), 4) for key in ("accuracy", "nll")}
            spread = {f"{key}_sd": round(float(np.std(found.values(way, key))), 4) for key in ("accuracy", "nll")}
            report.add({"way": way, "seeds": len(scores)}, {**mean, **spread})
        verdicts(report, found)
        report.write()
    if "cost/0" in runs.known:
        report = _harness.Report("regimes_cost", COST_CLAIM, options)
        report.add({"step of": "two peers, batch 128"}, runs.known["cost/0"])
        for name in ("passes", "passes and updates"):
            value = runs.known["cost/0"][f"step over {name}"]
            report.verdict(f"a step of two peers over its {name}, processor time", value, at_most=1.05)
        report.write()


if __name__ == "__main__":
    main()
