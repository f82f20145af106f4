"""Copy the cases that the metrics and calibration tests need out of the shared golden files.

Run by hand, never by a test: python -m tests.golden.record_metrics ../shared/golden
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ALGORITHMS = (
    "ece",
    "adaptive_ece",
    "classwise_ece",
    "binary_ece",
    "brier",
    "nll_from_probabilities",
    "binary_brier_nll",
    "aurc",
    "temperature_scaling",
    "temperature_scaling_degenerate",
    "ensemble_uncertainty",
    "dirichlet_uncertainty",
)
LARGE = ("n5000",)  # adds nothing that n100 does not test, at ten times the size


def record(source: Path) -> None:
    """Write metrics.json and metrics.npz beside this file."""
    manifest = json.loads((source / "goldens_visible.json").read_text())
    arrays = np.load(source / "goldens_visible.npz")
    cases, kept = [], {}
    for case in manifest["cases"]:
        if case["algorithm"] not in ALGORITHMS or any(word in case["id"] for word in LARGE):
            continue
        entry = {key: case.get(key, {}) for key in ("id", "algorithm", "hyper_parameters", "tolerance", "variants")}
        for side in ("inputs", "outputs"):
            entry[side] = {name: value["key"] for name, value in case[side].items()}
            kept |= {key: arrays[key] for key in entry[side].values()}
        cases.append(entry)
    (HERE / "metrics.json").write_text(json.dumps(cases, indent=1) + "\n")
    np.savez_compressed(HERE / "metrics.npz", **kept)


def load(algorithm: str) -> dict:
    """Return the recorded cases of one algorithm by id, arrays in place of keys; a missing algorithm is an error."""
    with np.load(HERE / "metrics.npz") as arrays:
        cases = [case for case in json.loads((HERE / "metrics.json").read_text()) if case["algorithm"] == algorithm]
        if not cases:
            raise KeyError(algorithm)
        for case in cases:
            for side in ("inputs", "outputs"):
                case[side] = {name: arrays[key] for name, key in case[side].items()}
    return {case["id"]: case for case in cases}


if __name__ == "__main__":
    record(Path(sys.argv[1]))
