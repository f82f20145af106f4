"""Inputs of ``fit``: every kind of data and model that Keras accepts, with the same results."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation
from tests.models import batch, batches, copy_of, kd, log_softmax, mlp

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def trained(teacher, student, x, y=None, weight=0.5, terms=None, epochs=2, **arguments):
    distiller = Distiller(teacher, student, terms or LogitsDistillation(2.0), student_loss_weight=weight)
    distiller.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY)
    history = distiller.fit(x, y, epochs=epochs, verbose=0, shuffle=False, **arguments)
    return distiller, history.history


class Batches(keras.utils.PyDataset):
    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return (len(self.arrays[0]) + 7) // 8

    def __getitem__(self, index):
        return tuple(array[8 * index : 8 * index + 8] for array in self.arrays)


def test_numpy_tf_data_pydataset_and_generators_train_alike():
    x, y = batch(20)
    sample_weight = np.linspace(0, 2, 20).astype("float32")
    teacher, student = mlp(8, 4, seed=1), mlp(5, 4, seed=2)
    kinds = {
        "numpy": ((x, y), {"sample_weight": sample_weight, "batch_size": 8}),
        "tf.data": ((tf.data.Dataset.from_tensor_slices((x, y, sample_weight)).batch(8),), {}),
        "pydataset": ((Batches(x, y, sample_weight),), {}),
    }
    results = {}
    for name, (data, arguments) in kinds.items():
        distiller, history = trained(teacher, copy_of(student), *data, **arguments)
        results[name] = (distiller.student.get_weights(), history)
    for name in ("tf.data", "pydataset"):
        for one, two in zip(results["numpy"][0], results[name][0], strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7, err_msg=name)
        assert results["numpy"][1].keys() == results[name][1].keys()


def test_weight_two_is_two_copies_and_weight_zero_is_no_example():
    x, y = batch(6)
    teacher, student = mlp(8, 4, seed=1), mlp(5, 4, seed=2)
    weighted, copied = (
        Distiller(teacher, copy_of(student), LogitsDistillation(2.0), student_loss_weight=0.5) for _ in range(2)
    )
    for distiller, rate in ((weighted, 0.6), (copied, 0.5)):
        # Keras divides by the number of examples, 5 and 6 here, whatever their weights: the learning rates compensate.
        distiller.compile(keras.optimizers.SGD(rate), CROSS_ENTROPY)
    weighted.train_on_batch(x, y, sample_weight=np.array([2.0, 0, 1, 1, 1, 1]))
    index = [0, 0, 2, 3, 4, 5]
    copied.compile(keras.optimizers.SGD(0.6), CROSS_ENTROPY)
    copied.train_on_batch(x[index], y[index])
    for one, two in zip(weighted.student.get_weights(), copied.student.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("optimizer", "atol"),
    [
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9), 1e-7),
        (lambda: keras.optimizers.Adam(0.01), 1e-6),  # in one pass, closer to float64: test_fused_adam.py
    ],
    ids=["momentum", "adam"],
)
def test_distillation_weight_zero_is_plain_fit(optimizer, atol):
    x, y = batch(20)
    student = mlp(5, 4, seed=2)
    plain = copy_of(student)
    plain.compile(optimizer(), CROSS_ENTROPY, metrics=["accuracy"])
    expected = plain.fit(x, y, epochs=3, batch_size=8, shuffle=False, verbose=0).history
    distiller = Distiller(mlp(8, 4, seed=1), copy_of(student), LogitsDistillation(), student_loss_weight=1.0)
    distiller.compile(optimizer(), CROSS_ENTROPY, metrics=["accuracy"])
    got = distiller.fit(x, y, epochs=3, batch_size=8, shuffle=False, verbose=0).history
    for one, two in zip(plain.get_weights(), distiller.student.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=atol)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-5)


class Subclassed(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.hidden = keras.layers.Dense(units, activation="relu", name="hidden")
        self.head = keras.layers.Dense(4, name="head")

    def call(self, inputs):
        return self.head(self.hidden(inputs))


def functional(units):
    inputs = keras.Input((6,))
    return keras.Model(inputs, keras.layers.Dense(4, name="head")(keras.layers.Dense(units, name="hidden")(inputs)))


def nested(units):
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, name="hidden")], name="inner")
    return keras.Sequential([keras.Input((6,)), inner, keras.layers.Dense(4, name="head")])


@pytest.mark.parametrize("make", [Subclassed, functional, nested, lambda units: mlp(units, 4)])
def test_every_kind_of_model_teaches_and_learns(make):
    x, y = batch(24)
    teacher, student = make(9), make(3)
    distiller, history = trained(teacher, student, batches(x, y), weight=0.0, epochs=40)
    assert history["distillation_loss"][-1] < 0.5 * history["distillation_loss"][0]
    each = kd(teacher(x).numpy(), student(x).numpy(), 2.0)
    got = distiller.evaluate(x, y, verbose=0, return_dict=True)["distillation_loss"]
    np.testing.assert_allclose(got, each.mean(), rtol=1e-5)
    np.testing.assert_allclose(distiller.predict(x, verbose=0), student(x), rtol=1e-5, atol=1e-6)


def test_several_inputs():
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")

    def model(units):
        joined = keras.layers.Concatenate()([left, right])
        return keras.Model({"left": left, "right": right}, keras.layers.Dense(units, name="u")(joined))

    rng = np.random.default_rng(0)
    x = {"left": rng.normal(size=(8, 3)).astype("float32"), "right": rng.normal(size=(8, 2)).astype("float32")}
    teacher, student = model(4), model(4)
    _, history = trained(teacher, student, x, np.zeros(8, int), weight=0.0, epochs=1, batch_size=8)
    got = Distiller(teacher, student, LogitsDistillation(2.0), student_loss_weight=0.0)
    got.compile("sgd")
    np.testing.assert_allclose(
        got.evaluate(x, verbose=0, return_dict=True)["loss"], kd(teacher(x), student(x), 2.0).mean(), rtol=1e-5
    )
    assert history["distillation_loss"][0] > got.evaluate(x, verbose=0, return_dict=True)["loss"]


def test_an_output_can_be_skipped_and_has_its_own_temperature():
    inputs = keras.Input((6,))

    def heads():
        return keras.Model(inputs, [keras.layers.Dense(3, name="a")(inputs), keras.layers.Dense(4, name="b")(inputs)])

    x, _ = batch(8)
    teacher, student = heads(), heads()
    for losses, temperatures, expected in (
        (["kl_divergence", None], 2.0, [(0, 2.0)]),
        (["kl_divergence", "kl_divergence"], [1.0, 5.0], [(0, 1.0), (1, 5.0)]),
    ):
        term = LogitsDistillation(temperatures, losses)
        distiller = Distiller(teacher, student, term, student_loss_weight=0.0)
        distiller.compile("sgd")
        got = distiller.evaluate(x, verbose=0, return_dict=True)["distillation_loss"]
        values = [kd(teacher(x)[index], student(x)[index], temperature).mean() for index, temperature in expected]
        np.testing.assert_allclose(got, sum(values), rtol=1e-5)


def test_masks_and_sample_weights_work_together():
    tokens = np.array([[1, 2, 3, 0], [4, 1, 0, 0]])
    embedding = keras.initializers.RandomNormal(seed=3)

    def tagger():
        return keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                keras.layers.Embedding(5, 3, mask_zero=True, embeddings_initializer=embedding),
                keras.layers.Dense(3),
            ]
        )

    teacher, student = tagger(), tagger()
    distiller = Distiller(teacher, student, LogitsDistillation(2.0), student_loss_weight=0.0)
    distiller.compile("sgd")
    weight = np.array([3.0, 1.0])
    got = distiller.test_on_batch(tokens, np.zeros((2, 4), int), sample_weight=weight, return_dict=True)
    each, real = kd(teacher(tokens), student(tokens), 2.0), tokens != 0
    np.testing.assert_allclose(got["distillation_loss"], (each * weight[:, None])[real].sum() / real.sum(), rtol=1e-5)


def test_mixed_precision_trains_close_to_float32():
    data, teacher, weights = batches(*batch(24)), mlp(8, 4, seed=1), mlp(16, 4, seed=2).get_weights()
    results = {}
    for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        student = mlp(16, 4, seed=2)
        keras.config.set_dtype_policy("float32")
        student.set_weights(weights)
        results[policy] = trained(teacher, student, data, epochs=5)[0]
        for one, two in zip(results["float32"].student.get_weights(), student.get_weights(), strict=True):
            np.testing.assert_allclose(one, two, atol=0.02)
        scaled = isinstance(results[policy].optimizer, keras.optimizers.LossScaleOptimizer)
        assert scaled == (policy == "mixed_float16")


def test_evaluation_without_the_teacher_does_not_run_it():
    calls = []

    class Listened(keras.layers.Dense):
        def call(self, inputs):
            calls.append(1)
            return super().call(inputs)

    x, y = batch(8)
    teacher = keras.Sequential([keras.Input((6,)), Listened(4)])
    distiller = Distiller(teacher, mlp(4), LogitsDistillation(), student_loss_weight=0.5)
    distiller.compile("sgd", CROSS_ENTROPY, run_eagerly=True, evaluate_distillation=False)
    calls.clear()
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert calls == []
    assert "distillation_loss" not in logs
    expected = -log_softmax(distiller.student(x))[np.arange(8), y].mean()
    np.testing.assert_allclose(logs["student_loss"], expected, rtol=1e-5)
    distiller.fit(x, y, verbose=0)
    assert len(calls) == 1


def test_values_change_without_retracing():
    traces = []

    class Traced(keras.layers.Dense):
        def call(self, inputs):
            traces.append(1)
            return super().call(inputs)

    x, y = batch(8)
    student = keras.Sequential([keras.Input((6,)), Traced(4)])
    term = LogitsDistillation(2.0)
    distiller = Distiller(mlp(8, 4), student, term)
    distiller.compile("sgd", CROSS_ENTROPY)
    distiller.fit(x, y, verbose=0)
    traces.clear()
    for temperature in (1.0, 3.0, 8.0):
        term.temperature = temperature
        distiller.student_loss_weight = temperature / 10
        distiller.distillation_loss_weights[0] = temperature
        distiller.fit(x, y, verbose=0)
        assert (term.temperature, distiller.distillation_loss_weights) == (temperature, [temperature])
    assert traces == []


@pytest.mark.parametrize("steps_per_execution", [1, 3])
@pytest.mark.parametrize("accumulate", [None, 2])
def test_schedules_follow_the_optimizers_step(steps_per_execution, accumulate):
    schedule = keras.optimizers.schedules.PolynomialDecay(8.0, 8, end_learning_rate=1.0)
    term = LogitsDistillation(schedule)
    share = keras.optimizers.schedules.PolynomialDecay(0.0, 8, end_learning_rate=1.0)
    x, y = batch(48)
    distiller = Distiller(mlp(8, 4), mlp(4), term, student_loss_weight=share)
    distiller.compile(
        keras.optimizers.SGD(0.01, gradient_accumulation_steps=accumulate),
        CROSS_ENTROPY,
        steps_per_execution=steps_per_execution,
    )
    logs = distiller.fit(x, y, batch_size=8, verbose=0).history
    step = 5 // (accumulate or 1)  # the sixth batch: what the logs of the last step show
    assert logs["temperature"][0] == pytest.approx(8 - 7 * step / 8)
    assert logs["student_loss_weight"][0] == pytest.approx(step / 8)
    assert term.temperature == pytest.approx(8 - 7 * step / 8)


def test_batch_norm_updates_once_and_logits_and_taps_share_dropout():
    x, y = batch(16)

    def student():
        return keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(4, name="dense", kernel_initializer=keras.initializers.GlorotUniform(seed=3)),
                keras.layers.BatchNormalization(momentum=0.5, name="norm"),
                keras.layers.Dropout(0.5, seed=7, name="drop"),
            ]
        )

    model = student()
    before = model.get_layer("dense")(x).numpy().mean(0)
    # The tap after the dropout is the output itself: with the same mask, a teacher equal to it would give 0.
    term = FeatureDistillation("mse", student_layer_name="drop")
    outputs = LogitsDistillation(1.0, "mse")
    distiller = Distiller(mlp(4, seed=5), model, [term, outputs], student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0), CROSS_ENTROPY)
    each = Distiller(mlp(4, seed=5), student(), outputs, student_loss_weight=0.0)
    each.compile(keras.optimizers.SGD(0.0), CROSS_ENTROPY)
    both = distiller.train_on_batch(x, y, return_dict=True)["distillation_loss"]
    one = each.train_on_batch(x, y, return_dict=True)["distillation_loss"]
    np.testing.assert_allclose(both, 2 * one, rtol=1e-5)
    np.testing.assert_allclose(model.get_layer("norm").moving_mean, 0.5 * before, rtol=1e-4, atol=1e-6)
