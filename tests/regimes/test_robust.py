"""Attacks equal ART's, adversarial training equals its formula, and a robust student is robust."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax

from keras_distill import regimes
from tests.models import batches, mlp

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(24, 6)).astype("float32")
Y = RNG.integers(0, 4, 24)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
HARSH = regimes.ProjectedGradient(0.1, 0.03, 4, random_start=False)


@pytest.mark.parametrize("attack", [HARSH, regimes.fast_gradient_sign(0.2)], ids=str)
def test_adversarial_examples_equal_those_of_art(attack):
    pytest.importorskip("art")
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    model = mlp(16, 4, seed=3)
    classifier = TensorFlowV2Classifier(model, nb_classes=4, input_shape=(6,), loss_object=LOSS, clip_values=(0.0, 1.0))
    oracle = ProjectedGradientDescent(
        classifier, eps=attack.epsilon, eps_step=attack.step_size, max_iter=attack.num_steps, verbose=False
    )
    expected = oracle.generate(X, keras.utils.to_categorical(Y, 4))
    found = attack(model, X, Y, batch_size=10)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - X).max() == pytest.approx(attack.epsilon, abs=1e-6)


def test_a_random_start_stays_in_the_box_repeats_and_beats_random_noise():
    model, attack = mlp(16, 4, seed=3), regimes.ProjectedGradient(0.1, low=0.2, high=0.8, seed=5)
    one, two = (attack(model, X, Y) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - X).max() <= 0.1 + 1e-6
    inside = (X >= 0.2) & (X <= 0.8)
    assert (one[inside] >= 0.2).all() and (one[inside] <= 0.8).all()

    def loss(x):
        return -log_softmax(np.asarray(model(x), "float64"), -1)[np.arange(24), Y].mean()

    assert loss(one) > loss(X + RNG.uniform(-0.1, 0.1, X.shape)) + 0.02
    again = regimes.ProjectedGradient.from_config(attack.get_config())
    np.testing.assert_array_equal(again(model, X, Y), one)


def test_probabilities_and_one_hot_labels_are_the_same_attack():
    model = mlp(16, 4, seed=3)
    soft = keras.Sequential([model, keras.layers.Softmax()])
    np.testing.assert_allclose(HARSH(soft, X, Y, from_logits=False), HARSH(model, X, Y), atol=1e-6)


def moved(student, teacher):
    """The attack in NumPy, on the gradients of TensorFlow."""
    x = X.copy()
    for _ in range(HARSH.num_steps):
        with tf.GradientTape() as tape:
            inputs = tf.constant(x)
            tape.watch(inputs)
            logs = tf.nn.log_softmax(student(inputs))
            target = np.eye(4)[Y] if teacher is None else softmax(np.asarray(teacher(X), "float64"), -1)
            value = -tf.reduce_sum(tf.constant(target, "float32") * logs)
        uphill = np.sign(tape.gradient(value, inputs).numpy())
        x = np.clip(np.clip(x + HARSH.step_size * uphill, X - HARSH.epsilon, X + HARSH.epsilon), 0, 1)
    return x.astype("float32")


def kl(teacher, student, x, temperature):
    p, q = (log_softmax(np.asarray(z, "float64") / temperature, -1) for z in (teacher(X), student(x)))
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1)


def ce(student, x):
    return -log_softmax(np.asarray(student(x), "float64"), -1)[np.arange(24), Y]


@pytest.mark.parametrize("method", ["at", "ard", "rslad"])
def test_the_loss_is_the_formula(method):
    teacher, student = mlp(8, 4, seed=1), mlp(8, 4, seed=2)
    weights = RNG.uniform(0.1, 2.0, 24).astype("float32")
    if method == "at":
        regime, x = regimes.AdversarialTraining(student, HARSH), moved(student, None)
        clean, robust, total = ce(student, X), ce(student, x), ce(student, x)
    elif method == "ard":
        regime, x = regimes.ard(teacher, student, HARSH, robust_weight=0.7, temperature=3.0), moved(student, None)
        clean, robust = ce(student, X), kl(teacher, student, x, 3.0)
        total = 0.3 * clean + 0.7 * robust
    else:
        regime, x = regimes.rslad(teacher, student, HARSH), moved(student, teacher)
        clean, robust = kl(teacher, student, X, 1.0), kl(teacher, student, x, 1.0)
        total = clean / 6 + 5 * robust / 6
    regime.compile("sgd", None if method == "rslad" else LOSS)
    logs = regime.evaluate(X, Y, sample_weight=weights, batch_size=24, verbose=0, return_dict=True)
    for name, values in (("clean_loss", clean), ("robust_loss", robust)):
        # The supervised loss is Keras' mean over the batch, the term's is the weighted mean.
        known = (values * weights).mean(), np.average(values, weights=weights)
        assert min(abs(logs[name] - each) for each in known) < 1e-4, name
    if method == "rslad":
        assert regime.evaluate(X, batch_size=24, verbose=0, return_dict=True)["total_loss"] == pytest.approx(
            total.mean(), abs=1e-4
        )
    before = student.get_weights()
    assert regime.evaluate(X, Y, verbose=0, return_dict=True) == regime.evaluate(X, Y, verbose=0, return_dict=True)
    for one, two in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def zeros():
    return keras.Sequential([keras.Input((32,)), keras.layers.Dense(2, kernel_initializer="zeros")])


@pytest.fixture(scope="module")
def outvoted():
    """One feature that no attack of 0.2 turns round, and many that it does, which outvote it; a plain student."""
    y = RNG.integers(0, 2, 256)
    x = (2.0 * y[:, None] - 1) * np.array([0.3] + [0.1] * 31) + RNG.normal(0, 0.01, (256, 32))
    plain = zeros()
    plain.compile(keras.optimizers.SGD(2.0), LOSS)
    plain.fit(batches(x.astype("float32"), y, size=64), epochs=20, verbose=0)
    return x.astype("float32"), y, plain


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}, {"steps_per_execution": 2}], ids=str)
def test_a_student_of_attacked_examples_is_more_robust_than_a_plain_one(mode, outvoted):
    (x, y, plain), robust = outvoted, zeros()
    attack = regimes.ProjectedGradient(0.2, num_steps=3, low=-1.0)
    regime = regimes.AdversarialTraining(robust, attack)
    regime.compile(keras.optimizers.SGD(2.0), LOSS, ["accuracy"], **mode)
    regime.fit(batches(x, y, size=64), epochs=20, verbose=0)

    def accuracy(model):
        return np.mean(np.asarray(model(attack(model, x, y))).argmax(-1) == y)

    assert accuracy(plain) < 0.2 and accuracy(robust) > 0.7


def test_a_saved_regime_resumes(tmp_path):
    regime = regimes.rslad(mlp(8, 4, seed=1), mlp(8, 4, seed=2), regimes.ProjectedGradient(0.1, num_steps=2))
    regime.compile("adam")
    regime.fit(X, batch_size=8, verbose=0, shuffle=False)
    regime.save(tmp_path / "r.keras")
    loaded = keras.saving.load_model(tmp_path / "r.keras")
    for each in (regime, loaded):
        each.fit(X, batch_size=8, verbose=0, shuffle=False)
    for one, two in zip(regime.student.get_weights(), loaded.student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: regimes.ProjectedGradient(0.0), r"ProjectedGradient: expected epsilon > 0, got 0.0\."),
    (lambda: regimes.ProjectedGradient(0.1, -1.0), r"expected step_size > 0"),
    (lambda: regimes.ProjectedGradient(0.1, low=1.0), r"expected low < high, got 1.0 and 1.0"),
    (lambda: HARSH(mlp(8, 4), X, Y[:3]), r"expected one integer label for each example"),
    (lambda: regimes.AdversarialTraining(mlp(8, 4), 0.1), r"expected an attack such as ProjectedGradient"),
    (lambda: regimes.AdversarialTraining(mlp(8, 4), HARSH, robust="teacher"), r"exactly where .*, got no teacher"),
    (lambda: regimes.AdversarialTraining(mlp(8, 4), HARSH, mlp(8, 4, seed=1)), r"a teacher whom nothing listens to"),
    (lambda: regimes.AdversarialTraining(mlp(8, 4), HARSH, robust_weight=2.0), r"expected robust_weight <= 1"),
    (lambda: regimes.rslad(mlp(8, 3), mlp(8, 4, seed=1), HARSH), r"the same number of classes, got 3 and 4"),
    (lambda: regimes.AdversarialTraining(mlp(8, 4), HARSH).compile("adam"), r"a loss, because labels are learned"),
])  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_that_the_attack_needs_are_required():
    regime = regimes.ard(mlp(8, 4, seed=1), mlp(8, 4, seed=2), HARSH)
    regime.compile("adam")
    with pytest.raises(ValueError, match="labels, which are learned or attacked"):
        regime.fit(X, verbose=0)
