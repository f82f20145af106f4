"""The table of losses on logits, each with a float64 reference, and helpers that draw inputs and differentiate."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses
from tests import oracles
from tests.models import softmax
from tests.oracles import uncertainty as oracles_uncertainty


@dataclasses.dataclass
class Row:
    """One loss with options.

    Attributes:
        loss: the class, with options.
        oracle: (teacher, student, temperature, **labels) -> float64 values.
        zero: whether it is zero where student = teacher.
        shift: whether a constant added to an example's logits changes nothing.
        tempered: whether the temperature means anything.
        extreme: whether float32 can be exact at logits of 1e4.
    """

    loss: keras.losses.Loss
    oracle: Callable
    zero: bool = True
    shift: bool = True
    tempered: bool = True
    extreme: bool = True


def bind(function, **options):
    return lambda teacher, student, temperature=1.0, **labels: function(
        teacher, student, temperature, **options, **labels
    )


def confident_targets(teacher, student, temperature=1.0):
    sure = softmax(teacher).max(-1) >= 0.6
    return np.where(sure, oracles.soft_targets(teacher, student, temperature), 0.0)


ROWS = [
    Row(losses.SoftTargets(), oracles.soft_targets),
    Row(losses.ReverseSoftTargets(), oracles.reverse_soft_targets),
    Row(losses.JensenShannon(), oracles.jensen_shannon),
    Row(losses.JensenShannon(0.1), bind(oracles.jensen_shannon, beta=0.1)),
    Row(losses.JensenShannon(0.9), bind(oracles.jensen_shannon, beta=0.9)),
    Row(losses.JensenShannon(0.0), oracles.soft_targets),
    Row(losses.JensenShannon(1.0), oracles.reverse_soft_targets),
    Row(losses.TotalVariation(), oracles.total_variation),
    Row(losses.ProbabilityMatching(), oracles.probability_matching),
    Row(losses.LogitMatching(), oracles.logit_matching, shift=False, tempered=False),
    Row(losses.LogitMatching(center=True), bind(oracles.logit_matching, center=True), tempered=False),
    Row(losses.StandardizedSoftTargets(), oracles.standardized_soft_targets),
    Row(losses.DecoupledSoftTargets(), oracles.decoupled_soft_targets),
    Row(
        losses.DecoupledSoftTargets(0.5, 0.0),
        bind(oracles.decoupled_soft_targets, target_weight=0.5, non_target_weight=0.0),
    ),
    Row(losses.NormalizedSoftTargets(), oracles.normalized_soft_targets, zero=False),
    Row(losses.NormalizedSoftTargets(0.3), bind(oracles.normalized_soft_targets, non_target_weight=0.3), zero=False),
    Row(losses.WeightedSoftLabels(), oracles.weighted_soft_labels, zero=False),
    Row(losses.HardTargets(), oracles.hard_targets, zero=False),
    Row(losses.HardTargets(0.1), bind(oracles.hard_targets, label_smoothing=0.1), zero=False),
    Row(losses.BinarySoftTargets(), oracles.binary_soft_targets, shift=False),
    Row(losses.BinarySoftTargets("mean"), bind(oracles.binary_soft_targets, label_reduction="mean"), shift=False),
    Row(losses.EdgeDistributions(1), oracles.soft_targets),
    Row(losses.ConfidentTargets(0.6), confident_targets),
    Row(losses.TopKSoftTargets(2), bind(oracles.top_k_soft_targets, k=2), zero=False),
    Row(
        losses.TopKSoftTargets(3, "ignore"),
        bind(oracles.top_k_soft_targets, k=3, missing="ignore"),
        zero=False,
    ),
    Row(losses.TopKSoftTargets(2, "tail"), bind(oracles.top_k_soft_targets, k=2, missing="tail")),
    Row(losses.ClassCorrelation(), oracles.class_correlation, zero=False),
    Row(
        losses.ClassCorrelation(2.0, 0.5),
        bind(oracles.class_correlation, inter_weight=2.0, intra_weight=0.5),
        zero=False,
    ),
    Row(losses.GaussianKL(), oracles.gaussian_kl, shift=False, tempered=False, extreme=False),
    Row(losses.RegressionMatching(), oracles.regression_matching, shift=False, tempered=False),
    Row(losses.Evidential(), oracles_uncertainty.evidential, zero=False, shift=False, extreme=False),
    Row(
        losses.Evidential("digamma"),
        bind(oracles_uncertainty.evidential, form="digamma"),
        zero=False,
        shift=False,
        extreme=False,
    ),
    Row(
        losses.MisleadingEvidence(),
        oracles_uncertainty.misleading_evidence,
        zero=False,
        shift=False,
        tempered=False,
        extreme=False,
    ),
    Row(losses.TrustWeighted(), oracles_uncertainty.trust_weighted),
    Row(losses.PolicyTargets(0.2), bind(oracles.policy_targets, sharpness=0.2), zero=False, tempered=False),
    Row(losses.PolicyTargets(target="nll"), bind(oracles.policy_targets, target="nll"), zero=False, tempered=False),
    Row(losses.PolicyTargets(target="mse"), bind(oracles.policy_targets, target="mse"), shift=False, tempered=False),
]
IDS = [f"{type(row.loss).__name__}-{index}" for index, row in enumerate(ROWS)]


def rows(wanted):
    """Run a test on the rows that it is for."""
    kept = [index for index, row in enumerate(ROWS) if wanted(row)]
    return pytest.mark.parametrize("row", [ROWS[i] for i in kept], ids=[IDS[i] for i in kept])


every = rows(lambda row: True)
# Tracing and compiling take seconds: once for each class.
one_of_each = rows(lambda row: row is next(each for each in ROWS if type(each.loss) is type(row.loss)))
per_position = rows(lambda row: not row.loss.needs_batch)


def draw(shape=(5, 6), seed=0, scale=1.5):
    """Random teacher and student logits on a grid of 2**-9, so that adding whole numbers is exact; labels."""
    rng = np.random.default_rng(seed)
    teacher, student = (np.round(rng.normal(size=shape) * scale * 512) / 512 for _ in range(2))
    return teacher.astype("float32"), student.astype("float32"), rng.integers(0, shape[-1], shape[:-1])


def given(row, labels):
    return {"labels": labels} if row.loss.needs_labels else {}


def values(row, teacher, student, temperature=1.0, labels=None, **options):
    return row.loss.values(teacher, student, temperature=temperature, **given(row, labels), **options)


def gradients(row, teacher, student, temperature=1.0, labels=None, weights=None, **options):
    """Weighted sum of the values, its gradient to the student, and, where it is a tensor, to the temperature."""
    with tf.GradientTape() as tape:
        watched = [x for x in (student, temperature) if tf.is_tensor(x)]
        tape.watch(watched)
        result = values(row, teacher, student, temperature, labels, **options)
        total = tf.reduce_sum(result if weights is None else result * weights)
    return total, *tape.gradient(total, watched)


def oracle_gradient(row, teacher, student, temperature, labels, step=2e-4):
    options = given(row, labels)
    if isinstance(row.loss, losses.WeightedSoftLabels):
        options["weight_from"] = student
    return oracles.slope(lambda s: row.oracle(teacher, s, temperature, **options), student, step)


def assert_close(got, wanted, rtol, floor=1e-7):
    """Every entry within ``rtol`` of itself, or within ``floor * rtol`` of the largest."""
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=floor * (np.abs(wanted).max() + 1e-30))
