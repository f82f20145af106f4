"""Losses on logits equal public implementations, and have further documented properties."""

import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses
from tests import models, oracles
from tests.golden.record_logits import Case


def mean(values):
    return tf.reduce_mean(values)


def cross_entropy(labels, logits, smoothing=0.0):
    hot = tf.one_hot(labels, logits.shape[-1]) * (1 - smoothing) + smoothing / logits.shape[-1]
    return mean(tf.nn.softmax_cross_entropy_with_logits(hot, logits))


def entropy(teacher, temperature):
    return oracles.entropy(oracles.log_softmax(teacher / np.asarray(temperature)[..., None]))


def soft_cross_entropy(case, t, s, temperature):
    """Without T**2, with the teacher's entropy."""
    divergence = losses.soft_targets(teacher_logits=t, student_logits=s, temperature=temperature)
    return mean(divergence / temperature**2 + entropy(t, temperature))


def jensen_shannon(case, t, s, temperature):
    mask = case.inputs["labels"] != -100 if "ignore_index" in case.options else None
    beta = case.options.get("beta", 1.0)
    options = {"teacher_logits": t, "student_logits": s, "temperature": temperature}
    return mean(losses.jensen_shannon(**options, beta=beta, mask=mask)) / temperature**2


def decoupled(case, t, s, temperature):
    weights = {"target_weight": case.options["alpha"], "non_target_weight": case.options["beta"]}
    return mean(losses.DecoupledSoftTargets(**weights).values(t, s, temperature=temperature, labels=case.labels))


def soft_targets(case, t, s, temperature):
    return mean(losses.soft_targets(teacher_logits=t, student_logits=s, temperature=temperature))


def with_labels(case, t, s, temperature):
    hard = cross_entropy(case.labels, s, case.options.get("label_smoothing", 0.0))
    return case.options["alpha_on_ce"] * hard + case.options["beta_on_kl"] * soft_targets(case, t, s, temperature)


def correlation(case, t, s, temperature):
    loss = losses.ClassCorrelation(case.options["beta"], case.options["gamma"])
    return loss.values(t, s, temperature=temperature)


def binary(case, t, s, temperature):
    reduction = "mean" if case.options.get("reduction") == "mean" else "sum"
    return mean(losses.BinarySoftTargets(reduction).values(t, s, temperature=temperature))


def binary_cross_entropy(case, t, s, temperature):
    p = 1 / (1 + np.exp(-np.float64(t) / temperature))
    own = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return mean(losses.BinarySoftTargets("mean").values(t, s, temperature=temperature)) + temperature**2 * own.mean()


# How the value of each public code follows from ours.
ADAPTERS = {
    "kd_kl": soft_targets,
    "kd_kl_dense_prediction": soft_targets,
    "kd_plus_ce": with_labels,
    "soft_cross_entropy": soft_cross_entropy,
    "logits_mse": lambda case, t, s, temperature: mean(
        2 * losses.LogitMatching().values(t, s, temperature=temperature) / temperature**2 / s.shape[-1]
    ),
    "forward_kl": jensen_shannon,
    "generalized_jsd": jensen_shannon,
    "generalized_jsd_masked": jensen_shannon,
    "reverse_kl": jensen_shannon,
    "tv_distance": lambda case, t, s, temperature: mean(losses.TotalVariation().values(t, s)),
    "dkd": decoupled,
    "logit_standardization_kd": lambda case, t, s, temperature: mean(
        losses.StandardizedSoftTargets().values(t, s, temperature=temperature)
    ),
    "logit_standardization_dkd": lambda case, t, s, temperature: decoupled(
        case, losses.standardize_logits(t), losses.standardize_logits(s), temperature
    ),
    "dist": correlation,
    "dist_dense_prediction": correlation,
    "nkd": lambda case, t, s, temperature: mean(
        losses.NormalizedSoftTargets(case.options["gamma"]).values(t, s, temperature=temperature, labels=case.labels)
    ),
    "multilabel_sigmoid_kd": binary,
    "multilabel_soft_bce": binary_cross_entropy,
}


@pytest.mark.parametrize("name", [name for name in Case.all() if "dkd/L3" not in name])
def test_value_and_gradient_of_public_code(name):
    case = Case(name)
    case.labels = case.inputs.get("labels")
    t, s = (tf.constant(case.inputs[f"{side}_logits"]) for side in ("teacher", "student"))
    temperature = case.inputs.get("temperature", case.options.get("temperature", case.options.get("tau", 1.0)))
    with tf.GradientTape() as tape:
        tape.watch(s)
        value = ADAPTERS[case.algorithm](case, t.numpy(), s, temperature)
    wanted, slope = case.outputs["loss"], case.outputs.get("grad_student_logits")
    dist = case.algorithm.startswith("dist")
    if dist:  # public codes add 1e-8 to the norms, or another number (torchdistill): the definition adds nothing
        options = {"inter_weight": case.options["beta"], "intra_weight": case.options["gamma"]}
        exact = [oracles.class_correlation(t.numpy(), s.numpy(), temperature, **options, beside=b) for b in (1e-8, 0.0)]
        np.testing.assert_allclose(exact[0], wanted, rtol=3e-5 if "dist_tau" in name else 1e-6, atol=2e-7)
        wanted = exact[1]
        slope = slope if abs(exact[0] - wanted) < 2e-6 * abs(wanted) else None
    np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=4e-7 if dist else 2e-7)
    if slope is not None:
        rtol, floor = (1e-3 if "dist_tau" in name else 1e-5, 3e-8) if dist else (2e-6, 5e-9)
        np.testing.assert_allclose(tape.gradient(value, s), slope, atol=rtol * np.abs(slope).max() + floor)
    if "per_sample" in case.outputs:
        each = losses.soft_targets(teacher_logits=t, student_logits=s, temperature=temperature)
        scale = np.mean(each) / np.mean(case.outputs["per_sample"] + 1e-30)
        np.testing.assert_allclose(each, case.outputs["per_sample"] * scale, rtol=2e-6, atol=1e-9)


def test_two_classes_which_public_code_accepts_are_refused():
    case = Case("dkd/L3/a1_b8_T4")
    with pytest.raises(ValueError, match=r"at least 3 classes, got 2\. With 2 classes only one is left"):
        losses.DecoupledSoftTargets().values(
            case.inputs["teacher_logits"], case.inputs["student_logits"], labels=case.inputs["labels"]
        )


# Section L of the formulas' reference: B = 4, C = 5.
ROW, COLUMN = np.meshgrid(np.arange(4), np.arange(5), indexing="ij")
S = 2 * np.sin(1 + 1.3 * ROW + 0.7 * COLUMN * (ROW + 1))
T = 3 * np.cos(0.5 + 0.9 * ROW - 1.1 * COLUMN)
Y = np.array([0, 2, 1, 4])


@pytest.mark.parametrize(
    ("loss", "temperature", "expected"),
    [
        (losses.SoftTargets(), 1.0, 1.0992606108),
        (losses.SoftTargets(), 4.0, 2.3572669054),
        (losses.SoftTargets(), 20.0, 2.6689137952),
        (losses.DecoupledSoftTargets(1.0, 0.0), 4.0, 0.5662952939),
        (losses.DecoupledSoftTargets(0.0, 1.0), 4.0, 2.4070548410),
        (losses.DecoupledSoftTargets(), 4.0, 19.8227340219),
        (losses.NormalizedSoftTargets(), 1.0, 3.1019773675),
        (losses.WeightedSoftLabels(), 4.0, 22.0133094649),
        (losses.ClassCorrelation(1.0, 0.0), 1.0, 0.6800633688),
        (losses.ClassCorrelation(0.0, 1.0), 1.0, 0.6924546790),
        (losses.ClassCorrelation(1.0, 0.0), 4.0, 12.2081206420),
        (losses.ClassCorrelation(0.0, 1.0), 4.0, 12.9611243180),
        (losses.StandardizedSoftTargets(), 2.0, 0.5717709923),
        (losses.ReverseSoftTargets(), 1.0, 1.6774365209),
        (losses.JensenShannon(0.1), 1.0, 0.0879389093),
        (losses.JensenShannon(0.5), 1.0, 0.2279516255),
        (losses.JensenShannon(0.9), 1.0, 0.1056102105),
        (losses.TotalVariation(), 1.0, 0.4911411595),
    ],
)
def test_check_values_to_1e_6(loss, temperature, expected):
    labels = {"labels": Y} if loss.needs_labels else {}
    got = np.mean(loss.values(np.float32(T), np.float32(S), temperature=temperature, **labels))
    assert got == pytest.approx(expected, rel=1e-6)


def test_more_check_values():
    got = losses.gaussian_kl(
        teacher_mean=[[1.0]],
        teacher_log_variance=np.log([[4.0]]),
        student_mean=[[0.0]],
        student_log_variance=[[0.0]],
    )
    assert float(got[0]) == pytest.approx(1.3068528194, rel=1e-6)
    log_p = oracles.log_softmax(T[:1])
    kept = np.argsort(-log_p[0])[:2]
    dense = np.exp(losses.from_top_k(log_p[:, kept], kept[None], 5))[0]
    np.testing.assert_allclose(np.sort(dense)[::-1], [0.52187671, 0.44616576] + [0.01065251] * 3, atol=1e-7)
    centred = np.mean(losses.logit_matching(teacher_logits=T, student_logits=S, center=True)) / 5
    assert centred == pytest.approx(2.7113471290, rel=1e-6)


@pytest.mark.parametrize("temperature", [1e2, 1e3, 1e4])
def test_at_high_temperature_soft_targets_become_centred_logit_matching(temperature):
    limit = np.asarray(losses.logit_matching(teacher_logits=T, student_logits=S, center=True)) / 5
    s = tf.constant(np.float32(S))
    with tf.GradientTape() as tape:
        tape.watch(s)
        value = losses.soft_targets(teacher_logits=T, student_logits=s, temperature=temperature)
    np.testing.assert_allclose(value, limit, rtol=5 / temperature)
    gap = (S - S.mean(-1, keepdims=True)) - (T - T.mean(-1, keepdims=True))
    np.testing.assert_allclose(tape.gradient(value, s), gap / 5, atol=5 / temperature)


@pytest.mark.parametrize("distance", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("loss", ["soft_targets", "reverse_soft_targets", "jensen_shannon", "probability_matching"])
def test_precision_is_kept_if_student_and_teacher_are_nearly_equal(loss, distance):
    """A float32 sum of p * (log p - log q) has no correct digits left at a distance of 1e-4."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(8, 10)).astype("float32")
    # A student whose gap to the teacher is exact in float32.
    student = (teacher + distance * rng.normal(size=(8, 10))).astype("float32")
    got = getattr(losses, loss)(teacher_logits=teacher, student_logits=student)
    q = np.exp(oracles.log_softmax(student))
    gap = np.float64(student) - teacher
    x = gap - np.log(np.sum(np.exp(oracles.log_softmax(teacher) + gap), -1, keepdims=True))
    p = np.exp(oracles.log_softmax(teacher))
    # The sums of p * f(x) by their series where even float64 would lose its digits.
    f = {
        "soft_targets": p * (np.expm1(x) - x),
        "reverse_soft_targets": q * (np.expm1(-x) + x),
        "jensen_shannon": p * x**2 / 8,
        "probability_matching": (p * np.expm1(x)) ** 2,
    }[loss]
    if loss == "jensen_shannon" and distance > 1e-4:
        f = oracles.jensen_shannon(teacher, student)[:, None]
    rtol = {1.0: 2e-6, 1e-2: 2e-5, 1e-4: 2e-4, 1e-6: 2e-2}[distance]
    np.testing.assert_allclose(got, f.sum(-1), rtol=max(rtol, 1e-3 if loss == "jensen_shannon" else 0))


def test_impossible_classes():
    inf = np.inf
    teacher = np.float32([[1, 2, -inf], [1, 2, -inf], [1, 2, 3]])
    student = np.float32([[1, 0, -inf], [1, 0, 5], [1, -inf, 2]])
    for temperature in (1.0, 2.0, tf.constant(2.0)):
        s = tf.constant(student)
        with tf.GradientTape() as tape:
            tape.watch(s)
            value = losses.soft_targets(teacher_logits=teacher, student_logits=s, temperature=temperature)
        expected = oracles.soft_targets(teacher, student, float(temperature))
        np.testing.assert_allclose(value[:2], expected[:2], rtol=1e-6)
        assert np.isposinf(value[2])
        gradient = tape.gradient(value, s).numpy()
        softmax = [np.exp(oracles.log_softmax(side / np.float64(float(temperature)))) for side in (student, teacher)]
        np.testing.assert_allclose(gradient, float(temperature) * (softmax[0] - softmax[1]), atol=1e-6)
        assert gradient[0, 2] == 0.0
    both = losses.jensen_shannon(teacher_logits=teacher, student_logits=student)
    np.testing.assert_allclose(both, oracles.jensen_shannon(teacher, student), rtol=1e-6)
    tv = losses.total_variation(teacher_logits=teacher, student_logits=student)
    np.testing.assert_allclose(tv, oracles.total_variation(teacher, student), rtol=1e-6)
    assert np.isposinf(losses.reverse_soft_targets(teacher_logits=teacher, student_logits=student)[1])
    matched = losses.logit_matching(teacher_logits=teacher[:1], student_logits=student[:1])
    assert float(matched[0]) == 2.0
    assert np.isnan(losses.soft_targets(teacher_logits=[[-inf, -inf]], student_logits=[[0.0, 1.0]])[0])


def test_decoupled_parts_add_up_to_soft_targets():
    """KL = KL of target against rest + (1 - p_y) * KL of the rest."""
    rng = np.random.default_rng(1)
    teacher, student = rng.normal(size=(2, 16, 7)).astype("float32") * 2
    labels = rng.integers(0, 7, 16)
    whole = losses.soft_targets(teacher_logits=teacher, student_logits=student, temperature=3.0)
    binary, rest = (
        losses.DecoupledSoftTargets(*weights).values(teacher, student, temperature=3.0, labels=labels)
        for weights in ((1.0, 0.0), (0.0, 1.0))
    )
    p = np.exp(oracles.log_softmax(teacher / 3.0))[np.arange(16), labels]
    np.testing.assert_allclose(binary + (1 - p) * rest, whole, rtol=2e-6)


def test_decoupled_where_public_code_overflows():
    teacher, student = np.float32([[200.0, 0.0, 0.0]]), np.float32([[0.0, 200.0, 100.0]])
    got = losses.decoupled_soft_targets(teacher_logits=teacher, student_logits=student, labels=[0])
    expected = oracles.decoupled_soft_targets(teacher, student, 1.0, np.array([0]))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_jensen_shannon_is_discontinuous_at_its_ends_as_documented():
    arguments = {"teacher_logits": np.float32(T), "student_logits": np.float32(S)}
    near = losses.jensen_shannon(**arguments, beta=1e-4)
    np.testing.assert_allclose(near / 1e-4, losses.soft_targets(**arguments), rtol=2e-3)
    np.testing.assert_array_equal(losses.jensen_shannon(**arguments, beta=0.0), losses.soft_targets(**arguments))
    assert float(tf.reduce_max(losses.jensen_shannon(teacher_logits=[[1e4, 0]], student_logits=[[0, 1e4]]))) == (
        pytest.approx(np.log(2), rel=1e-6)
    )


def test_top_k_of_all_classes_is_soft_targets_and_a_stored_pair_is_the_live_teacher():
    teacher, student = np.float32(T), np.float32(S)
    for missing in ("spread", "ignore"):
        whole = losses.TopKSoftTargets(5, missing).values(teacher, student, temperature=2.0)
        expected = losses.soft_targets(teacher_logits=teacher, student_logits=student, temperature=2.0)
        np.testing.assert_allclose(whole, expected, rtol=2e-6)
        live = losses.TopKSoftTargets(2, missing).values(teacher, student, temperature=2.0)
        pair = tf.math.top_k(oracles.log_softmax(teacher).astype("float32"), 2)
        stored = losses.top_k_soft_targets(
            teacher_logits=tuple(pair), student_logits=student, temperature=2.0, missing=missing
        )
        np.testing.assert_allclose(stored, live, rtol=1e-5)


def test_bounded_regression_stops_where_the_student_is_better():
    teacher, student, truth = np.float32([[2.0], [2.0], [2.0]]), np.float32([[0.5], [1.5], [3.0]]), [0.0, 0.0, 0.0]
    got = losses.regression_matching(teacher_outputs=teacher, student_outputs=student, labels=truth, margin=1.0)
    np.testing.assert_allclose(got, [0.0, 0.0, 9.0])
    got = losses.regression_matching(teacher_outputs=teacher, student_outputs=student, labels=truth, margin=2.0)
    np.testing.assert_allclose(got, [0.0, 2.25, 9.0])
    loss = losses.RegressionMatching(margin=1.0)
    assert loss.needs_labels
    np.testing.assert_allclose(loss.values(teacher, student, labels=truth), [0.0, 0.0, 9.0])


def test_standardized_logits_have_mean_0_and_spread_1():
    logits = np.float32([[1, 2, 3, -np.inf], [5, 5, 5, 5], [1e4, 1e4 + 1, 1e4 - 1, 1e4]])
    got = losses.standardize_logits(logits).numpy()
    np.testing.assert_allclose(got[0, :3], [-1, 0, 1], atol=1e-6)
    assert np.isneginf(got[0, 3])
    np.testing.assert_array_equal(got[1], 0.0)
    np.testing.assert_allclose(got[2], oracles.standardize(logits[2]), atol=1e-5)
    flat = tf.zeros((1, 4))
    with tf.GradientTape() as tape:
        tape.watch(flat)
        value = losses.standardized_soft_targets(teacher_logits=[[1.0, 2, 3, 4]], student_logits=flat)
    # The standard deviation of a constant row is treated as a constant: q - p over the added 1e-7.
    p = np.exp(oracles.log_softmax(oracles.standardize(np.float32([[1, 2, 3, 4]]))))
    np.testing.assert_allclose(tape.gradient(value, flat), (0.25 - p) / 1e-7, rtol=1e-5)


@pytest.mark.parametrize(("examples", "classes", "scale"), [(3, 1000, 1.0), (4, 50, 12.0), (5, 2000, 0.01)])
def test_the_correlation_is_that_of_the_definition_whatever_the_size_of_the_probabilities(examples, classes, scale):
    """The authors' code adds 1e-8 to the product of two norms, which was 1% of it for 1000 classes."""
    rng = np.random.default_rng(3)
    teacher, student = (rng.normal(size=(examples, classes), scale=scale) for _ in "ts")
    p, q = models.softmax(teacher), models.softmax(student)
    rows, columns = (
        np.mean([np.corrcoef(u, v)[0, 1] for u, v in zip(*both, strict=True)]) for both in ((p, q), (p.T, q.T))
    )
    given = {"teacher_logits": teacher, "student_logits": student}
    for options, exact in (({"intra_weight": 0.0}, 1 - rows), ({"inter_weight": 0.0}, 1 - columns)):
        assert float(losses.class_correlation(**given, **options)) == pytest.approx(
            exact, abs=2e-5 if scale < 1 else 2e-6
        )


def test_the_correlation_pulls_a_constant_student_towards_the_teacher():
    """At equal logits the correlation is 0 and its gradient finite, with the right direction."""
    teacher = np.random.default_rng(4).normal(size=(6, 5)).astype("float32")
    with tf.GradientTape() as tape:
        student = tf.zeros((6, 5))
        tape.watch(student)
        value = losses.class_correlation(teacher_logits=teacher, student_logits=student)
    assert float(value) == pytest.approx(2.0, abs=5e-3)  # one lane of a vectorised softmax may differ by one ulp
    slope = tape.gradient(value, student).numpy()
    moved = losses.class_correlation(teacher_logits=teacher, student_logits=-1e-6 * slope)
    assert np.isfinite(slope).all() and float(moved) < 1.9
