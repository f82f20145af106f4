"""Attributions against closed forms, their axioms, and shap."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import explain, students, taps, teachers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 8, 8, 2)).astype("float32")
TABLE = RNG.normal(size=(12, 5)).astype("float32")


def linear(features=5, classes=3):
    return keras.Sequential([keras.Input((features,)), keras.layers.Dense(classes, bias_initializer="normal")])


def smooth_mlp():
    layers = [keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((5,)), *layers])


def cnn():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(4, 3, padding="same", name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.Conv2D(5, 3, padding="same", activation="relu", name="second"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, name="head"),
        ]
    )
    model.get_layer("norm").moving_mean.assign(RNG.normal(size=4) * 0.2)
    return model


def picked(logits, target=None):
    logits = np.asarray(logits)
    return np.take_along_axis(logits, (logits.argmax(-1) if target is None else target)[:, None], 1)[:, 0]


@pytest.mark.parametrize("target", [None, 1, np.arange(12) % 3])
def test_a_linear_model_is_explained_exactly_by_every_method(target):
    model = linear()
    logits = model(TABLE).numpy()
    classes = logits.argmax(-1) if target is None else np.broadcast_to(target, 12)
    weights = model.layers[0].kernel.numpy().T[classes]
    for method in ("gradient", "smooth"):
        got = explain.attributions(model, TABLE, method, target=target, samples=3)
        np.testing.assert_allclose(got, weights, rtol=1e-5, atol=1e-6)
    baseline = np.linspace(-1, 1, 5)
    for method in ("integrated", "occlusion"):
        got = explain.attributions(model, TABLE, method, target=target, baseline=baseline)
        np.testing.assert_allclose(got, weights * (TABLE - baseline), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [smooth_mlp, cnn])
def test_integrated_gradients_are_complete_within_a_hundredth(make):
    model = make()
    x = TABLE if make is smooth_mlp else X
    got = explain.attributions(model, x, "integrated", batch_size=5)
    target = model(x).numpy().argmax(-1)
    difference = picked(model(x), target) - model(np.zeros_like(x)).numpy()[np.arange(len(x)), target]
    assert got.shape == x.shape
    assert (np.abs(got.reshape(len(x), -1).sum(1) - difference) <= 0.01 * np.abs(difference) + 1e-3).all()


def test_too_few_steps_are_refused():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    steep = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda t: 50 * keras.ops.relu(t - 0.9)), model])
    x = np.ones((3, 2), "float32")
    message = r"explain.attributions: expected attributions that add up .* within 1%, got 3 of 3 examples.*Raise steps"
    with pytest.raises(ValueError, match=message):
        explain.attributions(steep, x, "integrated", steps=2)
    assert explain.attributions(steep, x, "integrated").shape == (3, 2)


def test_gradient_agrees_with_finite_differences():
    model = smooth_mlp()
    got = explain.attributions(model, TABLE, "gradient", target=2)
    step = 1e-2
    for column in range(5):
        moved = np.eye(5, dtype="float32")[column] * step
        slope = (model(TABLE + moved).numpy() - model(TABLE - moved).numpy())[:, 2] / (2 * step)
        np.testing.assert_allclose(got[:, column], slope, rtol=2e-2, atol=2e-3)


def test_expected_gradients_of_shap_with_one_background_are_integrated_gradients():
    shap = pytest.importorskip("shap")
    model = smooth_mlp()
    ours = explain.attributions(model, TABLE[:4], "integrated", target=1)
    np.random.seed(0)
    theirs = shap.GradientExplainer(model, np.zeros((1, 5), "float32")).shap_values(TABLE[:4], nsamples=1000)[..., 1]
    np.testing.assert_allclose(ours, theirs, atol=0.05)
    assert np.corrcoef(ours.ravel(), np.ravel(theirs))[0, 1] > 0.998


def test_occlusion_of_one_column_is_an_ablation_and_works_for_teachers_without_gradients():
    model = smooth_mlp()
    several = teachers.Ensemble([model, smooth_mlp()])
    got = explain.attributions(several, TABLE, "occlusion", target=0)
    for column in range(5):
        hidden = TABLE.copy()
        hidden[:, column] = 0
        np.testing.assert_allclose(got[:, column], (several(TABLE) - several(hidden)).numpy()[:, 0], atol=1e-5)
    image = cnn()
    got = explain.attributions(image, X, "occlusion", patch_size=3, target=0)
    hidden = X.copy()
    hidden[:, 3:6, 6:9] = 0
    expected = (image(X) - image(hidden)).numpy()[:, 0]
    np.testing.assert_allclose(
        got[:, 3:6, 6:9], np.broadcast_to(expected[:, None, None, None], (6, 3, 2, 2)), atol=1e-5
    )


def test_grad_cam_of_pooled_maps_is_the_class_activation_map():
    model = cnn()
    got = explain.attributions(model, X, "grad_cam", target=1)
    maps = taps.Taps(model, ["second"])(X)[1]["second"].numpy()
    # After global average pooling the gradient is the head's weight over the number of positions (Zhou et al. 2016).
    expected = np.maximum(0, maps @ model.get_layer("head").kernel.numpy()[:, 1] / 64)
    np.testing.assert_allclose(got, np.repeat(expected[..., None], 2, -1), rtol=1e-4, atol=1e-6)
    smaller = explain.attributions(model, X, "grad_cam", layer_name="first")
    assert smaller.shape == X.shape and (smaller >= 0).all() and smaller.std() > 0


def test_a_single_teacher_is_its_model_and_batches_do_not_matter():
    model = cnn()
    whole = explain.attributions(model, X, "gradient")
    np.testing.assert_allclose(explain.attributions(teachers.Single(model), X, batch_size=4), whole, atol=1e-6)
    bytes_ = (X * 40 + 100).clip(0, 255).astype("uint8")
    np.testing.assert_allclose(
        explain.attributions(model, bytes_), explain.attributions(model, bytes_.astype("float32")), atol=1e-6
    )


def _tree():
    tree = students.SoftDecisionTree(2, 3)
    tree(TABLE)
    return tree


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: explain.attributions(linear(), TABLE, "lime"),
            "expected method to be one of 'gradient'",
        ),
        (
            lambda: explain.attributions(linear(), TABLE[:0]),
            "expected at least one example of shape",
        ),
        (
            lambda: explain.attributions(linear(), np.array([["a text"]])),
            "expected images or other numeric",
        ),
        (lambda: explain.attributions(linear(), TABLE, target=3), "expected target from 0 to 2, got 3 to 3"),
        (lambda: explain.attributions(linear(), TABLE, target=[0]), "expected target to be a class id, or 12 of them"),
        (lambda: explain.attributions(linear(), TABLE, baseline=np.ones(4)), "expected baseline to be a number or an"),
        (
            lambda: explain.attributions(teachers.Ensemble([linear(), linear()]), TABLE),
            "expected a model with gradients, got the teacher Ensemble. Use method='occlusion'",
        ),
        (
            lambda: explain.attributions(_tree(), TABLE),
            "which has no gradient for its input. Set tree.inference = 'mean'",
        ),
        (lambda: explain.attributions(cnn(), X, "grad_cam", layer_name="head"), "expected a layer that gives maps"),
        (lambda: explain.attributions(linear(), TABLE, "grad_cam"), "expected images of shape"),
        (
            lambda: explain.attributions(
                keras.Sequential([keras.Input((8, 8, 2)), keras.layers.Flatten(), keras.layers.Dense(2)]), X, "grad_cam"
            ),
            "expected a model with a layer that gives maps",
        ),
        (
            lambda: explain.attributions(keras.Sequential([keras.Input((5,)), keras.layers.Softmax()]), TABLE),
            "which ends in softmax. Use taps.without_softmax",
        ),
    ],
)
def test_unsupported_models_and_inputs_raise_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_soft_tree_is_explained_by_its_mean():
    tree = _tree()
    tree.inference = "mean"
    got = explain.attributions(tree, TABLE, "integrated")
    assert got.shape == TABLE.shape and tf.reduce_all(tf.math.is_finite(got))
