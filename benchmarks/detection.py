"""A detector of blood cells: AP50 of the student alone and distilled (``examples/blood_cells.py``).

BCCD at 120 x 160 pixels, 205 training and 72 test images. The teacher is trained once; students alone and distilled
have the same initial weights, data and epochs. The weights of the terms were set once, before any test result. Runs are
kept, so that an interrupted benchmark resumes: ``python -m benchmarks.detection --full --seeds 3``.
"""

from __future__ import annotations

from benchmarks import _harness, _resume

# isort: split
import keras
import numpy as np

from examples import blood_cells
from keras_distill import data

CLAIM = "Heatmaps, boxes and normalised features of a teacher raise a small detector's AP50 by two points."
TEACHER, STUDENT = 32, 6  # channels of the first layer


def main() -> None:
    """Train and evaluate."""
    options = _harness.arguments(__doc__, seeds={"type": int, "default": 2}, epochs={"type": int, "default": 40})
    report = _harness.Report("detection", CLAIM, options)
    bccd = data.load("bccd")
    train, test = (blood_cells.halved(each) for each in (bccd.train, bccd.test))
    epochs = options.epochs if options.full else 2
    name = f"detection_{epochs}_epochs.runs.json"
    kept = _resume.Runs(options.out / name)

    def made(width: int, seed: int) -> keras.Model:
        return blood_cells.detector(train.inputs.shape[1:], 3, width, seed)

    teacher = kept.model("teacher", made(TEACHER, 100), lambda model: blood_cells.fit(model, train, 3, epochs))
    heard = kept("teacher", lambda: blood_cells.average_precision(teacher, test, 3))

    def student(taught: bool, seed: int) -> float:
        model = made(STUDENT, seed)
        blood_cells.fit(blood_cells.distiller(teacher, model) if taught else model, train, 3, epochs)
        return blood_cells.average_precision(model, test, 3)

    runs = []
    for seed in range(options.seeds if options.full else 1):
        run = {"teacher": heard}
        for way in ("alone", "distilled"):
            run[way] = kept(f"{way} {seed}", lambda way=way, seed=seed: student(way == "distilled", seed))
        runs.append(run)
        report.add({"seed": seed}, run)
    parameters = {"teacher": teacher.count_params(), "student": made(STUDENT, 0).count_params()}
    report.add({"model": "parameters"}, parameters)
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    spread = {key: float(np.std([run[key] for run in runs])) for key in runs[0]}
    report.add({"model": "AP50", "seeds": len(runs)}, {"mean": mean, "spread": spread})
    report.verdict("points of AP50 gained over the student alone", mean["distilled"] - mean["alone"], at_least=2.0)
    report.write()


if __name__ == "__main__":
    main()
