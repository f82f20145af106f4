"""BERT distilled to half its blocks, with DistilBERT's ablations, and to a BiLSTM: SST-2 after IMDB's texts.

A BERT with four blocks is pre-trained as a masked language model on 40,000 passages of IMDB reviews, and fine-tuned on
SST-2. Students have two blocks: the whole recipe (soft targets, labels, cosine of hidden states, initialisation from
the teacher), the recipe without each of its four parts, and a copy without any distillation; each is distilled on
20,000 of the passages and then fine-tuned in the same way. A BiLSTM learns from the labels of SST-2, or from its
fine-tuned teacher on SST-2 and 20,000 passages of reviews. Measured are the accuracy on the test part of SST-2 and the
accuracy on masked words of unseen passages, which is less noisy. Latencies are per text in batches of 256, in
TensorFlow. Settings were not tuned. Runs are kept, so that an interrupted benchmark resumes: ``python -m
benchmarks.bert --full --seeds 3`` (estimated: 40 minutes of one core; it has not been run in full yet).
"""

from __future__ import annotations

import json
import lzma
import os
import pathlib
from typing import Any

from benchmarks import _harness, _resume

# isort: split
import keras
import numpy as np
import tensorflow as tf

from examples import bert_to_small
from keras_distill import Distiller, data, regimes, students

CLAIM = "Half the blocks keep 98% of the accuracy, each part of the recipe counts, and a BiLSTM gains two points."
BLOCKS, WIDTH, WORDS, TOKENS = 4, 96, 5000, bert_to_small.TOKENS
GUESS = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
SUPERVISED = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WAYS = ("whole", "no soft targets", "no directions", "no labels", "random start", "copied only")


def passages(count: int) -> list[str]:
    """Unlabelled passages of IMDB reviews with the model's input length."""
    folder = pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or _harness.ROOT.parent / "shared" / "data")
    found: list[str] = []
    with lzma.open(folder / "imdb_reviews" / "train.jsonl.xz", "rt") as file:
        for line in file:
            words = json.loads(line)["text"].replace("<br />", " ").split()
            found += [" ".join(words[i : i + TOKENS]) for i in range(0, len(words) - TOKENS, TOKENS)]
            if len(found) > 4 * count:
                break
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))[:count]]


def fitted(model: Any, loss: Any, inputs: Any, labels: Any, epochs: int, rate: float) -> Any:
    """Train with Adam and a cosine decay of the learning rate."""
    steps = epochs * -(-len(inputs["token_ids"]) // 32)
    falling = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=rate, warmup_steps=max(1, steps // 10))
    model.compile(keras.optimizers.Adam(falling), loss, jit_compile=False)
    model.fit(inputs, labels, batch_size=32, epochs=epochs, verbose=0)
    return model


def rows(inputs: dict[str, np.ndarray], chosen: slice) -> dict[str, np.ndarray]:
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
    texts, loaded = passages(40_400 if full else 96), data.load("sst2")
    labelled, test = (loaded.train, loaded.test) if full else (loaded.train.take(64), loaded.test.take(64))
    vectorizer = keras.layers.TextVectorization(WORDS)
    vectorizer.adapt([*texts, *labelled.inputs])
    mask_id = vectorizer.vocabulary_size()
    words, y = mask_id + 1, labelled.labels

    def encoded(several: Any) -> dict[str, np.ndarray]:
        return data.tokens(list(several), vectorizer, length=TOKENS, empty="keep")

    x, test_x, unlabelled = encoded(labelled.inputs), encoded(test.inputs), encoded(texts)
    shown, hidden = data.mask_tokens(unlabelled["token_ids"], mask_id=mask_id, vocabulary_size=words)
    masked, kept_aside = {**unlabelled, "token_ids": shown}, slice(len(texts) - (400 if full else 32), None)
    pretraining = slice(0, len(texts) - (400 if full else 32))
    shorter = slice(0, 20_000 if full else 32)

    def guesser(blocks: int) -> keras.Model:
        return bert_to_small.masked_model(bert_to_small.backbone(words, blocks, WIDTH), words)

    def accuracy(model: keras.Model) -> float:
        return 100 * float(np.mean(np.argmax(model.predict(test_x, batch_size=256, verbose=0), -1) == test.labels))

    def fine_tuned(model: keras.Model, seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        return fitted(bert_to_small.classifier(model.get_layer("backbone")), SUPERVISED, x, y, 4 if full else 1, 5e-4)

    keras.utils.set_random_seed(0)
    teacher = runs.model(
        "guesser",
        guesser(BLOCKS),
        lambda model: fitted(
            model, GUESS, rows(masked, pretraining), hidden[pretraining], 3 if full else 1, 1e-3
        ),
    )  # fmt: skip
    expert = bert_to_small.classifier(keras.models.clone_model(teacher).get_layer("backbone"))
    expert.get_layer("backbone").set_weights(teacher.get_layer("backbone").get_weights())
    expert = runs.model("expert", expert, lambda model: fitted(model, SUPERVISED, x, y, 4 if full else 1, 5e-4))

    def half(way: str, seed: int) -> dict[str, float]:
        keras.utils.set_random_seed(seed)
        student = guesser(BLOCKS // 2) if way == "random start" else students.from_teacher(teacher, depth=0.5).model
        if way != "copied only":
            trained = distiller(way, teacher, student)
            fitted(trained, GUESS, rows(masked, shorter), hidden[shorter], 1, 1e-3)
        student.compile(loss=GUESS)
        guessed = student.evaluate(rows(masked, kept_aside), hidden[kept_aside], verbose=0)
        return {"hidden words, nats": float(guessed), "accuracy": accuracy(fine_tuned(student, seed))}

    def lstm(taught: bool, seed: int) -> float:
        keras.utils.set_random_seed(seed)
        made = regimes.bert_to_bilstm(expert, vocabulary_size=words, num_classes=2, embedding_width=32, width=16)
        if not taught:
            return accuracy(fitted(made.student, SUPERVISED, x, y, 6 if full else 1, 2e-3))
        transfer = {name: np.concatenate([x[name], rows(unlabelled, shorter)[name]]) for name in x}
        fitted(made, None, transfer, None, 3 if full else 1, 2e-3)
        return accuracy(made.student)

    top = runs("expert", lambda: accuracy(expert))
    kept.add({"model": "teacher", "blocks": BLOCKS, "parameters": expert.count_params()}, {"accuracy": top})
    mean: dict[str, dict[str, float]] = {}
    for way in WAYS:
        each = [runs(f"{way} {seed}", lambda w=way, s=seed: half(w, s)) for seed in range(options.seeds)]
        mean[way] = {key: float(np.mean([one[key] for one in each])) for key in each[0]}
        spread = float(np.std([one["accuracy"] for one in each]))
        kept.add({"model": f"half, {way}", "seeds": len(each)}, {**mean[way], "spread": spread})
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
