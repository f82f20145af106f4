"""Copy the case of a learned temperature out of the shared golden files.

Run by hand, never by a test: python -m tests.golden.record_curriculum ../shared/golden
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CASE = "ctkd/L0/raw0.3_lam-1"


def record(source: Path) -> None:
    """Write curriculum.json and curriculum.npz beside this file."""
    manifest = json.loads((source / "goldens_visible.json").read_text())
    (case,) = [case for case in manifest["cases"] if case["id"] == CASE]
    kept = ("id", "algorithm", "source", "hyper_parameters", "tolerance", "gradient_tolerance")
    (HERE / "curriculum.json").write_text(json.dumps({key: case[key] for key in kept}, indent=1) + "\n")
    with np.load(source / "goldens_visible.npz") as arrays:
        sides = {**case["inputs"], **case["outputs"]}
        np.savez_compressed(HERE / "curriculum.npz", **{name: arrays[each["key"]] for name, each in sides.items()})


def load() -> tuple[dict, dict]:
    """Return the case's metadata and its arrays by name."""
    with np.load(HERE / "curriculum.npz") as arrays:
        return json.loads((HERE / "curriculum.json").read_text()), dict(arrays)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
