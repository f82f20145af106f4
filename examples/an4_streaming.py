"""A streaming recogniser learns from one that sees whole utterances: CMU AN4, a few words each.

The teacher is bidirectional. The student is causal except for a look-ahead of a few frames, so that it produces labels
while someone speaks. It is trained alone, on the teacher's frames, as in hybrid DNN-HMM systems (cross-entropy on
frames aligned by the teacher), and on the teacher's best sentences. Word error rates of greedy decoding, by jiwer.

Run: ``python examples/an4_streaming.py`` (an4_mfcc under ``$KERAS_DISTILL_DATA``; estimated: 15 core-minutes;
``--smoke``, on made-up features: half a minute). ``benchmarks/speech.py`` compares more ways.
"""

import argparse
import itertools
import os
import pathlib

import keras
import numpy as np
from keras import layers

from keras_distill import Distiller, LogitsDistillation, adapters, losses, metrics, teachers

CHARACTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
CLASSES, STACKED, LOOK_AHEAD = len(CHARACTERS) + 1, 3, 4


def an4(part):
    """Return features (frames, 39), three stacked frames of 10 ms, and the text of each utterance."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or beside)
    with np.load(folder / "an4_mfcc" / "an4_mfcc13.npz") as stored:
        scale = stored["train_feat"].astype("float64")
        rows = (stored[f"{part}_feat"] - scale.mean(0)) / scale.std(0)
        bounds, texts = stored[f"{part}_offsets"], stored[f"{part}_text"]
    texts = [" ".join(text.split()) for text in texts]
    cut = [rows[a : a + (b - a) // STACKED * STACKED] for a, b in itertools.pairwise(bounds)]
    return [each.reshape(-1, 13 * STACKED).astype("float32") for each in cut], [
        " ".join(text.split()) for text in texts
    ]


def made_up(count, seed):
    """Return features in which each letter is active for three frames, followed by a pause."""
    rng, sounds, texts = np.random.default_rng(seed), [], []
    for _ in range(count):
        text = "".join(rng.choice(["A", "B", "C"], rng.integers(2, 4)))
        frames = np.zeros((4 * len(text), 13 * STACKED))
        for index, letter in enumerate(text):
            frames[4 * index : 4 * index + 3, CHARACTERS.index(letter)] = 2.0
        sounds.append((frames + rng.normal(0, 0.2, frames.shape)).astype("float32"))
        texts.append(text)
    return sounds, texts


def padded(sounds, texts):
    """Return (utterances, frames, 39) and labels, padded with 0 and -1."""
    x = np.zeros((len(sounds), max(map(len, sounds)), 13 * STACKED), "float32")
    y = np.full((len(sounds), max(map(len, texts))), -1, "int32")
    for index, (sound, text) in enumerate(zip(sounds, texts, strict=True)):
        x[index, : len(sound)] = sound
        y[index, : len(text)] = [CHARACTERS.index(c) + 1 for c in text]
    return x, y


def bidirectional(width):
    """Two bidirectional GRUs."""
    x = inputs = keras.Input((None, 13 * STACKED))
    x = layers.GaussianNoise(0.4)(layers.Masking()(x))
    for _ in range(2):
        x = layers.Dropout(0.2)(layers.Bidirectional(layers.GRU(width, return_sequences=True))(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def streaming(width, seed=0):
    """Separable convolutions over the past; only the first looks a few frames ahead."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((None, 13 * STACKED))
    masked = layers.Masking()(inputs)
    x = layers.Dense(width)(layers.GaussianNoise(0.4)(masked))
    for index, dilation in enumerate((1, 2, 4, 1)):
        ahead = LOOK_AHEAD if index == 0 else 0
        h = layers.ZeroPadding1D((8 * dilation - ahead, ahead))(layers.LayerNormalization()(x))
        h = layers.SeparableConv1D(width, 9, dilation_rate=dilation, activation="relu")(h)
        x = adapters.WithMask()([layers.add([x, layers.Dropout(0.1)(h)]), masked])  # convolutions drop the mask
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def word_error_rate(model, sounds, texts):
    """Word error rate of greedy decoding, in percent."""
    found = []
    for start in range(0, len(sounds), 32):
        rows = metrics.ctc_greedy_decode(model(padded(sounds[start : start + 32], texts[start : start + 32])[0]))
        found += ["".join(CHARACTERS[k - 1] for k in row[row > 0]) for row in rows.numpy()]
    return 100.0 * metrics.word_error_rate(texts, found)


def utterances(smoke):
    """Return features and texts for training and for the test; those for training also padded."""
    train, test = (made_up(32, 0), made_up(8, 1)) if smoke else (an4("train"), an4("test"))
    if not smoke:  # without the longest tenth, so that batches are not mostly padding
        kept = [i for i, sound in enumerate(train[0]) if len(sound) <= 144]
        train = [train[0][i] for i in kept], [train[1][i] for i in kept]
    return *padded(*train), test


def main():
    """Train the teacher, then the student in four ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--epochs", type=int, default=16)
    options = parser.parse_args()
    x, y, test = utterances(options.smoke)
    epochs, widths = (2, (16, 12)) if options.smoke else (options.epochs, (96, 56))

    def fitted(model, loss, target):
        rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * -(-len(x) // 16))
        model.compile(keras.optimizers.Adam(rate, global_clipnorm=5.0), loss, jit_compile=False)
        model.fit(x, target, batch_size=16, epochs=epochs, verbose=0)
        return model

    keras.utils.set_random_seed(0)
    teacher = fitted(bidirectional(widths[0]), losses.Ctc(), y)
    logits = np.concatenate([np.asarray(teacher(x[i : i + 64])) for i in range(0, len(x), 64)])
    aligned = metrics.ctc_align(y, logits, mask=np.any(x != 0.0, axis=-1)).frames
    best = teachers.n_best(teacher, x, num_hypotheses=5, beam_width=8, batch_size=32)
    by_frame = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    frames = LogitsDistillation(temperature=1.0, loss=losses.FrameSoftTargets(keep="around_spikes"))
    ways = {
        "alone": lambda student: fitted(student, losses.Ctc(), y),
        "teacher's frames": lambda student: fitted(Distiller(teacher, student, frames), losses.Ctc(), y),
        "aligned frames": lambda student: fitted(student, by_frame, aligned),
        "teacher's sentences": lambda student: fitted(student, losses.NBestCtc(), best.packed()),
    }
    print(f"teacher              WER {word_error_rate(teacher, *test):6.2f} %, {teacher.count_params():,} parameters")
    for name in list(ways)[1:3] if options.smoke else ways:  # each compiles its own loss, which is slow
        student = streaming(widths[1])
        ways[name](student)
        print(
            f"{name:20} WER {word_error_rate(student, *test):6.2f} %, {student.count_params():,} parameters", flush=True
        )
    half = x.shape[1] // 2
    early, late = student(x[:4, :half]), student(x[:4])[:, : half - LOOK_AHEAD]
    moved = float(np.abs(np.asarray(early)[:, : half - LOOK_AHEAD] - np.asarray(late)).max())
    print(f"largest change of an answer by what comes {LOOK_AHEAD} frames later: {moved:.1e}")


if __name__ == "__main__":
    main()
