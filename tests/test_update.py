"""A large student's weights are updated by one compiled program: Keras' own numbers, and only where XLA takes it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation
from keras_distill._guard import NonFiniteLossError
from keras_distill._update import update, worth_compiling
from keras_distill.schedules import WarmUp
from tests.models import batch, copy_of, mlp

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adam with a schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 5)),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.5),
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True, global_clipnorm=1.0),
    "lion": lambda: keras.optimizers.Lion(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "moving average": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=2),
    "accumulated": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, centered=True, momentum=0.5),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
}


def large(limit=None):
    """Six pieces, a million weights."""
    model = mlp(1200, 900, 4, seed=5)
    if limit is not None:
        model.layers[1].kernel.constraint = limit
    return model


def programs(function, *arguments):
    """How many parts of a graph are compiled on their own."""
    graph = function.get_concrete_function(*arguments).graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    return sum(node.attr["_XlaMustCompile"].b for node in nodes)


def in_graph(optimizer, weights):
    return tf.function(lambda gradients: update(optimizer, gradients, weights), autograph=False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_update_is_keras_own(name):
    ours, keras_own = large(keras.constraints.MaxNorm(0.9)), large(keras.constraints.MaxNorm(0.9))
    random = np.random.default_rng(0)
    optimizer, oracle = OPTIMIZERS[name](), OPTIMIZERS[name]()
    step = in_graph(optimizer, ours.trainable_weights)
    for _ in range(4):
        gradients = [tf.constant(random.normal(size=w.shape), tf.float32) for w in ours.trainable_weights]
        step(gradients)
        oracle.apply_gradients(zip(gradients, keras_own.trainable_weights, strict=True))
    assert programs(step, gradients) == 1
    for one, two in zip(ours.get_weights(), keras_own.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert int(optimizer.iterations) == int(oracle.iterations)


class Clipped(keras.constraints.Constraint):
    """What a user writes: XLA cannot take it."""

    def __call__(self, weight):
        clipped = tf.py_function(lambda value: np.clip(value, -0.5, 0.5), [weight], tf.float32)
        return tf.ensure_shape(clipped, weight.shape)


class Halving(keras.optimizers.schedules.LearningRateSchedule):
    """A user's schedule that XLA cannot take."""

    def __call__(self, step):
        return tf.py_function(lambda value: np.float32(0.1) * 0.5 ** float(value), [step], tf.float32)


class Plain(keras.optimizers.SGD):
    """A user's optimizer that XLA cannot take."""

    def update_step(self, gradient, variable, learning_rate):
        rounded = tf.py_function(lambda value: np.round(value, 3), [gradient], tf.float32)
        super().update_step(tf.ensure_shape(rounded, gradient.shape), variable, learning_rate)


@pytest.mark.parametrize(
    ("optimizer", "limit"),
    [
        (lambda: keras.optimizers.SGD(0.1), Clipped()),
        (lambda: keras.optimizers.SGD(Halving()), None),
        (lambda: keras.optimizers.SGD(WarmUp(Halving(), num_steps=1)), None),
        (lambda: keras.optimizers.SGD(lambda: 0.1), None),
        (lambda: Plain(0.1), None),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), None),
    ],
    ids=["constraint", "schedule", "schedule within ours", "function", "optimizer", "loss scale"],
)
def test_what_users_wrote_runs_as_they_wrote_it(optimizer, limit):
    x, y = batch(16)
    student = large(limit)
    before = student.get_weights()
    distiller = Distiller(mlp(8, 4, seed=1), student, LogitsDistillation(2.0))
    distiller.compile(optimizer(), CROSS_ENTROPY, jit_compile=False)
    distiller.fit(x, y, batch_size=8, epochs=2, verbose=0)
    moved = [np.abs(one - two).max() for one, two in zip(before, student.get_weights(), strict=True)]
    assert min(moved) > 0
    if limit is not None:
        assert np.abs(student.get_weights()[0]).max() <= 0.5


def test_few_weights_or_small_pieces_or_rows_of_an_embedding_are_left_to_keras():
    for shapes in ([(500, 500)], [(1024, 1024), *([(8,)] * 16)]):
        optimizer = keras.optimizers.SGD(0.1)
        weights = [keras.Variable(np.zeros(shape, "float32")) for shape in shapes]
        gradients = [tf.ones(shape) for shape in shapes]
        assert not worth_compiling(optimizer, gradients, weights)
        assert programs(in_graph(optimizer, weights), gradients) == 0
    weights = [keras.Variable(np.zeros((1024, 1024), "float32"))]
    rows = tf.IndexedSlices(tf.ones((2, 1024)), tf.constant([0, 1]), (1024, 1024))
    assert worth_compiling(optimizer, [tf.ones((1024, 1024))], weights)
    assert not worth_compiling(optimizer, [rows], weights)


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_training_is_that_of_a_step_run_op_by_op(guard, steps):
    x, y = batch(24)
    students = [large(), None]
    students[1] = copy_of(students[0])
    for student, eager in zip(students, (False, True), strict=True):
        distiller = Distiller(mlp(8, 4, seed=1), student, LogitsDistillation(2.0))
        mode = {"run_eagerly": True} if eager else {"steps_per_execution": steps, "jit_compile": False}
        distiller.compile(keras.optimizers.Adam(1e-3), CROSS_ENTROPY, stop_on_non_finite=guard, **mode)
        distiller.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for one, two in zip(students[0].get_weights(), students[1].get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_a_nan_batch_changes_nothing_of_a_large_student():
    x, y = batch(24)
    x[12] = np.nan  # in the second batch of 8
    students = [large(), large()]
    for student, count in zip(students, (8, 24), strict=True):
        distiller = Distiller(mlp(8, 4, seed=1), student, LogitsDistillation(2.0))
        distiller.compile(keras.optimizers.Adam(1e-3), CROSS_ENTROPY, jit_compile=False)
        if count == 8:
            distiller.fit(x[:8], y[:8], batch_size=8, shuffle=False, verbose=0)
        else:
            with pytest.raises(NonFiniteLossError, match="at step 1"):
                distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for one, two in zip(students[0].get_weights(), students[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
