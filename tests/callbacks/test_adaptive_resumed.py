"""Adaptive callbacks interrupted and resumed, on two replicas, in half precision; where their state is saved."""

import json

import keras
import numpy as np
import pytest

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation
from keras_distill.callbacks import AdaptiveTemperature, AdaptiveWeights, EarlyStoppedDistillation
from tests.callbacks.test_adaptive import CROSS_ENTROPY, HELD_OUT_X, HELD_OUT_Y, X, distiller, drive, fit
from tests.models import mlp, replicas


class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt


POLICIES = {
    "plateau": lambda: AdaptiveTemperature("student_loss", mode="max", patience=2, cooldown=1),
    "progress": lambda: AdaptiveTemperature(
        "gap", "progress", validation_data=(HELD_OUT_X,), smoothing=0.5, patience=2, min_delta=0.01
    ),
    "stopped": lambda: EarlyStoppedDistillation("student_loss", mode="max", patience=2, fade_epochs=2),
    "norms": lambda: AdaptiveWeights((HELD_OUT_X, HELD_OUT_Y), min_delta=0.0, smoothing=0.8),
    "uncertainty": lambda: AdaptiveWeights(
        (HELD_OUT_X, HELD_OUT_Y), "uncertainty", relative_to="student_loss", min_delta=0.1, patience=2
    ),
}


def adam(start):
    made = distiller([LogitsDistillation(8.0), FeatureDistillation("mse")], [1.0, 0.5])
    made.student.set_weights(start.get_weights())
    made.compile(keras.optimizers.Adam(0.05), CROSS_ENTROPY, run_eagerly=True)
    return made


@pytest.mark.parametrize("kind", POLICIES)
def test_a_run_killed_and_resumed_ends_with_the_same_numbers(kind, tmp_path):
    start, policy = mlp(4, seed=9), POLICIES[kind]
    whole, resumed, one, other = adam(start), adam(start), policy(), policy()
    expected = fit(whole, one, epochs=6, batch_size=12)
    with pytest.raises(KeyboardInterrupt):
        fit(adam(start), policy(), keras.callbacks.BackupAndRestore(tmp_path), Kill(), epochs=6, batch_size=12)
    got = fit(resumed, other, keras.callbacks.BackupAndRestore(tmp_path), epochs=6, batch_size=12)
    steered = [name for name in expected if "temperature" in name or "weight" in name]
    assert any(len(set(expected[name][3:])) > 1 for name in steered)  # otherwise nothing is tested
    for name, values in expected.items():
        assert got[name] == pytest.approx(values[3:], rel=1e-6), name
    assert other.state == one.state
    for ours, theirs in zip(whole.student.get_weights(), resumed.student.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("plateau", "stopped"), ("progress", "norms"), ("uncertainty",)], ids=str)
def test_two_replicas_control_as_one_does(kinds):
    histories = []
    for count in (1, 2):
        with replicas(count).scope():
            teacher, student = mlp(4, seed=1), mlp(4, seed=9)
            made = Distiller(teacher, student, [LogitsDistillation(8.0), FeatureDistillation("mse")], [1.0, 0.5])
            made.compile(keras.optimizers.Adam(0.05), CROSS_ENTROPY, jit_compile=False)
        policies = [POLICIES[kind]() for kind in kinds]
        histories.append((fit(made, *policies, epochs=6), [policy.state for policy in policies]))
    (expected, states), (got, again) = histories
    steered = {name: values for name, values in expected.items() if "temperature" in name or "weight" in name}
    assert any(len(set(values)) > 1 for values in steered.values())
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert got[name] == pytest.approx(values, rel=1e-4), name
    assert [each.keys() for each in again] == [each.keys() for each in states]


@pytest.mark.parametrize("kind", ["norms", "uncertainty"])
def test_weights_of_a_student_in_half_precision_are_those_in_full(kind):
    weights = []
    for policy in ("float32", "mixed_bfloat16"):
        made = distiller([LogitsDistillation(1.0), LogitsDistillation(4.0)], [1.0, 2.0], eager=False)
        half = keras.models.clone_model(
            made.student,
            clone_function=lambda layer, p=policy: type(layer).from_config({**layer.get_config(), "dtype": p}),
        )
        half.set_weights(made.student.get_weights())
        made = Distiller(made.teacher, half, [LogitsDistillation(1.0), LogitsDistillation(4.0)], [1.0, 2.0])
        made.compile(keras.optimizers.SGD(0.0), CROSS_ENTROPY, jit_compile=False)
        fit(made, POLICIES[kind](), epochs=2)
        weights.append(list(made.distillation_loss_weights))
    assert weights[0] != [1.0, 2.0]
    assert weights[1] == pytest.approx(weights[0], rel=0.02)


def test_callback_state_is_saved_in_weight_files_only(tmp_path):
    start, path = mlp(4, seed=9), tmp_path / "w.weights.h5"
    made, other = adam(start), adam(start)
    fit(other, epochs=2)
    counts = len(other.weights), len(other.layers), other.count_params()
    policy = POLICIES["plateau"]()
    history = fit(made, policy, epochs=2)
    assert (len(made.weights), len(made.layers), made.count_params()) == counts
    made.save_weights(path)
    again = POLICIES["plateau"]()
    loaded = adam(start)
    again.set_model(loaded)
    loaded(X)
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.load_weights(path)
    assert again.state == policy.state == json.loads(json.dumps(policy.state))
    assert again.state["best"] == max(history["student_loss"])
    # A file without the callback's state, or a distiller without the callback, is no error.
    other.save_weights(path)
    loaded.load_weights(path)
    fit(loaded, again, initial_epoch=1, epochs=2)
    assert again.state["wait"] == 0
    other.load_weights(path)


def test_a_new_run_starts_afresh_and_initial_epoch_continues():
    made = distiller()
    callback = AdaptiveTemperature("x", mode="min", patience=1)
    drive(callback, made, "x", [1.0, 0.5])
    assert callback.state["best"] == 0.5
    callback.on_epoch_begin(2)
    assert callback.state["best"] == 0.5
    callback.on_epoch_begin(0)
    assert callback.state["best"] is None
    callback.state = {"best": 0.1, "wait": 0, "resting": 0, "progress": 0.0, "first": None}
    callback.on_epoch_end(0, {"x": 0.2})
    assert made.distillation_losses[0].temperature == pytest.approx(6.4)
