"""Former silent failures for new users: hidden softmax heads, frozen kernels, adapters, temperatures."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation
from keras_distill.calibration import TemperatureScaler
from keras_distill.heads import activation_of
from tests.models import batch, mlp

X, Y = batch(16)


class Softmax(keras.Model):
    """Its head is inside ``call``, where it cannot be found among the layers."""

    def __init__(self, activation="softmax"):
        super().__init__()
        self.dense, self.activation = keras.layers.Dense(4), keras.activations.get(activation)

    def call(self, inputs):
        return self.activation(self.dense(inputs))


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_softmax_inside_of_call_is_found_at_the_first_batch(role, options):
    models = {"teacher": mlp(4, seed=1), "student": mlp(4, seed=2), role: Softmax()}
    models[role](X)
    distiller = Distiller(**models, distillation_losses=LogitsDistillation(), student_loss_weight=0.0)
    distiller.compile("sgd", **options)
    message = rf"LogitsDistillation: expected a {role} that gives logits, got outputs of a softmax\. Let the {role}"
    with pytest.raises(ValueError, match=message):
        distiller.fit(X, verbose=0)


def test_logits_and_probabilities_are_told_apart():
    assert activation_of(tf.nn.softmax(X)) == "softmax" and activation_of(tf.constant(X)) is None
    assert activation_of(tf.constant([[1.0, 0.0], [0.0, 1.0]])) is None  # could be logits
    found = []
    tf.function(lambda x: found.append(activation_of(tf.stop_gradient(tf.cast(tf.nn.sigmoid(x), "float64")))))(X)
    tf.function(lambda x: found.append(activation_of(tf.nn.log_softmax(x))))(X)
    assert found == ["sigmoid", None]
    both = Distiller(Softmax(), Softmax(), LogitsDistillation(from_logits=False), student_loss_weight=0.0)
    both.teacher(X)
    both.compile("sgd")
    both.fit(X, verbose=0)  # as documented


def test_a_quantised_student_is_warned_of():
    student = mlp(8, 4, seed=2)
    student.quantize("int8")
    with pytest.warns(
        UserWarning, match=r"2 layers of the student are quantised \('dense_0', 'dense_1'\): their kernels"
    ):
        Distiller(mlp(8, 4, seed=1), student, LogitsDistillation())


def test_the_repr_of_a_term_shows_its_chosen_adapter():
    term = FeatureDistillation("mse", "dense_0", "dense_0", adapter="auto", name="hint")
    assert repr(term) == (
        "<FeatureDistillation 'hint', 'dense_0' -> 'dense_0', adapter='auto' (chosen when the shapes are known)>"
    )
    distiller = Distiller(mlp(8, 4, seed=1), mlp(5, 4, seed=2), term, student_loss_weight=0.0)
    distiller.compile("sgd")
    distiller.fit(X, verbose=0)
    assert "adapter='auto' (student (None, 5) to teacher (None, 8): Dense(8) on the student)" in repr(term)
    assert "adapter=None" in repr(FeatureDistillation("mse", "a", "b"))


def test_a_temperature_beyond_a_hundred_is_found_and_bounds_are_explained():
    rng = np.random.default_rng(0)
    logits = 300.0 * rng.normal(size=(2000, 10))
    labels = np.where(rng.random(2000) < 0.69, logits.argmax(-1), rng.integers(0, 10, 2000))
    scaler = TemperatureScaler().fit(logits, labels)
    found = scaler.temperature
    assert 100.0 < found < 1000.0
    for other in (0.99 * found, 1.01 * found):  # the least NLL, in float64
        z = logits / other
        nll = np.mean(np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1)) + z.max(-1) - z[np.arange(2000), labels])
        assert nll > scaler.nll_after
    with pytest.warns(RuntimeWarning, match=r"took 100; the logits are too large for the bounds"):
        TemperatureScaler(bounds=(0.01, 100.0)).fit(logits, labels)
    with pytest.warns(RuntimeWarning, match=r"took 1; the logits of each row are equal"):
        TemperatureScaler().fit(np.ones((4, 3)), [0, 1, 2, 0])
    with pytest.warns(RuntimeWarning, match=r"took 0\.01; nearly every prediction is right"):
        TemperatureScaler().fit(9.0 * np.eye(3), [0, 1, 2])
    probabilities = np.exp(logits / found - np.log(np.exp(logits / found).sum(-1, keepdims=True)))
    with pytest.raises(ValueError, match=r"TemperatureScaler: expected logits, got rows of probabilities.*log\(prob"):
        TemperatureScaler().fit(probabilities, labels)


@pytest.mark.parametrize("eager", [True, False])
def test_an_empty_batch_raises_a_clear_error(eager):
    distiller = Distiller(mlp(4, seed=1), mlp(4, seed=2), LogitsDistillation(), student_loss_weight=0.0)
    distiller.compile("sgd", run_eagerly=eager)
    with pytest.raises(ValueError, match=r"expected at least one example in every batch, got an empty batch\. Drop"):
        distiller.train_on_batch(X[:0])
