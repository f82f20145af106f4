"""Copy the cases that the tests of ensemble distillation need out of the shared golden files.

Run by hand, never by a test: python -m tests.golden.record_uncertainty ../shared/golden
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def record(source: Path) -> None:
    """Write uncertainty.json and uncertainty.npz beside this file."""
    manifest = json.loads((source / "goldens_visible.json").read_text())
    arrays = np.load(source / "goldens_visible.npz")
    cases, kept = {}, {}
    for case in manifest["cases"]:
        if not case["id"].startswith("ensemble_distribution/") or "loss" not in case["outputs"]:
            continue
        entry = {key: case[key] for key in ("algorithm", "hyper_parameters", "reduction", "quirks")}
        for side in ("inputs", "outputs"):
            entry[side] = {name: each["key"] for name, each in case[side].items()}
            kept |= {key: arrays[key] for key in entry[side].values()}
        cases[case["id"]] = entry
    (HERE / "uncertainty.json").write_text(json.dumps(cases, indent=1) + "\n")
    np.savez_compressed(HERE / "uncertainty.npz", **kept)


def load(name: str) -> tuple[dict, dict, dict]:
    """Return a recorded case's options, inputs and outputs; a missing one is an error."""
    case = json.loads((HERE / "uncertainty.json").read_text())[name]
    with np.load(HERE / "uncertainty.npz") as arrays:
        inputs, outputs = ({key: arrays[value] for key, value in case[s].items()} for s in ("inputs", "outputs"))
    return case["hyper_parameters"], inputs, outputs


if __name__ == "__main__":
    record(Path(sys.argv[1]))
