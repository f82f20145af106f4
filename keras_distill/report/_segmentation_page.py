"""The page of a segmentation report: numbers, classes, and pictures a person can judge; one file without a network."""

from __future__ import annotations

import base64
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_distill import _files
from keras_distill.report._html import escaped
from keras_distill.report._page import _STYLE
from keras_distill.report._segmentation import SegmentationReport, overlays


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
    """Write a segmentation report as one self-contained HTML page; it appears whole or not at all.

    Args:
        report: what ``segmentation`` gave.
        path: the file; replaced if it exists.
        images: a few pictures to show; see ``overlays``.
        maps: their maps by name, the labels first; see ``overlays``.
        ignore_label: see ``overlays``.
        title: first line of the page.
        notes: sentences that a reader needs to judge the numbers.

    Returns:
        The path.

    Raises:
        ValueError: if a map has another size than its picture, or matplotlib is missing.
        OSError: if the file cannot be written.
    """
    figure = overlays(images, maps, class_names=report.class_names, ignore_label=ignore_label)
    with io.BytesIO() as stream:
        figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
        picture = base64.b64encode(stream.getvalue()).decode()
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
        f"<h1>{escaped(title)}</h1>",
        *(f"<p>{escaped(note)}</p>" for note in notes),
        "<h2>Numbers</h2>",
        _table(header, rows),
        f"<p>Measured on {report.num_images:,} images, {report.num_pixels:,} labelled pixels.</p>",
        "<h2>What do they see?</h2>",
        f'<figure>\n<img alt="Maps over pictures" style="max-width:100%" src="data:image/png;base64,{picture}">'
        f"\n<figcaption>{caption}</figcaption>\n</figure>",
        "<h2>Which classes?</h2>",
        _table(["IoU", *(entry.name for entry in report.entries)], classes),
    ]
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    path = pathlib.Path(path)
    _files.put(path, (text + "\n".join(parts) + "\n</main>\n</body>\n</html>\n").encode())
    return path


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{escaped(row[0])}</th>'
        + "".join(f"<td>{escaped(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
