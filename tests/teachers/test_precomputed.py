"""Predictions from arrays: each example finds its own, in any order, batch, replica and mode."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, NonFiniteLossError, teachers
from keras_distill.teachers._precomputed import fingerprints
from tests.models import batch, mlp, replicas

X, Y = batch(37)


@pytest.fixture(scope="module")
def teacher():
    return mlp(8, 4, seed=1)


def distiller_of(teacher, **options):
    distiller = Distiller(teacher, mlp(5, 4, seed=3), LogitsDistillation(2.0))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.1), loss, **options)
    return distiller


def trained(teacher, x=X, **options):
    keras.utils.set_random_seed(0)
    distiller = distiller_of(teacher, **options)
    history = distiller.fit(x, Y, batch_size=8, epochs=2, verbose=0)
    return distiller, history.history["loss"]


@pytest.fixture(scope="module")
def live(teacher):
    """The student and the losses of the teacher itself."""
    return trained(teacher)


def test_a_shuffled_fit_is_that_of_the_live_teacher_also_under_xla(teacher, live):
    distiller, losses = live
    answers = teacher.predict(X, verbose=0)
    for options in ({"jit_compile": False}, {"jit_compile": True}):
        stored, again = trained(teachers.Precomputed(answers, X), **options)
        np.testing.assert_allclose(again, losses, rtol=1e-5)
        for ours, theirs in zip(stored.student.get_weights(), distiller.student.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_with_an_index_the_student_receives_only_the_inputs(teacher, live):
    stored, losses = trained(teachers.Precomputed(teacher.predict(X, verbose=0)), x=(X, np.arange(37)))
    np.testing.assert_allclose(losses, live[1], rtol=1e-5)
    assert stored.predict(X, verbose=0).shape == (37, 4)


def test_two_replicas_are_one(teacher, live):
    answers = teacher.predict(X, verbose=0)
    with replicas(2).scope():
        got = trained(teachers.Precomputed(answers, X))[1]
    np.testing.assert_allclose(got, live[1], rtol=1e-5)


def test_every_example_finds_its_own_row_and_duplicates_find_the_first():
    rows = np.arange(2000, dtype="float32")[:, None]
    x = np.random.default_rng(0).integers(0, 2, (2000, 5, 5)).astype("float64")
    x[1000:1010] = x[:10]
    answer = teachers.Precomputed(rows, x)(x.astype("float32")).numpy()[:, 0]
    firsts = {}
    expected = [firsts.setdefault(each.tobytes(), index) for index, each in enumerate(x)]
    np.testing.assert_array_equal(answer, expected)


def test_fingerprints_differ_where_examples_do_and_only_there():
    x = np.random.default_rng(0).integers(0, 2, (20_000, 24)).astype("float32")
    distinct = len({each.tobytes() for each in x})
    found = fingerprints(x).numpy()
    assert len(set(found.tolist())) == distinct
    compiled = tf.function(fingerprints, autograph=False, jit_compile=True)(tf.constant(x[:100])).numpy()
    np.testing.assert_array_equal(compiled, found[:100])
    images = np.random.default_rng(1).integers(0, 255, (50, 3, 3), "uint8")
    assert len(set(fingerprints({"a": images, "b": x[:50]}).numpy().tolist())) == 50
    assert len(set(fingerprints(np.array([["a"], ["b"], ["a"]])).numpy().tolist())) == 2


def test_structures_of_outputs_and_inputs():
    outputs = {"one": np.arange(6.0).reshape(3, 2), "two": np.arange(3.0)[:, None]}
    inputs = [np.arange(3), np.eye(3)]
    heard = teachers.Precomputed(outputs, inputs)([np.array([2, 0]), np.eye(3, dtype="float32")[[2, 0]]])
    np.testing.assert_array_equal(heard["one"], outputs["one"][[2, 0]])
    np.testing.assert_array_equal(heard["two"], outputs["two"][[2, 0]])


def test_a_saved_distiller_contains_the_precomputed_predictions(teacher, tmp_path):
    distiller, _ = trained(teachers.Precomputed(teacher.predict(X, verbose=0), X))
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    again, expected = (each.fit(X, Y, shuffle=False, verbose=0).history["loss"] for each in (loaded, distiller))
    assert again == expected


def test_an_unknown_example_stops_training_with_a_clear_error(teacher):
    known = teachers.Precomputed(teacher.predict(X[:30], verbose=0), X[:30])
    with pytest.raises(
        ValueError,
        match=r"Precomputed: expected examples that were given with their outputs, got another one\. Give the",
    ):
        trained(known, jit_compile=False)
    with pytest.raises(NonFiniteLossError, match="teacher's outputs"):
        trained(known, jit_compile=True)
    with pytest.raises(ValueError, match="an index of a row of outputs, got another one"):
        trained(teachers.Precomputed(teacher.predict(X[:30], verbose=0)), x=(X, np.arange(37)), jit_compile=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 2)), np.zeros((4, 2))), r"inputs of 3 examples, one for each row of outputs, got \[4\]\. Keep"),
        ((np.zeros((0, 2)), np.zeros((0, 2))), r"outputs with one row for each example, got arrays of \[0\] rows"),
        (
            ([np.zeros((3, 2)), np.zeros((4, 2))],),
            r"outputs with one row for each example, got arrays of \[3, 4\]",
        ),
        ((np.array(["a", "b"]),), "outputs as arrays of numbers, one row per example, got <U1 of shape"),
        ((3.0,), "outputs as arrays of numbers"),
    ],
)
def test_inconsistent_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"Precomputed: expected {message}"):
        teachers.Precomputed(*arguments)


def test_terms_on_layers_and_inputs_without_an_index_are_refused():
    by_index = teachers.Precomputed(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"Precomputed: expected inputs of the form \(inputs, index\), got inputs"):
        by_index(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"expected terms on outputs alone, got one on layer 'dense'\. Store features"):
        by_index.listen(np.arange(3), ["dense"])
