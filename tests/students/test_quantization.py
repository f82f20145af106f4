"""Folding keeps the outputs, rounding equals the formula, and the LiteRT file runs the trained quantisation."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, LogitsDistillation, export, students

L = keras.layers


def residual():
    keras.utils.set_random_seed(0)
    x = keras.Input((10, 10, 3))
    hidden = L.ReLU()(L.BatchNormalization()(L.Conv2D(16, 3, padding="same", use_bias=False)(x)))
    branch = L.ReLU(6.0)(L.BatchNormalization(scale=False)(L.DepthwiseConv2D(3, padding="same")(hidden)))
    branch = L.BatchNormalization(center=False)(L.Conv2D(16, 1)(branch))
    hidden = L.ReLU()(L.Add()([hidden, branch]))
    hidden = L.Conv2D(32, 3, strides=2, activation="swish")(hidden)
    hidden = L.Dense(32, activation="relu")(L.GlobalAveragePooling2D()(hidden))
    model = keras.Model(x, L.Dense(5, name="head")(hidden))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("moving_mean", "beta")):
            weight.assign(rng.normal(size=weight.shape) * 0.2)
        elif weight.path.endswith(("moving_variance", "gamma")):
            weight.assign(rng.uniform(0.6, 1.4, size=weight.shape))
    return model


def pictures(count=256, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 10, 10, 3)).astype("float32")


def test_folding_gives_the_same_outputs_with_fewer_layers():
    model, x = residual(), pictures(16)
    folded = students.fold_batch_normalization(model)
    assert not [layer for layer in folded.layers if isinstance(layer, L.BatchNormalization)]
    np.testing.assert_allclose(np.asarray(folded(x)), np.asarray(model(x)), rtol=1e-4, atol=1e-5)


def test_folding_keeps_batch_norm_where_it_cannot_be_folded():
    x = keras.Input((4,))
    dense, shared = L.Dense(4, name="twice"), L.Dense(4, name="shared")
    hidden = dense(x)
    both = L.Add()([L.BatchNormalization()(hidden), hidden])  # the output is also used elsewhere
    both = L.BatchNormalization()(shared(shared(both)))  # the layer is called twice
    both = L.BatchNormalization()(L.Dense(4, activation="relu")(both))
    model = keras.Model(x, both)
    folded = students.fold_batch_normalization(model)
    assert sum(isinstance(layer, L.BatchNormalization) for layer in folded.layers) == 3
    values = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    np.testing.assert_array_equal(np.asarray(folded(values)), np.asarray(model(values)))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_weights_are_rounded_to_one_grid_per_channel(bits):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), L.Dense(4)])
    quantized = students.quantization_aware(model, weight_bits=bits, activation_bits=None)
    kernel = model.get_weights()[0].astype("float64")
    steps = 2 ** (bits - 1) - 1
    scale = np.abs(kernel).max(0) / steps
    want = np.round(kernel / scale) * scale
    x = np.eye(6, dtype="float32")
    np.testing.assert_allclose(np.asarray(quantized(x)), want, atol=2e-6)


def test_the_gradient_passes_straight_through_to_the_float_weights():
    import tensorflow as tf

    model = keras.Sequential([keras.Input((3,)), L.Dense(2, use_bias=False)])
    quantized = students.quantization_aware(model, weight_bits=2, activation_bits=None)
    x = np.random.default_rng(0).normal(size=(7, 3)).astype("float32")
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(quantized(x, training=True))
    gradient = tape.gradient(total, quantized.trainable_weights[0].value)
    np.testing.assert_allclose(gradient, np.repeat(x.sum(0)[:, None], 2, 1), rtol=1e-5)


def test_ranges_follow_training_batches_and_freeze():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    quantized = students.quantization_aware(model)
    ranges = quantized.layers[0]
    batches = [np.full((2, 3), value, "float32") for value in (4.0, -2.0)]
    for batch in batches:
        quantized(batch, training=True)
    assert float(ranges.high) == pytest.approx(0.95 * 4.0 + 0.05 * 1e-6)
    assert float(ranges.low) == pytest.approx(0.05 * -2.0)
    students.freeze_quantization(quantized)
    quantized(100 * batches[0], training=True)
    assert float(ranges.high) == pytest.approx(0.95 * 4.0, rel=1e-5)


@pytest.mark.parametrize(("bits", "activations"), [(8, 8), (4, None)])
def test_the_file_agrees_with_the_trained_model(bits, activations, tmp_path):
    pytest.importorskip("ai_edge_litert")
    if activations is None:
        pytest.importorskip("ai_edge_quantizer")
    teacher, x = residual(), pictures()
    labels = np.arange(len(x)) % 5
    x += 3.0 * pictures(5, seed=1)[labels]  # separable classes: noise has logits near ties
    teacher.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(True))
    teacher.fit(x, labels, epochs=8, verbose=0)
    student = students.quantization_aware(teacher, bits, activations, data=x)
    distiller = Distiller(teacher, student, LogitsDistillation(temperature=1.0), student_loss_weight=0.0)
    distiller.compile(optimizer=keras.optimizers.Adam(1e-3), loss=keras.losses.SparseCategoricalCrossentropy(True))
    distiller.fit(x, np.zeros(len(x), int), epochs=2, verbose=0)
    student.save(tmp_path / "student.keras")
    again = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(np.asarray(again(x[:4])), np.asarray(student(x[:4])))
    made = export.litert(again, tmp_path / "student.tflite", check_inputs=x, latency_batch_sizes=())
    assert made.agreement >= (0.999 if activations else 0.995)
    (tmp_path / "whole").mkdir()
    whole = export.litert(teacher, tmp_path / "whole" / "teacher.tflite", latency_batch_sizes=())
    assert made.size_bytes < 0.6 * whole.size_bytes  # tables of a few kB are in both
    with pytest.raises(ValueError, match=r"litert: expected quantize=None for a student from quantization_aware"):
        export.litert(again, tmp_path / "student.tflite", quantize="dynamic")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = L.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def subclassed():
    model = Subclassed()
    model(np.ones((1, 3)))
    return model


def quantized():
    return students.quantization_aware(keras.Sequential([keras.Input((4,)), L.Dense(2)], name="small"))


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (residual, {"weight_bits": 5}, r"quantization_aware: expected weight_bits to be one of 8, 4, 3, 2, got 5"),
        (residual, {"activation_bits": 4}, r"quantization_aware: expected activation_bits to be one of 8, None, got 4"),
        (subclassed, {}, r"quantization_aware: expected a Functional or Sequential model, got 'mine', a subclassed"),
        (quantized, {}, r"expected a float model, got 'small', which is from quantization_aware already"),
        (
            lambda: keras.Sequential([keras.Input((2,)), L.PReLU()], name="p"),
            {},
            r"with Conv2D, .* layers, got 'p', which",
        ),
        (residual, {"data": np.ones((5, 3))}, r"quantization_aware: expected data of shape .* got \(5, 3\)"),
    ],
)
def test_bad_input_raises_a_clear_error(make, options, text):
    with pytest.raises(ValueError, match=text):
        students.quantization_aware(make(), **options)


def test_freezing_needs_ranges():
    with pytest.raises(
        ValueError, match=r"freeze_quantization: expected a model with quantised activations, got 'plain'"
    ):
        students.freeze_quantization(keras.Sequential([keras.Input((2,)), L.Dense(2)], name="plain"))


@pytest.mark.parametrize(
    "again",
    [
        lambda model: students.from_teacher(model, width=0.5),
        lambda model: students.factorize(model, np.ones((4, 4)), energy=0.9),
        students.fold_batch_normalization,
        students.quantization_aware,
        students.sparsity,
    ],
)
def test_a_student_of_few_bits_is_refused_by_every_builder(again):
    with pytest.raises(ValueError, match=r"expected a float model, got 'small', which is from quantization_aware"):
        again(quantized())
