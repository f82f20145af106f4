"""Averages, fusion by distillation, and folds: against NumPy; no example is labelled by a teacher that saw it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, regimes, teachers
from tests.models import batch, batches, copy_of, kd, mlp, softmax

X, Y = batch(60)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def normalized(seed):
    init = keras.initializers.GlorotUniform(seed=seed)
    layers = [keras.layers.Dense(5, kernel_initializer=init), keras.layers.BatchNormalization(), keras.layers.Dense(4)]
    return keras.Sequential([keras.Input((6,)), *layers])


def test_the_average_is_the_mean_and_that_of_equal_models_is_the_model():
    one, two = mlp(8, 4, seed=1), mlp(8, 4, seed=2)
    for got, a, b in zip(
        regimes.average_weights([one, two], [1, 3]).get_weights(), one.get_weights(), two.get_weights(), strict=True
    ):
        np.testing.assert_allclose(got, 0.25 * a + 0.75 * b, rtol=1e-6)
    same = regimes.average_weights([one, copy_of(one), copy_of(one)])
    np.testing.assert_allclose(same(X), one(X), rtol=1e-6)


def test_batch_norm_statistics_are_recomputed_as_means_over_batches():
    model = normalized(1)
    made = regimes.average_weights([model, copy_of(model)], recompute=[X[:30], X[30:]])
    hidden = [X[:30] @ model.layers[0].kernel.numpy(), X[30:] @ model.layers[0].kernel.numpy()]
    norm = made.layers[1]
    np.testing.assert_allclose(norm.moving_mean, np.mean([h.mean(0) for h in hidden], 0), atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, np.mean([h.var(0) for h in hidden], 0), rtol=1e-4)
    assert norm.momentum == model.layers[1].momentum


def test_a_greedy_soup_leaves_out_models_that_make_it_worse():
    good = mlp(4, seed=1)
    labels = np.asarray(good(X)).argmax(-1)
    near, bad = copy_of(good), copy_of(good)
    near.set_weights([w * 2 for w in good.get_weights()])
    bad.set_weights([-9 * w for w in good.get_weights()])
    soup = regimes.greedy_soup([bad, near, good], (X, labels))
    np.testing.assert_allclose(soup.get_weights()[0], 1.5 * good.get_weights()[0], rtol=1e-6)


def test_a_fused_student_comes_closer_to_the_mean_of_unlike_models():
    models = [mlp(8, 4, seed=1), mlp(5, 4, seed=2)]
    target = np.mean([np.asarray(model(X), "float64") for model in models], 0)
    student = mlp(16, 4, seed=3)
    before = kd(target, student(X), 1.0).mean()
    data, adam = batches(X), keras.optimizers.Adam(0.02)
    fused = regimes.fuse(models, data, student=student, optimizer=adam, epochs=40, verbose=0)
    assert fused is student and kd(target, fused(X), 1.0).mean() < 0.3 * before
    probs = np.log(np.mean([softmax(np.asarray(model(X), "float64")) for model in models], 0))
    student = mlp(16, 4, seed=3)
    before = kd(probs, student(X), 1.0).mean()
    adam = keras.optimizers.Adam(0.02)
    regimes.fuse(models, data, student=student, combine="mean_probs", optimizer=adam, epochs=40, verbose=0)
    assert kd(probs, student(X), 1.0).mean() < 0.3 * before
    start = regimes.fuse([mlp(8, 4, seed=1), mlp(8, 4, seed=2)], X, optimizer=keras.optimizers.SGD(0.0), verbose=0)
    average = regimes.average_weights([mlp(8, 4, seed=1), mlp(8, 4, seed=2)])
    np.testing.assert_allclose(start(X), average(X), rtol=1e-6)


def test_amalgamation_teaches_each_its_own_classes():
    teachers, classes = [mlp(2, seed=1), mlp(3, seed=2)], [[3, 0], [1, 2, 4]]
    student = mlp(5, seed=3)
    logits = np.asarray(student(X), "float64")
    expected = np.mean([kd(t(X), logits[:, c], 2.0).mean() for t, c in zip(teachers, classes, strict=True)])
    union = regimes.Amalgamation(teachers, classes, student, temperature=2.0)
    union.compile(keras.optimizers.SGD(0.0))
    assert union.fit(X, batch_size=60, verbose=0).history["distillation_loss"][0] == pytest.approx(expected, rel=1e-5)
    taught = regimes.amalgamate(
        teachers, classes, student, batches(X), optimizer=keras.optimizers.Adam(0.05), epochs=60, verbose=0
    )
    np.testing.assert_allclose(softmax(np.asarray(taught(X))[:, [3, 0]]), softmax(teachers[0](X)), atol=0.02)


class Remembers(keras.Model):
    """A teacher that memorises its training examples: logit 9 for the label of a known example, else zeros."""

    def __init__(self):
        super().__init__()
        self.compile()

    def fit(self, x, y, **_):
        self.seen = {row.tobytes(): label for row, label in zip(x, y, strict=True)}

    def predict(self, x, **_):
        return np.stack([9.0 * np.eye(4)[self.seen[row.tobytes()]] if row.tobytes() in self.seen else np.zeros(4)
                         for row in x])  # fmt: skip


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_every_example_is_labelled_by_a_teacher_that_never_saw_it(kind):
    x, y = np.concatenate([X, X[:10]]), np.concatenate([Y, Y[:10]])  # ten examples come twice
    data = (x, y) if kind == "arrays" else tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    fitted = regimes.cross_fit(Remembers, data, 3)
    np.testing.assert_array_equal(fitted.answers, 0.0)
    np.testing.assert_array_equal(fitted.folds[:10], fitted.folds[60:])
    for label in range(4):
        counts = np.bincount(fitted.folds[:60][Y == label], minlength=3)
        assert counts.max() - counts.min() <= 1
    corrected = regimes.cross_fit(Remembers, (x, y), 3, loss_correction=0.5)
    expected = 0.5 * 0.25 + 0.5 * np.eye(4)[y]
    np.testing.assert_allclose(np.exp(corrected.answers), expected, rtol=1e-5)


def test_out_of_fold_predictions_teach_and_a_killed_run_continues(tmp_path):
    made = []

    def make_teacher(limit=9):
        if len(made) >= limit:
            raise KeyboardInterrupt
        made.append(1)
        model = mlp(8, 4, seed=1)
        model.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY)
        return model

    arguments = {"fit_arguments": {"epochs": 2, "verbose": 0}}
    whole = regimes.cross_fit(make_teacher, (X, Y), 3, **arguments)
    made.clear()
    with pytest.raises(KeyboardInterrupt):
        regimes.cross_fit(lambda: make_teacher(1), (X, Y), 3, directory=tmp_path, **arguments)
    made.clear()
    resumed = regimes.cross_fit(make_teacher, (X, Y), 3, directory=tmp_path, **arguments)
    assert len(made) == 2
    np.testing.assert_array_equal(whole.answers, resumed.answers)
    with pytest.raises(ValueError, match="to be of this run, got one of other data or folds"):
        regimes.cross_fit(make_teacher, (X, Y), 2, directory=tmp_path, **arguments)
    student = mlp(4, seed=2)
    expected = kd(whole.answers, student(X), 2.0).mean()
    distiller = Distiller(resumed, student, LogitsDistillation(2.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    assert distiller.fit(X, batch_size=60, verbose=0).history["loss"][0] == pytest.approx(expected, rel=1e-5)


class Constant(keras.Model):
    """A model that always predicts one class."""

    def __init__(self, label):
        super().__init__()
        self.label = label
        self.compile()

    def fit(self, *_, **__):
        return None

    def predict(self, x, **_):
        return np.tile(np.eye(4)[self.label], (len(x), 1))


def test_cross_validation_is_paired_over_equal_folds():
    result = regimes.cross_validate({"zero": lambda: Constant(0), "one": lambda: Constant(1)}, (X, Y), 4)
    for name, label in (("zero", 0), ("one", 1)):
        np.testing.assert_array_equal(result.values[name], Y == label)
        assert result.mean(name) == pytest.approx(np.mean(Y == label), abs=0.02)
    mean, low, high = result.difference("zero", "one")
    paired = (Y == 0).astype(float) - (Y == 1)
    assert mean == pytest.approx(paired.mean())
    assert high - low == pytest.approx(2 * 1.96 * paired.std(ddof=1) / np.sqrt(60))
    assert str(result).splitlines()[0].startswith("zero  0.")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regimes.average_weights([mlp(4), mlp(5, 4)]), "expected models of one architecture"),
        (lambda: regimes.average_weights([mlp(5, 4), mlp(5, 4, activation="tanh")]), "expected models of one architec"),
        (lambda: regimes.average_weights([]), "expected a list of models"),
        (lambda: regimes.average_weights([mlp(4)], [0.0]), "1 weights that are not all 0"),
        (lambda: regimes.fuse([mlp(4)], X), "fuse: expected two or more models"),
        (
            lambda: regimes.fuse([mlp(4), mlp(4)], X, combine="mean"),
            "Ensemble: expected combine to be one of",
        ),
        (lambda: regimes.Amalgamation([mlp(2)], [[0, 5]], mlp(4)), "one of the student's 4 classes"),
        (lambda: regimes.cross_fit(Remembers, (X, Y), 1), "cross_fit: expected num_folds to be an integer >= 2"),
        (lambda: regimes.cross_fit(Remembers, (X, Y), 61), "expected num_folds <= 60, the number of examples"),
        (lambda: regimes.cross_fit(Remembers, (X, Y), 50), "at least 50 different examples of each class"),
        (lambda: regimes.cross_fit(lambda: mlp(4), (X, Y), 2), "make_teacher to return a compiled keras.Model"),
        (lambda: regimes.cross_validate({}, (X, Y), 2), "expected a dictionary of methods"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("task", ["BertMaskedLM", "GPT2CausalLM"])
def test_copies_of_language_models_keep_their_embedding_tied(task):
    models = pytest.importorskip("keras_hub").models
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8, "max_sequence_length": 4}
    family = task.removesuffix("MaskedLM").removesuffix("CausalLM")
    one, two = (getattr(models, task)(getattr(models, f"{family}Backbone")(30, **sizes)) for _ in range(2))
    x = {name: np.ones((2, 4), "int32") for name in one.input}
    snapshot, mean = teachers.Snapshot(one, decay=0.5), regimes.average_weights([one, two])
    assert len(snapshot.weights) == len(mean.weights) == len(one.weights)  # an untied one has a table more
    np.testing.assert_array_equal(np.asarray(snapshot(x)), np.asarray(one(x)))
    snapshot.update(two)
    two.set_weights([(a + b) / 2 for a, b in zip(one.get_weights(), two.get_weights(), strict=True)])
    for made in (snapshot, mean):
        np.testing.assert_allclose(np.asarray(made(x)), np.asarray(two(x)), rtol=1e-6, atol=1e-6)


def test_a_layer_held_by_another_cannot_be_copied_and_is_named():
    hub, tokens, places = pytest.importorskip("keras_hub").layers, keras.Input((4,)), keras.Input((2,), dtype="int32")
    table = hub.ReversibleEmbedding(9, 3)
    tied = keras.Model([tokens, places], hub.MaskedLMHead(token_embedding=table, name="head")(table(tokens), places))
    with pytest.raises(ValueError, match=r"Snapshot: expected a model that keras.models.clone_model can copy, got"):
        teachers.Snapshot(tied)
