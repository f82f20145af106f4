"""Quantile regression: scikit-learn's pinball loss as oracle, minimisers, masks, and a model trained with it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses


def test_values_are_those_of_scikit_learn_and_members_count_the_same():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    y, q = rng.normal(size=40), rng.normal(size=(40, 3))
    levels = [0.1, 0.5, 0.8]
    got = losses.quantile_targets(labels=y, student_quantiles=q, levels=levels)
    expected = np.mean([metrics.mean_pinball_loss(y, q[:, i], alpha=level) for i, level in enumerate(levels)])
    assert float(np.mean(got)) == pytest.approx(expected, rel=1e-6)
    members = rng.normal(size=(40, 5))
    each = [losses.quantile_targets(labels=members[:, m], student_quantiles=q, levels=levels) for m in range(5)]
    together = losses.quantile_targets(labels=members, student_quantiles=q, levels=levels)
    np.testing.assert_allclose(together, np.mean(each, 0), rtol=1e-5)
    mask = rng.random(40) < 0.5
    masked = losses.quantile_targets(labels=y, student_quantiles=q, levels=levels, mask=mask)
    np.testing.assert_allclose(np.mean(masked), np.mean(np.asarray(got)[mask]), rtol=1e-5)


def test_the_gradient_counts_labels_below_the_quantile_and_none_reaches_the_teacher():
    y, q = tf.constant([0.0, 1.0, 5.0]), tf.constant([[2.0], [2.0], [2.0]])
    with tf.GradientTape() as tape:
        tape.watch([y, q])
        value = tf.reduce_sum(losses.quantile_targets(labels=y, student_quantiles=q, levels=[0.9]))
    to_labels, to_student = tape.gradient(value, [y, q])
    assert to_labels is None
    np.testing.assert_allclose(to_student[:, 0], [0.1, 0.1, -0.9], atol=1e-6)


def test_a_model_learns_the_quantiles_of_noise():
    rng = np.random.default_rng(1)
    x = np.ones((4000, 1), "float32")
    y = rng.exponential(size=4000).astype("float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    loss = losses.QuantileTargets((0.1, 0.5, 0.9))
    model.compile(keras.optimizers.Adam(0.02), loss=keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)))  # fmt: skip
    model.fit(x, y, epochs=8, batch_size=100, verbose=0)
    np.testing.assert_allclose(model(x[:1])[0], np.quantile(y, [0.1, 0.5, 0.9]), atol=0.12)


@pytest.mark.parametrize("levels", [(), (0.5, 0.1), (0.0, 0.5), (0.5, 0.5), (0.2, 1.0)])
def test_levels_that_do_not_increase_within_0_and_1_are_refused(levels):
    with pytest.raises(ValueError, match="QuantileTargets: expected levels that increase, each between 0 and 1, got"):
        losses.QuantileTargets(levels)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected 3 quantiles on the last axis, one per level, got 2"):
        losses.quantile_targets(labels=[1.0], student_quantiles=[[1.0, 2.0]])
    with pytest.raises(ValueError, match="labels and quantiles"):
        losses.quantile_targets(labels=np.ones((4, 1)), student_quantiles=np.ones((5, 3)))
