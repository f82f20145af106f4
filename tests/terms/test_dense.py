"""Terms on maps and boxes: void pixels are excluded, maps are resized once, boxes are fields of the batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, losses, terms
from keras_distill.training import Batch
from tests.models import kd

VOID = 9


def maps(height=4, width=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, height, width, classes)).astype("float32")


def labels_with_void():
    labels = np.random.default_rng(5).integers(0, 3, (2, 4, 6))
    labels[:, :, 4:] = VOID
    labels[1, 0, 0] = VOID
    return labels


ROWS = [
    LogitsDistillation(2.0, ignore_label=VOID),
    LogitsDistillation(1.0, losses.ReverseSoftTargets(), ignore_label=VOID),
    LogitsDistillation(1.0, losses.DecoupledSoftTargets(), ignore_label=VOID),
    terms.PixelDistillation(2.0, ignore_label=VOID),
    terms.PixelDistillation(2.0, ignore_label=VOID, boundary_weight=3.0),
    FeatureDistillation("mse", ignore_label=VOID),
    FeatureDistillation(losses.HintMatching(), ignore_label=VOID),
    FeatureDistillation(losses.ChannelDistributions(), ignore_label=VOID),
    FeatureDistillation(losses.PixelSimilarities(), ignore_label=VOID),
    FeatureDistillation(losses.NormalizedFeatures(), ignore_label=VOID),
]


@pytest.mark.parametrize("term", ROWS, ids=[f"{type(t).__name__}-{i}" for i, t in enumerate(ROWS)])
def test_void_pixels_are_excluded_and_the_config_is_restored(term):
    teacher, student, labels = maps(seed=1), maps(seed=2), labels_with_void()
    spoilt = np.where((labels == VOID)[..., None], 1e3 * maps(seed=3), student).astype("float32")
    value = float(term.compute_loss(teacher, tf.constant(student), labels=labels))
    np.testing.assert_allclose(float(term.compute_loss(teacher, tf.constant(spoilt), labels=labels)), value, rtol=1e-5)
    with tf.GradientTape() as tape:
        x = tf.Variable(student)
        loss = term.compute_loss(teacher, x, labels=labels)
    gradient = tape.gradient(loss, x).numpy()
    assert np.abs(gradient[labels == VOID]).max() == 0.0 < np.abs(gradient[labels != VOID]).max()
    all_count = term.compute_loss(teacher, tf.constant(student), labels=np.zeros_like(labels))
    assert abs(float(all_count) - value) > 1e-6
    twin = type(term).from_config(term.get_config())
    np.testing.assert_allclose(float(twin.compute_loss(teacher, tf.constant(student), labels=labels)), value, rtol=1e-6)


def test_the_mean_is_over_labelled_pixels():
    teacher, student, labels = maps(seed=1), maps(seed=2), labels_with_void()
    got = LogitsDistillation(2.0, ignore_label=VOID).compute_loss(teacher, student, labels=labels[..., None])
    np.testing.assert_allclose(float(got), kd(teacher, student, 2.0)[labels != VOID].mean(), rtol=1e-5)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_another_resolution_is_resized_once(side):
    teacher, student = maps(8, 12, seed=1), maps(seed=2)
    size = (8, 12) if side == "student" else (4, 6)
    resized = [tf.image.resize(each, size).numpy() for each in (teacher, student)]
    labels = np.repeat(np.repeat(labels_with_void(), 2, 1), 2, 2)
    kept = labels != VOID if side == "student" else labels_with_void() != VOID
    got = terms.PixelDistillation(3.0, resize=side, ignore_label=VOID).compute_loss(teacher, student, labels=labels)
    np.testing.assert_allclose(float(got), kd(*resized, 3.0)[kept].mean(), rtol=1e-5)


def test_boundary_weights_and_sample_weights_multiply():
    teacher, student, labels = maps(seed=1), maps(seed=2), labels_with_void()
    weights = losses.boundary_weights(labels=labels, radius=1, boundary_weight=4.0, ignore_label=VOID).numpy()
    term = terms.PixelDistillation(1.0, boundary_weight=4.0, boundary_radius=1, ignore_label=VOID)
    got = term.compute_loss(teacher, student, labels=labels, sample_weight=np.array([2.0, 0.5], "float32"))
    each = kd(teacher, student, 1.0) * weights * np.array([2.0, 0.5])[:, None, None]
    np.testing.assert_allclose(float(got), each.sum() / (labels != VOID).sum(), rtol=1e-5)


def conv(filters, classes=3, seed=0, name="neck", key="image"):
    init = keras.initializers.GlorotUniform(seed=seed)
    x = keras.Input((8, 8, 2), name=key)
    h = keras.layers.Conv2D(filters, 3, 2, "same", activation="relu", name=name, kernel_initializer=init)(x)
    return keras.Model({key: x}, keras.layers.Conv2D(classes, 1, kernel_initializer=init)(h))


def test_boxes_reach_the_term_through_a_real_distiller():
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 2)).astype("float32")
    boxes = np.tile(np.array([[[0.1, 0.1, 0.6, 0.6], [-1, -1, -1, -1]]], "float32"), (8, 1, 1))
    teacher, student = conv(6), conv(6, seed=1)
    options = {"foreground_weight": 1.0, "background_weight": 0.0, "attention_weight": 0.0}
    term = terms.ForegroundDistillation("neck", "neck", **options)
    distiller = Distiller(teacher, student, term, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    inputs = {"image": x, "boxes": boxes}
    logged = distiller.fit(inputs, batch_size=8, verbose=0).history["distillation_loss"][0]
    features = [keras.Model(m.input, m.get_layer("neck").output)({"image": x}) for m in (teacher, student)]
    expected = losses.foreground_features(
        teacher_features=features[0], student_features=features[1], boxes=boxes, **options
    )
    np.testing.assert_allclose(logged, np.mean(expected), rtol=1e-4)
    with pytest.raises(ValueError, match=r"expected a field 'boxes' in the batch, got only 'image'"):
        distiller.fit({"image": x}, verbose=0)
    twin = terms.ForegroundDistillation.from_config(term.get_config())
    assert twin.options == term.options and twin.boxes == "boxes"


BAD = [
    (lambda: terms.PixelDistillation(resize="both"), "expected resize to be one of 'student', 'teacher'"),
    (lambda: terms.PixelDistillation(boundary_weight=-1.0), "expected boundary_weight >= 0"),
    (lambda: terms.PixelDistillation(boundary_radius=0), "expected boundary_radius to be an integer >= 1"),
    (lambda: terms.PixelDistillation(ignore_label="void"), "expected ignore_label to be an integer"),
    (lambda: terms.PixelDistillation().compute_loss(np.ones((2, 3)), np.ones((2, 3))), "one output .batch, height"),
    (lambda: LogitsDistillation(ignore_label=1).compute_loss(maps(), maps()), "one map of labels.* got no labels"),
    (
        lambda: LogitsDistillation(ignore_label=1).compute_loss(maps(), maps(), labels=np.zeros((2,), int)),
        "expected a map of labels with the positions of the outputs for ignore_label",
    ),
    (
        lambda: terms.PixelDistillation(boundary_weight=2.0).compute_loss(maps(), maps()),
        "PixelDistillation: expected labels for boundary_weight",
    ),
    (
        lambda: terms.ForegroundDistillation().compute_loss(maps(), maps(), batch=Batch(maps())),
        "expected a field 'boxes' in the batch, got no dictionary of fields",
    ),
]


@pytest.mark.parametrize(("make", "text"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_raises_a_clear_error(make, text):
    with pytest.raises(ValueError, match=text):
        make()
