"""Targets from order, gaps and clusters, against float64 NumPy and SciPy and the values of the algorithm reference."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata

from keras_distill import Distiller, LogitsDistillation, metrics, teachers

ROW, COLUMN = np.arange(4)[:, None], np.arange(5)[None]
S = 2 * np.sin(1 + 1.3 * ROW + 0.7 * COLUMN * (ROW + 1))
T = 3 * np.cos(0.5 + 0.9 * ROW - 1.1 * COLUMN)
TIED = np.array([[1.0, 1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [3.0, -np.inf, 1.0, 2.0, -np.inf]])


def says(classes=5):
    return keras.Sequential([keras.Input((classes,)), keras.layers.Activation("linear")])


def test_recorded_values():
    target = softmax(teachers.RankTargets(says())(T).numpy(), axis=-1)
    np.testing.assert_allclose(target[0], [0.63640865, 0.23412166, 0.08612854, 0.01165623, 0.03168492], atol=1e-6)
    target = softmax(np.asarray(teachers.SortedDifferences(says(), transform="cap")(T), "float64"), axis=-1)
    kl = (target * (np.log(target) - log_softmax(S, axis=-1))).sum(-1).mean()
    assert kl == pytest.approx(0.9532070121, abs=1e-6)


@pytest.mark.parametrize("form", ["softmax", "zipf"])
@pytest.mark.parametrize("top_k", [None, 1, 3, 5])
@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_rank_targets_are_those_of_scipy_ranks(form, top_k, mix):
    logits = np.concatenate([T, TIED])
    got = np.exp(
        np.asarray(teachers.RankTargets(says(), form, top_k, temperature=0.7, exponent=1.5, mix=mix)(logits), "float64")
    )
    for row, target in zip(logits, got, strict=True):
        rank = rankdata(-row) - 1
        t = np.exp(-rank / 0.7) if form == "softmax" else (1 + rank) ** -1.5
        t = np.where(np.isfinite(row), t, 0)
        t /= t.sum()
        tail = (rank > (top_k or 99) - 1) & np.isfinite(row)
        t[tail] = t[tail].sum() / max(tail.sum(), 1)
        np.testing.assert_allclose(target, (1 - mix) * t + mix * softmax(row), rtol=2e-5, atol=1e-7)


GAPS = {
    "cap": lambda d, row: np.minimum(d, 1.0),
    "log": lambda d, row: np.log1p(d),
    "standardize": lambda d, row: d / row.std(),
    "identity": lambda d, row: d,
}


@pytest.mark.parametrize("transform", list(GAPS))
def test_sorted_differences_by_hand(transform):
    got = np.asarray(teachers.SortedDifferences(says(), transform, temperature=2.0)(np.concatenate([T, TIED[:1]])))
    for row, rebuilt in zip(np.concatenate([T, TIED[:1]]), got, strict=True):
        order = np.argsort(-row, kind="stable")
        gaps = GAPS[transform](-np.diff(row[order]), row)
        expected = np.empty(5)
        expected[order] = -np.concatenate([[0], np.cumsum(gaps)]) / 2.0
        np.testing.assert_allclose(rebuilt, expected, rtol=1e-5, atol=1e-6)
    impossible = np.asarray(teachers.SortedDifferences(says(), transform)(TIED[2:]))[0]
    np.testing.assert_array_equal(np.isneginf(impossible), np.isneginf(TIED[2]))
    assert impossible[0] == 0 and not np.isnan(impossible).any()


def test_untransformed_gaps_equal_soft_targets_and_train_alike():
    np.testing.assert_allclose(
        softmax(teachers.SortedDifferences(says(), transform="identity")(T).numpy(), axis=-1),
        softmax(T, axis=-1),
        rtol=1e-5,
    )
    kernels = []
    for wrap in (lambda model: model, lambda model: teachers.SortedDifferences(model, transform="identity")):
        keras.utils.set_random_seed(0)
        student = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5)])
        distiller = Distiller(wrap(says()), student, LogitsDistillation(temperature=2.0), student_loss_weight=0.0)
        distiller.compile(keras.optimizers.SGD(0.1), jit_compile=True)
        for _ in range(3):
            distiller.train_on_batch(T.astype("float32"))
        kernels.append(student.layers[0].kernel.numpy())
    np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-6)


def test_targets_from_the_order_lose_calibration_and_mixing_restores_it():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5)) * rng.uniform(1.0, 12.0, size=(4000, 1))  # some examples are hard, some easy
    labels = np.array([rng.choice(5, p=p) for p in softmax(logits, axis=-1)])  # a calibrated teacher

    def ece(teacher):
        out = np.asarray(teacher(logits))
        np.testing.assert_array_equal(out.argmax(-1), logits.argmax(-1))
        return metrics.expected_calibration_error(labels, out, from_logits=True)

    order, mixed = (ece(teachers.RankTargets(says(), mix=mix)) for mix in (0.0, 0.8))
    own = ece(says())
    confidences = np.exp(np.asarray(teachers.RankTargets(says())(logits))).max(-1)
    assert np.ptp(confidences) < 1e-5  # the same confidence for every example
    assert own < 0.02 and mixed < order / 3 and order > 0.1


def test_cluster_targets_against_k_means():
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(6, 5)) * 4
    logits = (kinds[rng.integers(6, size=300)] + 0.05 * rng.normal(size=(300, 5))).astype("float32")
    teacher = teachers.ClusterTargets.fit(says(), logits, clusters=6)
    p = softmax(logits.astype("float64"), axis=-1)
    oracle = KMeans(6, n_init=10, random_state=0).fit(np.sqrt(p))
    inertia = ((np.sqrt(p) - teacher.centers[np.asarray(teacher.groups(logits))]) ** 2).sum()
    assert inertia <= 1.001 * oracle.inertia_
    got = np.exp(np.asarray(teacher(logits), "float64"))
    for label in range(6):
        rows = oracle.labels_ == label
        np.testing.assert_allclose(got[rows], np.broadcast_to(p[rows].mean(0), got[rows].shape), rtol=1e-4, atol=1e-6)
    one = teachers.ClusterTargets.fit(says(), logits, clusters=1)
    np.testing.assert_allclose(np.exp(one(logits[:1])), p.mean(0)[None], rtol=1e-4)
    # As many clusters as there are different answers: soft targets.
    few = logits[:12]
    each = teachers.ClusterTargets.fit(says(), np.concatenate([few, few]), clusters=12)
    np.testing.assert_allclose(np.exp(each(few)), softmax(few, axis=-1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "teacher",
    [
        lambda: teachers.RankTargets(says(), "zipf", top_k=2, exponent=2.0, mix=0.1),
        lambda: teachers.SortedDifferences(says(), "log", temperature=3.0),
        lambda: teachers.ClusterTargets(says(), softmax(T, axis=-1)),
    ],
)
def test_saved_and_loaded(teacher, tmp_path):
    made = teacher()
    student = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5)])
    distiller = Distiller(made, student, LogitsDistillation(), student_loss_weight=0.0)
    distiller.build((None, 5))
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    np.testing.assert_allclose(loaded.teacher(T), made(T), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: teachers.RankTargets(says(), form="rank"),
            "RankTargets: expected form to be one of",
        ),
        (lambda: teachers.RankTargets(says(), top_k=0), "expected top_k to be an integer >= 1, got 0"),
        (lambda: teachers.RankTargets(says(), temperature=0), "expected temperature > 0, got 0"),
        (lambda: teachers.RankTargets(says(), mix=1.5), "expected mix >= 0 and <= 1, got 1.5"),
        (lambda: teachers.SortedDifferences(says(), "sqrt"), "SortedDifferences: expected transform to be one of"),
        (lambda: teachers.SortedDifferences(says(), cap=0), "expected cap > 0, got 0"),
        (lambda: teachers.ClusterTargets(says(), [[0.5, 0.6]]), "ClusterTargets: expected representatives"),
        (lambda: teachers.ClusterTargets.fit(says(), np.zeros((3, 5)), 4), "expected at least 4 examples, got 3"),
        (
            lambda: teachers.RankTargets(keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])),
            "expected members that give logits",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
