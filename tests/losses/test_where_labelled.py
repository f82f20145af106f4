"""Examples without a label take no part in the supervised mean, exactly as if they were absent."""

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
def test_value_and_gradient_are_those_of_the_labelled_alone(case, jit):
    loss, targets, void = CASES[case]
    partly = np.where(VOID.reshape(-1, *[1] * (targets.ndim - 1)), void, targets).astype(targets.dtype)
    wrapped = losses.WhereLabelled.from_config(losses.WhereLabelled(loss).get_config())
    student = tf.constant(np.random.default_rng(1).normal(size=(12, 4)).astype("float32"))
    plain = keras.losses.get(loss) if isinstance(loss, str) else loss
    plain = plain if isinstance(plain, keras.losses.Loss) else keras.losses.MeanSquaredError()

    @tf.function(jit_compile=jit)
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


def test_the_teacher_is_heard_where_there_is_no_label():
    distiller = Distiller(models.mlp(8, 4), models.mlp(5, 4, seed=9), LogitsDistillation(1.0), student_loss_weight=0.5)
    distiller.compile("sgd", loss=losses.WhereLabelled(keras.losses.SparseCategoricalCrossentropy(from_logits=True)))
    data = tf.data.Dataset.from_tensors((X, np.where(VOID, -1, Y)))
    logs = distiller.evaluate(data, return_dict=True, verbose=0)
    teacher, student = distiller.teacher(X).numpy(), distiller.student(X).numpy()
    log_q = models.log_softmax(student)
    assert logs["student_loss"] == pytest.approx(-log_q[np.arange(12), Y][~VOID].mean(), rel=1e-5)
    assert logs["distillation_loss"] == pytest.approx(models.kd(teacher, student, 1.0).mean(), rel=1e-5)


def test_what_is_no_loss_is_refused():
    with pytest.raises(ValueError, match=r"WhereLabelled: expected loss to be a keras.losses.Loss or its name"):
        losses.WhereLabelled(keras.losses.MeanSquaredError)
