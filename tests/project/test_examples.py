"""Every example runs, as a user runs it, in its short form."""

import re
import runpy
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[2]
# Not in the extra "test": its pins do not agree with TensorFlow's.
NEEDS = {"federated": "flwr"}
SAYS = {"serve_client": ("150 examples in 3 requests", 2)}  # by gRPC and by REST
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if '"--smoke"' in path.read_text())


def test_there_are_examples_and_each_is_short():
    assert {"annealing_kd.py", "dynamic_distillation.py"} <= {path.name for path in EXAMPLES}
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 150, path.name
        assert re.match(r'"""\S', path.read_text()), f"{path.name} says at its top what it is"


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch, capfd):
    pytest.importorskip(NEEDS.get(path.stem, "keras"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # multi_worker starts itself twice: one example that runs as a program
    monkeypatch.setattr(sys, "argv", [str(path), "--smoke"])
    monkeypatch.syspath_prepend(str(path.parent))
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, capfd.readouterr().err[-3000:]
    keras.backend.clear_session()
    printed = capfd.readouterr().out
    assert printed.strip(), "an example prints what it found"
    sentence, times = SAYS.get(path.stem, ("", 0))
    assert not times or printed.count(sentence) == times
