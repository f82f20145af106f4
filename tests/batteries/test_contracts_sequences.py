"""Properties of every loss with one value per sequence, from one table, against float64 references."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses
from tests.oracles import sequences as oracles
from tests.oracles import slope

BATCH, FRAMES, CLASSES = 3, 7, 4


def logits(seed, scale=1.5, frames=FRAMES, shape=(CLASSES,)):
    rng = np.random.default_rng(seed)
    return (np.round(rng.normal(size=(BATCH, frames, *shape)) * scale * 256) / 256).astype("float32")


LABELS = np.array([[1, 2, 2], [3, 0, 0], [1, -1, -1]])
TAGS = np.array([[0, 3, 1, 1, 2, 0, 3], [1, 1, 2, 0, 0, 3, 2], [3, 2, -1, 0, 1, 1, 0]])
PACKED = np.array([[[0.75, 1, 2], [0.25, 3, -1]], [[1.0, 2, 2], [0.0, 1, 1]], [[0.5, -1, -1], [0.5, 2, 1]]], "float32")


def n_best(packed, student, mask=None):
    values = [oracles.ctc(packed[:, n, 1:], student, mask) for n in range(packed.shape[1])]
    return np.sum([packed[:, n, 0] * values[n] for n in range(packed.shape[1])], 0)


@dataclasses.dataclass
class Row:
    """One loss, its first argument, and its reference: (first, student, mask) -> float64 values."""

    loss: losses.LogitsLoss
    first: np.ndarray
    oracle: Callable
    shape: tuple = (CLASSES,)


def frames(**options):
    def oracle(teacher, student, mask=None):
        return oracles.frame_soft_targets(teacher, student, mask=mask, **options)

    return Row(losses.FrameSoftTargets(**options), logits(5, 2.5), oracle)


ROWS = [
    Row(losses.Ctc(), LABELS, oracles.ctc),
    frames(),
    frames(keep="without_blanks", blank_threshold=0.6),
    frames(keep="around_spikes", blank=2),
    frames(keep="around_spikes", neighbours=0),
    Row(losses.GuidedCtc(), logits(5, 2.5), oracles.guided_ctc),
    Row(losses.NBestCtc(), PACKED, n_best),
    Row(losses.CrfNegativeLogLikelihood(), TAGS, oracles.crf_negative_log_likelihood, shape=(CLASSES, CLASSES)),
]
every = pytest.mark.parametrize("row", ROWS, ids=[f"{type(row.loss).__name__}-{i}" for i, row in enumerate(ROWS)])
one_of_each = pytest.mark.parametrize(
    "row", list({type(row.loss): row for row in ROWS}.values()), ids=lambda row: type(row.loss).__name__
)
KEPT = np.array([[True] * FRAMES, [True] * 5 + [False] * 2, [False, True, True, False, True, True, False]])


def total_and_gradient(row, student, mask=None, weights=1.0):
    student = tf.convert_to_tensor(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        total = tf.reduce_sum(row.loss.values(row.first, student, mask=mask) * weights)
    return total, tape.gradient(total, student)


def test_every_loss_on_sequences_is_in_the_table():
    public = [getattr(losses, name) for name in losses.__all__]
    wanted = {each for each in public if isinstance(each, type) and getattr(each, "uses_mask", False)}
    assert wanted == {type(row.loss) for row in ROWS}


@every
@pytest.mark.parametrize("mask", [None, KEPT], ids=["whole", "masked"])
def test_values_are_the_oracles_to_1e_6(row, mask):
    got = row.loss.values(row.first, logits(1, shape=row.shape), mask=mask)
    assert got.dtype == "float32"
    np.testing.assert_allclose(got, row.oracle(row.first, logits(1, shape=row.shape), mask), rtol=2e-6, atol=1e-7)


@every
def test_values_at_1e4_are_exact(row):
    student = logits(1, 1e4, shape=row.shape)
    np.testing.assert_allclose(row.loss.values(row.first, student), row.oracle(row.first, student), rtol=2e-6)


@every
def test_the_gradient_is_that_of_finite_differences(row):
    student = logits(2, shape=row.shape)
    expected = slope(lambda s: row.oracle(row.first, s), student, 1e-4)
    np.testing.assert_allclose(total_and_gradient(row, student)[1], expected, atol=5e-6 * np.abs(expected).max())


@every
def test_masked_frames_reach_neither_value_nor_gradient(row):
    student = logits(1, shape=row.shape)
    clean, clean_gradient = total_and_gradient(row, student, KEPT)
    student[~KEPT] = np.nan
    total, gradient = total_and_gradient(row, student, KEPT)
    assert float(total) == float(clean)
    np.testing.assert_array_equal(
        gradient, np.where(KEPT.reshape(*KEPT.shape, *[1] * len(row.shape)), clean_gradient, 0.0)
    )


@every
def test_a_mask_on_the_logits_is_the_unpadded_sequence_also_where_batch_equals_frames(row):
    batch = BATCH
    student = logits(3, frames=6, shape=row.shape)
    per_frame = row.first.shape[1] == FRAMES
    first = row.first[:, :6] if per_frame else row.first
    if per_frame:  # batch = frames: Keras' own reduction would silently broadcast the mask
        batch, student = 6, np.concatenate([student, student[::-1]])
        first = np.concatenate([first, first[::-1]])
    lengths = np.array([6, 5, 6, 5, 6, 5])[:batch]
    apart = [row.loss.values(first[i : i + 1, : lengths[i]] if per_frame else first[i : i + 1],
                             student[i : i + 1, : lengths[i]]) for i in range(batch)]  # fmt: skip
    masked = tf.constant(student)
    masked._keras_mask = tf.sequence_mask(lengths, 6)
    np.testing.assert_allclose(row.loss(first, masked), np.mean(apart), rtol=1e-5)


@every
def test_weight_0_removes_and_weight_2_is_two_copies(row):
    student = tf.constant(logits(4, shape=row.shape))
    values = row.loss.values(row.first, student).numpy()
    got = row.loss(row.first, student, sample_weight=np.array([0.0, 1.0, 2.0], "float32"))
    np.testing.assert_allclose(got, (values[1] + 2 * values[2]) / 3, rtol=1e-6)


@every
def test_permuting_the_batch_permutes_the_values(row):
    order = [2, 0, 1]
    values = row.loss.values(row.first, logits(4, shape=row.shape)).numpy()
    np.testing.assert_allclose(
        row.loss.values(row.first[order], logits(4, shape=row.shape)[order]), values[order], rtol=1e-6
    )


@one_of_each
def test_eager_graph_xla_and_half_precision_agree(row):
    student, first = logits(4, shape=row.shape), tf.constant(row.first)
    eager = total_and_gradient(row, student)
    for compiled in (False, True):
        graph = tf.function(
            lambda s: total_and_gradient(dataclasses.replace(row, first=first), s),
            jit_compile=compiled,
            autograph=False,
        )
        for got, wanted in zip(graph(student), eager, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    half = row.loss.values(row.first, tf.cast(student, "bfloat16"))
    assert half.dtype == "float32"
    exact = row.loss.values(row.first, tf.cast(tf.cast(student, "bfloat16"), "float32"))
    np.testing.assert_allclose(half, exact, rtol=1e-6)


@one_of_each
def test_the_loss_is_restored_from_its_config(row):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(row.loss))
    assert again.get_config() == row.loss.get_config()
    np.testing.assert_array_equal(
        again(row.first, logits(1, shape=row.shape)), row.loss(row.first, logits(1, shape=row.shape))
    )
