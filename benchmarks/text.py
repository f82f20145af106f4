"""One small student for two tasks, Snips: intents and slots, distilled from a classifier and a CRF tagger.

Students of the same size are compared: a single task from labels, both tasks from labels, distilled with a fixed weight
of the labels, and distilled with teacher annealing (BAM). Distilled students also see three copies of each utterance in
which words of slots are exchanged for others of the same slot; the teachers label them. All students take the same
number of steps. Accuracy of intents, F1 of whole slots by seqeval. Epochs, copies and weights were chosen on 2,000
training utterances kept aside (``--held-out``). Every cell is kept, so that an interrupted run resumes. Run with
``python -m benchmarks.text --full --seeds 3`` (an hour of one core); without ``--full`` a tenth of the utterances and
one epoch, without verdicts.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import pathlib
import statistics
import tempfile
import types
from typing import Any

from benchmarks import _harness

# isort: split
import keras
import numpy as np
from keras import layers

from keras_distill import Distiller, LogitsDistillation, callbacks, losses, metrics, teachers

CLAIM = "One distilled student for both tasks is at least as good as single-task students of its size on both."
WAYS = ("intents alone", "slots alone", "both from labels", "taught", "taught, annealed")
TEACHER_WIDTH, WIDTH, TEACHER_EPOCHS, EPOCHS = 64, 12, 6, 24
COPIES, EXCHANGED, UNKNOWN = 3, 0.3, 0.05  # of the utterances; shares of words
ASIDE = 2000


def example() -> types.ModuleType:
    """The example whose data and models are measured here."""
    path = _harness.ROOT / "examples" / "intents_and_slots.py"
    spec = importlib.util.spec_from_file_location("intents_and_slots", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def y_rows(labels: Any) -> np.ndarray:
    """The labels of one task, whose number is that of the examples."""
    return labels if isinstance(labels, np.ndarray) else next(iter(labels.values()))


class Experiment:
    """Snips, its two teachers and the existing results.

    Args:
        full: all utterances and epochs.
        held_out: students learn from, and are judged on, parts of the training utterances.
    """

    def __init__(self, full: bool, held_out: bool) -> None:
        self.shown, self.full = example(), full
        rows = [self.shown.read("snips_slots", split) for split in ("train", "test")]
        rows = rows if full else [rows[0][::10], rows[1][::10]]
        words = sorted({word.lower() for row in rows[0] for word in row["tokens"]})
        self.words = {word: index + 2 for index, word in enumerate(words)}
        self.tags = {t: i for i, t in enumerate(sorted({"O", *(tag for row in rows[0] for tag in row["tags"])}))}
        self.intents = {name: i for i, name in enumerate(sorted({row["intent"] for row in rows[0]}))}
        if held_out:
            kept = np.random.default_rng(0).permutation(len(rows[0]))
            rows = [
                [rows[0][i] for i in part]
                for part in (kept[: -ASIDE if full else -100], kept[-ASIDE if full else -100 :])
            ]
        self.train, self.test = (self.shown.Encoded(part, self.words, self.tags, self.intents) for part in rows)
        name = f"keras_distill_text_{'full' if full else 'quick'}{'_held_out' * held_out}"
        self.folder = pathlib.Path(tempfile.gettempdir()) / name
        self.folder.mkdir(exist_ok=True)
        self.path = self.folder / "cells.json"
        self.cells: dict[str, dict] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def network(self, width: int, *, intents: bool = False, tags: bool = False, crf: bool = False) -> keras.Model:
        """A model of the example."""
        sizes = {"intents": len(self.intents) * intents, "tags": len(self.tags) * tags}
        return self.shown.network(len(self.words) + 2, width, **sizes, crf=crf)

    def fit(self, model: object, loss: object, x: object, y: object, epochs: int, more: tuple = ()) -> None:
        """Train the model in place, for as many steps as `epochs` of the utterances without copies have."""
        rounds = max(1, (epochs if self.full else 1) * len(self.train.x) // len(y_rows(y)))
        rate = keras.optimizers.schedules.CosineDecay(5e-3, rounds * -(-len(y_rows(y)) // 64))
        model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)  # type: ignore[attr-defined]
        model.fit(x, y, batch_size=64, epochs=rounds, verbose=0, callbacks=list(more))  # type: ignore[attr-defined]

    def scores(self, model: keras.Model) -> dict[str, float]:
        """In percent."""
        outputs = model.predict(self.test.x, batch_size=256, verbose=0)
        outputs = outputs if isinstance(outputs, dict) else {"intent" if outputs.ndim == 2 else "slots": outputs}
        found = {}
        if "intent" in outputs:
            found["intents"] = 100.0 * float(np.mean(outputs["intent"].argmax(-1) == self.test.intents))
        if "slots" in outputs:
            names, kept = list(self.tags), self.test.x > 0
            found["slots"] = 100.0 * metrics.span_f1(self.test.tags, outputs["slots"], tag_names=names, mask=kept)
        return found

    def teacher(self) -> keras.Model:
        """Both teachers as one model, trained once."""
        keras.utils.set_random_seed(0)
        classifier = self.network(TEACHER_WIDTH, intents=True)
        tagger = self.network(TEACHER_WIDTH, tags=True, crf=True)
        stored = self.folder / "teachers.npz"
        if not stored.exists():
            x, y = self.train.x, self.train
            self.fit(classifier, self.shown.SUPERVISED, x, y.intents, TEACHER_EPOCHS)
            self.fit(tagger, losses.CrfNegativeLogLikelihood(), x, y.tags, TEACHER_EPOCHS)
            np.savez(stored, *classifier.get_weights(), *tagger.get_weights())
        with np.load(stored) as arrays:
            weights = [arrays[name] for name in arrays.files]
        classifier.set_weights(weights[: len(classifier.weights)])
        tagger.set_weights(weights[len(classifier.weights) :])
        inputs = keras.Input((self.shown.TOKENS,), dtype="int32")
        return keras.Model(inputs, {"intent": classifier(inputs), "slots": teachers.crf_marginals(tagger)(inputs)})

    def exchanged(self) -> np.ndarray:
        """The training utterances and copies, in which words of slots are exchanged for others of the same slot."""
        rng, x, tags = np.random.default_rng(0), self.train.x, self.train.tags
        words = {tag: x[(tags == tag) & (x > 0)] for name, tag in self.tags.items() if name != "O"}
        found = [x]
        for _ in range(COPIES):
            copy = x.copy()
            for tag, choice in words.items():
                replaced = (tags == tag) & (x > 0) & (rng.random(x.shape) < EXCHANGED)
                copy[replaced] = rng.choice(choice, replaced.sum()) if len(choice) else copy[replaced]
            copy[(copy > 0) & (rng.random(x.shape) < UNKNOWN)] = 1
            found.append(copy)
        return np.concatenate(found)

    def cell(self, way: str, seed: int, teacher: keras.Model) -> dict[str, float]:
        """Return a student's scores, after training it if it has not been trained before."""
        name = f"{way} {seed}"
        if name not in self.cells:
            keras.utils.set_random_seed(seed)
            student = self.network(WIDTH, intents=way != "slots alone", tags=way != "intents alone")
            y: Any = {"intent": self.train.intents, "slots": self.train.tags}
            loss: Any = dict.fromkeys(("intent", "slots"), self.shown.SUPERVISED)
            if "taught" in way:
                x = self.exchanged()
                y = {key: np.concatenate([labels] * (COPIES + 1)) for key, labels in y.items()}
                answers = teacher.predict(x, batch_size=1024, verbose=0)
                through = {key: keras.Input(value.shape[1:]) for key, value in answers.items()}
                inputs = (student.input, through)
                parrot = keras.Model(inputs, {key: layers.Identity()(value) for key, value in through.items()})
                distiller = Distiller(parrot, keras.Model(inputs, student.output), LogitsDistillation(temperature=1.0))
                more = (callbacks.TeacherAnnealing(),) if "annealed" in way else ()
                self.fit(distiller, loss, (x, answers), y, EPOCHS, more)
            else:
                if "alone" in way:
                    y, loss = y["intent" if way == "intents alone" else "slots"], self.shown.SUPERVISED
                self.fit(student, loss, self.train.x, y, EPOCHS)
            self.cells[name] = self.scores(student)
            self.path.write_text(json.dumps(self.cells, indent=1) + "\n")
            print(name, self.cells[name], flush=True)
        return self.cells[name]


def main() -> None:
    """Run the missing parts, evaluate all."""
    aside = {"action": "store_true", "help": "judge on training utterances kept aside"}
    options = _harness.arguments(__doc__ or "", seeds={"type": int, "default": 3}, held_out=aside)
    report = _harness.Report(f"text{'_held_out' * options.held_out}", CLAIM, options)
    experiment = Experiment(options.full, options.held_out)
    teacher = experiment.teacher()
    report.add({"way": "teachers"}, experiment.scores(teacher))
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed, way in itertools.product(range(options.seeds if options.full else 1), WAYS):
        found[way].append(experiment.cell(way, seed, teacher))
    means = {
        way: {task: statistics.mean(cell[task] for cell in cells) for task in cells[0]} for way, cells in found.items()
    }
    for way, each in means.items():
        report.add({"way": way, "seeds": len(found[way])}, each)
    best = means["taught, annealed"]
    for task, alone in (("intents", "intents alone"), ("slots", "slots alone")):
        gain = best[task] - means[alone][task]
        report.verdict(f"{task}: points that the taught student gains on a student of it alone", gain, at_least=0)
        gain = best[task] - means["taught"][task]
        report.verdict(f"{task}: points that annealing gains on a fixed share", gain, at_least=0)
    report.write()


if __name__ == "__main__":
    main()
