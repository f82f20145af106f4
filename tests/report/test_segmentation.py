"""The report on segmentation maps against Keras' own MeanIoU, scikit-learn, and the pixels of a figure."""

import json

import keras
import numpy as np
import pytest

from keras_distill import metrics, report

VOID = 9


@pytest.fixture(scope="module")
def measured():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(5, 8, 12, 3)).astype("float32")
    labels = rng.integers(0, 4, (5, 8, 12))
    labels[:, :2] = VOID
    inputs = keras.Input((8, 12, 3))
    models = {}
    for seed, name in enumerate(("teacher", "student")):
        init = keras.initializers.GlorotUniform(seed=seed)
        head = keras.layers.Conv2D(4, 3, padding="same", strides=1 + seed, kernel_initializer=init)
        models[name] = keras.Model(inputs, head(inputs))
    found = report.segmentation(models, (images, labels), reference="teacher", ignore_label=VOID, batch_size=2)
    return images, labels, models, found


def logits_of(model, images, shape):
    out = model.predict(images, verbose=0)
    return np.asarray(keras.ops.image.resize(out, shape)) if out.shape[1:3] != shape else out


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_numbers_are_those_of_keras_and_scikit_learn(measured, name):
    from sklearn.metrics import accuracy_score, f1_score

    images, labels, models, found = measured
    logits = logits_of(models[name], images, (8, 12))
    iou = keras.metrics.MeanIoU(5, ignore_class=4)
    iou.update_state(np.where(labels == VOID, 4, labels), logits.argmax(-1))
    kept = labels != VOID
    entry = found[name]
    np.testing.assert_allclose(entry.mean_iou, float(iou.result()), rtol=1e-6)
    right, answers = labels[kept], logits.argmax(-1)[kept]
    np.testing.assert_allclose(entry.pixel_accuracy, accuracy_score(right, answers))
    np.testing.assert_allclose(entry.dice, f1_score(right, answers, average="macro"))
    expected = metrics.expected_calibration_error(right, logits[kept], from_logits=True)
    np.testing.assert_allclose(entry.pixel_calibration_error, expected, rtol=1e-5)
    assert found.num_pixels == kept.sum() and entry.num_parameters == models[name].count_params()


def test_agreement_is_over_labelled_pixels_and_json_is_strict(measured):
    images, labels, models, found = measured
    answers = [logits_of(model, images, (8, 12)).argmax(-1)[labels != VOID] for model in models.values()]
    np.testing.assert_allclose(found["student"].pixel_agreement, np.mean(answers[0] == answers[1]))
    assert found["teacher"].pixel_agreement is None
    assert json.loads(found.to_json())["entries"][1]["name"] == "student"


def test_overlays_show_what_differs(measured):
    images, labels, models, _ = measured
    answers = logits_of(models["teacher"], images, (8, 12)).argmax(-1)
    figure = report.overlays(images[:2], {"labels": labels[:2], "teacher": answers[:2]}, ignore_label=VOID)
    drawn = figure.axes[2].get_images()[0].get_array()
    assert np.all(drawn[:2] == 0.0)  # void is black
    apart = (labels[0] != answers[0]) & (labels[0] != VOID)
    faint = np.abs(drawn - images[0]).sum(-1)
    assert faint[apart].mean() > faint[~apart & (labels[0] != VOID)].mean()


def test_bad_input_raises_a_clear_error(measured):
    images, labels, models, found = measured
    cases = [
        (lambda: report.segmentation(models, (images, labels)), r"labels in 0..3, got 0..9. Give ignore_label"),
        (lambda: report.segmentation(models, (images, np.full_like(labels, VOID)), ignore_label=VOID), "only void"),
        (lambda: report.segmentation(models, (images, labels[0])), "a map of class ids .height, width. for each image"),
        (lambda: report.segmentation({}, (images, labels)), "models by name"),
        (lambda: report.segmentation(models, (images, labels), reference="tutor"), "reference to be one of the models"),
        (lambda: report.overlays(images, {"labels": labels[:, :4]}), r"maps of shape \(5, 8, 12\), got .* of 'labels'"),
        (lambda: found["pupil"], "the name of a model"),
    ]
    for make, text in cases:
        with pytest.raises(ValueError, match=text):
            make()
