"""Distil a keras-hub BERT, pre-trained here on the training texts, into half its blocks (DistilBERT) and into a BiLSTM.

SST-2 under ``$KERAS_DISTILL_DATA``, or made-up reviews with ``--smoke``. The teacher is pre-trained as a masked
language model and then fine-tuned. Students: every other block, copied and distilled as a masked language model; the
same blocks with random weights; and a BiLSTM, trained on labels alone and on the fine-tuned teacher's predictions for
augmented texts.

Run: ``python examples/bert_to_small.py`` (not measured here; estimated an hour of one core; ``--smoke``: one minute).
"""

import argparse

import keras
import keras_hub
import numpy as np

from keras_distill import data, regimes, students

TOKENS = 32


def backbone(words: int, blocks: int, width: int, dropout: float = 0.1) -> keras.Model:
    """BERT from a configuration; ``keras_hub.models.BertBackbone.from_preset`` gives published weights instead."""
    return keras_hub.models.BertBackbone(
        vocabulary_size=words,
        num_layers=blocks,
        num_heads=4,
        hidden_dim=width,
        intermediate_dim=2 * width,
        max_sequence_length=TOKENS,
        dropout=dropout,
        name="backbone",
    )


def masked_model(body: keras.Model, words: int) -> keras.Model:
    """A masked language model."""
    inputs = {name: keras.Input((TOKENS,), dtype="int32", name=name) for name in body.input}
    return keras.Model(inputs, keras.layers.Dense(words)(body(inputs)["sequence_output"]))


def classifier(body: keras.Model) -> keras.Model:
    """Two classes from the mean over the words."""
    inputs = {name: keras.Input((TOKENS,), dtype="int32", name=name) for name in body.input}
    states = body(inputs)["sequence_output"]
    pooled = keras.layers.GlobalAveragePooling1D()(states, mask=inputs["padding_mask"])
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.2)(pooled)))


def reviews(smoke: bool) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Training texts and labels, test texts and labels."""
    if not smoke:
        loaded = data.load("sst2")
        return list(loaded.train.inputs), loaded.train.labels, list(loaded.test.inputs), loaded.test.labels
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 96).astype("int32")
    mood = (["dull", "poor", "flat"], ["good", "fun", "great"])
    texts = [" ".join(["a", *rng.choice(mood[label], 2), "film"]) for label in labels]
    return texts[:64], labels[:64], texts[64:], labels[64:]


def main() -> None:
    """Pre-train, fine-tune, distil both ways, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    train_texts, y, test_texts, test_y = reviews(options.smoke)
    blocks, width, epochs = (2, 16, 1) if options.smoke else (4, 128, 8)
    vectorizer = keras.layers.TextVectorization(8000)
    vectorizer.adapt(train_texts)
    mask_id = vectorizer.vocabulary_size()
    words = mask_id + 1
    x, test = (data.tokens(texts, vectorizer, length=TOKENS, empty="keep") for texts in (train_texts, test_texts))
    guess = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    supervised = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def fitted(model: keras.Model, loss: object, inputs: object, labels: object = None, rate: float = 5e-4) -> None:
        model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
        model.fit(inputs, labels, batch_size=32, epochs=epochs, verbose=0)

    def report(name: str, model: keras.Model) -> None:
        right = np.argmax(model.predict(test, batch_size=256, verbose=0), -1) == test_y
        print(f"{name:34}{100 * np.mean(right):6.2f} %, {model.count_params():,} parameters", flush=True)

    keras.utils.set_random_seed(0)
    shown, hidden = data.mask_tokens(x["token_ids"], mask_id=mask_id, vocabulary_size=words)
    masked = {**x, "token_ids": shown}
    guesser = masked_model(backbone(words, blocks, width), words)
    fitted(guesser, guess, masked, hidden)

    copied = students.from_teacher(guesser, depth=0.5).model
    halves = {"half, copied and distilled": copied}
    if not options.smoke:
        halves["half, random start, distilled"] = masked_model(backbone(words, blocks // 2, width), words)
    for half in halves.values():
        distiller = regimes.distilbert(guesser, half, teacher_blocks=blocks, student_blocks=blocks // 2)
        fitted(distiller, guess, masked, hidden)
    guesser.trainable = True  # a distiller freezes its teacher, but this one is trained further

    def predict(ids: np.ndarray) -> np.ndarray:
        batch = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": (ids > 0).astype("int32")}
        return guesser.predict(batch, batch_size=64, verbose=0)

    more = data.augment_tokens(x["token_ids"][:2000], predict, mask_id=mask_id, copies=2)

    teacher = classifier(guesser.get_layer("backbone"))
    fitted(teacher, supervised, x, y)
    report("teacher", teacher)
    for name, half in halves.items():
        small = classifier(half.get_layer("backbone"))
        fitted(small, supervised, x, y)
        report(name, small)
    ids = np.concatenate([x["token_ids"], more])
    transfer = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": (ids > 0).astype("int32")}
    distiller = regimes.bert_to_bilstm(teacher, vocabulary_size=words, num_classes=2, embedding_width=32, width=32)
    alone = keras.models.clone_model(distiller.student)
    fitted(alone, supervised, x, y, 2e-3)
    report("BiLSTM from labels", alone)
    fitted(distiller, None, transfer, rate=2e-3)
    report("BiLSTM from the teacher", distiller.student)


if __name__ == "__main__":
    main()
