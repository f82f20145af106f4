"""Shared parts of the segmentation and detection pages: a table, an image, and the file."""

from __future__ import annotations

import base64
import io
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_distill import _files
from keras_distill.report._html import escaped
from keras_distill.report._page import _STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML; the first cell of each row is its heading."""
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{escaped(row[0])}</th>'
        + "".join(f"<td>{escaped(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def picture(figure: Figure, label: str, caption: str) -> str:
    """Return a figure as an inline PNG, which is smaller than SVG for photographs."""
    with io.BytesIO() as stream:
        figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
        content = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<figure>\n<img alt="{escaped(label)}" style="max-width:100%" src="data:image/png;base64,{content}">'
        f"\n<figcaption>{escaped(caption)}</figcaption>\n</figure>"
    )


def write_html(path: str | os.PathLike[str], title: str, notes: Sequence[str], parts: Sequence[str]) -> pathlib.Path:
    """Write a page atomically: title, notes as paragraphs, then the parts."""
    above = [f"<h1>{escaped(title)}</h1>", *(f"<p>{escaped(note)}</p>" for note in notes)]
    text = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    path = pathlib.Path(path)
    _files.put(path, (text + "\n".join([*above, *parts]) + "\n</main>\n</body>\n</html>\n").encode())
    return path
