"""A pretrained detector of 80 classes teaches a small detector of people on unlabelled images: CenterNet on COCO.

The teacher is a published TensorFlow graph (model_centernet_coco), a black box that takes one image of 512 x 512
pixels. It labels two views of 128 training images once; its heatmaps and boxes are stored at the student's resolution.
The student never sees a label. AP50 is reported on 128 other images, against the labels and against the teacher's
detections, and on the training images, which it has seen without labels.

Run: ``python examples/coco_centernet.py`` (model_centernet_coco and coco128x2_320 under ``$KERAS_DISTILL_DATA``;
ten core-minutes; ``--smoke``: a few pictures, a minute). ``--classes`` are ids of COCO's 80 classes. 128 images are far
too few to train a detector from nothing: expect a low AP50.
"""

import argparse
import io
import json
import os
import pathlib
import sys
import tempfile
import zipfile

import keras
import numpy as np
import tensorflow as tf
from blood_cells import detector
from keras import layers

from keras_distill import Distiller, FeatureDistillation, data, losses, report, teachers

SIZE, CELLS = 256, 64


def folder():
    """Where the data sets are."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    return pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or beside)


def pictures(part, most, classes):
    """Return images (n, 256, 256, 3) in 0..1 and boxes (n, boxes, 5): relative corners, class; -1 is padding."""
    images, boxes = [], []
    with zipfile.ZipFile(folder() / "coco128x2_320" / "coco_320.zip") as archive:
        for name, row in sorted(json.loads(archive.read("annotations.json")).items()):
            if name.startswith(part) and len(images) < most:
                with io.BytesIO(archive.read(f"images/{name}.jpg")) as file:
                    image = tf.cast(tf.io.decode_jpeg(file.read(), channels=3), tf.float32)
                images.append(tf.image.resize(image, (SIZE, SIZE), antialias=True).numpy() / 255.0)
                kind, x, y, w, h = np.array(row["boxes_cxcywh_norm"], "float64").reshape(-1, 5).T
                rows = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2, kind], axis=1)[np.isin(kind, classes)]
                rows[:, 4] = [classes.index(kind) for kind in rows[:, 4]]
                boxes.append(rows)
    return np.stack(images), padded(boxes)


def padded(rows):
    """Return (n, boxes, 5) of lists of different lengths, filled with -1."""
    boxes = np.full((len(rows), max(1, *map(len, rows)), 5), -1.0)
    for into, each in zip(boxes, rows, strict=True):
        into[: len(each)] = each[:, :5]
    return boxes


def centernet(classes):
    """Return the graph as a teacher of some classes whose outputs have the student's format."""
    sys.path.insert(0, str(folder() / "model_centernet_coco"))
    import tfjs2tf

    graph, names = tfjs2tf.concrete(str(folder() / "model_centernet_coco" / "centernet.json"))
    names = [name.split("/")[-1] for name in names]

    def blocks(x):  # (64, 64, 4, channels): the four cells of each block
        x = tf.transpose(tf.reshape(x, (CELLS, 2, CELLS, 2, -1)), (0, 2, 1, 3, 4))
        return tf.reshape(x, (CELLS, CELLS, 4, -1))

    @tf.function  # a plain function that runs TensorFlow would wait forever where TensorFlow has one thread
    def outputs_of(x):
        """Take the most confident of each 2 x 2 cells: its classes, and its box in the student's format."""
        found = dict(zip(names, (each[0] for each in graph(x)), strict=True))
        heat, sides = blocks(tf.gather(found["keypoints"], classes, axis=-1)), blocks(found["wh"])
        best = tf.argmax(tf.reduce_max(heat, axis=-1), axis=-1, output_type=tf.int32)
        heat, sides = (tf.gather(each, best, axis=2, batch_dims=2) for each in (heat, sides))
        columns, rows = tf.meshgrid(tf.range(CELLS), tf.range(CELLS))
        x, y = (tf.cast(each, tf.float32) for each in (2 * columns + best % 2, 2 * rows + best // 2))
        left, top, right, bottom = tf.unstack(tf.maximum(sides, 0.0), axis=-1)  # pixels from the cell's corner
        centre = (4 * x + (right - left) / 2) / 8, (4 * y + (bottom - top) / 2) / 8
        offset = (place - tf.cast(start, tf.float32) for place, start in zip(centre, (columns, rows), strict=True))
        size = tf.math.log(tf.maximum((left + right) / 8, 1e-2)), tf.math.log(tf.maximum((top + bottom) / 8, 1e-2))
        return {"heat": heat[None], "size": tf.stack([*size, *offset], axis=-1)[None]}

    def prepared(x):
        return tf.image.resize(x, (512, 512)) * 255.0

    return teachers.from_callable(outputs_of, preprocess=prepared, activation={"heat": "sigmoid"}, batch_size=1)


def detections(outputs, most=60):
    """Return (most, 6) for each image: relative corners, class id, score."""
    score = 1 / (1 + np.exp(-np.asarray(outputs["heat"], "float32")))
    score = np.where(score >= tf.nn.max_pool2d(score, 3, 1, "SAME").numpy(), score, 0.0)
    found = []
    for peaks, size in zip(score, np.clip(np.asarray(outputs["size"], "float32"), -5, 5), strict=True):
        row, column, kind = np.unravel_index(np.argsort(-peaks, axis=None)[:most], peaks.shape)
        (w, h), (dx, dy) = np.exp(size[row, column, :2]).T / 2, size[row, column, 2:].T
        corners = np.stack([column + dx - w, row + dy - h, column + dx + w, row + dy + h], axis=1) / CELLS
        found.append(np.concatenate([corners, kind[:, None], peaks[row, column, kind][:, None]], axis=1))
    return found


def main():
    """Label, distil, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--classes", type=int, nargs="+", default=[0], metavar="ID", help="0: person")
    options = parser.parse_args()
    if not all((folder() / name).exists() for name in ("model_centernet_coco", "coco128x2_320")):
        print("This example needs model_centernet_coco and coco128x2_320 under $KERAS_DISTILL_DATA.")
        return
    most, epochs, width = (4, 1, 4) if options.smoke else (128, options.epochs, 16)
    (x, x_boxes), (test_x, boxes) = (pictures(part, most, options.classes) for part in ("train2017", "val2017"))
    teacher, student = centernet(options.classes), detector((SIZE, SIZE, 3), len(options.classes), width, 0)
    unlabelled = tf.data.Dataset.from_tensor_slices(x).batch(4)
    views = data.augment([layers.RandomFlip("horizontal"), layers.RandomTranslation(0.1, 0.1)])
    taps, options_of_store = ["heat", "size"], {"dtype": "float16", "num_views": 2, "progress": False}
    with tempfile.TemporaryDirectory() as place:
        stored = teachers.label(teacher, unlabelled, place, features=taps, augment=views, **options_of_store)
        heat = FeatureDistillation(losses.CenterHeatmaps(), "heat", "heat")
        size = FeatureDistillation(losses.CenterBoxes(threshold=0.3), taps, taps)
        distiller = Distiller(stored, student, [heat, size], [10.0, 1.0], student_loss_weight=0.0)
        rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * -(-len(x) // 4))
        distiller.compile(keras.optimizers.Adam(rate), jit_compile=False)
        distiller.fit(stored.attach(unlabelled, augment=views), epochs=epochs, verbose=0)

    def seen_by(model, images):
        outputs = [model(images[i : i + 1]) for i in range(len(images))]
        return detections({key: np.concatenate([np.asarray(each[key]) for each in outputs]) for key in taps})

    found = {"teacher": seen_by(teacher, test_x), "student": seen_by(student, test_x)}
    as_truth = padded([rows[rows[:, 5] >= 0.3] for rows in found["teacher"]])
    names, trained = [str(kind) for kind in options.classes], {"student": seen_by(student, x)}
    print(f"student: {student.count_params():,} parameters")
    judges = {"the labels": (found, boxes), "the teacher": (found, as_truth), "labels of training": (trained, x_boxes)}
    for judge, (seen, truth) in judges.items():
        for entry in report.detection(seen, truth, names):
            print(f"{entry.name:8} AP50 against {judge}: {100 * entry.average_precision_50:5.1f} %", flush=True)


if __name__ == "__main__":
    main()
