"""Every example runs, as a user runs it, in its short form."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[2]
# Not in the extra "test": its pins do not agree with TensorFlow's.
NEEDS = {"federated": "flwr"}
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if '"--smoke"' in path.read_text())


def test_there_are_examples_and_each_is_short():
    assert {"annealing_kd.py", "dynamic_distillation.py"} <= {path.name for path in EXAMPLES}
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 150, path.name
        assert re.match(r'"""\S', path.read_text()), f"{path.name} says at its top what it is"


# The first starts processes of its own. The second stands for all that each is a program: TensorFlow's import takes
# longer than most of them.
IN_A_PROCESS_OF_ITS_OWN = {"multi_worker", "annealing_kd"}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch, capsys):
    pytest.importorskip(NEEDS.get(path.stem, "keras"))
    if path.stem in IN_A_PROCESS_OF_ITS_OWN:
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, path, "--smoke"]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stderr[-3000:]
        printed = run.stdout
    else:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(path), "--smoke"])
        monkeypatch.syspath_prepend(str(path.parent))
        runpy.run_path(str(path), run_name="__main__")
        keras.backend.clear_session()
        printed = capsys.readouterr().out
    assert printed.strip(), "an example prints what it found"
