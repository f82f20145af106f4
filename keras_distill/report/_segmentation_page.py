"""The page of a segmentation report: numbers, classes and images in one self-contained file."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_distill.report._segmentation import SegmentationReport, overlays
from keras_distill.report._short_page import picture, table_of, write_html


def write_segmentation_page(
    report: SegmentationReport,
    path: str | os.PathLike[str],
    *,
    images: Any,
    maps: Mapping[str, Any],
    ignore_label: int | None = None,
    title: str = "Segmentation",
    notes: Sequence[str] = (),
) -> pathlib.Path:
    """Write a segmentation report as one self-contained HTML page, atomically.

    Args:
        report: the result of ``segmentation``.
        path: the file; replaced if it exists.
        images: a few images to show; see ``overlays``.
        maps: their maps by name, the labels first; see ``overlays``.
        ignore_label: see ``overlays``.
        title: first line of the page.
        notes: sentences that a reader needs to judge the numbers.

    Returns:
        The path.

    Raises:
        ValueError: if the sizes of a map and its image differ, or matplotlib is missing.
        OSError: if the file cannot be written.
    """
    figure = overlays(images, maps, class_names=report.class_names, ignore_label=ignore_label)
    header = ["", "parameters", "mean IoU ↑", "Dice ↑", "pixels right ↑", "agreement ↑", "pixel ECE ↓"]
    rows = [
        [
            entry.name,
            f"{entry.num_parameters:,}",
            f"{100 * entry.mean_iou:.1f} %",
            f"{100 * entry.dice:.1f} %",
            f"{100 * entry.pixel_accuracy:.1f} %",
            "" if entry.pixel_agreement is None else f"{100 * entry.pixel_agreement:.1f} %",
            f"{entry.pixel_calibration_error:.3f}",
        ]
        for entry in report.entries
    ]
    classes = [
        [name, *(f"{100 * entry.class_iou[index]:.1f} %" for entry in report.entries)]
        for index, name in enumerate(report.class_names)
    ]
    caption = (
        "Colours lie over the pictures. In every map after the first, a pixel that differs from the labels is in full "
        "colour and one that agrees is pale; black pixels have no label."
    )
    parts = [
        "<h2>Numbers</h2>",
        table_of(header, rows),
        f"<p>Measured on {report.num_images:,} images, {report.num_pixels:,} labelled pixels.</p>",
        "<h2>What do they see?</h2>",
        picture(figure, "Maps over pictures", caption),
        "<h2>Which classes?</h2>",
        table_of(["IoU", *(entry.name for entry in report.entries)], classes),
    ]
    return write_html(path, title, notes, parts)
