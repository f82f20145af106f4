"""Arguments of the losses on logits: labels, classes, variables, and clear errors for inconsistent ones."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import LogitsDistillation, losses
from tests import oracles
from tests.losses.test_logits import S, T, Y


def test_class_subsets():
    teacher, student = np.float32(T), np.float32(S)[:, :3]
    chosen = losses.select_classes(teacher, [4, 0, 2])
    np.testing.assert_array_equal(chosen, teacher[:, [4, 0, 2]])
    got = losses.soft_targets(teacher_logits=chosen, student_logits=student)
    np.testing.assert_allclose(got, oracles.soft_targets(teacher[:, [4, 0, 2]], student), rtol=1e-6)
    term = LogitsDistillation(temperature=1.0, class_map=[4, 0, 2])
    np.testing.assert_allclose(term.compute_loss(teacher, student), np.mean(got), rtol=1e-6)


def test_a_loss_receives_the_labels_that_its_term_passes():
    term = LogitsDistillation(temperature=4.0, loss=losses.DecoupledSoftTargets())
    for labels in (Y, np.eye(5, dtype="float32")[Y]):
        values = term.values(np.float32(T), np.float32(S), labels=labels)
        assert float(np.mean(values)) == pytest.approx(19.8227340219, rel=1e-6)


def call(name, **more):
    arguments = {"teacher_logits": np.zeros((2, 3), "float32"), "student_logits": np.zeros((2, 3), "float32")}
    return lambda: getattr(losses, name)(**{**arguments, **more})


TWO = {side: np.zeros((2, 2), "float32") for side in ("teacher_logits", "student_logits")}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: losses.JensenShannon(1.5), r"JensenShannon: expected beta >= 0 and <= 1, got 1\.5"),
        (lambda: losses.JensenShannon(float("nan")), "JensenShannon: expected beta >= 0 and <= 1, got nan"),
        (call("jensen_shannon", beta=-0.1), r"jensen_shannon: expected beta >= 0 and <= 1, got -0\.1"),
        (lambda: losses.DecoupledSoftTargets(-1.0), r"DecoupledSoftTargets: expected target_weight >= 0, got -1\.0"),
        (lambda: losses.NormalizedSoftTargets(-1), r"NormalizedSoftTargets: expected non_target_weight >= 0, got -1"),
        (lambda: losses.ClassCorrelation(1, -2), r"ClassCorrelation: expected intra_weight >= 0, got -2"),
        (lambda: losses.HardTargets(1.1), r"HardTargets: expected label_smoothing >= 0 and <= 1, got 1\.1"),
        (lambda: losses.TopKSoftTargets(0), "TopKSoftTargets: expected k to be an integer >= 1, got 0"),
        (lambda: losses.TopKSoftTargets(2, "drop"), "TopKSoftTargets: expected missing to be one of 'spread', 'ig"),
        (lambda: losses.TopKSoftTargets(4).values(*TWO.values()), "TopKSoftTargets: expected k of at most 2 cl"),
        (lambda: losses.BinarySoftTargets("max"), "BinarySoftTargets: expected label_reduction to be one of"),
        (lambda: losses.RegressionMatching(-1.0), r"RegressionMatching: expected margin >= 0, got -1\.0"),
        (
            call("soft_targets", student_logits=np.zeros((2, 4))),
            r"shape, got \(2, 3\) and \(2, 4\)\. Where the label spa",
        ),
        (call("soft_targets", temperature="hot"), "soft_targets: expected temperature > 0, got hot"),
        (call("soft_targets", temperature=True), "soft_targets: expected temperature > 0, got True"),
        (call("soft_targets", temperature=np.ones(3)), r"expected temperature of shape \(\) or the start of \(2,\)"),
        (call("soft_targets", mask=[True]), r"soft_targets: expected mask of shape \(2,\), got \(1,\)"),
        (call("decoupled_soft_targets", labels=[0, 1], **TWO), "at least 3 classes, got 2. With 2 classes only one"),
        (call("decoupled_soft_targets", labels=None), "decoupled_soft_targets: expected labels, got None"),
        (call("decoupled_soft_targets", labels=[0, 3]), "expected labels from 0 to 2, got 3"),
        (call("standardized_soft_targets", **TWO), "expected at least 3 classes, got 2. 2 standardised logits"),
        (call("class_correlation", temperature=np.ones(2)), "class_correlation: expected one temperature for the ba"),
        (call("top_k_soft_targets"), r"expected teacher_logits to be a pair \(values, indices\), got ndarray"),
        (lambda: losses.from_top_k(np.zeros((1, 2)), [[0, 1]], 5), "expected kept probabilities that sum to at most 1"),
        (lambda: losses.from_top_k(np.full((1, 4), -9.0), [[0, 1, 2, 3]], 3), "expected k of at most 3 classes, got 4"),
        (lambda: losses.select_classes(np.zeros((1, 3)), [0, 3]), "expected class_map within the 3 classes"),
        (lambda: losses.select_classes(np.zeros((1, 3)), [1, 1]), "expected each class once in class_map"),
        (lambda: losses.select_classes(np.zeros((1, 3)), [0.5]), "expected each of class_map to be an integer"),
        (lambda: losses.select_classes(np.zeros((1, 3)), []), "expected class_map within the 3 classes"),
        (lambda: losses.GaussianKL().values(np.zeros((1, 3)), np.zeros((1, 3))), "GaussianKL: expected an even last a"),
    ],
)
def test_bad_input_raises_a_clear_error(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_second_derivatives_are_refused_not_wrong():
    s = tf.constant(np.float32(S))
    with tf.GradientTape() as outer:
        outer.watch(s)
        with tf.GradientTape() as tape:
            tape.watch(s)
            value = losses.soft_targets(teacher_logits=T, student_logits=s)
        gradient = tape.gradient(value, s)
    with pytest.raises(ValueError, match="losses: expected at most one derivative of a divergence"):
        outer.gradient(gradient, s)


def test_a_loss_class_is_a_keras_loss_in_compile():
    model = keras.Sequential([keras.layers.Dense(5)])
    model.compile("sgd", loss=losses.ReverseSoftTargets())
    x = np.eye(4, dtype="float32")
    model.predict(x, verbose=0)
    expected = np.mean(oracles.reverse_soft_targets(T, model.predict(x, verbose=0)))
    assert model.evaluate(x, np.float32(T), verbose=0) == pytest.approx(expected, rel=1e-5)


NAMES_ON_LOGITS = [
    name
    for name in losses.__all__
    if inspect.isfunction(getattr(losses, name))
    and getattr(losses, name).__module__.split(".")[2] in ("_logits", "_ensembles")
    and "student_logits" in inspect.signature(getattr(losses, name)).parameters
]


@pytest.mark.parametrize("name", NAMES_ON_LOGITS)
def test_logits_may_be_variables_of_tensorflow(name):
    """Regression test: variables raised AttributeError: 'ResourceVariable' object has no attribute 'ndim'."""
    function, rng = getattr(losses, name), np.random.default_rng(0)
    shape = (4, 2, 3) if name.startswith(("ensemble", "member", "dirichlet", "proxy")) else (4, 3)
    teacher, labels = rng.normal(size=shape).astype("float32"), np.array([0, 2, 1, 1])
    student = rng.normal(size=(4, 3)).astype("float32")
    needs = inspect.signature(function).parameters
    more = {"labels": labels} if "labels" in needs else {}
    more |= {"targets": np.eye(3, dtype="float32")[labels]} if "targets" in needs else {}
    student = rng.normal(size=(4, 2, 3)).astype("float32") if name.startswith("member") else student
    teachers = {"teacher_logits": teacher} if "teacher_logits" in needs else {}
    if name.startswith("top_k"):
        pytest.skip("its teacher is a pair of values and indices")
    expected = function(**teachers, student_logits=student, **more)
    variables = {key: tf.Variable(each) for key, each in teachers.items()}
    variable = tf.Variable(student)
    labels = {"labels": tf.Variable(labels)} if "labels" in needs else {}
    with tf.GradientTape() as tape:
        got = function(**variables, student_logits=variable, **{**more, **labels})
    np.testing.assert_array_equal(got, expected)
    assert np.isfinite(tape.gradient(got, variable).numpy()).all()
