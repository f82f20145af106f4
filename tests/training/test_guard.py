"""A non-finite value stops training, is named, and leaves the last finite weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import (
    DistillationLoss,
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
    NonFiniteLossError,
    adapters,
)
from tests.models import batch, batches, copy_of, mlp

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
MODES = [{}, {"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 3}]


def student():
    init = keras.initializers.GlorotUniform(seed=3)
    layers = [keras.layers.Dense(5, kernel_initializer=init, name="hidden"), keras.layers.BatchNormalization()]
    return keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(4, kernel_initializer=init)])


class Exploding(DistillationLoss):
    """Finite at first, infinite from the third step on."""

    def build_from(self, teacher_outputs, student_outputs):
        self.steps = self.add_weight(shape=(), initializer="zeros", trainable=False, name="steps")
        self.built = True

    def values(self, teacher_outputs, student_outputs, *, labels=None, mask=None, training=True):
        self.steps.assign_add(1.0)
        values = keras.ops.mean(keras.ops.square(student_outputs), axis=-1)
        return values / keras.ops.where(self.steps > 2.5, 0.0, 1.0)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_nan_batch_stops_training_and_the_weights_of_the_step_before_are_kept(mode):
    x, y = batch(32)
    bad = x.copy()
    bad[18, 2] = np.nan  # in the third batch of 8
    reference, stopped = student(), student()
    for model, data in ((reference, x[:16]), (stopped, bad)):
        distiller = Distiller(mlp(8, 4, seed=1), model, LogitsDistillation(2.0))
        distiller.compile(keras.optimizers.Adam(0.05), CROSS_ENTROPY, **mode)
        if data is bad:
            with pytest.raises(NonFiniteLossError, match=r"the teacher's outputs at step 2\. .*last finite weights"):
                distiller.fit(data, y, batch_size=8, shuffle=False, verbose=0)
        else:
            distiller.fit(data, y[:16], batch_size=8, shuffle=False, verbose=0)
    for one, two in zip(reference.get_weights(), stopped.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}], ids=str)
def test_the_term_that_failed_is_named(mode):
    x, y = batch(32)
    terms = [LogitsDistillation(2.0), Exploding(name="exploding")]
    distiller = Distiller(mlp(8, 4, seed=1), student(), terms)
    distiller.compile(keras.optimizers.SGD(0.05), CROSS_ENTROPY, **mode)
    with pytest.raises(NonFiniteLossError, match=r"distillation term 1 \(exploding\) at step 2"):
        distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert all(np.isfinite(weight).all() for weight in distiller.student.get_weights())


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}], ids=str)
def test_an_adapter_is_saved_with_its_statistics_kernels_and_state(mode):
    def trained(x):
        normal = [keras.layers.Dense(8, kernel_initializer="ones"), keras.layers.BatchNormalization()]
        spectral = keras.layers.SpectralNormalization(keras.layers.Dense(8, kernel_initializer="ones"))
        spectral.build((None, 5))
        spectral.vector_u.assign(np.linspace(0.1, 0.8, 8)[None])
        heard = [FeatureDistillation("mse", "dense_0", "hidden", adapter=keras.Sequential(normal)),
                 FeatureDistillation("mse", "dense_0", "hidden", adapter=spectral)]  # fmt: skip
        distiller = Distiller(mlp(8, 4, seed=1), student(), heard)
        distiller.compile(keras.optimizers.SGD(0.05), CROSS_ENTROPY, **mode)
        try:
            distiller.fit(x, batch(16)[1][: len(x)], batch_size=8, shuffle=False, verbose=0)
        except NonFiniteLossError:
            assert np.isnan(x).any()
        return [each for term in heard for each in term.adapter.get_weights()]

    x, bad = batch(16)[0], batch(16)[0]
    bad[9, 2] = np.nan  # in the second batch of 8
    for one, two in zip(trained(x[:8]), trained(bad), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)

    memory = adapters.MemoryBank(3, 2, seed=0)
    before = np.array(memory.memory)
    memory.update(np.array([[np.nan, 1.0], [3.0, 4.0]]), np.array([0, 2]))
    np.testing.assert_array_equal(memory.memory[:2], before[:2])
    expected = 0.5 * before[2] + 0.5 * np.array([3.0, 4.0])
    np.testing.assert_allclose(memory.memory[2], expected / np.linalg.norm(expected), rtol=1e-6)
    assert np.isnan(memory.normalizer(np.array([np.nan], "float32"))) and float(memory.constant) == 0.0


def test_a_non_finite_gradient_of_a_finite_loss_is_named():
    class SquareRoot(keras.layers.Layer):
        def call(self, inputs):
            return keras.ops.sqrt(keras.ops.abs(inputs))  # infinite gradient at 0, where this model starts

    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(5, kernel_initializer="zeros"), SquareRoot(), keras.layers.Dense(4)]
    )
    x, y = batch(8)
    before = model.get_weights()
    distiller = Distiller(mlp(8, 4, seed=1), model, LogitsDistillation(2.0))
    distiller.compile(keras.optimizers.SGD(0.05), CROSS_ENTROPY)
    with pytest.raises(NonFiniteLossError, match="the gradients at step 0"):
        distiller.fit(x, y, verbose=0)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_guard_can_be_disabled():
    x, y = batch(8)
    x[0, 0] = np.nan
    model = student()
    distiller = Distiller(mlp(8, 4, seed=1), model, LogitsDistillation(2.0))
    distiller.compile(keras.optimizers.SGD(0.05), CROSS_ENTROPY, stop_on_non_finite=False)
    history = distiller.fit(x, y, verbose=0).history
    assert np.isnan(history["loss"][0])
    assert np.isnan(model.get_weights()[0]).any()


def test_a_teacher_logit_of_minus_infinity_does_not_trip_the_guard():
    x, y = batch(8, classes=3)
    teacher, model = mlp(8, 4, seed=1), mlp(4, seed=2)
    teacher.layers[-1].bias.assign([0.0, 0.0, 0.0, -np.inf])
    distiller = Distiller(teacher, model, LogitsDistillation(2.0))
    distiller.compile(keras.optimizers.SGD(0.05), CROSS_ENTROPY)
    losses = distiller.fit(batches(x, y), verbose=0, epochs=30).history["loss"]
    assert losses[-1] < losses[0]


def test_labels_out_of_range_in_a_dataset_are_named():
    x, y = batch(8)
    y[5] = 7
    distiller = Distiller(mlp(8, 4), mlp(4), LogitsDistillation())
    distiller.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"expected labels from 0 to 3, got 7\."):
        distiller.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(4), verbose=0)


def test_float16_overflow_lowers_the_loss_scale_and_training_goes_on():
    x, y = batch(16)
    keras.config.set_dtype_policy("mixed_float16")
    model = mlp(8, 4, seed=2)
    keras.config.set_dtype_policy("float32")
    distiller = Distiller(mlp(8, 4, seed=1), model, LogitsDistillation(2.0))
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**30)
    distiller.compile(optimizer, CROSS_ENTROPY)
    before = copy_of(model)
    distiller.fit(batches(x, y), epochs=60, verbose=0)
    assert float(optimizer.dynamic_scale.numpy()) < 2.0**30
    assert not np.array_equal(before.get_weights()[0], model.get_weights()[0])
