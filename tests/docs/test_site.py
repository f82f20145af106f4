"""The site's generated pages: one for every public name, docstrings as text, working links."""

import importlib.util
import inspect
import pathlib
import re
import sys

import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"
pytest.importorskip("sphinx", reason="needs the extra docs")


@pytest.fixture(scope="module")
def site():
    """The modules of docs/_ext."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        import check_site
        import docstrings
        import pages
        import public

        yield {"check_site": check_site, "docstrings": docstrings, "pages": pages, "public": public}
    finally:
        sys.path.remove(str(DOCS / "_ext"))


def test_every_public_name_is_on_exactly_one_page(site, tmp_path):
    made = site["pages"].reference(tmp_path)
    documented: list[str] = []
    for page in made:
        found = re.findall(r"^\.\. auto\w+:: ([\w.]+)", page.read_text(), re.MULTILINE)
        assert len(found) == (0 if page.name == "index.rst" else 1), page
        documented += found
    assert len(set(documented)) == len(documented)
    things = [
        eval(path.rpartition(".")[2], vars(importlib.import_module(path.rpartition(".")[0]))) for path in documented
    ]
    shown = {id(thing) for thing in things}
    for room in site["public"].rooms():
        module = importlib.import_module(room)
        for name in module.__all__:
            thing = getattr(module, name)
            assert inspect.ismodule(thing) or id(thing) in shown, f"{room}.{name} has no page"
    assert len(made) == len({str(page).lower() for page in made}), "two pages differ in case only"


def test_every_guide_has_a_picture_and_is_in_the_list():
    listed = (DOCS / "guides" / "index.md").read_text(encoding="utf-8")
    for page in sorted((DOCS / "guides").glob("*.md")):
        if page.stem == "index":
            continue
        text = page.read_text(encoding="utf-8")
        pictures = re.findall(r"^!\[(.+?)\]\((\S+?)\)$", text, re.MULTILINE)
        assert pictures, f"{page.name} has no picture"
        assert all((page.parent / target).is_file() for _, target in pictures), page.name
        assert f"({page.name})" in listed and f"\n{page.stem}\n" in listed, page.name


def test_the_page_of_a_removed_name_is_deleted(site, tmp_path):
    gone = tmp_path / "reference" / "losses" / "no_such_loss.rst"
    gone.parent.mkdir(parents=True)
    gone.write_text("old")
    site["pages"].reference(tmp_path)
    assert not gone.exists() and (gone.parent / "soft_targets.rst").is_file()


def test_characters_of_markup_in_a_docstring_stay_text(site):
    from docutils.core import publish_doctree

    text = """Sum of a*b over |x| and foo_ (KD).

Formula: t**2 * sum_k p_k * q_k,
    where k counts.

Args:
    x: > 0, a `name` or ``literal_`` of *args*.

Returns:
    (...,), float32: a * b.

Example:
    >>> 2 * 3
    6
"""
    rst = site["docstrings"].as_rst(text.splitlines())
    tree = publish_doctree("\n".join(rst), settings_overrides={"report_level": 2, "halt_level": 2})
    shown = tree.astext()
    for kept in ("a*b over |x| and foo_ (KD)", "t**2 * sum_k p_k * q_k,\nwhere k counts.", "*args*", "a * b."):
        assert kept in shown
    assert any(line == "    .. code-block:: pycon" for line in rst)
    assert any(line.startswith(":returns: (...,), float32: a") for line in rst)


def test_every_example_has_a_page_with_its_code(site, tmp_path):
    pages = {page.stem: page.read_text() for page in site["pages"].gallery(tmp_path)}
    scripts = {path.stem for path in (DOCS.parent / "examples").glob("*.py")}
    assert set(pages) == scripts | {"index"}
    for name in scripts:
        assert f"literalinclude}} ../../examples/{name}.py" in pages[name] and f"({name}.md)" in pages["index"]


def test_broken_links_and_images_without_alternative_text_are_found(site, tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">1</a><a href="b.html#gone">2</a><img src="a.html">')
    (tmp_path / "b.html").write_text('<h1 id="there">x</h1><a href="c.html">3</a><a href="https://x.example">4</a>')
    assert site["check_site"].faults(tmp_path) == [
        "a.html: b.html#gone has no such anchor.",
        "a.html: the picture a.html has no alt text.",
        "b.html: c.html does not exist.",
    ]


def test_the_list_of_extras_names_every_requirement_with_its_reason():
    spec = importlib.util.spec_from_file_location("extras", DOCS / "extras.py")
    extras = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extras)
    rows = dict(re.findall(r"^\| (`\w+`|none) \| (.*) \|$", (DOCS / "start" / "extras.md").read_text(), re.MULTILINE))
    for extra, needed in extras.requirements().items():
        assert not extra or extra in extras.REASONS, f"say in docs/extras.py why {extra} is there, and run it"
        shown = rows[f"`{extra}`" if extra else "none"]
        assert not extra or extras.REASONS[extra] in shown
        for requirement in needed:
            inner = re.search(r"keras-distill\[(.*)\]", requirement)
            assert (inner.group(1).split(",")[-1] if inner else f"`{extras.name_of(requirement)}`") in shown, extra
