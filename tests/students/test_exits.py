"""Exits share the model's layers, and training with weight 0 for the exits is plain training."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, students, teachers
from tests.models import batch, copy_of, mlp, softmax

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


def test_exits_with_weight_zero_equal_plain_fit():
    model = mlp(8, 4, seed=1)
    alone = copy_of(model)
    made = students.with_exits(model, ["dense_0"])
    term = LogitsDistillation(3.0, loss=["kl_divergence", None])
    distiller = Distiller(teachers.DeepestExit(), made, term, [0.0])
    distiller.compile(keras.optimizers.SGD(0.2), [CROSS_ENTROPY, CROSS_ENTROPY], loss_weights=[0.0, 1.0])
    distiller.fit(X, [Y, Y], **FIT)
    alone.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY)  # the supervised loss has weight one half
    alone.fit(X, Y, **FIT)
    for one, two in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-7)


def conv(seed=1):
    init = keras.initializers.GlorotUniform(seed=seed)
    x = h = keras.Input((8, 8, 1))
    for number in range(3):
        options = {"padding": "same", "kernel_initializer": init, "name": f"b{number}"}
        h = keras.layers.Conv2D(2 + number, 3, 2 if number else 1, **options)(h)
    return keras.Model(x, keras.layers.Dense(4, name="head")(keras.layers.GlobalAveragePooling2D()(h)))


def test_a_bottleneck_brings_a_shallow_map_to_the_deepest_shape_for_hints():
    made = students.with_exits(conv(), ["b0", "b1"], bottleneck="b2")
    assert [len(made.get_layer(f"features_{name}").output.shape) for name in ("b0", "b1")] == [4, 4]
    separable = [layer for layer in made.layers if isinstance(layer, keras.layers.SeparableConv2D)]
    assert len(separable) == 3  # 8 to 2 takes two halvings, 4 to 2 one
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype("float32")
    hint = FeatureDistillation("mse", "b2", "features_b1", adapter=None)
    distiller = Distiller(teachers.DeepestExit(), made, [hint], student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.1))
    inner = keras.Model(made.input, [made.get_layer(name).output for name in ("b2", "features_b1")])
    deepest, shallow = (np.asarray(each, "float64") for each in inner(images, training=True))
    before = made.get_layer("b2").get_weights()
    history = distiller.fit(images, batch_size=6, verbose=0).history
    assert history["distillation_loss"][0] == pytest.approx(np.mean((deepest - shallow) ** 2), rel=1e-4)
    np.testing.assert_array_equal(before[0], made.get_layer("b2").get_weights()[0])  # the deepest learns nothing here


def test_a_gate_learns_from_the_labels_through_the_mixture():
    x = keras.Input((6,))
    init = [keras.initializers.GlorotUniform(seed=seed) for seed in range(3)]
    trunk = keras.layers.Dense(5, kernel_initializer=init[0], name="trunk")(x)
    heads = [keras.layers.Dense(4, kernel_initializer=init[1 + i], name=f"branch_{i}")(trunk) for i in range(2)]
    made = students.with_gate(keras.Model(x, heads), "trunk")
    first, second, mixture, gate = (np.asarray(each, "float64") for each in made(X))
    shares, p = softmax(gate), [softmax(first), softmax(second)]
    mixed = shares[:, :1] * p[0] + shares[:, 1:] * p[1]
    np.testing.assert_allclose(np.exp(mixture), mixed, rtol=1e-5)
    rows = np.arange(24)
    at_label = np.stack([each[rows, Y] for each in p], 1)
    pull = shares * (1 - at_label / mixed[rows, Y][:, None]) / 24  # gradient of -log mixture to the gate's logits
    bias = made.get_layer("gate").bias.numpy().astype("float64")
    term = LogitsDistillation(1.0, loss=["kl_divergence", "kl_divergence", None, None])
    distiller = Distiller(teachers.GatedPeers(), made, term, student_loss_weight=0.5)
    distiller.compile(keras.optimizers.SGD(0.4), [CROSS_ENTROPY] * 3 + [None])
    history = distiller.fit(X, [Y] * 4, batch_size=24, verbose=0).history
    np.testing.assert_allclose(made.get_layer("gate").bias, bias - 0.2 * pull.sum(0), atol=2e-6)
    expected = sum((mixed * (np.log(mixed) - np.log(each))).sum(-1).mean() for each in p)
    assert history["distillation_loss"][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: students.with_exits(mlp(8, 4), ["dense_7"]), "expected a layer of model .* got 'dense_7'. Nearest:"),
        (lambda: students.with_exits(mlp(8, 4), "dense_0"), "expected a list of layer names"),
        (
            lambda: students.with_exits(conv(), ["b1"], bottleneck="b0"),
            "map reached by halving the layer's",
        ),
        (lambda: students.with_gate(mlp(8, 4), "dense_0"), "two or more outputs of one shape"),
        (lambda: students.with_exits(keras.Model(), ["dense_0"]), "a built Functional or Sequential model"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
