"""Names may be hostile: on every page they stay text, and a report is validated when it is read."""

import html.parser
import json
import re

import keras
import numpy as np
import pytest

from keras_distill import export, report
from keras_distill._checks import printable
from keras_distill.metrics import reliability_bins

NAMES = [
    r"$\undefinedcmd$",
    "$x^{",
    "100 $ or 200 $",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "right\u202eleft",
    "null\0bell\a",
    "half \ud800 a pair",
    "line\nbreak",
    "\ufffe",
]


def made(name):
    score = report.Score((0.5, 0.25))
    entry = report.Entry(
        name, score, score, score, score, None, 3, 100, 0.1, 4, reliability_bins([0, 1], [[0.5, 0.5], [0.4, 0.6]]),
        np.array([[1, 1], [0, 2]]), np.array([[0.5, 1.0], [0.0, 0.25]]),
    )  # fmt: skip
    other = report.Entry(**{**vars(entry), "name": "other", "agreement": report.Score((0.5,))})
    return report.Report(
        title=name, entries=(entry, other), reference=name, class_names=(name, "b"), num_examples=4, notes=(name,),
        settings={name: name}, environment={}, histories={name: [{name: [1.0, 0.5]}]},
    )  # fmt: skip


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def tags(text):
    parser = Tags()
    parser.feed(text)
    return parser.found


@pytest.fixture(scope="module")
def plain_tags(tmp_path_factory):
    """Tags of a page without hostile text, without the parts of figures, where letters are drawn as glyphs."""
    page = report.write_page(made("plain"), tmp_path_factory.mktemp("page") / "page.html").read_text("utf-8")
    return set(tags(page))


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_is_text_on_the_page_in_the_figures_and_in_the_card(name, tmp_path, plain_tags):
    page = report.write_page(made(name), tmp_path / "page.html").read_text("utf-8")
    assert set(tags(page)) <= plain_tags
    assert not re.search("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", page)
    shown = str(made(name))
    assert shown.encode() and not re.search("[\0-\x08\u202a-\u202e\ud800-\udfff]", shown)
    again = report.Report.from_json(made(name).save(tmp_path / "report.json").read_text("utf-8"))
    assert again.title == name and again.class_names == (name, "b")


def test_a_dollar_sign_is_not_taken_for_math_text():
    figure = report.training_curves({"a $ b $": [{"$loss$": [1.0]}]})
    figure.canvas.draw()
    assert figure.axes[0].get_title() == r"\$loss\$"


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_the_card_holds_names_as_text(name, tmp_path):
    from keras_distill.export import _card

    content = {
        "student": {"name": name, "num_parameters": 3, "fingerprint": "f" * 64,
                    "inputs": {name: {"shape": [None, 2], "dtype": "float32"}},
                    "outputs": {name: {"task": "classification", "from_logits": True, "temperature": 1.0,
                                       "labels": [name, "# b", "c](javascript:alert(1))", "`d`", "e|f"]}}},
        "metrics": {name: 0.5}, "exports": {}, "training": {name: name}, "notes": name,
        "command": "```\npython train.py",
        "libraries": {"keras": "3"},
    }  # fmt: skip
    page = _card._page(content)
    assert page.encode()
    assert "<" not in page and "](" not in page
    assert not re.search("[\0-\x08\u202a-\u202e\ud800-\udfff\ufffe]", page)
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert len(headings) == 6 and sum(line.startswith("```") for line in page.splitlines()) == 3
    (row,) = [line for line in page.splitlines() if line.startswith("| ") and line.endswith(" 0.5 |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_an_export_with_hostile_labels_writes_a_harmless_card(tmp_path):
    student = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)], name="s")
    with pytest.raises(ValueError, match="expected labels that UTF-8 can hold"):
        export.saved_model(student, tmp_path, labels=["half \ud800", "b"])
    path = export.saved_model(student, tmp_path, labels=["<script>alert(1)</script>", "b\n# heading"]).path
    page = (path / "MODEL_CARD.md").read_text("utf-8")
    assert "<script>" not in page and "\n# heading" not in page


def test_printable_keeps_characters_that_non_latin_scripts_need():
    for text in ("naïve café", "日本語", "👩‍💻", "فارسی‌ها", "a\tb\nc", "±≤→"):
        assert printable(text) == text
    assert printable("a\u202eb\0\ud800\ufeff\u2028") == r"a\u202eb\u0000\ud800\ufeff\u2028"


def changed(**parts):
    return lambda fields: fields.update(parts)


def entry(**parts):
    return lambda fields: fields["entries"][0].update(parts)


WRONG = [
    ("no object", "[]", "its parts"),
    ("no JSON", "{", "JSONDecodeError"),
    ("deep", "[" * 100_000, "RecursionError"),
    ("title", changed(title=3), "title"),
    ("entries", changed(entries=[]), "entries"),
    ("entry", changed(entries=[3]), "an entry's parts"),
    ("another part", changed(more=1), "a part of another name"),
    ("class names", changed(class_names=[1, 2]), "class_names"),
    ("notes", changed(notes="text"), "notes"),
    ("reference", changed(reference="nobody"), "reference"),
    ("count", changed(num_examples=-1), "num_examples"),
    ("histories", changed(histories={"a": [{"loss": ["x"]}]}), "histories"),
    ("score", entry(accuracy={"values": []}), "accuracy"),
    ("score of text", entry(accuracy={"values": ["x"]}), "accuracy"),
    ("confusion", entry(confusion=[[1, 2]]), "confusion"),
    ("confusion of floats", entry(confusion=[[1, 2], [0.5, 1]]), "confusion"),
    ("bins", entry(reliability={"edges": [0, 1], "weight": [1, 2], "confidence": [], "accuracy": []}), "reliability"),
    ("curve", entry(risk_coverage=[[1.0], []]), "risk_coverage"),
    ("milliseconds", entry(milliseconds_per_example="fast"), "milliseconds_per_example"),
]


@pytest.mark.parametrize(("change", "part"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_an_invalid_report_raises_a_clear_error(change, part):
    text = change
    if callable(change):
        fields = json.loads(made("plain").to_json())
        change(fields)
        text = json.dumps(fields)
    message = rf"Report\.from_json: expected the text that Report\.to_json wrote, got {part}"
    with pytest.raises(ValueError, match=message):
        report.Report.from_json(text)


def test_a_report_prints_as_a_table_and_saves_by_its_ending(tmp_path):
    shown = str(made("student"))
    assert len(shown) < 1200
    assert shown.splitlines()[0] == "student" and shown.splitlines()[-1] == "Measured on 4 examples."
    assert re.search(r"^accuracy, % ↑ +37\.50 ± 17\.68 +37\.50 ± 17\.68$", shown, re.MULTILINE)
    assert "<table>" in made("student")._repr_html_()
    assert made("student").save(tmp_path / "r.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"Report\.save: expected the ending of path to be one of '\.json', '\.html'"):
        made("student").save(tmp_path / "r.pdf")
