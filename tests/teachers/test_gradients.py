"""A gradient reaches a teacher's input if requested, and never otherwise."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import teachers
from tests.models import batch, mlp

X, _ = batch(5)


class Older(teachers.Teacher):
    """A teacher written before the argument existed."""

    def listen(self, teacher_x, taps=()):
        return tf.stop_gradient(teacher_x), {}


def dropping():
    init = keras.initializers.GlorotUniform(seed=1)
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dropout(0.0), keras.layers.Dense(4, kernel_initializer=init)]
    )


# The second entry is the teacher's prediction as a function of the model's logits z.
CASES = {
    "single": (teachers.Single, lambda z: z),
    "ensemble": (lambda m: teachers.Ensemble([m, m], combine="mean_logits"), lambda z: z),
    "mean_probs": (lambda m: teachers.Ensemble([m]), lambda z: z),
    "in_turn": (lambda m: teachers.Ensemble([m, m], combine="stochastic"), lambda z: z),
    "calibrated": (lambda m: teachers.Calibrated(m, keras.layers.Rescaling(0.5)), lambda z: 0.5 * z),
    "preprocessed": (lambda m: teachers.Preprocessed(m, fn=lambda x: x), lambda z: z),
    "fast": (lambda m: teachers.Fast(m, dtype="float32"), lambda z: z),
    "dropout": (lambda m: teachers.MonteCarloDropout(m, 2), tf.nn.log_softmax),
}


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_model(name):
    make, said = CASES[name]
    model = dropping() if name == "dropout" else mlp(8, 4, seed=1)
    teacher = make(model)
    toward = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")
    x = tf.constant(X)
    gradients = []
    for differentiable in (True, False):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = teachers._base.resolved(teacher.listen(x, differentiable=differentiable)[0])
            value = tf.reduce_sum(outputs * toward)
        gradients.append(tape.gradient(value, x))
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(said(model(x)) * toward)
    np.testing.assert_allclose(gradients[0], tape.gradient(value, x), atol=1e-5)
    assert gradients[1] is None or not np.any(gradients[1])


def test_a_teacher_without_gradients_is_refused_and_an_older_listen_still_works():
    stored = teachers.Precomputed(np.zeros((5, 4), "float32"), X)
    with pytest.raises(ValueError, match="Precomputed: expected a teacher that Keras runs on the inputs"):
        stored.listen(X, differentiable=True)
    with pytest.raises(ValueError, match="expected to be the teacher of a Distiller"):
        teachers.Peers().listen(X, differentiable=True)
    around = teachers.Preprocessed(Older(), fn=lambda x: x)
    np.testing.assert_array_equal(around.listen(X)[0], X)
