"""Maps and their similarity against third-party libraries: saliency, tf-keras-vis, shap and scikit-image."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import explain, taps

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 8, 8, 3)).astype("float32")
TARGET = np.array([0, 2, 1, 2])


@pytest.fixture(scope="module")
def cnn():
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(4, 3, padding="same", activation="tanh", name="first"),
        keras.layers.Conv2D(5, 3, padding="same", activation="relu", name="maps"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3),
    ]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    model.layers[-1].set_weights([3 * w for w in model.layers[-1].get_weights()])
    return model


def asked(model, target):
    """The interface that the library ``saliency`` requires of a model: gradients, values and maps by its names."""
    tapped = taps.Taps(model, ["maps"])

    def call(x, call_model_args=None, expected_keys=None):
        x = tf.constant(np.asarray(x, "float32"))
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            logits, found = tapped(x)
            picked = logits[:, target]
        answers = {
            "INPUT_OUTPUT_GRADIENTS": lambda: tape.gradient(picked, x),
            "OUTPUT_LAYER_VALUES": lambda: picked,
            "CONVOLUTION_LAYER_VALUES": lambda: found["maps"],
            "CONVOLUTION_OUTPUT_GRADIENTS": lambda: tape.gradient(picked, found["maps"]),
        }
        return {key: np.asarray(answers[key]()) for key in expected_keys}

    return call


def by_saliency(model, method, **settings):
    """Masks of the library ``saliency``, one example after the other."""
    core = pytest.importorskip("saliency.core")
    mask = getattr(core, method)().GetMask
    return np.stack([mask(x, asked(model, t), **settings) for x, t in zip(X, TARGET, strict=True)])


def test_gradient_and_integral_are_those_of_saliency(cnn):
    plain = explain.attributions(cnn, X, "gradient", target=TARGET)
    np.testing.assert_allclose(plain, by_saliency(cnn, "GradientSaliency"), atol=1e-6)
    theirs = by_saliency(cnn, "IntegratedGradients", x_steps=1000, x_baseline=np.zeros((8, 8, 3)), batch_size=100)
    ours = explain.attributions(cnn, X, "integrated", target=TARGET)
    np.testing.assert_allclose(ours, theirs, atol=0.01 * np.abs(theirs).max())


def test_one_patch_is_saliency_s_occlusion(cnn):
    # Its windows overlap and their scores are added, so only one window of the image's size can be compared.
    theirs = by_saliency(cnn, "Occlusion", size=8)
    np.testing.assert_allclose(
        explain.attributions(cnn, X, "occlusion", target=TARGET, patch_size=8), theirs, atol=1e-6
    )


def test_grad_cam_is_that_of_two_libraries(cnn):
    ours = explain.attributions(cnn, X, "grad_cam", target=TARGET, layer_name="maps")
    np.testing.assert_allclose(ours, by_saliency(cnn, "GradCam", should_resize=False), atol=1e-6)
    vis = pytest.importorskip("tf_keras_vis.gradcam")
    score = pytest.importorskip("tf_keras_vis.utils.scores").CategoricalScore(TARGET.tolist())
    theirs = vis.Gradcam(cnn, clone=False)(score, X, penultimate_layer="maps", normalize_cam=False, expand_cam=False)
    np.testing.assert_allclose(ours[..., 0], theirs, atol=1e-6)


def test_the_gradient_and_smoothgrad_are_those_of_tf_keras_vis(cnn):
    vis = pytest.importorskip("tf_keras_vis.saliency")
    score = pytest.importorskip("tf_keras_vis.utils.scores").CategoricalScore(TARGET.tolist())
    map_of = vis.Saliency(cnn, clone=False)
    settings = {"keepdims": True, "normalize_map": False, "gradient_modifier": None}
    plain = map_of(score, X, **settings)
    np.testing.assert_allclose(explain.attributions(cnn, X, "gradient", target=TARGET), plain, atol=1e-6)
    np.random.seed(0)
    theirs = map_of(score, X, smooth_samples=200, smooth_noise=0.1, **settings)
    ours = explain.attributions(cnn, X, "smooth", target=TARGET, samples=200, noise=0.1)
    # The noise differs: the error of two means of 200 remains, far below the difference from the plain gradient.
    assert np.abs(ours - theirs).mean() < 0.25 * np.abs(ours - plain).mean()
    assert explain.spearman(ours, theirs).min() > 0.98


@pytest.mark.slow  # shap compiles
def test_without_biases_one_relu_layer_s_integral_is_deep_shap():
    # On the path from zero no unit switches, so DeepLIFT's rule and the integral are equal.
    shap = pytest.importorskip("shap")
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(16, "relu", use_bias=False), keras.layers.Dense(3, use_bias=False)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    rows = RNG.normal(size=(6, 5)).astype("float32")
    theirs = np.asarray(shap.DeepExplainer(model, np.zeros((1, 5), "float32")).shap_values(rows))
    for kind in range(3):
        ours = explain.attributions(model, rows, "integrated", target=kind)
        np.testing.assert_allclose(ours, theirs[..., kind], atol=1e-4)


@pytest.mark.slow  # shap compiles
def test_kernel_shap_of_a_tree_is_the_exact_tree_shap():
    shap = pytest.importorskip("shap")
    tree = pytest.importorskip("sklearn.tree")
    keras.utils.set_random_seed(2)
    rows = RNG.normal(size=(300, 4)).astype("float32")
    teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    made = explain.surrogate(teacher, rows, "tree", size=8)
    served = made.to_model()
    log_odds = np.asarray(served(rows))[:, 1]
    twin = tree.DecisionTreeRegressor(max_leaf_nodes=64, random_state=0).fit(rows, log_odds)
    np.testing.assert_allclose(twin.predict(rows), log_odds, atol=1e-5)  # the same function on these rows
    exact = shap.TreeExplainer(twin, rows[:40], feature_perturbation="interventional").shap_values(rows[:3])
    for row, expected in zip(rows[:3], exact, strict=True):
        ours = explain.local_surrogate(served, row, rows[:40], target=1, method="kernel_shap", samples=100)
        np.testing.assert_allclose(ours.contributions, expected, atol=1e-4)


def test_structural_similarity_is_scikit_image_s():
    skimage = pytest.importorskip("skimage.metrics").structural_similarity
    first = RNG.normal(size=(6, 20, 17, 3))
    second = first + RNG.normal(size=first.shape) * np.arange(6)[:, None, None, None]
    sides = [each.sum(-1) for each in (first, second)]
    sides = [each / np.abs(each).max((1, 2), keepdims=True) for each in sides]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2.0}
    theirs = [skimage(a, b, win_size=11, **settings) for a, b in zip(*sides, strict=True)]
    np.testing.assert_allclose(explain.structural_similarity(first, second), theirs, atol=1e-5)
    # Smaller images use a window of their size: one position, whose weights are written out here.
    a, b = (each[:, :7, :7] for each in sides)
    a, b = (each / np.abs(each).max((1, 2), keepdims=True) for each in (a, b))
    bell = np.exp(-0.5 * (np.arange(7) - 3.0) ** 2 / 1.5**2)
    weight = np.outer(bell, bell) / bell.sum() ** 2
    mean = [(weight * each).sum((1, 2)) for each in (a, b)]
    products = [(weight * p * q).sum((1, 2)) for p, q in ((a, a), (b, b), (a, b))]
    low, high = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    spread = products[0] - mean[0] ** 2 + products[1] - mean[1] ** 2
    by_hand = (2 * mean[0] * mean[1] + low) / (mean[0] ** 2 + mean[1] ** 2 + low)
    by_hand *= (2 * (products[2] - mean[0] * mean[1]) + high) / (spread + high)
    np.testing.assert_allclose(explain.structural_similarity(a[..., None], b[..., None]), by_hand, atol=1e-5)


def test_concept_directions_and_scores_are_a_float64_twin_s():
    optimize = pytest.importorskip("scipy.optimize")
    keras.utils.set_random_seed(3)
    mid, head = keras.layers.Dense(5, "tanh", name="mid"), keras.layers.Dense(4, "tanh")
    model = keras.Sequential([keras.Input((4,)), mid, head, keras.layers.Dense(3)])
    concept, others, rows = (RNG.normal(size=(40, 4)).astype("float32") for _ in range(3))
    concept[:, 1] += 1.5
    found = explain.concept_direction(model, "mid", concept, others, rows, 2, runs=3, seed=7)

    weights = [w.astype("float64") for w in model.get_weights()]
    inputs = np.concatenate([concept, others]).astype("float64")
    hidden = np.tanh(inputs @ weights[0] + weights[1])
    sign = np.repeat([1.0, -1.0], 40)
    order = np.random.default_rng(7).permutation(80)
    held, rest = order[:20], order[20:]
    scaled = hidden / hidden[rest].std()

    def loss(v):  # logistic regression: half the square of the weights, none of the bias
        margins = sign[rest] * (scaled[rest] @ v[:-1] + v[-1])
        return 0.5 * v[:-1] @ v[:-1] + np.logaddexp(0.0, -margins).sum()

    solved = optimize.minimize(loss, np.zeros(6), tol=1e-10).x
    direction = solved[:-1] / np.linalg.norm(solved[:-1])
    np.testing.assert_allclose(found.direction, direction, atol=2e-3)
    assert found.accuracy == pytest.approx(np.mean((scaled[held] @ solved[:-1] + solved[-1] > 0) == (sign[held] > 0)))
    # The slope of logit 2 at the tap, by the chain rule.
    upper = np.tanh(np.tanh(rows.astype("float64") @ weights[0] + weights[1]) @ weights[2] + weights[3])
    slopes = ((1 - upper**2) * weights[4][:, 2]) @ weights[2].T
    assert found.score == pytest.approx(np.mean(slopes @ direction > 0))
