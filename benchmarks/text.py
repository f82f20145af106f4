"""One small student for two tasks, Snips: intents and slots, distilled from a classifier and a CRF tagger.

Students of the same size are compared: a single task from labels, both tasks from labels, distilled with a fixed weight
of the labels, and distilled with teacher annealing (BAM). Accuracy of intents, F1 of whole slots by seqeval. Every cell
is kept, so that an interrupted run resumes. Run with ``python -m benchmarks.text --full`` (14 minutes of one core);
without ``--full`` a tenth of the utterances and one epoch, without verdicts. Settings were not tuned: at this size the
two tasks share too little for one student to match two.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import pathlib
import statistics
import tempfile
import types

from benchmarks import _harness

# isort: split
import keras
import numpy as np

from keras_distill import Distiller, LogitsDistillation, callbacks, losses, metrics, teachers

CLAIM = "One distilled student for both tasks is at least as good as single-task students of its size on both."
WAYS = ("intents alone", "slots alone", "both from labels", "taught", "taught, annealed")
TEACHER_WIDTH, WIDTH, EPOCHS = 64, 12, 6


def example() -> types.ModuleType:
    """The example whose data and models are measured here."""
    path = _harness.ROOT / "examples" / "intents_and_slots.py"
    spec = importlib.util.spec_from_file_location("intents_and_slots", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Experiment:
    """Snips, its two teachers and the existing results.

    Args:
        full: all utterances and epochs.
    """

    def __init__(self, full: bool) -> None:
        self.shown, self.full = example(), full
        rows = [self.shown.read("snips_slots", split) for split in ("train", "test")]
        rows = rows if full else [rows[0][::10], rows[1][::10]]
        words = sorted({word.lower() for row in rows[0] for word in row["tokens"]})
        self.words = {word: index + 2 for index, word in enumerate(words)}
        self.tags = {t: i for i, t in enumerate(sorted({"O", *(tag for row in rows[0] for tag in row["tags"])}))}
        self.intents = {name: i for i, name in enumerate(sorted({row["intent"] for row in rows[0]}))}
        self.train, self.test = (self.shown.Encoded(part, self.words, self.tags, self.intents) for part in rows)
        self.folder = pathlib.Path(tempfile.gettempdir()) / f"keras_distill_text_{'full' if full else 'quick'}"
        self.folder.mkdir(exist_ok=True)
        self.path = self.folder / "cells.json"
        self.cells: dict[str, dict] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def network(self, width: int, *, intents: bool = False, tags: bool = False, crf: bool = False) -> keras.Model:
        """A model of the example."""
        sizes = {"intents": len(self.intents) * intents, "tags": len(self.tags) * tags}
        return self.shown.network(len(self.words) + 2, width, **sizes, crf=crf)

    def fit(self, model: keras.Model, loss: object, y: object, more: tuple = ()) -> None:
        """Train the model in place."""
        epochs = EPOCHS if self.full else 1
        steps = epochs * -(-len(self.train.x) // 64)
        rate = keras.optimizers.schedules.CosineDecay(5e-3, steps)
        model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
        model.fit(self.train.x, y, batch_size=64, epochs=epochs, verbose=0, callbacks=list(more))

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
            self.fit(classifier, self.shown.SUPERVISED, self.train.intents)
            self.fit(tagger, losses.CrfNegativeLogLikelihood(), self.train.tags)
            np.savez(stored, *classifier.get_weights(), *tagger.get_weights())
        with np.load(stored) as arrays:
            weights = [arrays[name] for name in arrays.files]
        classifier.set_weights(weights[: len(classifier.weights)])
        tagger.set_weights(weights[len(classifier.weights) :])
        inputs = keras.Input((self.shown.TOKENS,), dtype="int32")
        return keras.Model(inputs, {"intent": classifier(inputs), "slots": teachers.crf_marginals(tagger)(inputs)})

    def cell(self, way: str, seed: int, teacher: keras.Model) -> dict[str, float]:
        """Return a student's scores, after training it if it has not been trained before."""
        name = f"{way} {seed}"
        if name not in self.cells:
            keras.utils.set_random_seed(seed)
            student = self.network(WIDTH, intents=way != "slots alone", tags=way != "intents alone")
            y: object = {"intent": self.train.intents, "slots": self.train.tags}
            loss: object = dict.fromkeys(("intent", "slots"), self.shown.SUPERVISED)
            if "alone" in way:
                y, loss = y["intent" if way == "intents alone" else "slots"], self.shown.SUPERVISED  # type: ignore[index]
            model = student
            if "taught" in way:
                model = Distiller(teacher, student, LogitsDistillation(temperature=1.0))
            self.fit(model, loss, y, (callbacks.TeacherAnnealing(),) if "annealed" in way else ())
            self.cells[name] = self.scores(student)
            self.path.write_text(json.dumps(self.cells, indent=1) + "\n")
            print(name, self.cells[name], flush=True)
        return self.cells[name]


def main() -> None:
    """Run the missing parts, evaluate all."""
    options = _harness.arguments(__doc__ or "", seeds={"type": int, "default": 2})
    report = _harness.Report("text", CLAIM, options)
    experiment = Experiment(options.full)
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
