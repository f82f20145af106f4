"""Calibration errors eagerly, in a graph and under XLA: blocks of classes, ties, NaN rows."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from keras_distill import metrics
from keras_distill.metrics import _top_class
from tests.metrics.test_calibration import ece_by_definition

MODES = ("eager", "graph", "xla")


def test_thousand_classes_take_the_blocked_path_and_agree_with_argmax():
    random = np.random.default_rng(5)
    for classes in (100, 997, 1000):
        p = softmax(random.normal(size=(40, classes)) * 3, axis=1).astype(np.float32)
        p[0, 17] = p[0, 60] = p[0, 61] = 0.5  # ties within and across blocks: the first counts
        y = p.argmax(1)
        y[20:] = random.integers(0, classes, 20)
        expected = ece_by_definition(p.max(1).astype(float), p.argmax(1) == y, 15, "l1")
        assert metrics.expected_calibration_error(y, p) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classes", [100, 512, 997, 1000, 32_000])
def test_the_first_largest_in_every_mode(mode, classes):
    outputs = np.random.default_rng(5).integers(-3, 4, (30, classes)).astype("float32")  # full of ties
    outputs[0] = -np.inf
    outputs[1] = [-0.0, 0.0] * (classes // 2) + [0.0] * (classes % 2)
    outputs[2] = np.arange(classes)
    found = _top_class.first_largest
    if mode != "eager":
        found = tf.function(found, jit_compile=mode == "xla", autograph=False)
    for rows in (outputs, outputs[:7]):
        largest, index = found(tf.constant(rows))
        np.testing.assert_array_equal(largest, rows.max(1))
        np.testing.assert_array_equal(index, rows.argmax(1))
        assert index.dtype == "int32"
    outputs[4, classes // 2 if mode != "xla" else slice(None)] = np.nan  # XLA's maximum ignores a single NaN
    largest, index = found(tf.constant(outputs))
    np.testing.assert_array_equal(np.delete(largest, 4), np.delete(outputs, 4, axis=0).max(1))
    assert not np.isfinite(largest[4])
    assert mode == "xla" or np.isnan(largest[4])
    assert 0 <= index[4] < classes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classes", [10, 150, 1000])
@pytest.mark.parametrize("from_logits", [False, True])
def test_a_nan_row_makes_the_result_nan_in_every_mode(mode, classes, from_logits):
    outputs = np.full((4, classes), 1.0 / classes, "float32")
    outputs[2] = np.nan  # the softmax of a row with one NaN
    metric = metrics.ExpectedCalibrationError(from_logits=from_logits)
    update = (
        metric.update_state
        if mode == "eager"
        else tf.function(metric.update_state, jit_compile=mode == "xla", autograph=False)
    )
    update(tf.zeros(4, tf.int32), tf.constant(outputs))
    assert np.isnan(metric.result())
