"""The term that matches attributions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, explain, teachers
from keras_distill.terms import AttributionMatching

RNG = np.random.default_rng(0)


def cnn(width=4):
    layers = [
        keras.layers.Conv2D(width, 3, strides=2, padding="same", activation="softplus", name="maps"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3, name="dense"),
    ]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


def test_the_angle_of_two_maps_by_hand():
    a, b = RNG.normal(size=(5, 6, 6, 2)), RNG.normal(size=(5, 3, 3, 2))
    pooled = a.reshape(5, 3, 2, 3, 2, 2).mean((2, 4)).reshape(5, -1)
    flat = b.reshape(5, -1)
    cosine = (pooled * flat).sum(-1) / np.linalg.norm(pooled, axis=-1) / np.linalg.norm(flat, axis=-1)
    np.testing.assert_allclose(AttributionMatching().values(a, b), 1 - cosine, rtol=1e-5)
    np.testing.assert_allclose(AttributionMatching().values(a, 1e-9 * a), 0, atol=1e-6)
    np.testing.assert_allclose(AttributionMatching().values(a, -3 * a), 2, atol=1e-6)
    zeros = tf.Variable(np.zeros((1, 4), "float32"))
    with tf.GradientTape() as tape:
        loss = AttributionMatching().values(np.ones((1, 4)), zeros)
    assert np.isfinite(loss).all() and np.isfinite(tape.gradient(loss, zeros)).all()


@pytest.mark.parametrize("method", ["gradient", "grad_cam"])
def test_the_wrapped_model_predicts_as_before_and_its_map_equals_attributions(method):
    from keras_distill.taps import Taps

    model, x = cnn(), RNG.normal(size=(4, 8, 8, 1)).astype("float32")
    wrapped = explain.with_attribution(model, method)
    logits, found = Taps(wrapped, ["attribution"])(x)
    np.testing.assert_array_equal(logits, model(x))
    expected = explain.attributions(model, x, method)
    got = found["attribution"].numpy()
    got = got if method == "gradient" else tf.image.resize(got, (8, 8)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("method", "jit_compile"), [("gradient", False), ("grad_cam", False), ("gradient", True)])
def test_attribution_matching_aligns_the_attributions(method, jit_compile, tmp_path):
    x = RNG.normal(size=(64, 8, 8, 1)).astype("float32")
    teacher, student = cnn(), cnn(5)
    before = AttributionMatching().values(*(explain.attributions(m, x, method) for m in (teacher, student)))
    distiller = Distiller(
        explain.with_attribution(teacher, method),
        explain.with_attribution(student, method),
        [LogitsDistillation(temperature=2.0), AttributionMatching()],
        student_loss_weight=0.0,
    )
    distiller.compile(keras.optimizers.Adam(0.02), jit_compile=jit_compile)
    for _ in range(60):
        distiller.train_on_batch(x)
    after = AttributionMatching().values(*(explain.attributions(m, x, method) for m in (teacher, student)))
    assert np.mean(after) < 0.4 * np.mean(before)
    if method == "gradient" and not jit_compile:
        distiller.save(tmp_path / "distiller.keras")
        loaded = keras.models.load_model(tmp_path / "distiller.keras")
        np.testing.assert_allclose(loaded.student(x), student(x), rtol=1e-6)


def test_models_without_a_map_are_refused():
    with pytest.raises(ValueError, match=r"AttributionMatching: expected a teacher with the tap 'attribution'.*Pass"):
        Distiller(cnn(), explain.with_attribution(cnn()), AttributionMatching())
    with pytest.raises(ValueError, match="expected a teacher with gradients, got the teacher Ensemble"):
        Distiller(teachers.Ensemble([cnn(), cnn()]), explain.with_attribution(cnn()), AttributionMatching())
    with pytest.raises(ValueError, match=r"explain.with_attribution: expected a layer that gives maps"):
        explain.with_attribution(cnn(), "grad_cam", layer_name="dense")
    dense = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"expected a model with a layer that gives maps"):
        explain.with_attribution(dense, "grad_cam")
    with pytest.raises(ValueError, match="expected a model with gradients, got the teacher Ensemble"):
        explain.with_attribution(teachers.Ensemble([cnn(), cnn()]))
