"""Evaluation of segmentation models on the same images, and their maps drawn over the images."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_distill import _files
from keras_distill._checks import error, integer, nearest
from keras_distill.data import Data, Examples
from keras_distill.heads import final_activation
from keras_distill.metrics import ExpectedCalibrationError
from keras_distill.report._figures import _panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OWNER = "report.segmentation"


@dataclasses.dataclass(frozen=True)
class SegmentationEntry:
    """Measurements of one model over all labelled pixels.

    Args:
        name: the user's name for the model.
        mean_iou: intersection over union, mean over the classes that occur in labels or answers, 0 to 1.
        class_iou: IoU of each class; NaN for a class that does not occur.
        dice: 2 * intersection / (labels + answers) per class, mean over the same classes.
        pixel_accuracy: fraction of correct pixels.
        pixel_agreement: fraction of pixels with the reference's answer; None for the reference itself.
        pixel_calibration_error: expected calibration error over pixels, 0 to 1.
        num_parameters: number of parameters.
    """

    name: str
    mean_iou: float
    class_iou: tuple[float, ...]
    dice: float
    pixel_accuracy: float
    pixel_agreement: float | None
    pixel_calibration_error: float
    num_parameters: int


@dataclasses.dataclass(frozen=True)
class SegmentationReport:
    """Result of ``segmentation``.

    Args:
        entries: one per model.
        class_names: in order of the class ids.
        num_images: number of images.
        num_pixels: number of labelled pixels, without void.
    """

    entries: tuple[SegmentationEntry, ...]
    class_names: tuple[str, ...]
    num_images: int
    num_pixels: int

    def __getitem__(self, name: str) -> SegmentationEntry:
        """Return the entry of a model by name."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        known = [entry.name for entry in self.entries]
        raise error("SegmentationReport", f"the name of a model (nearest: {nearest(name, known)})", repr(name))

    def to_json(self) -> str:
        """Return the report as JSON text; NaN becomes null."""
        return json.dumps(_without_nan(dataclasses.asdict(self)), indent=1, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Write ``to_json()`` to a file, atomically.

        Args:
            path: path of the file.

        Returns:
            The path.
        """
        path = pathlib.Path(path)
        _files.put(path, self.to_json().encode())
        return path


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def segmentation(
    models: Mapping[str, keras.Model],
    data: Any,
    *,
    reference: str | None = None,
    class_names: Sequence[str] | None = None,
    ignore_label: int | None = None,
    from_logits: bool = True,
    num_bins: int = 15,
    batch_size: int = 16,
) -> SegmentationReport:
    """Evaluate segmentation models: mean IoU, agreement with the teacher, calibration per pixel.

    Outputs coarser than the labels are resized to their size bilinearly before the decision.

    Args:
        models: by name; outputs (batch, height, width, classes).
        data: ``Examples``, ``Data`` (its test split) or a pair (images, maps of class ids).
        reference: name of the teacher, with whose answers the others' are compared.
        class_names: by default those of ``Data``, otherwise the class ids.
        ignore_label: the label of void pixels, which never count.
        from_logits: whether the models output logits (the default) or probabilities.
        num_bins: >= 1, bins of confidence.
        batch_size: >= 1; memory grows with it, not with the number of images.

    Returns:
        The frozen report; ``overlays`` draws the maps.

    Raises:
        ValueError: if an output is not a map, labels are out of range or all void, or an argument does not fit.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((1, 2, 2)), keras.layers.Activation("linear")])
        >>> images = np.array([[[[9.0, 0.0], [9.0, 0.0]]]])  # both pixels are answered as class 0
        >>> segmentation({"identity": model}, (images, np.array([[[0, 1]]])))["identity"].mean_iou  # 1/2 and 0
        0.25
    """
    integer(_OWNER, "num_bins", num_bins, low=1)
    integer(_OWNER, "batch_size", batch_size, low=1)
    if not isinstance(models, Mapping) or not models:
        raise error(_OWNER, "models by name", type(models).__name__)
    if reference is not None and reference not in models:
        raise error(_OWNER, f"reference to be one of the models (nearest: {nearest(reference, models)})", reference)
    for name, model in models.items():
        if from_logits and "softmax" in final_activation(model):
            raise error(_OWNER, f"{name!r} to give logits", "a model that ends in softmax", "Pass from_logits=False")
    names = data.class_names if isinstance(data, Data) and class_names is None else class_names
    data = data.test if isinstance(data, Data) else data
    images, labels = (data.inputs, data.labels) if isinstance(data, Examples) else data
    labels = np.asarray(labels)
    if labels.ndim != 3 or not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images):
        raise error(_OWNER, "a map of class ids (height, width) for each image", f"{labels.dtype} of {labels.shape}")
    counts = {name: np.zeros((0, 0), "int64") for name in models}
    same, total = dict.fromkeys(models, 0), 0
    calibration = {name: ExpectedCalibrationError(num_bins=num_bins, from_logits=from_logits) for name in models}
    for start in range(0, len(images), batch_size):
        truth = labels[start : start + batch_size]
        kept = np.ones(truth.shape, bool) if ignore_label is None else truth != ignore_label
        outputs = {n: _outputs(n, m, images[start : start + batch_size], truth.shape) for n, m in models.items()}
        answers = {name: each.argmax(-1)[kept] for name, each in outputs.items()}
        right, total = truth[kept], total + int(kept.sum())
        for name, each in outputs.items():
            classes = each.shape[-1]
            if right.size and not 0 <= right.min() <= right.max() < classes:
                advice = "Give ignore_label for void pixels"
                raise error(_OWNER, f"labels in 0..{classes - 1}", f"{right.min()}..{right.max()}", advice)
            table = np.bincount(right.astype("int64") * classes + answers[name], minlength=classes**2)
            counts[name] = counts[name] + table.reshape(classes, classes) if counts[name].size else table.reshape(
                classes, classes
            )  # fmt: skip
            if right.size:
                calibration[name].update_state(right, each[kept])
            if reference is not None:
                same[name] += int((answers[name] == answers[reference]).sum())
    if not total:
        raise error(_OWNER, "at least one labelled pixel", "only void" if len(images) else "no images")
    entries = []
    for name, table in counts.items():
        hits, either = np.diag(table), table.sum(0) + table.sum(1)
        seen = either > 0
        iou = np.where(seen, hits / np.maximum(either - hits, 1), np.nan)
        entries.append(
            SegmentationEntry(
                name=name,
                mean_iou=float(iou[seen].mean()),
                class_iou=tuple(float(each) for each in iou),
                dice=float((2 * hits[seen] / either[seen]).mean()),
                pixel_accuracy=float(hits.sum() / total),
                pixel_agreement=None if reference in (None, name) else same[name] / total,
                pixel_calibration_error=float(calibration[name].result()),
                num_parameters=int(models[name].count_params()),
            )
        )
    names = names or [str(index) for index in range(len(entries[0].class_iou))]
    return SegmentationReport(tuple(entries), tuple(map(str, names)), len(images), total)


def _outputs(name: str, model: keras.Model, images: Any, shape: tuple[int, ...]) -> np.ndarray:
    outputs = model.predict_on_batch(images)
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 4 or outputs.shape[-1] < 2:
        got = f"{getattr(outputs, 'shape', type(outputs).__name__)}"
        raise error(_OWNER, f"one output (batch, height, width, classes) from {name!r}", got)
    if outputs.shape[1:3] != shape[1:]:
        outputs = np.asarray(keras.ops.image.resize(outputs, shape[1:], interpolation="bilinear"))
    return outputs


def overlays(
    images: Any,
    maps: Mapping[str, Any],
    *,
    class_names: Sequence[str] | None = None,
    ignore_label: int | None = None,
    strength: float = 0.55,
) -> Figure:
    """Draw maps of classes over their images, one row per image: labels, teacher and student side by side.

    Args:
        images: (images, height, width, 1 or 3), 0..1.
        maps: by name, (images, height, width) class ids; the others are compared with the first: a pixel that differs
            is drawn in full colour, one that agrees is pale.
        class_names: for the legend; None shows the ids.
        ignore_label: the label of void pixels, which are drawn black.
        strength: 0 to 1, opacity of the colours over the image.

    Returns:
        The figure.

    Raises:
        ValueError: if there is nothing to draw, a map has another size, or matplotlib is missing.

    Example:
        >>> import numpy as np
        >>> figure = overlays(np.zeros((1, 2, 2, 3)), {"labels": np.array([[[0, 1], [1, 0]]])})
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['image', 'labels']
    """
    images = np.asarray(images, "float32")
    images = np.repeat(images, 3, -1) if images.shape[-1] == 1 else images
    maps = {name: np.asarray(each) for name, each in maps.items()}
    for name, each in maps.items():
        if each.shape != images.shape[:3]:
            raise error("report.overlays", f"maps of shape {images.shape[:3]}", f"{each.shape} of {name!r}")
    rows = len(images)
    shape = images.shape[1] / images.shape[2]
    figure, grid = _panels(
        "overlays",
        (len(maps) + 1) * bool(rows),
        rows=rows,
        width=2.6,
        height=2.6 * shape * rows + 0.7,
        ratios=(1,) * rows,
    )
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    ids = sorted({int(each) for array in maps.values() for each in np.unique(array)} - {ignore_label})
    colors = colormaps["tab20"](np.arange(20))[:, :3]
    first = np.asarray(next(iter(maps.values()))) if maps else np.zeros(images.shape[:3], int)
    for row in range(rows):
        for column, (name, array) in enumerate([("image", None), *maps.items()]):
            axes = grid[row][column]
            picture: Any = images[row]
            if array is not None:
                share = np.where(array[row] == first[row], strength, 0.5 + strength / 2)[..., None]
                share = np.full_like(share, strength) if column == 1 else share
                picture = (1 - share) * picture + share * colors[array[row] % len(colors)]
                if ignore_label is not None:
                    void = (first[row] == ignore_label)[..., None]
                    picture = np.where(void, 0.0, picture)
            axes.imshow(np.clip(picture, 0, 1), interpolation="nearest")
            axes.set(xticks=[], yticks=[], title=plain(name) if row == 0 else "")
    names = [] if class_names is None else [plain(each) for each in class_names]
    handles = [
        Patch(color=colors[index % len(colors)], label=names[index] if 0 <= index < len(names) else str(index))
        for index in ids
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, max(1, len(handles))), fontsize=9)
    return figure
