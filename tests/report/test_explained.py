"""The report's section on how the explanations of teacher and students agree."""

import json
import re

import keras
import numpy as np
import pytest

from keras_distill import explain, report, students

RNG = np.random.default_rng(0)


def dense(shape, classes=3):
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(classes)])


def tree(shape):
    made = students.SoftDecisionTree(2, 3)
    made(np.ones((2, *shape), "float32"), training=True)
    return made


@pytest.fixture(scope="module")
def images():
    x, y = RNG.normal(size=(60, 6, 6, 1)).astype("float32"), RNG.integers(3, size=60)
    models = {"teacher": [dense((6, 6, 1)), dense((6, 6, 1))], "small <b>": dense((6, 6, 1)), "tree": tree((6, 6, 1))}
    return report.evaluate(models, (x, y), reference="teacher", explain=True, class_names=["a", "b", "c"]), models, x, y


def test_the_values_equal_those_of_explain(images):
    found, models, x, y = images
    assert [each.name for each in found.explanations] == ["small <b>", "tree"]
    own = explain.agreement(*models["teacher"][:1], models["small <b>"], x, ceiling=models["teacher"][1], labels=y)
    for name, each in own.measures.items():
        got = found.explanations[0].measures[name]
        assert got == pytest.approx((each.student, each.error or got[1], each.floor, each.ceiling), nan_ok=True)
    assert set(own.measures) == {"answers", "errors", "spearman", "top_overlap", "ssim"}


def test_examples_are_selected_by_fixed_rules(images):
    found, models, x, _ = images
    shown = found.explanations[0].examples
    rules = [each.rule for each in shown]
    assert rules[:2] == ["most agreed", "most opposed"] and rules.count("first of its class") == 3
    alike = explain.spearman(
        *(
            explain.attributions(m, x, target=np.asarray(models["teacher"][0](x)).argmax(-1))
            for m in (models["teacher"][0], models["small <b>"])
        )
    )
    assert [shown[0].similarity, shown[1].similarity] == pytest.approx([alike.max(), alike.min()])
    assert {each.label for each in shown} == {0, 1, 2}
    path = found.explanations[1].examples[0].path
    assert path[0].startswith("node 0: ") and path[-1].startswith("leaf ")


def test_it_is_in_the_json_and_on_the_page(images, tmp_path):
    found = images[0]
    again = report.Report.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    page = report.write_page(again, tmp_path / "page.html").read_text()
    assert "What did small &lt;b&gt; learn of the teacher’s reasons?" in page and "small <b>" not in page
    assert "Most agreed: true" in page and "The upper 2 levels of the soft decision tree" in page
    labels = re.findall(r'role="img" aria-label="([^"]+)"', page)
    assert len(labels) == len(set(labels)) and all(len(label) > 8 for label in labels)  # every image has a text
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(name=3), "an explanation's name"),
        (lambda e: e["measures"].update(x=["<script>", 0, 0, 0]), "measures"),
        (lambda e: e["examples"][0].update(values=[[1, 2], [3]]), "an example's values"),
        (lambda e: e["examples"][0].update(label=7), "an example's label"),
        (lambda e: e["examples"][0].update(teacher_map=[[1.0]]), "an example's maps"),
        (lambda e: e["tree"].update(distributions=[[1.0, 0.0]]), "tree's distributions"),
        (lambda e: e.update(more=1), "an explanation's parts"),
    ],
)
def test_invalid_explanations_in_a_report_are_refused(images, change, message):
    fields = json.loads(images[0].to_json())
    change(fields["explanations"][1])
    with pytest.raises(ValueError, match=message):
        report.Report.from_json(json.dumps(fields))


def test_a_table_is_explained_by_rules_and_needs_a_reference(tmp_path):
    x = RNG.normal(size=(200, 4)).astype("float32")
    y = (x[:, 0] > 0).astype(int)
    models = {"teacher": dense((4,), 2), "student": dense((4,), 2)}
    found = report.evaluate(models, (x, y), reference="teacher", explain=True)
    only = found.explanations[0]
    assert (
        sum(share for _, _, share in only.rules) == pytest.approx(1.0)
        and "answer as the student does" in only.rules_note
    )
    page = report.write_page(found, tmp_path / "page.html").read_text()
    assert "Its answers as rules" in page and "not measured" in page
    with pytest.raises(ValueError, match=r"report.evaluate: expected a reference and at least one student.*reference="):
        report.evaluate(models, (x, y), explain=True)
