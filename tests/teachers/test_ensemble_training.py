"""Ensembles in a distiller: one member, graph and XLA, a learned gate, features of members, files."""

import keras
import numpy as np
import pytest

import keras_distill
from keras_distill import teachers
from keras_distill.terms import FeatureDistillation, LogitsDistillation
from tests.models import batches
from tests.teachers.test_ensemble import CLASSES, close, dense, rng

X = rng.normal(size=(32, 4)).astype("float32")


Y = rng.integers(0, CLASSES, 32)


def train(teacher, epochs=2, seed=7, **compiled):
    keras.utils.set_random_seed(seed)
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(CLASSES)])
    distiller = keras_distill.Distiller(teacher, student, LogitsDistillation(temperature=2.0))
    distiller.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True), **compiled
    )
    history = distiller.fit(batches(X, Y, size=8), epochs=epochs, verbose=0)
    return history.history["loss"], student.get_weights(), distiller


def test_an_ensemble_of_one_trains_the_same_student_bit_by_bit():
    model = dense()
    one, other = train(model), train(teachers.Ensemble([model]))
    assert one[0] == other[0]
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("combine", ["mean_probs", "gradient", "learned_gate"])
def test_rules_train_alike_in_graph_and_xla(combine):
    models = [dense() for _ in range(3)]
    plain = train(teachers.Ensemble(models, combine=combine), jit_compile=False)
    compiled = train(teachers.Ensemble(models, combine=combine), jit_compile=True)
    np.testing.assert_allclose(plain[0], compiled[0], rtol=1e-5)
    assert plain[0][-1] < plain[0][0]


def test_stochastic_trains_under_xla():
    history, _, _ = train(
        teachers.Ensemble([dense() for _ in range(3)], combine="stochastic"), epochs=6, jit_compile=True
    )
    assert history[-1] < history[0]


def test_the_gate_learns_and_the_members_do_not():
    models = [dense() for _ in range(3)]
    before = [model.get_weights() for model in models]
    ensemble = teachers.Ensemble(models, combine=teachers.LearnedGate(entropy_weight=0.0))
    _, _, distiller = train(ensemble, epochs=10)
    weights = np.asarray(ensemble.listen(X)[0].weights())
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)
    assert np.abs(weights - 1 / 3).max() > 0.01
    for model, old in zip(models, before, strict=True):
        for a, b in zip(model.get_weights(), old, strict=True):
            np.testing.assert_array_equal(a, b)
    # The entropy penalty pulls the weights back to equal ones.
    equal = teachers.Ensemble(models, combine=teachers.LearnedGate(entropy_weight=3.0))
    train(equal, epochs=10)
    assert np.abs(np.asarray(equal.listen(X)[0].weights()) - 1 / 3).mean() < np.abs(weights - 1 / 3).mean() / 3
    distiller.evaluate(X, Y, verbose=0)


def test_feature_terms_can_use_the_layers_of_one_member():
    def member():
        layers = [keras.Input((4,)), keras.layers.Dense(6, name="hidden"), keras.layers.Dense(CLASSES)]
        return keras.Sequential(layers)

    models = [member(), member()]

    def losses_of(teacher, name):
        keras.utils.set_random_seed(3)
        layers = [keras.Input((4,)), keras.layers.Dense(6, name="inner"), keras.layers.Dense(CLASSES)]
        term = FeatureDistillation(loss="mse", teacher_layer_name=name, student_layer_name="inner")
        distiller = keras_distill.Distiller(teacher, keras.Sequential(layers), term, student_loss_weight=0.0)
        distiller.compile(keras.optimizers.SGD(0.1))
        return distiller.fit(X, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]

    assert losses_of(teachers.Ensemble(models), "1/hidden") == losses_of(models[1], "hidden")


def test_a_saved_distiller_keeps_its_ensemble(tmp_path):
    rules = ["mean_probs", teachers.GradientBased(0.9), teachers.LearnedGate()]
    for index, combine in enumerate(rules):
        maps = [[1, 0, 2, 3, 4], None]
        teacher = teachers.Ensemble([dense(), dense()], combine=combine, temperatures=[1.5, 1.0], class_maps=maps)
        _, _, distiller = train(teacher, epochs=1, run_eagerly=True)  # four steps cost less than a trace
        distiller.save(tmp_path / f"{index}.keras")
        loaded = keras.saving.load_model(tmp_path / f"{index}.keras")
        close(loaded.teacher(X), teacher(X), 1e-6)
        assert loaded.teacher.combine.get_config().keys() == teacher.combine.get_config().keys()
