"""Pictures of the fields' guides: ``python -m docs.pictures.fields [name ...]`` (2 minutes).

Each is made from a small run of the example of its field, with one seed; the figures that count are in benchmarks.
"""

import argparse
import runpy

import gymnasium
import keras
import numpy as np
from matplotlib import pyplot as plt

from docs.pictures import ROOT, save
from keras_distill import Distiller, LogitsDistillation, calibration, data, losses, metrics, regimes


def example(name):
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def recommenders():
    """NDCG against the length of the list."""
    made = example("recommender")
    split = made["interactions"](1500, 300)
    seen, numbers = split.seen().astype("float32"), np.arange(split.num_users, dtype="int32")
    teacher = made["make_teacher"](seen)
    models = {"teacher (EASE)": teacher}
    for name, loss in (("student alone", None), ("student, soft targets", losses.SoftTargets())):
        keras.utils.set_random_seed(0)
        student = made["make_student"](split.num_users, split.num_items, 8)
        model = student
        if loss is not None:
            model = Distiller(teacher, student, [LogitsDistillation(1.0, loss)], [2.0], student_loss_weight=0.5)
        model.compile(keras.optimizers.Adam(0.01), keras.losses.CategoricalCrossentropy(from_logits=True))
        model.fit(numbers, seen / seen.sum(1, keepdims=True), batch_size=128, epochs=40, verbose=0)
        models[name] = student
    figure, axis = plt.subplots(figsize=(6, 3.4))
    lengths = [1, 2, 3, 5, 10, 20, 50]
    for name, model in models.items():
        scores = model.predict(numbers, batch_size=1024, verbose=0)
        exclude = split.seen(validation=True)
        axis.plot(
            lengths,
            [metrics.ranking_quality(scores, split.test, k=k, exclude=exclude).ndcg for k in lengths],
            marker="o",
            label=name,
        )
    axis.set(xscale="log", xlabel="length of the list", ylabel="NDCG", title="Full ranking, one item held out")
    axis.set_xticks(lengths, lengths)
    axis.legend()
    save(figure, "recommenders")


def policies():
    """Return against the number of labelled states, for the teacher's states and the student's own."""

    def teacher(states):
        push = 3 * states[:, 2] + states[:, 3] + 0.1 * states[:, 0] + 0.2 * states[:, 1]
        return np.stack([-push, push], 1)

    figure, axis = plt.subplots(figsize=(6, 3.4))
    for actor, label in (("teacher", "teacher's states"), ("student", "student's own states (DAgger)")):
        keras.utils.set_random_seed(0)
        student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(2)])
        environments = gymnasium.make_vec("CartPole-v1", num_envs=8, vectorization_mode="sync")
        distiller = regimes.PolicyDistiller(teacher, student, environments, loss=losses.PolicyTargets(0.1), actor=actor)
        distiller.compile(keras.optimizers.Adam(0.01))
        states, means, lows, highs = [], [], [], []
        for _ in range(8):
            states += distiller.fit(1, states_per_round=250, epochs=4)["states"]
            found = distiller.evaluate(40, environment="CartPole-v1")
            means.append(found.mean)
            lows.append(found.low)
            highs.append(found.high)
        axis.plot(states, means, marker="o", label=label)
        axis.fill_between(states, lows, highs, alpha=0.2)
    axis.axhline(500, color="grey", linestyle=":", label="teacher")
    axis.set(
        xlabel="labelled states", ylabel="return per episode", title=f"CartPole-v1, {student.count_params()} parameters"
    )
    axis.legend()
    save(figure, "policies")


def tables():
    """Reliability of the student, and cost against the threshold."""
    made = example("tables")
    (columns, labels), (test, test_labels) = made["make_table"](3000, 0), made["make_table"](8000, 1)
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(0)
    trees = []
    for _ in range(6):
        drawn = rng.integers(0, 3000, 3000)
        trees.append(HistGradientBoostingClassifier(max_iter=60).fit(made["codes"](columns)[drawn], labels[drawn]))

    def teach(some):
        return np.mean([tree.decision_function(made["codes"](some)) for tree in trees], axis=0)[:, None]

    encoder, synthetic = data.TableEncoder(columns), data.synthetic_rows(columns, 12000, strength=0.5)
    keras.utils.set_random_seed(0)
    student = keras.Sequential([keras.Input((encoder(test).shape[1],)), keras.layers.Dense(32, "relu")])
    student.add(keras.layers.Dense(16, "relu"))
    student.add(keras.layers.Dense(1))
    student.compile(keras.optimizers.Adam(3e-3), losses.BinarySoftTargets())
    student.fit(encoder(synthetic), teach(synthetic), batch_size=64, epochs=15, verbose=0)
    odds = {"trees": teach(test)[:, 0], "student": student.predict(encoder(test), verbose=0)[:, 0]}
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    left.plot([0, 1], [0, 1], color="grey", linestyle=":")
    costs = {"false_positive": 1.0, "false_negative": 5.0}
    for name, found in odds.items():
        chance = 1 / (1 + np.exp(-found))
        groups = np.array_split(np.argsort(chance), 12)
        left.plot([chance[g].mean() for g in groups], [test_labels[g].mean() for g in groups], marker="o", label=name)
        grid = np.linspace(0.01, 0.8, 60)
        right.plot(
            grid, [metrics.decision_cost(test_labels, chance, threshold=t, **costs).cost for t in grid], label=name
        )
    right.axvline(1 / 6, color="grey", linestyle=":", label="Bayes' threshold")
    left.set(xlabel="predicted probability", ylabel="share of defaults", title="Reliability")
    right.set(xlabel="threshold", ylabel="mean cost", title="A false negative costs 5, a false positive 1")
    right.legend()
    save(figure, "tables")


def forecasting():
    """A fan chart: the student's conformal intervals for six steps ahead."""
    made = example("forecasting")
    windows = data.forecast_windows(made["series"](4000), history=48, horizons=6)
    x, y, ends = windows.inputs, windows.targets, windows.ends
    train, calibrate, test = ends < 2394, (ends >= 2400) & (ends < 3194), ends >= 3200
    keras.utils.set_random_seed(0)
    student = made["network"](48, 32, (6, 5))
    student.compile(keras.optimizers.Adam(2e-3), losses.QuantileTargets(made["LEVELS"]))
    student.fit(x[train], y[train], epochs=15, verbose=0)
    fan = np.sort(student.predict(x, batch_size=2048, verbose=0), -1)
    low, high = calibration.SplitConformal(0.9, "quantiles").fit(fan[calibrate], y[calibrate]).intervals(fan[test])
    figure, axis = plt.subplots(figsize=(7, 3.4))
    at = 40
    axis.plot(np.arange(-47, 1), x[test][at, :, 0], color="black", label="history")
    ahead = np.arange(1, 7)
    axis.fill_between(ahead, low[at], high[at], alpha=0.2, color="tab:blue", label="90 %, conformal")
    axis.fill_between(ahead, fan[test][at, :, 1], fan[test][at, :, 3], alpha=0.4, color="tab:blue", label="50 %")
    axis.plot(ahead, fan[test][at, :, 2], color="tab:blue", label="median")
    axis.plot(ahead, y[test][at], "k.", label="observed")
    axis.set(xlabel="steps", ylabel="value", title="Six steps ahead")
    axis.legend(ncols=2)
    save(figure, "forecasting")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", default=["recommenders", "policies", "tables", "forecasting"])
    for chosen in parser.parse_args().only:
        globals()[chosen]()
