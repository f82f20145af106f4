"""Bad input: one sentence before training with the owner, what was expected, what was received, and what to do."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, schedules
from tests.models import batch, mlp

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def distiller(**arguments):
    made = Distiller(mlp(8, 4), mlp(5, 4), LogitsDistillation(), **arguments)
    made.compile("sgd", CROSS_ENTROPY)
    return made


def shared():
    layer = keras.layers.Dense(4)
    return [keras.Sequential([keras.Input((6,)), layer]) for _ in range(2)]


SOFTMAX = [keras.Input((6,)), keras.layers.Dense(4, activation="softmax")]
CONSTRUCTION = {
    "teacher is no model": (
        lambda: Distiller("t", mlp(4), LogitsDistillation()),
        "a keras.Model as teacher, got str: 't'",
    ),
    "student is no model": (lambda: Distiller(mlp(4), 3, LogitsDistillation()), "a keras.Model as student, got int: 3"),
    "one object for both": (
        lambda: Distiller(m := mlp(4), m, LogitsDistillation()),
        "two models, got one object for both",
    ),
    "shared weights": (
        lambda: Distiller(*shared(), LogitsDistillation()),
        "shares no weights with its teacher, got 2 shared",
    ),
    "class counts": (
        lambda: Distiller(mlp(8, 5), mlp(4), LogitsDistillation()),
        "same number of classes, got 5 and 4.*class_map",
    ),
    "class map too short": (
        lambda: Distiller(mlp(8, 5), mlp(4), LogitsDistillation(class_map=[0, 1])),
        "for each of the student's 4 classes, got 2",
    ),
    "class map out of range": (
        lambda: Distiller(mlp(8, 5), mlp(4), LogitsDistillation(class_map=[0, 1, 2, 5])),
        "within the teacher's 5 classes",
    ),
    "unknown teacher layer": (
        lambda: Distiller(mlp(8, 4), mlp(4), FeatureDistillation("mse", "dense_9", "dense_0")),
        r"\(teacher\): expected a layer of model .*, got 'dense_9'\. Nearest: 'dense_[01]', 'dense_[01]'",
    ),
    "unknown student layer": (
        lambda: Distiller(mlp(8, 4), mlp(4), FeatureDistillation("mse", "dense_0", "dens_0")),
        r"\(student\): expected a layer of model .*, got 'dens_0'\. Nearest: 'dense_0'",
    ),
    "too few weights": (lambda: distiller(distillation_loss_weights=[1.0, 2.0]), "each of the 1 terms, got 2"),
    "negative weight": (
        lambda: distiller(distillation_loss_weights=[-1.0]),
        "each of distillation_loss_weights >= 0, got -1.0",
    ),
    "share above 1": (lambda: distiller(student_loss_weight=1.5), "student_loss_weight >= 0 and <= 1, got 1.5"),
    "share is NaN": (lambda: distiller(student_loss_weight=float("nan")), "student_loss_weight .*, got nan"),
    "temperature 0": (lambda: LogitsDistillation(0.0), "temperature > 0, got 0.0. Use 1.0"),
    "temperature negative": (lambda: LogitsDistillation(-2), "temperature > 0, got -2.0"),
    "temperature NaN": (lambda: LogitsDistillation(float("nan")), "temperature > 0, got nan"),
    "temperature that falls to 0": (
        lambda: LogitsDistillation(keras.optimizers.schedules.CosineDecay(4.0, 100)),
        "temperature > 0, got 0.0. Use 1.0 for the plain distributions. The schedule reaches 0: change its bounds.",
    ),
    "weight that falls below 0": (
        lambda: Distiller(mlp(8, 4), mlp(8, 4), LogitsDistillation(), [schedules.Linear(1.0, -0.5, 10)]),
        "The schedule reaches -0.5: change its bounds.",
    ),
    "temperature is text": (lambda: LogitsDistillation("warm"), "temperature > 0, got warm"),
    "schedule starts at 0": (
        lambda: LogitsDistillation(keras.optimizers.schedules.PolynomialDecay(0.0, 5, 1.0)),
        "temperature > 0, got 0.0",
    ),
    "no term": (lambda: Distiller(mlp(4), mlp(4), None), r"a term such as LogitsDistillation\(\)"),
    "not a term": (lambda: Distiller(mlp(4), mlp(4), ["mse"]), "terms such as LogitsDistillation"),
    "all losses None": (lambda: LogitsDistillation(loss=[None, None]), "at least one loss that is not None"),
    "unknown loss": (lambda: FeatureDistillation("msee"), "a loss that Keras or keras_distill.losses knows, got msee"),
    "hard loss on logits": (
        lambda: LogitsDistillation(loss="sparse_categorical_crossentropy"),
        "makes sense between two sets of logits, got 'sparse_categorical_crossentropy'",
    ),
    "loss missing": (
        lambda: Distiller(mlp(4), mlp(4), LogitsDistillation()).compile("sgd"),
        r"a loss while student_loss_weight is 0.5, got None\. Give compile\(loss=",
    ),
    "softmax student": (
        lambda: Distiller(mlp(8, 4), keras.Sequential(SOFTMAX), LogitsDistillation()),
        r"a student that gives logits, got model .*, which ends in softmax\. Use taps.without_softmax\(student\)",
    ),
}


@pytest.mark.parametrize("case", CONSTRUCTION)
def test_construction(case):
    make, message = CONSTRUCTION[case]
    with pytest.raises(ValueError, match=message):
        make()


def empty():
    return tf.data.Dataset.from_tensor_slices((np.zeros((0, 6)), np.zeros(0, int))).batch(2)


x, y = batch(8)
DATA = {
    "no data": ((None,), "data, got None"),
    "empty dataset": ((empty(),), "at least one batch of data, got an empty dataset"),
    "empty array": ((x[:0], y[:0]), "at least one example, got an empty array"),
    "no labels": ((x,), "labels while student_loss_weight is 0.5, got none. Give y, or student_loss_weight=0"),
    "no labels in a dataset": ((tf.data.Dataset.from_tensor_slices(x).batch(2),), "labels while .* got none"),
    "label too large": ((x, y + 2), r"labels from 0 to 3, got 5\."),
    "label negative": ((x, y - 1), r"labels from 0 to 3, got -1\."),
    "one-hot labels": ((x, np.eye(4)[y]), r"integer labels of rank 1 .*, got shape \(8, 4\)\. Use Categorical"),
    "one-hot labels in a dataset": (
        (tf.data.Dataset.from_tensor_slices((x, np.eye(4)[y])).batch(2),),
        r"integer labels of rank 1 .*, got shape \(None, 4\)",
    ),
}


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_data(case, method):
    data, message = DATA[case]
    made = distiller()
    before = made.student.get_weights()
    with pytest.raises(ValueError, match=f"Distiller.{method}: expected {message}"):
        getattr(made, method)(*data, verbose=0)
    for one, two in zip(before, made.student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_integer_labels_for_a_loss_on_one_hot_labels_are_refused():
    made = Distiller(mlp(8, 4), mlp(5, 4), LogitsDistillation())
    made.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"one-hot labels with 4 columns .*, got shape \(8,\)\. Use SparseCategorical"):
        made.fit(x, y, verbose=0)


def test_logits_taken_for_probabilities_are_warned_of():
    made = Distiller(mlp(8, 4), mlp(5, 4), LogitsDistillation())
    with pytest.warns(
        UserWarning, match=r"gives logits, but the loss sparse_categorical_crossentropy .*from_logits=True"
    ):
        made.compile("sgd", "sparse_categorical_crossentropy")
    models = [keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "softmax")]) for _ in range(2)]
    softmax = Distiller(*models, LogitsDistillation(from_logits=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.compile("sgd", CROSS_ENTROPY)
        softmax.compile("sgd", "sparse_categorical_crossentropy")


def test_probabilities_are_compared_through_their_logarithms():
    teacher, student = mlp(8, 4, seed=1), mlp(5, 4, seed=2)
    soft = [keras.Sequential([model, keras.layers.Softmax()]) for model in (teacher, student)]
    values = []
    for models, term in (
        ((teacher, student), LogitsDistillation(2.0)),
        (soft, LogitsDistillation(2.0, from_logits=False)),
    ):
        made = Distiller(*models, term, student_loss_weight=0.0)
        made.compile("sgd")
        values.append(made.evaluate(x, verbose=0, return_dict=True)["loss"])
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_labels_in_a_column_and_ignored_classes_are_fine():
    made = Distiller(mlp(8, 4), mlp(5, 4), LogitsDistillation())
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255))
    labels = y.copy()
    labels[0] = 255
    history = made.fit(x, labels[:, None], verbose=0).history
    assert history["loss"][0] > 0


def test_assigned_numbers_are_checked_too():
    made = distiller()
    for name, value in (("student_loss_weight", 2.0), ("distillation_loss_weights", [-1.0])):
        with pytest.raises(ValueError, match=name):
            setattr(made, name, value)
    with pytest.raises(ValueError, match=r"temperature > 0, got 0\.0"):
        made.distillation_losses[0].temperature = 0.0
    assert made.student_loss_weight == 0.5
    assert made.distillation_loss_weights == [1.0]
    assert made.distillation_losses[0].temperature == 3.0


def test_features_of_different_shape_without_an_adapter():
    term = FeatureDistillation("mse", "dense_0", "dense_0")
    made = Distiller(mlp(8, 4), mlp(5, 4), term)
    made.compile("sgd", CROSS_ENTROPY)
    message = (
        r"^FeatureDistillation: expected .* one rank and number of channels, "
        r"got \(None, 8\) at 'dense_0' and \(None, 5\) at 'dense_0'\. Give adapter='auto'"
    )
    with pytest.raises(ValueError, match=message):
        made.fit(x, y, verbose=0)


def test_keras_own_terms_are_refused_under_two_replicas():
    from tests.models import replicas

    with replicas(2).scope():
        made = Distiller(mlp(8, 4), mlp(5, 4), keras.distillation.LogitsDistillation(2.0))
        with pytest.raises(ValueError, match=r"terms of keras_distill under several replicas, got keras"):
            made.compile("sgd", CROSS_ENTROPY)
