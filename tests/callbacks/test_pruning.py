"""Zeros follow the schedule, stay zeros, and survive saving and resuming."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, LogitsDistillation
from keras_distill.callbacks import MagnitudePruning

L = keras.layers


def model(name="student"):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(20, name="first"), L.ReLU(name="relu"), L.Dense(10, name="second"), L.Dense(3)],
        name=name,
    )


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 6)).astype("float32"), rng.integers(0, 3, 64)


def compiled(distilled=False):
    student = model()
    trained = Distiller(model("teacher"), student, LogitsDistillation()) if distilled else student
    trained.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    return trained, student


def zeros(student, layer):
    return float((student.get_layer(layer).get_weights()[0] == 0).mean())


def test_the_cubic_schedule():
    pruning = MagnitudePruning(0.9, 0.2, begin_step=10, end_step=50)
    for step in (10, 17, 30, 50, 80):
        progress = min(1, (step - 10) / 40)
        assert pruning.sparsity_at(step) == pytest.approx(0.9 + (0.2 - 0.9) * (1 - progress) ** 3)
    assert pruning.sparsity_at(9) == 0


@pytest.mark.parametrize("distilled", [False, True])
def test_the_smallest_weights_are_zero_at_the_end_and_stay_so(distilled):
    trained, student = compiled(distilled)
    x, y = data()
    pruning = MagnitudePruning(0.7, end_step=6, frequency_steps=2)
    trained.fit(x, y, epochs=3, batch_size=16, verbose=0, callbacks=[pruning])
    assert zeros(student, "first") == pytest.approx(0.7, abs=0.01)
    assert zeros(student, "second") == pytest.approx(0.7, abs=0.01)
    assert pruning.sparsity == pytest.approx(0.7, abs=0.01)
    assert not (student.layers[-1].get_weights()[0] == 0).any()


def test_weights_that_are_pruned_are_the_smallest():
    trained, student = compiled()
    trained.optimizer.learning_rate = 0.0
    before = student.get_layer("first").get_weights()[0]
    x, y = data()
    trained.fit(x, y, batch_size=16, verbose=0, callbacks=[MagnitudePruning(0.5, end_step=1, layers=["first"])])
    after = student.get_layer("first").get_weights()[0]
    limit = np.median(np.abs(before))
    np.testing.assert_array_equal(after, np.where(np.abs(before) > limit, before, 0))


def test_a_resumed_run_keeps_the_mask(tmp_path):
    trained, student = compiled()
    x, y = data()
    options = {"batch_size": 16, "verbose": 0}
    trained.fit(x, y, epochs=2, callbacks=[MagnitudePruning(0.6, end_step=4)], **options)
    pruned = student.get_layer("first").get_weights()[0] == 0
    trained.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    again.fit(x, y, epochs=4, initial_epoch=2, callbacks=[MagnitudePruning(0.6, end_step=4)], **options)
    np.testing.assert_array_equal(again.get_layer("first").get_weights()[0] == 0, pruned)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"final_sparsity": 1.0}, r"MagnitudePruning: expected final_sparsity below 1, got 1.0"),
        ({"final_sparsity": -0.1}, r"MagnitudePruning: expected final_sparsity >= 0, got -0.1"),
        ({"final_sparsity": 0.5, "initial_sparsity": 0.6}, r"expected initial_sparsity of at most final_sparsity=0.5"),
        ({"final_sparsity": 0.5, "begin_step": 5, "end_step": 5}, r"expected end_step to be an integer >= 6, got 5"),
    ],
)
def test_numbers_out_of_range_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        MagnitudePruning(**options)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        ("relu", r"expected layers with weights to prune, got 'relu', a layer without such weights"),
        ("frst", r"expected layers with weights to prune, got 'frst'. Nearest: 'first'"),
    ],
)
def test_layers_without_weights_are_refused(layer, text):
    trained, _ = compiled()
    with pytest.raises(ValueError, match=text):
        trained.fit(*data(), verbose=0, callbacks=[MagnitudePruning(0.5, end_step=2, layers=[layer])])


def test_a_model_with_more_zeros_than_the_target_is_refused():
    trained, student = compiled()
    kernel, bias = student.get_layer("first").get_weights()
    student.get_layer("first").set_weights([kernel * (np.arange(20) < 4), bias])
    with pytest.raises(ValueError, match=r"weights with at most final_sparsity=0.5 zeros, got '.*first/kernel'"):
        trained.fit(*data(), verbose=0, callbacks=[MagnitudePruning(0.5, end_step=2)])


def test_every_replica_has_the_zeros():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        trained, student = compiled()
    x, y = data()
    trained.fit(x, y, epochs=2, batch_size=16, verbose=0, callbacks=[MagnitudePruning(0.5, end_step=4)])
    kernel = student.get_layer("first").kernel.value
    values = [copy.numpy() for copy in strategy.experimental_local_results(kernel)]
    assert len(values) == 2
    for value in values:
        assert (value == 0).mean() == 0.5
    np.testing.assert_array_equal(*values)
