"""Properties over random shapes, dtypes, weights and settings, for every public loss and metric concerned."""

import inspect

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st

from keras_distill import Distiller, LogitsDistillation, losses, metrics, schedules
from tests import oracles
from tests.models import mlp

few = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
# One value per row of logits, independent of the other rows.
ROWWISE = {
    losses.SoftTargets: oracles.soft_targets,
    losses.ReverseSoftTargets: oracles.reverse_soft_targets,
    losses.JensenShannon: oracles.jensen_shannon,
    losses.TotalVariation: oracles.total_variation,
    losses.ProbabilityMatching: oracles.probability_matching,
}
leading = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
seeds = st.integers(0, 2**16)


def without_arguments(module):
    """Classes of a module that need no arguments, without base classes."""
    for name in module.__all__:
        each = getattr(module, name)
        if inspect.isclass(each) and not each.__module__.endswith("._base"):
            needed = [p for p in inspect.signature(each).parameters.values() if p.default is p.empty]
            if not any(p.kind is p.POSITIONAL_OR_KEYWORD or p.kind is p.KEYWORD_ONLY for p in needed):
                yield pytest.param(each, id=name)


def logits(seed, shape, scale):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=(2, *shape))).astype("float32")


@pytest.mark.parametrize("kind", ROWWISE, ids=lambda kind: kind.__name__)
@few
@hypothesis.given(leading, st.integers(2, 9), seeds, st.floats(0.1, 30.0), st.sampled_from([1.0, 2.0, 7.0]))
def test_any_leading_shape_gives_each_row_its_own_value(kind, shape, classes, seed, scale, temperature):
    teacher, student = logits(seed, (*shape, classes), scale)
    got = kind().values(teacher, student, temperature=temperature)
    assert got.shape == shape and keras.backend.standardize_dtype(got.dtype) == "float32"
    expected = ROWWISE[kind](teacher.reshape(-1, classes), student.reshape(-1, classes), temperature)
    np.testing.assert_allclose(np.ravel(got), expected, rtol=1e-4, atol=1e-6)


@few
@hypothesis.given(st.integers(1, 6), seeds, st.sampled_from(["float16", "bfloat16"]))
def test_half_precision_logits_are_compared_in_float32(batch, seed, dtype):
    teacher, student = (keras.ops.cast(each, dtype) for each in logits(seed, (batch, 5), 3.0))
    got = losses.SoftTargets().values(teacher, student, temperature=2.0)
    exact = [keras.ops.convert_to_numpy(keras.ops.cast(each, "float32")) for each in (teacher, student)]
    np.testing.assert_allclose(got, oracles.soft_targets(*exact, 2.0), rtol=1e-4, atol=1e-6)


@few
@hypothesis.given(st.lists(st.integers(0, 3), min_size=2, max_size=6).filter(any), seeds)
def test_an_integer_weight_equals_that_many_copies(weights, seed):
    weights = np.array(weights)
    teacher, student = logits(seed, (len(weights), 4), 2.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    results = []
    for x, sample_weight in ((student, weights.astype("float32")), (np.repeat(student, weights, axis=0), None)):
        taught = teacher if sample_weight is not None else np.repeat(teacher, weights, axis=0)
        term = LogitsDistillation(2.0)
        term.build_from(taught, x)
        value = float(term.compute_loss(taught, x, sample_weight=sample_weight))
        results.append(value * len(x))  # a mean over the batch, as Keras' own losses give
        labels = np.zeros(len(x), "int32")
        assert float(loss(labels, x, sample_weight=sample_weight)) >= 0.0
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [*without_arguments(losses), *without_arguments(metrics)])
def test_a_public_object_is_restored_from_its_config(kind):
    made = kind()
    again = kind.from_config(made.get_config())
    assert type(again) is kind and again.get_config() == made.get_config()
    assert keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made)).get_config() == (
        made.get_config()
    )


@few
@hypothesis.given(
    st.floats(0.1, 50.0), st.floats(0.0, 1.0), st.floats(0.0, 10.0), st.sampled_from(list(ROWWISE)), st.booleans()
)
def test_a_distiller_is_restored_from_its_config_with_the_same_values(temperature, share, weight, kind, scheduled):
    setting = schedules.Linear(temperature, 1.0, 10) if scheduled else temperature
    term = LogitsDistillation(setting, kind())
    made = Distiller(mlp(4, 3, seed=1), mlp(3, 3, seed=2), term, [weight], student_loss_weight=share)
    again = Distiller.from_config(made.get_config())
    assert again.get_config() == made.get_config()
    assert again.student_loss_weight == made.student_loss_weight
    assert again.distillation_loss_weights == made.distillation_loss_weights


@few
@hypothesis.given(seeds, st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_a_streaming_metric_does_not_depend_on_the_batches(seed, cuts):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(sum(cuts), 5)).astype("float32"), rng.integers(0, 5, sum(cuts))
    for kind in (metrics.ExpectedCalibrationError, metrics.BrierScore, metrics.NegativeLogLikelihood):
        whole, pieces = kind(), kind()
        whole.update_state(y, x)
        for start, stop in zip(np.cumsum([0, *cuts[:-1]]), np.cumsum(cuts), strict=True):
            pieces.update_state(y[start:stop], x[start:stop])
        np.testing.assert_allclose(float(pieces.result()), float(whole.result()), rtol=1e-6, atol=1e-7)
