"""Losses on the relations between examples: golden references, float64 oracles, invariances, replicas, memory."""

import numpy as np
import pytest
import tensorflow as tf

from keras_distill import adapters, losses
from keras_distill.losses._features import geometry
from tests import models
from tests.golden.record_features import Case

RELATIONS = [
    losses.SimilarityPreserving,
    losses.ProbabilisticTransfer,
    losses.CorrelationCongruence,
    losses.RelationalDistance,
    losses.RelationalAngle,
    losses.ContrastiveRepresentation,
]


def pair(function, **options):
    return lambda student, teacher: function(teacher_features=teacher, student_features=student, **options)


def both_rkd(student, teacher):
    return 25 * pair(losses.relational_distance)(student, teacher) + 50 * pair(losses.relational_angle)(
        student, teacher
    )


@pytest.mark.parametrize(
    "name, function",
    [
        ("sp/F0", pair(losses.similarity_preserving)),
        ("sp/F1", pair(losses.similarity_preserving)),
        ("sp/F2", pair(losses.similarity_preserving)),
        ("pkt/V0", pair(losses.probabilistic_transfer)),
        ("pkt/V1", pair(losses.probabilistic_transfer)),
        ("rkd_dist/V0", pair(losses.relational_distance)),
        ("rkd_dist/V1", pair(losses.relational_distance)),
        ("rkd_dist_squared/V0", pair(losses.relational_distance, squared=True)),
        ("rkd_angle/V0", pair(losses.relational_angle)),
        ("rkd_angle/V1", pair(losses.relational_angle)),
        ("rkd_both/V0", both_rkd),
        ("rkd_both/V1", both_rkd),
        ("rkd_both/F0_4d", both_rkd),
    ],
)
def test_relation_is_the_public_one(name, function):
    assert Case(name).check(function, "student", "teacher") == ["student"]


def test_relation_of_coincident_examples_is_the_public_one():
    Case("rkd_dist/V0_duplicates").check(pair(losses.relational_distance), "student", "teacher", gradients=[])


def test_rows_of_length_one_in_the_1_norm_are_an_option():
    for name in ("sp/F0", "sp/F1", "sp/F2"):
        case = Case(name)
        got = pair(losses.similarity_preserving, norm="l1")(case["student"], case["teacher"])
        np.testing.assert_allclose(got, next(iter(case.variants.values())), rtol=1e-5)


def test_row_wise_divergence_is_batch_times_the_mean():
    case = Case("pkt/V0")
    got = pair(losses.probabilistic_transfer, mode="row")(case["student"], case["teacher"])
    np.testing.assert_allclose(got, 8 * case["loss"], rtol=2e-6)


@pytest.mark.parametrize(
    "name, options",
    [
        ("cc_repdistiller/331", {"variant": "neighbour"}),
        ("cckd_bilinear/331/batchmean", {"variant": "frobenius", "kernel": "bilinear", "normalize": False}),
        ("cckd_gaussian/331/batchmean", {"variant": "frobenius", "normalize": False}),
    ],
)
def test_correlation_variants_are_the_public_ones_with_both_embeddings_trained(name, options):
    def loss(student, teacher, kernel_s, bias_s, kernel_t, bias_t):
        return losses.correlation_congruence(
            teacher_features=teacher @ kernel_t + bias_t,
            student_features=student @ kernel_s + bias_s,
            teacher_gradient=True,
            **options,
        )

    embeddings = [f"embed_{side}_{part}" for side in "st" for part in ("weight", "bias")]
    assert len(Case(name).check(loss, "student", "teacher", *embeddings)) == 5


def embedded_vectors():
    student = np.sin(0.3 * np.arange(1, 5)[:, None] * np.arange(1, 7))
    return student.astype("float32"), np.cos(0.2 * np.arange(1, 5)[:, None] * np.arange(2, 8)).astype("float32")


@pytest.mark.parametrize(
    "function, expected",
    [
        (pair(losses.relational_distance), 0.0053737924),
        (pair(losses.relational_angle), 0.0054509052),
        (pair(losses.probabilistic_transfer), 0.0066463830),
        (pair(losses.correlation_congruence), 0.0095944867),
        (pair(losses.correlation_congruence, variant="neighbour"), 2.4647934242),
    ],
)
def test_values_of_section_l(function, expected):
    np.testing.assert_allclose(function(*embedded_vectors()), expected, atol=2e-8, rtol=1e-6)


def oracle_angle(student, teacher):
    """The mean over all triples, from the differences themselves, float64."""

    def cosines(x):
        edges = x[None, :, :] - x[:, None, :]
        edges = edges / np.maximum(np.linalg.norm(edges, axis=-1, keepdims=True), 1e-12)
        return np.einsum("jid,jkd->jik", edges, edges)

    gap = np.abs(cosines(student.astype("float64")) - cosines(teacher.astype("float64")))
    return np.where(gap <= 1, gap**2 / 2, gap - 0.5).mean()


@pytest.mark.parametrize("batch", [1, 2, 7, 8, 9, 40])  # around the number of vertices handled at a time
def test_angles_by_the_law_of_cosines_against_the_differences(batch):
    rng = np.random.default_rng(batch)
    student, teacher = rng.normal(size=(2, batch, 5)).astype("float32")
    np.testing.assert_allclose(
        pair(losses.relational_angle)(student, teacher), oracle_angle(student, teacher), atol=1e-9, rtol=1e-6
    )


def test_angles_inside_tight_clusters_far_from_the_origin_are_kept():
    rng = np.random.default_rng(8)
    centres = rng.normal(size=(4, 1, 16)) + 100.0
    student = (centres + 1e-3 * rng.normal(size=(4, 6, 16))).reshape(24, 16).astype("float32")
    teacher = rng.normal(size=(24, 16)).astype("float32")
    np.testing.assert_allclose(
        pair(losses.relational_angle)(student, teacher), oracle_angle(student, teacher), rtol=1e-4
    )


def test_angle_gradient_against_automatic_differentiation_of_all_triples():
    rng = np.random.default_rng(9)
    student, teacher = rng.normal(size=(2, 20, 6)).astype("float32")
    teacher[3] = teacher[4]

    def triples(x):
        edges = tf.math.l2_normalize(x[None] - x[:, None], axis=-1)
        return tf.einsum("jid,jkd->jik", edges, edges)

    x = tf.constant(student, "float64")
    with tf.GradientTape() as tape:
        tape.watch(x)
        gap = triples(x) - triples(tf.constant(teacher, "float64"))
        slope = tf.clip_by_value(gap, -1, 1)
        expected = tf.reduce_mean(slope * (gap - slope / 2))
    wanted = tape.gradient(expected, x)
    y = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(y)
        got = pair(losses.relational_angle)(y, teacher)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(got, y), wanted, atol=1e-6 * np.abs(wanted).max())


def test_angles_need_no_memory_of_all_triples():
    """No tensor of the traced step has batch**3 entries."""
    step = tf.function(pair(losses.relational_angle), autograph=False).get_concrete_function(
        tf.TensorSpec((64, 4)), tf.TensorSpec((64, 4))
    )
    bodies = (getattr(function, "graph", None) for function in step.graph._functions.values())
    graphs = [step.graph, *(graph for graph in bodies if graph is not None)]
    sizes = [
        tensor.shape.num_elements() or 0 for graph in graphs for op in graph.get_operations() for tensor in op.outputs
    ]
    assert max(sizes) == 64 * 64 * geometry._VERTICES


@pytest.mark.parametrize("loss", RELATIONS, ids=lambda loss: loss.__name__)
def test_coincident_examples_leave_value_and_gradient_finite(loss):
    rng = np.random.default_rng(10)
    student, teacher = rng.normal(size=(2, 6, 4)).astype("float32")
    student[1] = student[0]
    student[2] = 0.0
    for features in (student, np.ones_like(student), np.zeros_like(student)):
        x = tf.constant(features)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_mean(loss().values(teacher, x))
        gradient = tape.gradient(value, x)
        assert np.isfinite(value) and np.isfinite(gradient).all() and np.abs(gradient).max() < 100.0


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0].astype("float32")


@pytest.mark.parametrize(
    "loss, changes",
    [
        (losses.SimilarityPreserving, "scale rotate"),
        (losses.ProbabilisticTransfer, "scale rotate"),
        (losses.CorrelationCongruence, "scale rotate"),
        (losses.RelationalDistance, "scale rotate shift"),
        (losses.RelationalAngle, "scale rotate shift"),
    ],
)
def test_relations_are_invariant_to_these_transformations(loss, changes):
    rng = np.random.default_rng(11)
    student, teacher = rng.normal(size=(2, 9, 5)).astype("float32")
    value = float(loss().values(teacher, student))
    assert value > 1e-4
    for change in changes.split():
        changed = {
            "scale": 37.0 * student,
            "rotate": student @ rotation(5, 12),
            "shift": student + np.float32([3, -2, 1, 5, 0]),
        }[change]
        np.testing.assert_allclose(loss().values(teacher, changed), value, rtol=3e-5, err_msg=change)
        np.testing.assert_allclose(loss().values(changed, changed * 2), 0, atol=1e-8, err_msg=change)


def test_contrast_is_the_cross_entropy_of_both_directions():
    rng = np.random.default_rng(13)
    student, teacher = rng.normal(size=(2, 6, 4)).astype("float32")
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (student.astype("f8"), teacher)]
    logits = unit[0] @ unit[1].T / 0.1
    expected = -np.diag(models.log_softmax(logits)) - np.diag(models.log_softmax(logits.T))
    got = losses.contrastive_representation(
        teacher_features=teacher, student_features=student, contrast_temperature=0.1
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_noise_contrast_of_section_l_and_the_order_of_negatives():
    cosines = np.array([[0.9, 0.1, -0.2, 0.3], [0.5, 0.4, 0.2, -0.6]], "float32")
    candidates = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=-1)
    anchors = np.array([[1.0, 0.0]] * 2, "float32")
    value = losses.contrastive_noise(anchors=anchors, candidates=candidates, num_examples=100)
    np.testing.assert_allclose(np.mean(value), 2.5344553651, rtol=1e-6)
    shuffled = candidates[:, [0, 3, 1, 2]]
    again = losses.contrastive_noise(anchors=anchors, candidates=shuffled, num_examples=100)
    np.testing.assert_allclose(again, value, rtol=1e-6)


@pytest.mark.parametrize("step", [1, 2])
def test_contrast_with_a_memory_is_the_public_one(step):
    case = Case(f"crd/391/step{step}")
    banks = {side: adapters.MemoryBank(30, 8) for side in ("student", "teacher")}
    for side, bank in banks.items():
        bank.memory.assign(case[f"memory_{side}"])

    def loss(student, teacher, kernel_s, bias_s, kernel_t, bias_t):
        embedded = {
            "student": tf.math.l2_normalize(student @ kernel_s + bias_s, axis=-1),
            "teacher": tf.math.l2_normalize(teacher @ kernel_t + bias_t, axis=-1),
        }
        total = 0.0
        for side, other in (("student", "teacher"), ("teacher", "student")):
            candidates = banks[other].candidates(case["contrast_index"])
            scores = tf.einsum("bd,bkd->bk", embedded[side], candidates) / 0.07
            value = losses.contrastive_noise(
                anchors=embedded[side],
                candidates=candidates,
                num_examples=30,
                normalizer=banks[side].normalizer(scores),
            )
            parts[side] = float(tf.reduce_mean(value))
            total = total + value
        for side, bank in banks.items():
            bank.update(embedded[side], case["index"])
        return total

    parts = {}
    names = ["student", "teacher", *(f"embed_{side}_{part}" for side in "st" for part in ("weight", "bias"))]
    if step == 2:  # the same batch again, after the memory was updated with it
        loss(*(tf.constant(case[name]) for name in names))
    assert len(case.check(loss, *names)) == 5
    for side in ("student", "teacher"):
        np.testing.assert_allclose(parts[side], case[f"loss_{side}_part"], rtol=1e-6)
        np.testing.assert_allclose(banks[side].constant, case[f"Z_{side}"], rtol=1e-5)
        if step == 1:
            np.testing.assert_allclose(banks[side].memory, case[f"memory_{side}_after"], atol=1e-6)


@pytest.mark.parametrize("loss", RELATIONS, ids=lambda loss: loss.__name__)
def test_two_replicas_that_gather_are_one_big_batch(loss):
    rng = np.random.default_rng(14)
    inputs, teacher = rng.normal(size=(2, 8, 4)).astype("float32")
    kernel = rng.normal(size=(4, 4)).astype("float32")
    strategy = models.replicas(2)
    with strategy.scope():
        weight = tf.Variable(kernel)
    made = loss(gather_replicas=True)
    halves = [
        strategy.experimental_distribute_values_from_function(
            lambda context, side=side: tf.constant(np.split(side, 2)[context.replica_id_in_sync_group])
        )
        for side in (inputs, teacher)
    ]

    @tf.function(autograph=False)
    def step(rows, targets):
        def replica(rows, targets):
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(made.values(targets, rows @ weight)) / 2  # as training does: mean over replicas
            gradient = tape.gradient(value, weight)
            return value, tf.distribute.get_replica_context().all_reduce("sum", gradient)

        return strategy.run(replica, args=(rows, targets))

    value, gradient = step(*halves)
    with tf.GradientTape() as tape:
        whole = tf.Variable(kernel)
        expected = tf.reduce_mean(loss().values(teacher, inputs @ whole))
    wanted = tape.gradient(expected, whole)
    total = strategy.reduce("SUM", value, axis=None)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(
        strategy.experimental_local_results(gradient)[0], wanted, atol=1e-5 * np.abs(wanted).max()
    )
    halves = zip(np.split(teacher, 2), np.split(inputs @ kernel, 2), strict=True)
    apart = np.mean([np.mean(loss().values(*half)) for half in halves])
    assert abs(apart - float(expected)) > 1e-3 * float(expected)  # without gathering, the replicas have another loss


def test_unequal_widths_are_refused_where_they_must_agree():
    student, teacher = np.zeros((3, 4), "float32"), np.zeros((3, 5), "float32")
    with pytest.raises(ValueError, match="contrastive_representation: expected embeddings of equal width, got 5 and 4"):
        losses.contrastive_representation(teacher_features=teacher, student_features=student)
    with pytest.raises(ValueError, match="correlation_congruence: expected embeddings of equal width"):
        losses.correlation_congruence(teacher_features=teacher, student_features=student, variant="neighbour")


@pytest.mark.parametrize("magnitude", [1e-6, 1e6])
def test_similarities_of_tiny_and_huge_features(magnitude):
    case = Case("sp/F0")
    got = pair(losses.similarity_preserving)(magnitude * case["student"], case["teacher"] / magnitude)
    np.testing.assert_allclose(got, case["loss"], rtol=1e-6)
