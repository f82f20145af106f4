"""Copy the cases that the tests of logit losses need out of the shared golden files.

Run by hand, never by a test: python -m tests.golden.record_logits ../shared/golden
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ALGORITHMS = (
    "kd_kl",
    "dkd",
    "nkd",
    "dist",
    "dist_dense_prediction",
    "kd_kl_dense_prediction",
    "generalized_jsd",
    "generalized_jsd_masked",
    "reverse_kl",
    "forward_kl",
    "tv_distance",
    "logit_standardization_kd",
    "logit_standardization_dkd",
    "logits_mse",
    "multilabel_sigmoid_kd",
)


def record(source: Path) -> None:
    """Write logits.json and logits.npz beside this file."""
    manifest = json.loads((source / "goldens_visible.json").read_text())
    arrays = np.load(source / "goldens_visible.npz")
    cases, kept = {}, {}
    for case in manifest["cases"]:
        if case["algorithm"] not in ALGORITHMS:
            continue
        entry = {key: case.get(key, {}) for key in ("algorithm", "hyper_parameters", "reduction", "quirks")}
        for side in ("inputs", "outputs"):
            entry[side] = {name: value["key"] for name, value in case[side].items()}
            kept |= {key: arrays[key] for key in entry[side].values()}
        cases[case["id"]] = entry
    (HERE / "logits.json").write_text(json.dumps(cases, indent=1) + "\n")
    np.savez_compressed(HERE / "logits.npz", **kept)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
