"""``keras-distill demo`` on class maps: a U-Net, a small one trained alone, and the same distilled.

Kept apart from ``_demonstration.py``: each task of the demo trains and draws in its own way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from keras_distill import Distiller, FeatureDistillation, data, losses, report, terms

_TEACHER, _STUDENT = 24, 6  # channels of the first layer: about a sixteenth of the parameters


def run(
    console: Console, name: str, examples: data.Data, folder: Path, epochs: int | None
) -> report.SegmentationReport:
    """Train three models on half-size pictures, and write ``report.json``, ``report.html``, ``student.keras``.

    Args:
        console: console to print to.
        name: name of the data set.
        examples: pictures and maps of class ids; ids beyond the number of classes are void.
        folder: output folder.
        epochs: epochs of every training; None for 12.

    Returns:
        The report.
    """
    void, epochs = len(examples.class_names), epochs or 12
    train, test = halved(examples.train), halved(examples.test)
    teacher = trained(network(train, void, _TEACHER, 0), train, void, epochs, console, "teacher")
    alone = trained(network(train, void, _STUDENT, 1), train, void, epochs, console, "student alone")
    student = network(train, void, _STUDENT, 1)
    pixels = terms.PixelDistillation(2.0, ignore_label=void)
    channels = FeatureDistillation(losses.ChannelDistributions(2.0), "map", "map", ignore_label=void)
    distiller = Distiller(teacher, student, [pixels, channels], [1.0, 0.5], student_loss_weight=0.5)
    trained(distiller, train, void, epochs, console, "student distilled")
    models = {"teacher": teacher, "student alone": alone, "student distilled": student}
    found = report.segmentation(
        models,
        (test.inputs, test.labels),
        reference="teacher",
        class_names=examples.class_names,
        ignore_label=void,
    )
    few = np.linspace(0, len(test) - 1, 4).astype(int)
    maps = {"labels": test.labels[few]}
    for each, model in models.items():
        answers = keras.ops.image.resize(model.predict(test.inputs[few], verbose=0), test.labels.shape[1:])
        maps[each] = np.asarray(answers).argmax(-1)
    notes = [f"{len(train)} training and {len(test)} test pictures of half the size, {epochs} epochs, one seed."]
    report.write_segmentation_page(
        found, folder / "report.html", images=test.inputs[few], maps=maps, ignore_label=void,
        title=f"Distillation on {name}: who sees what", notes=notes,
    )  # fmt: skip
    found.save(folder / "report.json")
    student.save(folder / "student.keras")
    for entry in found.entries:
        console.print(f"{entry.name:18} {entry.num_parameters:9,} parameters  mean IoU {100 * entry.mean_iou:5.1f} %")
    return found


def halved(examples: data.Examples) -> data.Examples:
    """Average each 2 x 2 pixels, and keep every second label."""
    images = tf.nn.avg_pool2d(examples.inputs, 2, 2, "VALID").numpy()
    return data.Examples(images, examples.labels[:, ::2, ::2][:, : images.shape[1], : images.shape[2]])


def network(examples: data.Examples, classes: int, width: int, seed: int) -> keras.Model:
    """Return a U-Net whose head, "map", has half the resolution of its input."""
    keras.utils.set_random_seed(seed)

    def block(h: Any, filters: int, stride: int = 1) -> Any:
        h = keras.layers.Conv2D(filters, 3, stride, "same", use_bias=False)(h)
        return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(h))

    image = keras.Input(examples.inputs.shape[1:])
    fine = block(block(image, width, 2), width)
    coarse = block(block(fine, 2 * width, 2), 4 * width)
    size = fine.shape[1:3]
    up = keras.layers.Resizing(*size, interpolation="bilinear")(block(coarse, 2 * width))
    h = block(keras.layers.Concatenate()([fine, up]), 2 * width)
    return keras.Model(image, keras.layers.Conv2D(classes, 1, name="map")(h))


@keras.saving.register_keras_serializable(package="keras_distill")
class _LabelledPixels(keras.losses.Loss):
    """Cross-entropy over labelled pixels, with the logits at the labels' resolution."""

    def __init__(self, void: int, name: str = "labelled_pixels", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.void = void

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the mean over the labelled pixels of each image."""
        y_pred = keras.ops.image.resize(y_pred, tuple(y_true.shape[1:3]), interpolation="bilinear")
        kept = keras.ops.cast(keras.ops.not_equal(y_true, self.void), "float32")
        each = keras.losses.sparse_categorical_crossentropy(y_true * kept, y_pred, from_logits=True)
        return keras.ops.sum(each * kept, axis=(1, 2)) / keras.ops.maximum(keras.ops.sum(kept, axis=(1, 2)), 1.0)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "void": self.void}


def trained(model: Any, examples: data.Examples, void: int, epochs: int, console: Console, name: str) -> Any:
    """Train with Adam on flipped pictures; both models of a distiller see the same ones."""
    options = tf.data.Options()
    options.autotune.enabled = False
    rate = keras.optimizers.schedules.CosineDecay(5e-3, epochs * -(-len(examples) // 8))
    model.compile(keras.optimizers.Adam(rate), _LabelledPixels(void), jit_compile=False)
    one_by_one = tf.data.Dataset.from_tensor_slices((examples.inputs, examples.labels)).shuffle(len(examples), seed=0)
    views = data.augment([keras.layers.RandomFlip("horizontal")]).live(one_by_one, seed=0, masks=True)
    with console.status(f"Training the {name}"):
        model.fit(views.batch(8).prefetch(2).with_options(options), epochs=epochs, shuffle=False, verbose=0)
    return model
