"""Distil boosted trees into one small network, served with its preprocessing; compare the cost of decisions.

The table is synthetic: ages, incomes with missing values, jobs, and defaults. The teacher is an ensemble of boosted
trees; the student learns its log-odds on the training rows and on synthetic ones. Run (1 minute; ``--smoke``: less):
``python examples/tables.py``. Needs scikit-learn.
"""

import argparse

import keras
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from keras_distill import data, losses, metrics

COSTS = {"false_positive": 1.0, "false_negative": 5.0}
JOBS = np.array(["baker", "clerk", "driver", "nurse", "teacher"])


def make_table(rows: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns and defaults, which are rare and depend on thresholds and on pairs of columns."""
    rng = np.random.default_rng(seed)
    age, income = rng.uniform(18, 80, rows), rng.lognormal(10, 0.6, rows)
    job, loan = rng.integers(0, 5, rows), rng.lognormal(9, 0.8, rows)
    odds = -3 + 2.0 * (loan > 0.5 * income) + 1.5 * (age < 25) * (job == 2) - 1.0 * (job == 3) + 0.02 * (age - 50)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(int)
    income[rng.random(rows) < 0.1] = np.nan
    return {"age": age, "income": income, "loan": loan, "job": JOBS[job]}, labels


def codes(columns: dict[str, np.ndarray]) -> np.ndarray:
    """The rows in the format of the trees."""
    return np.stack([np.searchsorted(JOBS, c) if c.dtype.kind == "U" else c for c in columns.values()], 1)


def main() -> None:
    """Train the trees, the network alone and the distilled network; compare AUROC and cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    rows, epochs, members = (640, 2, 2) if options.smoke else (4000, 20, 8)
    (columns, labels), (held, held_labels), (test, test_labels) = (
        make_table(count, seed) for seed, count in enumerate((rows, rows // 2, 2 * rows))
    )
    rng = np.random.default_rng(0)
    trees = []
    for _ in range(members):
        drawn = rng.integers(0, rows, rows)
        trees.append(HistGradientBoostingClassifier(max_iter=80).fit(codes(columns)[drawn], labels[drawn]))

    def teach(some: dict[str, np.ndarray]) -> np.ndarray:
        return np.mean([tree.decision_function(codes(some)) for tree in trees], axis=0)[:, None].astype("float32")

    encoder = data.TableEncoder(columns)
    made = data.synthetic_rows(columns, 5 * rows, strength=0.5)
    outside = data.outside_range(made, columns)
    print(f"{len(outside)} synthetic rows, {int(outside.sum())} out of range")
    x, x_made = encoder(columns), encoder(made)
    plans = {
        "alone": (x, labels[:, None].astype("float32"), keras.losses.BinaryCrossentropy(from_logits=True)),
        "of the trees": (
            np.concatenate([x, x_made]),
            np.concatenate([teach(columns), teach(made)]),
            losses.BinarySoftTargets(),
        ),
    }
    odds = {"trees": (teach(held)[:, 0], teach(test)[:, 0])}
    for name, (inputs, targets, loss) in plans.items():
        keras.utils.set_random_seed(0)
        student = keras.Sequential(
            [keras.Input(x.shape[1:]), *(keras.layers.Dense(n, "relu") for n in (32, 16)), keras.layers.Dense(1)]
        )
        student.compile(keras.optimizers.Adam(3e-3), loss)
        student.fit(inputs, targets, batch_size=64, epochs=epochs, verbose=0)
        odds[name] = tuple(student.predict(encoder(each), verbose=0)[:, 0] for each in (held, test))
    for name, both in odds.items():
        chances = [1 / (1 + np.exp(-each)) for each in both]
        threshold = metrics.best_threshold(held_labels, chances[0], **COSTS)
        cost = metrics.decision_cost(test_labels, chances[1], threshold=threshold, **COSTS)
        passing = metrics.decision_cost(test_labels, chances[1], abstain=0.4, **COSTS)
        print(f"{name:13} AUROC {roc_auc_score(test_labels, both[1]):.4f}  cost {cost.cost:.3f} at {threshold:.2f}; "
              f"with abstention {passing.cost:.3f} ({100 * passing.abstained:.0f} % passed on)")  # fmt: skip
    served = encoder.serve(student)
    row = {"age": [[21.0]], "income": [[np.nan]], "job": [["astronaut"]], "loan": [[9000.0]]}
    answer = served({name: keras.ops.convert_to_tensor(column) for name, column in row.items()})
    print(f"log-odds of a new row, its income missing and its job unseen: {float(answer[0, 0]):.2f}")


if __name__ == "__main__":
    main()
