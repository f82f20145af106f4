"""Only the loss applies the mask. A term passes it on, and the mean over positions does not mask again."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, losses
from keras_distill.terms import CurriculumTemperature, EntropyMatchedTemperature

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
RNG = np.random.default_rng(5)
TEACHER, STUDENT = (RNG.normal(size=(3, 4, 5)).astype("float32") for _ in "ts")
LABELS = np.where(MASK, RNG.integers(0, 5, (3, 4)), -100)


def term_value(term, teacher, student, labels=LABELS):
    student = tf.convert_to_tensor(student)
    student._keras_mask = tf.constant(MASK)
    return float(term.compute_loss(tf.convert_to_tensor(teacher), student, labels=labels))


NAMES = ["SoftTargets", "ClassCorrelation", "DecoupledSoftTargets", "NormalizedSoftTargets", "WeightedSoftLabels"]


@pytest.mark.parametrize("name", [*NAMES, "HardTargets", "LogitMatching", "mse", "categorical_crossentropy"])
@pytest.mark.parametrize("standardize", [False, True])
def test_values_at_masked_positions_have_no_effect(name, standardize):
    loss = getattr(losses, name)() if hasattr(losses, name) else name
    term = LogitsDistillation(2.0, loss, standardize=standardize)
    before = term_value(term, TEACHER, STUDENT)
    garbage = [np.where(MASK[..., None], side, noise) for side, noise in ((TEACHER, np.nan), (STUDENT, np.inf))]
    assert term_value(term, *garbage) == before
    # The value is that of the unmasked positions alone, as if they were the whole batch.
    alone = LogitsDistillation(2.0, loss, standardize=standardize)
    packed = float(alone.compute_loss(TEACHER[MASK], tf.constant(STUDENT[MASK]), labels=LABELS[MASK]))
    assert before == pytest.approx(packed, rel=2e-6)


@pytest.mark.parametrize("make", [CurriculumTemperature, EntropyMatchedTemperature])
def test_temperatures_of_masked_positions_are_ignored(make):
    first, second = make(), make()
    garbage = [np.where(MASK[..., None], side, np.float32(np.nan)) for side in (TEACHER, STUDENT)]
    assert term_value(first, TEACHER, STUDENT) == term_value(second, *garbage)
    assert first.temperature == second.temperature


def tagger(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,), dtype="int32")
    states = keras.layers.Embedding(6, 3, mask_zero=True)(inputs)
    return keras.Model(inputs, keras.layers.Dense(5)(states))


@pytest.mark.parametrize("name", [*NAMES[1:], "SoftTargets"])
@pytest.mark.parametrize("eager", [True, False])
def test_labels_of_minus_100_at_padding_train(name, eager):
    """Regression test: these losses raised in eager mode and gave non-finite gradients in a graph."""
    tokens = np.where(MASK, RNG.integers(1, 6, (3, 4)), 0)
    distiller = Distiller(tagger(0), tagger(1), LogitsDistillation(2.0, getattr(losses, name)()), student_loss_weight=0)
    distiller.compile(keras.optimizers.SGD(0.1), run_eagerly=eager)
    expected = getattr(losses, name)().values(
        distiller.teacher(tokens)[MASK], distiller.student(tokens)[MASK], temperature=2.0, labels=LABELS[MASK]
    )
    before = [each.numpy() for each in distiller.student.weights]
    data = tf.data.Dataset.from_tensors((tokens, LABELS))
    history = distiller.fit(data, epochs=1, verbose=0).history
    assert history["distillation_loss"][0] == pytest.approx(float(np.mean(expected)), rel=1e-5)
    after = [each.numpy() for each in distiller.student.weights]
    assert all(np.isfinite(each).all() for each in after)
    assert any(np.abs(one - other).max() > 1e-4 for one, other in zip(before, after, strict=True))
