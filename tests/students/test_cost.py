"""Costs against counts by hand."""

import keras
import numpy as np
import pytest

from keras_distill import students


def test_the_cost_of_convolution_and_dense_equals_a_count_by_hand():
    model = keras.Sequential(
        [
            keras.Input((8, 10, 3)),
            keras.layers.Conv2D(4, 3, strides=2, padding="same", name="conv"),
            keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
            keras.layers.Conv2D(6, 1, groups=2),
            keras.layers.Conv2DTranspose(5, 2, strides=2),
            keras.layers.Flatten(),
            keras.layers.Dense(7),
        ]
    )
    conv = 4 * 5 * 4 * (9 * 3)
    depthwise = 2 * 3 * 8 * 9
    grouped = 2 * 3 * 6 * 4
    transposed = 2 * 3 * 6 * (4 * 5)
    dense = 4 * 6 * 5 * 7
    assert students.cost(model).macs == conv + depthwise + grouped + transposed + dense
    assert students.cost(model).parameters == model.count_params()
    assert students.cost(model).bytes == 4 * model.count_params()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_the_body_of_a_loop_is_counted_for_each_iteration(kind):
    gates = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}[kind]
    model = keras.Sequential([keras.Input((7, 5)), getattr(keras.layers, kind)(4), keras.layers.Dense(3)])
    assert students.cost(model).macs == 7 * gates * 4 * (5 + 4) + 4 * 3


def test_attention_is_counted_with_its_products_of_queries_and_keys():
    x = keras.Input((6, 8))
    model = keras.Model(x, keras.layers.MultiHeadAttention(2, 3)(x, x))
    projections = 4 * 6 * 8 * (2 * 3)
    products = 2 * (2 * 6 * 6 * 3)
    assert students.cost(model).macs == projections + products


@pytest.mark.parametrize(("name", "giga"), [("MobileNetV2", 0.3008), ("ResNet50", 3.858), ("EfficientNetB0", 0.3858)])
def test_known_networks_within_one_per_cent(name, giga):
    """Counted by hand from the layers' shapes."""
    network = getattr(keras.applications, name)(weights=None)
    assert abs(students.cost(network).macs / (giga * 1e9) - 1) < 0.01


def test_peak_activations_of_a_chain_and_of_a_skip():
    chain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(10, activation="relu"), keras.layers.Dense(3)])
    assert students.cost(chain).peak_activations == 4 + 10
    x = keras.Input((4,))
    hidden = keras.layers.Dense(9)(keras.layers.Dense(5)(x))
    skip = keras.Model(x, keras.layers.Concatenate()([x, hidden]))
    assert students.cost(skip).peak_activations == 4 + 9 + 13


def test_unknown_input_sizes_must_be_given():
    tokens = keras.Input((None,), dtype="int32")
    model = keras.Model(tokens, keras.layers.Dense(2)(keras.layers.Embedding(9, 4)(tokens)))
    with pytest.raises(ValueError, match=r"cost: expected inputs of known sizes, got an input .*Give an"):
        students.cost(model)
    assert students.cost(model, inputs=np.zeros((3, 5), "int32")).macs == 5 * 4 * 2


def test_models_without_a_build_or_a_graph_are_refused():
    with pytest.raises(ValueError, match=r"cost: expected a built keras.Model, got 'raw', which is not built"):
        students.cost(keras.Sequential([keras.layers.Dense(2)], name="raw"))


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({}, "Budget: expected at least one of parameters, macs, file_bytes and latency_ratio, got none"),
        ({"latency_ratio": 1.5}, "Budget: expected latency_ratio > 0 and <= 1, got 1.5. 0.25 means four times"),
        ({"parameters": 0.5}, "Budget: expected parameters to be an integer >= 1, got 0.5. Give a number, not a"),
    ],
)
def test_budgets_out_of_range_are_refused(limits, text):
    with pytest.raises(ValueError, match=text):
        students.Budget(**limits)
