"""Every loss through a real distiller: padding, weights, labels and a ragged last batch, against the unpadded rows.

The value of a loss on plain rows has its own float64 oracle in tests/losses. Here the question is what a step makes of
it: positions that are padding must not count, a weight of 0 removes and of 2 doubles, and the logs are means over
examples.
"""

import inspect

import keras
import numpy as np
import pytest

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, losses, teachers

LENGTHS = [4, 2, 3, 1, 4]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4, 6)).astype("float32") + 3.0  # never all zeros
for _row, _length in zip(X, LENGTHS, strict=True):
    _row[_length:] = 0.0
VALID = np.arange(4)[None] < np.array(LENGTHS)[:, None]
LABELS = np.where(VALID, RNG.integers(0, 5, (5, 4)), 0)
WEIGHTS = np.array([1.0, 2.0, 0.0, 0.5, 1.0], "float32")
# Their rows are frames, lists of items, regression heads or detectors, which have separate tests.
OTHERS = {
    "BinarySoftTargets", "CenterBoxes", "CenterHeatmaps", "ChannelDistributions", "ConfidentTargets",
    "CrfNegativeLogLikelihood", "Ctc", "EdgeDistributions", "Evidential", "FrameSoftTargets", "GaussianKL",
    "GuidedCtc", "ListMLE", "LogitsLoss", "MisleadingEvidence", "NBestCtc", "PixelSimilarities",
    "PolicyTargets", "QuantileTargets", "RankDistil", "RankNet", "RankedItems", "RegressionMatching",
    "RelaxedRanking", "TopKSoftTargets", "WhereLabelled",
}  # fmt: skip


def of_kind(kind):
    for name in sorted(losses.__all__):
        thing = getattr(losses, name)
        needed = inspect.isclass(thing) and [
            p for p in inspect.signature(thing).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]  # fmt: skip
        if inspect.isclass(thing) and issubclass(thing, kind) and not needed and name not in OTHERS:
            yield name


LOGITS = [name for name in of_kind(losses.LogitsLoss) if not getattr(losses, name).needs_members]
# A student with a head for each member, or with a Dirichlet's outputs, has its own tests.
MEMBERS = [
    name
    for name in of_kind(losses.LogitsLoss)
    if getattr(losses, name).needs_members and getattr(losses, name).same_outputs and name != "MemberSoftTargets"
]


def network(seed, classes=5):
    init = keras.initializers.GlorotUniform(seed=seed)
    x = keras.Input((None, 6))
    return keras.Model(
        x, keras.layers.Dense(classes, kernel_initializer=init, name="hidden")(keras.layers.Masking()(x))
    )


def expected_of(batches, value_of):
    """The mean over examples of the values per batch."""
    total = sum(len(rows) * value_of(rows) for rows in batches)
    return total / sum(map(len, batches))


BATCHES = [np.array([0, 1]), np.array([2, 3]), np.array([4])]


def weighted(values, rows):
    """sum of weight * value over unmasked positions, divided by their number."""
    weights = np.repeat(WEIGHTS[rows], [LENGTHS[row] for row in rows])
    return float((np.asarray(values, "float64") * weights).sum() / len(weights))


def loss_of_a_fit(teacher, student, term):
    distiller = Distiller(teacher, student, term, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    before = student.get_weights()
    history = distiller.fit(X, LABELS, sample_weight=WEIGHTS, batch_size=2, shuffle=False, verbose=0).history
    for one, two in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    return history["distillation_loss"][0]


@pytest.mark.parametrize("name", LOGITS)
def test_a_loss_on_logits_receives_only_unmasked_rows(name):
    loss, teacher, student = getattr(losses, name)(), network(1), network(2)
    theirs, own = (np.asarray(model(X)) for model in (teacher, student))

    def value_of(rows):
        valid = VALID[rows]
        labels = {"labels": LABELS[rows][valid]} if loss.needs_labels else {}
        values = loss.values(theirs[rows][valid], own[rows][valid], temperature=2.0, **labels)
        return float(values) if loss.needs_batch else weighted(values, rows)

    got = loss_of_a_fit(teacher, student, LogitsDistillation(2.0, getattr(losses, name)()))
    assert got == pytest.approx(expected_of(BATCHES, value_of), rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_loss_on_members_receives_only_unmasked_rows(name):
    loss = getattr(losses, name)()
    members, student = [network(1), network(3)], network(2)
    theirs = np.stack([np.asarray(model(X)) for model in members], axis=1)  # (batch, members, time, classes)
    own = np.asarray(student(X))

    def value_of(rows):
        valid = VALID[rows]
        apart = np.moveaxis(theirs[rows], 1, 2)[valid]  # (positions, members, classes)
        return weighted(loss.values(apart, own[rows][valid], temperature=2.0), rows)

    term = LogitsDistillation(2.0, getattr(losses, name)())
    got = loss_of_a_fit(teachers.Ensemble(members), student, term)
    assert got == pytest.approx(expected_of(BATCHES, value_of), rel=2e-4, abs=1e-6)


# Losses on features for sequences that need neither several layers nor an adapter's statistics.
SEQUENCES = ["HintMatching", "HiddenStates"]


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_loss_on_features_receives_only_unmasked_positions(name):
    teacher, student = network(1), network(2)
    theirs, own = (np.asarray(model(X)) for model in (teacher, student))
    loss = getattr(losses, name)()

    def value_of(rows):
        each = [loss.values(theirs[[row], : LENGTHS[row]], own[[row], : LENGTHS[row]]) for row in rows]
        values = np.array([float(np.asarray(value).reshape(())) for value in each])
        counts = np.array(LENGTHS)[rows]  # the mean is over positions, not over the means of examples
        return float((values * counts * WEIGHTS[rows]).sum() / counts.sum())

    got = loss_of_a_fit(teacher, student, FeatureDistillation(getattr(losses, name)(), "hidden", "hidden"))
    assert got == pytest.approx(expected_of(BATCHES, value_of), rel=2e-4)
