"""Intent and slots of an utterance: a classifier and a CRF tagger teach one small student of both tasks.

Snips (13,084 utterances, 7 intents, 72 tags) or ATIS under ``$KERAS_DISTILL_DATA``; made-up commands with ``--smoke``.
The student is trained on each task alone, on both with labels, with its teachers and a fixed weight of the labels, and
with teacher annealing (BAM). The intent accuracy and the F1 of whole slots (seqeval) are reported.

Run: ``python examples/intents_and_slots.py`` (not measured here; about 30 core-minutes; ``--smoke``: one).
"""

import argparse
import json
import lzma
import os
import pathlib

import keras
import numpy as np
from keras import layers

from keras_distill import Distiller, LogitsDistillation, adapters, callbacks, losses, metrics, teachers

TOKENS = 30
SUPERVISED = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def read(name: str, split: str) -> list[dict]:
    """One part of a data set: tokens, tags and intent of each utterance."""
    default = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    path = pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or default) / name / f"{split}.jsonl.xz"
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def made_up(count: int, seed: int) -> list[dict]:
    """Commands such as "play the song in paris"."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        verb, city = rng.choice(["play", "book", "find"]), rng.choice(["rome", "paris", "new york"])
        words = [verb, "a", rng.choice(["song", "table", "film"]), "in", *city.split()]
        tags = ["O"] * 4 + ["B-city"] + ["I-city"] * (len(words) - 5)
        rows.append({"tokens": words, "tags": tags, "intent": verb})
    return rows


class Encoded:
    """Arrays of one part; words, tags and intents get their numbers from the training part.

    Args:
        rows: the utterances.
        words: numbers from 2; 1 is unknown, 0 padding.
        tags: numbers from 0; a tag that was not seen in training is "O".
        intents: numbers from 0.
    """

    def __init__(self, rows: list[dict], words: dict, tags: dict, intents: dict) -> None:
        self.x = np.zeros((len(rows), TOKENS), "int32")
        self.tags = np.zeros((len(rows), TOKENS), "int32")
        self.intents = np.array([intents.get(row["intent"], 0) for row in rows], "int32")
        for index, row in enumerate(rows):
            count = min(len(row["tokens"]), TOKENS)
            self.x[index, :count] = [words.get(word.lower(), 1) for word in row["tokens"][:count]]
            self.tags[index, :count] = [tags.get(tag, tags["O"]) for tag in row["tags"][:count]]


def network(num_words: int, width: int, *, intents: int = 0, tags: int = 0, crf: bool = False) -> keras.Model:
    """A bidirectional GRU with a head for each requested task."""
    inputs = keras.Input((TOKENS,), dtype="int32")
    x = layers.Embedding(num_words, width, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.GRU(width, return_sequences=True))(layers.Dropout(0.2)(x))
    x = layers.Dropout(0.2)(x)
    heads = {}
    if intents:
        heads["intent"] = layers.Dense(intents, name="intent")(layers.GlobalAveragePooling1D()(x))
    if tags:
        scores = layers.Dense(tags, name="slots")(x)
        heads["slots"] = adapters.LinearChainCrf(tags)(scores) if crf else scores
    return keras.Model(inputs, heads if len(heads) > 1 else next(iter(heads.values())))


def main() -> None:
    """Train the two teachers, then the students; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--data", default="snips_slots", choices=("snips_slots", "atis_slots"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    parts = [made_up(64, 0), made_up(32, 1)] if options.smoke else [read(options.data, s) for s in ("train", "test")]
    large, small, epochs, seeds = (16, 8, 2, 1) if options.smoke else (128, 16, 10, options.seeds)
    words = {w: i + 2 for i, w in enumerate(sorted({word.lower() for row in parts[0] for word in row["tokens"]}))}
    tags = {tag: i for i, tag in enumerate(sorted({"O", *(tag for row in parts[0] for tag in row["tags"])}))}
    intents = {intent: i for i, intent in enumerate(sorted({row["intent"] for row in parts[0]}))}
    train, test = (Encoded(rows, words, tags, intents) for rows in parts)
    sizes = {"intents": len(intents), "tags": len(tags)}

    def fitted(model: keras.Model, loss: object, y: object, more: tuple = ()) -> None:
        model.compile(keras.optimizers.Adam(2e-3), loss, jit_compile=False)
        model.fit(train.x, y, batch_size=32, epochs=epochs, verbose=0, callbacks=list(more))

    def scores(model: keras.Model) -> str:
        outputs = model.predict(test.x, batch_size=256, verbose=0)
        outputs = outputs if isinstance(outputs, dict) else {"intent" if outputs.ndim == 2 else "slots": outputs}
        shown = []
        if "intent" in outputs:
            shown.append(f"intents {100 * np.mean(outputs['intent'].argmax(-1) == test.intents):6.2f} %")
        if "slots" in outputs:
            f1 = metrics.span_f1(test.tags, outputs["slots"], tag_names=list(tags), mask=test.x > 0)
            shown.append(f"slots F1 {100 * f1:6.2f}")
        return ", ".join(shown)

    keras.utils.set_random_seed(0)
    classifier = network(len(words) + 2, large, intents=sizes["intents"])
    fitted(classifier, SUPERVISED, train.intents)
    tagger = network(len(words) + 2, large, tags=sizes["tags"], crf=True)
    fitted(tagger, losses.CrfNegativeLogLikelihood(), train.tags)
    marginals = teachers.crf_marginals(tagger)
    print(f"{'teachers':22}{scores(classifier)}, {scores(marginals)}", flush=True)
    inputs = keras.Input((TOKENS,), dtype="int32")
    teacher = keras.Model(inputs, {"intent": classifier(inputs), "slots": marginals(inputs)})
    both, labels = {"intent": SUPERVISED, "slots": SUPERVISED}, {"intent": train.intents, "slots": train.tags}
    for seed in range(seeds):
        ways = ("intents alone", "slots alone", "both from labels", "taught", "taught, annealed")
        for way in ways[1::2] if options.smoke else ways:
            keras.utils.set_random_seed(seed)
            wanted = {"intents alone": ("intents",), "slots alone": ("tags",)}.get(way, ("intents", "tags"))
            student = network(len(words) + 2, small, **{name: sizes[name] for name in wanted})
            if "alone" in way:
                fitted(student, SUPERVISED, train.intents if wanted == ("intents",) else train.tags)
            elif way == "both from labels":
                fitted(student, both, labels)
            else:
                annealing = (callbacks.TeacherAnnealing(),) if "annealed" in way else ()
                fitted(Distiller(teacher, student, LogitsDistillation(temperature=1.0)), both, labels, annealing)
            print(f"{way:18} {seed:2} {scores(student)}", flush=True)


if __name__ == "__main__":
    main()
