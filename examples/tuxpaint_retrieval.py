"""Images and captions in one embedding space: distil a contrastive teacher (CLIP-like) into a small image tower.

The data are 785 stamps of Tux Paint with their captions; a fifth is held out. The teacher's two towers learn from the
pairs (InfoNCE). The small image tower learns the teacher's image embeddings, without captions, and is used with the
teacher's caption tower; alone, it learns from the pairs together with its own caption tower. The reported recall@k is
how often the right caption is among the first k of all held-out captions.

Run: ``python examples/tuxpaint_retrieval.py`` (tuxpaint_captions under ``$KERAS_DISTILL_DATA``; three core-minutes;
``--smoke``, on drawn shapes: half a minute).
"""

import argparse
import io
import json
import os
import pathlib
import zipfile

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from keras_distill import Distiller, FeatureDistillation, data

SIZE, WIDTH, WORDS = 64, 64, 12


def stamps():
    """Return images (n, 64, 64, 3) in 0..1 and captions."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or beside)
    pictures, captions = [], []
    with zipfile.ZipFile(folder / "tuxpaint_captions" / "stamps_96.zip") as archive:
        name = next(each for each in archive.namelist() if each.endswith("captions.json"))
        for row in json.loads(archive.read(name)):
            with io.BytesIO(archive.read(f"images/{row['id']}.jpg")) as file:
                picture = tf.io.decode_jpeg(file.read(), channels=3)
            canvas = tf.image.resize_with_pad(255 - tf.cast(picture, tf.float32), SIZE, SIZE, antialias=True)
            pictures.append(1.0 - canvas.numpy() / 255.0)  # the border is white, like the background
            captions.append(row["caption"])
    return np.stack(pictures), captions


def drawn(count):
    """Return coloured squares and stripes with captions such as "a large red square"."""
    rng, pictures, captions = np.random.default_rng(0), [], []
    colours = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "grey": (0.5, 0.5, 0.5)}
    for _ in range(count):
        colour, shape = rng.choice(list(colours)), rng.choice(["square", "stripe"])
        size, picture = rng.choice(["small", "large"]), np.ones((SIZE, SIZE, 3))
        half, (row, column) = (8 if size == "small" else 20), rng.integers(22, 42, 2)
        wide = half if shape == "square" else 22
        picture[row - half : row + half, column - wide : column + wide] = colours[str(colour)]
        pictures.append(picture + rng.normal(0, 0.05, picture.shape))
        captions.append(f"a {size} {colour} {shape}")
    return np.clip(np.stack(pictures), 0, 1).astype("float32"), captions


def image_tower(width, seed):
    """A CNN that ends in a unit vector."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = image
    for filters in (width, 2 * width, 4 * width, 4 * width):
        x = layers.Conv2D(filters, 3, 2, "same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Dense(WIDTH)(layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x)))
    return keras.Model(image, layers.UnitNormalization(name="vector")(x))


def caption_tower(num_words, seed):
    """The mean of word vectors, projected to a unit vector."""
    keras.utils.set_random_seed(seed)
    words = keras.Input((WORDS,), dtype="int32", name="words")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(num_words, 2 * WIDTH, mask_zero=True)(words))
    return keras.Model(words, layers.UnitNormalization()(layers.Dense(WIDTH)(layers.Dropout(0.2)(x))))


@keras.saving.register_keras_serializable(package="tuxpaint_retrieval")
class Contrast(keras.losses.Loss):
    """InfoNCE in both directions; the targets mark equal captions within the batch."""

    def call(self, y_true, y_pred):
        """Return the mean of both cross-entropies for each pair."""
        scores = ops.matmul(y_pred[:, 0], ops.transpose(y_pred[:, 1])) / 0.1
        same = ops.cast(ops.equal(y_true[:, None], y_true[None, :]), "float32")
        same = same / ops.sum(same, axis=1, keepdims=True)
        both = (scores, ops.transpose(scores))
        return sum(-ops.sum(same * ops.log_softmax(each, axis=1), axis=1) for each in both) / 2.0


def recall(images, captions, numbers, k):
    """Recall@k in percent: how often one of the first k captions is that of the image."""
    best = np.argsort(-(images @ captions.T), axis=1)[:, :k]
    return 100.0 * float(np.mean([np.any(numbers[row] == own) for row, own in zip(best, numbers, strict=True)]))


def main():
    """Train the teacher, the small tower alone, and the small tower distilled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    (x, captions), epochs = (drawn(160), 2) if options.smoke else (stamps(), options.epochs)
    wide, narrow = (12, 6) if options.smoke else (32, 8)
    vectorize = layers.TextVectorization(output_sequence_length=WORDS)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]
    vectorize.adapt([captions[i] for i in train])
    words = np.asarray(vectorize(captions))
    numbers = np.unique(captions, return_inverse=True)[1].astype("int32")

    def fitted(model, rows, loss=None):
        views = data.augment([layers.RandomFlip("horizontal"), layers.RandomTranslation(0.08, 0.08)])
        rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-len(train) // 64))
        model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
        options = tf.data.Options()
        options.autotune.enabled = False
        pictures = views.live(tf.data.Dataset.from_tensor_slices(x[train]), seed=1)
        rest = tf.data.Dataset.from_tensor_slices((words[train], numbers[train]))
        joined = tf.data.Dataset.zip((pictures, rest)).map(rows).shuffle(len(train), seed=2).batch(64)
        model.fit(joined.with_options(options), epochs=epochs, verbose=0)
        return model

    def pairs(image, caption):
        towers = layers.Concatenate(axis=1)([layers.Reshape((1, WIDTH))(each.output) for each in (image, caption)])
        model = keras.Model({"image": image.input, "words": caption.input}, towers)
        fitted(model, lambda picture, rest: ({"image": picture, "words": rest[0]}, rest[1]), Contrast())
        return image, caption

    teacher, reads = pairs(image_tower(wide, 0), caption_tower(vectorize.vocabulary_size(), 0))
    alone = pairs(image_tower(narrow, 1), caption_tower(vectorize.vocabulary_size(), 1))
    student = image_tower(narrow, 1)
    term = FeatureDistillation("mse", "vector", "vector")
    fitted(Distiller(teacher, student, term, [100.0], student_loss_weight=0.0), lambda picture, _: (picture,))
    for name, image, caption in (("teacher", teacher, reads), ("alone", *alone), ("distilled", student, reads)):
        found = image.predict(x[test], verbose=0), caption.predict(words[test], verbose=0)
        shown = ", ".join(f"recall@{k} {recall(*found, numbers[test], k):5.1f} %" for k in (1, 5, 10))
        print(f"{name:10} {image.count_params():8,} parameters of the image tower: {shown}", flush=True)


if __name__ == "__main__":
    main()
