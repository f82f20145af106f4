"""Kendall's weights: against gradient descent in NumPy, at their optimum, and through a real distiller."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, terms
from tests.models import batches


def models():
    """A teacher and a student of two tasks: an easy one, and one that the student cannot learn."""
    made = []
    for seed, seen in ((0, slice(None)), (1, slice(0, 2))):
        init = keras.initializers.GlorotNormal(seed=seed)
        inputs = keras.Input((4,))
        easy = keras.layers.Dense(3, kernel_initializer=init, name=f"easy_{seed}")(inputs[:, :2])
        hard = keras.layers.Dense(3, kernel_initializer=init, name=f"hard_{seed}")(inputs[:, seen])
        made.append(keras.Model(inputs, {"easy": easy, "hard": 3.0 * hard}))
    return made


X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")


def test_the_hard_task_gets_less_weight_and_each_tends_to_half_the_inverse_of_its_loss(tmp_path):
    plain, weighed = LogitsDistillation(1.0), terms.LearnedWeights(LogitsDistillation(1.0))
    teacher, student = models()
    distiller = Distiller(teacher, student, weighed, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 300)))
    distiller.fit(batches(X, size=64).repeat(300), verbose=0)
    easy, hard = weighed.weights_of_outputs
    assert easy > 5 * hard
    losses = plain.losses_by_output(teacher(X), student(X))
    np.testing.assert_allclose(hard, 0.5 / float(losses["hard"]), rtol=0.02)
    distiller.save(tmp_path / "saved.keras")
    again = keras.models.load_model(tmp_path / "saved.keras")
    np.testing.assert_allclose(again.distillation_losses[0].weights_of_outputs, [easy, hard], rtol=1e-6)


def test_each_step_is_that_of_the_formula():
    teacher, student = models()
    plain, weighed = LogitsDistillation(1.0), terms.LearnedWeights(LogitsDistillation(1.0), start=0.5)
    before = {name: float(value) for name, value in plain.losses_by_output(teacher(X), student(X)).items()}
    distiller = Distiller(teacher, student, weighed, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.1))
    history = distiller.fit(X, batch_size=64, epochs=1, verbose=0).history
    expected = sum(0.5 * value + np.log(2) / 2 for value in before.values())
    np.testing.assert_allclose(history["distillation_loss"][0], expected, rtol=1e-5)
    moved = [np.log(2) - 0.1 * (0.5 - 0.5 * before[name]) for name in ("easy", "hard")]  # ds = 1/2 - exp(-s) * loss
    np.testing.assert_allclose(weighed.weights_of_outputs, np.exp(-np.array(moved)), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: terms.LearnedWeights("kl"), "LearnedWeights: expected term to be one of keras_distill's terms, got"),
        (lambda: terms.LearnedWeights(LogitsDistillation(), start=0.0), "LearnedWeights: expected start > 0, got 0"),
        (
            lambda: terms.LearnedWeights(terms.UncertaintyDistillation()),
            "LearnedWeights: expected a term with one value per example",
        ),
    ],
)
def test_bad_input_raises_a_clear_error(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_a_term_on_features_has_one_weight():
    plain = FeatureDistillation("mse", ["a", "b"], ["a", "b"])
    term = terms.LearnedWeights(plain)
    ones, zeros = np.ones((2, 3), "float32"), np.zeros((2, 3), "float32")
    value = term.compute_loss([zeros, zeros], [ones, ones])
    assert term.weights_of_outputs == [1.0]
    np.testing.assert_allclose(value, plain.compute_loss([zeros, zeros], [ones, ones]))
