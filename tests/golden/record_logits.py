"""Copy the cases that the tests of the losses on logits need out of the shared golden files.

Run by hand, never by a test: python -m tests.golden.record_logits ../shared/golden
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FAMILIES = ("logits", "logits_extreme")
# Losses that the package does not have: logits compared over a batch or with a part of the classes, skewed divergences;
# and the learned temperature, which is a term.
LEFT_OUT = ("mlkd_", "partial_softmax", "skewed_", "ctkd")


def record(source: Path) -> None:
    """Write logits.json and logits.npz beside this file."""
    manifest = json.loads((source / "goldens_visible.json").read_text())
    arrays = np.load(source / "goldens_visible.npz")
    cases, kept = {}, {}
    for case in manifest["cases"]:
        if case["family"] not in FAMILIES or any(word in case["id"] for word in LEFT_OUT):
            continue
        entry = {key: case.get(key, {}) for key in ("algorithm", "hyper_parameters", "reduction")}
        for side in ("inputs", "outputs"):
            names = {name: v["key"] for name, v in case[side].items() if f"{name}_nhwc" not in case[side]}
            entry[side] = {name.removesuffix("_nhwc"): key for name, key in names.items()}
            kept |= {key: arrays[key] for key in names.values()}
        cases[case["id"]] = entry
    (HERE / "logits.json").write_text(json.dumps(cases, indent=1) + "\n")
    np.savez_compressed(HERE / "logits.npz", **kept)


class Case:
    """One recorded case: its arrays by name; a missing case or name is an error."""

    _manifest = None

    def __init__(self, name: str) -> None:
        self.name, entry = name, self.all()[name]
        self.algorithm, self.options = entry["algorithm"], entry["hyper_parameters"]
        with np.load(HERE / "logits.npz") as arrays:
            self.inputs = {key: arrays[value] for key, value in entry["inputs"].items()}
            self.outputs = {key: arrays[value] for key, value in entry["outputs"].items()}

    @classmethod
    def all(cls) -> dict:
        """Every recorded case by name."""
        if cls._manifest is None:
            cls._manifest = json.loads((HERE / "logits.json").read_text())
        return cls._manifest


if __name__ == "__main__":
    record(Path(sys.argv[1]))
