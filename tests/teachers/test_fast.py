"""A faster copy of a teacher agrees with the exact one, which is not changed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax

import keras_distill
from keras_distill import teachers
from keras_distill.terms import LogitsDistillation

rng = np.random.default_rng(4)
X = rng.normal(size=(24, 8, 8, 3)).astype("float32")


def network():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    stem = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization()])
    y = keras.layers.Reshape((36, 8))(keras.layers.Activation("relu")(stem(x)))
    y = y + keras.layers.MultiHeadAttention(2, 4)(y, y)
    y = keras.layers.Bidirectional(keras.layers.GRU(6))(y)
    return keras.Model(x, keras.layers.Dense(5, name="head")(y))


def test_the_copy_computes_in_bfloat16_and_gives_float32_logits():
    model = network()
    before = [w.copy() for w in model.get_weights()]
    exact = np.asarray(model(X))
    fast = teachers.Fast(model)
    inner = {layer.compute_dtype for layer in fast.model._flatten_layers() if layer.count_params()}
    assert inner == {"bfloat16", "float32"}
    assert fast.model.get_layer("head").compute_dtype == "float32"
    found, tapped = fast.listen(X, ["bidirectional"])
    assert found.dtype == tf.float32 and tapped["bidirectional"].dtype == tf.float32
    gap = np.abs(np.asarray(found) - exact).max()
    assert 0 < gap < 0.03 * np.ptp(exact)  # 8 bits of mantissa are kept
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(model(X), exact)


def test_a_float32_copy_is_exact_and_xla_agrees():
    model = network()
    np.testing.assert_array_equal(teachers.Fast(model, dtype="float32")(X), model(X))
    compiled = teachers.Fast(model, dtype="float32", jit_compile=True)
    np.testing.assert_allclose(compiled(X), model(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        compiled.listen(X, ["head"])[1]["head"], teachers.Single(model).listen(X, ["head"])[1]["head"], atol=1e-5
    )


def test_agreement_equals_numpys_count():
    model, other = network(), network()
    other.set_weights([w + 0.1 * rng.normal(size=w.shape) for w in other.get_weights()])
    found = teachers.agreement(other, model, tf.data.Dataset.from_tensor_slices(X).batch(7))
    p, q = (log_softmax(np.asarray(each(X), "float64"), -1) for each in (model, other))
    assert found.num_examples == 24
    assert found.top1 == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert found.mean_kl == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-3)
    assert found.max_probability_gap == pytest.approx(np.abs(np.exp(p) - np.exp(q)).max(), rel=1e-4)
    with pytest.raises(ValueError, match="agreement: expected at least one batch of data, got an empty dataset"):
        teachers.agreement(other, model, tf.data.Dataset.from_tensor_slices(X).take(0).batch(2))


def test_a_fast_teacher_teaches_and_is_saved(tmp_path):
    student = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(5)])
    fast = teachers.Fast(network(), jit_compile=True)
    distiller = keras_distill.Distiller(fast, student, LogitsDistillation(), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    losses = distiller.fit(X, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.teacher.precision == "mixed_bfloat16" and loaded.teacher.jit_compile_teacher
    np.testing.assert_allclose(loaded.teacher(X), fast(X), rtol=1e-2, atol=1e-3)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Fast: expected dtype to be one of 'mixed_bfloat16'"):
        teachers.Fast(network(), dtype="int8")
    with pytest.raises(ValueError, match=r"Fast: expected a keras\.Model, got Ensemble"):
        teachers.Fast(teachers.Ensemble([network()]))

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="Fast: expected a built Functional or Sequential model, got Own"):
        teachers.Fast(Own())
