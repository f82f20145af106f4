"""Evaluation of detectors on the same images by COCO's evaluator, and their boxes drawn over the images."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._checks import error, optional
from keras_distill.report._figures import _panels, plain
from keras_distill.report._short_page import picture, table_of, write_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OWNER = "report.detection"


@dataclasses.dataclass(frozen=True)
class DetectionEntry:
    """Measurements of one detector.

    Args:
        name: the user's name for the model.
        average_precision: mean over overlaps from 0.5 to 0.95 (COCO's AP), 0 to 1.
        average_precision_50: AP at an overlap of 0.5 (AP50), mean over the classes with boxes.
        class_average_precision_50: AP50 of each class; None for a class without boxes.
        num_parameters: number of parameters; None if not given.
    """

    name: str
    average_precision: float
    average_precision_50: float
    class_average_precision_50: tuple[float | None, ...]
    num_parameters: int | None


def detection(
    found: Mapping[str, Sequence[Any]],
    boxes: Any,
    class_names: Sequence[str],
    *,
    num_parameters: Mapping[str, int] | None = None,
) -> tuple[DetectionEntry, ...]:
    """Measure detections against labelled boxes, by pycocotools (average precision, AP and AP50).

    Args:
        found: by model name, for each image an array (detections, 6): left, top, right, bottom, class id, score, in the
            same unit as the labels.
        boxes: (images, boxes, 5): left, top, right, bottom, class id; a box without area is padding.
        class_names: in order of the class ids.
        num_parameters: number of parameters by model name.

    Returns:
        One entry for each model.

    Raises:
        ValueError: if the shapes do not fit, a class id is unknown, or pycocotools is missing.

    Example:
        >>> import numpy as np
        >>> boxes = np.array([[[0.0, 0.0, 0.5, 0.5, 0]]])
        >>> right, wrong = [[0.0, 0.0, 0.5, 0.5, 0, 0.9]], [[0.5, 0.5, 1.0, 1.0, 0, 0.9]]
        >>> [round(each.average_precision_50, 6) for each in detection({"a": [right], "b": [wrong]}, boxes, ["cell"])]
        [1.0, 0.0]
    """
    boxes, classes = np.asarray(boxes, "float64"), len(class_names)
    if boxes.ndim != 3 or boxes.shape[-1] != 5:
        raise error(_OWNER, "boxes of shape (images, boxes, 5)", str(boxes.shape))
    real = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    ids = boxes[real][:, 4]
    _check_ids(ids, classes, "")
    truth = [
        {"id": number + 1, "image_id": int(image), "iscrowd": 0, **_box(boxes[image, slot])}
        for number, (image, slot) in enumerate(np.argwhere(real))
    ]
    entries = []
    for name, each in found.items():
        if len(each) != len(boxes):
            raise error(_OWNER, f"detections of {len(boxes)} images", f"{len(each)} of {name!r}")
        rows = []
        for image, detected in enumerate(each):
            detected = np.asarray(detected, "float64").reshape(-1, 6)
            if not np.isfinite(detected).all():
                raise error(_OWNER, "finite boxes and scores", f"NaN or infinity of {name!r} in image {image}")
            _check_ids(detected[:, 4], classes, f" of {name!r} in image {image}")
            rows += [{"image_id": image, "score": float(row[5]), **_box(row)} for row in detected]
        whole, half = _evaluated(truth, rows, len(boxes), classes)
        counted = [value for value in half if value is not None]
        entries.append(
            DetectionEntry(
                name=name,
                average_precision=whole,
                average_precision_50=float(np.mean(counted)) if counted else 0.0,
                class_average_precision_50=tuple(half),
                num_parameters=(num_parameters or {}).get(name),
            )
        )
    return tuple(entries)


def _check_ids(ids: np.ndarray, classes: int, where: str) -> None:
    unknown = (ids < 0) | (ids >= classes)
    if unknown.any():
        raise error(_OWNER, f"class ids from 0 to {classes - 1}", f"{ids[unknown][0]:g}{where}")


def _box(row: np.ndarray) -> dict[str, Any]:
    left, top, right, bottom, kind = (float(each) for each in row[:5])
    width, height = right - left, bottom - top
    return {"category_id": int(kind), "bbox": [left, top, width, height], "area": width * height}


def _evaluated(truth: list, rows: list, images: int, classes: int) -> tuple[float, list[float | None]]:
    """Return AP, and AP50 of each class (None without boxes)."""
    with optional(_OWNER, "pycocotools", "detection"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    if not truth or not rows:
        kinds = {each["category_id"] for each in truth}
        return 0.0, [0.0 if kind in kinds else None for kind in range(classes)]
    categories = [{"id": kind} for kind in range(classes)]
    coco = COCO()
    coco.dataset = {"images": [{"id": i} for i in range(images)], "annotations": truth, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(rows), "bbox")
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][..., 0, -1]  # (overlaps, recalls, classes): all areas, 100 detections
    known = precision > -1
    half = [float(precision[0, :, k].mean()) if known[0, :, k].all() else None for k in range(classes)]
    return float(precision[known].mean()) if known.any() else 0.0, half


def boxes_over_pictures(
    images: Any, boxes: Mapping[str, Sequence[Any]], class_names: Sequence[str], least_score: float = 0.3
) -> Figure:
    """Draw boxes over their images, one row per image: labels, teacher and students side by side.

    Args:
        images: (images, height, width, 1 or 3), 0..1.
        boxes: by name, for each image an array (boxes, 5) or (detections, 6) in fractions of the image; see
            ``detection``.
        class_names: in order of the class ids.
        least_score: 0 to 1; detections with a lower score are not drawn.

    Returns:
        The figure.

    Raises:
        ValueError: if there is nothing to draw, or matplotlib is missing.

    Example:
        >>> import numpy as np
        >>> figure = boxes_over_pictures(np.zeros((1, 8, 8, 3)), {"labels": [[[0.1, 0.1, 0.9, 0.9, 0]]]}, ["cell"])
        >>> [axes.get_title() for axes in figure.axes]
        ['labels']
    """
    images = np.asarray(images, "float32")
    height, width = images.shape[1:3]
    figure, grid = _panels(
        "boxes_over_pictures", len(boxes) * bool(len(images)), rows=max(1, len(images)), width=2.9,
        height=2.9 * height / width * len(images) + 0.7, ratios=(1,) * max(1, len(images)),
    )  # fmt: skip
    from matplotlib import colormaps
    from matplotlib.patches import Patch, Rectangle

    colors = colormaps["tab10"](np.arange(10))
    for row, image in enumerate(images):
        for column, (name, found) in enumerate(boxes.items()):
            axes = grid[row][column]
            axes.imshow(np.clip(image, 0, 1), cmap="gray", interpolation="nearest")
            axes.set(xticks=[], yticks=[], title=plain(name) if row == 0 else "")
            for box in np.asarray(found[row], "float64"):
                if box[2] <= box[0] or (len(box) > 5 and box[5] < least_score):
                    continue
                place, color = (box[0] * width, box[1] * height), colors[int(box[4]) % len(colors)]
                size = ((box[2] - box[0]) * width, (box[3] - box[1]) * height)
                axes.add_patch(Rectangle(place, *size, fill=False, edgecolor=color, linewidth=1.2))
    handles = [Patch(color=colors[i % len(colors)], label=plain(name)) for i, name in enumerate(class_names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=7)
    return figure


def write_detection_page(
    entries: Sequence[DetectionEntry],
    path: str | os.PathLike[str],
    *,
    figure: Figure,
    class_names: Sequence[str],
    title: str = "Detection",
    notes: Sequence[str] = (),
) -> pathlib.Path:
    """Write the results of ``detection`` as one self-contained HTML page, atomically.

    Args:
        entries: one per model.
        path: the file; replaced if it exists.
        figure: the figure of ``boxes_over_pictures``.
        class_names: in order of the class ids.
        title: first line of the page.
        notes: sentences that a reader needs to judge the numbers.

    Returns:
        The path.

    Raises:
        OSError: if the file cannot be written.
    """

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f} %"

    numbers = [
        [
            each.name,
            "" if each.num_parameters is None else f"{each.num_parameters:,}",
            percent(each.average_precision_50),
            percent(each.average_precision),
        ]
        for each in entries
    ]
    classes = [
        [name, *(percent(each.class_average_precision_50[index]) for each in entries)]
        for index, name in enumerate(class_names)
    ]
    caption = "The labels first. Boxes are drawn from a score of 0.3 on; the numbers count all of them."
    parts = [
        "<h2>Numbers</h2>",
        table_of(["", "parameters", "AP50 ↑", "AP ↑"], numbers),
        "<h2>What do they find?</h2>",
        picture(figure, "Boxes over pictures", caption),
        "<h2>Which classes?</h2>",
        table_of(["AP50", *(each.name for each in entries)], classes),
    ]
    return write_html(path, title, notes, parts)
