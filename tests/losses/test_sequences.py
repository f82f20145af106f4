"""CTC and related losses: properties beyond the battery, and refused input."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, losses
from tests.oracles import sequences as oracles


def random_logits(frames=6, classes=3, batch=2, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, frames, classes)).astype("float32")


def test_ctc_is_the_sum_over_all_paths():
    logits = random_logits(frames=5)
    for labels in ((), (1,), (1, 1), (2, 1, 2)):
        expected = [-np.log(oracles.all_label_sequences(row)[labels]) for row in logits]
        padded = np.array([[*labels, -1]] * 2)
        np.testing.assert_allclose(losses.ctc(labels=padded, logits=logits), expected, rtol=2e-6)


def test_ctc_gradient_is_graves_equation_16():
    logits, labels = random_logits(frames=9, classes=5), np.array([[1, 1, 4], [3, 2, 0]])
    with tf.GradientTape() as tape:
        variable = tf.Variable(logits)
        total = tf.reduce_sum(losses.ctc(labels=labels, logits=variable))
    np.testing.assert_allclose(tape.gradient(total, variable), oracles.ctc_gradient(labels, logits), atol=2e-6)


def test_padding_may_be_0_or_minus_1_and_stand_anywhere():
    logits = random_logits()
    plain = losses.ctc(labels=[[1, 2], [2, 1]], logits=logits)
    for labels in ([[1, 2, 0], [2, 1, 0]], [[1, 2, -1], [2, 1, -1]], [[-1, 1, 2], [2, 0, 1]]):
        np.testing.assert_array_equal(losses.ctc(labels=labels, logits=logits), plain)


def test_frames_and_labels_of_unknown_number_give_the_same_in_a_graph():
    logits, labels = random_logits(), np.array([[1, 2], [2, -1]], "int32")
    graph = tf.function(
        lambda y, z: losses.ctc(labels=y, logits=z),
        input_signature=[tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, None, 3))],
        autograph=False,
    )
    np.testing.assert_array_equal(graph(labels, logits), losses.ctc(labels=labels, logits=logits))


def test_another_blank_index_equals_a_permutation_of_the_classes():
    logits = random_logits()
    moved = logits[..., [1, 2, 0]]  # the old blank is the last class now
    np.testing.assert_allclose(
        losses.Ctc(blank=2).values([[0, 1], [1, -1]], moved), losses.ctc(labels=[[1, 2], [2, 0]], logits=logits), 1e-6
    )


def test_impossible_labels_are_refused_and_in_a_graph_are_infinite_without_a_gradient():
    logits = random_logits(frames=3)
    labels = np.array([[1, 1, 0], [1, 1, 1]])  # three equal labels need five frames
    with pytest.raises(ValueError, match=r"Ctc: expected at least 5 frames for the labels \[1, 1, 1\], got 3\. Drop"):
        losses.Ctc()(labels, logits)

    @tf.function(autograph=False)
    def in_a_graph(labels, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            values = losses.ctc(labels=labels, logits=logits)
        return values, tape.gradient(values, logits)

    values, gradient = in_a_graph(tf.constant(labels), tf.constant(logits))
    assert np.isfinite(values[0]) and np.isposinf(values[1])
    assert np.abs(gradient[0]).max() > 0 and np.abs(gradient[1]).max() == 0
    assert np.isposinf(in_a_graph(tf.constant([[7, 0, 0], [7, 0, 0]]), tf.constant(logits))[0]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda z: losses.Ctc()([[3]] * 2, z),
            r"Ctc: expected labels from 0 to 2, negative ones as padding, got 3\.",
        ),
        (lambda z: losses.Ctc()([1, 2], z), r"Ctc: expected labels of shape \(batch, labels\) .* got \(2,\) and"),
        (lambda z: losses.Ctc()([[1]] * 3, z), r"Ctc: expected labels of shape .* got \(3, 1\) and \(2, 6, 3\)"),
        (lambda z: losses.Ctc()([[1]] * 2, z[0]), r"Ctc: expected logits of shape \(batch, frames, classes\), got"),
        (lambda z: losses.Ctc(blank=3)([[1]] * 2, z), r"Ctc: expected blank from 0 to 2, got 3"),
        (lambda z: losses.Ctc(blank=-1), r"Ctc: expected blank to be an integer >= 0, got -1"),
        (lambda z: losses.FrameSoftTargets(keep="some"), r"FrameSoftTargets: expected keep to be one of 'all', 'with"),
        (lambda z: losses.FrameSoftTargets(blank_threshold=2), r"FrameSoftTargets: expected blank_threshold >= 0 and"),
        (lambda z: losses.FrameSoftTargets(neighbours=-1), r"FrameSoftTargets: expected neighbours to be an integer"),
        (lambda z: losses.FrameSoftTargets()(z, z[:, :5]), r"FrameSoftTargets: expected teacher and student logits of"),
        (lambda z: losses.GuidedCtc(blank=5)(z, z), r"GuidedCtc: expected blank from 0 to 2, got 5"),
        (lambda z: losses.NBestCtc()([[1]] * 2, z), r"NBestCtc: expected y of shape .*teachers\.n_best\(...\)\.packed"),
        (
            lambda z: losses.n_best_ctc(hypotheses=[[[1]]] * 2, weights=[1.0, 1.0], logits=z),
            r"n_best_ctc: expected hypotheses of shape .* got \(2, 1, 1\) and \(2,\)",
        ),
    ],
)
def test_bad_input_raises_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_logits())


def masked_model(width, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((None, 2))
    frames = keras.layers.GRU(width, return_sequences=True)(keras.layers.Masking()(inputs))
    return keras.Model(inputs, keras.layers.Dense(4)(frames))


@pytest.mark.parametrize("loss", [losses.FrameSoftTargets(keep="around_spikes"), losses.GuidedCtc()])
def test_a_distiller_passes_the_mask_to_the_losses_and_padding_has_no_effect(loss):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 8, 2)).astype("float32")  # batch = frames
    lengths = np.array([8, 7, 8, 6, 8, 7, 5, 8])
    x[np.arange(8) >= lengths[:, None]] = 0.0
    y = rng.integers(1, 4, (8, 2))
    results = []
    for padding in (0, 3):
        distiller = Distiller(masked_model(6, 0), masked_model(3, 1), LogitsDistillation(temperature=1.0, loss=loss))
        distiller.compile("sgd", losses.Ctc(), run_eagerly=True)  # a graph is below
        padded = np.pad(x, ((0, 0), (0, padding), (0, 0)))
        history = distiller.fit(padded, y, batch_size=8, epochs=2, verbose=0).history
        results.append([history["student_loss"][-1], history["distillation_loss"][-1]])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
    teacher, student = masked_model(6, 0), masked_model(3, 1)
    apart = [loss(teacher(x[i : i + 1, :n]), student(x[i : i + 1, :n])) for i, n in enumerate(lengths)]
    distiller = Distiller(teacher, student, LogitsDistillation(temperature=1.0, loss=loss))
    distiller.compile("sgd", losses.Ctc())
    logs = distiller.evaluate(x, y, batch_size=8, return_dict=True, verbose=0)
    np.testing.assert_allclose(logs["distillation_loss"], np.mean(apart), rtol=1e-5)
    supervised = [losses.Ctc()(y[i : i + 1], student(x[i : i + 1, :n])) for i, n in enumerate(lengths)]
    np.testing.assert_allclose(logs["student_loss"], np.mean(supervised), rtol=1e-5)


def test_labels_that_need_more_frames_stop_training_and_keep_the_weights():
    distiller = Distiller(masked_model(4, 0), masked_model(3, 1), LogitsDistillation())
    distiller.compile("sgd", losses.Ctc())
    before = [np.array(weight) for weight in distiller.student.get_weights()]
    x = np.ones((2, 3, 2), "float32")
    data = tf.data.Dataset.from_tensors((x, np.array([[1, 2, 3], [1, 1, 1]])))
    with pytest.raises(
        ArithmeticError, match=r"infinity in student_loss at step 0\. Look at the labels .*fitting_labels"
    ):
        distiller.fit(data, verbose=0)
    for kept, now in zip(before, distiller.student.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, now)
