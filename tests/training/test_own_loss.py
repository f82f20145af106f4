"""``compile(loss="student")``: a detector of keras-hub, whose labels are encoded in its own ``compute_loss``."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, FeatureDistillation, losses

hub = pytest.importorskip("keras_hub")
IMAGES = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype("float32")
BOXES = {
    "boxes": np.array([[[4, 4, 20, 20], [-1] * 4], [[8, 8, 24, 24], [4, 12, 20, 28]]], "float32"),
    "labels": np.array([[1, -1], [0, 1]], "float32"),
}


def detector(seed=0, anchor_size=2.0):
    """A RetinaNet of one level, as small as keras-hub makes it."""
    keras.utils.set_random_seed(seed)
    encoder = hub.models.ResNetBackbone([64], [3], [64, 64], [1, 1], [1, 2], "basic_block", image_shape=(32, 32, 3))
    backbone = hub.models.RetinaNetBackbone(encoder, min_level=3, max_level=3, use_p5=False, image_shape=(32, 32, 3))
    anchors = hub.layers.AnchorGenerator("xyxy", 3, 3, num_scales=1, aspect_ratios=[1.0], anchor_size=anchor_size)
    model = hub.models.RetinaNetObjectDetector(
        backbone, 2, bounding_box_format="xyxy", anchor_generator=anchors, pre_logits_num_conv_layers=1
    )
    model.compile(optimizer="sgd")
    return model


def distilled(student, share):
    term = FeatureDistillation("mse", "cls_logits", "cls_logits")
    distiller = Distiller(detector(seed=1), student, term, student_loss_weight=share)
    distiller.compile(keras.optimizers.SGD(1e-3), loss="student", run_eagerly=True)
    return distiller


def test_a_retinanet_learns_its_own_loss_and_its_teachers_logits():
    alone, student = detector(), detector()
    alone.optimizer.learning_rate = 1e-3
    alone.run_eagerly = True
    expected = alone.fit(IMAGES, BOXES, epochs=2, verbose=0).history["loss"]
    assert min(expected) > 0.01  # some anchors match
    distiller = distilled(student, share=1.0)
    found = distiller.fit(IMAGES, BOXES, epochs=2, verbose=0).history
    np.testing.assert_allclose(found["student_loss"], expected, rtol=1e-5)
    for one, two in zip(student.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    distiller.student_loss_weight = 0.25
    logs = {name: value[0] for name, value in distiller.fit(IMAGES, BOXES, verbose=0).history.items()}
    np.testing.assert_allclose(logs["student_loss"], alone.fit(IMAGES, BOXES, verbose=0).history["loss"][0], rtol=1e-5)
    assert logs["distillation_loss"] > 1e-3
    expected = 0.25 * logs["student_loss"] + 0.75 * logs["distillation_loss"]
    np.testing.assert_allclose(logs["total_loss"], expected, rtol=1e-5)


def test_anchors_that_match_nothing_are_noticed_in_training_and_before():
    student = detector(anchor_size=400.0)
    distiller = distilled(student, share=0.5)
    with pytest.warns(UserWarning, match=r"loss was exactly 0\.0 for a whole epoch.* check anchor_size") as caught:
        distiller.fit(IMAGES, BOXES, epochs=2, verbose=0)
    assert sum("exactly 0.0" in str(each.message) for each in caught) == 1
    anchors = keras.ops.concatenate(list(student.anchor_generator(IMAGES).values()))
    with pytest.raises(ValueError, match=r"check_anchors: expected .* got a largest overlap of 0"):
        losses.check_anchors(anchors=anchors, boxes=np.maximum(BOXES["boxes"], 0.0))
