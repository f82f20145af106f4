"""Fidelity of a student to its teacher, against NumPy and SciPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from scipy.special import log_softmax, softmax

from keras_distill import metrics


def outputs(n=40, classes=6, ties=False, seed=0):
    random = np.random.default_rng(seed)
    teacher = random.normal(size=(n, classes)) * 2
    student = teacher + random.normal(size=(n, classes))
    return (np.round(teacher), np.round(student)) if ties else (teacher, student)


def streamed(metric, teacher, student, weights=None, **extra):
    for part in np.array_split(np.arange(len(student)), 3):
        more = {name: value[part] for name, value in extra.items()}
        metric.update_state(teacher[part], student[part], None if weights is None else weights[part], **more)
    return float(metric.result())


def test_agreement_of_the_reference():
    i, j = np.arange(4)[:, None], np.arange(5)[None]
    s, t = 2 * np.sin(1 + 1.3 * i + 0.7 * j * (i + 1)), 3 * np.cos(0.5 + 0.9 * i - 1.1 * j)
    assert metrics.top_k_agreement(t, s) == 0.25
    assert metrics.teacher_kl(t, s, from_logits=True) == pytest.approx(1.0992606108, abs=1e-10)


@pytest.mark.parametrize("k", [1, 2, 6])
def test_top_k_agreement_is_the_overlap_of_the_sets(k):
    teacher, student = outputs()
    weights = np.random.default_rng(1).uniform(0, 2, 40)
    shared = [len(set(np.argsort(-t)[:k]) & set(np.argsort(-s)[:k])) / k for t, s in zip(teacher, student, strict=True)]
    ours = streamed(metrics.TopKAgreement(k), teacher, student, weights)
    assert ours == pytest.approx(np.average(shared, weights=weights), rel=1e-6)
    assert metrics.top_k_agreement(teacher, softmax(student, 1), k=k) == pytest.approx(np.mean(shared))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_teacher_kl_from_logits_and_probabilities(temperature):
    teacher, student = outputs()
    log_p, log_q = (log_softmax(side / temperature, axis=1) for side in (teacher, student))
    expected = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    ours = streamed(metrics.TeacherKL(True, temperature, dtype="float64"), teacher, student)
    assert ours == pytest.approx(expected, abs=1e-12)
    assert metrics.teacher_kl(np.exp(log_p), np.exp(log_q)) == pytest.approx(expected, abs=1e-12)
    assert metrics.teacher_kl(teacher, teacher + 5.0, from_logits=True) == pytest.approx(0, abs=1e-12)


def test_teacher_kl_of_impossible_classes():
    assert metrics.teacher_kl([[0.0, 1.0]], [[0.0, 1.0]]) == 0.0
    assert metrics.teacher_kl([[0.5, 0.5]], [[0.0, 1.0]]) == np.inf
    masked = [[0.0, 1.0, -np.inf]]
    assert metrics.teacher_kl(masked, [[1.0, 0.0, -np.inf]], from_logits=True) == pytest.approx(
        metrics.teacher_kl([[0.0, 1.0]], [[1.0, 0.0]], from_logits=True), abs=1e-12
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("kind", "oracle"), [("spearman", stats.spearmanr), ("kendall", stats.kendalltau)])
def test_rank_correlations_equal_scipy(kind, oracle, ties):
    teacher, student = outputs(ties=ties)
    expected = np.mean([oracle(t, s).statistic for t, s in zip(teacher, student, strict=True)])
    assert streamed(metrics.RankCorrelation(kind, dtype="float64"), teacher, student) == pytest.approx(
        expected, abs=1e-12
    )
    one = metrics.rank_correlation(teacher.ravel(), student.ravel(), kind=kind)
    assert one == pytest.approx(oracle(teacher.ravel(), student.ravel()).statistic, abs=1e-12)
    assert metrics.rank_correlation([1, 1, 1], [1, 2, 3], kind=kind) == 0.0


def test_agreement_on_errors_counts_the_same_wrong_class():
    teacher, student = outputs(classes=3)
    labels = np.random.default_rng(2).integers(0, 3, 40)
    decided, said = teacher.argmax(1), student.argmax(1)
    expected = (said == decided)[decided != labels].mean()
    assert streamed(metrics.AgreementOnErrors(), teacher, student, labels=labels) == pytest.approx(expected, rel=1e-6)
    assert metrics.agreement_on_errors(np.eye(3)[labels], teacher, student) == pytest.approx(expected)
    assert metrics.agreement_on_errors(labels[:, None], teacher, student) == pytest.approx(expected)
    assert np.isnan(metrics.agreement_on_errors(decided, teacher, student))


@pytest.mark.parametrize("classes", [3, 100])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    "make",
    [
        metrics.TopKAgreement,
        lambda: metrics.TopKAgreement(2),
        metrics.TeacherKL,
        metrics.RankCorrelation,
        lambda: metrics.RankCorrelation("kendall"),
    ],
)
def test_a_nan_output_makes_the_agreement_nan(make, side, classes):
    both = [softmax(each, 1) for each in outputs(classes=classes)]
    both[side][5, 1] = np.nan
    assert np.isnan(make()(*both))
    weights = np.arange(40) != 5  # weight 0 removes even a NaN
    assert float(make()(*both, weights)) == float(make()(*(each[weights] for each in both)))


def test_a_nan_output_makes_the_agreement_on_errors_nan():
    teacher, student = outputs(classes=3)
    labels = (teacher.argmax(1) + 1) % 3
    student[5, 1] = np.nan
    assert np.isnan(metrics.agreement_on_errors(labels, teacher, student))


def test_runs_in_xla_on_sequences_and_round_trips():
    teacher, student = (side.reshape(4, 10, 6).astype("float32") for side in outputs())
    every = [metrics.TopKAgreement(3), metrics.TeacherKL(True)]
    for metric in (*every, metrics.RankCorrelation("spearman"), metrics.RankCorrelation("kendall")):
        eager = type(metric).from_config(metric.get_config())
        eager.update_state(teacher, student)
        tf.function(metric.update_state, jit_compile=True, autograph=False)(tf.constant(teacher), tf.constant(student))
        assert float(metric.result()) == pytest.approx(float(eager.result()), rel=1e-5)
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
        assert again.get_config() == metric.get_config()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: metrics.TopKAgreement(0), "expected k to be an integer >= 1, got 0"),
        (lambda: metrics.top_k_agreement([[1.0, 2.0]], [[1.0, 2.0]], k=3), "expected k of at most 2 classes, got 3"),
        (lambda: metrics.top_k_agreement([[1.0, 2.0]], [[1.0, 2.0, 3.0]]), r"got \(1, 2\) and \(1, 3\)"),
        (lambda: metrics.TeacherKL(temperature=2.0), "expected temperature 1.0 for probabilities, got 2.0"),
        (lambda: metrics.RankCorrelation("pearson"), "expected kind to be one of 'spearman', 'kendall'"),
        (lambda: metrics.AgreementOnErrors().update_state([[1.0, 2.0]], [[1.0, 2.0]]), "expected labels beside"),
        (lambda: metrics.rank_correlation([1, 2], [1, 2, 3]), "equal length, got 2 and 3"),
    ],
)
def test_bad_arguments_raise_a_clear_error(call, text):
    with pytest.raises(ValueError, match=text):
        call()
