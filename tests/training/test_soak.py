"""A short form of ``benchmarks/soak.py``: memory stays, nothing is traced again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_thousands_of_steps_trace_once_and_leave_memory_as_it_was(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.soak", "--steps", "8000", "--out", str(tmp_path)]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    epochs = [each for each in json.loads((tmp_path / "soak.json").read_text())["results"] if "traces" in each]
    assert len(epochs) == 8
    assert epochs[-1]["traces"] == epochs[0]["traces"] > 0
    assert epochs[-1]["bytes"] <= 1.02 * epochs[1]["bytes"]
