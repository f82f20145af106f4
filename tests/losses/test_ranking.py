"""Losses on ranked lists: values and gradients by float64 references, padding, masks, sampling, and a distiller."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_distill import Distiller, LogitsDistillation, losses
from tests import oracles
from tests.oracles import ranking as oracle

ROWS = [
    (losses.ListMLE(), oracle.list_mle, {}),
    (losses.ListMLE(top_k=3), oracle.list_mle, {"top_k": 3}),
    (losses.RankDistil(top_k=2), oracle.rank_distil, {"top_k": 2}),
    (losses.RankDistil(top_k=3, num_items=500), oracle.rank_distil, {"top_k": 3, "num_items": 500}),
    (losses.RelaxedRanking(4, 40), oracle.relaxed_ranking, {"num_interesting": 4}),
    (losses.RelaxedRanking(2, None, None), oracle.relaxed_ranking, {"num_interesting": 2}),
    (losses.RankNet(), oracle.rank_net, {}),
    (losses.RankNet(pair_reduction="mean"), oracle.rank_net, {"mean": True}),
    (losses.RankNet(top_k=2), oracle.rank_net, {"top_k": 2}),
    (losses.RankNet("probability"), oracle.rank_net, {"targets": "probability"}),
    (losses.RankedItems(), oracle.ranked_items, {}),
    (losses.RankedItems(3, position_decay=10.0), oracle.ranked_items, {"top_k": 3, "decay": 10.0}),
    (losses.RankedItems(3, "dynamic", num_samples=None), oracle.ranked_items, {"top_k": 3, "weighting": "dynamic"}),
    (losses.RankedItems(4, "both", num_samples=None), oracle.ranked_items, {"top_k": 4, "weighting": "both"}),
]
every = pytest.mark.parametrize(
    ("loss", "twin", "options"), ROWS, ids=[f"{type(row[0]).__name__}-{i}" for i, row in enumerate(ROWS)]
)

# Compiling takes seconds: once for each implementation.
some = pytest.mark.parametrize("loss", [ROWS[i][0] for i in (0, 3, 4, 9, 13)], ids=lambda loss: type(loss).__name__)


def draw(lists=5, items=7, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(lists, items)).astype("float32") * 1.5 for _ in range(2))


def gradient(loss, teacher, student, **options):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        values = loss.values(teacher, student, **options)
    return values.numpy(), tape.gradient(values, student).numpy()


@every
def test_values_and_gradients_are_the_oracles(loss, twin, options):
    teacher, student = draw()
    keep = np.ones(7, bool)
    got, slope = gradient(loss, teacher, student)
    np.testing.assert_allclose(got, [twin(t, s, keep, **options) for t, s in zip(teacher, student, strict=True)], 2e-6)
    if options.get("weighting", "static") == "static":  # dynamic weights move with the student, without gradient
        expected = [
            oracles.slope(lambda s, t=t: twin(t, s, keep, **options), s) for t, s in zip(teacher, student, strict=True)
        ]
        np.testing.assert_allclose(slope, expected, atol=1e-5 * np.abs(expected).max())


@every
def test_padding_is_absent_by_score_or_by_mask(loss, twin, options):
    teacher, student = draw()
    keep = np.random.default_rng(3).random((5, 7)) < 0.7
    keep[4] = False
    expected = [twin(t, s, k, **options) for t, s, k in zip(teacher, student, keep, strict=True)]
    spoilt = np.where(keep, student, np.inf)
    for got, slope in (
        gradient(loss, np.where(keep, teacher, -np.inf), spoilt),
        gradient(loss, np.where(keep, teacher, np.nan), spoilt, mask=keep),
    ):
        np.testing.assert_allclose(got, expected, 3e-6, atol=1e-6)
        assert (slope[~keep] == 0).all() and np.isfinite(slope).all() and got[4] == 0


@some
def test_graph_xla_half_precision_masks_of_lists_and_config_agree(loss):
    teacher, student = draw()
    plain, slope = gradient(loss, teacher, student)

    @tf.function(jit_compile=True, autograph=False)
    def compiled(t, s):
        with tf.GradientTape() as tape:
            tape.watch(s)
            values = loss.values(t, s)
        return values, tape.gradient(values, s)

    values, compiled_slope = compiled(teacher, tf.constant(student))
    np.testing.assert_allclose(values, plain, 5e-6)
    np.testing.assert_allclose(compiled_slope, slope, atol=1e-5 * np.abs(slope).max())
    unknown = tf.function(
        lambda t, s: loss.values(t, s), input_signature=[tf.TensorSpec((None, None))] * 2, autograph=False
    )
    if not isinstance(loss, losses.RelaxedRanking):  # that function does not know whether the list was sampled
        np.testing.assert_allclose(unknown(teacher, student), plain, 5e-6)
    deep = loss.values(teacher[None], student[None])
    np.testing.assert_allclose(deep[0], plain, 2e-6)
    half = loss.values(tf.cast(teacher, "float16"), tf.cast(student, "float16"))
    assert half.dtype == "float32"
    mask = np.array([1, 0, 1, 1, 0], bool)
    np.testing.assert_allclose(loss.values(teacher, student, mask=mask), np.where(mask, plain * 5 / 3, 0), 2e-6)
    twice = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert twice.get_config() == loss.get_config()
    np.testing.assert_array_equal(twice.values(teacher, student), plain)
    assert float(loss(teacher, student)) == pytest.approx(plain.mean(), rel=1e-6)
    teacher[2, 1] = np.nan
    spoilt = loss.values(teacher, student).numpy()
    assert np.isnan(spoilt[2]) and np.isfinite(np.delete(spoilt, 2)).all()


def test_check_values_of_the_algorithm_reference():
    i, j = np.mgrid[:4, :5]
    student, teacher = 2 * np.sin(1 + 1.3 * i + 0.7 * j * (i + 1)), 3 * np.cos(0.5 + 0.9 * i - 1.1 * j)
    assert float(losses.ListMLE()(teacher, student)) == pytest.approx(6.4696436924, rel=1e-6)
    i, k = np.mgrid[1:5, 1:7]
    fs, ft = np.sin(0.3 * i * k), np.cos(0.2 * i * (k + 1))
    head, tail = -np.sort(-2 * fs[:, :3], axis=1), ft[:, :3]
    got = losses.relaxed_order(interesting=head, uninteresting=tail)
    assert float(np.sum(got)) == pytest.approx(12.0566657519, rel=1e-6)
    order = np.tile([6.0, 5.0, 4.0, 1.0, 2.0, 3.0], (4, 1))  # the same, as lists sampled in advance
    lists = losses.RelaxedRanking(3, 3).values(order, np.concatenate([head, tail], 1))
    np.testing.assert_allclose(lists, got, 1e-6)
    weights = losses.position_weights(top_k=5, position_decay=10.0)
    np.testing.assert_allclose(weights, [0.24185514, 0.21883958, 0.19801424, 0.17917069, 0.16212035], 1e-6)


def test_list_mle_and_pairs_are_those_of_keras_rs():
    keras_rs = pytest.importorskip("keras_rs")
    teacher, student = draw()
    teacher += 10  # negative labels are padding there
    theirs = keras_rs.losses.ListMLELoss(reduction="sum")(teacher, student)
    np.testing.assert_allclose(losses.ListMLE(reduction="sum")(teacher, student), theirs, 1e-5)
    theirs = keras_rs.losses.PairwiseLogisticLoss(reduction="sum")(teacher, student)
    np.testing.assert_allclose(losses.RankNet(reduction="sum")(teacher, student), theirs, 1e-5)


def test_large_scores_keep_value_and_gradient():
    teacher = np.float32([[4, 3, 2, 1]])
    student = np.float32([[1e4, -1e4, 1e4, -1e4]])
    values, slope = gradient(losses.ListMLE(), teacher, student)
    np.testing.assert_allclose(values, [np.log(2) + 2e4 + 0 + 0], 1e-6)
    np.testing.assert_allclose(slope, [[-0.5, -1, 1.5, 0]], atol=1e-6)


def test_relaxed_ranking_draws_without_replacement_with_the_published_probabilities():
    """The first samples follow exp(-rank / T); the others are uniform over the rest; the teacher's order is kept."""
    from keras_distill.losses._ranking import relaxed

    scores = np.zeros((20000, 6), "float32")
    head, tail = relaxed._draws(scores, scores == 0, 2, 2, 2.0, keras.random.SeedGenerator(1))
    head, tail = np.asarray(head), np.asarray(tail)
    assert (head.sum(1) == 2).all() and (tail.sum(1) == 2).all() and not (head & tail).any()
    p = np.exp(-np.arange(6) / 2) / np.exp(-np.arange(6) / 2).sum()
    expected = np.zeros((6, 6))
    for a, b in itertools.permutations(range(6), 2):
        expected[min(a, b), max(a, b)] += p[a] * p[b] / (1 - p[a])
    upper = np.triu_indices(6, 1)
    counts = np.einsum("ni,nj->ij", head.astype(float), head.astype(float))[upper]
    assert stats.chisquare(counts, expected[upper] * 20000).pvalue > 1e-3
    top = head[:, 0] & head[:, 1]
    assert stats.chisquare(tail[top][:, 2:].sum(0)).pvalue > 1e-3


def test_dynamic_weights_estimate_ranks_from_samples():
    teacher, student = draw(1, 50)
    exact = losses.RankedItems(5, "dynamic", num_samples=None).values(teacher, student)
    many = losses.RankedItems(5, "dynamic", num_samples=20000).values(teacher, student)
    np.testing.assert_allclose(many, exact, 0.1)


def test_own_items_are_left_out_of_the_teachers_list():
    teacher, student = draw()
    best = teacher.argmax(-1)
    hot = np.eye(7)[best]
    keep = hot == 0
    for loss, twin in ((losses.RankedItems(2), oracle.ranked_items), (losses.RelaxedRanking(2, 9), None)):
        options = {"top_k": 2} if twin else {"num_interesting": 2}
        twin = twin or oracle.relaxed_ranking
        expected = [twin(t, s, k, **options) for t, s, k in zip(teacher, student, keep, strict=True)]
        for labels in (best, best[:, None], np.stack([best, np.full(5, -1)], 1), hot):
            np.testing.assert_allclose(loss.values(teacher, student, labels=labels), expected, 2e-6)
    kept = losses.RankedItems(2, exclude_labels=False).values(teacher, student, labels=best)
    np.testing.assert_array_equal(kept, losses.RankedItems(2).values(teacher, student))


def test_evaluation_repeats_its_samples_and_a_saved_distiller_continues_them(tmp_path):
    teacher, student = (keras.Sequential([keras.Input((3,)), keras.layers.Dense(30)]) for _ in "ts")
    loss = losses.RelaxedRanking(4, 4, seed=5)
    distiller = Distiller(teacher, student, LogitsDistillation(loss=loss), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    y = np.zeros((16, 1), "int32")
    distiller.fit(x, y, epochs=2, batch_size=8, verbose=0, shuffle=False)
    first = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert distiller.evaluate(x, y, verbose=0, return_dict=True) == first
    distiller.save(tmp_path / "d.keras")
    again = keras.models.load_model(tmp_path / "d.keras")
    curves = [each.fit(x, y, epochs=2, verbose=0, shuffle=False).history for each in (distiller, again)]
    assert curves[0] == curves[1]
    assert curves[0]["distillation_loss"][0] != curves[0]["distillation_loss"][1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: losses.ListMLE(top_k=0), "ListMLE: expected top_k to be an integer >= 1, got 0."),
        (lambda: losses.RankNet("best"), "RankNet: expected targets to be one of 'order', 'probability', got best."),
        (lambda: losses.RankedItems(weighting="x"), "RankedItems: expected weighting to be one of"),
        (lambda: losses.RankedItems(position_decay=0), "RankedItems: expected position_decay > 0, got 0.0."),
        (lambda: losses.RelaxedRanking(rank_temperature=-1.0), "RelaxedRanking: expected rank_temperature > 0"),
        (
            lambda: losses.RankedItems().values(*draw(), labels=[0, 1, 2, 3, 7]),
            "ranked_items: expected items from 0 to 6, got 7. Item indices start at 0; negative ones are padding.",
        ),
        (lambda: losses.RankDistil(num_items=6).values(*draw()), "rank_distil: expected num_items to be an integer"),
        (lambda: losses.ListMLE().values(draw()[0], draw(items=6)[1]), "teacher and student scores of one shape"),
        (lambda: losses.PolicyTargets(0.0), "PolicyTargets: expected temperature > 0, got 0.0."),
        (lambda: losses.PolicyTargets(target="q"), "expected target to be one of 'kl', 'nll', 'mse'"),
    ],
)
def test_bad_input_raises_a_clear_error(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
