"""Adam's update in one pass over each weight gives Keras' own numbers, and only plain Adam is updated so."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, NonFiniteLossError
from keras_distill.training import _fused_adam
from tests.models import batch, copy_of, mlp, replicas

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PLAIN = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "other betas": lambda: keras.optimizers.Adam(0.01, beta_1=0.5, beta_2=0.7, epsilon=1e-3),
    "schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 5)),
    "function": lambda: keras.optimizers.Adam(lambda: 0.02),
    "clipped": lambda: keras.optimizers.Adam(0.01, global_clipnorm=1.0),
    "decay": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.5),
    "moving average": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=2),
    "accumulated": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
}


class Halved(keras.optimizers.Adam):
    """A user's optimizer, which uses half of each gradient."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient / 2, variable, learning_rate)


OTHERS = {
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "a user's": lambda: Halved(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=1.0),
}


def passes(function, *arguments):
    """How many weights a graph updates in one pass."""
    graph = function.get_concrete_function(*arguments).graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    return sum(node.op == "ResourceApplyAdam" for node in nodes)


def limited():
    model = mlp(8, 4, seed=5)
    model.layers[0].kernel.constraint = keras.constraints.MaxNorm(0.9)
    return model


# Under XLA one of each kind: the others differ only in their settings.
KINDS = ["adam", "schedule", "clipped", "moving average", "accumulated", "a user's", "loss scale"]
UPDATES = [(name, mode) for name in (*PLAIN, *OTHERS) for mode in ("eager", "graph", "xla")]


@pytest.mark.parametrize(("name", "mode"), [each for each in UPDATES if each[1] != "xla" or each[0] in KINDS])
def test_an_update_equals_keras_own(name, mode):
    made = {**PLAIN, **OTHERS}[name]
    (student, optimizer), (reference, oracle) = (limited(), made()), (limited(), made())

    def step(gradients):
        _fused_adam.update(optimizer, gradients, student.trainable_weights)

    if mode != "eager":
        step = tf.function(step, autograph=False, jit_compile=mode == "xla")
    random = np.random.default_rng(0)
    for _ in range(5):
        gradients = [tf.constant(random.normal(size=w.shape), tf.float32) for w in student.trainable_weights]
        step(gradients)
        oracle.apply_gradients(zip(gradients, reference.trainable_weights, strict=True))
        assert "update_step" not in vars(optimizer)
    if mode != "eager":
        assert passes(step, gradients) == (len(gradients) if name in PLAIN else 0)
    pairs = [*zip(student.weights, reference.weights, strict=True)]
    pairs += zip(optimizer.variables, oracle.variables, strict=True)  # moments and steps: what a backup keeps
    for one, two in pairs:
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def adam(weights, gradients, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    """Kingma and Ba 2015, algorithm 1 in the order of their section 2, in float64."""
    first = second = np.zeros_like(weights)
    for step, gradient in enumerate(gradients, 1):
        first = beta_1 * first + (1 - beta_1) * gradient
        second = beta_2 * second + (1 - beta_2) * gradient**2
        slowed = rate * np.sqrt(1 - beta_2**step) / (1 - beta_1**step)
        weights = weights - slowed * first / (np.sqrt(second) + epsilon)
    return weights


@pytest.mark.parametrize("steps", [1, 10, 300])
def test_it_is_closer_to_the_formula_than_keras_own(steps):
    random = np.random.default_rng(0)
    start, gradients = random.normal(size=500).astype("float32"), random.normal(size=(steps, 500)).astype("float32")
    exact = adam(start.astype("float64"), gradients.astype("float64"), 0.01)
    weight, keras_own = keras.Variable(start), keras.Variable(start)
    optimizer, oracle = keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01)
    for gradient in gradients:
        _fused_adam.update(optimizer, [tf.constant(gradient)], [weight])
        oracle.apply_gradients([(tf.constant(gradient), keras_own)])
    errors = [np.abs(keras.ops.convert_to_numpy(each) - exact).max() for each in (weight, keras_own)]
    assert errors[0] < errors[1]
    assert errors[0] < 1e-7 + 2e-7 * np.sqrt(steps)


def test_for_sparse_or_half_precision_gradients_keras_own_update_is_used():
    for dtype, rows in (("float32", True), ("bfloat16", False)):
        first = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
        ours, reference = (keras.Variable(first, dtype=dtype) for _ in range(2))
        optimizer, oracle = (keras.optimizers.Adam(0.1, beta_2=0.9) for _ in range(2))  # 0.999 is 1 in bfloat16
        gradient = tf.ones((6, 3), dtype)
        if rows:
            gradient = tf.IndexedSlices(tf.ones((2, 3)), tf.constant([1, 4]), (6, 3))
        step = tf.function(lambda: _fused_adam.update(optimizer, [gradient], [ours]), autograph=False)  # noqa: B023
        step()
        oracle.apply_gradients([(gradient, reference)])
        assert passes(step) == 0
        np.testing.assert_allclose(tf.cast(ours, tf.float32), tf.cast(reference, tf.float32), rtol=1e-6)
        assert np.abs(tf.cast(ours, tf.float32) - first).max() > 0.05


def test_under_several_replicas_keras_own_update_is_used(monkeypatch):
    monkeypatch.setattr(_fused_adam, "_fused_step", None)  # would be called otherwise
    strategy = replicas(2)
    with strategy.scope():
        weight = keras.Variable(np.zeros((3, 3), "float32"))
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build([weight])
        strategy.run(tf.function(lambda: _fused_adam.update(optimizer, [tf.ones((3, 3))], [weight]), autograph=False))
    np.testing.assert_allclose(weight, np.full((3, 3), -0.1), rtol=1e-5)


def test_an_error_in_the_update_leaves_the_optimizer_unchanged():
    optimizer = keras.optimizers.Adam(0.1)
    weight = keras.Variable(np.zeros((3, 3), "float32"))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        _fused_adam.update(optimizer, [tf.ones((2, 2))], [weight])
    assert "update_step" not in vars(optimizer)
    _fused_adam.update(optimizer, [tf.ones((3, 3))], [weight])
    assert float(keras.ops.max(weight)) < 0


@pytest.mark.parametrize(
    ("mode", "guard"),
    [({}, True), ({}, False), ({"jit_compile": True}, True), ({"steps_per_execution": 2}, False)],
    ids=str,
)
def test_training_is_what_it_is_with_keras_own(guard, mode, monkeypatch):
    x, y = batch(24)
    student = mlp(8, 4, seed=5)
    found, calls = [], []
    in_one_pass = _fused_adam._fused_step
    monkeypatch.setattr(_fused_adam, "_fused_step", lambda optimizer: calls.append(optimizer) or in_one_pass(optimizer))
    for plain in (True, False):
        if not plain:
            monkeypatch.setattr(_fused_adam, "is_plain_adam", lambda optimizer: False)
        distiller = Distiller(mlp(8, 4, seed=1), copy_of(student), LogitsDistillation(2.0))
        distiller.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY, stop_on_non_finite=guard, **mode)
        distiller.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        found.append(
            [*distiller.student.get_weights(), *map(keras.ops.convert_to_numpy, distiller.optimizer.variables)]
        )
    assert bool(calls) != mode.get("jit_compile", False)  # a step under XLA stays Keras' own, guarded or not
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_a_nan_batch_leaves_the_state_unchanged():
    x, y = batch(24)
    x[12] = np.nan  # in the second batch of 8
    student = mlp(8, 4, seed=5)
    kept = []
    for count in (8, 24):
        distiller = Distiller(mlp(8, 4, seed=1), copy_of(student), LogitsDistillation(2.0))
        distiller.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY, jit_compile=False)
        if count == 8:
            distiller.fit(x[:8], y[:8], batch_size=8, shuffle=False, verbose=0)
        else:
            with pytest.raises(NonFiniteLossError, match="at step 1"):
                distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        moments = [v for v in distiller.optimizer.variables if len(v.shape)]
        kept.append([*distiller.student.get_weights(), *map(keras.ops.convert_to_numpy, moments)])
    for one, two in zip(*kept, strict=True):
        np.testing.assert_array_equal(one, two)
