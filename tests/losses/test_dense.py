"""Dense losses and losses of detectors against float64 NumPy, written from the papers' formulas."""

import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses
from tests.models import log_softmax, softmax


def maps(shape=(3, 4, 6, 5), seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype("float32"), rng.normal(size=shape).astype("float32")


def kl(teacher, student, axis=-1):
    p = softmax(teacher, axis)
    return (p * (log_softmax(teacher, axis) - log_softmax(student, axis))).sum(axis)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_channel_distributions_are_the_papers_sum(temperature):
    teacher, student = maps()
    flat = [np.asarray(x, "f8").reshape(3, 24, 5) / temperature for x in (teacher, student)]
    expected = temperature**2 / 5 * kl(*flat, axis=1).sum(-1)
    got = losses.channel_distributions(teacher_features=teacher, student_features=student, temperature=temperature)
    np.testing.assert_allclose(got, expected, rtol=2e-6)
    # A constant added to a channel of the student changes nothing: only its spatial distribution is compared.
    shifted = student + np.arange(5, dtype="float32")
    again = losses.channel_distributions(teacher_features=teacher, student_features=shifted, temperature=temperature)
    np.testing.assert_allclose(again, expected, rtol=1e-5)


def test_void_pixels_are_excluded_from_every_dense_loss():
    """A masked map equals a map without those columns."""
    teacher, student = maps((2, 4, 6, 5))
    mask = np.ones((2, 4, 6), bool)
    mask[:, :, 4:] = False
    functions = [losses.channel_distributions, losses.normalized_features]
    for function in functions:
        whole = function(teacher_features=teacher, student_features=student, mask=mask)
        cut = function(teacher_features=teacher[:, :, :4], student_features=student[:, :, :4])
        np.testing.assert_allclose(np.mean(whole), np.mean(cut), rtol=1e-5)
    cells = losses.pixel_similarities(teacher_features=teacher, student_features=student, mask=mask)
    cut = losses.pixel_similarities(teacher_features=teacher[:, :, :4], student_features=student[:, :, :4])
    np.testing.assert_allclose(cells, cut, rtol=1e-5)


def test_pixel_similarities_are_cosines_of_all_pairs():
    teacher, student = maps()
    student = student[..., :3]
    expected = []
    for t, s in zip(*(np.asarray(x, "f8").reshape(3, 24, -1) for x in (teacher, student)), strict=True):
        t, s = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (t, s))
        expected.append(((s @ s.T - t @ t.T) ** 2).mean())
    got = losses.pixel_similarities(teacher_features=teacher, student_features=student)
    np.testing.assert_allclose(got, expected, rtol=2e-6)


def test_normalized_features_are_one_minus_pearsons_correlation():
    from scipy.stats import pearsonr

    teacher, student = maps()
    r = [pearsonr(teacher[..., c].ravel(), student[..., c].ravel()).statistic for c in range(5)]
    got = losses.normalized_features(teacher_features=teacher, student_features=3.0 * student + 7.0)
    np.testing.assert_allclose(np.mean(got), 1.0 - np.mean(r), rtol=1e-5)


def test_boundary_weights_are_those_of_a_slow_loop():
    labels = np.random.default_rng(1).integers(0, 3, (2, 7, 8))
    labels[:, :3, :4], labels[0, 5, 5], labels[1, :, 7] = 1, 11, 11
    got = losses.boundary_weights(labels=labels, radius=1, boundary_weight=4.0, ignore_label=11).numpy()
    for b, i, j in np.ndindex(labels.shape):
        window = labels[b, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        classes = set(window.ravel()) - {11}
        expected = 0.0 if labels[b, i, j] == 11 else 4.0 if len(classes) > 1 else 1.0
        assert got[b, i, j] == expected, (b, i, j)


def test_edge_distributions_are_the_mean_over_four_edges():
    teacher, student = maps((3, 7, 32))
    each = kl(*(np.asarray(x, "f8").reshape(3, 7, 4, 8) / 10 for x in (teacher, student)))
    got = losses.edge_distributions(teacher_logits=teacher, student_logits=student, temperature=10.0)
    np.testing.assert_allclose(got, 100 * each.mean(-1), rtol=1e-5)


def test_center_heatmaps_are_focal_divergences_per_object():
    teacher, student = maps()
    p, q = (1 / (1 + np.exp(-np.asarray(x, "f8"))) for x in (teacher, student))
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    expected = (np.abs(p - q) ** 2 * divergence).sum((1, 2, 3)) / np.maximum(p.sum((1, 2, 3)), 1)
    got = losses.center_heatmaps(teacher_features=teacher, student_features=student)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_center_boxes_count_only_where_the_teacher_sees_a_centre():
    heat, sizes = maps((3, 4, 6, 2))
    student = sizes + np.random.default_rng(4).normal(size=sizes.shape).astype("float32")
    p = (1 / (1 + np.exp(-np.asarray(heat, "f8")))).max(-1)
    w = np.where(p >= 0.6, p, 0.0)
    expected = (w * np.abs(sizes - student).mean(-1)).sum((1, 2)) / w.sum((1, 2))
    got = losses.center_boxes(teacher_features=[heat, sizes], student_features=[heat, student], threshold=0.6)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    blind = losses.CenterBoxes().values([heat - 100.0, sizes], [heat, student])
    assert blind.numpy().tolist() == [0.0, 0.0, 0.0]


def test_foreground_features_are_the_papers_formula():
    teacher, student = maps((2, 4, 4, 3))
    boxes = np.array([[[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]], [[0.6, 0.1, 0.9, 0.2], [-1, -1, -1, -1]]])
    scale = np.full((2, 4, 4), np.nan)
    inside = np.zeros((2, 4, 4), bool)
    inside[0, :2, :2], scale[0, :2, :2], scale[0, 1, 1] = True, 1 / 4, 1.0  # the small box wins
    inside[1, 0, 2:4], scale[1, 0, 2:4] = True, 1 / 2
    for b in range(2):
        scale[b][~inside[b]] = 1 / (~inside[b]).sum()
    t, s = (np.asarray(x, "f8") for x in (teacher, student))

    def attention(x):
        space = 16 * softmax(np.abs(x).mean(-1).reshape(2, 16) / 0.5).reshape(2, 4, 4)
        return space, 3 * softmax(np.abs(x).mean((1, 2)) / 0.5)

    (space, channel), (space_s, channel_s) = attention(t), attention(s)
    weight = np.where(inside, 2.0, 0.7) * scale * space
    expected = (weight[..., None] * channel[:, None, None] * (t - s) ** 2).sum((1, 2, 3))
    expected += 0.3 * (np.abs(space - space_s).sum((1, 2)) + np.abs(channel - channel_s).sum(1))
    got = losses.foreground_features(
        teacher_features=teacher, student_features=student, boxes=boxes,
        foreground_weight=2.0, background_weight=0.7, attention_weight=0.3,
    )  # fmt: skip
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    traced = tf.function(losses.box_masks, jit_compile=True, autograph=False)(
        boxes=tf.constant(boxes, "float32"), size=(4, 4)
    )
    np.testing.assert_array_equal(traced[0], inside)
    np.testing.assert_allclose(traced[1], scale, rtol=1e-6)


def test_anchor_matching_equals_a_loop_and_a_wrong_size_matches_nothing():
    rng = np.random.default_rng(2)
    corner, extent = rng.uniform(0, 0.6, (2, 5, 2)), rng.uniform(0.1, 0.4, (2, 5, 2))
    boxes = np.concatenate([corner, corner + extent], -1).astype("float32")
    boxes[1, 3:] = -1.0
    anchors = np.concatenate([boxes[0] + 0.02, boxes[1, :3] * 0.9, [[0, 0, 1e-3, 1e-3]]]).astype("float32")
    got = losses.match_anchors(anchors=anchors, boxes=boxes).numpy()
    for b, a in np.ndindex(got.shape):
        overlap = []
        for box in boxes[b]:
            low, high = np.maximum(box[:2], anchors[a, :2]), np.minimum(box[2:], anchors[a, 2:])
            both = np.prod(np.maximum(high - low, 0))
            areas = np.prod(box[2:] - box[:2]) + np.prod(anchors[a, 2:] - anchors[a, :2])
            overlap.append(both / (areas - both) if box[2] > box[0] else 0.0)
        best = int(np.argmax(overlap))
        assert got[b, a] == (best if overlap[best] >= 0.5 else -1 if overlap[best] < 0.4 else -2)
    tiny = losses.match_anchors(anchors=[[0.0, 0.0, 0.01, 0.01]], boxes=boxes).numpy()
    assert (tiny == -1).all()
    forced = losses.match_anchors(anchors=anchors, boxes=boxes, force_match=True).numpy()
    assert set(range(5)) <= set(forced[0])


def test_anchors_of_a_wrong_size_are_noticed_before_training():
    boxes = np.array(
        [[[0.1, 0.1, 0.5, 0.5, 2.0], [-1, -1, -1, -1, -1]], [[0.0, 0.0, 0.2, 0.4, 1.0], [-1] * 5]], "float32"
    )
    assert losses.check_anchors(anchors=boxes[0, :1, :4], boxes=boxes) == 0.5
    text = r"overlaps a box by 0.5, got a largest overlap of 0.0\d+ over 2 boxes, whose mean size is 0.3 x 0.4"
    with pytest.raises(ValueError, match=text):
        losses.check_anchors(anchors=[[0.1, 0.1, 0.12, 0.12]], boxes=boxes)
    with pytest.raises(ValueError, match="at least one box with an area, got none"):
        losses.check_anchors(anchors=boxes[0, :1, :4], boxes=boxes[:, 1:])


BAD = [
    (lambda x: losses.ChannelDistributions(0.0), "ChannelDistributions: expected temperature > 0, got 0.0"),
    (lambda x: losses.PixelSimilarities(1), "PixelSimilarities: expected cells to be an integer >= 2, got 1"),
    (lambda x: losses.boundary_weights(labels=x), "boundary_weights: expected labels .* of integer class ids"),
    (lambda x: losses.boundary_weights(labels=np.zeros((1, 2, 2), int), radius=0), "radius to be an integer >= 1"),
    (lambda x: losses.edge_distributions(teacher_logits=x, student_logits=x), "a last axis of 4 times the number"),
    (lambda x: losses.CenterHeatmaps(-1.0), "CenterHeatmaps: expected focus >= 0, got -1.0"),
    (lambda x: losses.CenterBoxes(2.0), "CenterBoxes: expected threshold >= 0 and <= 1, got 2.0"),
    (lambda x: losses.center_boxes(teacher_features=x, student_features=x), r"features to be \[heatmap, sizes\]"),
    (lambda x: losses.box_masks(boxes=[[[0, 0, 320, 240]]], size=(2, 2)), "boxes in 0..1, .* Divide pixels"),
    (lambda x: losses.box_masks(boxes=[[0, 0, 1, 1]], size=(2, 2)), r"boxes of shape \(batch, boxes, 4\)"),
    (lambda x: losses.match_anchors(anchors=[[0, 0, 1, 1]], boxes=x), r"anchors \(anchors, 4\) and boxes"),
    (lambda x: losses.match_anchors(anchors=x[0], boxes=x, negative_overlap=0.9), "negative_overlap >= 0 and <= 0.5"),
]


@pytest.mark.parametrize(("make", "text"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_raises_a_clear_error(make, text):
    with pytest.raises(ValueError, match=text):
        make(np.zeros((2, 3, 5), "float32"))
