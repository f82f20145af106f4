"""Keras' own distillation tests, from the installed keras, run against this package with only the imports changed."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import keras
import pytest

import keras_distill

# Tests of Keras that assert one of its errors: name to the error. None so far.
EXCEPTIONS: dict[str, str] = {}

# The only lines that are changed: where the three names come from.
IMPORT = re.compile(r"^from keras\.src\.distillation\.(?:distiller|distillation_loss) import (\w+)$", re.MULTILINE)
# The tests of keras 3.15.1, when this file was written; later versions may add tests, which must pass too.
AT_LEAST = 16


def shipped_tests() -> list[pathlib.Path]:
    folder = pathlib.Path(importlib.util.find_spec("keras").submodule_search_locations[0], "src", "distillation")
    return sorted(folder.glob("*_test.py"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Map each test name to "passed" or the failure, from a real run of pytest in a separate process."""
    sources = shipped_tests()
    if not sources:
        if keras.__version__.startswith("3.12."):
            pytest.skip(f"keras {keras.__version__} ships no tests of keras.distillation")
        pytest.fail("This keras ships no tests of keras.distillation: install one that does, such as keras 3.15.1.")
    folder = tmp_path_factory.mktemp("keras_suite")
    for source in sources:
        text, changed = IMPORT.subn(r"from keras_distill import \1", source.read_text())
        assert changed >= 2, f"{source.name} imports what it tests in another way than before"
        assert "keras.src.distillation" not in text, f"{source.name} would still test Keras' own code"
        (folder / source.name).write_text(text)
    path = [str(pathlib.Path(keras_distill.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    command += ["--junitxml=outcomes.xml", *(source.name for source in sources)]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    report = folder / "outcomes.xml"
    assert report.exists(), f"pytest did not run:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next((child for child in case if child.tag in {"failure", "error", "skipped"}), None)
        name = f"{case.get('classname')}::{case.get('name')}"
        found[name] = "passed" if problem is None else f"{problem.tag}: {problem.get('message')}\n{problem.text}"
    return found


@pytest.mark.slow
def test_every_shipped_test_was_run(outcomes):
    written = sum(len(re.findall(r"^    def test_", source.read_text(), re.MULTILINE)) for source in shipped_tests())
    assert len(outcomes) == written >= AT_LEAST


@pytest.mark.slow
def test_keras_own_tests_pass_on_ours(outcomes):
    expected = {name: name.rsplit("::", 1)[1] not in EXCEPTIONS for name in outcomes}
    wrong = {name: outcome for name, outcome in outcomes.items() if (outcome == "passed") != expected[name]}
    assert not wrong, "\n\n".join(f"{name}\n{outcome}" for name, outcome in wrong.items())
