"""Text and figures as parts of an HTML page."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Any

from keras_distill._checks import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def escaped(text: Any) -> str:
    """Return any text escaped for HTML."""
    return html.escape(printable(text))


def figure_html(figure: Figure, label: str, caption: str) -> str:
    """Return a figure as inline SVG, labelled for screen readers."""
    with io.StringIO() as text:
        figure.savefig(text, format="svg", metadata={"Date": None})
        svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{escaped(label)}" ', 1)
    # Ids inside an SVG are global to the page, so those of different figures get different prefixes.
    mark = label.split()[0].lower()
    for before, after in (('id="', f'id="{mark}-'), ('href="#', f'href="#{mark}-'), ("url(#", f"url(#{mark}-")):
        svg = svg.replace(before, after)
    return f"<figure>\n{svg}\n<figcaption>{escaped(caption)}</figcaption>\n</figure>"
