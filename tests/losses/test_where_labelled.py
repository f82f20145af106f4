"""Unlabelled examples are excluded from the supervised mean, exactly as if they were absent."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, losses
from tests import models

X, Y = models.batch(12)
VOID = np.arange(12) % 3 == 0
CASES = {
    "ids": (keras.losses.SparseCategoricalCrossentropy(from_logits=True), Y, -1),
    "one-hot": (keras.losses.CategoricalCrossentropy(from_logits=True), np.eye(4, dtype="float32")[Y], np.nan),
    "numbers": ("mean_squared_error", np.eye(4, dtype="float32")[Y], np.nan),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("jit", [False, True])
def test_value_and_gradient_equal_those_of_the_labelled_examples_alone(case, jit):
    loss, targets, void = CASES[case]
    partly = np.where(VOID.reshape(-1, *[1] * (targets.ndim - 1)), void, targets).astype(targets.dtype)
    wrapped = losses.WhereLabelled.from_config(losses.WhereLabelled(loss).get_config())
    student = tf.constant(np.random.default_rng(1).normal(size=(12, 4)).astype("float32"))
    plain = keras.losses.get(loss) if isinstance(loss, str) else loss
    plain = plain if isinstance(plain, keras.losses.Loss) else keras.losses.MeanSquaredError()

    @tf.function(jit_compile=jit, autograph=False)
    def slope(student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = wrapped(partly, student)
        return value, tape.gradient(value, student)

    value, gradient = slope(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        alone = plain(targets[~VOID], tf.boolean_mask(student, ~VOID))
    np.testing.assert_allclose(value, alone, rtol=2e-6)
    np.testing.assert_allclose(gradient, tf.convert_to_tensor(tape.gradient(alone, student)), atol=1e-6)
    assert float(wrapped(np.full_like(partly, void), student)) == 0.0


def test_unlabelled_examples_learn_from_the_teacher_only():
    distiller = Distiller(models.mlp(8, 4), models.mlp(5, 4, seed=9), LogitsDistillation(1.0), student_loss_weight=0.5)
    distiller.compile("sgd", loss=losses.WhereLabelled(keras.losses.SparseCategoricalCrossentropy(from_logits=True)))
    data = tf.data.Dataset.from_tensors((X, np.where(VOID, -1, Y)))
    logs = distiller.evaluate(data, return_dict=True, verbose=0)
    teacher, student = distiller.teacher(X).numpy(), distiller.student(X).numpy()
    log_q = models.log_softmax(student)
    assert logs["student_loss"] == pytest.approx(-log_q[np.arange(12), Y][~VOID].mean(), rel=1e-5)
    assert logs["distillation_loss"] == pytest.approx(models.kd(teacher, student, 1.0).mean(), rel=1e-5)


def two_headed(seed, units):
    x = keras.Input((6,))
    init = keras.initializers.GlorotUniform(seed=seed)
    hidden = keras.layers.Dense(units, "tanh", kernel_initializer=init)(x)
    heads = [keras.layers.Dense(n, kernel_initializer=init, name=f"head_{n}")(hidden) for n in (4, 3)]
    return keras.Model(x, {"a": heads[0], "b": heads[1]})


def few_labels(outputs):
    """Two batches of 10 and one of 3, in which one replica has fewer labels than the other, or none."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(23, 6)).astype("float32")
    ids = np.where(np.arange(23) % 10 < 7, -1, rng.integers(0, 4, 23))
    ids[-3:] = (-1, -1, 2)
    values = rng.normal(size=(23, 3)).astype("float32")
    values[::2] = np.nan
    labels = ids if outputs == 1 else {"a": ids, "b": values}
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensor_slices((x, labels)).batch(10).with_options(options)


@pytest.mark.parametrize("outputs", [1, 2])
def test_two_replicas_count_the_labels_of_both(outputs):
    results = []
    for count in (1, 2):
        with models.replicas(count).scope():
            ids = losses.WhereLabelled(keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            if outputs == 1:
                teacher, student, loss = models.mlp(8, 4), models.mlp(5, 4, seed=9), ids
            else:
                teacher, student = two_headed(1, 8), two_headed(2, 5)
                loss = {"a": ids, "b": losses.WhereLabelled("mean_squared_error")}
            distiller = Distiller(teacher, student, LogitsDistillation(2.0), student_loss_weight=0.7)
            distiller.compile(keras.optimizers.SGD(0.5), loss)
        history = distiller.fit(few_labels(outputs), epochs=1, verbose=0).history
        results.append((distiller.student.get_weights(), history))
    (one, logs), (two, logs_of_two) = results
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    # Keras' own logs of each output give a replica with two examples the weight of one with one.
    for name in set(logs) - {"a_loss", "b_loss"}:
        np.testing.assert_allclose(logs_of_two[name], logs[name], rtol=1e-5, err_msg=name)


def test_with_a_given_fraction_accumulated_batches_are_one_big_batch():
    """Accumulated batches of 6 with 1, 4 and no labels give the same update as one batch of 18."""
    x, y = models.batch(18)
    y = np.where(np.isin(np.arange(18), [2, 6, 7, 9, 11]), y, -1)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    moved = []
    for size, steps, fraction in ((18, None, None), (6, 3, 5 / 18), (6, 3, None)):
        distiller = Distiller(models.mlp(8, 4), models.mlp(5, 4, seed=9), LogitsDistillation(2.0))
        optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=steps)
        distiller.compile(optimizer, losses.WhereLabelled(crossentropy, labelled_fraction=fraction))
        distiller.fit(x, y, batch_size=size, shuffle=False, verbose=0)
        moved.append(np.concatenate([weight.ravel() for weight in distiller.student.get_weights()]))
    np.testing.assert_allclose(moved[1], moved[0], rtol=1e-5, atol=1e-6)
    assert np.abs(moved[2] - moved[0]).max() > 1e-3


@pytest.mark.parametrize("fraction", [0.0, 1.5, "half"])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"WhereLabelled: expected labelled_fraction .*, got"):
        losses.WhereLabelled("mse", labelled_fraction=fraction)


def test_a_loss_of_the_wrong_type_is_refused():
    with pytest.raises(ValueError, match=r"WhereLabelled: expected loss to be a keras.losses.Loss or its name"):
        losses.WhereLabelled(keras.losses.MeanSquaredError)
