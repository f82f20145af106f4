"""From the teacher to the labels, weights that follow the losses, and several tasks in one fit."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, LogitsDistillation, callbacks, data, losses


def model(seed, outputs=("a",)):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    heads = {name: keras.layers.Dense(3, name=name)(inputs) for name in outputs}
    return keras.Model(inputs, heads if len(heads) > 1 else heads[outputs[0]])


CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 12)


def distiller(terms=None, weights=None):
    made = Distiller(model(0), model(1), terms or LogitsDistillation(temperature=1.0), weights)
    made.compile("sgd", CE)
    return made


class Watch(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.shares = []

    def on_train_batch_end(self, batch, logs=None):
        self.shares.append(self.model.student_loss_weight)


def shares(annealing, **fit):
    watch = Watch()
    distiller().fit(X, Y, batch_size=4, verbose=0, callbacks=[annealing, watch], **fit)
    return watch.shares


def test_the_share_of_the_labels_rises_linearly_over_all_steps_also_from_a_later_epoch():
    whole = shares(callbacks.TeacherAnnealing(), epochs=2)
    np.testing.assert_allclose(whole, np.linspace(0, 1, 6), rtol=1e-6)
    later = shares(callbacks.TeacherAnnealing(), epochs=2, initial_epoch=1)
    np.testing.assert_allclose(later, whole[3:], rtol=1e-6)
    short = shares(callbacks.TeacherAnnealing(0.2, 0.8, num_steps=3), epochs=2)
    np.testing.assert_allclose(short, [0.2, 0.5, 0.8, 0.8, 0.8, 0.8], rtol=1e-6)


def test_annealing_is_the_gradient_of_mixed_targets():
    teacher, student, share = model(0), model(1), 0.3
    made = Distiller(teacher, student, LogitsDistillation(temperature=1.0), student_loss_weight=share)
    made.compile(keras.optimizers.SGD(1.0), CE)
    before = [np.array(w) for w in student.get_weights()]
    mixed = share * np.eye(3)[Y] + (1 - share) * np.array(keras.ops.softmax(teacher(X)))
    plain = model(1)
    plain.compile(keras.optimizers.SGD(1.0), keras.losses.CategoricalCrossentropy(from_logits=True))
    plain.fit(X, mixed, batch_size=12, verbose=0)
    made.fit(X, Y, batch_size=12, verbose=0)
    for old, ours, theirs in zip(before, student.get_weights(), plain.get_weights(), strict=True):
        assert np.abs(ours - old).max() > 1e-3
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_dynamic_weight_average_follows_its_formula():
    terms = [LogitsDistillation(1.0, name="near"), LogitsDistillation(1.0, loss=losses.LogitMatching(), name="far")]
    made = distiller(terms, [1.0, 3.0])
    average = callbacks.DynamicWeightAverage((X, Y), temperature=0.5)
    seen = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(list(average.state["losses"][-1])))
    history = made.fit(X, Y, epochs=3, verbose=0, callbacks=[average, watch]).history
    assert history["distillation_loss_weight_0"][:2] == [1.0, 1.0]  # the first two epochs
    for epoch in (1, 2):
        rates = np.array(seen[epoch]) / np.array(seen[epoch - 1])
        factors = 2 * np.exp(rates / 0.5) / np.exp(rates / 0.5).sum()
        now = (
            made.distillation_loss_weights
            if epoch == 2
            else [history[f"distillation_loss_weight_{i}"][2] for i in (0, 1)]
        )
        np.testing.assert_allclose(now, factors * [1.0, 3.0], rtol=1e-5)


def test_tasks_are_drawn_by_size_and_labels_of_other_tasks_never_count():
    x, small = np.zeros((4000, 4), "float32"), np.ones((250, 4), "float32")
    mixed = data.sample_tasks(
        {"a": (x, np.full(4000, 2)), "b": (small, np.full(250, 1))}, batch_size=50, num_batches=80
    )
    assert mixed.cardinality().numpy() == 80
    rows = [(x.numpy(), y["a"].numpy(), w["a"].numpy(), y["b"].numpy(), w["b"].numpy()) for x, y, w in mixed]
    inputs, a, weight_a, b, weight_b = (np.concatenate(column) for column in zip(*rows, strict=True))
    np.testing.assert_array_equal(weight_a, inputs[:, 0] == 0)
    np.testing.assert_array_equal(a, 2 * weight_a)
    np.testing.assert_array_equal(b, weight_b)
    assert weight_b.mean() == pytest.approx(1 / 9, abs=0.02)  # (250 / 4000) ** 0.75 = 1 / 8


def test_labels_per_token_get_weights_per_token():
    tags = np.ones((12, 5), "int32")
    mixed = data.sample_tasks({"tags": (X, tags), "a": (X, Y), "soft": (X, np.eye(3)[Y])}, batch_size=6)
    _, _, weights = next(iter(mixed))
    assert {name: tuple(each.shape) for name, each in weights.items()} == {"tags": (6, 5), "a": (6,), "soft": (6,)}


def test_a_teacher_of_one_task_does_not_train_the_head_of_the_other():
    teacher, student = model(0, "ab"), model(1, "ab")
    made = Distiller(teacher, student, LogitsDistillation(temperature=1.0))
    made.compile(keras.optimizers.SGD(1.0), {"a": CE, "b": CE})
    before = {name: np.array(student.get_layer(name).kernel) for name in "ab"}
    weights = {"a": np.ones(12, "float32"), "b": np.zeros(12, "float32")}
    made.fit(X, {"a": Y, "b": np.zeros(12)}, sample_weight=weights, verbose=0)
    assert np.abs(np.array(student.get_layer("a").kernel) - before["a"]).max() > 1e-3
    np.testing.assert_array_equal(student.get_layer("b").kernel, before["b"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: callbacks.TeacherAnnealing(end=1.5), r"TeacherAnnealing: expected end >= 0 and <= 1, got 1\.5"),
        (
            lambda: callbacks.DynamicWeightAverage((X,), temperature=0),
            r"DynamicWeightAverage: expected temperature > 0",
        ),
        (
            lambda: distiller().fit(X, Y, verbose=0, callbacks=[callbacks.DynamicWeightAverage((X, Y))]),
            r"DynamicWeightAverage: expected at least 2 terms to balance, got 1",
        ),
        (lambda: data.task_probabilities({}), r"data\.task_probabilities: expected at least one task, got none"),
        (
            lambda: data.sample_tasks({"a": (X, Y[:3])}, batch_size=2),
            r"data\.sample_tasks: expected as many inputs as labels for 'a', at least one, got \[3, 12\]",
        ),
        (
            lambda: data.sample_tasks({"a": (X, Y), "b": (X[:, :2], Y)}, batch_size=2),
            r"data\.sample_tasks: expected inputs of one shape in 'a' and 'b', got .* Pad them to one length",
        ),
    ],
)
def test_bad_input_raises_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
