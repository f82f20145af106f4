"""The linear-chain CRF against the enumeration of all tag sequences, and as a teacher."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, adapters, losses, teachers
from tests.oracles import sequences as oracles

KEPT = np.array([[True, True, True, True, True], [True, True, True, False, False], [False, True, False, True, True]])


def random_potentials(seed=0, scale=2.0):
    return (np.random.default_rng(seed).normal(size=(3, 5, 3, 3)) * scale).astype("float32")


@pytest.mark.parametrize("mask", [None, KEPT], ids=["whole", "masked"])
def test_marginals_and_best_tags_are_those_of_enumeration(mask):
    potentials = random_potentials()
    marginals = np.exp(losses.crf_log_marginals(potentials=potentials, mask=mask))
    best = losses.crf_decode(potentials=potentials, mask=mask).numpy()
    for i, keep in enumerate(np.ones_like(KEPT) if mask is None else mask):
        np.testing.assert_allclose(marginals[i, keep], oracles.crf_marginals(potentials[i, keep]), atol=2e-6)
        scores = oracles.crf_scores(potentials[i, keep])
        assert tuple(best[i, keep]) == max(scores, key=scores.get)
        assert (best[i, ~keep] == -1).all()


def test_the_likelihood_is_that_of_enumeration():
    potentials, labels = random_potentials(3), np.array([[0, 1, 2, 2, 1], [1, 1, 0, -1, -1], [2, -1, 1, 0, 0]])
    expected = []
    for row, scores in zip(labels, potentials, strict=True):
        found = oracles.crf_scores(scores[row >= 0])
        expected.append(np.logaddexp.reduce(list(found.values())) - found[tuple(row[row >= 0].tolist())])
    np.testing.assert_allclose(losses.crf_negative_log_likelihood(labels=labels, potentials=potentials), expected, 2e-6)


def test_the_gradient_to_the_scores_is_the_marginals_minus_the_tags():
    potentials, labels = random_potentials(1), np.array([[0, 1, 2, 2, 1], [1, 1, 0, -1, -1], [2, 0, 1, 0, 0]])
    scores = tf.Variable(np.zeros((3, 5, 3), "float32"))
    with tf.GradientTape() as tape:
        values = losses.crf_negative_log_likelihood(labels=labels, potentials=potentials + scores[:, :, None, :])
    expected = np.zeros((3, 5, 3))
    for i, row in enumerate(labels):
        keep = row >= 0
        expected[i, keep] = oracles.crf_marginals(potentials[i, keep]) - np.eye(3)[row[keep]]
    np.testing.assert_allclose(tape.gradient(values, scores), expected, atol=5e-6)


def test_without_transitions_it_is_a_softmax_per_token():
    scores = np.random.default_rng(2).normal(size=(2, 4, 3)).astype("float32")
    layer = adapters.LinearChainCrf(3)
    layer.build(scores.shape)
    layer.transitions.assign(np.zeros((3, 3)))
    labels = np.array([[0, 2, 1, 1], [1, 1, 0, 2]])
    plain = keras.losses.sparse_categorical_crossentropy(labels, scores, from_logits=True)
    got = losses.crf_negative_log_likelihood(labels=labels, potentials=layer(scores))
    np.testing.assert_allclose(got, np.sum(plain, 1), rtol=1e-5)
    np.testing.assert_allclose(adapters.CrfMarginals()(layer(scores)), tf.nn.log_softmax(scores), atol=1e-6)


def tagger(crf, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(6, 8, mask_zero=True)(inputs)
    x = keras.layers.Dense(3)(keras.layers.GRU(8, return_sequences=True)(x))
    return keras.Model(inputs, adapters.LinearChainCrf(3)(x) if crf else x)


def test_a_crf_trains_saves_and_teaches_its_marginals_and_padding_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    x, lengths = rng.integers(1, 6, (12, 6)), rng.integers(3, 7, 12)
    x[np.arange(6) >= lengths[:, None]] = 0
    y = np.where(x > 0, (x + np.roll(x, 1, 1)) % 3, 0)
    crf = tagger(True)
    crf.compile(keras.optimizers.Adam(0.05), losses.CrfNegativeLogLikelihood())
    first, last = (lambda history: (history[0], history[-1]))(crf.fit(x, y, epochs=12, verbose=0).history["loss"])
    assert last < 0.8 * first
    crf.save(tmp_path / "crf.keras")
    again = keras.models.load_model(tmp_path / "crf.keras")
    np.testing.assert_array_equal(again(x), crf(x))
    teacher = teachers.crf_marginals(crf)
    logs = []
    for padding in (0, 4):
        distiller = Distiller(teacher, tagger(False, 1), LogitsDistillation(temperature=1.0), student_loss_weight=0.0)
        distiller.compile("sgd")
        padded = np.pad(x, ((0, 0), (0, padding)))
        logs.append(distiller.fit(padded, batch_size=12, epochs=2, verbose=0).history["distillation_loss"])
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-5)
    student = tagger(False, 1)
    each = losses.soft_targets(teacher_logits=teacher(x), student_logits=student(x))
    np.testing.assert_allclose(logs[0][0], np.mean(each.numpy()[x > 0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.crf_decode(potentials=np.zeros((1, 2, 3))),
            r"crf_decode: expected potentials of shape ",
        ),
        (
            lambda: losses.CrfNegativeLogLikelihood()([[0, 3]], np.zeros((1, 2, 3, 3))),
            r"CrfNegativeLogLikelihood: expected labels from 0 to 2, negative ones as padding, got 3",
        ),
        (
            lambda: losses.CrfNegativeLogLikelihood()([[0]], np.zeros((1, 2, 3, 3))),
            r"CrfNegativeLogLikelihood: expected labels of shape \(1, 2\), got \(1, 1\)",
        ),
        (
            lambda: adapters.LinearChainCrf(3)(np.zeros((1, 2, 4))),
            r"LinearChainCrf: expected scores of shape ",
        ),
        (lambda: teachers.crf_marginals(tagger(False)), r"crf_marginals: expected a model that gives potentials"),
    ],
)
def test_bad_input_raises_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
