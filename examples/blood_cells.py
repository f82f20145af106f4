"""A small anchor-free detector (CenterNet) learns from a larger one: heatmaps, boxes and features of blood cells.

Run: python examples/blood_cells.py  (BCCD under $KERAS_DISTILL_DATA; --smoke: drawn discs, under a minute)
Prints AP50 (pycocotools) of teacher, student alone and distilled; ``benchmarks/detection.py`` repeats it over seeds.
"""

import argparse
import contextlib
import io

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from keras_distill import Distiller, FeatureDistillation, data, losses

STRIDE = 4


def drawn(count, seed):
    """Discs of three sizes on noise, with their boxes: (count, 96, 128, 3) and (count, 4, 5)."""
    rng, (rows, columns) = np.random.default_rng(seed), np.mgrid[:96, :128]
    x, boxes = rng.uniform(0.6, 0.9, (count, 96, 128, 3)).astype("float32"), np.full((count, 4, 5), -1.0, "float32")
    for i in range(count):
        for j in range(rng.integers(1, 5)):
            kind, cy, cx = rng.integers(3), rng.integers(16, 80), rng.integers(16, 112)
            radius = (5, 9, 14)[kind]
            x[i][(rows - cy) ** 2 + (columns - cx) ** 2 < radius**2] = (0.5 + 0.1 * kind, 0.2, 0.1 + 0.3 * kind)
            boxes[i, j] = (cx - radius) / 128, (cy - radius) / 96, (cx + radius) / 128, (cy + radius) / 96, kind
    return data.Examples(x, boxes)


def targets(boxes, height, width, classes):
    """Return the heatmap, (images, height, width, classes), and sizes, offsets and where they are known, (.., 5)."""
    heat, size = (np.zeros((len(boxes), height, width, each), "float32") for each in (classes, 5))
    rows, columns = np.mgrid[:height, :width]
    for i, j in np.argwhere(boxes[..., 2] > boxes[..., 0]):
        x0, y0, x1, y1, kind = boxes[i, j]
        w, h, cx, cy = (x1 - x0) * width, (y1 - y0) * height, (x0 + x1) / 2 * width, (y0 + y1) / 2 * height
        column, row = min(int(cx), width - 1), min(int(cy), height - 1)
        peak = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * max(0.5, min(w, h) / 6) ** 2))
        heat[i, ..., int(kind)] = np.maximum(heat[i, ..., int(kind)], peak)
        size[i, row, column] = np.log(w), np.log(h), cx - column, cy - row, 1.0
    return {"heat": heat, "size": size}


def detector(shape, classes, width, seed):
    """A U-shaped CNN with two heads, at a quarter of the resolution."""
    keras.utils.set_random_seed(seed)

    def block(h, filters, stride=1):
        h = layers.Conv2D(filters, 3, stride, "same", use_bias=False)(h)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(h))

    image = keras.Input(shape, name="image")
    fine = block(block(block(image, width, 2), 2 * width, 2), 2 * width)
    coarse = block(block(fine, 4 * width, 2), 4 * width)
    up = layers.UpSampling2D(2, interpolation="bilinear")(block(coarse, 2 * width))
    neck = layers.ReLU(name="neck")(layers.Conv2D(2 * width, 3, padding="same")(layers.Concatenate()([fine, up])))
    heat = layers.Conv2D(classes, 1, name="heat", bias_initializer=keras.initializers.Constant(-3.0))(neck)
    return keras.Model(image, {"heat": heat, "size": layers.Conv2D(4, 1, name="size")(neck)})


def focal(y, logits):
    """CenterNet's heatmap loss, per image."""
    p, one = ops.sigmoid(logits), ops.cast(y == 1.0, "float32")
    near = one * (1 - p) ** 2 * ops.softplus(-logits) + (1 - one) * (1 - y) ** 4 * p**2 * ops.softplus(logits)
    return ops.sum(near, axis=(1, 2, 3)) / ops.maximum(ops.sum(one, axis=(1, 2, 3)), 1.0)


def sizes(y, predicted):
    """Mean absolute error of sizes and offsets at the centres, per image."""
    error = ops.sum(ops.abs(y[..., :4] - predicted), axis=-1) * y[..., 4]
    return ops.sum(error, axis=(1, 2)) / ops.maximum(ops.sum(y[..., 4], axis=(1, 2)), 1.0)


def average_precision(model, examples, classes):
    """AP at an overlap of one half, in percent, by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    out = model.predict(examples.inputs, batch_size=32, verbose=0)
    p = 1 / (1 + np.exp(-out["heat"]))
    peak = np.where(p >= tf.nn.max_pool2d(p, 3, 1, "SAME").numpy(), p, 0.0)
    found, truth = [], []
    for i in range(len(p)):
        for flat in np.argsort(-peak[i].ravel())[:60]:
            row, column, kind = np.unravel_index(flat, peak[i].shape)
            w, h, dx, dy = np.clip(out["size"][i, row, column], -5, 5)
            w, h = np.exp(w), np.exp(h)
            box = [STRIDE * float(each) for each in (column + dx - w / 2, row + dy - h / 2, w, h)]
            found.append({"image_id": i, "category_id": int(kind), "bbox": box, "score": float(peak[i].ravel()[flat])})
        for box in examples.labels[i]:
            if box[2] > box[0]:
                x0, y0, x1, y1 = map(float, box[:4] * np.array([*examples.inputs.shape[2:0:-1]] * 2))
                truth.append({"id": len(truth) + 1, "image_id": i, "category_id": int(box[4]), "iscrowd": 0,
                              "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)})  # fmt: skip
    coco = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        coco.dataset = {"images": [{"id": i} for i in range(len(p))], "annotations": truth,
                        "categories": [{"id": i} for i in range(classes)]}  # fmt: skip
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(found), "bbox")
        judge.evaluate(), judge.accumulate(), judge.summarize()
    return 100.0 * float(judge.stats[1])


def fit(model, train, classes, epochs):
    """Train a detector, or a distiller of one, in place."""
    y = targets(train.labels, *(each // STRIDE for each in train.inputs.shape[1:3]), classes)
    rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * -(-len(train) // 8))
    model.compile(keras.optimizers.Adam(rate), {"heat": focal, "size": sizes}, jit_compile=False)
    model.fit(train.inputs, y, batch_size=8, epochs=epochs, verbose=0)
    return model


def distiller(teacher, student):
    """Terms on heatmaps, boxes and features; their weights were set once, before any test result."""
    heat = FeatureDistillation(losses.CenterHeatmaps(), "heat", "heat")
    boxes = FeatureDistillation(losses.CenterBoxes(), ["heat", "size"], ["heat", "size"])
    neck = FeatureDistillation(losses.NormalizedFeatures(), "neck", "neck", adapter="auto")
    return Distiller(teacher, student, [heat, boxes, neck], [10.0, 1.0, 2.0], student_loss_weight=0.5)


def main():
    """Train a teacher, and a student in two ways; print AP50."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    bccd = None if smoke else data.load("bccd")
    train, test = [drawn(8, 0), drawn(8, 1)] if bccd is None else map(halved, (bccd.train, bccd.test))
    shape, epochs, width = train.inputs.shape[1:], *((1, 12) if smoke else (40, 32))
    teacher = fit(detector(shape, 3, width, 100), train, 3, epochs)
    alone, student = fit(detector(shape, 3, 6, 0), train, 3, epochs), detector(shape, 3, 6, 0)
    fit(distiller(teacher, student), train, 3, epochs)
    for name, model in (("teacher", teacher), ("alone", alone), ("distilled", student)):
        print(f"{name:10} {model.count_params():8,} parameters  AP50 {average_precision(model, test, 3):5.1f}")


def halved(examples):
    """Average each 2 x 2 pixels."""
    return data.Examples(tf.nn.avg_pool2d(examples.inputs, 2, 2, "VALID").numpy(), examples.labels)


if __name__ == "__main__":
    main()
