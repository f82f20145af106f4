"""Behaviour that all regimes have in common, with one test each."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import regimes
from tests.models import batch, copy_of, mlp, softmax

X, Y = batch(24)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
MADE = {
    "Alone": lambda: regimes.Alone(mlp(5, 4, seed=1)),
    "MutualLearning": lambda: regimes.MutualLearning([mlp(8, 4, seed=1), mlp(5, 4, seed=2)]),
    "Amalgamation": lambda: regimes.Amalgamation([mlp(2, seed=1), mlp(2, seed=2)], [[0, 1], [2, 3]], mlp(5, 4, seed=3)),
    "BornAgain": lambda: regimes.BornAgain(lambda: mlp(5, 4, seed=1)),
    "AssistantChain": lambda: regimes.AssistantChain(mlp(9, 4, seed=1), [mlp(8, 4, seed=2)], mlp(5, 4, seed=3)),
    "Stages": lambda: regimes.Stages([regimes.Alone(mlp(5, 4, seed=1))]),
}


@pytest.mark.parametrize("name", MADE)
def test_a_regime_is_compiled_and_fitted_like_a_model_and_leaves_ordinary_models(name, tmp_path):
    optimizer = keras.optimizers.Adam(0.01)
    regime = MADE[name]()
    regime.compile(optimizer, CROSS_ENTROPY, ["accuracy"], run_eagerly=True)  # a few steps cost less than a trace
    history = regime.fit(X, Y, batch_size=12, epochs=2, verbose=0)
    assert isinstance(history, keras.callbacks.History)
    assert len(history.history["accuracy"]) == 2
    assert not optimizer.built  # each player had a copy
    found = getattr(regime, "students", [regime.student])
    for index, student in enumerate(found):
        assert isinstance(student, keras.Model) and not isinstance(student, regimes.Regime)
        student.save(tmp_path / f"{index}.keras")
        again = keras.saving.load_model(tmp_path / f"{index}.keras")
        np.testing.assert_allclose(again(X), student(X), rtol=1e-5, atol=1e-6)


def test_each_player_has_an_optimizer_of_its_own():
    mutual = MADE["MutualLearning"]()
    mutual.compile(keras.optimizers.SGD(0.1, momentum=0.9), CROSS_ENTROPY)
    one, two = (learner.optimizer for learner in mutual._learners.values())
    assert one is not two and one.get_config() == two.get_config()


def test_the_mutual_loss_is_cross_entropy_and_the_mean_divergence_from_the_other_peers():
    peers = [mlp(4, seed=seed) for seed in range(3)]
    p = [softmax(peer(X)) for peer in peers]
    mutual = regimes.MutualLearning(peers, mutual_weight=0.5)
    mutual.compile(keras.optimizers.SGD(0.0), CROSS_ENTROPY)
    history = mutual.fit(X, Y, batch_size=24, verbose=0).history
    rows = np.arange(24)
    labels = [-np.log(each[rows, Y]).mean() for each in p]
    divergence = [
        np.mean([(p[l] * np.log(p[l] / p[k])).sum(-1).mean() for l in range(3) if l != k])  # noqa: E741
        for k in range(3)
    ]
    assert history["loss"][0] == pytest.approx(sum(labels) + 0.5 * sum(divergence), rel=1e-5)
    assert history["mutual_loss"][0] == pytest.approx(np.mean(divergence), rel=1e-5)


def test_make_student_is_called_for_each_generation():
    made = []

    def make_student():
        made.append(mlp(5, 4, seed=len(made)))
        return made[-1]

    born_again = regimes.BornAgain(make_student, num_generations=2)
    born_again.compile("sgd", CROSS_ENTROPY, run_eagerly=True)
    born_again.fit(X, Y, verbose=0)
    assert len(made) == 3 and all(one is two for one, two in zip(made, born_again.students, strict=True))


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_cross_fit_takes_a_function_data_folds_and_arguments_of_fit(kind):
    epochs = []

    class Counted(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            epochs.append(epoch)

    def make_teacher():
        model = mlp(5, 4, seed=1)
        model.compile("sgd", CROSS_ENTROPY)
        return model

    data = (X, Y) if kind == "arrays" else tf.data.Dataset.from_tensor_slices((X, Y)).batch(5)
    arguments = {"epochs": 2, "verbose": 0, "callbacks": [Counted()]}
    fitted = regimes.cross_fit(make_teacher, data, 2, fit_arguments=arguments)
    assert fitted.answers.shape == (24, 4) and epochs == [0, 1, 0, 1]


def test_average_weights_returns_a_new_model():
    models = [mlp(5, 4, seed=1), mlp(5, 4, seed=2)]
    before = [copy_of(model).get_weights() for model in models]
    made = regimes.average_weights(models)
    made.set_weights([0 * w for w in made.get_weights()])
    for model, weights in zip(models, before, strict=True):
        for one, two in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(one, two)
