"""Ranking quality against keras-rs, and its properties."""

import numpy as np
import pytest

from keras_distill import metrics


def draw(lists=20, items=15, seed=0):
    rng = np.random.default_rng(seed)
    relevant = rng.random((lists, items)) < 0.2
    relevant[:, 0] |= ~relevant.any(1)
    return rng.normal(size=(lists, items)).astype("float32"), relevant


@pytest.mark.parametrize("k", [1, 3, 10, 15])
def test_values_are_those_of_keras_rs(k):
    keras_rs = pytest.importorskip("keras_rs")
    scores, relevant = draw()
    got = metrics.ranking_quality(scores, relevant, k=k)
    names = {"NDCG": 2, "MeanReciprocalRank": 3, "MeanAveragePrecision": 4, "RecallAtK": 1}
    for name, column in names.items():  # list by list: keras-rs weights a list by its number of relevant items
        for row in range(5):
            metric = getattr(keras_rs.metrics, name)(k=k)
            metric.update_state(relevant[row : row + 1].astype("float32"), scores[row : row + 1])
            assert float(metric.result()) == pytest.approx(got.per_list[row, column], abs=1e-6), name


def test_one_held_out_item_by_hand_and_ties_get_no_credit():
    scores = np.array([[0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1.0]])
    got = metrics.ranking_quality(scores, [2, 3, 1], k=3)
    np.testing.assert_allclose(got.per_list[:, 2], [np.log(2) / np.log(4), 1, 0])
    np.testing.assert_allclose(got.per_list[:, 3], [1 / 3, 1, 0])
    assert got.hit_rate == pytest.approx(2 / 3)
    exclude = np.array([[1, 1, 0, 0], [0] * 4, [1, 1, 1, 0]], bool)  # a relevant item is never left out
    assert metrics.ranking_quality(scores, [2, 3, 1], k=1, exclude=exclude).hit_rate == pytest.approx(2 / 3)
    assert metrics.ranking_quality(scores, [2, -1, -1], k=3).per_list.shape == (1, 5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: metrics.ranking_quality([[1.0, np.nan]], [0]), "expected scores without NaN, got NaN."),
        (lambda: metrics.ranking_quality([[1.0, 2.0]], [2]), "expected items from 0 to 1, got 2."),
        (lambda: metrics.ranking_quality([[1.0, 2.0]], [-1]), "expected a list with a relevant item, got none."),
        (lambda: metrics.ranking_quality([1.0], [0]), "expected scores of shape (lists, items), got (1,)."),
        (lambda: metrics.ranking_quality([[1.0]], [0], exclude=[[1, 0]]), "expected exclude of shape (1, 1)"),
    ],
)
def test_bad_input_raises_a_clear_error(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
