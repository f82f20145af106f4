"""Can one small network replace an ensemble of boosted trees? AUROC, latency and the cost of decisions.

The teacher is the mean log-odds of ten histogram gradient boostings, each on a bootstrap sample. The student is a
network of two layers; it learns the teacher's log-odds on the training rows and on synthetic ones (marginal resampling
within range, which the teacher labels). Numbers are standardised and put into 40 bins (``TableEncoder(num_bins=40)``):
without bins the student lost 1.2 points on held-out rows, with bins and a strength of 0.15 instead of 0.3 it lost 0.4,
and 0.2 with 120,000 instead of 60,000 synthetic rows (adult census, one seed). "alone" is the same network trained on
labels. A fifth of the training rows is held out to choose each network's epoch and the threshold of decisions (a missed
positive costs 4, a false alarm 1). Latency: 1,000 rows, one thread, each side from its own encoded rows. Adult census:
the publisher's test rows, 5 seeds. The others: a fifth of the rows drawn by the seed, 3 seeds; ``islp_Default`` has 3 %
positives, ``nhanes1`` is death within ten years; ``pneumoniamnist`` are chest X-rays as a table of 49 means over 4 x 4
pixels, with the publisher's test images. The name of a report on some of the tables contains their names. The quick
version uses one seed and few rows.
"""

from __future__ import annotations

import csv
import lzma
import time
from typing import Any

from benchmarks import _harness, _resume

# isort: split
import keras
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from keras_distill import data, losses, metrics

CLAIM = "A student of boosted trees loses at most 0.3 points of AUROC and has a twentieth of their latency."
NAMES = (
    "age workclass fnlwgt education education_num marital occupation relationship race sex gain loss hours country"
).split()
COSTS = {"false_positive": 1.0, "false_negative": 4.0}


def read(filename: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return columns and labels; "?" is a missing category."""
    lines = lzma.open(_harness.DATA / "adult_census" / filename, "rt").read().splitlines()
    rows = [[cell.strip() for cell in line.rstrip(".").split(",")] for line in lines if line.count(",") == 14]
    labels = np.array([row[14].startswith(">50K") for row in rows]).astype(int)
    columns: dict[str, np.ndarray] = {}
    for index, name in enumerate(NAMES):
        column = np.array([row[index] for row in rows])
        is_number = name in ("age", "fnlwgt", "education_num", "gain", "loss", "hours")
        columns[name] = column.astype("float32") if is_number else np.where(column == "?", "", column)
    return columns, labels


def smaller(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns and labels of a table of a few thousand rows."""
    file = _harness.DATA / ("nhanes1_survival" if name == "nhanes1" else "finance_tabular") / f"{name}.csv.xz"
    rows = list(csv.DictReader(lzma.open(file, "rt")))
    if name == "nhanes1":  # years to death; negative if censored, used if at least ten years
        years = np.array([float(row.pop("time_signed")) for row in rows])
        kept = (years > 0) | (years <= -10)
        rows, labels = [row for row, keep in zip(rows, kept, strict=True) if keep], ((years > 0) & (years <= 10))[kept]
    else:
        target, positive = {"credit_data": ("Status", "bad"), "islp_Default": ("default", "Yes")}[name]
        labels = np.array([row.pop(target) == positive for row in rows])
    columns: dict[str, np.ndarray] = {}
    for key in rows[0]:
        column = np.array([row[key] for row in rows])
        known = np.array([cell not in ("", "NA", "nan") for cell in column])
        try:
            columns[key] = np.where(known, np.where(known, column, "0").astype("float32"), np.nan).astype("float32")
        except ValueError:
            columns[key] = np.where(known, column, "")
    columns.pop("rownames", None)
    return columns, labels.astype(int)


def x_rays() -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Columns and labels of chest X-rays for training and for the test: means over 4 x 4 pixels."""
    loaded, parts = data.load("pneumoniamnist"), []
    for part in (loaded.train, loaded.test):
        means = np.asarray(part.inputs).reshape(len(part), 7, 4, 7, 4).mean((2, 4)).reshape(len(part), 49)
        columns = {f"part_{index}": column.astype("float32") for index, column in enumerate(means.T)}
        parts.append((columns, np.asarray(part.labels).astype(int).ravel()))
    return parts


def take(columns: dict[str, np.ndarray], rows: Any) -> dict[str, np.ndarray]:
    """Some rows of every column."""
    return {name: column[rows] for name, column in columns.items()}


class Trees:
    """An ensemble of boosted trees on ordinal codes."""

    def __init__(self, columns: dict[str, np.ndarray], labels: np.ndarray, members: int, seed: int) -> None:
        self.codes = {name: np.unique(column) for name, column in columns.items() if column.dtype.kind == "U"}
        rows, rng = self.encode(columns), np.random.default_rng(seed)
        self.members = []
        for member in range(members):
            drawn = rng.integers(0, len(labels), len(labels))
            model = HistGradientBoostingClassifier(max_iter=150, learning_rate=0.08, random_state=member)
            self.members.append(model.fit(rows[drawn], labels[drawn]))

    def encode(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Numbers unchanged, categories as the index of their name."""
        coded = [
            np.searchsorted(self.codes[name], column).astype("float32") if name in self.codes else column
            for name, column in columns.items()
        ]
        return np.stack(coded, 1)

    def log_odds(self, rows: np.ndarray) -> np.ndarray:
        """Mean over the members, for encoded rows."""
        return np.mean([member.decision_function(rows) for member in self.members], axis=0)


def student_of(width: int) -> keras.Model:
    """Two hidden layers and a log-odds output."""
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((width,)), *layers])


def fitted(student: keras.Model, x: Any, y: Any, loss: Any, held: tuple[Any, Any], epochs: int) -> keras.Model:
    """Train and keep the weights of the best epoch by AUROC on held-out rows."""
    steps = -(-len(x) // 256) * epochs
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    student.compile(keras.optimizers.Adam(rate), loss, jit_compile=True, steps_per_execution=20)
    best, weights = -1.0, student.get_weights()
    for _ in range(epochs):
        student.fit(x, y, batch_size=256, verbose=0)
        found = roc_auc_score(held[1], student.predict(held[0], batch_size=4096, verbose=0)[:, 0])
        if found > best:
            best, weights = found, student.get_weights()
    student.set_weights(weights)
    return student


def seconds(run: Any, rounds: int = 15) -> float:
    """Median wall-clock time of a call."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def one_seed(name: str, seed: int, rows: int, synthetic: int, members: int, epochs: int) -> dict[str, float]:
    """Train the trees, the student alone and the distilled student; evaluate them on the test rows."""
    keras.utils.set_random_seed(seed)
    if name == "adult_census":
        columns, labels = read("adult.data.xz")
        test_columns, test_labels = read("adult.test.xz")
        order = np.random.default_rng(seed).permutation(len(labels))[:rows]
    elif name == "pneumoniamnist":
        (columns, labels), (test_columns, test_labels) = x_rays()
        order = np.random.default_rng(seed).permutation(len(labels))[:rows]
    else:
        columns, labels = smaller(name)
        order = np.random.default_rng(seed).permutation(len(labels))
        test_columns, test_labels = take(columns, order[: len(order) // 5]), labels[order[: len(order) // 5]]
        order = order[len(order) // 5 :][:rows]
    rows = len(order)
    held, train = order[: rows // 5], order[rows // 5 :]
    trees = Trees(take(columns, train), labels[train], members, seed)
    encoder = data.TableEncoder(take(columns, train), num_bins=40)
    made = data.synthetic_rows(take(columns, train), synthetic, strength=0.15, seed=seed)
    x_held, x_train, x_test, x_made = (
        encoder(each) for each in (take(columns, held), take(columns, train), test_columns, made)
    )
    told = [trees.log_odds(trees.encode(each))[:, None] for each in (take(columns, train), made)]
    kept = (x_held, labels[held])
    alone = fitted(student_of(x_train.shape[1]), x_train, labels[train][:, None].astype("float32"),
                   keras.losses.BinaryCrossentropy(from_logits=True), kept, epochs)  # fmt: skip
    taught = fitted(student_of(x_train.shape[1]), np.concatenate([x_train, x_made]),
                    np.concatenate(told).astype("float32"), losses.BinarySoftTargets(), kept, epochs)  # fmt: skip
    result: dict[str, float] = {}
    held_odds = {"teacher": trees.log_odds(trees.encode(take(columns, held)))}
    odds = {"teacher": trees.log_odds(trees.encode(test_columns))}
    for name, model in (("alone", alone), ("student", taught)):
        held_odds[name] = model.predict(x_held, batch_size=4096, verbose=0)[:, 0]
        odds[name] = model.predict(x_test, batch_size=4096, verbose=0)[:, 0]
    for name, found in odds.items():
        result[f"auroc_{name}"] = float(roc_auc_score(test_labels, found))
        chance, held_chance = (1 / (1 + np.exp(-each)) for each in (found, held_odds[name]))
        threshold = metrics.best_threshold(labels[held], held_chance, **COSTS)
        result[f"cost_{name}"] = metrics.decision_cost(test_labels, chance, threshold=threshold, **COSTS).cost
    coded, thousand = trees.encode(take(test_columns, slice(1000))), x_test[:1000]
    taught.predict_on_batch(thousand)
    result["latency_ratio"] = seconds(lambda: trees.log_odds(coded)) / seconds(
        lambda: taught.predict_on_batch(thousand)
    )
    return result


def main() -> None:
    """Run the seeds and evaluate the means."""
    names = ("adult_census", "credit_data", "islp_Default", "nhanes1", "pneumoniamnist")
    which = {"nargs": "+", "choices": names, "default": None, "help": "which tables"}
    options = _harness.arguments(__doc__ or "", data=which)
    report = _harness.Report("_".join(["fields_tables", *(options.data or [])]), CLAIM, options)
    sizes = (32_000, 120_000, 10, 6) if options.full else (4000, 4000, 3, 2)
    run = _resume.Runs(options.out / f"fields_tables.{'full' if options.full else 'quick'}.runs.json")
    for name in options.data or (names if options.full else names[:1]):
        seeds = 1 if not options.full else 5 if name == "adult_census" else 3
        found = [run(f"{name} {seed}", lambda n=name, s=seed: one_seed(n, s, *sizes)) for seed in range(seeds)]
        mean, spread = ({key: float(of([each[key] for each in found])) for key in found[0]} for of in (np.mean, np.std))
        report.add({"model": name, "seeds": seeds}, {"mean": mean, "spread": spread})
        lost = 100 * (mean["auroc_teacher"] - mean["auroc_student"])
        report.verdict(f"{name}: points of AUROC lost", lost, at_most=0.3)
        report.verdict(f"{name}: latency of the trees over the student's", mean["latency_ratio"], at_least=20.0)
        ratio = mean["cost_student"] / mean["cost_teacher"]
        report.verdict(f"{name}: cost of decisions over the trees'", ratio, at_most=1.02)
    report.write()
    run.finish()


if __name__ == "__main__":
    main()
