"""Many classes: rows go block by block, and nothing but memory changes."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses
from keras_distill.losses import _pairs
from tests import oracles

NAMES = ["soft_targets", "reverse_soft_targets", "jensen_shannon", "total_variation", "probability_matching"]


def draw(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return [tf.constant(2 * rng.normal(size=shape).astype("float32")) for _ in range(2)]


def slopes(name, teacher, student, temperature, **options):
    with tf.GradientTape() as tape:
        tape.watch([student, temperature])
        value = getattr(losses, name)(
            teacher_logits=teacher, student_logits=student, temperature=temperature, **options
        )
        weighted = tf.reduce_sum(
            value * tf.reshape(tf.range(1.0, tf.cast(tf.size(value), tf.float32) + 1.0), tf.shape(value))
        )
    return value, *tape.gradient(weighted, [student, temperature])


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of two rows from 50 classes on; the number of calls of map is counted."""
    calls = []
    kept = _pairs.ops.map
    monkeypatch.setattr(_pairs, "CHUNKED_FROM_CLASSES", 50)
    monkeypatch.setattr(_pairs, "CHUNK_ELEMENTS", 130)
    monkeypatch.setattr(_pairs, "EAGER_CHUNK_ELEMENTS", 130)
    monkeypatch.setattr(_pairs.ops, "map", lambda function, parts: calls.append(len(parts)) or kept(function, parts))
    return calls


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["eager", "graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_blocks_give_what_one_piece_gives(name, mode, blocks, monkeypatch):
    teacher, student = draw(3, 4, 60)
    mask = np.arange(4) < np.array([[4], [2], [1]])
    temperature = tf.constant([1.0, 2.0, 5.0])
    run = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}[mode]
    cut = run(lambda t, s, each: slopes(name, t, s, each, mask=mask))(teacher, student, temperature)
    assert blocks, "not taken block by block"
    monkeypatch.setattr(_pairs, "CHUNKED_FROM_CLASSES", 1000)
    whole = slopes(name, teacher, student, temperature, mask=mask)
    for got, wanted in zip(cut, whole, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "spec", [(None, 4, 60), (None, None, 60), (None, 60), (7, 60)], ids=["batch", "batch-time", "rows", "prime"]
)
def test_sizes_that_are_known_only_when_the_graph_runs(spec, blocks):
    shape = tuple(given or size for given, size in zip(spec, (3, 4, 60)[-len(spec) :], strict=True))
    teacher, student = draw(*shape)
    traced = tf.function(
        lambda t, s: slopes("soft_targets", t, s, tf.constant(3.0)), input_signature=[tf.TensorSpec(spec)] * 2
    )
    value, gradient, _ = traced(teacher, student)
    assert blocks
    assert gradient.shape == student.shape
    np.testing.assert_allclose(value, oracles.soft_targets(teacher, student, 3.0), rtol=1e-6)


def test_a_vocabulary_of_32000():
    teacher, student = draw(1, 40, 32_000)
    value, gradient, _ = tf.function(lambda t, s: slopes("soft_targets", t, s, tf.constant(2.0)))(teacher, student)
    np.testing.assert_allclose(value, oracles.soft_targets(teacher, student, 2.0), rtol=1e-6)
    p, q = (np.exp(oracles.log_softmax(side / 2.0)) for side in (teacher, student))
    expected = 2.0 * (q - p) * np.arange(1, 41)[None, :, None]
    np.testing.assert_allclose(gradient, expected, atol=1e-6 * np.abs(expected).max())


def test_rows_of_one_block_divide_what_is_known():
    symbolic = keras.KerasTensor(())  # as in a graph: eager blocks are longer
    for shape, expected in (
        ((4, 100, 32_000), 16),  # 16 rows of 32000 fit, and 400 is 25 times 16
        ((4, 100, 31_999), None),
        ((None, 7, 32_000), 7),
        ((None, 32_000), 1),
        ((2, 8, 32_000), None),  # all fit in one block
    ):
        assert _pairs._block_rows(types.SimpleNamespace(shape=shape), symbolic) == expected, shape
