"""Text before training: ids and masks, masked tokens, augmentation, transfer sets."""

import keras
import numpy as np
import pytest

from keras_distill import data

WORDS = keras.layers.TextVectorization(vocabulary=["good", "film", "bad", "plot"])


def test_pairs_are_cut_at_the_longer_text_and_segments_and_masks_agree():
    found = data.tokens(["good film good film", "bad"], WORDS, pairs=["plot", "bad plot"], length=4)
    assert found["token_ids"].tolist() == [[2, 3, 2, 5], [4, 4, 5, 0]]
    assert found["segment_ids"].tolist() == [[0, 0, 0, 1], [0, 1, 1, 0]]
    assert found["padding_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_masked_tokens_are_the_share_asked_for_and_labels_only_where_chosen():
    ids = np.random.default_rng(0).integers(0, 50, (400, 50))
    shown, labels = data.mask_tokens(ids, mask_id=50, vocabulary_size=51, rate=0.15, seed=3)
    chosen = labels >= 0
    np.testing.assert_array_equal(labels[chosen], ids[chosen])
    np.testing.assert_array_equal(shown[~chosen], ids[~chosen])
    assert not chosen[ids < 2].any()
    assert chosen[ids >= 2].mean() == pytest.approx(0.15, abs=0.01)
    assert (shown[chosen] == 50).mean() == pytest.approx(0.8, abs=0.03)
    assert (shown[chosen] == ids[chosen]).mean() == pytest.approx(0.1, abs=0.02)


def test_augmentation_replaces_words_by_what_the_model_expects_and_nothing_else():
    def next_word(ids):  # expects the word after the one on the left
        left = np.concatenate([np.full_like(ids[:, :1], 2), ids[:, :-1]], axis=1)
        return np.eye(12)[np.minimum(left + 1, 10)]

    ids = np.array([[4, 7, 2, 0], [5, 5, 1, 0]])
    out = data.augment_tokens(ids, next_word, mask_id=11, copies=200, probability=0.5, candidates=1)
    assert out.shape == (400, 4)
    expected = np.array([[3, 5, 8, 0], [3, 6, 1, 0]])
    for row, original, replaced in zip(out, np.repeat(ids, 200, 0), np.repeat(expected, 200, 0), strict=True):
        assert all(word in (old, new) for word, old, new in zip(row, original, replaced, strict=True))
    assert (out[:, 0] != np.repeat(ids, 200, 0)[:, 0]).mean() == pytest.approx(0.5, abs=0.08)


def test_unlabelled_texts_are_unique_and_never_those_of_the_test_set():
    texts = data.unlabelled(["a", "b ", "B", "", "c"], batch_size=2, exclude=["C"], shuffle_seed=1)
    assert sorted(text for batch in texts for text in batch.numpy().tolist()) == [b"a", b"b "]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.tokens([], WORDS), r"data\.tokens: expected at least one text, got none"),
        (
            lambda: data.tokens(["good", " "], WORDS),
            r"expected texts with at least one token, got no token in",
        ),
        (
            lambda: data.tokens(["xyz qqq"], WORDS),
            r"expected texts with a known word, got only unknown",
        ),
        (
            lambda: data.tokens(["good film bad"], WORDS, length=2, long="raise"),
            r"expected texts of at most 2 tokens, got 3 in number 0\. Cut it",
        ),
        (lambda: data.tokens(["good"], WORDS, pairs=[]), r"expected pairs for each of the 1 texts, got 0"),
        (
            lambda: data.mask_tokens([[2]], mask_id=1, vocabulary_size=2),
            r"expected vocabulary_size to be an",
        ),
        (lambda: data.unlabelled([""], batch_size=1), r"data\.unlabelled: expected at least one example that is left"),
        (
            lambda: data.unlabelled(np.ones((2, 2)), batch_size=1, exclude=["a"]),
            r"expected texts where exclude",
        ),
    ],
)
def test_bad_input_raises_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
