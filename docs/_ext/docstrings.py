"""Convert our docstrings to reStructuredText: text is escaped, formulas and doctests are kept."""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.util.inspect import stringify_signature

LITERAL = re.compile(r"``.+?``|`[^`\s][^`]*`", re.DOTALL)
SECTION = re.compile(r"^(Formula|Returns|Yields|Reference|References)\s*:\s*(.*)$")
ANY_SECTION = re.compile(r"^[A-Z][A-Za-z ]+:(?:\s|$)")


def plain(text: str) -> str:
    """Escape characters that reStructuredText would treat as markup, outside of ``literals``."""

    def escaped(part: str) -> str:
        part = re.sub(r"([*|\\])", r"\\\1", part)
        part = part.replace("`", r"\`")
        return re.sub(r"_(?!\w)", r"\\_", part)

    pieces, end = [], 0
    for found in LITERAL.finditer(text):
        pieces += [escaped(text[end : found.start()]), f"``{found.group().strip('`')}``"]
        end = found.end()
        if end < len(text) and (text[end].isalnum() or text[end] == "_"):
            pieces.append("\\ ")
    return "".join([*pieces, escaped(text[end:])])


def indent(line: str) -> int:
    """Return the indentation of a line."""
    return len(line) - len(line.lstrip())


def _block(lines: list[str], start: int) -> tuple[list[str], int]:
    """Return the indented lines after a section's heading and the number of the first line behind them."""
    end = start
    while end < len(lines) and (not lines[end].strip() or indent(lines[end]) > 0):
        end += 1
    return lines[start:end], end


def _paragraph(lines: list[str], start: int) -> tuple[list[str], int]:
    """Return the lines up to the next blank line or section."""
    end = start
    while end < len(lines) and lines[end].strip() and not ANY_SECTION.match(lines[end]):
        end += 1
    return lines[start:end], end


def _body(lines: list[str]) -> list[str]:
    """Escape a text; doctests and blocks after ``::`` are literal; a change of indent gets its blank line."""
    made: list[str] = []
    position = 0
    while position < len(lines):
        line = lines[position]
        if line.lstrip().startswith(">>>"):
            depth = indent(line)
            if made and made[-1].strip():
                made.append("")
            made += [" " * depth + ".. code-block:: pycon", ""]
            while position < len(lines) and lines[position].strip():
                made.append("    " + lines[position])
                position += 1
            made.append("")
            continue
        made.append(plain(line))
        position += 1
        if line.rstrip().endswith("::"):
            depth = indent(line)
            if position < len(lines) and lines[position].strip():
                made.append("")
            while position < len(lines) and (not lines[position].strip() or indent(lines[position]) > depth):
                made.append(lines[position])
                position += 1
    return made


def _lists_apart(lines: list[str]) -> list[str]:
    """Put a blank line before the first item of a list and after the last, as reStructuredText requires."""
    made: list[str] = []
    for line in lines:
        item = bool(re.match(r"\s*[-] \S", line))
        before = made[-1] if made else ""
        was_item = bool(re.match(r"\s*[-] \S", before))
        if item and before.strip() and not was_item and indent(before) <= indent(line) and before.rstrip()[-1] in ":.":
            made.append("")
        made.append(line)
    return made


def as_rst(lines: list[str]) -> list[str]:
    """Return a docstring ready for napoleon."""
    made: list[str] = []
    position = 0
    while position < len(lines):
        found = SECTION.match(lines[position])
        if not found:
            part, end = [lines[position]], position + 1
            while end < len(lines) and not SECTION.match(lines[end]):
                part.append(lines[end])
                end += 1
            made += _lists_apart(_body(part))
            position = end
            continue
        title, first = found.groups()
        rest, position = _paragraph(lines, position + 1) if first else _block(lines, position + 1)
        text = inspect.cleandoc("\n".join([first, *rest] if first else ["", *rest])).splitlines()
        if title == "Formula":
            made += ["", ".. rubric:: Formula", "", ".. code-block:: text", "    :class: formula", ""]
            made += [f"    {line}".rstrip() for line in text] + [""]
        elif title.startswith("Reference"):
            made += ["", ".. rubric:: Reference", "", *_lists_apart(_body(text)), ""]
        else:
            body = _lists_apart(_body(text))
            made += [
                "",
                f":{title.lower()}: {body[0] if body else ''}",
                *(f"    {line}".rstrip() for line in body[1:]),
                "",
            ]
    return made


def process_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Sphinx' hook: runs before napoleon."""
    lines[:] = as_rst(list(lines))


def process_signature(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Sphinx' hook: a class shows its ``__init__`` (Keras' ``__new__`` takes anything); ``Any`` says nothing."""
    if what not in ("class", "function", "method"):
        return None
    try:
        found = inspect.signature(thing.__init__ if inspect.isclass(thing) else thing)
    except (TypeError, ValueError):
        return None
    parameters = list(found.parameters.values())
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    kept = [p.replace(annotation=p.empty) if p.annotation in ("Any", Any) else p for p in parameters]
    empty = inspect.Signature.empty
    result = empty if inspect.isclass(thing) or found.return_annotation in ("Any", Any) else found.return_annotation
    text = stringify_signature(inspect.Signature(kept, return_annotation=result), unqualified_typehints=True)
    arguments, _, after = text.partition(" -> ") if result is not empty else (text, "", "")
    return arguments, after or None
