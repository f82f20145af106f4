"""Students that estimate their uncertainty: heads, builders and outputs, against NumPy and SciPy."""

import keras
import numpy as np
import pytest
from scipy import special, stats

from keras_distill import losses, metrics, students
from tests.models import batches


def small(outputs=3, sequential=True):
    layers = [keras.layers.Dense(8, activation="relu"), keras.layers.Dense(outputs)]
    if sequential:
        return keras.Sequential([keras.Input((4,)), *layers])
    x = keras.Input((4,), name="x")
    return keras.Model({"x": x}, layers[1](layers[0](x)))


X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


@pytest.mark.parametrize("sequential", [True, False])
def test_hydra_heads_start_as_the_students_and_are_trained_separately(sequential, tmp_path):
    student = small(sequential=sequential)
    x = X if sequential else {"x": X}
    copies = students.hydra(student, 4, noise=0.0)
    np.testing.assert_allclose(copies(x), np.repeat(np.asarray(student(x))[:, None], 4, 1), rtol=1e-5, atol=1e-6)
    model = students.hydra(student, 4, noise=0.1, seed=1)
    kernel, noisy = student.layers[-1].kernel.numpy(), model.layers[-1].kernel.numpy()
    assert np.std(noisy - kernel) == pytest.approx(0.1 * kernel.std(), rel=0.3)
    members = np.random.default_rng(1).normal(size=(6, 4, 3)).astype("float32")
    model.compile(keras.optimizers.Adam(0.05), loss=losses.MemberSoftTargets())
    before = model.evaluate(x, members, verbose=0)
    model.fit(batches(x, members), epochs=150, verbose=0)
    assert model.evaluate(x, members, verbose=0) < 0.2 * before
    model.save(tmp_path / "hydra.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "hydra.keras")(x), model(x))


def test_heads_on_sequences_equal_heads_on_each_position():
    layer = students.MemberHeads(5, 3)
    x = np.random.default_rng(0).normal(size=(2, 7, 4)).astype("float32")
    got = layer(x)
    assert got.shape == layer.compute_output_shape((2, 7, 4)) == (2, 5, 7, 3)
    layer.bias.assign(np.random.default_rng(1).normal(size=(5, 3)))
    expected = np.einsum("btd,mdk->bmtk", x, layer.kernel.numpy()) + layer.bias.numpy()[None, :, None]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_regression_heads_output_the_format_that_the_losses_expect():
    x = 3 * X
    gaussian = students.GaussianHead(2)(x).numpy()
    assert (gaussian[:, 2:] > np.log(1e-6) - 1e-3).all()
    for layer in (students.GaussianHead(2), students.NormalInverseGammaHead(2)):
        out = layer(x).numpy()  # means unchanged, everything else the logarithm of a softplus
        dense = x @ layer.dense.kernel.numpy() + layer.dense.bias.numpy()
        np.testing.assert_allclose(out[:, :2], dense[:, :2], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out[:, 2:], np.log(np.logaddexp(dense[:, 2:], 0) + 1e-6), rtol=1e-4, atol=1e-5)
    layer = students.MixtureHead(2, components=3)
    out = layer(x).numpy()
    dense = x @ layer.dense.kernel.numpy() + layer.dense.bias.numpy()
    np.testing.assert_allclose(out[:, :12], dense[:, :12], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out[:, 12:], np.log(np.logaddexp(dense[:, 12:], 0) + 1e-6), rtol=1e-4, atol=1e-5)
    for each in (layer, students.GaussianHead(2), students.NormalInverseGammaHead(2), students.MemberHeads(2, 3)):
        assert type(each).from_config(each.get_config()).get_config() == each.get_config()


def test_a_gaussian_head_learns_the_noise_of_the_data():
    """Two groups of inputs with noise 0.5 and 2, which the head's standard deviations recover."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (4000, 1)).astype("float32")
    y = (x + rng.normal(size=x.shape) * np.where(x > 0, 2.0, 0.5)).astype("float32")
    model = keras.Sequential([keras.Input((1,)), students.GaussianHead(1)])
    model.compile(keras.optimizers.Adam(0.05), loss=losses.GaussianLikelihood(), jit_compile=False)
    model.fit(batches(x, y, size=200), epochs=20, verbose=0)
    got = np.exp(0.5 * np.asarray(model(np.float32([[0.0], [1.0]])))[:, 1])
    np.testing.assert_allclose(got, [0.5, 2.0], rtol=0.1)


def test_uncertainty_head_and_its_model(tmp_path):
    model = students.with_uncertainty_head(small(), 2)
    said = model(X)
    assert set(said) == {"logits", "uncertainty"}
    assert said["uncertainty"].shape == (6, 2)
    assert (said["uncertainty"].numpy() >= 0).all()
    features = keras.Model(model.inputs, model.get_layer("uncertainty").input)(X)
    dense = features @ model.get_layer("uncertainty").kernel.numpy() + model.get_layer("uncertainty").bias.numpy()
    np.testing.assert_allclose(said["uncertainty"], np.logaddexp(dense, 0.0), rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")(X)
    np.testing.assert_array_equal(again["uncertainty"], said["uncertainty"])


def test_uncertainties_of_each_source(tmp_path):
    logits = np.asarray(small()(X), "float64")
    model = small()
    for source, offset, alpha in (
        ("dirichlet", 0.0, np.exp(logits)),
        ("dirichlet", 1.0, np.exp(logits) + 1),
        ("evidence", 0.0, np.logaddexp(logits, 0) + 1),
    ):
        plain = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
        said = students.with_uncertainties(plain, source, offset=offset)(logits.astype("float32"))
        mean = alpha / alpha.sum(-1, keepdims=True)
        data = -(mean * (special.digamma(alpha + 1) - special.digamma(alpha.sum(-1, keepdims=True) + 1))).sum(-1)
        np.testing.assert_allclose(said["probabilities"], mean, rtol=1e-5)
        np.testing.assert_allclose(said["total"], stats.entropy(mean.T), rtol=1e-5)
        np.testing.assert_allclose(said["data"], data, rtol=1e-5)
        np.testing.assert_allclose(said["knowledge"], said["total"] - said["data"], rtol=1e-3, atol=1e-6)
    heads = students.with_uncertainties(students.hydra(model, 4, noise=1.0), "members")
    said = heads(X)
    expected = metrics.ensemble_uncertainty(students.hydra(model, 4, noise=1.0)(X), from_logits=True)
    np.testing.assert_allclose(said["knowledge"], expected.knowledge, rtol=1e-5, atol=1e-7)
    heads.save(tmp_path / "heads.keras")
    again = keras.models.load_model(tmp_path / "heads.keras")(X)
    np.testing.assert_array_equal(again["knowledge"], said["knowledge"])


def test_uncertainties_of_regressions():
    rng = np.random.default_rng(0)

    def through(numbers, source, **options):
        plain = keras.Sequential([keras.Input((numbers.shape[-1],)), keras.layers.Activation("linear")])
        return students.with_uncertainties(plain, source, **options)(numbers)

    gaussian = rng.normal(size=(5, 4)).astype("float32")
    said = through(gaussian, "gaussian")
    np.testing.assert_allclose(said["total"], np.exp(gaussian[:, 2:]), rtol=1e-5)
    assert np.abs(said["knowledge"]).max() == 0.0
    nig = rng.normal(size=(5, 8)).astype("float32")
    said = through(nig, "normal_inverse_gamma")
    v, a, b = np.exp(nig[:, 2:4]), np.exp(nig[:, 4:6]) + 1, np.exp(nig[:, 6:])
    np.testing.assert_allclose(said["data"], stats.invgamma(a, scale=b).mean(), rtol=1e-4)
    np.testing.assert_allclose(said["knowledge"], b / (a - 1) / v, rtol=1e-4)
    mixture = rng.normal(size=(5, 12)).astype("float32")  # 2 components, 2 outputs
    said = through(mixture, "mixture", outputs=2)
    w, m, s = (part.reshape(5, 2, 2) for part in np.split(mixture.astype("float64"), 3, -1))
    w = special.softmax(w, 1)
    mean = (w * m).sum(1)
    np.testing.assert_allclose(said["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(said["total"], (w * (np.exp(s) + m**2)).sum(1) - mean**2, rtol=1e-4)
    np.testing.assert_allclose(said["data"], (w * np.exp(s)).sum(1), rtol=1e-4)


def test_inconsistent_arguments_are_named():
    softmax = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    for make in (lambda: students.hydra(softmax, 3), lambda: students.with_uncertainty_head(softmax)):
        with pytest.raises(ValueError, match="expected a model that ends in a Dense layer without activation"):
            make()
    with pytest.raises(ValueError, match="hydra: expected num_members to be an integer >= 1, got 0"):
        students.hydra(small(), 0)
    with pytest.raises(ValueError, match="expected source to be one of 'members', 'dirichlet'"):
        students.with_uncertainties(small(), "guess")
    with pytest.raises(ValueError, match="expected a Functional or Sequential model with one output"):
        students.with_uncertainties(students.with_uncertainty_head(small()), "dirichlet")
