"""Cross-modal distillation from written to spoken digits: pairs of image and recording, without labels for the student.

Run: python examples/spoken_and_written.py (MNIST and spoken digits under $KERAS_DISTILL_DATA; --smoke: scikit-learn's
digits and synthetic tones, under a minute)

The teacher's inputs are images. The student's are log-mel spectrograms of recordings, each paired with an image of the
same digit; it learns only the teacher's predictions. A second student has both modalities, each left out at random
during training, and is evaluated with both and without the image.
"""

import argparse
import os
import pathlib
import zipfile

import keras
import numpy as np
from keras import layers, ops

from keras_distill import Distiller, LogitsDistillation, adapters, data, teachers

RATE, LENGTH = 8000, 8000


def recordings(smoke):
    """Return waveforms (n, LENGTH) in -1..1 and digits, for training and for the test."""
    if smoke:
        rng, digits = np.random.default_rng(0), np.arange(160) % 10
        time = np.arange(LENGTH) / RATE
        tones = np.sin(2 * np.pi * (300 + 150 * digits[:, None]) * time * rng.uniform(0.97, 1.03, (160, 1)))
        waves = (0.3 * tones + rng.normal(0, 0.1, tones.shape)).astype("float32")
        return (waves[:128], digits[:128]), (waves[128:], digits[128:])
    beside = pathlib.Path(__file__).parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or beside)
    parts = {True: ([], []), False: ([], [])}
    with zipfile.ZipFile(folder / "spoken_digit" / "recordings.zip") as archive:
        for name in sorted(each for each in archive.namelist() if each.endswith(".wav")):
            digit, _, take = pathlib.Path(name).stem.split("_")
            samples = np.frombuffer(archive.read(name)[44:], "<i2").astype("float32") / 32768
            wave = np.zeros(LENGTH, "float32")
            wave[: min(LENGTH, len(samples))] = samples[:LENGTH]
            parts[int(take) < 5][0].append(wave)  # the publisher's test set: the first five takes
            parts[int(take) < 5][1].append(int(digit))
    return tuple((np.stack(parts[test][0]), np.array(parts[test][1])) for test in (False, True))


def spectrograms(waves):
    """Log-mel spectrograms, (n, frames, 40, 1), each normalised separately."""
    mel = adapters.LogMel(RATE, 40, step_seconds=0.016, window_seconds=0.032)
    return np.concatenate([np.asarray(mel(each)) for each in np.array_split(waves, 10)])[..., None]


def paired(pictures, labels, digits, seed):
    """Return an image of the same digit for each recording."""
    rng = np.random.default_rng(seed)
    places = [np.flatnonzero(labels == digit) for digit in range(10)]
    return pictures[[rng.choice(places[digit]) for digit in digits]]


def tower(shape, width):
    """A small CNN that ends in features."""
    stack = [keras.Input(shape)]
    for filters in (width, 2 * width, 2 * width):
        stack += [layers.Conv2D(filters, 3, padding="same", use_bias=False), layers.BatchNormalization(momentum=0.9)]
        stack += [layers.ReLU(), layers.MaxPooling2D(2, padding="same")]
    return keras.Sequential([*stack, layers.GlobalAveragePooling2D()])


def recogniser(shape, width):
    """Classify recordings."""
    return keras.Sequential([tower(shape, width), layers.Dense(10)])


@keras.saving.register_keras_serializable(package="examples")
class MissingModality(layers.Layer):
    """Leaves out a whole modality of an example with a given probability during training."""

    def call(self, x, training=False):
        """Return the features, or zeros."""
        kept = keras.random.uniform((ops.shape(x)[0], 1)) > 0.3
        return ops.where(kept, x / 0.7, 0.0) if training else x


def both_modalities(picture_shape, sound_shape, width):
    """Classify an image and a recording; an input of zeros is a missing modality."""
    picture, sound = keras.Input(picture_shape, name="picture"), keras.Input(sound_shape, name="sound")
    first = MissingModality()(tower(picture_shape, width)(picture))
    second = MissingModality()(tower(sound_shape, width)(sound))
    return keras.Model({"picture": picture, "sound": sound}, layers.Dense(10)(layers.Concatenate()([first, second])))


def main():
    """Train, and print accuracies on the test recordings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="digits and tones")
    smoke = parser.parse_args().smoke
    keras.utils.set_random_seed(0)
    (waves, digits), (test_waves, test_digits) = recordings(smoke)
    written = data.load("digits" if smoke else "mnist")
    sound, test_sound = spectrograms(waves), spectrograms(test_waves)
    picture = paired(written.train.inputs, written.train.labels, digits, 0)
    test_picture = paired(written.test.inputs, written.test.labels, test_digits, 1)
    epochs, shape, width = (2 if smoke else 15), picture.shape[1:], 16
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher = keras.Sequential([tower(shape, 32), layers.Dense(10)])
    teacher.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
    some = written.train.take(960 if smoke else 20_000)
    teacher.fit(some.inputs, some.labels, epochs=2, batch_size=64, verbose=0)

    def accuracy(model, x):
        return 100 * float(np.mean(model.predict(x, verbose=0).argmax(1) == test_digits))

    print(f"teacher, image: {accuracy(teacher, test_picture):.1f} %")
    batch = {"picture": picture, "sound": sound}
    for name, student, view in (
        ("sound, learned without labels", recogniser(sound.shape[1:], width), lambda x: x["sound"]),
        ("image and sound", both_modalities(shape, sound.shape[1:], width), lambda x: x),
    ):
        paired_teacher = teachers.Preprocessed(teacher, lambda x: x["picture"], view)
        distiller = Distiller(paired_teacher, student, LogitsDistillation(2.0), student_loss_weight=0.0)
        falling = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-len(digits) // 32))
        distiller.compile(keras.optimizers.Adam(falling), jit_compile=False)
        distiller.fit(batch, epochs=epochs, batch_size=32, verbose=0)
        inputs = {"picture": test_picture, "sound": test_sound}
        print(f"student, {name}: {accuracy(student, view(inputs)):.1f} %")
    missing = {**inputs, "picture": np.zeros_like(test_picture)}
    print(f"the same without the image: {accuracy(student, missing):.1f} %")


if __name__ == "__main__":
    main()
