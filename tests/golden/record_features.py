"""Copy the cases that the tests of feature, relation and attention losses need out of the shared golden files.

Run by hand, never by a test: python -m tests.golden.record_features ../shared/golden
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
FAMILIES = ("features", "transformers")
# Losses that the package does not have.
LEFT_OUT = (
    "hkd_prob_loss",
    "textbrewer_mmd",
    "textbrewer_att_ce",
    "kdsvd_mdistiller",
    "ickd",
    "att_mse_loss/501/nomask",
)
LAYOUTS = ("_nhwc", "_hwio", "_hwoi", "_io")  # channels-last twins of an array


def record(source: Path) -> None:
    """Write features.json and features.npz beside this file."""
    manifest = json.loads((source / "goldens_visible.json").read_text())
    arrays = np.load(source / "goldens_visible.npz")
    cases, kept = {}, {}
    for case in manifest["cases"]:
        if case["family"] not in FAMILIES or any(word in case["id"] for word in LEFT_OUT):
            continue
        entry = {key: case.get(key, {}) for key in ("algorithm", "hyper_parameters", "tolerance", "variants")}
        for side in ("inputs", "outputs"):
            names = {
                name: value["key"]
                for name, value in case[side].items()
                if not any(name + layout in case[side] for layout in LAYOUTS)
            }
            entry[side] = names
            kept |= {key: arrays[key] for key in names.values()}
        cases[case["id"]] = entry
    (HERE / "features.json").write_text(json.dumps(cases, indent=1) + "\n")
    np.savez_compressed(HERE / "features.npz", **kept)


class Case:
    """One recorded case: its arrays by name, without the suffix of the layout; a missing case or name is an error."""

    _manifest = None

    def __init__(self, name: str) -> None:
        if Case._manifest is None:
            Case._manifest = json.loads((HERE / "features.json").read_text())
        self.name, entry = name, Case._manifest[name]
        with np.load(HERE / "features.npz") as arrays:
            self.inputs = {_short(key): arrays[value] for key, value in entry["inputs"].items()}
            self.outputs = {_short(key): arrays[value] for key, value in entry["outputs"].items()}
        self.variants = entry["variants"]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.inputs[name] if name in self.inputs else self.outputs[name]

    def check(self, function, *names, value="loss", gradients=None):
        """Compare function(*inputs) and its gradients with what is recorded, to 1e-6 of the larger of it and 1.

        A gradient must also be right to 1e-5 of its largest entry. ``gradients`` names the inputs whose gradient counts
        (default: all that have one on record).
        """
        tensors = [tf.convert_to_tensor(self.inputs[name]) for name in names]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            got = tf.reduce_mean(function(*tensors))
        expected = float(self.outputs[value])
        assert abs(float(got) - expected) <= 1e-6 * max(1.0, abs(expected)), (float(got), expected)
        found = dict(zip(names, tape.gradient(got, tensors), strict=True))
        recorded = [name for name in names if f"grad_{name}" in self.outputs] if gradients is None else gradients
        for name in recorded:
            wanted = self.outputs[f"grad_{name}"]
            error, top = np.abs(found[name].numpy() - wanted).max(), np.abs(wanted).max()
            assert error <= min(1e-6 * max(1.0, top), 1e-5 * top), (name, error, top)
        return recorded


def _short(name: str) -> str:
    for layout in LAYOUTS:
        name = name.removesuffix(layout)
    return name


if __name__ == "__main__":
    record(Path(sys.argv[1]))
