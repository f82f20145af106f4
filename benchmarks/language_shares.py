"""The weight of labels in distilling a small language model: weights from 0 to 1 at two temperatures.

Six novels, the first nine tenths of each for training; words outside the 1000 most frequent share one id. A causal
transformer is trained on labels; a smaller one learns from labels and teacher for 400 steps. Three explanations are
distinguished: an error (the gradient of a mixture is not the mixture of the gradients), a scale (one part's gradient is
much smaller, so that the other dominates), and neither (the teacher is more informative than the labels). Each run is
kept, so that an interrupted benchmark resumes; after ``--minutes`` no further run is started, and the complete seeds
are evaluated. Run with ``python -m benchmarks.language_shares --full``; without ``--full`` one seed of 20 steps,
without verdicts.
"""

from __future__ import annotations

import lzma
import os
import pathlib
import re
import statistics
import tempfile
import time
from collections import Counter

from benchmarks import _harness
from benchmarks._resume import Runs

# isort: split
import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill import Distiller, LogitsDistillation
from keras_distill.training._batch import Batch

CLAIM = (
    "The gradient for mixed labels and teacher is the mixture of their gradients, and the teacher helps at both "
    "temperatures."
)
WORDS, TIME, BATCH, STEPS, TEACHER_STEPS = 1000, 32, 16, 400, 1500
SEEDS = 5
CELLS = ((1.0, 1.0), *((share, 1.0) for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)), (0.0, 3.0), (0.5, 3.0), (0.9, 3.0))
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Word ids of the novels for training and for the test; 0 stands for infrequent words."""
    folder = pathlib.Path(os.environ.get("KERAS_DISTILL_TEXTS", _harness.ROOT.parent / "shared/data/text_english"))
    novels = [
        re.findall(r"[a-z']+|[.,;!?]", lzma.open(path, "rt", encoding="utf-8").read().lower())
        for path in sorted(folder.glob("austen_*.txt.xz"))
    ]
    cuts = [len(novel) * 9 // 10 for novel in novels]
    counted = Counter(word for novel, cut in zip(novels, cuts, strict=True) for word in novel[:cut])
    ids = {word: index + 1 for index, (word, _) in enumerate(counted.most_common(WORDS - 1))}
    numbers = [np.array([ids.get(word, 0) for word in novel], "int32") for novel in novels]
    parts = [(each[:cut], each[cut:]) for each, cut in zip(numbers, cuts, strict=True)]
    return np.concatenate([part for part, _ in parts]), np.concatenate([part for _, part in parts])


def windows(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Windows of the text, (n, time), and the next word for each word."""
    count = (len(words) - 1) // TIME
    return words[: count * TIME].reshape(count, TIME), words[1 : count * TIME + 1].reshape(count, TIME)


def network(width: int, layers: int) -> keras.Model:
    """A causal transformer."""
    inputs = keras.Input((TIME,), dtype="int32")
    places = keras.layers.Embedding(TIME, width)(ops.arange(TIME))
    z = keras.layers.Embedding(WORDS, width)(inputs) + places
    for _ in range(layers):
        y = keras.layers.LayerNormalization()(z)
        z = z + keras.layers.MultiHeadAttention(4, width // 4)(y, y, use_causal_mask=True)
        y = keras.layers.Dense(4 * width, "gelu")(keras.layers.LayerNormalization()(z))
        z = z + keras.layers.Dense(width)(y)
    return keras.Model(inputs, keras.layers.Dense(WORDS)(keras.layers.LayerNormalization()(z)))


def batches(x: np.ndarray, y: np.ndarray, steps: int, seed: int) -> tf.data.Dataset:
    """Batches in a random order determined by the seed."""
    chosen = np.random.default_rng(seed).integers(0, len(x), (steps, BATCH))
    data = tf.data.Dataset.from_tensor_slices(chosen).map(lambda rows: (tf.gather(x, rows), tf.gather(y, rows)))
    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


def perplexity(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Perplexity per word, at temperature 1."""
    total, size = 0.0, 128
    call = tf.function(lambda words: model(words, training=False), reduce_retracing=True)
    for start in range(0, len(x), size):
        logits = call(tf.constant(x[start : start + size]))
        part = keras.losses.sparse_categorical_crossentropy(y[start : start + size], logits, from_logits=True)
        total += float(ops.sum(part))
    return float(np.exp(total / y.size))


class Experiment:
    """The text, the teacher and one run.

    Args:
        full: all steps.
        folder: where the teacher's weights are kept.
    """

    def __init__(self, full: bool, folder: pathlib.Path) -> None:
        self.steps = STEPS if full else 20
        train, test = texts()
        self.x, self.y = windows(train)
        self.test_x, self.test_y = windows(test)
        if not full:
            self.test_x, self.test_y = self.test_x[:128], self.test_y[:128]
        keras.utils.set_random_seed(0)
        self.teacher = network(128, 2)
        kept = folder / f"language_teacher_{'full' if full else 'quick'}.weights.h5"
        if not kept.exists():
            steps = TEACHER_STEPS if full else 20
            self.teacher.compile(
                keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)), CROSS_ENTROPY
            )
            self.teacher.fit(batches(self.x, self.y, steps, 99), verbose=0)
            folder.mkdir(parents=True, exist_ok=True)
            self.teacher.save_weights(kept)
        self.teacher.load_weights(kept)

    def prepare(self) -> None:
        """Compile one distiller for all runs: loss weights, temperatures and model weights are assigned."""
        self.term = LogitsDistillation(temperature=1.0)
        self.model = Distiller(self.teacher, network(48, 2), self.term)
        rate = keras.optimizers.schedules.CosineDecay(3e-3, self.steps)
        self.model.compile(keras.optimizers.Adam(rate), CROSS_ENTROPY)
        self.x_seen, self.y_seen = (tf.constant(each[:: len(each) // 64][:64]) for each in (self.x, self.y))
        self.gradient = tf.function(self._gradient)

    def _gradient(self) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = self.model.measure(Batch(self.x_seen, self.y_seen), training=True).to_minimize
        found = tape.gradient(loss, self.model.student.trainable_variables)
        return tf.concat([tf.reshape(tf.convert_to_tensor(each), [-1]) for each in found], axis=0)

    def run(self, share: float, temperature: float, seed: int) -> dict[str, float]:
        """Train a student; its perplexity, and how the gradients of the two parts compare before and after."""
        started = time.monotonic()
        keras.utils.set_random_seed(seed)
        self.model.student.set_weights(network(48, 2).get_weights())
        for variable in self.model.optimizer.variables:
            variable.assign(ops.zeros_like(variable))
        self.term.temperature = temperature
        found = {f"{key}, before": value for key, value in self.compare(share).items()}
        self.model.fit(batches(self.x, self.y, self.steps, seed), verbose=0)
        found |= {f"{key}, after": value for key, value in self.compare(share).items()}
        reached = perplexity(self.model.student, self.test_x, self.test_y)
        return {"perplexity": reached, **found, "seconds": time.monotonic() - started}

    def compare(self, share: float) -> dict[str, float]:
        """The norm of the teacher's gradient relative to that of the labels, and the error of a mixture's gradient."""
        vectors = []
        for each in (0.0, 1.0, share):  # the run's own weight last, so that it remains set
            self.model.student_loss_weight = each
            vectors.append(self.gradient().numpy().astype("float64"))
        teacher, labels, mixed = vectors
        error = np.abs(mixed - share * labels - (1 - share) * teacher).max() / np.abs(mixed).max()
        norms = np.linalg.norm(teacher), np.linalg.norm(labels)
        cosine = teacher @ labels / (norms[0] * norms[1])
        return {"ratio": float(norms[0] / norms[1]), "cosine": float(cosine), "error": float(error)}


def main() -> None:
    """Run the missing parts, evaluate all."""
    more = {"seeds": {"type": int, "default": SEEDS}, "minutes": {"type": float, "default": 600.0}}
    options, started = _harness.arguments(__doc__ or "", **more), time.monotonic()
    report = _harness.Report("language_shares", CLAIM, options)
    runs = Runs(options.out / f".language_shares_{'full' if options.full else 'quick'}.json")
    experiment = Experiment(options.full, pathlib.Path(tempfile.gettempdir()) / "keras_distill_benchmarks")
    experiment.prepare()
    teacher = runs("teacher", lambda: perplexity(experiment.teacher, experiment.test_x, experiment.test_y))
    report.add({"model": "teacher"}, {"perplexity": teacher})
    names = {
        (seed, *cell): f"share {cell[0]:g}, temperature {cell[1]:g}, seed {seed}"
        for seed in range(options.seeds if options.full else 1)
        for cell in CELLS
    }
    for (seed, *cell), name in names.items():
        if time.monotonic() - started < 60 * options.minutes:
            runs(name, lambda c=cell, i=seed: experiment.run(*c, i))  # type: ignore[misc]
    complete = [
        seed for seed in range(options.seeds) if all((names.get((seed, *cell)) in runs.known) for cell in CELLS)
    ]
    if not complete:
        print("no seed is complete; run again to go on", flush=True)
        return
    means = {}
    for cell in CELLS:
        each = [runs.known[names[seed, *cell]] for seed in complete]
        values = [one["perplexity"] for one in each]
        means[cell] = statistics.mean(values)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        figures = {"perplexity": means[cell], "spread": spread, "seeds": len(values)}
        figures |= {key: statistics.mean(one[key] for one in each) for key in each[0] if "," in key}
        report.add({"share": cell[0], "temperature": cell[1]}, figures)
    found = [runs.known[names[seed, *cell]] for seed in complete for cell in CELLS]
    worst = max(one[key] for one in found for key in one if key.startswith("error"))
    report.verdict("relative error of a mixture's gradient (a fault above 1e-4)", worst, at_most=1e-4)
    for temperature in (1.0, 3.0):
        gained = means[1.0, 1.0] - means[0.5, temperature]
        target = f"perplexity gained on labels alone, half and half at temperature {temperature:g}"
        report.verdict(target, gained, at_least=0.0)
    report.write()
    if len(complete) == options.seeds:
        runs.finish()


if __name__ == "__main__":
    main()
