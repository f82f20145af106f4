"""A U-Net with a sixteenth of the parameters learns to segment street scenes from a larger one (CamVid).

Run: python examples/street_scenes.py  (CamVid under $KERAS_DISTILL_DATA; --smoke: drawn shapes, under a minute)

The student learns the teacher's maps pixel by pixel (without void) and the spatial distribution of each class (CWD).
Prints mean IoU, pixel agreement and pixel ECE, and writes an image of labels and predictions.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_distill import Distiller, FeatureDistillation, data, losses, report, terms

VOID = 11


def unet(shape, classes, width, seed):
    """Three resolutions, skips, and a head at half the input's resolution."""
    keras.utils.set_random_seed(seed)

    def block(h, filters, stride=1):
        for step in (stride, 1):
            h = layers.Conv2D(filters, 3, step, "same", use_bias=False)(h)
            h = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(h))
        return h

    image = keras.Input(shape)
    half = block(image, width, 2)
    quarter = block(half, 2 * width, 2)
    eighth = block(quarter, 4 * width, 2)
    h = eighth
    for skip, filters in ((quarter, 2 * width), (half, width)):  # resized, because odd sizes do not halve evenly
        up = layers.Resizing(*skip.shape[1:3], interpolation="nearest")(h)
        h = block(layers.Concatenate()([up, skip]), filters)
    return keras.Model(image, layers.Conv2D(classes, 1, name="map")(h))


class Pixels(keras.losses.Loss):
    """Cross-entropy over labelled pixels, with the logits resized to the labels' resolution."""

    def call(self, y_true, y_pred):
        """Return the mean over each image's labelled pixels."""
        y_pred = keras.ops.image.resize(y_pred, y_true.shape[1:3], interpolation="bilinear")
        kept = keras.ops.cast(y_true != VOID, "float32")
        each = keras.losses.sparse_categorical_crossentropy(y_true * kept, y_pred, True)
        return keras.ops.sum(each * kept, axis=(1, 2)) / keras.ops.maximum(keras.ops.sum(kept, axis=(1, 2)), 1.0)


def drawn(count, seed):
    """Rectangles of three classes on a background, with a void border: 48 x 64 pixels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((count, 48, 64), "int32")
    for each in labels:
        for kind in rng.permutation([1, 2, 3]):
            top, left = rng.integers(0, 30), rng.integers(0, 40)
            each[top : top + rng.integers(8, 20), left : left + rng.integers(8, 24)] = kind
        each[:2] = VOID
    images = np.stack([labels % 4 / 4, (labels % 4 == 2) * 0.8, labels * 0.05], -1) + rng.normal(
        0, 0.2, (*labels.shape, 3)
    )
    return data.Examples(images.astype("float32"), labels)


def fit(model, train, epochs, seed=0):
    """Train a U-Net, or a distiller of one, on flipped pictures."""
    rate = keras.optimizers.schedules.CosineDecay(5e-3, epochs * -(-len(train) // 8))
    model.compile(keras.optimizers.Adam(rate), Pixels(), jit_compile=False)
    flip = data.augment([layers.RandomFlip("horizontal")]).live(
        tf.data.Dataset.from_tensor_slices((train.inputs, train.labels)).shuffle(len(train), seed=seed),
        seed=seed, masks=True,
    )  # fmt: skip
    options = tf.data.Options()
    options.autotune.enabled = False
    model.fit(flip.batch(8).prefetch(2).with_options(options), epochs=epochs, shuffle=False, verbose=0)
    return model


def distiller(teacher, student):
    """Terms on maps pixel by pixel, and on the spatial distribution of each class."""
    pixels = terms.PixelDistillation(2.0, ignore_label=VOID)
    channels = FeatureDistillation(losses.ChannelDistributions(2.0), "map", "map", ignore_label=VOID)
    return Distiller(teacher, student, [pixels, channels], [1.0, 0.5], student_loss_weight=0.5)


def run(train, test, classes, widths, epochs, seed=0):
    """Train a teacher and a student in two ways; return the models by name."""
    teacher = fit(unet(train.inputs.shape[1:], classes, widths[0], 100), train, epochs, seed)
    alone, student = (unet(train.inputs.shape[1:], classes, widths[1], seed) for _ in range(2))
    fit(alone, train, epochs, seed)
    fit(distiller(teacher, student), train, epochs, seed)
    return {"teacher": teacher, "alone": alone, "distilled": student}


def main():
    """Train, print the figures, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="drawn shapes, few epochs")
    if parser.parse_args().smoke:
        train, test, names, settings = drawn(16, 0), drawn(8, 1), ("0", "1", "2", "3"), ((8, 4), 2)
    else:
        camvid = data.load("camvid")
        train, test, names, settings = halved(camvid.train), halved(camvid.test), camvid.class_names, ((32, 8), 30)
    models = run(train, test, len(names), *settings)
    found = report.segmentation(
        models, (test.inputs, test.labels), reference="teacher", class_names=names, ignore_label=VOID
    )
    for entry in found.entries:
        agreement = "" if entry.pixel_agreement is None else f"{entry.pixel_agreement:.3f}"
        print(f"{entry.name:10} {entry.num_parameters:8} parameters  mean IoU {entry.mean_iou:.3f}  "
              f"pixel ECE {entry.pixel_calibration_error:.3f}  agreement {agreement}")  # fmt: skip
    size = test.labels.shape[1:]
    maps = {"labels": test.labels[:3]}
    for name, model in models.items():
        maps[name] = tf.image.resize(model.predict(test.inputs[:3], verbose=0), size).numpy().argmax(-1)
    figure = report.overlays(test.inputs[:3], maps, class_names=[*names, *["void"] * 12][:12], ignore_label=VOID)
    figure.savefig("street_scenes.png", dpi=110)


def halved(examples):
    """Average each 2 x 2 pixels; keep every second label."""
    return data.Examples(tf.nn.avg_pool2d(examples.inputs, 2, 2, "VALID").numpy(), examples.labels[:, ::2, ::2])


if __name__ == "__main__":
    main()
