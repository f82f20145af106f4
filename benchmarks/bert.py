"""BERT distilled to half its blocks, with DistilBERT's ablations, and to a BiLSTM: SST-2 after IMDB's texts.

A BERT with four blocks is pre-trained as a masked language model on 40,000 passages of IMDB reviews, with other words
hidden in each epoch, and fine-tuned on SST-2. Students have two blocks: the whole recipe (soft targets, labels, cosine
of hidden states, initialisation from the teacher), the recipe without each of its four parts, and a copy without any
distillation; each is distilled on 20,000 of the passages and then fine-tuned in the same way. A BiLSTM learns from the
labels of SST-2, or from its teacher on SST-2 and 20,000 passages of reviews; this teacher was first fine-tuned on the
40,000 passages, each with the label of its review. Measured are the accuracy on
the test part of SST-2 and the loss on hidden words of unseen passages, which is less noisy. Latencies are per text in
batches of 256, in TensorFlow. The loss is computed at hidden words only, which saves most of the time. Pre-training and
rates were chosen on 400 passages and 1,200 sentences kept aside from training. Runs are kept, so that an interrupted
benchmark resumes: ``python -m benchmarks.bert --full --seeds 3`` (an hour of one core).
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from typing import Any

from benchmarks import _harness, _resume

# isort: split
import keras
import keras_hub
import numpy as np
import tensorflow as tf

from examples import bert_to_small
from keras_distill import Distiller, data, regimes, students

CLAIM = "Half the blocks keep 98% of the accuracy, each part of the recipe counts, and a BiLSTM gains two points."
PRETRAINING, TUNING = 5, 3e-4  # epochs; learning rate
BLOCKS, WIDTH, WORDS, TOKENS = 4, 96, 8000, bert_to_small.TOKENS
HIDDEN, RATE = 6, 0.15  # words at most per passage whose loss counts; share of words that are hidden
GUESS = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
SUPERVISED = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WAYS = ("whole", "no soft targets", "no directions", "no labels", "random start", "copied only")


def passages(count: int) -> tuple[list[str], np.ndarray]:
    """Passages of IMDB reviews with the model's input length, and the labels of their reviews."""
    found: list[tuple[str, int]] = []
    with lzma.open(_harness.DATA / "imdb_reviews" / "train.jsonl.xz", "rt") as file:
        for line in file:
            row = json.loads(line)
            words = row["text"].replace("<br />", " ").split()
            found += [(" ".join(words[i : i + TOKENS]), row["label"]) for i in range(0, len(words) - TOKENS, TOKENS)]
            if len(found) > 4 * count:
                break
    chosen = [found[i] for i in np.random.default_rng(0).permutation(len(found))[:count]]
    return [text for text, _ in chosen], np.array([label for _, label in chosen], "int32")


def fitted(model: Any, loss: Any, rounds: Sequence[tuple[Any, Any]], rate: float, batch: int = 32) -> Any:
    """Train one epoch on each of the rounds, with Adam and a cosine decay of the learning rate."""
    steps = len(rounds) * -(-len(rounds[0][0]["token_ids"]) // batch)
    falling = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=rate, warmup_steps=max(1, steps // 10))
    model.compile(keras.optimizers.Adam(falling, global_clipnorm=1.0), loss, jit_compile=False)
    for inputs, labels in rounds:
        model.fit(inputs, labels, batch_size=batch, epochs=1, verbose=0)
    return model


def hidden_words(inputs: dict[str, np.ndarray], mask_id: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return passages with hidden words, where these are, and which they were; -1 where a passage has fewer."""
    shown, labels = data.mask_tokens(
        inputs["token_ids"], mask_id=mask_id, vocabulary_size=mask_id + 1, rate=RATE, seed=seed
    )
    positions = np.argsort(labels < 0, axis=1, kind="stable")[:, :HIDDEN]
    found = {**inputs, "token_ids": shown, "mask_positions": positions.astype("int32")}
    return found, np.take_along_axis(labels, positions, axis=1)


def guesser(words: int, blocks: int) -> keras.Model:
    """A masked language model that answers at chosen positions, with the embedding's table as its last layer."""
    body = bert_to_small.backbone(words, blocks, WIDTH, dropout=0.0)
    inputs = {name: keras.Input((TOKENS,), dtype="int32", name=name) for name in body.input}
    places = keras.Input((HIDDEN,), dtype="int32", name="mask_positions")
    head = keras_hub.layers.MaskedLMHead(
        token_embedding=body.token_embedding, intermediate_activation="gelu", name="head"
    )
    return keras.Model({**inputs, "mask_positions": places}, head(body(inputs)["sequence_output"], places))


def rows(inputs: dict[str, np.ndarray], chosen: Any) -> dict[str, np.ndarray]:
    """Some of the examples."""
    return {name: each[chosen] for name, each in inputs.items()}


def distiller(way: str, teacher: keras.Model, student: keras.Model) -> Distiller:
    """The recipe without the part that `way` names; the other parts keep their weights."""
    whole = regimes.distilbert(teacher, student, teacher_blocks=BLOCKS, student_blocks=BLOCKS // 2)
    if way in ("whole", "random start"):
        return whole
    soft, direction = whole.distillation_losses
    terms, weights, labels = {
        "no soft targets": ([direction], [1 / 6], 2 / 8),
        "no directions": ([soft], [5 / 6], 2 / 8),
        "no labels": ([soft, direction], [5 / 8, 1 / 8], 0.0),
    }[way]
    return Distiller(teacher, student, terms, weights, student_loss_weight=labels)


def latency(models: dict[str, keras.Model], inputs: dict[str, np.ndarray]) -> dict[str, float]:
    """Median milliseconds per text, in batches of 256."""
    batch = {name: tf.constant(each[:256]) for name, each in inputs.items()}

    def program(model: keras.Model) -> Any:
        call = tf.function(lambda: model(batch, training=False))

        def steps() -> int:
            call().numpy()
            return len(batch["token_ids"])

        return steps

    samples = _harness.paired({name: program(model) for name, model in models.items()}, rounds=30)
    return {name: 1e3 * samples.seconds(name, "wall").median for name in models}


def main() -> None:
    """Pre-train, fine-tune, distil and evaluate."""
    options = _harness.arguments(__doc__, seeds={"type": int, "default": 1})
    full, kept = options.full, _harness.Report("bert", CLAIM, options)
    runs = _resume.Runs(options.out / f"bert_{'full' if full else 'quick'}.runs.json")
    (texts, moods), loaded = passages(40_400 if full else 96), data.load("sst2")
    labelled, test = (loaded.train, loaded.test) if full else (loaded.train.take(64), loaded.test.take(64))
    vectorizer = keras.layers.TextVectorization(WORDS)
    vectorizer.adapt([*texts, *labelled.inputs])
    mask_id = vectorizer.vocabulary_size()
    words, y = mask_id + 1, labelled.labels

    def encoded(several: Any) -> dict[str, np.ndarray]:
        return data.tokens(list(several), vectorizer, length=TOKENS, empty="keep")

    x, test_x, unlabelled = encoded(labelled.inputs), encoded(test.inputs), encoded(texts)
    aside = 400 if full else 32
    told, asked = (
        rows(unlabelled, slice(None, -aside)),
        hidden_words(rows(unlabelled, slice(-aside, None)), mask_id, 99),
    )
    shorter = rows(unlabelled, slice(0, 20_000 if full else 32))

    def accuracy(model: keras.Model) -> float:
        return 100 * float(np.mean(np.argmax(model.predict(test_x, batch_size=256, verbose=0), -1) == test.labels))

    def fine_tuned(model: keras.Model, seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        body = bert_to_small.classifier(model.get_layer("backbone"))
        return fitted(body, SUPERVISED, [(x, y)] * (4 if full else 1), TUNING)

    keras.utils.set_random_seed(0)
    rounds = [hidden_words(told, mask_id, epoch) for epoch in range(PRETRAINING if full else 1)]
    teacher = runs.model("guesser", guesser(words, BLOCKS), lambda model: fitted(model, GUESS, rounds, 1e-3, 64))
    tuning = [(x, y)] * (4 if full else 1)

    def tuned(name: str, first: list[tuple[Any, Any]]) -> keras.Model:
        """Return a copy of the teacher as a classifier, fine-tuned on `first`, if given, and on SST-2."""
        copy = guesser(words, BLOCKS)
        copy.set_weights(teacher.get_weights())

        def train(model: keras.Model) -> None:
            if first:
                fitted(model, SUPERVISED, first, TUNING)
            fitted(model, SUPERVISED, tuning, TUNING)

        return runs.model(name, bert_to_small.classifier(copy.get_layer("backbone")), train)

    worded = told["padding_mask"].any(axis=1)  # a passage of nothing but dashes has no mean over its words
    expert = tuned("expert", [])
    reviewer = tuned("reviewer", [(rows(told, worded), moods[:-aside][worded])])
    teacher.compile(loss=GUESS)

    def half(way: str, seed: int) -> dict[str, float]:
        keras.utils.set_random_seed(seed)
        if way == "random start":
            student = guesser(words, BLOCKS // 2)
        else:
            student = students.from_teacher(teacher, depth=0.5, data=rows(asked[0], slice(0, 2))).model
        if way != "copied only":
            trained = distiller(way, teacher, student)
            fitted(trained, GUESS, [hidden_words(shorter, mask_id, seed)], 1e-3, 64)
        student.compile(loss=GUESS)
        guessed = student.evaluate(*asked, verbose=0)
        return {"hidden words, nats": float(guessed), "accuracy": accuracy(fine_tuned(student, seed))}

    def lstm(taught: bool, seed: int) -> float:
        keras.utils.set_random_seed(seed)
        made = regimes.bert_to_bilstm(reviewer, vocabulary_size=words, num_classes=2, embedding_width=32, width=16)
        if not taught:
            return accuracy(fitted(made.student, SUPERVISED, [(x, y)] * (6 if full else 1), 2e-3))
        transfer = {name: np.concatenate([x[name], shorter[name][worded[: len(shorter[name])]]]) for name in x}
        fitted(made, None, [(transfer, None)] * (3 if full else 1), 2e-3)
        return accuracy(made.student)

    top = runs("expert", lambda: accuracy(expert))
    known = runs("teacher, nats", lambda: float(teacher.evaluate(*asked, verbose=0)))
    kept.add(
        {"model": "teacher", "blocks": BLOCKS, "parameters": expert.count_params()},
        {"hidden words, nats": known, "accuracy": top},
    )
    mean: dict[str, dict[str, float]] = {}
    for way in WAYS:
        each = [runs(f"{way} {seed}", lambda w=way, s=seed: half(w, s)) for seed in range(options.seeds)]
        mean[way] = {key: float(np.mean([one[key] for one in each])) for key in each[0]}
        spread = float(np.std([one["accuracy"] for one in each]))
        kept.add({"model": f"half, {way}", "seeds": len(each)}, {**mean[way], "spread": spread})
    kept.add({"model": "teacher of the BiLSTM"}, {"accuracy": runs("reviewer", lambda: accuracy(reviewer))})
    small = {}
    for name, taught in (("labels", False), ("teacher", True)):
        each = [runs(f"BiLSTM {name} {seed}", lambda t=taught, s=seed: lstm(t, s)) for seed in range(options.seeds)]
        small[name] = float(np.mean(each))
        settings = {"model": f"BiLSTM from {name}", "seeds": len(each)}
        kept.add(settings, {"accuracy": small[name], "spread": float(np.std(each))})
    recurrent = regimes.bert_to_bilstm(expert, vocabulary_size=words, num_classes=2, embedding_width=32, width=16)
    times = latency({"teacher": expert, "BiLSTM": recurrent.student}, x)
    kept.add({"model": "milliseconds of a text, batches of 256"}, times)
    kept.verdict(
        "percent of the teacher's accuracy that half keeps", 100 * mean["whole"]["accuracy"] / top, at_least=98
    )
    for way in WAYS[1:]:
        gain = mean["whole"]["accuracy"] - mean[way]["accuracy"]
        kept.verdict(f"points of the whole recipe over: {way}", gain, at_least=0.0)
        nats = mean[way]["hidden words, nats"] - mean["whole"]["hidden words, nats"]
        kept.verdict(f"nats per hidden word that the whole recipe saves over: {way}", nats, at_least=0.0)
    kept.verdict("points that a BiLSTM gains by its teacher", small["teacher"] - small["labels"], at_least=2.0)
    kept.verdict("latency of the BiLSTM over its teacher's", times["BiLSTM"] / times["teacher"], at_most=0.05)
    kept.write()
    runs.finish()


if __name__ == "__main__":
    main()
