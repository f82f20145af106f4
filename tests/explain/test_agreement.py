"""Agreement of explanations: maps, curves, sanity, counterfactuals and concepts, against SciPy and closed forms."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_distill import explain

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(40, 4)).astype("float32")


def linear(kernel):
    model = keras.Sequential([keras.Input((len(kernel),)), keras.layers.Dense(len(kernel[0]), use_bias=False)])
    model.set_weights([np.asarray(kernel, "float32")])
    return model


def test_spearman_is_scipys_and_signed():
    a, b = RNG.normal(size=(5, 3, 4)), RNG.normal(size=(5, 3, 4)).round(1)
    expected = [stats.spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(explain.spearman(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(explain.spearman(a, -a), -1)
    np.testing.assert_array_equal(explain.spearman(a, np.zeros_like(a)), 0)


def test_top_overlap_of_unrelated_maps_is_its_fraction_and_ssim_of_equal_ones_is_1():
    a, b = RNG.normal(size=(300, 10, 10, 1)), RNG.normal(size=(300, 10, 10, 1))
    assert explain.top_overlap(a, b, 0.1).mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(explain.top_overlap(a, -2 * a), 1)
    a, b = a[:5], b[:5]
    np.testing.assert_allclose(explain.structural_similarity(a, 5 * a), 1, atol=1e-5)
    assert (explain.structural_similarity(a, b) < 0.3).all()


def test_every_measure_lies_between_its_floor_and_its_ceiling():
    teacher = linear(RNG.normal(size=(4, 3)))
    kernel = teacher.get_weights()[0]
    student, other = linear(kernel + 0.2 * RNG.normal(size=(4, 3))), linear(2 * kernel)
    labels = RNG.integers(3, size=40)
    found = explain.agreement(teacher, student, TABLE, ceiling=other, labels=labels, counterfactual=True)
    for name in ("answers", "errors", "spearman", "top_overlap", "flips"):
        assert found[name].ceiling == pytest.approx(1.0), name  # twice the weights: the same explanations
        assert found[name].floor < found[name].student <= 1.0, name
        assert found[name].reached == pytest.approx(
            (found[name].student - found[name].floor) / (1 - found[name].floor), abs=1e-6
        )
    # The student's Spearman by hand.
    classes = teacher(TABLE).numpy().argmax(-1)
    by_hand = [stats.spearmanr(kernel[:, c], student.get_weights()[0][:, c]).statistic for c in classes]
    assert found["spearman"].student == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert found["spearman"].error == pytest.approx(np.std(by_hand, ddof=1) / np.sqrt(40), abs=1e-6)
    text = str(found)
    assert "floor" in text and "ceiling" in text and "not measured" not in text
    alone = explain.agreement(teacher, student, TABLE)
    assert "not measured" in str(alone) and alone["spearman"].reached is None


def test_an_untrained_copy_has_new_weights_for_each_seed_and_leaves_the_model_unchanged():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, kernel_initializer=keras.initializers.HeNormal(7))]
    )
    before = model.get_weights()
    one, two, again = (explain.untrained(model, TABLE, seed).get_weights()[0] for seed in (0, 1, 0))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 0.1 and np.abs(one - before[0]).max() > 0.1
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_an_untrained_copy_leaves_the_global_random_state_unchanged():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])

    def drawn(between):
        keras.utils.set_random_seed(5)
        between()
        layer = keras.layers.Dense(2)
        layer.build((None, 2))
        numbers = random.random(), np.random.rand(), float(keras.random.normal(())), float(tf.random.normal(()))
        return *numbers, layer.kernel.numpy().tolist()

    made = []
    assert drawn(lambda: made.append(explain.untrained(model, TABLE))) == drawn(lambda: None)
    keras.utils.set_random_seed(6)
    np.testing.assert_array_equal(made[0].get_weights()[0], explain.untrained(model, TABLE).get_weights()[0])


def test_deletion_and_insertion_of_a_linear_model_by_hand():
    kernel = np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    model, x = linear(kernel), np.ones((1, 4), "float32")
    maps = explain.attributions(model, x, "integrated", target=0)
    deletion = explain.importance_curve(model, x, maps, steps=4, target=0)
    remaining = [5, 2, 0, -1, 0]  # the logit after each number goes, largest first
    np.testing.assert_allclose(deletion.probabilities, 1 / (1 + np.exp(-np.array(remaining))), rtol=1e-5)
    insertion = explain.importance_curve(model, x, maps, kind="insertion", steps=4, target=0)
    np.testing.assert_allclose(insertion.probabilities, 1 / (1 + np.exp(-np.array([0, 3, 5, 6, 5.0]))), rtol=1e-5)
    many = RNG.normal(size=(60, 4)).astype("float32")
    maps = explain.attributions(model, many, "integrated")
    assert explain.importance_curve(model, many, maps).area < explain.importance_curve(model, many, maps).random_area
    up = explain.importance_curve(model, many, maps, kind="insertion")
    assert up.area > up.random_area


def test_random_weights_change_a_gradient_but_not_an_edge_detector():
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.Dense(3),
    ]
    model = keras.Sequential([keras.Input((20,)), *layers])
    x = RNG.normal(size=(10, 20)).astype("float32")
    before = model.get_weights()
    found = explain.sanity_check(model, x)
    assert found.passed and abs(found.similarity[-1]) < 0.3
    assert found.randomized[0] == (layers[2].name,) and len(found.randomized[-1]) == 3
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    # The map of this model does not depend on its weights, so the check fails.
    fixed = keras.Sequential([keras.Input((20,)), keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)])
    assert not explain.sanity_check(fixed, x, "integrated", stages=1).passed


def test_the_smallest_change_of_a_linear_model_is_the_distance_to_its_boundary():
    model = linear(RNG.normal(size=(4, 3)))
    found = explain.counterfactuals(model, TABLE, overshoot=0.0, batch_size=16)
    kernel, logits = model.get_weights()[0], model(TABLE).numpy()
    for row, distance, before in zip(logits, found.distance, found.before, strict=True):
        others = [k for k in range(3) if k != before]
        nearest = min((row[before] - row[k]) / np.linalg.norm(kernel[:, before] - kernel[:, k]) for k in others)
        assert distance == pytest.approx(nearest, rel=1e-2, abs=1e-3)
    assert found.flipped.all()
    np.testing.assert_array_equal(model(found.inputs).numpy().argmax(-1), found.after)
    assert explain.transferred(found, TABLE, linear(3 * kernel)).all()
    assert not explain.transferred(found, TABLE, linear(np.zeros((4, 3)))).any()


def test_a_concept_is_found_where_it_is_and_scored_by_its_sign():
    concept, others = RNG.normal(size=(60, 4)).astype("float32"), RNG.normal(size=(60, 4)).astype("float32")
    concept[:, 0] += 4
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6, use_bias=False, name="mid"), keras.layers.Dense(2, use_bias=False)]
    )
    mid = np.linalg.qr(RNG.normal(size=(6, 6)))[0][:4]
    model.set_weights([mid, mid.T @ np.array([[1.0, -1.0], [0.1, 0.0], [0.0, 0.0], [0.0, 0.0]])])
    up, down = (explain.concept_direction(model, "mid", concept, others, TABLE, target) for target in (0, 1))
    assert up.accuracy > 0.9 > 0.7 > up.floor_accuracy
    assert up.score == 1.0 and down.score == 0.0
    assert abs(np.dot(up.direction, mid[0])) > 0.9  # the concept is the first column of the input
    model.set_weights([mid * [[0.0], [1.0], [1.0], [1.0]], model.get_weights()[1]])
    lost = explain.concept_direction(model, "mid", concept, others, TABLE, 0)
    assert lost.accuracy < 0.75  # the layer no longer contains it


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: explain.agreement(m, m, TABLE[:1]), "explain.agreement: expected at least two examples, got 1"),
        (lambda m: explain.agreement(m, linear(np.ones((4, 2))), TABLE), "expected models with the same classes"),
        (lambda m: explain.spearman(TABLE, TABLE[:3]), r"spearman: expected two maps of one shape \(examples, ...\)"),
        (lambda m: explain.top_overlap(TABLE, TABLE, 0), "top_overlap: expected fraction > 0 and <= 1, got 0"),
        (lambda m: explain.structural_similarity(TABLE, TABLE), "expected maps of shape"),
        (lambda m: explain.importance_curve(m, TABLE, TABLE[:2]), r"expected maps of shape \(40, 4\), got \(2, 4\)"),
        (lambda m: explain.importance_curve(m, TABLE, TABLE, kind="blur"), "expected kind to be one of 'deletion'"),
        (lambda m: explain.counterfactuals(linear([[1.0]] * 4), TABLE), "expected at least two classes, got 1"),
        (lambda m: explain.concept_direction(m, "x", TABLE, TABLE, TABLE, 0), "expected a layer of model"),
        (lambda m: explain.concept_direction(m, "x", TABLE[:2], TABLE, TABLE, 0), "expected at least four examples"),
    ],
)
def test_incomparable_models_raise_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(linear(np.ones((4, 3))))
