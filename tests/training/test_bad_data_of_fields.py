"""Bad data of each field, as a user gives it to ``fit``: one sentence before the first step, no weight has moved."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_distill import Distiller, LogitsDistillation, losses, terms

RNG = np.random.default_rng(0)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
IGNORING = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)


def items(table, name="items"):
    read = layers.Embedding(table, 2, name=name)
    return keras.Sequential([keras.Input((3,), dtype="int32"), read, layers.Flatten(), layers.Dense(4)], name=name)


def by_name(table):
    user, item = (keras.Input((1,), dtype="int32", name=name) for name in ("user", "item"))
    rows = [layers.Flatten()(layers.Embedding(size, 2)(x)) for size, x in ((5, user), (table, item))]
    return keras.Model({"user": user, "item": item}, layers.Dense(4)(layers.Concatenate()(rows)))


def dense(units=4, inputs=3):
    return keras.Sequential([keras.Input((inputs,)), layers.Dense(units)])


def recogniser():
    return keras.Sequential([keras.Input((6, 2)), layers.Conv1D(4, 3, padding="same")])


def mapper():
    return keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(3, 3, padding="same", name="map")])


def detector():
    image = keras.Input((4, 4, 1), name="image")
    return keras.Model({"image": image}, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="map")(image)))


def ids(bad):
    found = RNG.integers(0, 5, (8, 3))
    found[3, 2] = bad
    return found


def boxes(*corners):
    found = np.array([[corners]] * 8, "float32")
    return {"image": np.ones((8, 4, 4, 1), "float32"), "boxes": found}


X, Y, SOUNDS = RNG.normal(size=(8, 3)).astype("float32"), RNG.integers(0, 4, 8), np.ones((8, 6, 2), "float32")
MAPS = np.ones((8, 4, 4, 1), "float32")
OWN = np.array([[1, 2, -1]] * 7 + [[1, 9, -1]])
FRAMES = LogitsDistillation(loss=losses.FrameSoftTargets())
FOREGROUND = terms.ForegroundDistillation("map", "map")

CASES = {
    "an item beyond the student's table": (
        lambda: Distiller(items(10), items(5), LogitsDistillation()), CROSS_ENTROPY, ids(9), Y,
        r"Distiller.fit: expected ids from 0 to 4 for the embedding 'items' of 'items', got 9\. Check that the ids",
    ),
    "an item beyond the teacher's table": (
        lambda: Distiller(items(5, "large"), items(10), LogitsDistillation()), CROSS_ENTROPY, ids(7), Y,
        "for the embedding 'large' of 'large', got 7",
    ),
    "a negative item": (
        lambda: Distiller(items(5), items(5), LogitsDistillation()), CROSS_ENTROPY, ids(-1), Y, "from 0 to 4 .* got -1",
    ),
    "an item among several inputs": (
        lambda: Distiller(by_name(9), by_name(6), LogitsDistillation()), CROSS_ENTROPY,
        {"user": ids(0)[:, :1], "item": ids(6)[:, 2:]}, Y, "ids from 0 to 5 for the embedding .* got 6",
    ),
    "an own item out of range (RD)": (
        lambda: Distiller(dense(7), dense(7), LogitsDistillation(1.0, losses.RankedItems()), student_loss_weight=0.0),
        None, X, OWN, r"RankedItems: expected items from 0 to 6, got 9\. Item indices start at 0",
    ),
    "an own item out of range (RRD)": (
        lambda: Distiller(dense(7), dense(7), LogitsDistillation(1.0, losses.RelaxedRanking()),
                          student_loss_weight=0.0),
        None, X, OWN, "RelaxedRanking: expected items from 0 to 6, got 9",
    ),
    "a token that the recogniser does not know": (
        lambda: Distiller(recogniser(), recogniser(), FRAMES), losses.Ctc(), SOUNDS, np.full((8, 2), 4),
        "Ctc: expected labels from 0 to 3, negative ones as padding, got 4. The blank is one of the classes",
    ),
    "labels longer than the frames": (
        lambda: Distiller(recogniser(), recogniser(), FRAMES), losses.Ctc(), SOUNDS,
        np.array([[1, 2, 1, 2]] * 7 + [[1] * 4]),
        r"Ctc: expected at least 7 frames for the labels \[1, 1, 1, 1\], got 6\. Drop the example",
    ),
    "masks of another size": (
        lambda: Distiller(mapper(), mapper(), terms.PixelDistillation()), CROSS_ENTROPY, MAPS, np.ones((8, 2, 4), int),
        r"expected labels of shape \(4, 4\) for each example, as the outputs have, got \(2, 4\)",
    ),
    "masks of nothing but void": (
        lambda: Distiller(mapper(), mapper(), terms.PixelDistillation()), IGNORING, MAPS, np.full((8, 4, 4), 255),
        "expected a label that is not void, got only 255",
    ),
    "boxes in pixels": (
        lambda: Distiller(detector(), detector(), FOREGROUND), CROSS_ENTROPY, boxes(1, 1, 3, 2), Y,
        "ForegroundDistillation: expected boxes in 0..1, relative to the image, got values from 1 to 3",
    ),
    "a box turned round": (
        lambda: Distiller(detector(), detector(), FOREGROUND), CROSS_ENTROPY, boxes(0.75, 0.75, 0.25, 0.25), Y,
        r"expected boxes with x_min <= x_max and y_min <= y_max, got \[0.75, 0.75, 0.25, 0.25\]",
    ),
    "a box that is not a number": (
        lambda: Distiller(detector(), detector(), FOREGROUND), CROSS_ENTROPY, boxes(0, 0, np.nan, 1), Y,
        "expected boxes in 0..1, relative to the image, got values from nan to nan",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_before_the_first_step(case):
    make, loss, x, y, words = CASES[case]
    distiller = make()
    distiller.compile("sgd", loss)
    before = distiller.student.get_weights()
    with pytest.raises(ValueError, match=words):
        distiller.fit(x, y, verbose=0)
    for kept, now in zip(before, distiller.student.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_an_item_beyond_the_table_in_a_dataset_is_named_by_the_step():
    distiller = Distiller(items(10), items(5), LogitsDistillation())
    distiller.compile("sgd", CROSS_ENTROPY, jit_compile=False)
    with pytest.raises(ValueError, match=r"Distiller: expected ids from 0 to 4 for \S*items\S*, got 9\. Check that"):
        distiller.fit(tf.data.Dataset.from_tensor_slices((ids(9), Y)).batch(8), verbose=0)


def test_what_is_void_or_padding_in_part_is_fine():
    labels = np.full((8, 4, 4), 255)
    labels[0, 0, 0] = 1
    distiller = Distiller(mapper(), mapper(), terms.PixelDistillation())
    distiller.compile("sgd", IGNORING)
    assert distiller.fit(MAPS, labels, verbose=0).history["student_loss"][0] > 0.0
