"""Domains: the formulas in NumPy, the reversed gradient, and the alignment of two domains."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, terms
from keras_distill.training import Batch
from tests.models import batches


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(12, 5)).astype("float32")
    domain = np.array([0, 1, 0, 0, 1, 1, 1, 0, 0, 7, 1, 0])
    return features, domain


def test_coral_is_the_distance_of_the_covariances():
    features, domain = drawn()
    gap = np.cov(features[domain == 0].T.astype("f8")) - np.cov(features[domain == 1].T.astype("f8"))
    got = terms.DomainAlignment("coral").compute_loss(None, features, batch=Batch({"domain": domain}))
    np.testing.assert_allclose(float(got), (gap**2).sum() / (4 * 25), rtol=1e-5)


def test_mmd_is_the_three_means_of_the_kernel():
    features, domain = drawn()
    x = features[domain < 2].astype("f8")
    d = ((x[:, None] - x[None]) ** 2).sum(-1)
    scale = d.sum() / (len(x) * (len(x) - 1))
    kernel = np.mean([np.exp(-d / (b * scale)) for b in (0.25, 0.5, 1, 2, 4)], 0)
    s, t = np.flatnonzero(domain[domain < 2] == 0), np.flatnonzero(domain[domain < 2] == 1)
    expected = kernel[np.ix_(s, s)].mean() + kernel[np.ix_(t, t)].mean() - 2 * kernel[np.ix_(s, t)].mean()
    got = terms.DomainAlignment("mmd").compute_loss(None, features, batch=Batch({"domain": domain}))
    np.testing.assert_allclose(float(got), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["coral", "mmd"])
def test_alignment_is_zero_for_identical_domains_and_for_a_single_domain(kind):
    features, _ = drawn()
    twice, domain = np.concatenate([features, features]), np.repeat([0, 1], 12)
    term = terms.DomainAlignment(kind)
    np.testing.assert_allclose(float(term.compute_loss(None, twice, batch=Batch({"domain": domain}))), 0.0, atol=1e-6)
    with tf.GradientTape() as tape:
        x = tf.Variable(features)
        alone = term.compute_loss(None, x, batch=Batch({"domain": np.zeros(12)}))
    assert float(alone) == 0.0 and np.abs(tape.gradient(alone, x)).max() == 0.0


def test_the_adversary_descends_and_the_student_climbs():
    features, domain = drawn()
    term = terms.DomainAdversary(reversal_strength=0.5, ramp_steps=0)
    term.build_from(None, features)
    batch = Batch({"domain": domain})
    x = tf.Variable(features)
    with tf.GradientTape() as tape:
        loss = term.compute_loss(None, x, batch=batch)
    for_student, *for_network = tape.gradient(loss, [x, *term.trainable_weights])
    step = 1e-2

    def after(features):
        return float(term.compute_loss(None, features, batch=batch))

    # The student's update increases the loss; the true gradient is -1 / strength times the student's.
    slope = (after(x - step * for_student) - after(x + step * for_student)) / (2 * step)
    np.testing.assert_allclose(slope, np.sum(for_student.numpy() ** 2) / 0.5, rtol=1e-2)
    for weight, gradient in zip(term.trainable_weights, for_network, strict=True):
        weight.assign_sub(step * gradient)
    assert after(x) < float(loss)


def test_the_ramp_is_danns():
    ramp = terms.DomainAdversary(ramp_steps=100).settings["reversal_strength"].schedule
    p = np.array([0.0, 0.25, 1.0, 1.0])
    got = [float(ramp(step)) for step in (0, 25, 100, 900)]
    np.testing.assert_allclose(got, 2 / (1 + np.exp(-10 * p)) - 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["coral", "mmd", "adversary"])
def test_training_makes_the_domains_alike_through_a_real_distiller(kind, tmp_path):
    rng = np.random.default_rng(0)
    domain = np.tile([0, 1], 64)  # both in every batch
    x = rng.normal(size=(128, 4)).astype("float32")
    x[domain == 1, 0] = 3.0 * x[domain == 1, 0] + 2.0  # the domains differ along one input, which can be left out
    made = []
    for units in (3, 3):
        inputs = keras.Input((4,), name="row")
        h = keras.layers.Dense(units, name="h", kernel_initializer=keras.initializers.GlorotUniform(seed=1))(inputs)
        made.append(keras.Model({"row": inputs}, keras.layers.Dense(2)(h)))
    term = terms.DomainAdversary("h", ramp_steps=20) if kind == "adversary" else terms.DomainAlignment(kind, "h")
    distiller = Distiller(made[0], made[1], term, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    data = {"row": x, "domain": domain}
    before = distiller.evaluate(data, batch_size=128, verbose=0, return_dict=True)["distillation_loss"]
    history = distiller.fit(batches(data, size=64), epochs=30, verbose=0).history
    after = distiller.evaluate(data, batch_size=128, verbose=0, return_dict=True)["distillation_loss"]
    if kind == "adversary":
        np.testing.assert_allclose(history["reversal_strength"][-1], 2 / (1 + np.exp(-10)) - 1, rtol=1e-5)
        assert after > 0.5  # near log 2: the adversary cannot distinguish the domains
        distiller.save(tmp_path / "saved.keras")
        again = keras.models.load_model(tmp_path / "saved.keras")
        np.testing.assert_allclose(
            again.evaluate(data, batch_size=128, verbose=0, return_dict=True)["distillation_loss"], after, rtol=1e-5
        )
    else:
        assert after < before / 4


@pytest.mark.parametrize(
    ("domain", "got"),
    [
        ([1, 2, 1, 2], "at least two of the domains 0 to 1 in the field 'domain', got only 1, 2"),
        (["a", "b"] * 2, "text"),
    ],
)
def test_unknown_domains_are_refused_before_training(domain, got):
    inputs = keras.Input((3,), name="row")
    models = [keras.Model({"row": inputs}, keras.layers.Dense(2)(inputs)) for _ in range(2)]
    distiller = Distiller(*models, terms.DomainAlignment(), student_loss_weight=0.0)
    distiller.compile("sgd")
    with pytest.raises(ValueError, match=f"DomainAlignment: expected .*{got}. Number the domains from 0"):
        distiller.fit({"row": np.ones((4, 3), "float32"), "domain": np.array(domain)}, verbose=0)


BAD = [
    (lambda: terms.DomainAlignment("wasserstein"), "DomainAlignment: expected kind to be one of 'coral', 'mmd'"),
    (lambda: terms.DomainAlignment(bandwidths=[0.0]), "expected each of bandwidths > 0, got 0.0"),
    (lambda: terms.DomainAdversary(num_domains=1), "DomainAdversary: expected num_domains to be an integer >= 2"),
    (lambda: terms.DomainAdversary(reversal_strength=-1.0), "expected reversal_strength >= 0, got -1.0"),
    (
        lambda: terms.DomainAlignment().compute_loss(None, np.ones((2, 2)), batch=Batch({"source": 1})),
        "DomainAlignment: expected a field 'domain' in the batch, got only 'source'",
    ),
]


@pytest.mark.parametrize(("make", "text"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_raises_a_clear_error(make, text):
    with pytest.raises(ValueError, match=text):
        make()
