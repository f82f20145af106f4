"""Street scenes and nuclei with a U-Net of a sixteenth of the parameters: mean IoU and Dice, alone and distilled.

CamVid at 90 x 120 pixels with 11 classes, void left out, 367 training and 233 test images; or, with ``--data nuclei``,
nuclei under a microscope at 128 x 128 pixels (Data Science Bowl 2018), nucleus or background, evaluated by Dice. Models
and training are those of ``examples/street_scenes.py``. The teacher is trained once; students alone and distilled share
initial weights, views and epochs. ``--held-out`` evaluates on the validation images, to choose settings. Runs are kept,
so that an interrupted benchmark resumes: ``python -m benchmarks.segmentation --full --seeds 3``.
"""

from __future__ import annotations

from benchmarks import _harness, _resume

# isort: split
import keras
import numpy as np

from examples import street_scenes
from keras_distill import data, report

CLAIM = "Maps and channel distributions of a teacher raise a small U-Net's mean IoU by two points."
TEACHER, STUDENT = 32, 8  # channels of the first layer
MEASURE = {"camvid": ("mean_iou", "mean IoU"), "nuclei": ("dice", "Dice")}


def main() -> None:
    """Train and evaluate."""
    options = _harness.arguments(
        __doc__,
        seeds={"type": int, "default": 2},
        epochs={"type": int, "default": 24},
        data={"choices": list(MEASURE), "default": "camvid"},
        held_out={"action": "store_true"},
    )
    nuclei = options.data == "nuclei"
    name = "segmentation" + "_nuclei" * nuclei
    kept = _harness.Report(name, CLAIM, options)
    loaded = data.load(options.data)
    train = street_scenes.halved(loaded.train)
    test = street_scenes.halved(loaded.validation if options.held_out else loaded.test)
    if not options.full:
        train, test = train.take(16), test.take(16)
    key, words = MEASURE[options.data]
    epochs = options.epochs if options.full else 1
    found = _resume.Runs(options.out / f"{name}_{epochs}_epochs{'_held_out' * options.held_out}.runs.json")

    def made(width: int, seed: int) -> keras.Model:
        return street_scenes.unet(train.inputs.shape[1:], 2 if nuclei else 11, width, seed)

    teacher = found.model("teacher", made(TEACHER, 100), lambda model: street_scenes.fit(model, train, epochs))

    def measured(model: keras.Model) -> dict[str, float]:
        models = {"teacher": teacher, "student": model}
        entry = report.segmentation(models, (test.inputs, test.labels), reference="teacher", ignore_label=11)["student"]
        return {
            "mean_iou": 100 * entry.mean_iou,
            "dice": 100 * entry.dice,
            "pixel_ece": entry.pixel_calibration_error,
            "agreement": entry.pixel_agreement,
            "parameters": entry.num_parameters,
        }

    def student(taught: bool, seed: int) -> dict[str, float]:
        model = made(STUDENT, seed)
        street_scenes.fit(street_scenes.distiller(teacher, model) if taught else model, train, epochs, seed)
        return measured(model)

    heard, runs = found("teacher", lambda: measured(teacher)), []
    kept.add({"model": "teacher"}, heard)
    for seed in range(options.seeds if options.full else 1):
        run = {"teacher": heard[key]}
        for way in ("alone", "distilled"):
            each = found(f"{way} {seed}", lambda way=way, seed=seed: student(way == "distilled", seed))
            kept.add({"seed": seed, "way": way}, each)
            run[way] = each[key]
        runs.append(run)
    mean = {way: float(np.mean([run[way] for run in runs])) for way in runs[0]}
    spread = {way: float(np.std([run[way] for run in runs])) for way in runs[0]}
    kept.add({"model": words, "seeds": len(runs)}, {"mean": mean, "spread": spread})
    gain = mean["distilled"] - mean["alone"]
    kept.verdict(f"points of {words} gained over the student alone", gain, at_least=2.0)
    gap = mean["teacher"] - mean["alone"]
    if gap > 0:
        kept.verdict("share of the gap to the teacher that is closed, %", 100 * gain / gap, at_least=40.0)
    else:
        kept.verdict("points that the teacher leads over the student alone", gap, at_least=0.0)
    kept.write()


if __name__ == "__main__":
    main()
