"""The README is right: its example runs, the new import is enough to migrate, its tables match code and records."""

import importlib.util
import inspect
import json
import os
import pathlib
import re

import keras
import numpy as np
import pytest

import keras_distill
from keras_distill import data, losses, report

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def script(name):
    """A file of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAPERS = script("papers").table().splitlines()


def test_the_example_trains_and_saves_a_student_that_has_learned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(SNIPPETS[0], {})
    student = keras.models.load_model("student.keras")
    test = data.load("digits").test
    accuracy = np.mean(student.predict(test.inputs, verbose=0).argmax(-1) == test.labels)
    assert accuracy > 0.9
    printed = float(re.search(r"'accuracy': ([\d.]+)", capsys.readouterr().out).group(1))
    assert printed == pytest.approx(accuracy, abs=1e-6)


def test_the_example_is_short():
    lines = [line for line in SNIPPETS[0].splitlines() if line.strip()]
    assert len(lines) <= 18


def test_the_one_line_of_the_migration_imports_what_keras_has():
    line = SNIPPETS[1].strip()
    assert "\n" not in line
    ours: dict = {}
    exec(line, ours)
    for name in ("Distiller", "FeatureDistillation", "LogitsDistillation"):
        theirs = inspect.signature(getattr(keras.distillation, name).__init__).parameters
        mine = inspect.signature(ours[name].__init__).parameters
        assert set(theirs) <= set(mine), name
        for argument, parameter in theirs.items():
            if parameter.default is not inspect.Parameter.empty and argument != "name":
                assert mine[argument].default == parameter.default, (name, argument)


def test_every_other_snippet_is_run_by_a_test_above():
    assert len(SNIPPETS) == 2


def test_it_is_one_page():
    assert len(README.splitlines()) <= 150


def recorded(name):
    """The results of a benchmark."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["results"]


def test_its_step_times_are_the_recorded_ones():
    rows = [row for row in recorded("step_time") if row.get("steps_per_execution") == 1 and "ours_over_builtin" in row]
    steps = {(row["model"], row["terms"], row["xla"]): f"{row['ours_over_builtin'][0]:.2f}" for row in rows}
    for xla, label in ((False, "named layer | "), (True, "with XLA | ")):
        logits, layer = (
            ", ".join(steps[model, terms, xla] for model in ("mlp large", "cnn"))
            for terms in ("logits", "logits and layer")
        )
        assert f"{label}{logits}; {layer} |" in README


def test_its_uncertainties_are_the_recorded_ones():
    rows = {row["model"]: row for row in recorded("uncertainty_fashion_mnist") if "mean" in row}
    eces = [
        f"{100 * rows[model]['mean']['ece']:.1f} ± {100 * rows[model]['spread']['ece']:.1f} %"
        for model in ("from over-confident", "from calibrated")
    ]
    assert f"| {'; '.join(eces)} |" in README
    aurocs = [f"{rows[model]['mean']['auroc_kmnist_test']:.2f}" for model in ("ensemble", "Proxy")]
    assert f"| {', '.join(aurocs)} |" in README


def test_its_epochs_and_latencies_are_the_recorded_ones():
    epochs = {
        row["program"]: row["seconds"]
        for row in recorded("stored_teacher")
        if row["what"] == "epoch" and row["pair"] == "wide student" and row["clock"] == "wall"
    }
    assert f"| {epochs['student']:.2f} s, {epochs['stored']:.2f} s, {epochs['live']:.1f} s |" in README
    rows = [row for row in recorded("serving") if row["data"] == "fashion_mnist"]
    served = {row["runtime"]: f"{row['latency_ms']['1']['median']:.2f}" for row in rows}
    named = ("Keras", "SavedModel, C API", "LiteRT float32", "ONNX Runtime")
    assert f"| {', '.join(served[name] for name in named)} ms |" in README


def compares(name):
    """Whether a public name of ``losses`` is a loss: it has a student argument, or is a class other than the bases."""
    thing = getattr(losses, name)
    if inspect.isclass(thing):
        return name not in ("LogitsLoss", "FeatureLoss", "WhereLabelled")  # base classes, and a wrapper without a paper
    return any(argument.startswith("student_") for argument in inspect.signature(thing).parameters)


@pytest.mark.parametrize("name", sorted(filter(compares, losses.__all__)))
def test_every_public_loss_is_in_the_table_with_its_paper_and_formula(name):
    (row,) = [row for row in PAPERS if f"`losses.{name}`" in row or (row[:1] == "|" and f" · `{name}` |" in row)]
    paper, _, _, formula = (cell.strip() for cell in row.strip("|").split(" | "))
    assert re.search(r"(19|20)\d\d", paper), f"{name}: no year in the paper"
    assert re.fullmatch(r"[A-I]\d+|–", formula), f"{name}: add its formula to docs/papers.py"


def test_the_demos_table_is_that_of_the_recorded_run():
    demo = script("demo")
    recorded = report.Report.from_json(demo.RECORD.read_text(encoding="utf-8"))
    shown = README.split(demo.START)[1].split(demo.END)[0]
    assert shown == demo.text(recorded), "run: make demo && .venv/bin/python docs/demo.py"
    assert recorded["student distilled"].accuracy.mean > recorded["student alone"].accuracy.mean
    assert len(recorded["student alone"].accuracy.values) >= 3


def test_the_recorded_run_is_of_the_data_this_version_loads():
    recorded = report.Report.from_json(script("demo").RECORD.read_text(encoding="utf-8"))
    assert data.load("digits").fingerprint[:16] in recorded.settings["data"]


def test_every_local_file_and_module_it_names_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    table = README.split("## What each module contains")[1].split("## Licence")[0]
    rows = re.findall(r"^\| `([^|]*?)` \|", table, re.MULTILINE)
    assert len(rows) > 5
    for row in rows:
        for name in row.split("`, `"):
            assert hasattr(keras_distill, name) or importlib.util.find_spec(f"keras_distill.{name}"), name


def test_all_errors_of_the_built_in_are_listed():
    design = ROOT.parent / "shared" / "DESIGN.md"
    page = (ROOT / "docs" / "start" / "from_keras_distillation.md").read_text(encoding="utf-8")
    rows = [row for row in page.split("| `keras.distillation` | `keras_distill` |")[1].splitlines() if row[:2] == "| "]
    assert len(rows) == 14
    if os.path.exists(design):
        wanted = design.read_text().split("| built-in behaviour | ours |")[1].split("\n\n")[0].splitlines()
        assert len(rows) == len([row for row in wanted if row.startswith("| ")])
