"""A detector of blood cells in two sizes: AP50 of the student alone and distilled (``examples/blood_cells.py``).

BCCD at 120 x 160 pixels, 205 training and 72 test images. The teacher is trained once; students alone and distilled
have the same weights at the start, data and epochs. The weights of the terms were set once, before any test figure.
"""

from __future__ import annotations

from benchmarks import _harness

# isort: split
import numpy as np

from examples import blood_cells
from keras_distill import data

CLAIM = "Heatmaps, boxes and normalised features of a teacher raise a small detector's AP50 by two points."


def main() -> None:
    """Train, measure and judge."""
    options = _harness.arguments(__doc__, seeds={"type": int, "default": 2}, epochs={"type": int, "default": 40})
    report = _harness.Report("detection", CLAIM, options)
    bccd = data.load("bccd")
    train, test = (blood_cells.halved(each) for each in (bccd.train, bccd.test))
    teacher, runs = None, []
    for seed in range(options.seeds if options.full else 1):
        epochs = options.epochs if options.full else 2
        run, teacher = blood_cells.run(train, test, 3, epochs=epochs, seed=seed, teacher=teacher)
        runs.append(run)
        report.add({"seed": seed}, run)
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    spread = {key: float(np.std([run[key] for run in runs])) for key in runs[0]}
    report.add({"model": "AP50", "seeds": len(runs)}, {"mean": mean, "spread": spread})
    report.verdict("points of AP50 gained over the student alone", mean["distilled"] - mean["alone"], at_least=2.0)
    report.write()


if __name__ == "__main__":
    main()
