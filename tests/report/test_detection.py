"""Detections: AP against a separate evaluator in NumPy, pictures, and the page."""

import numpy as np
import pytest

from keras_distill import report

pytest.importorskip("pycocotools")


def overlap(a, b):
    sides = [max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1)]
    area = [(each[2] - each[0]) * (each[3] - each[1]) for each in (a, b)]
    return sides[0] * sides[1] / (sum(area) - sides[0] * sides[1])


def average_precision(found, boxes, kind, threshold):
    """COCO's rule: the most confident first, each takes its best free box; monotone precision at 101 recalls."""
    ranked = sorted((-row[5], i, tuple(row)) for i, rows in enumerate(found) for row in rows if row[4] == kind)
    free = {i: [b for b in rows if b[4] == kind and b[2] > b[0]] for i, rows in enumerate(boxes)}
    total, right = sum(map(len, free.values())), []
    for _, image, row in ranked:
        best = max(free[image], key=lambda box: overlap(row, box), default=None)
        hit = best is not None and overlap(row, best) >= threshold
        if hit:
            free[image] = [box for box in free[image] if box is not best]
        right.append(hit)
    hits = np.cumsum(right)
    precision, recall = hits / np.arange(1, len(hits) + 1), hits / total
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return np.mean(
        [precision[recall >= r - 1e-12][0] if (recall >= r - 1e-12).any() else 0 for r in np.linspace(0, 1, 101)]
    )


def scene(seed, images=12):
    """Boxes on a grid, so that none overlap; detections are shifted, doubled, missing, or of another class."""
    rng, boxes, found = np.random.default_rng(seed), np.full((images, 6, 5), -1.0), []
    for i in range(images):
        rows = []
        for j, cell in enumerate(rng.permutation(9)[: rng.integers(1, 6)]):
            left, top, size = (cell % 3) * 0.33 + 0.02, (cell // 3) * 0.33 + 0.02, rng.uniform(0.15, 0.25)
            boxes[i, j] = left, top, left + size, top + size, rng.integers(2)
            for _ in range(rng.integers(0, 3)):
                dx, dy = rng.normal(0, 0.03, 2)
                kind = boxes[i, j, 4] if rng.random() < 0.8 else 1 - boxes[i, j, 4]
                rows.append([left + dx, top + dy, left + dx + size, top + dy + size, kind, rng.random()])
        found.append(np.array(rows).reshape(-1, 6))
    return found, boxes


def test_average_precision_equals_cocos():
    found, boxes = scene(0)
    (entry,) = report.detection({"model": found}, boxes, ["a", "b", "never"], num_parameters={"model": 7})
    for threshold, values in ((0.5, entry.class_average_precision_50[:2]),):
        expected = [average_precision(found, boxes, kind, threshold) for kind in (0, 1)]
        np.testing.assert_allclose(values, expected, atol=0.01)
    assert entry.class_average_precision_50[2] is None and entry.num_parameters == 7
    np.testing.assert_allclose(entry.average_precision_50, np.mean(entry.class_average_precision_50[:2]))
    every = [average_precision(found, boxes, k, t) for k in (0, 1) for t in np.linspace(0.5, 0.95, 10)]
    np.testing.assert_allclose(entry.average_precision, np.mean(every), atol=0.01)


def test_the_page_shows_boxes_and_values_and_escapes_names(tmp_path):
    found, boxes = scene(1, images=2)
    entries = report.detection({"<b>teacher": found}, boxes, ["red cell", "white"])
    images = np.zeros((2, 20, 20, 3))
    figure = report.boxes_over_pictures(images, {"labels": boxes, "<b>teacher": found}, ["red cell", "white"])
    drawn = [len(axes.patches) for axes in figure.axes]
    assert drawn[::2] == [(each[:, 2] > each[:, 0]).sum() for each in boxes]
    assert drawn[1::2] == [(each[:, 5] >= 0.3).sum() for each in found]
    page = report.write_detection_page(
        entries, tmp_path / "page.html", figure=figure, class_names=["red cell", "white"]
    ).read_text()
    assert "red cell" in page and "data:image/png;base64," in page and "<b>" not in page and "http" not in page


@pytest.mark.parametrize(
    ("found", "boxes", "message"),
    [
        ([], np.zeros((1, 5)), r"report\.detection: expected boxes of shape \(images, boxes, 5\), got \(1, 5\)"),
        ([], np.zeros((1, 1, 5)), r"expected detections of 1 images, got 0 of 'm'"),
        ([[]], np.array([[[0, 0, 1, 1, 3]]]), r"expected class ids from 0 to 0, got 3"),
        ([[[0, 0, 1, 1, 3, 0.5]]], np.zeros((1, 1, 5)), r"class ids from 0 to 0, got 3 of 'm' in image 0"),
        (
            [[[0, 0, np.nan, 1, 0, 0.5]]],
            np.zeros((1, 1, 5)),
            r"finite boxes and scores, got NaN or .* of 'm' in image 0",
        ),
    ],
)
def test_bad_input_raises_a_clear_error(found, boxes, message):
    with pytest.raises(ValueError, match=message):
        report.detection({"m": found}, boxes, ["a"])


def test_a_detector_without_detections_has_an_average_precision_of_zero():
    boxes = np.array([[[0, 0, 1, 1, 0]]])
    (entry,) = report.detection({"m": [[]]}, boxes, ["a", "b"])
    assert entry.average_precision_50 == 0.0 and entry.class_average_precision_50 == (0.0, None)
