"""Pictures of the results of the guides' code: ``python -m docs.pictures.runs [name ...]`` (3 minutes)."""

import pathlib
import re

import keras
import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt

from docs.pictures import OTHER, OURS, ROOT, draw
from keras_distill import Distiller, LogitsDistillation, data, explain, losses, regimes, report


def guide(name):
    """Run a guide's code and return its names."""
    fences = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "guides" / f"{name}.md").read_text(), re.M | re.S)
    names = {"__name__": "__guide__"}
    for fence in fences:
        exec(compile(fence, name, "exec"), names)
    return names


def images():
    """One view for both models."""
    digits = data.load("digits").train.inputs[:6]
    view = data.augment(
        [
            keras.layers.RandomRotation(0.06, seed=0),
            keras.layers.RandomTranslation(0.1, 0.1, seed=1),
            keras.layers.RandomContrast(0.5, seed=2),
        ]
    )
    ready = tf.data.Dataset.from_tensor_slices((digits, np.arange(6)))
    views = next(iter(view.live(ready, seed=0).batch(6)))[0]
    figure, axes = plt.subplots(2, 6, figsize=(7, 2.6))
    for place in range(6):
        for axis, picture in ((axes[0, place], digits[place]), (axes[1, place], views[place])):
            axis.imshow(np.asarray(picture)[..., 0], cmap="gray_r")
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("on disk")
    axes[1, 0].set_ylabel("what both\nmodels see")
    figure.tight_layout()
    return figure


def segmentation():
    """Labels and maps over the guide's pictures."""
    found = guide("segmentation")
    pictures = found["images"][16:18]
    answers = {"labels": found["labels"][16:18]}
    for name in ("teacher", "student"):
        answers[name] = found[name].predict(pictures, verbose=0).argmax(-1)
    pathlib.Path("overlays.png").unlink(missing_ok=True)
    size = found["labels"].shape[1]
    answers = {name: np.asarray(_resized(maps, size)) for name, maps in answers.items()}
    return report.overlays(pictures, answers, ignore_label=found["VOID"])


def _resized(maps, size):
    return (
        maps
        if maps.shape[1] == size
        else np.repeat(np.repeat(maps, size // maps.shape[1], 1), size // maps.shape[2], 2)
    )


def explanations():
    """Attributions of three models: the teacher, its student, and a student trained on labels."""
    found = guide("explanations")
    network, trained, x_test = found["network"], found["trained"], found["x_test"]
    alone = trained(network(4, 5), 6)
    distilled = trained(Distiller(found["teacher"], network(4, 5), LogitsDistillation(2.0)), 6).student
    models = {"picture": None, "teacher": found["teacher"], "distilled": distilled, "alone": alone}
    figure, axes = plt.subplots(4, 6, figsize=(6.5, 4.6))
    for row, (name, model) in zip(axes, models.items(), strict=True):
        target = found["teacher"].predict(x_test[:6], verbose=0).argmax(-1)
        maps = (
            x_test[:6] if model is None else explain.attributions(model, x_test[:6], method="integrated", target=target)
        )
        limit = np.abs(np.asarray(maps)).max()
        for axis, shown in zip(row, np.asarray(maps), strict=True):
            colors = {"cmap": "gray_r"} if model is None else {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
            axis.imshow(shown[..., 0], **colors)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    figure.tight_layout()
    return figure


def speech():
    """A log-mel spectrogram, and the outputs of teacher and student for each frame."""
    found = guide("speech")
    sound, models = found["x"][:1], {"teacher": found["teacher"], "student": found["student"]}
    figure, axes = plt.subplots(2, 1, figsize=(6.5, 3.6), sharex=False)
    front = found["adapters"].LogMel(sampling_rate=8000, num_mel_bins=12, step_seconds=0.02)
    axes[0].imshow(np.asarray(front(sound))[0].T, aspect="auto", origin="lower", cmap="magma")
    axes[0].set(ylabel="mel band", xticks=[])
    for (name, model), color in zip(models.items(), (OTHER, OURS), strict=True):
        blank = keras.ops.softmax(model.predict(sound, verbose=0))[0, :, 0]
        axes[1].plot(1 - np.asarray(blank), color=color, label=name, lw=2)
    axes[1].set(xlabel="frame", ylabel="1 - P(blank)", ylim=(0, 1.02))
    axes[1].margins(x=0)
    axes[1].legend(frameon=False)
    figure.tight_layout()
    return figure


def detection():
    """The loss of a heatmap: every cell, weighted by the difference between the models."""
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 24), np.linspace(0, 1, 24)), -1)
    bump = sum(np.exp(-((grid - centre) ** 2).sum(-1) / 0.004) for centre in ([0.3, 0.35], [0.72, 0.6], [0.4, 0.8]))
    weak = sum(np.exp(-((grid - centre) ** 2).sum(-1) / 0.01) for centre in ([0.34, 0.38], [0.72, 0.6]))
    logits = [np.log((1e-3 + 0.97 * each) / (1.001 - 0.97 * each)).clip(-7, 4) for each in (bump, 0.6 * weak)]
    as_maps = [each.astype("float32")[None, ..., None] for each in logits]
    apart = losses.CenterHeatmaps().values(*[keras.ops.reshape(each, (-1, 1, 1, 1)) for each in as_maps])
    figure, axes = plt.subplots(1, 3, figsize=(7, 2.6))
    shown = [1 / (1 + np.exp(-logits[0])), 1 / (1 + np.exp(-logits[1])), np.sqrt(np.asarray(apart)).reshape(24, 24)]
    for axis, each, title in zip(axes, shown, ("teacher", "student", "loss of each cell (square root)"), strict=True):
        axis.imshow(each, cmap="viridis" if title in ("teacher", "student") else "magma")
        axis.set(title=title, xticks=[], yticks=[])
    figure.tight_layout()
    return figure


def no_data():
    """Examples from the generator of the guide's short run."""
    found = guide("no_data")
    figure, axes = plt.subplots(2, 8, figsize=(7, 2.1))
    made = regimes.synthesize(found["regime"].generator, 8).reshape(-1, 8, 8)
    real = found["pixels"][:8].reshape(-1, 8, 8)
    for row, shown, name in zip(axes, (real, made), ("digits", "generated"), strict=True):
        for axis, picture in zip(row, shown, strict=True):
            axis.imshow(picture, cmap="gray_r")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    figure.tight_layout()
    return figure


def audit():
    """Losses of members and non-members, for the guide's teacher and student."""
    found = guide("audit")
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.4), sharey=True)
    for axis, name in zip(axes, ("teacher", "student"), strict=True):
        for kind, color in (("members", OURS), ("others", OTHER)):
            inputs, labels = found[kind]
            logs = keras.ops.log_softmax(found[name](inputs))
            own = -np.asarray(logs)[np.arange(len(labels)), labels]
            axis.hist(np.log10(own + 1e-6), np.linspace(-6, 1.5, 30), density=True, color=color, alpha=0.6, label=kind)
        axis.set(title=name, xlabel="log10 of the loss", yticks=[])
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    return figure


def robust():
    """Accuracy and calibration error of the guide's two students under increasing corruption."""
    return report.shift_curves({entry.name: entry.robustness for entry in guide("robust")["both"].entries})


if __name__ == "__main__":
    draw([images, segmentation, explanations, speech, detection, no_data, audit, robust])
