"""``keras-distill demo`` on boxes: an anchor-free detector, a small one trained alone, and the same distilled.

Kept apart from ``_demonstration.py``: each task of the demo trains and draws in its own way.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from rich.console import Console

from keras_distill import Distiller, FeatureDistillation, _files, data, losses, report

_TEACHER, _STUDENT, _STRIDE = 24, 6, 4  # channels of the first layer; pixels per cell of the heatmap


def run(
    console: Console, name: str, examples: data.Data, folder: Path, epochs: int | None
) -> tuple[report.DetectionEntry, ...]:
    """Train three models on half-size pictures, and write ``report.json``, ``report.html``, ``student.keras``.

    Args:
        console: console to print to.
        name: name of the data set.
        examples: pictures and boxes (left, top, right, bottom in fractions, class id); -1 is padding.
        folder: output folder.
        epochs: epochs of every training; None for 40.

    Returns:
        The measurements of each model.
    """
    epochs, classes = epochs or 40, len(examples.class_names)
    train, test = (_halved(each) for each in (examples.train, examples.test))
    shape = train.inputs.shape[1:]
    teacher, alone, student = (
        network(shape, classes, _TEACHER, 0),
        *(network(shape, classes, _STUDENT, 1) for _ in "as"),
    )
    heat = FeatureDistillation(losses.CenterHeatmaps(), "heat", "heat")
    boxes = FeatureDistillation(losses.CenterBoxes(), ["heat", "size"], ["heat", "size"])
    neck = FeatureDistillation(losses.NormalizedFeatures(), "neck", "neck", adapter="auto")
    _trained(teacher, train, classes, epochs, console, "teacher")
    _trained(alone, train, classes, epochs, console, "student alone")
    distiller = Distiller(teacher, student, [heat, boxes, neck], [10.0, 1.0, 2.0], student_loss_weight=0.5)
    _trained(distiller, train, classes, epochs, console, "student distilled")
    models = {"teacher": teacher, "student alone": alone, "student distilled": student}
    found = {each: detections(model, test.inputs) for each, model in models.items()}
    sizes = {each: model.count_params() for each, model in models.items()}
    entries = report.detection(found, test.labels, examples.class_names, num_parameters=sizes)
    few = np.linspace(0, len(test) - 1, 4).astype(int)
    shown = {"labels": test.labels[few], **{each: [rows[i] for i in few] for each, rows in found.items()}}
    notes = [f"{len(train)} training and {len(test)} test pictures of half the size, {epochs} epochs, one seed."]
    report.write_detection_page(
        entries, folder / "report.html", class_names=examples.class_names, notes=notes,
        figure=report.boxes_over_pictures(test.inputs[few], shown, examples.class_names),
        title=f"Distillation on {name}: who finds what",
    )  # fmt: skip
    content = {"class_names": list(examples.class_names), "entries": [dataclasses.asdict(each) for each in entries]}
    _files.put(folder / "report.json", json.dumps(content, indent=1, allow_nan=False).encode())
    student.save(folder / "student.keras")
    for entry in entries:
        ap = 100 * entry.average_precision_50
        console.print(f"{entry.name:18} {entry.num_parameters:9,} parameters  AP50 {ap:5.1f} %")
    return entries


def network(shape: tuple[int, ...], classes: int, width: int, seed: int) -> keras.Model:
    """Return a CNN with the heads "heat" (centres of each class) and "size", at a quarter of the resolution."""
    keras.utils.set_random_seed(seed)

    def block(h: Any, filters: int, stride: int = 1) -> Any:
        h = keras.layers.Conv2D(filters, 3, stride, "same", use_bias=False)(h)
        return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(h))

    image = keras.Input(shape)
    fine = block(block(block(image, width, 2), 2 * width, 2), 2 * width)
    coarse = block(block(block(fine, 4 * width, 2), 4 * width), 2 * width)
    up = keras.layers.Resizing(*fine.shape[1:3], interpolation="bilinear")(coarse)
    h = keras.layers.Conv2D(2 * width, 3, padding="same")(keras.layers.Concatenate()([fine, up]))
    neck = keras.layers.ReLU(name="neck")(h)
    rare = keras.initializers.Constant(-3.0)  # nearly all cells are empty
    heat = keras.layers.Conv2D(classes, 1, name="heat", bias_initializer=rare)(neck)
    return keras.Model(image, {"heat": heat, "size": keras.layers.Conv2D(4, 1, name="size")(neck)})


def targets(boxes: np.ndarray, height: int, width: int, classes: int) -> dict[str, np.ndarray]:
    """Return heatmaps (images, height, width, classes), and log sizes, offsets and where these are known (..., 5)."""
    heat, size = (np.zeros((len(boxes), height, width, each), "float32") for each in (classes, 5))
    rows, columns = np.mgrid[:height, :width]
    for image, slot in np.argwhere(boxes[..., 2] > boxes[..., 0]):
        left, top, right, bottom, kind = boxes[image, slot]
        w, h, x, y = (
            (right - left) * width,
            (bottom - top) * height,
            (left + right) / 2 * width,
            (top + bottom) / 2 * height,
        )
        column, row = min(int(x), width - 1), min(int(y), height - 1)
        peak = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * max(0.5, min(w, h) / 6) ** 2))
        heat[image, ..., int(kind)] = np.maximum(heat[image, ..., int(kind)], peak)
        size[image, row, column] = np.log(w), np.log(h), x - column, y - row, 1.0
    return {"heat": heat, "size": size}


def detections(model: keras.Model, images: np.ndarray, most: int = 60) -> list[np.ndarray]:
    """Return for each image (most, 6): left, top, right, bottom in fractions, class id, score, highest score first."""
    out = model.predict(images, batch_size=32, verbose=0)
    score = 1 / (1 + np.exp(-out["heat"]))
    score = np.where(score >= ops.convert_to_numpy(ops.max_pool(score, 3, 1, "same")), score, 0.0)
    height, width = score.shape[1:3]
    found = []
    for peaks, size in zip(score, np.clip(out["size"], -5, 5), strict=True):
        best = np.argsort(-peaks, axis=None, kind="stable")[:most]
        row, column, kind = np.unravel_index(best, peaks.shape)
        half_w, half_h = (np.exp(size[row, column, k]) / 2 / each for k, each in ((0, width), (1, height)))
        x, y = (column + size[row, column, 2]) / width, (row + size[row, column, 3]) / height
        found.append(np.stack([x - half_w, y - half_h, x + half_w, y + half_h, kind, peaks[row, column, kind]], axis=1))
    return found


@keras.saving.register_keras_serializable(package="keras_distill")
class _Centres(keras.losses.Loss):
    """The focal loss of a heatmap (CenterNet)."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the sum over the cells of each image, divided by the number of centres."""
        p, centre = ops.sigmoid(y_pred), ops.cast(ops.equal(y_true, 1.0), "float32")
        far = (1 - centre) * (1 - y_true) ** 4 * p**2 * ops.softplus(y_pred)
        near = centre * (1 - p) ** 2 * ops.softplus(-y_pred)
        return ops.sum(near + far, axis=(1, 2, 3)) / ops.maximum(ops.sum(centre, axis=(1, 2, 3)), 1.0)


@keras.saving.register_keras_serializable(package="keras_distill")
class _Sizes(keras.losses.Loss):
    """The mean absolute error of sizes and offsets at the centres."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the mean over the centres of each image."""
        known = y_true[..., 4]
        error = ops.sum(ops.abs(y_true[..., :4] - y_pred), axis=-1) * known
        return ops.sum(error, axis=(1, 2)) / ops.maximum(ops.sum(known, axis=(1, 2)), 1.0)


def _halved(examples: data.Examples) -> data.Examples:
    """Average each 2 x 2 pixels; the boxes are fractions and unchanged."""
    return data.Examples(ops.convert_to_numpy(ops.average_pool(examples.inputs, 2, 2)), examples.labels)


def _trained(model: Any, examples: data.Examples, classes: int, epochs: int, console: Console, name: str) -> None:
    """Train with Adam in place."""
    height, width = (-(-each // _STRIDE) for each in examples.inputs.shape[1:3])
    y = targets(examples.labels, height, width, classes)
    rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * -(-len(examples) // 8))
    model.compile(keras.optimizers.Adam(rate), {"heat": _Centres(), "size": _Sizes()}, jit_compile=False)
    with console.status(f"Training the {name}"):
        model.fit(examples.inputs, y, batch_size=8, epochs=epochs, verbose=0)
