"""Spoken digits from waveform to word: recurrent teacher, small convolutional student, both include the front end.

Data: spoken_digit (2,700 recordings to learn from, 300 to report on) under ``$KERAS_DISTILL_DATA``. The log-mel
features are a layer, so that the exported student takes a waveform.

Run: ``python examples/keyword_spotting.py`` (estimated: 6 core-minutes; ``--smoke``, on made-up tones: half a minute).
"""

import argparse
import io
import os
import pathlib
import time
import wave
import zipfile

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_distill import Distiller, LogitsDistillation, adapters, data

RATE, SAMPLES = 8000, 8000


def recordings() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Waveforms, digits, and which of them are the test set: recordings 0 to 4 of each speaker and digit."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    path = pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or default) / "spoken_digit" / "recordings.zip"
    sounds, labels, test = [], [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(each for each in archive.namelist() if each.endswith(".wav")):
            with wave.open(io.BytesIO(archive.read(name))) as file:
                sounds.append(np.frombuffer(file.readframes(file.getnframes()), "<i2")[:SAMPLES])
            digit, _, number = pathlib.Path(name).stem.split("_")
            labels.append(int(digit))
            test.append(int(number) < 5)
    x = data.waveforms(sounds, sampling_rate=RATE, expected_rate=RATE, length=SAMPLES)
    return x, np.array(labels, "int32"), np.array(test)


def tones(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One pitch per digit, with noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 10
    sounds = [0.3 * np.sin(np.arange(4000) * (0.1 + 0.2 * label)) + 0.02 * rng.normal(size=4000) for label in labels]
    return data.waveforms(sounds, sampling_rate=RATE, length=SAMPLES), labels.astype("int32"), np.arange(count) % 4 == 0


def network(teaches: bool) -> keras.Model:
    """From a second of sound to ten logits."""
    inputs = keras.Input((SAMPLES,), name="waveform")
    x = adapters.LogMel(RATE, 32, window_seconds=0.032, step_seconds=0.016)(inputs)
    if teaches:
        x = layers.Bidirectional(layers.GRU(64, return_sequences=True))(x)
        x = layers.Bidirectional(layers.GRU(64))(layers.Dropout(0.2)(x))
        return keras.Model(inputs, layers.Dense(10)(layers.Dropout(0.3)(x)))
    x = layers.Reshape((62, 32, 1))(x)
    for width in (12, 16):
        x = layers.SeparableConv2D(width, 3, strides=2, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10)(layers.Dropout(0.1)(layers.Flatten()(x))))


def main() -> None:
    """Train the teacher, then the student with and without it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    x, y, test = tones(60) if options.smoke else recordings()
    epochs, seeds = ((1, 2), 1) if options.smoke else ((8, 20), options.seeds)
    supervised = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def fitted(model: keras.Model, count: int) -> None:
        steps = count * -(-int((~test).sum()) // 50)
        rate = keras.optimizers.schedules.CosineDecay(4e-3, steps)
        model.compile(keras.optimizers.Adam(rate), supervised, jit_compile=False)
        model.fit(x[~test], y[~test], batch_size=50, epochs=count, verbose=0)

    def accuracy(model: keras.Model) -> float:
        return 100.0 * float(np.mean(model.predict(x[test], batch_size=100, verbose=0).argmax(-1) == y[test]))

    def milliseconds(model: keras.Model) -> float:
        function = tf.function(lambda waveform: model(waveform, training=False))
        function(x[:1])
        began = time.perf_counter()
        for _ in range(20):
            function(x[:1])
        return 1e3 * (time.perf_counter() - began) / 20

    keras.utils.set_random_seed(0)
    teacher = network(teaches=True)
    fitted(teacher, epochs[0])
    print(f"teacher {accuracy(teacher):.2f} %, {milliseconds(teacher):.2f} ms", flush=True)
    for taught in (False, True):
        scores = []
        for seed in range(seeds):
            keras.utils.set_random_seed(seed)
            student = network(teaches=False)
            term = LogitsDistillation(temperature=3.0)
            fitted(Distiller(teacher, student, term, student_loss_weight=0.3) if taught else student, epochs[1])
            scores.append(accuracy(student))
        name = "student taught" if taught else "student alone"
        print(f"{name} {np.mean(scores):.2f} % ({seeds} seeds), {milliseconds(student):.2f} ms", flush=True)


if __name__ == "__main__":
    main()
