"""Terms between transformers: attention scores, masks passed as arguments, adapters on both sides."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, FeatureDistillation, adapters, losses, taps, teachers
from keras_distill.terms import HierarchicalDistillation
from tests.models import batch, batches, mlp, softmax

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TOKENS = np.array([[1, 2, 3, 4, 0], [4, 1, 0, 0, 0], [2, 2, 2, 1, 3]])


@keras.saving.register_keras_serializable(package="tests")
class Block(keras.layers.Layer):
    """An encoder block as in keras-hub: its padding mask is an argument of the call."""

    def __init__(self, heads, width, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.width, self.rate = heads, width, dropout
        self.attention = keras.layers.MultiHeadAttention(heads, width // heads, dropout=dropout, name="attention")

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x, padding_mask=None):
        mask = None if padding_mask is None else keras.ops.cast(padding_mask, "bool")[:, None, :]
        return x + self.attention(x, x, attention_mask=mask)

    def get_config(self):
        return {**super().get_config(), "heads": self.heads, "width": self.width, "dropout": self.rate}


def encoder(width, seed, heads=2, dropout=0.0):
    keras.utils.set_random_seed(seed)
    ids, mask = keras.Input((5,), dtype="int32", name="ids"), keras.Input((5,), dtype="int32", name="mask")
    states = keras.layers.Embedding(5, width, keras.initializers.RandomNormal(stddev=1.0), name="embedding")(ids)
    states = Block(heads, width, dropout, name="block")(states, padding_mask=mask)
    return keras.Model({"ids": ids, "mask": mask}, keras.layers.Dense(3)(keras.layers.Flatten()(states)))


X = {"ids": TOKENS, "mask": (TOKENS > 0).astype("int32")}
SCORES = {"adapter": adapters.AttentionScores(), "teacher_adapter": adapters.AttentionScores()}
QUERY_KEY = ["block/attention/query", "block/attention/key"]


def evaluated(teacher, student, term):
    distiller = Distiller(teacher, student, term, student_loss_weight=0.0)
    distiller.compile("sgd")
    return distiller.evaluate(X, batch_size=3, verbose=0, return_dict=True)["distillation_loss"]


def tapped(model, names):
    return [np.asarray(each) for each in taps.Taps(model, names)(X)[1].values()]


def scores_of(model):
    query, key = (each.astype("float64") for each in tapped(model, QUERY_KEY))
    return np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])


def test_scores_from_queries_and_keys_are_those_of_the_layer():
    model = encoder(8, 1, dropout=0.1)  # with a dropout rate the layer computes its scores separately on every machine
    softmax_of = next(name for name in taps.list_taps(model, None) if "softmax" in name)
    own, weights = tapped(model, [f"{softmax_of}:input", softmax_of])
    np.testing.assert_allclose(adapters.AttentionScores()(tapped(model, QUERY_KEY)), own, rtol=1e-5, atol=1e-6)
    keys = X["mask"][:, None, None, :] > 0
    np.testing.assert_allclose(softmax(np.where(keys, scores_of(model), -1e9)), weights, atol=1e-6)


def test_a_mask_passed_as_an_argument_is_used():
    teacher, student = encoder(8, 1), encoder(8, 2)
    mask = {"mask_layer_name": "block:padding_mask"}
    gap = np.square(scores_of(teacher) - scores_of(student)).mean(axis=1)
    real = X["mask"] > 0
    pairs = real[:, :, None] & real[:, None, :]
    term = FeatureDistillation(losses.AttentionMaps(), QUERY_KEY, QUERY_KEY, **SCORES, **mask)
    assert evaluated(teacher, student, term) == pytest.approx(gap[pairs].mean(), rel=1e-4)
    states = [tapped(model, ["block"])[0] for model in (teacher, student)]
    for loss in (losses.HiddenStates(), "mse"):
        got = evaluated(teacher, student, FeatureDistillation(loss, "block", "block", **mask))
        assert got == pytest.approx(np.square(states[0] - states[1])[real].mean(), rel=1e-4)
    pairs = HierarchicalDistillation([("block", "block")] * 2, losses.HiddenStates(), [1.0, 0.5], **mask)
    assert evaluated(teacher, student, pairs) == pytest.approx(1.5 * got, rel=1e-4)
    three = [*QUERY_KEY, "block/attention/value"]
    term = FeatureDistillation(losses.SelfAttentionRelation(2), three, three, **mask)
    sides = [tapped(model, three) for model in (teacher, student)]
    expected = losses.SelfAttentionRelation(2).values(*sides, mask=tf.constant(real))
    assert evaluated(teacher, student, term) == pytest.approx(float(np.mean(expected)), rel=1e-4)
    assert evaluated(teacher, student, FeatureDistillation(term.loss, three, three)) != pytest.approx(
        float(np.mean(expected)), rel=1e-3
    )


def test_a_term_with_scores_and_mask_is_saved_and_learns(tmp_path):
    term = FeatureDistillation(
        losses.AttentionMaps(), QUERY_KEY, QUERY_KEY, **SCORES, mask_layer_name="block:padding_mask"
    )
    hidden = FeatureDistillation("mse", "block", "block", adapter="auto", mask_layer_name="block:padding_mask")
    distiller = Distiller(encoder(8, 1), encoder(4, 2), [term, hidden])
    distiller.compile(keras.optimizers.Adam(0.02), CROSS_ENTROPY)
    labels = np.array([0, 1, 2])
    history = distiller.fit(batches(X, labels), epochs=40, verbose=0).history["distillation_loss"]
    assert history[-1] < 0.5 * history[0]
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    expected, got = (d.fit(X, labels, verbose=0).history["loss"] for d in (distiller, loaded))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.CorrelationCongruence, losses.ContrastiveRepresentation])
def test_embeddings_on_both_sides_are_trained_and_saved(loss, tmp_path):
    x, y = batch(32)
    term = FeatureDistillation(
        loss(teacher_gradient=True),
        "dense_0",
        "dense_0",
        adapter=adapters.Embedding(7),
        teacher_adapter=adapters.Embedding(7),
    )
    teacher = mlp(8, 4, seed=1)
    kept = [weight.copy() for weight in teacher.get_weights()]
    distiller = Distiller(teacher, mlp(5, 4, seed=2), term)
    distiller.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY)
    distiller.fit(x, y, verbose=0)
    before = [adapter.get_weights()[0] for adapter in (term.adapter, term.teacher_adapter)]
    assert [weights.shape for weights in before] == [(5, 7), (8, 7)]
    distiller.fit(x, y, epochs=2, verbose=0)
    for old, adapter in zip(before, (term.adapter, term.teacher_adapter), strict=True):
        assert np.abs(adapter.get_weights()[0] - old).max() > 1e-3
    for old, new in zip(kept, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    expected, got = (d.fit(x, y, verbose=0, shuffle=False).history["loss"] for d in (distiller, loaded))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_factor_transfer_with_a_paraphraser_trained_before(tmp_path):
    keras.utils.set_random_seed(0)

    def convolution(filters):
        layers = [keras.layers.Conv2D(filters, 3, name="conv"), keras.layers.Flatten(), keras.layers.Dense(2)]
        return keras.Sequential([keras.Input((6, 6, 1)), *layers])

    x = np.random.default_rng(0).normal(size=(16, 6, 6, 1)).astype("float32")
    teacher = convolution(8)
    features = taps.Taps(teacher, ["conv"])(x)[1]["conv"].numpy()
    paraphraser = adapters.Paraphraser(0.5)
    arguments = {"teacher_adapter": paraphraser, "adapter": adapters.Translator(4)}
    term = FeatureDistillation(losses.FactorTransfer(), "conv", "conv", **arguments)
    with pytest.raises(ValueError, match="a teacher's adapter that its loss trains, or that has trainable=False, got"):
        term.build_from(keras.KerasTensor((None, 4, 4, 8)), keras.KerasTensor((None, 4, 4, 3)))
    auto_encoder = paraphraser.autoencoder((4, 4, 8))
    auto_encoder.compile(keras.optimizers.Adam(0.01), "mse")
    losses_seen = auto_encoder.fit(batches(features, features), epochs=60, verbose=0).history["loss"]
    assert losses_seen[-1] < 0.5 * losses_seen[0]
    paraphraser.trainable = False
    kept = paraphraser.get_weights()
    term = FeatureDistillation(losses.FactorTransfer(), "conv", "conv", **arguments)
    distiller = Distiller(teacher, convolution(3), term)
    distiller.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY)
    history = distiller.fit(batches(x, np.arange(16) % 2), epochs=20, verbose=0).history["distillation_loss"]
    assert history[-1] < 0.8 * history[0]
    for old, new in zip(kept, paraphraser.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def tagger(length, width, seed):
    init = keras.initializers.RandomNormal(seed=seed)
    embedding = keras.layers.Embedding(9, width, mask_zero=True, embeddings_initializer=init, name="embedding")
    return keras.Sequential(
        [keras.Input((length,), dtype="int32"), embedding, keras.layers.LSTM(4), keras.layers.Dense(2)]
    )


LONG = np.array([[1, 2, 3, 4, 5, 6, 0, 0], [7, 8, 1, 2, 0, 0, 0, 0]])


def two_lengths(adapter, loss="mse"):
    """A student with eight tokens and a teacher with every second of them."""
    term = FeatureDistillation(loss, "embedding", "embedding", adapter=adapter)
    teacher = teachers.Preprocessed(tagger(4, 3, 1), fn=lambda x: x[:, ::2])
    distiller = Distiller(teacher, tagger(8, 3, 2), term, student_loss_weight=0.0)
    distiller.compile("sgd")
    return distiller


def test_the_mask_follows_an_adapter_that_changes_the_length():
    distiller = two_lengths(adapters.SequenceInterpolation(4))
    got = distiller.evaluate(LONG, batch_size=2, verbose=0, return_dict=True)["distillation_loss"]
    teacher = distiller.teacher.model.model.layers[0](LONG[:, ::2]).numpy()
    student = distiller.student.layers[0](LONG).numpy().reshape(2, 4, 2, 3).mean(2)  # new step i: old steps 2i, 2i + 1
    real = LONG[:, ::2] > 0
    assert got == pytest.approx(np.square(teacher - student)[real].mean(), rel=1e-5)


def test_an_adapter_that_leaves_no_positions_needs_no_mask():
    term = FeatureDistillation(losses.RelationalDistance(), "dense", "embedding", adapter=adapters.AttentionPool(3))
    init = keras.initializers.RandomNormal(seed=3)
    teacher = keras.Sequential(
        [
            keras.Input((8,), dtype="int32"),
            keras.layers.Embedding(9, 5, embeddings_initializer=init),
            keras.layers.Flatten(),
            keras.layers.Dense(3, kernel_initializer=init, name="dense"),
            keras.layers.Dense(2),
        ]
    )
    distiller = Distiller(teacher, tagger(8, 3, 2), term, student_loss_weight=0.0)
    distiller.compile("sgd")
    got = distiller.evaluate(LONG, batch_size=2, verbose=0, return_dict=True)["distillation_loss"]
    assert got == 0.0  # two examples have one distance, which divided by itself is 1 on both sides


def test_an_adapter_that_loses_the_mask_is_refused():
    distiller = two_lengths(keras.layers.Conv1D(3, 2, strides=2))
    with pytest.raises(ValueError, match=r"an adapter that defines the mask .*, got Conv1D"):
        distiller.evaluate(LONG, batch_size=2, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher_adapter": "auto"}, "teacher_adapter to be a keras.layers.Layer or None, got auto"),
        (
            {"adapter": adapters.Dense(2), "adapter_side": "teacher", "teacher_adapter": adapters.Dense(2)},
            "adapter on the student's side beside teacher_adapter",
        ),
        ({"student_layer_name": None, "mask_layer_name": "a:mask"}, "a student_layer_name beside mask_layer_name"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureDistillation(**{"loss": "mse", "teacher_layer_name": "a", "student_layer_name": "a", **arguments})


def test_scores_need_queries_and_keys():
    message = r"AttentionScores: expected \[queries, keys\], each \(batch, tokens, heads, head size\)"
    with pytest.raises(ValueError, match=message):
        adapters.AttentionScores().build([(None, 5, 2, 4), (None, 5, 2, 3)])
