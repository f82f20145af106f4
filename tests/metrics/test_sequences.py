"""Decoding, error rates and spans, against enumeration, jiwer and seqeval."""

import itertools

import jiwer
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import metrics, teachers
from tests.oracles import sequences as oracles


def random_logits(shape=(3, 6, 3), seed=0, scale=2.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype("float32")


def test_a_wide_beam_is_the_enumeration_of_all_paths():
    decoded = metrics.ctc_beam_decode(random_logits(), beam_width=500, num_hypotheses=500)
    for row, found in zip(random_logits(), decoded, strict=True):
        exact = oracles.all_label_sequences(row)
        assert {each.labels for each in found} == set(exact)
        np.testing.assert_allclose([np.exp(each.log_probability) for each in found], sorted(exact.values())[::-1], 1e-6)


def test_a_narrow_beam_gives_lower_bounds_and_mostly_the_best_sequence():
    logits, hits = random_logits((20, 7, 4), seed=1), 0
    for row, found in zip(logits, metrics.ctc_beam_decode(logits, beam_width=40), strict=True):
        exact = oracles.all_label_sequences(row)
        assert np.exp(found[0].log_probability) <= exact[found[0].labels] * (1 + 1e-9)
        hits += found[0].labels == max(exact, key=exact.get)
    assert hits >= 18


def test_an_alignment_is_the_most_likely_of_all_paths_with_these_labels():
    logits, mask = random_logits((6, 7, 3), seed=4), np.ones((6, 7), bool)
    mask[3:, [1, 4]] = False
    labels = np.array([[1, 2, -1], [1, 1, -1], [0, 2, 0], [2, 1, 2], [-1, -1, -1], [1, 2, 2]])
    found = metrics.ctc_align(labels, logits, mask=mask)
    for row, each, keep, path, score in zip(labels, logits, mask, *found, strict=True):
        log_q = oracles.log_softmax(each[keep])
        wanted = tuple(oracles.real(row))
        allowed = [a for a in itertools.product(range(3), repeat=len(log_q)) if oracles.collapse(a) == wanted]
        values = {a: log_q[np.arange(len(a)), list(a)].sum() for a in allowed}
        best = max(values, key=values.get)
        assert tuple(path[keep]) == best and (path[~keep] == -1).all()
        np.testing.assert_allclose(score, values[best], rtol=1e-6)


def test_a_keras_mask_leaves_padding_out_of_the_alignment():
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.Masking(), keras.layers.Dense(3)])
    x = random_logits((2, 5, 3))
    x[1, 3:] = 0.0
    found = metrics.ctc_align([[1, 2], [2, -1]], model(x))
    assert (found.frames == -1).tolist() == [[False] * 5, [False] * 3 + [True] * 2]


def test_greedy_is_the_collapsed_best_path_and_masked_frames_do_not_exist():
    logits = random_logits((8, 9, 3), seed=2)
    mask = np.random.default_rng(0).random((8, 9)) < 0.7
    for kept in (np.ones((8, 9), bool), mask):
        got = metrics.ctc_greedy_decode(logits, mask=kept).numpy()
        beams = metrics.ctc_beam_decode(logits, mask=kept, beam_width=30)
        whole = metrics.ctc_beam_decode(logits[:1, kept[0]], beam_width=30)
        assert beams[0] == whole[0]
        for row, frames, keep in zip(got, logits, kept, strict=True):
            assert tuple(row[row >= 0]) == oracles.collapse(frames[keep].argmax(-1))
    graph = tf.function(metrics.ctc_greedy_decode, jit_compile=True, autograph=False)
    np.testing.assert_array_equal(graph(logits), metrics.ctc_greedy_decode(logits))


def random_labels(rng, longest, count=40):
    rows = [rng.integers(1, 4, rng.integers(1, longest + 1)) for _ in range(count)]
    return np.array([[*row, *[-1] * (longest - len(row))] for row in rows]), rows


def test_edit_distance_is_jiwers_in_every_mode():
    rng = np.random.default_rng(3)
    (right, right_rows), (found, found_rows) = random_labels(rng, 8), random_labels(rng, 11)
    texts = [[" ".join(map(str, row)) for row in side] for side in (right_rows, found_rows)]
    expected = []
    for reference, hypothesis in zip(*texts, strict=True):
        each = jiwer.process_words(reference, hypothesis)
        expected.append(each.substitutions + each.deletions + each.insertions)
    for function in (metrics.edit_distance, tf.function(metrics.edit_distance, jit_compile=True, autograph=False)):
        np.testing.assert_array_equal(function(right, found), expected)
    rate = metrics.TokenErrorRate()
    for rows in (slice(0, 13), slice(13, 40)):
        rate.update_state(right[rows], found[rows])
    np.testing.assert_allclose(rate.result(), jiwer.wer(*texts), rtol=1e-6)
    np.testing.assert_allclose(metrics.word_error_rate(*texts), jiwer.wer(*texts), rtol=1e-12)
    np.testing.assert_allclose(metrics.character_error_rate(*texts), jiwer.cer(*texts), rtol=1e-12)
    words = metrics.TokenErrorRate("character")
    words.update_state(*texts)
    np.testing.assert_allclose(words.result(), jiwer.cer(*texts), rtol=1e-6)
    # A weight of 2 counts as the text twice, one of 0 as no text.
    weighted = metrics.TokenErrorRate("character")
    weighted.update_state(*texts, sample_weight=[2.0, 0.0] + [1.0] * (len(texts[0]) - 2))
    seen = [[side[0], *side[:1], *side[2:]] for side in texts]
    np.testing.assert_allclose(weighted.result(), jiwer.cer(*seen), rtol=1e-6)


def test_token_error_rate_decodes_logits_reads_the_mask_and_weights():
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, keras.layers.Masking(mask_value=-5.0)(inputs))
    x = random_logits((4, 9, 3), seed=5)
    x[0, 6:] = -5.0
    y = np.array([[1, 2, 0], [2, 1, 1], [1, 0, 0], [2, 2, 2]])
    wrong = [
        int(
            metrics.edit_distance(y[i : i + 1] - (y[i : i + 1] == 0), [list(oracles.collapse(z.argmax(-1))) or [-1]])[0]
        )
        for i, z in enumerate([x[0, :6], *x[1:]])
    ]
    weights = np.array([1.0, 2.0, 0.0, 1.0])
    rate = metrics.TokenErrorRate()
    rate.update_state(y, model(x), sample_weight=weights)
    np.testing.assert_allclose(rate.result(), np.sum(wrong * weights) / np.sum((y > 0).sum(1) * weights), rtol=1e-6)


def test_n_best_weights_are_the_exact_posteriors_and_respect_the_mask():
    inputs = keras.Input((None, 3))
    teacher = keras.Model(inputs, keras.layers.Masking(mask_value=-9.0)(inputs))
    x = random_logits((3, 6, 3), seed=7)
    x[1, 4:] = -9.0
    found = teachers.n_best(teacher, x, num_hypotheses=4, beam_width=50, batch_size=2)
    for i, frames in enumerate([x[0], x[1, :4], x[2]]):
        exact = oracles.all_label_sequences(frames)
        best = sorted(exact, key=exact.get, reverse=True)[:4]
        assert [tuple(row[row >= 0]) for row in found.labels[i]] == best
        chosen = np.array([exact[labels] for labels in best])
        np.testing.assert_allclose(np.exp(found.log_probabilities[i]), chosen, rtol=1e-5)
        np.testing.assert_allclose(found.weights[i], chosen / chosen.sum(), rtol=1e-5)
    np.testing.assert_array_equal(found.packed()[..., 1:], found.labels)


NAMES = ["O", "B-x", "I-x", "B-y"]


def test_spans_of_integers_are_those_of_names_and_masked_tokens_do_not_exist():
    right = np.array([[1, 2, 0, 3, -1], [0, 3, 3, 1, 2]])
    found = np.array([[1, 2, 0, 0, 1], [0, 3, 1, 1, 2]])
    mask = np.array([[True] * 5, [True, True, True, False, False]])
    named = [[[NAMES[k] for k in row[:n]] for row, n in zip(side, (4, 3), strict=True)] for side in (right, found)]
    expected = metrics.span_f1(*named)
    assert expected == pytest.approx(2 * 2 / (3 + 4))  # found x and y of 4 true spans, by 3 predictions and one more
    assert metrics.span_f1(right, found, tag_names=NAMES, mask=mask) == pytest.approx(expected)
    assert metrics.span_f1(right, np.eye(4)[found], tag_names=NAMES, mask=mask) == pytest.approx(expected)


def test_span_calibration_is_zero_for_a_calibrated_model():
    rng = np.random.default_rng(0)
    probabilities = np.tile([0.2, 0.75, 0.0, 0.05], (20000, 1, 1))
    tags = rng.choice(4, (20000, 1), p=[0.2, 0.75, 0.0, 0.05])
    assert metrics.span_calibration_error(tags, probabilities, tag_names=NAMES) < 0.01
    assert metrics.span_calibration_error(np.zeros_like(tags), probabilities, tag_names=NAMES) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: metrics.ctc_align([[1, 1]], np.zeros((1, 2, 2))),
            r"ctc_align: expected at least 3 frames for 2 labels, got 2 in sequence 0\. Drop the example",
        ),
        (lambda: metrics.ctc_align([[2]], np.zeros((1, 2, 2))), r"expected labels from 0 to 1, got 2 in sequence 0\."),
        (lambda: metrics.ctc_align([1], np.zeros((1, 2, 2))), r"expected labels of shape \(batch, labels\), one row"),
        (lambda: metrics.ctc_align([[1]], np.full((1, 2, 2), np.nan)), r"expected logits without NaN, got NaN"),
        (
            lambda: metrics.ctc_greedy_decode([[1.0]]),
            r"ctc_greedy_decode: expected logits of shape \(batch, frames, cl",
        ),
        (
            lambda: metrics.ctc_beam_decode(random_logits() * np.nan),
            r"ctc_beam_decode: expected logits without NaN",
        ),
        (
            lambda: metrics.ctc_beam_decode(random_logits(), blank=3),
            r"ctc_beam_decode: expected blank from 0 to 2, got 3",
        ),
        (
            lambda: metrics.ctc_beam_decode(random_logits(), beam_width=2, num_hypotheses=3),
            r"ctc_beam_decode: expected num_hypotheses of at most beam_width = 2, got 3",
        ),
        (lambda: metrics.word_error_rate(["a"], []), r"word_error_rate: expected one hypothesis for each of the 1 ref"),
        (
            lambda: metrics.word_error_rate([], []),
            r"word_error_rate: expected at least one word in the references, got",
        ),
        (lambda: metrics.TokenErrorRate("phone"), r"TokenErrorRate: expected unit to be one of 'token', 'word', 'char"),
        (
            lambda: metrics.TokenErrorRate().update_state(["a"], ["a"]),
            r"TokenErrorRate: expected unit='word' or unit='character' for texts, got unit='token'",
        ),
        (
            lambda: metrics.TokenErrorRate("word").update_state(["a"], ["a"], sample_weight=[1.0, 1.0]),
            r"TokenErrorRate: expected one hypothesis and one weight for each of 1 references, got 1 hypotheses and 2",
        ),
        (
            lambda: metrics.TokenErrorRate("word").update_state([[1]], [[1]]),
            r"TokenErrorRate: expected texts for unit=",
        ),
        (lambda: metrics.span_f1([["O"]], [["O", "O"]]), r"span_f1: expected one predicted tag for each reference tag"),
        (lambda: metrics.span_f1([[7]], [[0]], tag_names=NAMES), r"span_f1: expected tags from 0 to 3, got 7"),
        (lambda: teachers.n_best(None, np.zeros((0, 3, 2))), r"n_best: expected at least one example, got none"),
    ],
)
def test_bad_input_raises_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
