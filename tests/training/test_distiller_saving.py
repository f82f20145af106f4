"""Saved, loaded, killed, resumed: the same next step; and the teacher only where it belongs."""

import textwrap
import warnings

import h5py
import keras
import numpy as np
import pytest

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation
from tests.models import batch, mlp
from tests.processes import Child

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dropout_student():
    init = keras.initializers.GlorotUniform(seed=3)
    hidden = keras.layers.Dense(8, kernel_initializer=init, name="dense_0")
    head = keras.layers.Dense(4, kernel_initializer=init)
    return keras.Sequential(
        [keras.Input((6,)), hidden, keras.layers.Dropout(0.3, seed=5), keras.layers.BatchNormalization(), head]
    )


def distiller(**options):
    schedule = keras.optimizers.schedules.PolynomialDecay(8.0, 12, end_learning_rate=1.0)
    terms = [LogitsDistillation(schedule), FeatureDistillation("mse", "dense_0", "dense_0")]
    made = Distiller(mlp(8, 4, seed=1), dropout_student(), terms, [1.0, 0.1], student_loss_weight=0.3)
    made.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY, metrics=["accuracy"], **options)
    return made


class Killed(BaseException):
    """Simulates the end of a process between two epochs."""


class KillAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Killed


def test_a_resumed_run_ends_with_the_same_numbers(tmp_path):
    x, y = batch(24)
    fit = {"epochs": 4, "batch_size": 12, "shuffle": False, "verbose": 0}
    whole = distiller(run_eagerly=True)  # a dozen steps cost less than a trace
    expected = whole.fit(x, y, **fit).history
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(Killed):
        distiller(run_eagerly=True).fit(x, y, callbacks=[backup, KillAfter(2)], **fit)
    resumed = distiller(run_eagerly=True)
    got = resumed.fit(x, y, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)], **fit).history
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values[2:], rtol=1e-6, err_msg=name)
    for one, two in zip(whole.student.get_weights(), resumed.student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def datasets(file):
    found = []
    file.visititems(lambda name, item: found.append(item.shape) if isinstance(item, h5py.Dataset) else None)
    return found


def test_weight_files_hold_the_student_and_no_teacher(tmp_path):
    x, y = batch(8)
    made = Distiller(mlp(17, 4), mlp(5, 4), LogitsDistillation())
    made.compile("adam", CROSS_ENTROPY, run_eagerly=True)  # one step
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", save_weights_only=True)
    made.fit(x, y, verbose=0, callbacks=[checkpoint])
    with h5py.File(tmp_path / "best.weights.h5") as file:
        shapes = datasets(file)
    assert shapes.count((6, 5)) == 3  # the kernel and Adam's two moments
    assert (6, 17) not in shapes
    other = Distiller(teacher := mlp(17, 4, seed=9), mlp(5, 4, seed=8), LogitsDistillation())
    other.compile("adam", CROSS_ENTROPY)
    before = teacher.get_weights()
    other.load_weights(tmp_path / "best.weights.h5")
    np.testing.assert_array_equal(other.student.get_weights()[0], made.student.get_weights()[0])
    np.testing.assert_array_equal(before[0], teacher.get_weights()[0])


def test_a_saved_distiller_is_self_contained_and_trains_on_in_another_process(tmp_path):
    x, y = batch(24)
    made = distiller()
    made.fit(x, y, epochs=2, batch_size=8, shuffle=False, verbose=0)
    made.save(tmp_path / "distiller.keras")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    script = """
        import os, sys
        import keras, keras_distill, numpy as np
        os.chdir(sys.argv[1])
        data = np.load("data.npz")
        loaded = keras.saving.load_model("distiller.keras")
        loaded.fit(data["x"], data["y"], epochs=1, batch_size=8, shuffle=False, verbose=0)
        np.savez("after.npz", *loaded.student.get_weights(), temperature=loaded.distillation_losses[0].temperature)
    """
    run = Child(textwrap.dedent(script), tmp_path)
    assert run.wait() == 0, run.read()
    made.fit(x, y, epochs=1, batch_size=8, shuffle=False, verbose=0)
    after = np.load(tmp_path / "after.npz")
    for index, weight in enumerate(made.student.get_weights()):
        np.testing.assert_allclose(after[f"arr_{index}"], weight, rtol=1e-6, atol=1e-7)
    assert after["temperature"] == pytest.approx(made.distillation_losses[0].temperature)


def test_the_configuration_makes_the_same_distiller():
    made = distiller()
    again = Distiller.from_config(made.get_config())
    assert again.get_config() == made.get_config()
    assert again.distillation_loss_weights == [1.0, 0.1]
    assert again.distillation_losses[0].temperature == 8.0


def test_keras_terms_work_in_ours_and_ours_in_keras():
    x, y = batch(16)
    values = {}
    for kit, term in (
        ("ours in ours", LogitsDistillation(4.0)),
        ("keras in ours", keras.distillation.LogitsDistillation(4.0, keras.losses.KLDivergence())),
        ("ours in keras", LogitsDistillation(4.0)),
    ):
        maker = keras.distillation.Distiller if kit == "ours in keras" else Distiller
        made = maker(mlp(8, 4, seed=1), mlp(5, 4, seed=2), term)
        made.compile(keras.optimizers.SGD(0.0), CROSS_ENTROPY, run_eagerly=True)  # one step
        values[kit] = made.fit(x, y, batch_size=16, verbose=0).history["distillation_loss"][0]
    np.testing.assert_allclose(list(values.values()), values["ours in ours"], rtol=1e-5)


def test_a_saved_distiller_leaves_the_teachers_optimizer_out_and_loads_without_a_warning(tmp_path):
    x, y = batch(24)
    teacher = mlp(64, 4, seed=1)
    sizes = []
    for compiled in (False, True):
        if compiled:
            teacher.compile("adam", CROSS_ENTROPY)
            teacher.optimizer.build(teacher.trainable_variables)
        made = Distiller(teacher, mlp(5, 4, seed=2), LogitsDistillation())
        made.compile("adam", CROSS_ENTROPY, run_eagerly=True)
        made.fit(x, y, verbose=0)
        made.save(tmp_path / "d.keras")
        sizes.append((tmp_path / "d.keras").stat().st_size)
    assert teacher.optimizer is not None and sizes[1] < 1.05 * sizes[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = keras.saving.load_model(tmp_path / "d.keras")
    np.testing.assert_array_equal(loaded.teacher.get_weights()[0], teacher.get_weights()[0])
