"""Taps: any layer's tensor from one pass, with nothing left behind."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, FeatureDistillation, taps
from tests.models import mlp


def relu(x):
    return np.maximum(x, 0)


class Block(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.inner = keras.layers.Dense(units, name="inner")

    def call(self, x):
        return x + self.inner(x)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.blocks = [Block(3, name="first"), Block(3, name="second")]

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def nested():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5, name="deep")], name="backbone")
    return keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(2, name="head")])


X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


def run(mode, call):
    if mode == "eager":
        return call(tf.constant(X))
    return tf.function(call, autograph=False, jit_compile=mode == "xla")(tf.constant(X))


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_nested_layers_by_path(mode):
    model = nested()
    outputs, tapped = run(mode, taps.Taps(model, ["backbone/deep", "head:input", "backbone"]))
    deep = X @ model.get_layer("backbone").get_layer("deep").kernel + 0
    for name in ("backbone/deep", "head:input", "backbone"):
        np.testing.assert_allclose(tapped[name], deep, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs, model(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_layers_inside_layers_of_subclassed_models(mode):
    model = Subclassed()
    model(X)
    _, tapped = run(mode, taps.Taps(model, ["second/inner", "first"]))
    first = X + X @ model.blocks[0].inner.kernel
    np.testing.assert_allclose(tapped["first"], first, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tapped["second/inner"], first @ model.blocks[1].inner.kernel, rtol=1e-5, atol=1e-6)


def test_a_subclassed_model_may_be_unbuilt():
    model = Subclassed()
    tapper = taps.Taps(model, ["second/inner"])
    assert tapper(X)[1]["second/inner"].shape == (4, 3)
    np.testing.assert_allclose(tapper(X)[1]["second/inner"], model.blocks[1].inner(model.blocks[0](X)), rtol=1e-5)


def test_each_call_of_a_shared_layer():
    shared = keras.layers.Dense(3, name="shared")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, shared(keras.ops.relu(shared(inputs))))
    once = X @ shared.kernel
    _, tapped = taps.Taps(model, ["shared#0", "shared#1", "shared", "shared#1:input"])(X)
    np.testing.assert_allclose(tapped["shared#0"], once, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tapped["shared#1:input"], relu(once), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tapped["shared#1"], relu(once) @ shared.kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(tapped["shared"], tapped["shared#1"])
    with pytest.raises(ValueError, match="call number below 2 for layer 'shared', got 'shared#2'"):
        taps.Taps(model, ["shared#2"])(X)


def test_the_model_is_left_as_it_was_even_after_an_error():
    model = nested()
    layers = [layer for _, layer in taps.walk(model)]
    before = [set(vars(layer)) for layer in layers]
    tapper = taps.Taps(model, ["backbone/deep"])
    tapper(X)
    with pytest.raises(ValueError):
        tapper(np.ones((4, 7), "float32"))
    assert [set(vars(layer)) - {"_saved_model_inputs_spec"} for layer in layers] == [
        names - {"_saved_model_inputs_spec"} for names in before
    ]
    assert all("call" not in vars(layer) for layer in layers)


def test_unknown_and_ambiguous_names():
    with pytest.raises(ValueError, match=r"got 'backbone/dep'\. Nearest: 'backbone/deep', 'backbone'"):
        taps.Taps(nested(), ["backbone/dep"])
    twins = Subclassed()
    twins.blocks[1].name = "first"
    twins(X)
    with pytest.raises(ValueError, match="'first', the name of 2 layers"):
        taps.Taps(twins, ["first"])


def test_an_argument_of_a_call_by_its_name():
    class Scaled(keras.layers.Layer):
        def call(self, x, factor=None):
            return x * factor

    inputs = keras.Input((3,))
    model = keras.Model(inputs, Scaled(name="scaled")(inputs, factor=keras.layers.Dense(3)(inputs)))
    outputs, tapped = taps.Taps(model, ["scaled:factor", "scaled:input", "scaled:x"])(X)
    np.testing.assert_allclose(tapped["scaled:factor"] * X, outputs, rtol=1e-6)
    np.testing.assert_array_equal(tapped["scaled:input"], X)
    np.testing.assert_array_equal(tapped["scaled:x"], X)
    with pytest.raises(ValueError, match="an argument 'mask' in the call of layer 'scaled', got only x, factor"):
        taps.Taps(model, ["scaled:mask"])(X)


def test_list_taps_shows_every_name_and_shape():
    lines = []
    shapes = taps.list_taps(nested(), print_fn=lines.append)
    assert shapes == {"backbone": (None, 5), "backbone/deep": (None, 5), "head": (None, 2)}
    assert lines == [
        "name           output shape",
        "backbone       (None, 5)",
        "backbone/deep  (None, 5)",
        "head           (None, 2)",
    ]
    assert taps.list_taps(Subclassed(), print_fn=None)["second/inner"] is None


@pytest.mark.slow
def test_a_published_model_gives_its_hidden_layers_and_logits():
    model = keras.applications.MobileNetV3Small(input_shape=(32, 32, 3), weights=None, classes=7)
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    linear = taps.without_softmax(model)
    outputs, tapped = taps.Taps(linear, ["expanded_conv_2_add"])(x, training=False)
    inner = keras.Model(linear.input, linear.get_layer("expanded_conv_2_add").output)
    np.testing.assert_allclose(tapped["expanded_conv_2_add"], inner(x, training=False), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(keras.ops.softmax(outputs), model(x, training=False), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["dense", "layer", "activation", "nested"])
def test_without_softmax_keeps_the_weights(head):
    last = {
        "dense": [keras.layers.Dense(4, activation="softmax")],
        "layer": [keras.layers.Dense(4), keras.layers.Softmax()],
        "activation": [keras.layers.Dense(4), keras.layers.Activation("softmax")],
        "nested": [keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, activation="softmax")])],
    }[head]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5), *last])
    before = model.get_weights()
    assert taps.final_activation(model) == ["softmax"]
    linear = taps.without_softmax(model)
    assert taps.final_activation(linear) == [None]
    np.testing.assert_allclose(keras.ops.softmax(linear(X)), model(X), rtol=1e-5)
    linear.set_weights([0 * weight for weight in linear.get_weights()])
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_without_softmax_refuses_ambiguous_models():
    with pytest.raises(
        ValueError, match=r"ends in softmax or sigmoid, got Subclassed 'subclassed'\. A subclassed model"
    ):
        taps.without_softmax(Subclassed())
    with pytest.raises(ValueError, match="ends in softmax or sigmoid, got Sequential"):
        taps.without_softmax(mlp(4))


def test_taps_survive_saving_and_loading_the_distiller(tmp_path):
    model = nested()
    teacher = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5, name="t"), keras.layers.Dense(2)])
    distiller = Distiller(teacher, model, FeatureDistillation("mse", "t", "backbone/deep"), student_loss_weight=0.0)
    distiller.compile("sgd")
    expected = distiller.evaluate(X, verbose=0, return_dict=True)["loss"]
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.evaluate(X, verbose=0, return_dict=True)["loss"] == pytest.approx(expected, rel=1e-6)
    difference = teacher.layers[0](X).numpy() - model.layers[0](X).numpy()
    assert expected == pytest.approx(np.mean(np.square(difference)), rel=1e-5)
