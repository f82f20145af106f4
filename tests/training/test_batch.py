"""The parts of a batch: which entries of a dictionary of inputs are not inputs of the student."""

import keras
import numpy as np

from keras_distill.training._batch import extra_fields


def test_a_sequential_built_by_its_first_call_has_no_named_inputs_and_raises_nothing():
    model = keras.Sequential([keras.layers.Dense(2)])
    model(np.ones((1, 3), "float32"))
    batch = {"x": 1, "answers": 2}
    assert extra_fields(batch, model) == batch


def test_fields_without_an_input_of_the_model_are_extra():
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((2,), name="b")}
    model = keras.Model(inputs, keras.layers.Add()(list(inputs.values())))
    assert extra_fields({"a": 1, "b": 2, "more": 3}, model) == {"more": 3}
