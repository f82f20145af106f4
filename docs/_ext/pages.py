"""The generated pages: reference, gallery and papers, made from the package and the examples at build time."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pathlib
import re
from typing import Any

import docstrings
import public
from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

DOCS = pathlib.Path(__file__).resolve().parents[1]
ROOT = DOCS.parent


def write(path: pathlib.Path, text: str) -> pathlib.Path:
    """Write a page only if it changed, so that a second build reads nothing twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return path


def _page(entry: public.Entry) -> str:
    """Return the reference page of one name."""
    kind = "autofunction"
    if inspect.isclass(entry.thing):
        kind = "autoexception" if issubclass(entry.thing, BaseException) else "autoclass"
    elif not inspect.isroutine(entry.thing):
        kind = "autodata"
    package, _, room = entry.room.partition(".")
    import_line = f"from {package} import {room or entry.name}"
    lines = [entry.name, "=" * len(entry.name), "", ".. code-block:: python", "", f"    {import_line}", ""]
    arguments = "(message)" if kind == "autoexception" else ""  # an exception written in C has no signature to read
    lines += [f".. {kind}:: {entry.path}{arguments}", *(["    :members:"] if kind == "autoclass" else []), ""]
    if entry.aliases:
        lines += ["Also reached as " + ", ".join(f"``{alias}``" for alias in entry.aliases) + ".", ""]
    return "\n".join(lines)


def _room_page(room: str, members: list[public.Entry]) -> str:
    """Return a module's page: its purpose, and its names with their first sentences."""
    name = public.short(room)
    about = docstrings.as_rst((inspect.getdoc(importlib.import_module(room)) or "").splitlines())
    lines = [name, "=" * len(name), "", *about, "", ".. list-table::", "    :widths: 35 65", "    :class: names", ""]
    for entry in members:
        lines += [
            f"    * - :doc:`{entry.name} </{entry.page}>`",
            f"      - {docstrings.plain(entry.summary) or 'a constant'}",
        ]
    lines += ["", ".. toctree::", "    :hidden:", ""]
    lines += [f"    {entry.name} </{entry.page}>" for entry in members]
    return "\n".join(lines) + "\n"


def reference(target: pathlib.Path) -> list[pathlib.Path]:
    """Write a page for each public name, one for each module and the index; remove pages of removed names."""
    by_room: dict[str, list[public.Entry]] = {}
    for entry in public.entries():
        by_room.setdefault(entry.room, []).append(entry)
    made = [write(target / f"{entry.page}.rst", _page(entry)) for members in by_room.values() for entry in members]
    lines = ["Reference", "=========", "", "Every public name has one page, made from its docstring.", ""]
    lines += [".. list-table::", "    :widths: 20 80", ""]
    for room, members in by_room.items():
        name = public.short(room)
        made.append(write(target / f"reference/{name}/index.rst", _room_page(room, members)))
        first = (inspect.getdoc(importlib.import_module(room)) or "").partition("\n")[0]
        lines += [f"    * - :doc:`{name} </reference/{name}/index>`", f"      - {docstrings.plain(first)}"]
    lines += ["", ".. toctree::", "    :hidden:", ""]
    lines += [f"    {public.short(room)} </reference/{public.short(room)}/index>" for room in by_room]
    made.append(write(target / "reference/index.rst", "\n".join(lines) + "\n"))
    return _only(target / "reference", made)


def _only(folder: pathlib.Path, made: list[pathlib.Path]) -> list[pathlib.Path]:
    """Remove generated pages that were not made this time."""
    for path in [*folder.rglob("*.rst"), *folder.rglob("*.md")]:
        if path not in made:
            path.unlink()
    return made


def _markdown(text: str) -> str:
    """Return a script's docstring as Markdown: indented blocks are code, the rest is text."""
    parts = []
    for block in re.split(r"\n\s*\n", text):
        if all(line.startswith("    ") for line in block.splitlines()):
            code = inspect.cleandoc(block.replace("\n", "\n"))
            if parts and parts[-1].endswith("\n```") and parts[-1].startswith("```text"):
                parts[-1] = parts[-1].removesuffix("\n```") + f"\n\n{code}\n```"
            else:
                parts.append(f"```text\n{code}\n```")
            continue
        pieces = re.split(r"(``.+?``|`[^`]+`)", block, flags=re.DOTALL)
        escaped = [piece if n % 2 else re.sub(r"([*_<>$#\[\]|~])", r"\\\1", piece) for n, piece in enumerate(pieces)]
        loose = "".join(escaped)
        lines = loose.splitlines()
        if any(line.startswith("    ") for line in lines):  # a text with an indented continuation
            loose = "\n".join(line.strip() for line in lines)
        parts.append(re.sub(r"::$", ":", loose))
    return "\n\n".join(parts)


def gallery(target: pathlib.Path) -> list[pathlib.Path]:
    """Write a page for each example: what its docstring says, its recorded output, its code."""
    made, cards = [], []
    for script in sorted((ROOT / "examples").glob("*.py")):
        text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or script.stem
        title, _, rest = text.partition("\n")
        lines = [f"# {script.stem.replace('_', ' ')}", "", _markdown(title), "", _markdown(rest.strip()), ""]
        output = DOCS / "outputs" / f"{script.stem}.txt"
        if output.is_file():
            lines += ["## Output", "", f"```text\n{output.read_text(encoding='utf-8').rstrip()}\n```", ""]
        lines += ["## Code", "", f"`examples/{script.name}`", "", f"```{{literalinclude}} ../../examples/{script.name}"]
        lines += [":language: python", "```", ""]
        made.append(write(target / f"gallery/{script.stem}.md", "\n".join(lines)))
        cards.append(f"- [{script.stem.replace('_', ' ')}]({script.stem}.md): {_markdown(title)}")
    intro = "Each example is one idea in one file that runs; `--smoke` runs it in under a minute."
    names = "\n".join(script.stem for script in made)
    index = f"# Gallery\n\n{intro}\n\n" + "\n".join(cards) + f"\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    made.append(write(target / "gallery/index.md", index))
    return _only(target / "gallery", made)


def script(name: str) -> Any:
    """Return a file of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def papers(target: pathlib.Path) -> pathlib.Path:
    """Write the table of papers, with a field that filters it."""
    text = (
        "# Papers\n\nWhich paper has which name here. The formula's code is that of the project's algorithm notes; "
        "the formula itself stands on the name's page.\n\n"
        '<label class="paper-search">Filter: <input id="paper-search" type="search" '
        'placeholder="author, year, method"></label>\n\n'
        f"{script('papers').table()}\n"
    )
    return write(target / "papers.md", text)


class LinkNames(SphinxPostTransform):
    """Turn `losses.SoftTargets` in any text into a link to its page."""

    default_priority = 200

    def run(self, **_: Any) -> None:
        """Wrap each literal that is a public name, except on the name's own page and in headings."""
        targets = self.app.config.keras_distill_links
        for text in [text for text in self.document.findall(nodes.Text) if text == " -- "]:
            text.parent.replace(text, nodes.Text(" – "))  # what Sphinx writes between an argument and its text
        for literal in list(self.document.findall(nodes.literal)):
            page, anchor = targets.get(literal.astext().removesuffix("()"), (None, None))
            inside = literal.parent
            while inside is not None and not isinstance(inside, (nodes.reference, nodes.title)):
                inside = inside.parent
            if page is None or page == self.env.docname or inside is not None:
                continue
            link = make_refnode(self.app.builder, self.env.docname, page, anchor, literal.deepcopy(), anchor)
            literal.replace_self(link)


def generate(app: Any) -> None:
    """Write everything into the sources, where .gitignore leaves it out."""
    source = pathlib.Path(app.srcdir)
    reference(source)
    gallery(source)
    papers(source)


def skip_member(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of a named tuple: its docstring lists them."""
    return True if (getattr(thing, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_config_value("keras_distill_links", public.links(), "")
    app.connect("builder-inited", generate)
    app.connect("autodoc-process-docstring", docstrings.process_docstring, priority=100)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("autodoc-process-signature", docstrings.process_signature)
    app.add_post_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
