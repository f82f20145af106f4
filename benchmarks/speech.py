"""Distilling a large speech recogniser into a small one: CTC on CMU AN4, and spoken digits as keywords.

AN4 (948 training utterances, 130 of other speakers for the test; 13 MFCC at 100 frames per second, three stacked): a
bidirectional GRU teaches a student of separable convolutions with less than an eighth of its weights, with every method
of the package: soft targets on all frames, without blanks, around spikes, guided CTC, 5-best lists; and also a causal,
streaming student. All students hear each utterance at five speeds, and the teacher answers each of them, once. Word
error rates of greedy decoding, by jiwer.

Spoken digits (2,700 training and 300 test recordings, 8 kHz): bidirectional GRUs on the package's log-mel layer teach
two convolutions with a tenth of their latency; all students also hear three copies of each recording, shifted in time.
``--held-out`` evaluates AN4 on the last 100 training utterances; speeds, noise and weights were chosen there, and the
settings for digits on 400 training recordings. Runs are kept, so that an interrupted benchmark resumes: ``python -m
benchmarks.speech --full`` (an hour of one core; ``--ways``, ``--seeds``, ``--tasks`` choose).
"""

from __future__ import annotations

import argparse
import io
import itertools
import pathlib
import statistics
import tempfile
import wave
import zipfile

from benchmarks import _harness, _resume

# isort: split
import keras
import numpy as np
import tensorflow as tf
from keras import layers

from benchmarks.senses import shifted
from keras_distill import Distiller, LogitsDistillation, adapters, data, losses, metrics, teachers

CLAIMS = {
    "an4": "A student of less than an eighth of the weights closes 60% of the gap in word error rate by distillation.",
    "digits": "A keyword student keeps 95% of its teacher's accuracy at a tenth of the latency.",
}
CHARACTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
CLASSES = len(CHARACTERS) + 1
STACKED, BATCH = 3, 32
FRAMES, LABELS = 144, 48  # students use batches of one shape, without the longest tenth of the utterances
TEACHER_EPOCHS = 16
SPEEDS = (1.0, 0.85, 0.93, 1.07, 1.15)
COPIES = 3  # of a spoken digit
SEEDED = ("alone", "all frames", "around spikes")  # methods that are repeated with every seed; the others have one
JUDGED = "all frames"  # chosen before any test result was known
WAYS = {
    "alone": None,
    "all frames": losses.FrameSoftTargets(),
    "without blanks": losses.FrameSoftTargets(keep="without_blanks"),
    "around spikes": losses.FrameSoftTargets(keep="around_spikes"),
    "guided": losses.GuidedCtc(),
    "5-best": None,
}


class Utterances:
    """Features and labels of one part of AN4, and batches of equal length.

    Args:
        features: one array (frames, 39) per utterance.
        texts: the transcripts.
    """

    def __init__(self, features: list[np.ndarray], texts: list[str]) -> None:
        self.features, self.texts = features, texts
        self.labels = [[CHARACTERS.index(c) + 1 for c in text] for text in texts]
        self.order = np.argsort([len(each) for each in features], kind="stable")

    def batches(
        self, extra: list[np.ndarray] | None = None, labels: list | None = None, seed: int = 0, fixed: bool = True
    ) -> tf.data.Dataset:
        """Batches ``(inputs, labels)``; with ``extra``, inputs are a dictionary of features and teacher's logits."""
        labels = self.labels if labels is None else labels
        chooser, order = np.random.default_rng(seed), self.order
        if fixed:
            fits = [len(self.features[i]) <= FRAMES and len(self.labels[i]) <= LABELS for i in order]
            order = order[np.array(fits)]
            order = order[len(order) % BATCH :]
        groups = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        frames, size = (FRAMES, BATCH) if fixed else (None, None)
        longest = {1: (LABELS,), 2: (5, LABELS + 1)}[np.ndim(labels[0])] if fixed else None

        def padded(rows: list, value: float, dtype: str, shape: tuple | None = None) -> np.ndarray:
            shape = shape or tuple(max(np.shape(row)[axis] for row in rows) for axis in range(np.ndim(rows[0])))
            out = np.full((len(rows), *shape), value, dtype)
            for into, row in zip(out, rows, strict=True):
                into[tuple(slice(0, size) for size in np.shape(row))] = row
            return out

        def each() -> object:
            for group in chooser.permutation(len(groups)):
                chosen = groups[group]
                shape = (FRAMES, 13 * STACKED) if fixed else None
                x = padded([self.features[i] for i in chosen], 0.0, "float32", shape)
                y = padded([labels[i] for i in chosen], -1, "float32" if np.ndim(labels[0]) == 2 else "int32", longest)
                if extra is not None:
                    logits = padded([extra[i] for i in chosen], 0.0, "float32", (FRAMES, CLASSES))
                    x = {"features": x, "teacher_logits": logits}
                yield x, y

        spec: object = tf.TensorSpec((size, frames, 13 * STACKED), tf.float32)
        if extra is not None:
            spec = {"features": spec, "teacher_logits": tf.TensorSpec((size, frames, CLASSES), tf.float32)}
        kind = tf.float32 if np.ndim(labels[0]) == 2 else tf.int32
        shape = (size, *(longest or [None] * np.ndim(labels[0])))
        options = tf.data.Options()
        options.autotune.enabled = False
        made = tf.data.Dataset.from_generator(each, output_signature=(spec, tf.TensorSpec(shape, kind)))
        return made.apply(tf.data.experimental.assert_cardinality(len(groups))).with_options(options).prefetch(2)

    def at_speeds(self, factors: tuple[float, ...]) -> Utterances:
        """Copies of the utterances whose length is multiplied by each factor; frames are interpolated."""
        features = []
        for factor, row in itertools.product(factors, self.features):
            at = np.linspace(0, len(row) - 1, max(2, round(len(row) * factor)))
            first = np.minimum(at.astype(int), len(row) - 2)
            share = (at - first)[:, None]
            features.append((row[first] * (1 - share) + row[first + 1] * share).astype("float32"))
        return Utterances(features, self.texts * len(factors))

    def logits(self, model: keras.Model) -> list[np.ndarray]:
        """The model's logits of each utterance, without padding."""
        out: list = [None] * len(self.features)
        for start in range(0, len(self.order), BATCH):
            chosen = self.order[start : start + BATCH]
            x = np.zeros((len(chosen), max(len(self.features[i]) for i in chosen), 13 * STACKED), "float32")
            for row, i in zip(x, chosen, strict=True):
                row[: len(self.features[i])] = self.features[i]
            for i, row in zip(chosen, np.asarray(model(x, training=False)), strict=True):
                out[i] = row[: len(self.features[i])]
        return out

    def error_rates(self, model: keras.Model) -> tuple[float, float]:
        """Word and character error rates of greedy decoding, in percent."""
        found = []
        for row in self.logits(model):
            labels = np.asarray(metrics.ctc_greedy_decode(row[None]))[0]
            found.append("".join(CHARACTERS[k - 1] for k in labels[labels > 0]))
        return 100 * metrics.word_error_rate(self.texts, found), 100 * metrics.character_error_rate(self.texts, found)


def an4(held_out: bool) -> tuple[Utterances, Utterances]:
    """Training and test part; with ``held_out`` the test part is the last 100 training utterances."""
    with np.load(_harness.DATA / "an4_mfcc" / "an4_mfcc13.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    mean, deviation = (getattr(arrays["train_feat"].astype("float64"), f)(0) for f in ("mean", "std"))

    def part(name: str, rows: slice) -> Utterances:
        bounds, scaled = arrays[f"{name}_offsets"], (arrays[f"{name}_feat"] - mean) / deviation
        features = []
        for a, b in itertools.pairwise(bounds.tolist()):
            whole = (b - a) // STACKED * STACKED
            features.append(scaled[a : a + whole].reshape(-1, 13 * STACKED).astype("float32"))
        return Utterances(features[rows], [" ".join(text.split()) for text in arrays[f"{name}_text"]][rows])

    if held_out:
        return part("train", slice(0, -100)), part("train", slice(-100, None))
    return part("train", slice(None)), part("test", slice(None))


def recogniser_teacher() -> keras.Model:
    """Two bidirectional GRUs."""
    x = inputs = keras.Input((None, 13 * STACKED), name="features")
    x = layers.GaussianNoise(0.4)(layers.Masking()(x))
    for _ in range(2):
        x = layers.Dropout(0.2)(layers.Bidirectional(layers.GRU(96, return_sequences=True))(x))
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def recogniser_student(causal: bool = False, noise: float = 0.1) -> keras.Model:
    """Separable convolutions with residuals; causal ones do not look ahead."""
    inputs = keras.Input((None, 13 * STACKED), name="features")
    masked = layers.Masking()(inputs)
    x = layers.Dense(56)(layers.GaussianNoise(noise)(masked))
    for dilation in (1, 2, 4, 1):
        filters = layers.LayerNormalization()(x)
        pad = (8 * dilation, 0) if causal else (4 * dilation, 4 * dilation)
        filters = layers.ZeroPadding1D(pad)(filters)
        filters = layers.SeparableConv1D(56, 9, dilation_rate=dilation, activation="relu")(filters)
        x = layers.add([x, filters])
        x = adapters.WithMask()([x, masked])  # convolutions drop it: padding would count as frames, in every loss
    return keras.Model(inputs, layers.Dense(CLASSES)(x))


def adam(steps: int, rate: float = 2e-3) -> keras.optimizers.Optimizer:
    """Adam with clipped gradients and a cosine decay."""
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps), global_clipnorm=5.0)


def with_stored_logits(student: keras.Model, logits: keras.KerasTensor) -> tuple[keras.Model, keras.Model]:
    """Return a teacher that returns logits from the batch, and the student as a model of the same batch."""
    inputs = {"features": student.input, "teacher_logits": logits}
    return keras.Model(inputs, layers.Activation("linear")(logits)), keras.Model(inputs, student.output)


def speech(report: _harness.Report, runs: _resume.Runs, scratch: pathlib.Path, options: argparse.Namespace) -> None:
    """Teacher, students of every method, the table and the verdicts."""
    full, (train, test) = options.full, an4(options.held_out)
    teacher_epochs, epochs = (TEACHER_EPOCHS, options.epochs) if full else (1, 1)
    heard_once, train = train, train.at_speeds(SPEEDS if full else SPEEDS[:2])
    steps = -(-len(train.features) // BATCH)
    stored = scratch / "an4_teacher.npz"
    teacher = recogniser_teacher()

    def train_teacher() -> dict:
        keras.utils.set_random_seed(0)
        model = recogniser_teacher()
        rounds = teacher_epochs * -(-len(heard_once.features) // BATCH)
        model.compile(adam(rounds, 4e-3), losses.Ctc(), jit_compile=False)
        model.fit(heard_once.batches(fixed=False), epochs=teacher_epochs, verbose=0)
        np.savez(stored, *model.get_weights())
        wer, cer = test.error_rates(model)
        return {"wer": wer, "cer": cer, "parameters": model.count_params()}

    heard = runs("teacher", train_teacher)
    if not stored.exists():
        heard = train_teacher()
    with np.load(stored) as arrays:
        teacher.set_weights([arrays[name] for name in arrays.files])
    said = train.logits(teacher)
    through = keras.Input((None, CLASSES), name="teacher_logits")
    lists: dict[str, list] = {}

    def hypotheses() -> list:
        if not lists:
            found, once = [], said[: len(heard_once.features)]
            passing = keras.Sequential([keras.Input((None, CLASSES)), layers.Masking(mask_value=-99.0)])
            for start in range(0, len(once), BATCH):
                rows = once[start : start + BATCH]
                longest = max(map(len, rows))
                x = np.stack([np.pad(row, ((0, longest - len(row)), (0, 0)), constant_values=-99.0) for row in rows])
                packed = teachers.n_best(passing, x, num_hypotheses=5, beam_width=8).packed()
                found += list(packed[:, :, : LABELS + 1])
            lists["found"] = found * (len(said) // len(once))  # the speed does not change what is said
        return lists["found"]

    def student(way: str, seed: int, causal: bool = False) -> dict:
        keras.utils.set_random_seed(seed)
        model = recogniser_student(causal)
        optimizer = adam(epochs * steps, 4e-3)
        if way == "alone":
            model.compile(optimizer, losses.Ctc(), jit_compile=False)
            model.fit(train.batches(seed=seed), epochs=epochs, verbose=0)
        elif way == "5-best":
            model.compile(optimizer, losses.NBestCtc(), jit_compile=False)
            model.fit(train.batches(labels=hypotheses(), seed=seed), epochs=epochs, verbose=0)
        else:
            parrot, fed = with_stored_logits(model, through)
            term = LogitsDistillation(temperature=1.0, loss=WAYS[way])
            weight, labels = (0.2, 0.5) if way == "guided" else (100.0, 0.1)
            distiller = Distiller(parrot, fed, term, [weight], student_loss_weight=labels)
            distiller.compile(optimizer, losses.Ctc(), jit_compile=False)
            distiller.fit(train.batches(said, seed=seed), epochs=epochs, verbose=0)
        wer, cer = test.error_rates(model)
        return {"wer": wer, "cer": cer, "parameters": model.count_params()}

    rates: dict[str, list[float]] = {}
    for way in (way for way in WAYS if way in options.ways):
        for seed in range(options.seeds if full and way in SEEDED else 1):
            cell = runs(f"{way} {seed}, {epochs} epochs", lambda way=way, seed=seed: student(way, seed))
            rates.setdefault(way, []).append(cell["wer"])
        report.add({"way": way}, {"wer": statistics.mean(rates[way]), "seeds": rates[way]})
    for way in (way for way in ("alone", "around spikes") if f"causal {way}" in options.ways):
        for seed in range(1):
            name = f"causal {way} {seed}, {epochs} epochs"
            cell = runs(name, lambda way=way, seed=seed: student(way, seed, causal=True))
            rates.setdefault(f"causal, {way}", []).append(cell["wer"])
        report.add({"way": f"causal, {way}"}, {"wer": statistics.mean(rates[f"causal, {way}"])})
    alone, taught = statistics.mean(rates["alone"]), statistics.mean(rates[JUDGED])
    report.add({"way": "teacher"}, heard)
    share = (alone - taught) / (alone - heard["wer"]) if alone > heard["wer"] else float("nan")
    report.verdict(f"share of the gap in WER that soft targets ({JUDGED}) close", share, at_least=0.6)
    size = runs.known[f"alone 0, {epochs} epochs"]["parameters"] / heard["parameters"]
    report.verdict("the student's share of the teacher's weights", size, at_most=1 / 8)


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Waveforms of one second and labels; recordings 0 to 4 of each speaker and digit are the test set."""
    sounds, labels, test = [], [], []
    with zipfile.ZipFile(_harness.DATA / "spoken_digit" / "recordings.zip") as archive:
        for name in sorted(each for each in archive.namelist() if each.endswith(".wav")):
            with wave.open(io.BytesIO(archive.read(name))) as file:
                sounds.append(np.frombuffer(file.readframes(file.getnframes()), "<i2")[:8000])
            digit, _, number = pathlib.Path(name).stem.split("_")
            labels.append(int(digit))
            test.append(int(number) < 5)
    x = data.waveforms(sounds, sampling_rate=8000, length=8000)
    y, chosen = np.array(labels, "int32"), np.array(test)
    return x[~chosen], y[~chosen], x[chosen], y[chosen]


def keyword_model(teaches: bool) -> keras.Model:
    """From samples to digits: bidirectional GRUs, or two separable convolutions."""
    inputs = keras.Input((8000,), name="features")
    x = adapters.LogMel(8000, 32, step_seconds=0.016, window_seconds=0.032)(inputs)
    if teaches:
        x = layers.Bidirectional(layers.GRU(64, return_sequences=True))(x)
        x = layers.Bidirectional(layers.GRU(64))(layers.Dropout(0.2)(x))
        return keras.Model(inputs, layers.Dense(10)(layers.Dropout(0.3)(x)))
    x = layers.Reshape((62, 32, 1))(x)
    for width in (12, 16):
        x = layers.SeparableConv2D(width, 3, strides=2, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10)(layers.Dropout(0.1)(layers.Flatten()(x))))


def keywords(report: _harness.Report, runs: _resume.Runs, scratch: pathlib.Path, full: bool) -> None:
    """Teacher and students on spoken digits: accuracy and latency of one waveform."""
    x, y, test_x, test_y = digits()
    x, y = (x, y) if full else (x[:200], y[:200])
    many_x, many_y = shifted(x, COPIES), np.tile(y, COPIES + 1)
    supervised = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher, stored = keyword_model(teaches=True), scratch / "digits_teacher.npz"

    def accuracy(model: keras.Model) -> float:
        return 100.0 * float(np.mean(model.predict(test_x, batch_size=100, verbose=0).argmax(-1) == test_y))

    def train_teacher() -> dict:
        keras.utils.set_random_seed(0)
        model = keyword_model(teaches=True)
        model.compile(adam((6 if full else 1) * len(x) // 50), supervised, jit_compile=False)
        model.fit(x, y, batch_size=50, epochs=6 if full else 1, verbose=0)
        np.savez(stored, *model.get_weights())
        return {"accuracy": accuracy(model), "parameters": model.count_params()}

    heard = runs("digits teacher", train_teacher)
    if not stored.exists():
        heard = train_teacher()
    with np.load(stored) as arrays:
        teacher.set_weights([arrays[name] for name in arrays.files])
    said = teacher.predict(many_x, batch_size=100, verbose=0)

    def student(taught: bool, seed: int) -> dict:
        keras.utils.set_random_seed(seed)
        model = keyword_model(teaches=False)
        epochs = 10 if full else 1
        optimizer = adam(epochs * len(many_x) // 50, 4e-3)
        if taught:
            parrot, fed = with_stored_logits(model, keras.Input((10,), name="teacher_logits"))
            distiller = Distiller(parrot, fed, LogitsDistillation(temperature=3.0), student_loss_weight=0.3)
            distiller.compile(optimizer, supervised, jit_compile=False)
            distiller.fit({"features": many_x, "teacher_logits": said}, many_y, batch_size=50, epochs=epochs, verbose=0)
        else:
            model.compile(optimizer, supervised, jit_compile=False)
            model.fit(many_x, many_y, batch_size=50, epochs=epochs, verbose=0)
        return {"accuracy": accuracy(model), "parameters": model.count_params()}

    found = {
        taught: [
            runs(f"digits {'taught' if taught else 'alone'} {seed}", lambda t=taught, s=seed: student(t, s))["accuracy"]
            for seed in range(3 if full else 1)
        ]
        for taught in (False, True)
    }
    models = {"teacher": teacher, "student": keyword_model(teaches=False)}
    calls = {name: tf.function(model, input_signature=[tf.TensorSpec((1, 8000))]) for name, model in models.items()}
    one = tf.constant(test_x[:1])
    timed = {name: (lambda call=call: len([call(one) for _ in range(5)])) for name, call in calls.items()}
    for call in timed.values():
        call()
    ratio = _harness.paired(timed, rounds=25 if full else 3).ratio("student", "teacher").median
    alone, taught = (statistics.mean(found[taught]) for taught in (False, True))
    report.add({"task": "digits"}, {"teacher": heard["accuracy"], "alone": alone, "taught": taught, "latency": ratio})
    report.verdict("keyword student's share of the teacher's accuracy", taught / heard["accuracy"], at_least=0.95)
    report.verdict("keyword student's share of the teacher's latency", ratio, at_most=0.1)


def main() -> None:
    """Run the missing parts, evaluate all."""
    every = [*WAYS, "causal alone", "causal around spikes"]
    options = _harness.arguments(
        __doc__ or "",
        held_out={"action": "store_true", "help": "judge on training utterances kept aside"},
        tasks={"nargs": "+", "default": ["digits", "an4"], "choices": ["digits", "an4"]},
        seeds={"type": int, "default": 1, "help": "of the ways on AN4 that are repeated"},
        epochs={"type": int, "default": 12, "help": "of the students on AN4, each with five copies"},
        ways={"nargs": "+", "default": every, "choices": every, "help": "on AN4"},
    )
    name = f"keras_distill_speech_{'full' if options.full else 'quick'}{'_held_out' if options.held_out else ''}"
    scratch = pathlib.Path(tempfile.gettempdir()) / name
    scratch.mkdir(exist_ok=True)
    runs = _resume.Runs(scratch / "cells.json")
    for task in options.tasks:
        report = _harness.Report(f"speech_{task}{'_held_out' * options.held_out}", CLAIMS[task], options)
        if task == "digits":
            keywords(report, runs, scratch, options.full)
        else:
            speech(report, runs, scratch, options)
        report.write()


if __name__ == "__main__":
    main()
