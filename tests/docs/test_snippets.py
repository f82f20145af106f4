"""Every ```python fence of the site's pages is executed, from top to bottom in one namespace per page."""

import os
import pathlib
import re

import keras
import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"
GENERATED = {"reference", "gallery", "_build", "outputs"}
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if not GENERATED & set(path.relative_to(DOCS).parts) and "```python" in path.read_text(encoding="utf-8")
)


def snippets(path):
    """The page's code with blank lines for its prose, so that an error names the page's own line."""
    kept, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if re.match(r"\s*```", line):
            inside = line.strip() == "```python"
            kept.append("")
        else:
            kept.append(line if inside else "")
    return "\n".join(kept)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS).with_suffix("")))
def test_the_pages_code_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")]))
    keras.utils.set_random_seed(0)
    exec(compile(snippets(path), str(path), "exec"), {"__name__": path.stem})


def test_fences_that_are_not_python_are_not_run(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text\n```python\na = 1\n```\n```py\nb = 2\n```\n```python\nc = a\n```\n")
    names: dict = {}
    exec(snippets(page), names)
    assert names["c"] == 1 and "b" not in names
    assert snippets(page).splitlines()[8] == "c = a"
