"""A two-tower recommender learns the ranking of a strong teacher (ranking distillation), and is served with its items.

The data are synthetic: users and items with latent factors. The teacher is EASE, a linear model of
all items on all items; the student has one embedding of 8 numbers per user and per item. Prints the NDCG@10 of the full
ranking. Run (1 minute on one core; ``--smoke``: less): ``python examples/recommender.py``.
"""

import argparse
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, data, losses, metrics, students, terms


def interactions(users: int, items: int, seed: int = 0) -> data.Interactions:
    """Users mostly pick items near their latent factors; popular items are picked more often."""
    rng = np.random.default_rng(seed)
    tastes, kinds = rng.normal(size=(users, 12)), rng.normal(size=(items, 12))
    popular = np.log(rng.pareto(1.5, items) + 0.1)
    chances = 0.8 * tastes @ kinds.T + popular + rng.gumbel(size=(users, items))
    picked = [np.argsort(-row)[: rng.integers(6, 25)] for row in chances]
    pairs = np.array([(user, item) for user, row in enumerate(picked) for item in row])
    return data.leave_one_out(pairs[:, 0], pairs[:, 1], num_items=items)


def make_teacher(seen: np.ndarray, strength: float = 30.0) -> keras.Model:
    """EASE (Steck, WWW 2019) as a model from a user's index to the scores of all items."""
    inverse = np.linalg.inv(seen.T @ seen + strength * np.eye(seen.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    user = keras.Input((), dtype="int32")
    table = keras.layers.Embedding(*seen.shape, name="user")
    model = keras.Model(user, table(user))
    table.set_weights([10.0 * seen @ weights])
    return model


def make_student(users: int, items: int, units: int) -> keras.Model:
    """Two towers of embeddings; the scores are inner products with all items."""
    user = keras.Input((), dtype="int32")
    embedded = keras.layers.Embedding(users, units, name="user")(user)
    return keras.Model(user, keras.layers.Dense(items, name="items")(embedded))


def main() -> None:
    """Train the student alone and with its teacher, compare, and serve the better one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    users, items, epochs = (256, 80, 2) if options.smoke else (3000, 600, 40)
    split = interactions(users, items)
    seen = split.seen().astype("float32")
    numbers = np.arange(users, dtype="int32")
    teacher = make_teacher(seen)

    def ndcg(model: keras.Model) -> float:
        scores = model.predict(numbers, batch_size=1024, verbose=0)
        return metrics.ranking_quality(scores, split.test, exclude=split.seen(validation=True)).ndcg

    print(f"teacher        {ndcg(teacher):.4f}")
    distilled = {
        "alone": [],
        "soft targets": [LogitsDistillation(1.0, losses.SoftTargets())],
        "RD": [LogitsDistillation(1.0, losses.RankedItems(20, position_decay=10.0))],
        "RRD": [LogitsDistillation(1.0, losses.RelaxedRanking(40, 100))],
        "DE and RRD": [
            LogitsDistillation(1.0, losses.RelaxedRanking(40, 100)),
            terms.ExpertDistillation("user", "user"),
        ],
    }
    weights = {"soft targets": [2.0], "RD": [2.0], "RRD": [0.02], "DE and RRD": [0.02, 0.001]}
    found = {}
    own = seen / np.maximum(seen.sum(1, keepdims=True), 1.0)
    for name in ("alone", "RD", "DE and RRD") if options.smoke else distilled:
        chosen = distilled[name]
        keras.utils.set_random_seed(0)
        student = make_student(users, items, 8)
        model = Distiller(teacher, student, chosen, weights[name], student_loss_weight=0.5) if chosen else student
        model.compile(keras.optimizers.Adam(0.01), keras.losses.CategoricalCrossentropy(from_logits=True))
        model.fit(numbers, own, batch_size=128, epochs=epochs, verbose=0)
        found[name] = (ndcg(student), student)
        print(f"{name:14} {found[name][0]:.4f}", flush=True)
    best = max(found.values(), key=lambda each: each[0])[1]
    tower = keras.Model(best.input, best.get_layer("user").output)
    kernel, bias = best.get_layer("items").get_weights()
    ones = keras.layers.Lambda(lambda x: keras.ops.pad(x, [[0, 0], [0, 1]], constant_values=1.0))  # for the bias
    tower = keras.Model(tower.input, ones(tower.output))
    served = students.retriever(tower, np.concatenate([kernel, bias[None]]).T, k=10)
    folder = pathlib.Path(tempfile.mkdtemp()) / "retriever"
    served.export(folder, verbose=False)
    loaded = tf.saved_model.load(str(folder))
    answer = loaded.serve(tf.constant(numbers[:1]))
    print("best items of user 0, from the exported model:", answer["items"].numpy()[0].tolist())


if __name__ == "__main__":
    main()
