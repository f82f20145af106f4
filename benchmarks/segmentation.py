"""Street scenes (CamVid) by a U-Net of a sixteenth of the parameters: mean IoU alone and distilled.

CamVid at 90 x 120 pixels with 11 classes, void left out, 367 training and 233 test images. Models and training
are those of ``examples/street_scenes.py``. The teacher is trained once; students alone and distilled share initial
weights, views and epochs. ``--held-out`` measures on the validation images, to choose settings.
"""

from __future__ import annotations

from benchmarks import _harness

# isort: split
import numpy as np

from examples import street_scenes
from keras_distill import data, report

CLAIM = "Maps and channel distributions of a teacher raise a small U-Net's mean IoU by two points."


def main() -> None:
    """Train, measure and judge."""
    options = _harness.arguments(
        __doc__,
        seeds={"type": int, "default": 2},
        epochs={"type": int, "default": 24},
        held_out={"action": "store_true"},
    )
    kept = _harness.Report("segmentation", CLAIM, options)
    camvid = data.load("camvid")
    train = street_scenes.halved(camvid.train)
    test = street_scenes.halved(camvid.validation if options.held_out else camvid.test)
    teacher, runs = None, []
    for seed in range(options.seeds if options.full else 1):
        epochs = options.epochs if options.full else 1
        models = street_scenes.run(train, test, 11, (32, 8), epochs, seed, teacher)
        teacher = models["teacher"]
        found = report.segmentation(models, (test.inputs, test.labels), reference="teacher", ignore_label=11)
        run = {name: 100 * found[name].mean_iou for name in models}
        more = {f"{name} ECE": found[name].pixel_calibration_error for name in models}
        more |= {f"{name} agreement": found[name].pixel_agreement for name in ("alone", "distilled")}
        runs.append(run)
        kept.add({"seed": seed}, {**run, **more, **{f"{e.name} parameters": e.num_parameters for e in found.entries}})
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    spread = {key: float(np.std([run[key] for run in runs])) for key in runs[0]}
    kept.add({"model": "mean IoU", "seeds": len(runs)}, {"mean": mean, "spread": spread})
    gain = mean["distilled"] - mean["alone"]
    kept.verdict("points of mean IoU gained over the student alone", gain, at_least=2.0)
    gap = mean["teacher"] - mean["alone"]
    kept.verdict("share of the gap to the teacher that is closed, %", 100 * gain / gap, at_least=40.0)
    kept.write()


if __name__ == "__main__":
    main()
