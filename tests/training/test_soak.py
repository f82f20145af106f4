"""A short form of ``benchmarks/soak.py``: constant memory, no retracing."""

import json

import pytest

from tests.processes import Child


@pytest.mark.slow
def test_thousands_of_steps_trace_once_and_do_not_grow_memory(tmp_path):
    run = Child("from benchmarks import soak; soak.main()", "--steps", 4000, "--out", tmp_path)
    assert run.wait() == 0, run.read()[-2000:]
    epochs = [each for each in json.loads((tmp_path / "soak.json").read_text())["results"] if "traces" in each]
    assert len(epochs) == 4
    assert epochs[-1]["traces"] == epochs[0]["traces"] > 0
    assert epochs[-1]["bytes"] <= 1.02 * epochs[1]["bytes"]
