"""Contrast with a memory: the recorded steps, when it is updated, and the same next step after loading."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, teachers
from keras_distill.terms import ContrastiveMemory
from tests.golden.record_features import Case
from tests.models import batch, batches, mlp

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def distilled(term, jit_compile=False, seed=1):
    distiller = Distiller(teachers.Indexed(mlp(8, 4, seed=5)), mlp(6, 4, seed=seed), term)
    distiller.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY, jit_compile=jit_compile)
    return distiller


def data(examples=40):
    x, y = batch(examples)
    return (x, np.arange(examples)), y


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_equals_the_public_codes(step, monkeypatch):
    case = Case(f"crd/391/step{step}")
    term = ContrastiveMemory(30, "t", "s", units=8, num_negatives=case["contrast_index"].shape[1] - 1)
    term.build_from([tf.constant(case["teacher"]), tf.constant(case["index"])], tf.constant(case["student"]))
    monkeypatch.setattr(term, "_candidates", lambda index, training: tf.constant(case["contrast_index"]))
    term.memory_of_student.memory.assign(case["memory_student"])
    term.memory_of_teacher.memory.assign(case["memory_teacher"])

    def loss(student, teacher, kernel_s, bias_s, kernel_t, bias_t):
        for embedding, kernel, bias in (
            (term.embed_student, kernel_s, bias_s),
            (term.embed_teacher, kernel_t, bias_t),
        ):
            monkeypatch.setattr(embedding, "call", lambda x, k=kernel, b=bias: tf.math.l2_normalize(x @ k + b, axis=-1))
        return term.values([teacher, tf.constant(case["index"])], student)

    names = ["student", "teacher", *(f"embed_{side}_{part}" for side in "st" for part in ("weight", "bias"))]
    if step == 2:  # the same batch again, after the memory was updated with it
        loss(*(tf.constant(case[name]) for name in names))
    checked = case.check(loss, *names)
    assert len(checked) >= 5


def test_negatives_are_all_others_and_never_the_example_itself():
    term = ContrastiveMemory(5, "t", "s", num_negatives=4000)
    drawn = term._candidates(tf.constant([0, 2, 4]), training=True).numpy()
    assert drawn[:, 0].tolist() == [0, 2, 4]
    for own, row in zip((0, 2, 4), drawn[:, 1:], strict=True):
        counts = np.bincount(row, minlength=5)
        assert counts[own] == 0
        others = np.delete(counts, own)
        assert np.abs(others - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)  # five standard deviations
    assert (term._candidates(tf.constant([0, 2, 4]), training=True).numpy() != drawn).any()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_learns_to_discriminate_examples_and_updates_its_memory_only_in_training(jit_compile):
    x, y = data()
    term = ContrastiveMemory(40, "dense_0", "dense_0", units=8, num_negatives=16)
    distiller = distilled(term, jit_compile)
    before = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert float(term.memory_of_student.constant) == 0.0  # evaluation does not set the constant
    history = distiller.fit(batches(x, y, size=10), epochs=40, verbose=0).history["distillation_loss"]
    assert history[-1] < 0.6 * history[0]
    memories = [np.array(bank.memory) for bank in (term.memory_of_student, term.memory_of_teacher)]
    for memory in memories:
        np.testing.assert_allclose(np.linalg.norm(memory, axis=1), 1.0, rtol=1e-5)  # every example was written
    after = [distiller.evaluate(x, y, verbose=0, return_dict=True) for _ in range(2)]
    assert after[0] == after[1] != before
    np.testing.assert_array_equal(memories[0], term.memory_of_student.memory)


def test_saved_and_loaded_it_takes_the_same_next_step(tmp_path):
    x, y = data()
    distiller = distilled(ContrastiveMemory(40, "dense_0", "dense_0", units=8, num_negatives=16))
    distiller.fit(x, y, epochs=2, batch_size=10, shuffle=False, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    expected, got = (d.fit(x, y, batch_size=10, shuffle=False, verbose=0).history["loss"] for d in (distiller, loaded))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    kept = [d.distillation_losses[0].memory_of_teacher.memory for d in (distiller, loaded)]
    np.testing.assert_allclose(kept[1], kept[0], atol=1e-6)
    assert distiller.student.count_params() == mlp(6, 4).count_params()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveMemory(1, "a", "b"), "num_examples to be an integer >= 2, got 1"),
        (lambda: ContrastiveMemory(9, ["a"], "b"), "teacher_layer_name to be the name of one layer"),
        (lambda: ContrastiveMemory(9, "a", "b", contrast_temperature=0.0), "contrast_temperature > 0"),
        (
            lambda: Distiller(mlp(8, 4), mlp(6, 4), ContrastiveMemory(9, "dense_0", "dense_0")),
            r"a teacher that gives indices, got Sequential. Give teachers.Indexed\(teacher\)",
        ),
        (
            lambda: distilled(ContrastiveMemory(40, "dense_0", "dense_0")).fit(*batch(), verbose=0),
            r"Indexed: expected inputs of the form \(inputs, index\)",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
