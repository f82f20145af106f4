"""Every way to specify a loss gives the right one or a clear error; and the contribution of an empty replica."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import DistillationLoss, Distiller, FeatureDistillation, LogitsDistillation, losses
from tests.models import batch, kd, mlp, replicas

X, Y = batch(65)
TEACHER, STUDENT = mlp(8, 4, seed=1), mlp(8, 4, seed=2)


@pytest.mark.parametrize("loss", [losses.SoftTargets, "soft_targets", "SoftTargets", keras.losses.KLDivergence])
def test_a_class_or_a_name_of_ours_is_its_object(loss):
    got = LogitsDistillation(4.0, loss).compute_loss(TEACHER(X), STUDENT(X))
    assert float(got) == pytest.approx(kd(TEACHER(X), STUDENT(X), 4.0).mean(), rel=1e-5)


def test_a_loss_named_by_a_string_receives_labels():
    by_name, by_class = (
        LogitsDistillation(4.0, loss).compute_loss(TEACHER(X), STUDENT(X), labels=Y)
        for loss in ("decoupled_soft_targets", losses.DecoupledSoftTargets())
    )
    assert float(by_name) == float(by_class)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitsDistillation(loss=losses.soft_targets), r"the function losses.soft_targets. Give the class: "),
        (lambda: LogitsDistillation(loss="kl_div"), "got 'kl_div'. Nearest: 'kl_divergence'"),
        (lambda: Distiller(TEACHER, mlp(4), LogitsDistillation(from_logits=False)), "which gives logits"),
        (lambda: losses.decoupled_soft_targets(
            teacher_logits=np.zeros((2, 1)), student_logits=np.zeros((2, 1)), labels=np.zeros(2, int)),
         "expected at least 3 classes, got 1"),
        (lambda: losses.normalized_soft_targets(
            teacher_logits=np.zeros((2, 1)), student_logits=np.zeros((2, 1)), labels=np.zeros(2, int)),
         "expected at least 2 classes, got 1"),
    ],
)  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_built_in_term_with_its_default_loss_is_warned_of():
    with pytest.warns(UserWarning, match="compares raw logits as if they were probabilities"):
        Distiller(TEACHER, mlp(4), keras.distillation.LogitsDistillation())


class Doubled(DistillationLoss):
    """A term that overrides the mean."""

    def compute_loss(self, teacher_outputs, student_outputs, labels=None, sample_weight=None, training=True, **_):
        return 2.0 * keras.ops.sum(student_outputs)


def test_a_term_that_overrides_the_mean_is_respected():
    student = mlp(4, seed=3)
    expected = 2.0 * np.asarray(student(X), "float64").sum()
    distiller = Distiller(TEACHER, student, Doubled(), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    assert distiller.fit(X, batch_size=65, verbose=0).history["loss"][0] == pytest.approx(expected, rel=1e-4)


RELATIONS = ["RelationalDistance", "RelationalAngle", "SimilarityPreserving", "CorrelationCongruence",
             "ProbabilisticTransfer"]  # fmt: skip


@pytest.mark.parametrize("name", RELATIONS)
def test_a_replica_without_examples_contributes_nothing(name):
    """65 examples in global batches of 16: the last one leaves the second replica empty."""
    with replicas(2).scope():
        student = mlp(8, 4, seed=2)
        term = FeatureDistillation(getattr(losses, name)(), "dense_0", "dense_0")
        distiller = Distiller(mlp(8, 4, seed=1), student, term, student_loss_weight=0.0)
        distiller.compile(keras.optimizers.SGD(0.0))
    data = tf.data.Dataset.from_tensor_slices(X).batch(16)
    options = tf.data.Options()
    options.autotune.enabled = False
    history = distiller.fit(data.with_options(options), verbose=0).history
    means = []  # of each replica, weighted by its number of examples
    for start in range(0, 65, 16):
        rows = X[start : start + 16]
        half = (len(rows) + 1) // 2
        for part in filter(len, (rows[:half], rows[half:])):
            taps = [np.maximum(part @ m.layers[0].kernel.numpy() + m.layers[0].bias.numpy(), 0)
                    for m in (distiller.teacher, student)]  # fmt: skip
            means.append((len(part), float(getattr(losses, name)().values(*taps))))
    expected = sum(count * mean for count, mean in means) / 65
    assert history["loss"][0] == pytest.approx(expected, rel=2e-4, abs=1e-7)
