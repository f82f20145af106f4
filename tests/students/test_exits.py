"""Exits share the model's layers, and training with the exits off is plain training."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, LogitsDistillation, students, teachers
from tests.models import batch, copy_of, mlp

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = batch(24)
FIT = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}


def test_the_deepest_output_is_the_model_and_an_exit_is_its_head_on_the_layer():
    model = mlp(8, 5, 4, seed=1)
    made = students.with_exits(model, ["dense_0", "dense_1"])
    first, _, last = made(X)
    np.testing.assert_array_equal(last, model(X))
    hidden = np.maximum(X @ model.layers[0].kernel.numpy() + model.layers[0].bias.numpy(), 0)
    head = made.get_layer("exit_dense_0")
    np.testing.assert_allclose(first, hidden @ head.kernel.numpy() + head.bias.numpy(), rtol=1e-4, atol=1e-5)


def test_exits_off_is_plain_fit():
    model = mlp(8, 4, seed=1)
    alone = copy_of(model)
    made = students.with_exits(model, ["dense_0"])
    term = LogitsDistillation(3.0, loss=["kl_divergence", None])
    distiller = Distiller(teachers.DeepestExit(), made, term, [0.0])
    distiller.compile(keras.optimizers.SGD(0.2), [CROSS_ENTROPY, CROSS_ENTROPY], loss_weights=[0.0, 1.0])
    distiller.fit(X, [Y, Y], **FIT)
    alone.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY)  # the supervised loss has a share of one half
    alone.fit(X, Y, **FIT)
    for one, two in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: students.with_exits(mlp(8, 4), ["dense_7"]), "expected a layer of model .* got 'dense_7'. Nearest:"),
        (lambda: students.with_exits(mlp(8, 4), "dense_0"), "expected a list of layer names"),
        (lambda: students.with_exits(keras.Model(), ["dense_0"]), "a built Functional or Sequential model"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
