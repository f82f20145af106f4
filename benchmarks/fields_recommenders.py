"""Does a recommender of a tenth of the embedding size rank as its teacher does? Full ranking, one item left out.

The teacher is EASE, a linear model from all items to all items with a closed-form solution; its regularisation is
chosen on the validation items. Students map a user's training items to a 10-dimensional embedding (a tenth of the usual
100) and score every item. They learn from the user's own items alone, or also from the teacher's scores: soft targets,
the teacher's top items (RD), or its relaxed order (RRD). The number of epochs is chosen for each student on the
validation items; the method and its weight on the validation items of the first seed. Two ideas to come closer to the
teacher are tried as methods: teacher predictions for random parts of the histories, and a hidden layer after the
embedding, because a linear map of a 10-dimensional embedding has at most rank 10 (the rank-10 approximation of EASE's
scores keeps 86 % of its NDCG on the validation items of MovieLens). Protocol: the last item of
each user is the test and the one before the validation (drawn where there are no times), all items that the user has
not seen are ranked, NDCG@10 over all users. MovieLens: ratings of 4 and more count, Jester: of
5 and more (of 10); users with 5 items and more.
The quick version takes one data set, one seed and few epochs: it shows that all of it runs.
"""

from __future__ import annotations

import lzma
from typing import Any

from benchmarks import _harness, _resume

# isort: split
import keras
import numpy as np

from keras_distill import Distiller, LogitsDistillation, data, losses, metrics

CLAIM = (
    "A student with a tenth of the embedding size gains 5 % NDCG@10 by distillation and keeps 95 % of its teacher's."
)
METHODS: dict[str, tuple[Any, tuple[float, ...]]] = {
    "soft targets": (losses.SoftTargets, (1.0, 4.0)),
    "RD": (lambda: losses.RankedItems(20, position_decay=10.0), (1.0, 4.0)),
    "RRD": (lambda: losses.RelaxedRanking(40, 200), (0.01, 0.05)),
    "soft targets, parts of histories": (losses.SoftTargets, (4.0,)),
    "soft targets, hidden layer": (losses.SoftTargets, (4.0,)),
    "soft targets, parts of histories, hidden layer": (losses.SoftTargets, (4.0,)),
}


def interactions(name: str) -> data.Interactions:
    """Read the interactions of a data set and hold out one item per user."""
    folder = _harness.DATA / name
    times = None
    if name == "movielens100k":
        lines = lzma.open(folder / "ml-100k.inter.tsv.xz", "rt").read().splitlines()[1:]
        table = np.array([line.split("\t") for line in lines], float)
        table = table[table[:, 2] >= 4]
        users, items, times = table[:, 0].astype(int), table[:, 1].astype(int), table[:, 3]
    else:
        arrays = np.load(folder / f"{name}.npz")
        liked = arrays["rating"] >= 5 if name == "jester5k" else slice(None)
        users, items = arrays["user"][liked].astype(int), arrays["item"][liked].astype(int)
    kept = np.bincount(users)[users] >= 5
    times = None if times is None else times[kept]
    users, items = (np.unique(each[kept], return_inverse=True)[1] for each in (users, items))
    return data.leave_one_out(users, items, times=times)


def ease(seen: np.ndarray, strength: float) -> np.ndarray:
    """Weights of EASE, items to items, zero on the diagonal (Steck, WWW 2019)."""
    inverse = np.linalg.inv(seen.T @ seen + strength * np.eye(seen.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def ndcg(split: data.Interactions, scores: np.ndarray, which: str) -> float:
    """NDCG@10 of the full ranking; items seen before are left out."""
    seen = split.seen(validation=which == "test")
    return float(metrics.ranking_quality(scores, getattr(split, which), exclude=seen).ndcg)


def best_teacher(split: data.Interactions) -> tuple[keras.Model, float, float]:
    """Return EASE as a Keras model whose scores are scaled like logits, and its quality."""
    seen = split.seen().astype("float64")
    weights = max(
        (ease(seen, strength) for strength in (10, 30, 100, 300)), key=lambda w: ndcg(split, seen @ w, "validation")
    )
    inputs = keras.Input((split.num_items,))
    layer = keras.layers.Dense(split.num_items, use_bias=False)
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([10.0 * weights])  # scores of EASE are near 0..1; times ten for a softmax
    return model, ndcg(split, seen @ weights, "validation"), ndcg(split, seen @ weights, "test")


def student_of(num_items: int, units: int, behind: int) -> keras.Model:
    """A narrow layer on a user's items, optionally a hidden layer after it, and a score for every item."""
    inputs = keras.Input((num_items,))
    hidden = keras.layers.Dropout(0.2)(keras.layers.UnitNormalization()(inputs))
    hidden = keras.layers.Dense(units, "tanh", name="embedding")(hidden)
    if behind:
        hidden = keras.layers.Dense(behind, "relu")(hidden)
    return keras.Model(inputs, keras.layers.Dense(num_items)(hidden))


def trained(
    split: data.Interactions, teacher: keras.Model, plan: tuple[str | None, float], seed: int, rounds: int, epochs: int
) -> tuple[float, float]:
    """Train one student; return its NDCG on validation and test at the best round by validation."""
    method, weight = plan
    keras.utils.set_random_seed(seed)
    seen = split.seen().astype("float32")
    own = seen / seen.sum(1, keepdims=True)
    student = student_of(split.num_items, 10, 100 if "hidden layer" in (method or "") else 0)
    model: keras.Model = student
    if method is not None and weight:
        term = LogitsDistillation(temperature=1.0, loss=METHODS[method][0]())
        model = Distiller(teacher, student, term, [weight], student_loss_weight=0.5)
    cross_entropy = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss=cross_entropy, jit_compile=False)
    best = (-1.0, -1.0)
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        rows, labels, passes = seen, own, epochs
        if "parts" in (method or ""):  # half of the histories without a third of their items; equal steps
            some = seen * (rng.random(seen.shape) < 2 / 3)
            rows, labels = np.concatenate([seen, some]).astype("float32"), np.concatenate([own, own])
            passes = -(-epochs // 2)
        model.fit(rows, labels, batch_size=64, epochs=passes, verbose=0)
        scores = student.predict(seen, batch_size=1024, verbose=0)
        found = ndcg(split, scores, "validation")
        if found > best[0]:
            best = (found, ndcg(split, scores, "test"))
    return best


def compare(name: str, options: Any, report: _harness.Report, run: _resume.Runs) -> None:
    """Choose a method on one data set's validation items, and compare on its test items."""
    split = interactions(name)
    teacher, _, teacher_test = best_teacher(split)
    rounds, epochs = (10, 10 if name == "movielens100k" else 3) if options.full else (2, 5)

    def result(plan: tuple[str | None, float], seed: int) -> tuple[float, float]:
        return run(f"{name} {plan} {seed}", lambda: trained(split, teacher, plan, seed, rounds, epochs))

    plans = [(method, weight) for method, (_, weights) in METHODS.items() for weight in weights]
    first = {plan: result(plan, 0)[0] for plan in plans}
    chosen = max(plans, key=first.__getitem__)
    seeds = range(5) if options.full else range(1)
    same = ("alone, hidden layer" if "hidden layer" in chosen[0] else None, 0.0)  # the same student without a teacher
    alone, distilled = ([result(plan, seed)[1] for seed in seeds] for plan in (same, chosen))
    means = float(np.mean(alone)), float(np.mean(distilled))
    settings = {"data": name, "users": split.num_users, "items": split.num_items}
    figures = {
        "chosen": chosen[0],
        "weight": chosen[1],
        "teacher": teacher_test,
        "alone": alone,
        "distilled": distilled,
        "alone_mean": means[0],
        "distilled_mean": means[1],
        "validation": {f"{method} {weight}": value for (method, weight), value in first.items()},
    }
    report.add(settings, figures)
    report.verdict(f"{name}: teacher against student alone", teacher_test / means[0], at_least=1.10)
    report.verdict(f"{name}: distilled against alone", means[1] / means[0], at_least=1.05)
    report.verdict(f"{name}: distilled against the teacher", means[1] / teacher_test, at_least=0.95)


def main() -> None:
    """Compare on each data set."""
    names = {
        "choices": ("movielens100k", "msweb", "jester5k"),
        "nargs": "+",
        "default": None,
        "help": "which data sets",
    }
    options = _harness.arguments(__doc__ or "", data=names)
    report = _harness.Report("fields_recommenders", CLAIM, options)
    run = _resume.Runs(options.out / f"fields_recommenders.{'full' if options.full else 'quick'}.runs.json")
    for name in options.data or (("movielens100k", "msweb", "jester5k") if options.full else ("movielens100k",)):
        compare(name, options, report, run)
    report.write()
    run.finish()


if __name__ == "__main__":
    main()
