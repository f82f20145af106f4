"""Losses of ensembles, evidence and uncertain regression: published numbers, closed forms, limits, bad input."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, special, stats

from keras_distill import losses
from keras_distill.losses._ensembles import dirichlet
from keras_distill.losses._numerics.special import digamma, log_gamma
from tests.golden import record_uncertainty as golden
from tests.oracles import uncertainty as oracles

ROW, COLUMN = np.arange(4)[:, None], np.arange(5)[None]
STUDENT = 2 * np.sin(1 + 1.3 * ROW + 0.7 * COLUMN * (ROW + 1))
TEACHER = 3 * np.cos(0.5 + 0.9 * ROW - 1.1 * COLUMN)
LABELS = np.array([0, 2, 1, 4])
MEMBERS = np.stack([TEACHER, TEACHER + 0.5 * STUDENT, TEACHER - 0.5 * STUDENT], 1)


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 12.4591759902), (10.0, -316.3971759505)])
def test_dirichlet_distillation_is_the_reference_but_for_its_epsilon(temperature, value):
    """The published code adds 1e-8 inside its logarithms; with it the reference equals that code, without it ours."""
    theirs = oracles.dirichlet_distillation(MEMBERS, STUDENT, temperature, epsilon=1e-8)
    assert theirs.mean() == pytest.approx(value, rel=2e-7)
    ours = losses.dirichlet_distillation(teacher_logits=MEMBERS, student_logits=STUDENT, temperature=temperature)
    np.testing.assert_allclose(ours, oracles.dirichlet_distillation(MEMBERS, STUDENT, temperature), rtol=1e-6)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)


def test_proxy_and_evidence_equal_the_reference():
    np.testing.assert_allclose(
        oracles.proxy_precision(MEMBERS, 0.0), [246.09857501, 31.61476832, 13.03472067, 14.50525657], rtol=1e-6
    )
    proxy = losses.proxy_dirichlet(teacher_logits=MEMBERS, student_logits=STUDENT)
    assert np.mean(proxy) == pytest.approx(2.0239520895, rel=1e-6)
    hot = np.eye(5)[LABELS]
    for form, value in (("mse", 1.0067286747), ("log", 1.8943782212), ("digamma", 2.3162591585)):
        got = losses.evidential(targets=hot, student_logits=STUDENT, form=form, evidence="relu")
        assert np.mean(got) == pytest.approx(value, rel=1e-6)
    got = losses.misleading_evidence(student_logits=STUDENT, labels=LABELS, evidence="relu")
    assert np.mean(got) == pytest.approx(0.9053482620, rel=1e-6)


@pytest.mark.parametrize("case", [721, 722])
@pytest.mark.parametrize("kind", ["mean_kl", "dirichlet_nll", "proxy_kl", "proxy_reverse_kl"])
def test_values_equal_those_of_the_public_code(kind, case):
    options, inputs, outputs = golden.load(f"ensemble_distribution/{kind}/{case}")
    function, more = {
        "mean_kl": (losses.ensemble_soft_targets, {}),
        "dirichlet_nll": (losses.dirichlet_distillation, {"smoothing": 0.0, "offset": options.get("model_offset")}),
        "proxy_kl": (losses.proxy_dirichlet, {"form": "forward", "offset": options.get("model_offset")}),
        "proxy_reverse_kl": (losses.proxy_dirichlet, {"offset": options.get("model_offset")}),
    }[kind]
    student = tf.constant(inputs["student_logits"])
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = tf.reduce_mean(function(teacher_logits=inputs["ensemble_logits"], student_logits=student, **more))
    # Their epsilons, 1.2e-7 inside logarithms and gamma functions, have an effect at small probabilities.
    loose = 10 if kind == "dirichlet_nll" else 1
    np.testing.assert_allclose(value, outputs["loss"], rtol=2e-6 * loose)
    wanted = outputs["grad_student_logits"]
    np.testing.assert_allclose(tape.gradient(value, student), wanted, atol=5e-6 * loose * np.abs(wanted).max())


def test_dirichlet_identities_in_float64():
    """Density, entropy, mean logarithm and divergence of Dirichlets, by SciPy, from 1e-3 to 1e6."""
    rng = np.random.default_rng(0)
    alpha = 10 ** rng.uniform(-3, 6, (50, 4))
    np.testing.assert_allclose(log_gamma(alpha), special.gammaln(alpha), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(digamma(alpha), special.digamma(alpha), rtol=1e-12)
    norm = special.gammaln(alpha).sum(-1) - special.gammaln(alpha.sum(-1))
    np.testing.assert_allclose(dirichlet.normaliser(tf.constant(alpha)), norm, rtol=1e-11, atol=1e-9)
    expected = special.digamma(alpha) - special.digamma(alpha.sum(-1, keepdims=True))
    np.testing.assert_allclose(dirichlet.mean_log(tf.constant(alpha)), expected, rtol=1e-11, atol=1e-12)
    same = dirichlet.dirichlet_kl(tf.constant(alpha), tf.constant(alpha))
    np.testing.assert_array_equal(same, np.zeros(50))
    # KL as the integral of the density's logarithm, on the line: two classes are a beta distribution.
    one, two = np.array([2.0, 3.0]), np.array([0.7, 4.0])
    x = np.linspace(0, 1, 2_000_003)[1:-1]
    p, log_q = stats.beta(*one).pdf(x), stats.beta(*two).logpdf(x)
    integral = integrate.trapezoid(p * (stats.beta(*one).logpdf(x) - log_q), x)
    assert float(dirichlet.dirichlet_kl(tf.constant(one), tf.constant(two))) == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize("precision", [1e-3, 1.0, 1e3, 1e6])
def test_stable_for_small_and_large_concentrations(precision):
    rng = np.random.default_rng(1)
    student = np.log(rng.dirichlet(np.ones(5), 20) * precision + 1e-9).astype("float32")
    members = (2 * rng.normal(size=(20, 4, 5))).astype("float32")
    for loss, oracle in (
        (losses.DirichletDistillation(), oracles.dirichlet_distillation),
        (losses.ProxyDirichlet(offset=0.0), lambda m, s: oracles.proxy_dirichlet(m, s, offset=0.0)),
        (losses.ProxyDirichlet("forward"), lambda m, s: oracles.proxy_dirichlet(m, s, form="forward")),
    ):
        watched = tf.constant(student)
        with tf.GradientTape() as tape:
            tape.watch(watched)
            value = loss.values(members, watched)
        wanted = oracle(members, student)
        np.testing.assert_allclose(value, wanted, rtol=2e-6, atol=2e-6 * np.abs(wanted).max())
        gradient, step = tape.gradient(value, watched), 1e-4
        moved = [oracle(members, student.astype("float64") + step * s * np.eye(5)[2]) for s in (1, -1)]
        slope = (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose(gradient[:, 2], slope, rtol=2e-4, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_extreme_logits_give_finite_values(size):
    members = np.float32([[[size, 0, -size], [0, size, -size]], [[size, 0, 0], [size, 0, 0]]])
    student = tf.constant(np.float32([[size, -size, 0], [-size, -size, -size]]))
    for loss in (losses.DirichletDistillation(), losses.ProxyDirichlet(), losses.Evidential("digamma")):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = loss.values(members if loss.needs_members else members[:, 0], student)
        assert np.isfinite(value).all()
        assert np.isfinite(tape.gradient(value, student)).all()


def test_dirichlet_distillation_finds_the_dirichlet_that_the_members_come_from():
    """Maximum likelihood from many members: our gradient vanishes at the reference's minimum by Newton's method."""
    true = np.array([4.0, 2.0, 1.0])
    members = np.log(np.random.default_rng(0).dirichlet(true, 4000))[None].astype("float32")
    student = tf.Variable(np.zeros((1, 3), "float32"))
    optimizer = tf.keras.optimizers.Adam(0.05)
    for _ in range(300):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(losses.DirichletDistillation(smoothing=0.0).values(members, student))
        optimizer.apply_gradients([(tape.gradient(value, student), student)])
    np.testing.assert_allclose(np.exp(student[0]), true, rtol=0.05)


def test_members_that_agree_make_a_sharp_proxy():
    members = np.log(np.float32([[[0.7, 0.3], [0.7, 0.3]], [[0.9, 0.1], [0.5, 0.5]]]))
    precision = oracles.proxy_precision(members)
    assert precision[0] > 1e6
    assert precision[1] < 5
    at = lambda scale: losses.proxy_dirichlet(  # noqa: E731
        teacher_logits=members, student_logits=np.log(scale * np.float32([[0.7, 0.3]] * 2)), form="forward", offset=0.0
    ).numpy()
    assert at(1e5)[0] < at(5.0)[0]
    assert at(1e5)[1] > at(5.0)[1]


def test_one_member_is_soft_targets_and_equal_heads_are_their_mean():
    member, student = TEACHER.astype("float32"), STUDENT.astype("float32")
    plain = losses.soft_targets(teacher_logits=member, student_logits=student, temperature=3.0)
    one = losses.ensemble_soft_targets(teacher_logits=member[:, None], student_logits=student, temperature=3.0)
    np.testing.assert_allclose(one, plain, rtol=2e-6)
    heads = losses.member_soft_targets(teacher_logits=member[:, None], student_logits=student[:, None], temperature=3.0)
    np.testing.assert_array_equal(heads, plain)
    impossible = np.float32([[[0, -np.inf, 1], [0, -np.inf, 0]]])
    zero = losses.ensemble_soft_targets(teacher_logits=impossible, student_logits=np.float32([[0, -np.inf, 0.5]]))
    assert np.isfinite(zero).all()


def test_gaussian_moments_are_those_of_the_mixture():
    rng = np.random.default_rng(0)
    means, variances = rng.normal(size=(1, 3, 2)), rng.uniform(0.2, 2.0, (1, 3, 2))
    got = losses.gaussian_moments(np.concatenate([means, np.log(variances)], -1))[0].numpy()
    draws = means[0, :, :, None] + np.sqrt(variances)[0, :, :, None] * rng.normal(size=(3, 2, 400_000))
    pooled = draws.transpose(1, 0, 2).reshape(2, -1)
    np.testing.assert_allclose(got[:2], pooled.mean(1), atol=0.01)
    np.testing.assert_allclose(np.exp(got[2:]), pooled.var(1), rtol=0.01)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_gaussian_likelihood(beta):
    rng = np.random.default_rng(0)
    labels, outputs = rng.normal(size=(6, 2)), rng.normal(size=(6, 4))
    variance = np.exp(outputs[:, 2:])
    wanted = -(variance**beta * stats.norm(outputs[:, :2], np.sqrt(variance)).logpdf(labels)).sum(-1)
    got = losses.gaussian_likelihood(labels=labels, student_outputs=outputs, beta=beta)
    np.testing.assert_allclose(got, wanted, rtol=2e-6)
    np.testing.assert_allclose(losses.GaussianLikelihood(beta)(labels, outputs), wanted.mean(), rtol=2e-6)
    one = losses.gaussian_likelihood(labels=labels[:, 0], student_outputs=outputs[:, ::2], beta=beta)
    assert one.shape == (6,)
    with pytest.raises(ValueError, match="expected 2 numbers for each of the 2 labels, got 3 outputs"):
        losses.gaussian_likelihood(labels=labels, student_outputs=outputs[:, :3])
    if beta:  # the weight is no part of the gradient
        watched = tf.constant(outputs, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(watched)
            value = losses.gaussian_likelihood(labels=labels, student_outputs=watched, beta=beta)
        wanted = variance ** (beta - 1) * (outputs[:, :2] - labels)
        np.testing.assert_allclose(tape.gradient(value, watched)[:, :2], wanted, rtol=1e-5)


def test_evidential_regression_is_students_t():
    rng = np.random.default_rng(0)
    labels, outputs = 3 * rng.normal(size=(20, 2)), rng.normal(size=(20, 8))
    labels[0] = outputs[0, :2]  # exactly the mean
    wanted = oracles.evidential_regression(labels, outputs)
    got = losses.evidential_regression(labels=labels, student_outputs=outputs)
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(losses.EvidentialRegression(0.01)(labels, outputs), wanted.mean(), rtol=2e-6)
    watched, step = tf.constant(outputs, tf.float32), 1e-4
    with tf.GradientTape() as tape:
        tape.watch(watched)
        value = losses.evidential_regression(labels=labels, student_outputs=watched)
    gradient = tape.gradient(value, watched)[1:].numpy()
    for column in range(8):
        moved = [oracles.evidential_regression(labels, outputs + s * step * np.eye(8)[column]) for s in (1, -1)]
        np.testing.assert_allclose(gradient[:, column], ((moved[0] - moved[1]) / (2 * step))[1:], rtol=1e-4, atol=1e-4)


def test_quadrature_is_the_integral():
    rng = np.random.default_rng(0)
    members, student = rng.normal(size=(6, 4, 2)), rng.normal(size=(6, 9))
    members[..., 1], student[:, 6:] = 0.5 * members[..., 1], 0.5 * student[:, 6:]  # variances within a factor of 3
    wanted = oracles.mixture_integral(members, student)
    got = losses.gaussian_mixture(teacher_outputs=members, student_outputs=student)
    np.testing.assert_allclose(got, wanted, rtol=2e-3)


def test_a_mixture_beats_one_gaussian_between_two_members():
    members = np.float32([[[-3.0, -2.0], [3.0, -2.0]]])
    moments = losses.gaussian_moments(members)[0].numpy()
    one = np.float32([[0.0, moments[0], moments[1]]])
    two = np.float32([[0.0, 0.0, -3.0, 3.0, -2.0, -2.0]])
    single, mixture = (
        float(losses.gaussian_mixture(teacher_outputs=members, student_outputs=s)[0]) for s in (one, two)
    )
    assert mixture == pytest.approx(np.log(2) + 0.5 * np.log(2 * np.pi * np.e) - 1.0, rel=1e-3)  # the teacher's entropy
    assert single > mixture + 0.5


def test_trust_weights_by_hand():
    teacher = np.log(np.float32([[0.25] * 4, [0.97, 0.01, 0.01, 0.01]]))
    student = np.log(np.float32([[0.4, 0.3, 0.2, 0.1]] * 2))
    plain = losses.soft_targets(teacher_logits=teacher, student_logits=student).numpy()
    got = losses.TrustWeighted().values(teacher, student).numpy()
    assert got[0] == pytest.approx(0.0, abs=1e-6)
    assert got[1] == pytest.approx(plain[1] * (1 - stats.entropy([0.97, 0.01, 0.01, 0.01]) / np.log(4)), rel=1e-5)
    # Two members that are certain but disagree: no data uncertainty, high knowledge uncertainty.
    members = np.log(np.float32([[[0.99, 0.01], [0.01, 0.99]], [[0.5, 0.5], [0.5, 0.5]]]))
    weight = oracles.trust(members, True, "knowledge")
    assert weight[0] < 0.1
    assert weight[1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="expected a loss on logits with one value per example, got ClassCorrelation"):
        losses.TrustWeighted(losses.ClassCorrelation())
    with pytest.raises(ValueError, match="expected teacher members of shape"):
        losses.TrustWeighted(kind="knowledge").values(teacher, student)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: losses.DirichletDistillation(smoothing=2.0), "expected smoothing >= 0 and <= 1, got 2.0"),
        (lambda: losses.DirichletDistillation(offset=-1.0), "expected offset >= 0, got -1.0"),
        (lambda: losses.ProxyDirichlet("both"), "expected form to be one of 'reverse', 'forward', got both"),
        (lambda: losses.Evidential("mae"), "expected form to be one of 'mse', 'log', 'digamma', got mae"),
        (lambda: losses.Evidential(evidence="exp"), "expected evidence to be one of 'softplus', 'relu', got exp"),
        (lambda: losses.GaussianLikelihood(2.0), "expected beta >= 0 and <= 1, got 2.0"),
        (lambda: losses.EvidentialRegression(-1.0), "expected regularizer >= 0, got -1.0"),
        (lambda: losses.TrustWeighted(kind="data"), "expected kind to be one of 'total', 'knowledge', got data"),
        (
            lambda: losses.normal_inverse_gamma(teacher_outputs=np.zeros((2, 3, 2)), student_outputs=np.zeros((2, 5))),
            "expected members of 2 and a student of 4 numbers per output, got 2 and 5",
        ),
        (
            lambda: losses.gaussian_mixture(teacher_outputs=np.zeros((2, 3, 2)), student_outputs=np.zeros((2, 4))),
            "expected members of 2 and a student of 3 \\* components numbers per output, got 2 and 4",
        ),
        (lambda: losses.gaussian_moments(np.zeros((2, 3, 5))), "expected means, then as many log-variances, got 5"),
        (
            lambda: losses.dirichlet_distillation(teacher_logits=np.zeros((2, 3)), student_logits=np.zeros((2, 3))),
            r"expected teacher members of shape \(batch, members, ..., classes\), got \(2, 3\) for a student of \(2, 3",
        ),
        (
            lambda: losses.member_soft_targets(teacher_logits=np.zeros((2, 3)), student_logits=np.zeros((2, 3))),
            "expected student heads of shape",
        ),
    ],
)
def test_bad_arguments_raise_a_clear_error(make, text):
    with pytest.raises(ValueError, match=text):
        make()
