"""LibriSpeech with CTC: a bidirectional teacher and a causal, streaming student, both from waveform to letters.

This is a recipe for a machine with the data: ``tfds`` downloads LibriSpeech (about 60 GB in all). The student learns
the teacher's sentences (5-best, exact posteriors), because a causal model emits labels later than a bidirectional one,
so that their frames do not match. ``--smoke`` uses prompts of ``asterisk_speech_en`` under ``$KERAS_DISTILL_DATA``, or
synthetic tones if there are none, and only checks that everything runs.

Run: ``python examples/librispeech_ctc.py`` (not measured here: days on a CPU, take a GPU; ``--smoke``: about a minute).
"""

import argparse
import os
import pathlib

import keras
import numpy as np
from keras import layers

from keras_distill import adapters, data, losses, metrics, teachers

LETTERS = " abcdefghijklmnopqrstuvwxyz'"
Sounds = list[tuple[np.ndarray, str]]


def librispeech(split: str, most_seconds: float) -> Sounds:
    """Utterances of one split, without those too long for the memory."""
    import tensorflow_datasets as tfds

    rows = tfds.as_numpy(tfds.load("librispeech", split=split))
    kept = ((row["speech"].astype("int16"), row["text"].decode().lower()) for row in rows)
    return [(sound, text) for sound, text in kept if len(sound) <= most_seconds * 16000]


def prompts(count: int) -> Sounds:
    """Short prompts of a telephone exchange, 8 kHz, mu-law; or tones that stand for "a" and "b"."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    path = pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or default) / "asterisk_speech_en/asterisk_en_mulaw8k.npz"
    if not path.exists():
        rng = np.random.default_rng(0)
        time, letters = np.arange(2400), ["".join(rng.choice(["a", "b"], 2)) for _ in range(count)]
        tones = [np.concatenate([np.sin(time * (0.2 if c == "a" else 0.9)) for c in text]) for text in letters]
        return [(0.3 * tone.astype("float32"), text) for tone, text in zip(tones, letters, strict=True)]
    with np.load(path) as stored:
        wave, bounds, texts = (stored[name] for name in ("wave", "offsets", "text"))
    shortest = np.argsort(np.diff(bounds), kind="stable")[:count]
    found = []
    for i in shortest:
        scaled = wave[bounds[i] : bounds[i + 1]] / 127.5 - 1.0
        sound = np.sign(scaled) * (256.0 ** np.abs(scaled) - 1.0) / 255.0
        found.append((sound.astype("float32"), "".join(c for c in str(texts[i]).lower() if c in LETTERS).strip()))
    return found


def recogniser(rate: int, samples: int, width: int, depth: int, causal: bool) -> keras.Model:
    """Log-mel, every second frame, GRUs, one distribution over letters per frame."""
    waveform = keras.Input((samples,), name="waveform")
    x = adapters.LogMel(rate, 40)(waveform)
    for index in range(depth):
        gru = layers.GRU(width, return_sequences=True)
        x = gru(x) if causal else layers.Bidirectional(gru)(x)
        x = Halve()(x) if index == 0 else x
    return keras.Model(waveform, layers.Dense(len(LETTERS) + 1)(x))


@keras.saving.register_keras_serializable(package="librispeech_ctc")
class Halve(layers.Layer):
    """Every second frame, and its mask."""

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Return every second frame."""
        return inputs[:, ::2]

    def compute_mask(self, inputs: keras.KerasTensor, mask: keras.KerasTensor = None) -> keras.KerasTensor:
        """Return every second entry of the mask."""
        return None if mask is None else mask[:, ::2]


def arrays(sounds: Sounds, rate: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Waveforms and labels that CTC can align, and their texts."""
    frames = [len(sound) // (rate // 100) // 2 for sound, _ in sounds]
    labels = [[LETTERS.index(c) + 1 for c in text] for _, text in sounds]
    fits = data.fitting_labels(labels, frames, num_classes=len(LETTERS) + 1)
    kept = [i for i in range(len(sounds)) if fits[i] and labels[i]]
    x = data.waveforms([sounds[i][0] for i in kept], sampling_rate=rate)
    y = np.full((len(kept), max(len(labels[i]) for i in kept)), -1)
    for row, i in zip(y, kept, strict=True):
        row[: len(labels[i])] = labels[i]
    return x, y, [sounds[i][1] for i in kept]


def word_error_rate(model: keras.Model, x: np.ndarray, texts: list[str], beam: bool = False) -> float:
    """Word error rate in percent, by jiwer."""
    logits = model(x)
    if beam:
        rows = [found[0].labels for found in metrics.ctc_beam_decode(logits, beam_width=8)]
    else:
        rows = [row[row > 0] for row in metrics.ctc_greedy_decode(logits).numpy()]
    found = ["".join(LETTERS[k - 1] for k in row) for row in rows]
    return 100.0 * metrics.word_error_rate(texts, found)


def main() -> None:
    """Train the teacher, compute its best sentences, train the student on them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--split", default="train_clean100")
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    small, large = (8000, ((16, 1), (8, 1)), 1), (16000, ((512, 5), (128, 3)), options.epochs)
    rate, sizes, epochs = small if options.smoke else large
    sounds = prompts(16) if options.smoke else librispeech(options.split, 16.0)
    x, y, texts = arrays(sounds, rate)
    test_x, _, test_texts = (x, y, texts) if options.smoke else arrays(librispeech("test_clean", 35.0), rate)
    batch = 8 if options.smoke else 16

    def trained(model: keras.Model, loss: keras.losses.Loss, targets: np.ndarray) -> keras.Model:
        model.compile(keras.optimizers.Adam(1e-3, global_clipnorm=5.0), loss, jit_compile=False)
        model.fit(x, targets, batch_size=batch, epochs=epochs, verbose=0)
        return model

    samples = max(x.shape[1], test_x.shape[1]) if options.smoke else None
    teacher = trained(recogniser(rate, samples, *sizes[0], causal=False), losses.Ctc(), y)
    best = teachers.n_best(teacher, x, num_hypotheses=5, beam_width=8, batch_size=batch)
    student = trained(recogniser(rate, samples, *sizes[1], causal=True), losses.NBestCtc(), best.packed())
    alone = trained(recogniser(rate, samples, *sizes[1], causal=True), losses.Ctc(), y)
    for name, model in (("teacher", teacher), ("student alone", alone), ("student taught", student)):
        greedy = word_error_rate(model, test_x, test_texts)
        print(f"{name:15} WER {greedy:6.2f} %, {model.count_params():,} parameters", flush=True)
    print(f"teacher by beam WER {word_error_rate(teacher, test_x, test_texts, beam=True):6.2f} %")


if __name__ == "__main__":
    main()
