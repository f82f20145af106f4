"""Two replicas train as one: the same weights, losses and metrics, for every kind of distillation."""

import functools

import keras
import numpy as np
import pytest

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, losses, teachers
from tests.models import batch, batches, mlp, replicas

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def regularized():
    init = keras.initializers.GlorotUniform(seed=5)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, "relu", kernel_initializer=init, kernel_regularizer="l2", name="dense_0"),
            keras.layers.Dense(4, kernel_initializer=init),
        ]
    )


def adapter():
    init = keras.initializers.GlorotUniform(seed=9)
    return keras.layers.Dense(8, kernel_initializer=init)


def falling():
    return keras.optimizers.schedules.PolynomialDecay(6.0, 6, end_learning_rate=1.0)


CASES = {
    "ensemble, weights, ragged batch, momentum": (
        lambda: (
            teachers.Ensemble([mlp(8, 4, seed=1), mlp(7, 4, seed=3)]),
            mlp(5, 4, seed=2),
            [LogitsDistillation(2.0)],
        ),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        {},
    ),
    "adapter, regulariser, schedule, several steps": (
        lambda: (
            mlp(8, 4, seed=1),
            regularized(),
            [LogitsDistillation(falling()), FeatureDistillation("mse", "dense_0", "dense_0", adapter=adapter())],
        ),
        lambda: keras.optimizers.Adam(0.01),
        {"steps_per_execution": 2},
    ),
}


def weighted_data():
    x, y = batch(18)
    return batches(x, y, np.linspace(0.0, 2.0, 18).astype("float32"), size=8)


def trained(count, make, optimizer, compile_arguments, data=None):
    with replicas(count).scope():
        teacher, student, terms = make()
        distiller = Distiller(teacher, student, terms, student_loss_weight=0.4)
        distiller.compile(optimizer(), CROSS_ENTROPY, **{"weighted_metrics": ["accuracy"], **compile_arguments})
    data = weighted_data() if data is None else data
    history = distiller.fit(data, epochs=2, verbose=0).history  # 6 steps
    logs = {**history, "evaluate": list(distiller.evaluate(data, verbose=0, return_dict=True).values())}
    return [weight.numpy() for weight in distiller.trainable_weights], logs


@functools.cache
def alone(case):
    """The results of one replica."""
    return trained(1, *CASES[case])


def assert_same(one, two, rtol=1e-5, atol=1e-6):
    (one, expected), (two, got) = one, two
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(b, a, rtol=rtol, atol=atol)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=rtol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_replicas_equal_one(case):
    assert_same(alone(case), trained(2, *CASES[case]))


@pytest.mark.slow
def test_two_replicas_with_a_stored_teacher_equal_one_with_the_live_teacher(tmp_path):
    case = "adapter, regulariser, schedule, several steps"
    make, optimizer, arguments = CASES[case]
    data, options = weighted_data(), {"dtype": "float32", "examples_per_shard": 8, "progress": False}
    stored = teachers.label(make()[0], data, tmp_path, features=["dense_0"], **options)
    two = trained(2, lambda: (teachers.Stored(tmp_path), *make()[1:]), optimizer, arguments, stored.attach(data))
    assert_same(alone(case), two)


@pytest.mark.slow
def test_two_replicas_in_mixed_precision_equal_one_to_the_precision_of_their_gradients():
    # A gradient is summed over the replica's examples in bfloat16, 8 bits, before the replicas' sums meet in float32.
    keras.config.set_dtype_policy("mixed_bfloat16")
    make, optimizer, _ = CASES["ensemble, weights, ragged batch, momentum"]
    case = (make, optimizer, {"weighted_metrics": None})  # 8 bits have ties, which accuracy may break either way
    assert_same(trained(1, *case), trained(2, *case), rtol=2.0**-6, atol=2.0**-6)


@pytest.mark.slow
def test_relations_over_gathered_replicas_equal_one_big_batch():
    x, y = batch(16)
    results = []
    for count in (1, 2):
        with replicas(count).scope():
            term = FeatureDistillation(losses.SimilarityPreserving(gather_replicas=True), "dense_0", "dense_0")
            distiller = Distiller(mlp(8, 4, seed=1), mlp(5, 4, seed=2), [term], student_loss_weight=0.0)
            distiller.compile(keras.optimizers.SGD(10.0), CROSS_ENTROPY)
        history = distiller.fit(batches(x, y, size=16), epochs=3, verbose=0).history["distillation_loss"]
        results.append((history, distiller.student.get_weights()))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-4)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


def tagger(width, seed):
    init = keras.initializers.GlorotUniform(seed=seed)
    inputs = keras.Input((6,), dtype="int32")
    states = keras.layers.Embedding(9, width, mask_zero=True, embeddings_initializer=init, name="states")(inputs)
    return keras.Model(inputs, keras.layers.Dense(5, kernel_initializer=init)(states))


@pytest.mark.slow
def test_the_positions_that_count_are_those_of_the_global_batch():
    """Short texts on one replica, long ones on the other: each token has the same weight on either replica."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, (12, 6))
    tokens[np.arange(6)[None] >= np.where(np.arange(12) % 4 < 2, 1, 6)[:, None]] = 0
    weights = np.where(tokens > 0, 1.0 + tokens % 2, 0.0).astype("float32")
    data = batches(tokens, tokens, weights, size=4)
    results = []
    for count in (1, 2):
        with replicas(count).scope():
            terms = [LogitsDistillation(2.0), FeatureDistillation(losses.HiddenStates(), "states", "states")]
            terms.append(FeatureDistillation("mse", "states", "states"))
            distiller = Distiller(tagger(4, 1), tagger(4, 2), terms, student_loss_weight=0.0)
            distiller.compile(keras.optimizers.SGD(1.0))
        history = distiller.fit(data, epochs=2, verbose=0).history
        results.append(([weight.numpy() for weight in distiller.trainable_weights], history))
    assert_same(*results)


def test_gradient_accumulation_under_two_replicas_is_refused():
    with replicas(2).scope():
        distiller = Distiller(mlp(8, 4), mlp(5, 4), LogitsDistillation())
        with pytest.raises(ValueError, match=r"without gradient_accumulation_steps, got 2\. Keras cannot accumulate"):
            distiller.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), CROSS_ENTROPY)
