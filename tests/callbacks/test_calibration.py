"""CalibrationMonitor: the student's metrics after each epoch, visible to later callbacks."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, metrics
from keras_distill.callbacks import CalibrationMonitor
from keras_distill.terms import LogitsDistillation
from tests.models import replicas

CLASSES = 3


def data(n=50, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 4)).astype("float32")
    return x, (x[:, 0] > 0).astype("int32") + (x[:, 1] > 0.5)


def network(*last):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(CLASSES), *last])


def compiled(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss=loss, **options)
    return model


class Expected(keras.callbacks.Callback):
    """Computes the same metrics from all predictions at once with NumPy, where the monitor streams."""

    def __init__(self, x, y, weights=None):
        super().__init__()
        self.data, self.rows = (x, y, weights), []

    def on_epoch_end(self, epoch, logs=None):
        x, y, w = self.data
        z = np.asarray(self.model(x, training=False), float)
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        brier = ((p - np.eye(CLASSES)[y]) ** 2).sum(1)
        nll = -np.log(p[np.arange(len(y)), y])
        ece = metrics.expected_calibration_error(y, p, sample_weight=w)
        self.rows.append({"ece": ece, "nll": np.average(nll, weights=w), "brier": np.average(brier, weights=w)})


def check(history, expected, rel=1e-5):
    for name in ("ece", "nll", "brier"):
        ours = history.history[f"val_{name}"]
        assert ours == pytest.approx([row[name] for row in expected.rows], rel=rel)
    assert len(set(history.history["val_nll"])) > 1


def batches(x, y, w=None):
    return tf.data.Dataset.from_tensor_slices((x, y) if w is None else (x, y, w)).batch(16)


class Sequence(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.parts = (x, y)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return tuple(part[index * 16 : index * 16 + 16] for part in self.parts)


@pytest.mark.parametrize(
    ("make", "weighted"),
    [
        (lambda x, y, w: (x, y), False),
        (lambda x, y, w: (x, y, w), True),
        (lambda x, y, w: batches(x, y), False),
        (lambda x, y, w: batches(x, y, w), True),
        (lambda x, y, w: Sequence(x, y), False),
    ],
)
def test_numbers_equal_numpy_for_every_kind_of_data(make, weighted):
    x, y = data()
    w = np.random.default_rng(1).uniform(0.5, 2, 50)
    expected = Expected(x, y, w if weighted else None)
    monitor = CalibrationMonitor(make(x, y, w), batch_size=16)
    history = compiled(network()).fit(*data(64, 1), epochs=2, verbose=0, callbacks=[monitor, expected])
    check(history, expected)
    assert [bins.weight.sum() for bins in monitor.bins] == pytest.approx([w.sum() if weighted else 50] * 2)
    assert monitor.epochs == [0, 1]


def test_on_a_distiller_it_measures_the_student_or_the_teacher():
    x, y = data()
    teacher, student = network(), network()
    distiller = compiled(Distiller(teacher, student, LogitsDistillation(temperature=2.0)))
    expected = Expected(x, y)
    expected.set_model(student)
    agreement = [metrics.TopKAgreement(), metrics.TeacherKL(from_logits=True), metrics.AgreementOnErrors()]
    monitor = CalibrationMonitor(
        (x, y), [metrics.AdaptiveCalibrationError(from_logits=True)], teacher=teacher, teacher_metrics=agreement
    )
    history = distiller.fit(
        *data(64, 1),
        epochs=2,
        verbose=0,
        callbacks=[monitor, keras.callbacks.LambdaCallback(on_epoch_end=expected.on_epoch_end)],
    )
    check(history, expected)
    ours, theirs = np.asarray(student(x)), np.asarray(teacher(x))
    last = {name: values[-1] for name, values in history.history.items()}
    assert last["val_top_1_agreement"] == pytest.approx((ours.argmax(1) == theirs.argmax(1)).mean())
    assert last["val_teacher_kl"] == pytest.approx(metrics.teacher_kl(theirs, ours, from_logits=True), rel=1e-5)
    wrong = theirs.argmax(1) != y
    assert last["val_agreement_on_errors"] == pytest.approx((ours.argmax(1) == theirs.argmax(1))[wrong].mean())
    whole = metrics.AdaptiveCalibrationError(from_logits=True)
    whole.update_state(y, ours)
    assert last["val_adaptive_ece"] == pytest.approx(float(whole.result()), rel=1e-5)


def test_later_callbacks_see_its_logs(tmp_path):
    x, y = data()
    stop = keras.callbacks.EarlyStopping("val_ece", mode="min", min_delta=1.0, patience=1)
    callbacks = [CalibrationMonitor((x, y)), stop, keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))]
    history = compiled(network()).fit(*data(64, 1), epochs=9, verbose=0, callbacks=callbacks)
    assert len(history.epoch) == 2  # no epoch lowers the ECE by 1
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_ece"]) for row in rows] == pytest.approx(history.history["val_ece"])


def test_two_replicas_count_each_example_once():
    x, y = data()
    strategy = replicas(2)
    with strategy.scope():
        model = compiled(network())
    monitor, expected = CalibrationMonitor((x, y), batch_size=20), Expected(x, y)
    history = model.fit(batches(*data(64, 1)), epochs=2, verbose=0, callbacks=[monitor, expected])
    check(history, expected)
    assert monitor.bins[0].weight.sum() == 50


def test_every_epochs_and_steps_limit_the_evaluation():
    x, y = data()
    monitor = CalibrationMonitor(batches(x, y).repeat(), steps=2, every_epochs=2)
    model = compiled(network())
    model.fit(*data(64, 1), epochs=5, verbose=0, callbacks=[monitor])
    assert monitor.epochs == [1, 3]
    assert monitor.bins[0].weight.sum() == 32


def test_picks_one_of_several_outputs():
    inputs = keras.Input((4,))
    first, second = (keras.layers.Dense(CLASSES, name=name)(inputs) for name in ("a", "b"))
    model = keras.Model(inputs, {"a": first, "b": second})
    x, y = data()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", {"a": loss, "b": loss})
    monitor = CalibrationMonitor((x, {"a": y, "b": 2 - y}), output="b")
    history = model.fit(x, {"a": y, "b": y}, epochs=1, verbose=0, callbacks=[monitor])
    nll = metrics.negative_log_likelihood(2 - y, model.predict(x, verbose=0)["b"], from_logits=True)
    assert history.history["val_nll"][-1] == pytest.approx(nll, rel=1e-5)
    with pytest.raises(ValueError, match=r"expected output to be one of \['a', 'b'\], as the model has several"):
        model.fit(x, {"a": y, "b": y}, verbose=0, callbacks=[CalibrationMonitor((x, {"a": y, "b": y}))])


def test_draws_the_bins_for_tensorboard(tmp_path):
    """The image in the event file is the figure that the function drew of this epoch's bins."""
    figure_room = pytest.importorskip("matplotlib.figure")
    seen = []

    def draw(bins):
        seen.append(bins)
        figure = figure_room.Figure(figsize=(1.0, 0.5), dpi=80)
        figure.set_facecolor("red")
        return figure

    x, y = data()
    monitor = CalibrationMonitor((x, y), log_dir=tmp_path, figure=draw)
    compiled(network()).fit(x, y, epochs=2, verbose=0, callbacks=[monitor])
    assert seen == monitor.bins
    images = {}
    for path in tmp_path.iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                assert value.tag == "reliability_diagram"
                images[event.step] = tf.io.decode_png(value.image.encoded_image_string).numpy()
                assert (value.image.width, value.image.height) == (80, 40)
    assert sorted(images) == [0, 1]
    assert images[1].shape == (40, 80, 4)
    np.testing.assert_array_equal(images[1][20, 40], [255, 0, 0, 255])


def test_a_model_that_ends_in_softmax_is_refused_before_training():
    x, y = data()
    model = network(keras.layers.Softmax())
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"a model that gives logits, got one that ends in softmax. Use from_logits=F"):
        model.fit(x, y, verbose=0, callbacks=[CalibrationMonitor((x, y))])
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
    history = model.fit(x, y, verbose=0, callbacks=[CalibrationMonitor((x, y), from_logits=False)])
    nll = metrics.negative_log_likelihood(y, model.predict(x, verbose=0))
    assert history.history["val_nll"][-1] == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: CalibrationMonitor((1,)), r"validation_data of \(x, y\) or \(x, y, sample_weight\), got 1 elements"),
        (lambda: CalibrationMonitor(iter([])), "can be read again every epoch, got list_iterator"),
        (lambda: CalibrationMonitor(None), "can be read again every epoch, got NoneType"),
        (lambda: CalibrationMonitor(data(), teacher=network()), "teacher and teacher_metrics together"),
        (lambda: CalibrationMonitor(data(), log_dir="x"), "Use figure=keras_distill.report.reliability_diagram"),
        (lambda: CalibrationMonitor(data(), [metrics.BrierScore()]), "metrics of different names"),
        (lambda: CalibrationMonitor(data(), num_bins=0), "expected num_bins to be an integer >= 1, got 0"),
        (lambda: CalibrationMonitor(data(), every_epochs=0), "expected every_epochs to be an integer >= 1, got 0"),
    ],
)
def test_bad_arguments_raise_a_clear_error(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_empty_data_is_an_error():
    x, y = data()
    monitor = CalibrationMonitor(batches(x[:0], y[:0]))
    with pytest.raises(ValueError, match="expected at least one batch of validation_data, got none"):
        compiled(network()).fit(x, y, verbose=0, callbacks=[monitor])
