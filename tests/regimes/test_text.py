"""The recipes for transformers on text, on a keras-hub BERT of a few thousand weights."""

import keras
import numpy as np
import pytest

from keras_distill import data, losses, regimes, students

keras_hub = pytest.importorskip("keras_hub")

WORDS, TOKENS = 20, 6


def bert(blocks, width=8, seed=0, vocabulary=True):
    keras.utils.set_random_seed(seed)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=WORDS,
        num_layers=blocks,
        num_heads=2,
        hidden_dim=width,
        intermediate_dim=2 * width,
        max_sequence_length=TOKENS,
        dropout=0.0,
        name="backbone",
    )
    inputs = {name: keras.Input((TOKENS,), dtype="int32", name=name) for name in backbone.input}
    states = backbone(inputs)["sequence_output"]
    outputs = keras.layers.Dense(WORDS)(states) if vocabulary else keras.layers.Dense(2)(states[:, 0])
    return keras.Model(inputs, outputs)


def batch(count=5, seed=0):
    ids = np.random.default_rng(seed).integers(2, WORDS - 1, (count, TOKENS)).astype("int32")
    ids[0, 4:] = 0
    shown, labels = data.mask_tokens(ids, mask_id=WORDS - 1, vocabulary_size=WORDS, rate=0.4, seed=seed)
    return {"token_ids": shown, "segment_ids": 0 * ids, "padding_mask": (ids > 0).astype("int32")}, labels


def test_distilbert_starts_from_every_other_block_and_its_loss_is_the_papers_sum():
    teacher = bert(4)
    student = students.from_teacher(teacher, depth=0.5).model
    x, labels = batch()
    distiller = regimes.distilbert(teacher, student, teacher_blocks=4, student_blocks=2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    distiller.compile("sgd", loss, run_eagerly=True)  # one step costs less than a trace, here and below
    got = distiller.evaluate(x, labels, return_dict=True, verbose=0)["total_loss"]
    chosen, there = labels >= 0, x["padding_mask"] > 0
    theirs, ours = np.array(teacher(x)), np.array(student(x))
    soft = losses.soft_targets(teacher_logits=theirs[chosen], student_logits=ours[chosen], temperature=2.0)
    hard = keras.losses.sparse_categorical_crossentropy(labels[chosen], ours[chosen], from_logits=True)
    hidden = [np.array(each.get_layer("backbone")(x)["sequence_output"]) for each in (teacher, student)]
    cosine = np.sum(hidden[0] * hidden[1], -1) / np.prod([np.linalg.norm(each, axis=-1) for each in hidden], 0)
    per_text = [np.mean(1 - cosine[i, there[i]]) for i in range(len(labels))]
    direction = {np.mean(1 - cosine[there]), np.mean(per_text)}  # by token or by text
    expected = [(5 * np.mean(soft) + 2 * np.mean(hard) + each) / 8 for each in direction]
    assert min(abs(got - each) for each in expected) < 1e-4 * abs(got)


def test_tinybert_learns_layers_of_a_wider_teacher_and_then_its_answers_without_labels():
    teacher, student = bert(4, 16, vocabulary=False), bert(2, 8, 1, vocabulary=False)
    x, _ = batch(16)
    for stage in regimes.tinybert(teacher, student, teacher_blocks=4, student_blocks=2):
        stage.compile(keras.optimizers.Adam(5e-3))
        before = [np.array(weight) for weight in student.get_weights()]
        history = stage.fit(x, batch_size=16, epochs=6, verbose=0).history["distillation_loss"]
        assert history[-1] < history[0]
        moved = [np.abs(a - b).max() for a, b in zip(before, student.get_weights(), strict=True)]
        assert max(moved) > 0
    with pytest.raises(ValueError, match="transformer_layer_4"):
        regimes.tinybert(teacher, student, teacher_blocks=5, student_blocks=2)


def test_minilm_is_zero_for_a_copy_and_works_across_widths():
    teacher = bert(2, 16)
    for student, zero in ((bert(2, 16), True), (bert(2, 8, 1), False)):
        distiller = regimes.minilm(teacher, student, teacher_blocks=2, student_blocks=2, num_relation_heads=4)
        distiller.compile("sgd", run_eagerly=True)
        value = distiller.evaluate(batch()[0], return_dict=True, verbose=0)["distillation_loss"]
        assert (abs(value) < 1e-6) == zero


def test_a_bilstm_learns_logits_from_unlabelled_text_and_ignores_padding():
    teacher = bert(2, vocabulary=False)
    distiller = regimes.bert_to_bilstm(teacher, vocabulary_size=WORDS, num_classes=2, embedding_width=8, width=8)
    distiller.compile(keras.optimizers.Adam(1e-2))
    x, _ = batch(32)
    history = distiller.fit(data.unlabelled(x, batch_size=16), epochs=8, verbose=0).history["distillation_loss"]
    assert history[-1] < 0.9 * history[0]
    with pytest.raises(ValueError, match=r"bert_to_bilstm: expected a teacher with a dictionary of inputs"):
        plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        regimes.bert_to_bilstm(plain, vocabulary_size=2, num_classes=2)
