"""Leave-one-out splits, sampled and padded lists: by hand, and by properties on random interactions."""

import numpy as np
import pytest

from keras_distill import data


def draw(users=40, items=30, seed=0):
    rng = np.random.default_rng(seed)
    lists = [rng.choice(items, rng.integers(3, 12), replace=False) for _ in range(users)]
    pairs = np.array([(u, i) for u, each in enumerate(lists) for i in each])
    return pairs[rng.permutation(len(pairs))], rng


def test_the_last_item_is_the_test_and_nothing_is_lost():
    pairs, rng = draw()
    times = rng.permutation(len(pairs))
    split = data.leave_one_out(pairs[:, 0], pairs[:, 1], times=times, num_items=30)
    for user in range(40):
        own = np.flatnonzero(pairs[:, 0] == user)
        own = own[np.argsort(times[own])]
        np.testing.assert_array_equal(split.histories()[user], pairs[own[:-2], 1])
        assert (split.validation[user], split.test[user]) == (pairs[own[-2], 1], pairs[own[-1], 1])
    seen = split.seen()
    assert seen.sum() == len(pairs) - 80 and split.seen(validation=True).sum() == len(pairs) - 40
    assert not seen[np.arange(40), split.test].any()


def test_without_times_the_draw_repeats_and_repeated_pairs_count_once():
    pairs, _ = draw()
    both = np.concatenate([pairs, pairs])
    one, two = (data.leave_one_out(both[:, 0], both[:, 1], seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.test, two.test)
    assert len(one.train) == len(pairs) - 80
    assert (data.leave_one_out(both[:, 0], both[:, 1], seed=5).test != one.test).any()
    short = data.leave_one_out([0, 0, 0, 1], [0, 1, 2, 1], short_histories="train")
    assert short.test[1] == -1 and short.histories()[1].tolist() == [1]


def test_unseen_items_are_unseen_distinct_and_even():
    seen = np.zeros((3000, 6), bool)
    seen[:, 1] = True
    drawn = data.sample_unseen(seen, 3, seed=1)
    assert not (drawn == 1).any() and (np.sort(drawn, 1)[:, 1:] > np.sort(drawn, 1)[:, :-1]).all()
    counts = np.bincount(drawn.ravel(), minlength=6)[[0, 2, 3, 4, 5]]
    assert np.abs(counts / 3000 - 0.6).max() < 0.04


def test_lists_are_padded_at_their_ends():
    assert data.pad_lists([[1, 2, 3], [4], []], length=2).tolist() == [[2, 3], [4, -1], [-1, -1]]
    no_history_first = data.pad_lists([[], [7]])
    assert no_history_first.dtype == "int32" and no_history_first.tolist() == [[-1], [7]]
    scores = data.pad_lists([[0.5], [1.0, 2.0]], value=-np.inf)
    assert scores.dtype == "float32" and scores[0, 1] == -np.inf


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: data.leave_one_out([0, 0, 1], [0, 1, 1]), "expected at least 3 different items of every user, got 2"),
        (lambda: data.leave_one_out([0], [5], num_items=5), "leave_one_out: expected items from 0 to 4, got 5."),
        (lambda: data.leave_one_out([-1], [0]), "leave_one_out: expected users from 0 to -1, got -1."),
        (lambda: data.leave_one_out([0.5], [0]), "expected users to be integers from 0, got float64."),
        (lambda: data.leave_one_out([0, 1], [0]), "expected as many users as items"),
        (lambda: data.sample_unseen([[1, 1, 0]], 2), "expected at least 2 unseen items of every user, got 1 of user 0"),
        (lambda: data.pad_lists([]), "pad_lists: expected at least one list of numbers"),
    ],
)
def test_bad_input_raises_a_clear_error(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
