"""Interpretable students: soft trees, surrogates, targets from the order of classes, agreement of explanations.

``--full`` uses MNIST (trees of depth 8) and Fashion-MNIST and takes 25 CPU minutes; the quick version uses
scikit-learn's digits (trees of depth 4) and takes two minutes. The census is the same in both. ``--parts`` selects some
of the three parts.

Each cell (one training with one seed) is kept in ``<out>/explain_cells.json`` as soon as it is done: an interrupted run
resumes from there. Settings were chosen on the last 5,000 training images of MNIST (four pilots of one seed; mixture
loss, batches of 64 and a cosine decay from 3e-3 were best).
"""

from __future__ import annotations

import json
import lzma
import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks import _harness

# isort: split
import keras
import numpy as np

from keras_distill import Distiller, data, explain, metrics, students, teachers
from keras_distill.terms import AttributionMatching, LogitsDistillation

CLAIM = (
    "A soft tree of depth 8 that predicts from one path reaches 95.2% on MNIST with labels and more with a teacher; a"
    " tree of 32 leaves has 95% of the fidelity of the best such tree for an income classifier; attributions of "
    "distilled students agree more with their teacher's than those of students trained on labels."
)
CENSUS = _harness.ROOT.parent / "shared" / "data" / "adult_census"


def cross_entropy() -> keras.losses.Loss:
    """Cross-entropy of integer labels, from logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def softmax(z: np.ndarray) -> np.ndarray:
    """Probabilities of logits."""
    odds = np.exp(z - z.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def cnn(width: int, seed: int, shape: tuple[int, ...], dropout: float = 0.0) -> keras.Model:
    """Two strided convolutions and a hidden layer; logits of ten classes."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(width, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(2 * width, 3, strides=2, padding="same", activation="relu", name="maps"),
            layers.Flatten(),
            layers.Dropout(dropout),
            layers.Dense(8 * width, activation="relu"),
            layers.Dense(10),
        ]
    )


def fit(model: keras.Model, x: Any, y: Any, epochs: int, *, rate: float, batch: int, loss: Any = None) -> None:
    """Train with Adam and a cosine decay."""
    steps = max(1, len(x) // batch) * epochs
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    many = len(x) > 5000
    # Small data sets train faster than they compile, and XLA's convolutions are slow on a CPU.
    compiled = many and isinstance(model, students.SoftDecisionTree)
    model.compile(optimizer, loss or cross_entropy(), steps_per_execution=20 if many else 5, jit_compile=compiled)
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)


def right(model: keras.Model, test: data.Examples) -> float:
    """Accuracy in percent."""
    return 100 * float((model.predict(test.inputs, batch_size=1000, verbose=0).argmax(-1) == test.labels).mean())


class Cells:
    """Results by name, kept in a file."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.known: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return a result, measured if it is not known yet."""
        if name not in self.known:
            self.known[name] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.known, indent=1) + "\n")
            print(name, {key: round(value, 4) for key, value in self.known[name].items()}, flush=True)
        return self.known[name]


def trees(report: _harness.Report, cells: Cells, seeds: int, full: bool) -> None:
    """MNIST, depth 8: labels compared with a teacher's predictions, with all labels and with a thousand."""
    source = data.load("mnist" if full else "digits")
    x, y, test = source.train.inputs, source.train.labels, source.test
    depth, few, many, batch, rate = (8, 1000, 20000, 64, 3e-3) if full else (4, 100, 1000, 16, 1e-2)
    long = 60 if full else 40
    kept: dict[str, Any] = {}

    def answers() -> np.ndarray:
        if not kept:
            teacher = cnn(16, 100, x.shape[1:], dropout=0.3)
            fit(teacher, x, y, 6 if full else 25, rate=2e-3, batch=128 if full else 32)
            print(f"teacher of the trees: {right(teacher, test):.2f}%", flush=True)
            kept["logits"] = teacher.predict(x, batch_size=1000, verbose=0)
        return kept["logits"]

    def tree(seed: int, inputs: np.ndarray, targets: Callable[[], np.ndarray], epochs: int) -> dict[str, float]:
        wanted = targets()
        keras.utils.set_random_seed(seed)
        model = students.SoftDecisionTree(depth, 10, loss="mixture")
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        fit(model, inputs, wanted, epochs, rate=rate, batch=batch, loss=loss)
        found = {"greatest_path": right(model, test)}
        model.inference = "mean"
        model.make_predict_function(force=True)
        return {**found, "mean": right(model, test)}

    hard = np.eye(10, dtype="float32")[y]
    plans = {
        "hard": (x, lambda: hard, 16),
        "soft": (x, lambda: softmax(answers() / 2.0), 16),
        "hard, few labels": (x[:few], lambda: hard[:few], long),
        "soft, few images": (x[:few], lambda: softmax(answers()[:few] / 2.0), long),
        "soft, unlabelled": (x[:many], lambda: softmax(answers()[:many] / 2.0), 16),
    }
    means = {}
    for name, (inputs, targets, epochs) in plans.items():
        runs = [
            cells(f"tree, {name}, seed {seed}", lambda s=seed, i=inputs, t=targets, e=epochs: tree(s, i, t, e))
            for seed in range(seeds)
        ]
        values = np.array([run["greatest_path"] for run in runs])
        means[name] = float(values.mean())
        report.add(
            {"part": "tree", "targets": name, "seeds": seeds},
            {"greatest_path": means[name], "sd": float(values.std(ddof=seeds > 1)), "runs": runs},
            f"tree, {name:24} greatest path {values.mean():.2f} ± {values.std(ddof=seeds > 1):.2f}, mean of the leaves "
            f"{np.mean([run['mean'] for run in runs]):.2f}",
        )
    if full:
        report.verdict("hard labels, greatest path, %", means["hard"], at_least=95.2)
        report.verdict("stretch: soft targets, %", means["soft"], at_least=96.0)
    report.verdict("soft minus hard, points", means["soft"] - means["hard"], at_least=0.0)
    gain = means["soft, unlabelled"] - means["hard, few labels"]
    report.verdict(f"soft on {many} unlabelled minus hard on {few} labelled, points", gain, at_least=1.0)


def census() -> tuple[np.ndarray, np.ndarray]:
    """Training rows: numbers unchanged, categories as the index of their sorted names."""
    text = lzma.decompress((CENSUS / "adult.data.xz").read_bytes()).decode()
    rows = np.array([[c.strip() for c in line.split(",")] for line in text.splitlines() if line.count(",") == 14])
    columns = []
    for column in rows.T[:14]:
        try:
            columns.append(column.astype("float32"))
        except ValueError:
            columns.append(np.unique(column, return_inverse=True)[1].astype("float32"))
    return np.stack(columns, 1), (rows[:, 14] == ">50K").astype("int32")


def surrogates(report: _harness.Report, cells: Cells, seeds: int, full: bool) -> None:
    """Adult census: a tree of 32 leaves compared with the best such tree."""
    del full  # small enough for the quick version
    x, y = census()

    def one(seed: int) -> dict[str, float]:
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Normalization(), *(keras.layers.Dense(64, activation="relu") for _ in "ab")]
        layers[0].adapt(x[:20000])
        teacher = keras.Sequential([keras.Input((14,)), *layers, keras.layers.Dense(2)])
        fit(teacher, x[:20000], y[:20000], 8, rate=3e-3, batch=256)
        rows = x[20000:]  # the surrogate sees rows that the teacher was not trained on
        made = explain.surrogate(teacher, rows, "tree", size=32, seed=seed)
        more = explain.surrogate(teacher, rows, "tree", size=32, samples=20000, seed=seed)
        held = made._parts["held_out"]
        answers = held[1].argmax(-1)
        # The same tree on labels, and one with many leaves: the limits at this size and at any size.
        order = np.random.default_rng(seed).permutation(len(rows))[len(answers) :]
        from sklearn.tree import DecisionTreeClassifier

        labels = DecisionTreeClassifier(max_leaf_nodes=32, random_state=seed).fit(rows[order], y[20000:][order])
        best = 0.0
        for least in (1, 6, 20, 50):
            for criterion in ("gini", "entropy", "log_loss"):
                settings = {"min_samples_leaf": least, "criterion": criterion, "random_state": 0}
                tried = DecisionTreeClassifier(max_leaf_nodes=32, **settings).fit(*_train(made))
                best = max(best, float((tried.predict(held[0]) == answers).mean()))
        linear = explain.surrogate(teacher, rows, "linear", size=14, seed=seed)
        additive = explain.surrogate(teacher, rows, "additive", size=14, seed=seed)
        return {
            "fidelity": made.fidelity.value,
            "low": made.fidelity.low,
            "high": made.fidelity.high,
            "floor": made.fidelity.floor,
            "sampled": made.sampled_fidelity.value,
            "sampled, more rows": more.sampled_fidelity.value,
            "tree from labels": float((labels.predict(held[0]) == answers).mean()),
            "best tree": best,
            "linear": linear.fidelity.value,
            "additive": additive.fidelity.value,
        }

    runs = [cells(f"surrogate, seed {seed}", lambda s=seed: one(s)) for seed in range(seeds)]
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    report.add({"part": "surrogate", "seeds": seeds}, {"mean": mean, "runs": runs})
    share = mean["fidelity"] / max(mean["best tree"], mean["tree from labels"])
    report.verdict("fidelity of a tree of 32 leaves over the best such tree's", share, at_least=0.95)


def _train(made: explain.Surrogate) -> tuple[np.ndarray, np.ndarray]:
    rows, targets = made._parts["train"]
    return rows, targets.argmax(-1)


def reasons(report: _harness.Report, cells: Cells, seeds: int, full: bool) -> None:
    """Fashion-MNIST: explanations of students from labels, distilled, and with matched attributions."""
    source = data.load("fashion_mnist" if full else "digits")
    x, y, test = source.train.inputs[:10000], source.train.labels[:10000], source.test
    few, epochs, batch = (2000, 12, 64) if full else (200, 30, 16)
    kept: list[keras.Model] = []

    def pair() -> list[keras.Model]:
        if not kept:
            for seed in (100, 101):
                kept.append(cnn(12, seed, x.shape[1:]))
                fit(kept[-1], x, y, 6 if full else 25, rate=2e-3, batch=2 * batch)
        return kept

    def one(kind: str, seed: int) -> dict[str, float]:
        teacher, other = pair()
        student, some = cnn(4, seed, x.shape[1:]), slice(0, few)
        if kind == "labels":
            fit(student, x[some], y[some], epochs, rate=2e-3, batch=batch)
        else:
            rows = slice(0, 10000) if kind == "distilled, unlabelled" else some
            passes = max(1, epochs * few // len(x)) if kind == "distilled, unlabelled" else epochs  # as many steps
            models, terms = (teacher, student), [LogitsDistillation(temperature=4.0)]
            if kind.endswith("matched"):
                method = "gradient" if kind.startswith("attribution") else "grad_cam"
                models = tuple(explain.with_attribution(model, method) for model in models)
                terms.append(AttributionMatching())
            if kind == "log gaps":
                models = (teachers.SortedDifferences(teacher, "log"), student)
                terms = [LogitsDistillation(temperature=1.0)]
            if kind == "order":
                models = (teachers.RankTargets(teacher), student)
                terms = [LogitsDistillation(temperature=1.0)]
            distiller = Distiller(*models, terms, student_loss_weight=0.0)
            fit(distiller, x[rows], y[rows], passes, rate=2e-3, batch=batch)
        found = explain.agreement(teacher, student, test.inputs[:300], ceiling=other, labels=test.labels[:300])
        logits = student.predict(test.inputs, batch_size=1000, verbose=0)
        return {
            "accuracy": 100 * float((logits.argmax(-1) == test.labels).mean()),
            "ece": 100 * metrics.expected_calibration_error(test.labels, logits, from_logits=True),
            **{
                f"{name}, {side}": float(getattr(each, side))
                for name, each in found.measures.items()
                for side in ("student", "floor", "ceiling")
            },
        }

    means = {}
    kinds = ("labels", "distilled", "distilled, unlabelled", "attribution matched", "class activation matched")
    for kind in (*kinds, "log gaps", "order"):
        runs = [cells(f"reasons, {kind}, seed {seed}", lambda k=kind, s=seed: one(k, s)) for seed in range(seeds)]
        mean = means[kind] = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        line = f"reasons, {kind:22} accuracy {mean['accuracy']:.2f}  ECE {mean['ece']:.2f}"
        for name in ("answers", "spearman", "top_overlap", "ssim"):
            low, own, high = (mean[f"{name}, {side}"] for side in ("floor", "student", "ceiling"))
            line += f"  {name} {low:.3f} < {own:.3f} < {high:.3f}"
        report.add({"part": "reasons", "kind": kind, "seeds": seeds}, {"mean": mean, "runs": runs}, line)
    rise = means["distilled"]["spearman, student"] - means["labels"]["spearman, student"]
    report.verdict("Spearman of attributions, distilled minus labels", rise, at_least=0.0)
    look = means["attribution matched"]["spearman, student"] - means["distilled"]["spearman, student"]
    report.verdict("Spearman, attribution matched minus distilled", look, at_least=0.0)
    for kind in ("attribution matched", "class activation matched"):
        help_ = means[kind]["accuracy"] - means["distilled"]["accuracy"]
        report.verdict(f"accuracy, {kind} minus distilled, points", help_, at_least=0.0)


def main() -> None:
    """Measure everything that is not known yet, and evaluate."""
    parts = {"trees": trees, "surrogates": surrogates, "reasons": reasons}
    options = _harness.arguments(
        __doc__,
        seeds={"type": int, "default": None, "help": "5 of the trees and 3 of the rest, where not given"},
        parts={"nargs": "*", "choices": list(parts), "default": list(parts)},
    )
    name = "explain" if options.full else "explain_quick"
    report = _harness.Report(name, CLAIM, options)
    cells = Cells(options.out / f"{name}_cells.json")
    for part in options.parts:
        seeds = options.seeds or (5 if options.full and part == "trees" else 3)
        parts[part](report, cells, seeds, options.full)
    report.write()


if __name__ == "__main__":
    main()
