"""Several teachers: every rule against NumPy or SciPy, and through the Distiller."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

from keras_distill import losses, teachers
from keras_distill.teachers._class_map import ClassMap
from keras_distill.terms import LogitsDistillation

rng = np.random.default_rng(0)
BATCH, MEMBERS, CLASSES = 6, 3, 5
LOGITS = rng.normal(size=(BATCH, MEMBERS, CLASSES)) * 3
STUDENT = rng.normal(size=(BATCH, CLASSES)) * 2
LABELS = rng.integers(0, CLASSES, BATCH)


def members(rule, logits=LOGITS, **kwargs):
    return teachers.Members(ops.convert_to_tensor(logits.astype("float32")), rule, **kwargs)


def dense(units=CLASSES, inputs=4, **kwargs):
    model = keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(units, **kwargs)])
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def close(actual, expected, tolerance=2e-6):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 4.0, np.linspace(0.5, 8, BATCH).astype("float32")])
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0]])
def test_mean_probs_tempers_each_member_before_averaging(temperature, weights):
    t = np.reshape(temperature, (-1, 1))
    w = np.ones(MEMBERS) if weights is None else np.array(weights)
    expected = np.einsum("m,bmc->bc", w / w.sum(), softmax(LOGITS / t[:, None], axis=-1))
    resolved = np.asarray(members(teachers.MeanProbs(weights)).resolve(temperature))
    close(softmax(resolved / t, axis=-1), expected)
    # ... and these are normalised log-probabilities, not merely proportional ones.
    close(logsumexp(resolved / t, axis=-1), np.zeros(BATCH), 1e-5)


def test_mean_logits_is_the_geometric_mean():
    expected = np.exp(np.mean(log_softmax(LOGITS, axis=-1), axis=1))
    expected /= expected.sum(-1, keepdims=True)
    close(softmax(np.asarray(members(teachers.MeanLogits()).resolve(3.0)), axis=-1), expected)


def test_extreme_logits_keep_value_and_ruled_out_classes():
    extreme = np.array([[[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [1e4, -np.inf, 1e4]]])
    out = np.asarray(members(teachers.MeanProbs(), extreme).resolve(1.0))[0]
    close(np.exp(out), [0.5, 0.0, 0.5])
    np.testing.assert_allclose(out[1], -1e4 - np.log(3 / 1.0), rtol=1e-3)
    assert np.all(np.isfinite(out))  # classes that are possible for one member are possible
    only = np.full((1, 2, 3), -np.inf)
    only[:, :, 0] = 0.0
    close(np.exp(np.asarray(members(teachers.MeanProbs(), only).resolve(2.0)))[0], [1.0, 0.0, 0.0])


def test_entropy_weights_are_those_of_ebkd_normalised():
    p = softmax(LOGITS, axis=-1)
    unsure = -(p * np.log(p)).sum(-1)
    expected = (1 - unsure / unsure.sum(1, keepdims=True)) / (MEMBERS - 1)
    weights = members(teachers.EntropyWeighted()).weights(4.0)
    close(weights, expected)
    close(ops.sum(weights, axis=1), np.ones(BATCH))
    certain = np.zeros((2, MEMBERS, CLASSES))
    certain[..., 0] = 1e4
    close(members(teachers.EntropyWeighted(), certain).weights(), np.full((2, MEMBERS), 1 / 3))


@pytest.mark.parametrize("one_hot", [False, True])
def test_confidence_weights_follow_the_labels(one_hot):
    cross_entropy = -log_softmax(LOGITS, axis=-1)[np.arange(BATCH), :, LABELS]
    expected = (1 - softmax(cross_entropy, axis=1)) / (MEMBERS - 1)
    labels = np.eye(CLASSES)[LABELS] if one_hot else LABELS
    close(members(teachers.ConfidenceWeighted()).weights(4.0, labels=labels), expected)
    with pytest.raises(ValueError, match=r"ConfidenceWeighted: expected labels, got None. Train with \(x, y\)"):
        members(teachers.ConfidenceWeighted()).weights(4.0)


@pytest.mark.parametrize("cap", [1.0, 0.6, 0.4])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_gradient_weights_solve_the_problem_that_scipy_solves(cap, count):
    logits = rng.normal(size=(BATCH, count, CLASSES)) * 3
    weights = np.asarray(members(teachers.GradientBased(cap), logits).weights(2.0, student_logits=STUDENT), "float64")
    gradients = softmax(STUDENT / 2, axis=-1)[:, None] - softmax(logits / 2, axis=-1)
    top = max(cap, 1 / count)
    close(weights.sum(1), np.ones(BATCH), 1e-5)
    assert weights.min() >= 0 and weights.max() <= top + 1e-6
    for g, w in zip(gradients, weights, strict=True):
        gram = g @ g.T
        best = minimize(
            lambda v, gram=gram: v @ gram @ v,
            np.full(count, 1 / count),
            jac=lambda v, gram=gram: 2 * gram @ v,
            bounds=[(0, top)] * count,
            constraints={"type": "eq", "fun": lambda v: v.sum() - 1, "jac": lambda v: np.ones(count)},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert w @ gram @ w <= best.fun + 1e-3 * gram.mean()  # of what equal weights give


def test_uncertainty_weights_are_precisions_of_mutual_information_and_variance():
    models = [
        keras.Sequential([keras.Input((4,)), keras.layers.Dropout(r), keras.layers.Dense(CLASSES)]) for r in (0.1, 0.7)
    ]
    inner = [teachers.MonteCarloDropout(model, num_samples=5, seed=m) for m, model in enumerate(models)]
    x = rng.normal(size=(BATCH, 4)).astype("float32")
    ensemble = teachers.Ensemble(inner, combine="uncertainty")
    for each in inner:
        each.reseed(0)
    got, _ = ensemble.listen(x)
    for each in inner:
        each.reseed(0)
    information = []
    for each in inner:
        p = softmax(np.asarray(each.listen(x)[0].members, "float64"), axis=-1)
        mean = p.mean(1)
        information.append(-(mean * np.log(mean)).sum(-1) + (p * np.log(p)).sum(-1).mean(1))
    precision = 1 / (np.stack(information, 1) + 1e-3)
    close(got.weights(), precision / precision.sum(1, keepdims=True), 1e-4)
    with pytest.raises(ValueError, match=r"expected members that report their uncertainty, got plain models"):
        teachers.Ensemble(models, combine="uncertainty")(x)


def test_stochastic_uses_one_member_per_batch_in_proportion_to_its_weight():
    models = [dense() for _ in range(3)]
    ensemble = teachers.Ensemble(models, weights=[1, 0, 3], combine="stochastic")
    x = rng.normal(size=(2, 4)).astype("float32")
    each = [np.asarray(model(x)) for model in models]
    counts = np.zeros(3)
    for _ in range(80):
        heard = np.asarray(ensemble.listen(x)[0].resolve(3.0))
        match = [np.allclose(heard, one, atol=1e-6) for one in each]
        assert sum(match) == 1
        counts += match
    assert counts[1] == 0 and abs(counts[2] / 80 - 0.75) < 0.2  # 4 standard deviations


def test_uncertainties_are_those_of_float64():
    p = softmax(LOGITS, axis=-1)
    mean = p.mean(1)
    total = -(mean * np.log(mean)).sum(-1)
    close(members(teachers.MeanProbs()).total_uncertainty(), total)
    close(members(teachers.MeanProbs()).knowledge_uncertainty(), total + (p * np.log(p)).sum(-1).mean(1), 1e-5)
    close(members(teachers.MeanProbs()).mean(), mean)
    close(members(teachers.MeanProbs()).standard_deviation(), p.std(1))


def test_ensemble_of_one_is_the_model():
    model = dense()
    x = rng.normal(size=(BATCH, 4)).astype("float32")
    for combine in ("mean_probs", "mean_logits", "mean_loss", "entropy", "confidence", "gradient", "stochastic"):
        heard, _ = teachers.Ensemble([model], combine=combine).listen(x)
        np.testing.assert_array_equal(heard.resolve(3.0), model(x))
        ((logits, weight),) = heard.weighted_members(3.0, labels=LABELS, student_logits=STUDENT)
        np.testing.assert_array_equal(logits, model(x))
        np.testing.assert_array_equal(weight, np.ones(BATCH))


def gradient_at(rule, loss, temperature):
    term = LogitsDistillation(temperature=temperature, loss=loss)
    term.build_from(None, None)
    student = tf.Variable(STUDENT.astype("float32"))
    with tf.GradientTape() as tape:
        value = term.compute_loss(members(rule), student, labels=LABELS)
    return np.asarray(tape.gradient(value, student))


def test_mean_loss_and_mean_probs_have_one_gradient():
    for weights in (None, [0.2, 0.5, 0.3]):
        one = gradient_at(teachers.MeanProbs(weights), losses.SoftTargets(), 3.0)
        other = gradient_at(teachers.MeanLoss(weights), losses.SoftTargets(), 3.0)
        w = np.full(3, 1 / 3) if weights is None else np.array(weights)
        target = np.einsum("m,bmc->bc", w, softmax(LOGITS / 3, axis=-1))
        close(one, 3 * (softmax(STUDENT / 3, axis=-1) - target) / BATCH, 1e-6)
        close(other, one, 1e-6)


def test_member_weights_multiply_member_losses():
    per_member = 16 * np.stack(
        [(lambda p, q: (p * (np.log(p) - np.log(q))).sum(-1))(softmax(LOGITS[:, m] / 4, -1), softmax(STUDENT / 4, -1))
         for m in range(MEMBERS)], 1)  # fmt: skip
    cross_entropy = -log_softmax(LOGITS, axis=-1)[np.arange(BATCH), :, LABELS]
    expected = ((1 - softmax(cross_entropy, axis=1)) / (MEMBERS - 1) * per_member).sum(1).mean()
    term = LogitsDistillation(temperature=4.0)
    term.build_from(None, None)
    value = term.compute_loss(members(teachers.ConfidenceWeighted()), STUDENT.astype("float32"), labels=LABELS)
    close(value, expected, 1e-5)


# ------------------------------------------------------------------------------------------- different label spaces


def test_class_maps_add_probabilities_and_rule_out_the_unknown():
    p = softmax(LOGITS[:, 0], axis=-1)
    merged = np.exp(np.asarray(ClassMap([1, 0, 1, -1, 0])(LOGITS[:, 0])))
    close(merged / merged.sum(-1, keepdims=True), np.stack([p[:, 1] + p[:, 4], p[:, 0] + p[:, 2]], 1)
          / (1 - p[:, 3:4]))  # fmt: skip
    shares = rng.uniform(size=(CLASSES, 4)) * (rng.uniform(size=(CLASSES, 4)) > 0.4)
    shares[:, 0] += 0.1
    mapped = np.exp(np.asarray(ClassMap(shares)(LOGITS[:, 0])))
    expected = p @ shares
    close(mapped / mapped.sum(-1, keepdims=True), expected / expected.sum(-1, keepdims=True), 1e-5)
    permutation = np.asarray(ClassMap([2, 0, 1, 4, 3])(LOGITS[:, 0].astype("float32")))
    np.testing.assert_array_equal(permutation[:, [2, 0, 1, 4, 3]], LOGITS[:, 0].astype("float32"))
    apart = ClassMap([0, 3], num_classes=4)
    assert not apart.complete
    close(np.exp(np.asarray(apart(np.log([[0.25, 0.75]])))), [[0.25, 0, 0, 0.75]])


def test_members_with_other_label_spaces_teach_together():
    coarse, fine = dense(2), dense(3)
    shares = [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]  # the coarse teacher's class 0 is the student's 0 or 1
    ensemble = teachers.Ensemble([coarse, fine], class_maps=[shares, None])
    x = rng.normal(size=(BATCH, 4)).astype("float32")
    expected = (softmax(np.asarray(coarse(x)), -1) @ shares + softmax(np.asarray(fine(x)), -1)) / 2
    close(np.exp(ensemble(x)), expected)
    with pytest.raises(ValueError, match=r"expected members with the same number of classes.*Give class_maps"):
        teachers.Ensemble([coarse, fine])(x)
    with pytest.raises(ValueError, match=r"class maps that reach every class for 'mean_logits'"):
        teachers.Ensemble([coarse, fine], combine="mean_logits", class_maps=[[0, 2], None])


def test_members_that_cover_different_classes_are_combined():
    low, high = dense(2), dense(3)
    ensemble = teachers.Ensemble([low, high], class_maps=[[0, 1], [3, 2, -1]], num_classes=5)
    x = rng.normal(size=(BATCH, 4)).astype("float32")
    p, q = softmax(np.asarray(low(x)), -1), softmax(np.asarray(high(x))[:, :2], -1)
    expected = np.concatenate([p, q[:, ::-1], np.zeros((BATCH, 1))], 1) / 2
    close(np.exp(ensemble(x)), expected)


def test_member_temperatures_come_before_the_terms():
    a, b = dense(), dense()
    x = rng.normal(size=(BATCH, 4)).astype("float32")
    heard, _ = teachers.Ensemble([a, b], temperatures=[2.0, 1.0]).listen(x)
    expected = (softmax(np.asarray(a(x)) / 6, -1) + softmax(np.asarray(b(x)) / 3, -1)) / 2
    close(softmax(np.asarray(heard.resolve(3.0)) / 3, -1), expected)


def test_regressions_are_averaged_as_they_are():
    a, b = dense(1), dense(1)
    x = rng.normal(size=(BATCH, 4)).astype("float32")
    close(teachers.Ensemble([a, b], weights=[3, 1], combine="mean_logits")(x), 0.75 * a(x) + 0.25 * b(x))
    with pytest.raises(ValueError, match=r"at least 2 classes .* Use combine='mean_logits'"):
        teachers.Ensemble([a, b])(x)


# ---------------------------------------------------------------------------------------------- inputs, taps, errors


def test_each_member_may_see_other_inputs():
    sees, hears = dense(inputs=4), dense(inputs=2)
    teacher = teachers.Ensemble([
        teachers.Preprocessed(sees, fn=lambda x: x["image"]),
        teachers.Preprocessed(hears, fn=lambda x: x["sound"] * 2.0),
    ])  # fmt: skip
    x = {"image": rng.normal(size=(3, 4)).astype("float32"), "sound": rng.normal(size=(3, 2)).astype("float32")}
    expected = (softmax(np.asarray(sees(x["image"])), -1) + softmax(np.asarray(hears(2 * x["sound"])), -1)) / 2
    close(np.exp(teacher(x)), expected)
    close(np.exp(teacher.predict(x, verbose=0)), expected)


def test_taps_of_members_come_from_the_same_pass():
    def member():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="hidden"), keras.layers.Dense(CLASSES)])

    a, b = member(), member()
    x = rng.normal(size=(BATCH, 4)).astype("float32")
    heard, tapped = teachers.Ensemble([a, b]).listen(x, ["1/hidden", "0/hidden"])
    assert sorted(tapped) == ["0/hidden", "1/hidden"]
    close(tapped["1/hidden"], b.get_layer("hidden")(x))
    close(heard.members[:, 0], a(x))
    with pytest.raises(ValueError, match=r"expected a tap 'member/layer' .*got hidden. Write '0/hidden'"):
        teachers.Ensemble([a, b]).listen(x, ["hidden"])


def test_dictionary_outputs_are_combined_head_by_head():
    def member():
        x = keras.Input((4,))
        return keras.Model(x, {"a": keras.layers.Dense(3)(x), "b": keras.layers.Dense(2)(x)})

    models = [member(), member()]
    x = rng.normal(size=(BATCH, 4)).astype("float32")
    got = teachers.Ensemble(models)(x)
    for head in "ab":
        expected = np.mean([softmax(np.asarray(model(x)[head]), -1) for model in models], 0)
        close(np.exp(got[head]), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: teachers.Ensemble([]), "Ensemble: expected a list of one or more models, got"),
        (lambda: teachers.Ensemble(dense()), "Ensemble: expected a list of one or more models, got"),
        (lambda: teachers.Ensemble([dense(activation="softmax")]),
         r"expected members that give logits, got model .* ends in softmax. Use taps.without_softmax"),
        (lambda: teachers.Ensemble([dense()], combine="mean_prob"), r"expected combine to be one of 'mean_probs'"),
        (lambda: teachers.Ensemble([dense()], combine="entropy", weights=[1]), "combine with fixed weights"),
        (lambda: teachers.Ensemble([dense()], weights=[1, 2]), "weights with 1 entries, one per model, got 2"),
        (lambda: teachers.Ensemble([dense()], weights=[-1]), r"weights\[0\] >= 0, got -1.0"),
        (lambda: teachers.Ensemble([dense()], weights=[0]), "weights with a positive sum"),
        (lambda: teachers.Ensemble([dense()], temperatures=[0]), r"temperatures\[0\] > 0, got 0.0"),
        (lambda: teachers.Ensemble([dense(), "model"]), "a keras.Model or a teachers.Teacher, got str"),
        (lambda: teachers.Preprocessed(dense(), fn=3), "expected fn to be a function or a layer, got 3"),
        (lambda: teachers.GradientBased(max_weight=0), "max_weight > 0"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------------------------- through the Distiller
