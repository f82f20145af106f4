"""Stores of the top classes report the divergence from all, and compare the tail exactly; ragged batches."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, losses, teachers
from keras_distill.cli._labelling import summary
from keras_distill.training import Batch
from tests import oracles

RNG = np.random.default_rng(4)
X = RNG.normal(size=(11, 5)).astype("float32")


def network(seed):
    init = keras.initializers.RandomNormal(stddev=0.8, seed=seed)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(12, kernel_initializer=init)])


def label(teacher, dataset, path, **options):
    return teachers.label(teacher, dataset, path, progress=False, **options)


def test_the_divergence_of_omitted_classes_is_reported_in_nats(tmp_path):
    teacher, data = network(1), tf.data.Dataset.from_tensor_slices(X).batch(4)
    stored = label(teacher, data, tmp_path / "some", top_k=3, examples_per_shard=4)
    exact = oracles.log_softmax(teacher(X))
    kept = oracles.top_k(np.asarray(teacher(X)), 3, "spread")
    expected = np.mean(np.sum(np.exp(exact) * (exact - oracles.log_softmax(kept)), -1))
    assert stored.divergence == {"output": pytest.approx(expected, rel=2e-3)}  # float16
    assert json.loads((tmp_path / "some" / "manifest.json").read_text())["divergence"] == stored.divergence
    assert f"output: the classes that were left out cost {expected:.2g}" in summary(tmp_path / "some", stored)
    everything = label(teacher, data, tmp_path / "all")
    assert everything.divergence == {} and "nats" not in summary(tmp_path / "all", everything)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_tail_of_a_store_is_that_of_the_live_teacher(tmp_path, temperature):
    """Spread out, a store of 3 classes gives another loss than its teacher; the tail as one class gives the same."""
    teacher, student, data = network(1), network(2), tf.data.Dataset.from_tensor_slices(X).batch(11)
    stored = label(teacher, data, tmp_path, top_k=3, dtype="float32")
    (carried,) = stored.attach(data)
    found = {}
    for missing in ("spread", "tail"):
        term = LogitsDistillation(temperature, losses.TopKSoftTargets(3, missing))
        for name, heard, inputs in (("live", teacher, X), ("stored", stored, carried)):
            distiller = Distiller(heard, student, term, student_loss_weight=0.0)
            distiller.compile("sgd")
            found[missing, name] = float(distiller.measure(Batch(inputs)).distillation_loss)
    expected = np.mean(oracles.top_k_soft_targets(teacher(X), student(X), temperature, 3, "tail"))
    assert found["tail", "live"] == pytest.approx(expected, rel=1e-5)
    assert found["tail", "stored"] == pytest.approx(expected, rel=1e-5)
    exact = np.mean(oracles.soft_targets(teacher(X), student(X), temperature))
    if temperature == 1.0:  # merging classes never increases a divergence
        assert found["tail", "live"] < exact


def test_a_top_k_pair_implies_its_tail_and_a_student_may_rule_it_out():
    teacher, student = np.log(np.float32([[0.5, 0.25, 0.125, 0.125]])), np.float32([[1.0, 0.0, -np.inf, -np.inf]])
    pair = (np.log(np.float32([[0.5, 0.25]])), [[0, 1]])
    got = losses.top_k_soft_targets(teacher_logits=pair, student_logits=teacher, missing="tail")
    np.testing.assert_allclose(got, [0.0], atol=1e-6)
    with tf.GradientTape() as tape:
        student = tf.Variable(student)
        value = losses.top_k_soft_targets(teacher_logits=(pair[0] + np.log(4 / 3), pair[1]), student_logits=student,
                                          missing="tail")  # fmt: skip
    q = np.exp(oracles.log_softmax(np.array([1.0, 0.0])))
    np.testing.assert_allclose(tape.gradient(value, student)[0, :2], q - [2 / 3, 1 / 3], atol=1e-6)
    with pytest.raises(ValueError, match=r"missing to be one of 'spread', 'ignore', 'tail', got share"):
        losses.TopKSoftTargets(2, "share")
    with pytest.raises(ValueError, match=r"missing to be one of 'spread', 'ignore', got tail"):
        losses.from_top_k(*pair, 4, "tail")


def padded(model, tmp_path):
    """Five texts in batches of two, each as long as its longest."""
    texts = [RNG.integers(1, 9, size) for size in (3, 2, 5, 4, 3)]
    data = tf.data.Dataset.from_generator(lambda: iter(texts), output_signature=tf.TensorSpec((None,), tf.int64))
    data = data.padded_batch(2)
    return data, label(model, data, tmp_path, dtype="float32", examples_per_shard=2)


def test_batches_of_different_lengths_are_labelled_if_the_predictions_have_one_shape(tmp_path):
    tokens = keras.Input((None,), dtype="int64")
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(9, 4, mask_zero=True)(tokens))
    model = keras.Model(tokens, keras.layers.Dense(3)(pooled))
    data, stored = padded(model, tmp_path)
    for x in stored.attach(data):
        np.testing.assert_allclose(stored(x), model(x["inputs"]), rtol=1e-5, atol=1e-6)
    assert stored.num_examples == 5 and teachers.verify(tmp_path) == []


def test_predictions_of_different_lengths_raise_a_clear_error(tmp_path):
    tokens = keras.Input((None,), dtype="int64")
    model = keras.Model(tokens, keras.layers.Dense(3)(keras.layers.Embedding(9, 4)(tokens)))
    message = r"label: expected output of shape \(3, 3\) for every example.* got \(5, 3\) for a batch of inputs \(5,\)"
    with pytest.raises(ValueError, match=message):
        padded(model, tmp_path)
