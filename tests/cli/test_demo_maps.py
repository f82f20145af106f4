"""``keras-distill demo`` on segmentation maps and boxes: generated ones, so that no file is needed."""

import json

import numpy as np
import pytest

from keras_distill import data
from keras_distill.cli import main
from keras_distill.data import _named


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.repeat(rng.integers(0, 3, (count, 4, 6)), 8, 1), 8, 2).astype("int32")
    images = (labels[..., None] * [0.4, 0.2, 0.1] + rng.normal(0, 0.1, (*labels.shape, 3))).astype("float32")
    labels[:, :2] = 3  # void
    return data.Examples(images, labels)


@pytest.mark.slow
def test_the_demo_writes_a_page_with_maps_over_pictures(tmp_path, monkeypatch):
    splits = {"train": drawn(32, 0), "validation": drawn(4, 1), "test": drawn(8, 2)}
    scenes = data.Data("scenes", splits, ("sky", "road", "tree"), "drawn")
    monkeypatch.setitem(_named._LOADERS, "scenes", lambda name, download: scenes)
    assert main(["demo", "--dataset", "scenes", "--epochs", "12", "--out", str(tmp_path / "out")]) in (None, 0)
    found = {each["name"]: each for each in json.loads((tmp_path / "out" / "report.json").read_text())["entries"]}
    assert found["teacher"]["mean_iou"] > 0.5 > 1 / 3
    assert found["student distilled"]["num_parameters"] * 10 < found["teacher"]["num_parameters"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64," in page and "road" in page and "http" not in page
    assert (tmp_path / "out" / "student.keras").is_file()


def discs(count, seed):
    rng, (rows, columns) = np.random.default_rng(seed), np.mgrid[:64, :64]
    images, boxes = rng.uniform(0.8, 0.9, (count, 64, 64, 3)), np.full((count, 2, 5), -1.0)
    for image, slot in np.ndindex(count, 2):
        (y, x), kind = rng.integers(12, 52, 2), rng.integers(2)
        radius = (6, 10)[kind]
        images[image][(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = ((1, 0, 0), (0, 0, 1))[kind]
        boxes[image, slot] = (x - radius) / 64, (y - radius) / 64, (x + radius) / 64, (y + radius) / 64, kind
    return data.Examples(images.astype("float32"), boxes)


@pytest.mark.slow
def test_the_demo_writes_a_page_with_boxes_over_pictures(tmp_path, monkeypatch):
    pytest.importorskip("pycocotools")
    cells = data.Data("cells", {"train": discs(64, 0), "test": discs(16, 1)}, ("red", "blue"), "drawn")
    monkeypatch.setitem(_named._LOADERS, "cells", lambda name, download: cells)
    assert main(["demo", "--dataset", "cells", "--epochs", "16", "--out", str(tmp_path / "out")]) in (None, 0)
    found = {each["name"]: each for each in json.loads((tmp_path / "out" / "report.json").read_text())["entries"]}
    assert found["teacher"]["average_precision_50"] > 0.5
    assert found["student distilled"]["num_parameters"] * 10 < found["teacher"]["num_parameters"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64," in page and "blue" in page and "http" not in page
    assert (tmp_path / "out" / "student.keras").is_file()
