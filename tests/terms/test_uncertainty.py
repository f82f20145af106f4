"""Ensembles into one student through the distiller: live and stored, saved, compiled, in half precision; calibrated."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, losses, metrics, schedules, students, teachers
from keras_distill.calibration import TemperatureScaler, VectorScaler
from keras_distill.terms import UncertaintyDistillation
from tests.models import batches

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 4)).astype("float32")
Y = RNG.integers(0, 3, 32)


def small(seed, outputs=3, dtype=None, dropout=0.0):
    init = keras.initializers.RandomNormal(stddev=0.8, seed=seed)
    layers = [keras.Input((4,)), keras.layers.Dense(8, "relu", kernel_initializer=init, dtype=dtype)]
    layers += [keras.layers.Dropout(dropout, seed=seed)] if dropout else []
    return keras.Sequential([*layers, keras.layers.Dense(outputs, kernel_initializer=init, dtype=dtype)])


def ensemble(outputs=3, count=4, **options):
    return teachers.Ensemble([small(seed, outputs) for seed in range(count)], **options)


def distiller(teacher, term, student=None, jit=False, loss=None, share=0.0):
    made = Distiller(teacher, student or small(9), term, student_loss_weight=share)
    made.compile(keras.optimizers.Adam(0.01), loss=loss, jit_compile=jit)
    return made


LOSSES = [losses.EnsembleSoftTargets(), losses.DirichletDistillation(), losses.ProxyDirichlet()]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_term_is_the_mean_of_the_loss_over_examples(loss):
    teacher, student = ensemble(), small(9)
    term = LogitsDistillation(2.0, loss)
    weights = RNG.uniform(0.5, 2.0, 32).astype("float32")
    made = distiller(teacher, term, student)
    got = made.evaluate(X, Y, sample_weight=weights, verbose=0, batch_size=8, return_dict=True)["distillation_loss"]
    members = np.stack([np.asarray(model(X)) for model in teacher.models], 1)
    expected = np.mean(weights * loss.values(members, student(X), temperature=2.0))
    assert got == pytest.approx(expected, rel=1e-5)


def test_mean_of_members_is_the_default_of_an_ensemble():
    plain = distiller(ensemble(), LogitsDistillation(3.0)).evaluate(X, Y, verbose=0, return_dict=True)
    named = distiller(ensemble(), LogitsDistillation(3.0, losses.EnsembleSoftTargets()))
    assert named.evaluate(X, Y, verbose=0, return_dict=True)["distillation_loss"] == pytest.approx(
        plain["distillation_loss"], rel=1e-5
    )


@pytest.mark.parametrize("teacher", [ensemble, lambda: teachers.MonteCarloDropout(small(1, dropout=0.4), 6)])
def test_a_stored_ensemble_teaches_as_the_live_one(teacher, tmp_path):
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    dataset = dataset.with_options(_quiet())
    stored = teachers.label(teacher(), dataset, tmp_path, dtype="float32", progress=False)
    weights = []
    for source, data in ((teacher(), dataset), (stored, stored.attach(dataset))):
        annealed = schedules.Linear(10.0, 1.0, num_steps=6)
        made = distiller(source, LogitsDistillation(annealed, losses.DirichletDistillation()))
        if isinstance(source, teachers.MonteCarloDropout):
            source.reseed(0)
        made.fit(data, epochs=2, verbose=0)
        assert made.distillation_losses[0].temperature == pytest.approx(1.0)
        weights.append(made.student.get_weights())
    if teacher is ensemble:
        for live, kept in zip(*weights, strict=True):
            np.testing.assert_allclose(live, kept, atol=1e-6)
    else:  # a live teacher samples new masks in each pass, so only the store is repeatable
        again = distiller(stored, LogitsDistillation(annealed, losses.DirichletDistillation()))
        again.fit(stored.attach(dataset), epochs=2, verbose=0)
        for kept, other in zip(weights[1], again.student.get_weights(), strict=True):
            np.testing.assert_array_equal(kept, other)


def _quiet():
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def test_a_saved_distiller_resumes_as_if_it_had_not_stopped(tmp_path):
    term = lambda: LogitsDistillation(  # noqa: E731
        schedules.Linear(10.0, 1.0, num_steps=20), losses.TrustWeighted(losses.DirichletDistillation(smoothing=0.01))
    )
    made = distiller(ensemble(), term())
    made.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    made.save(tmp_path / "distiller.keras")
    again = keras.models.load_model(tmp_path / "distiller.keras")
    assert again.distillation_losses[0].temperature == pytest.approx(made.distillation_losses[0].temperature)
    for each in (made, again):
        each.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for one, two in zip(made.student.get_weights(), again.student.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_xla_trains_as_the_graph_does(loss):
    got = []
    for jit in (False, True):
        made = distiller(ensemble(), LogitsDistillation(2.0, loss), jit=jit)
        made.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        got.append(made.student.get_weights())
    for one, two in zip(*got, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


@pytest.fixture(scope="module")
def reached():
    """The result of training in float32."""
    plain = distiller(ensemble(), LogitsDistillation(1.0, losses.ProxyDirichlet()), small(9))
    plain.fit(batches(X, Y, size=8), epochs=30, verbose=0)
    return plain.evaluate(X, Y, verbose=0, return_dict=True)["distillation_loss"]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_learns(policy, reached):
    made = distiller(ensemble(), LogitsDistillation(1.0, losses.ProxyDirichlet()), small(9, dtype=policy))
    losses_seen = made.fit(batches(X, Y, size=8), epochs=30, verbose=0).history["distillation_loss"]
    assert losses_seen[-1] < losses_seen[0]
    assert losses_seen[-1] == pytest.approx(reached, abs=0.05)


def test_hydra_keeps_the_members_apart():
    teacher = ensemble()
    made = distiller(teacher, LogitsDistillation(1.0, losses.MemberSoftTargets()), students.hydra(small(9), 4))
    made.optimizer.learning_rate = 0.05
    made.fit(batches(X, Y), epochs=150, verbose=0)
    members = np.stack([np.asarray(model(X)) for model in teacher.models], 1)
    truth = metrics.ensemble_uncertainty(members, from_logits=True).knowledge
    said = metrics.ensemble_uncertainty(made.student(X), from_logits=True).knowledge
    assert metrics.rank_correlation(truth, said) > 0.5


def test_evidence_is_trained_with_an_increasing_regulariser():
    terms = [LogitsDistillation(1.0, losses.Evidential()), LogitsDistillation(1.0, losses.MisleadingEvidence())]
    made = Distiller(
        ensemble(),
        small(9),
        terms,
        distillation_loss_weights=[1.0, schedules.Linear(0.0, 1.0, num_steps=7)],
        student_loss_weight=0.0,
    )
    made.compile("adam", jit_compile=False)
    made.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    members = np.stack([np.asarray(model(X)) for model in made.teacher.models], 1)
    targets = np.exp(members - np.logaddexp.reduce(members, -1, keepdims=True)).mean(1)
    logits = np.asarray(made.student(X))
    expected = np.mean(losses.evidential(targets=targets, student_logits=logits))
    expected += np.mean(losses.misleading_evidence(student_logits=logits, labels=Y))
    got = made.evaluate(X, Y, verbose=0, return_dict=True)["distillation_loss"]
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "head"),
    [
        (losses.EnsembleGaussianKL(), students.GaussianHead(1)),
        (losses.GaussianMixture(), students.MixtureHead(1, components=2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_regression_students_learn_an_ensembles_variance(loss, head):
    teacher = teachers.Ensemble([small(seed, 2) for seed in range(4)], combine="mean_logits")
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(32, "relu"), head])
    made = distiller(teacher, LogitsDistillation(1.0, loss), student)
    made.optimizer.learning_rate = 0.02
    made.fit(batches(X), epochs=300, verbose=0)
    members = np.stack([np.asarray(model(X)) for model in teacher.models], 1)
    truth = metrics.mixture_uncertainty(members[..., :1], members[..., 1:])
    source = {"GaussianHead": "gaussian", "MixtureHead": "mixture"}
    said = students.with_uncertainties(student, source[type(head).__name__])(X)
    assert np.corrcoef(np.ravel(said["mean"]), np.ravel(truth.mean))[0, 1] > 0.9
    assert metrics.rank_correlation(np.ravel(said["total"]), np.ravel(truth.total)) > 0.7


def test_an_uncertainty_head_learns_together_with_the_labels(tmp_path):
    student = students.with_uncertainty_head(small(9), 2)
    loss = {"logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    term = UncertaintyDistillation(["total", "knowledge"], weights=[1.0, 2.0])
    made = distiller(ensemble(), term, student, loss=loss, share=0.1)
    made.optimizer.learning_rate = 0.03
    x = 3 * X  # far from the data the members disagree more
    made.fit(batches(x, {"logits": Y}), epochs=400, verbose=0)
    members = np.stack([np.asarray(model(x)) for model in made.teacher.models], 1)
    truth = metrics.ensemble_uncertainty(members, from_logits=True)
    said = made.student(x)["uncertainty"].numpy()
    assert metrics.rank_correlation(said[:, 0], truth.total) > 0.8
    assert metrics.rank_correlation(said[:, 1], truth.knowledge) > 0.8
    wanted = np.stack([truth.total, truth.knowledge], 1)
    value = losses.ensemble_soft_targets(teacher_logits=members, student_logits=made.student(x)["logits"])
    expected = np.mean(value + (np.abs(said - wanted) * [1.0, 2.0]).sum(1))
    got = made.evaluate(x, {"logits": Y}, verbose=0, return_dict=True)["distillation_loss"]
    assert got == pytest.approx(expected, rel=1e-5)
    weights = np.where(np.arange(32) < 8, 4.0, 0.0)
    alone = np.mean((value + (np.abs(said - wanted) * [1.0, 2.0]).sum(1))[:8])
    weighted = made.evaluate(x, {"logits": Y}, sample_weight={"logits": weights}, verbose=0, return_dict=True)[
        "distillation_loss"
    ]
    assert weighted == pytest.approx(alone, rel=1e-5)
    made.save(tmp_path / "distiller.keras")
    again = keras.models.load_model(tmp_path / "distiller.keras")
    assert again.evaluate(x, {"logits": Y}, verbose=0, return_dict=True)["distillation_loss"] == pytest.approx(got)


def test_uncertainty_labels_refuse_inconsistent_students():
    head = students.with_uncertainty_head(small(9), 1)
    with pytest.raises(ValueError, match="expected 2 uncertainties, one per kind, got 1"):
        distiller(ensemble(), UncertaintyDistillation(), head).fit(X, verbose=0)
    with pytest.raises(ValueError, match="expected a student with outputs 'logits' and 'uncertainty', got one output"):
        distiller(ensemble(), UncertaintyDistillation()).fit(X, verbose=0)
    with pytest.raises(ValueError, match="expected a teacher of several members, got one"):
        distiller(small(1), UncertaintyDistillation(["knowledge"]), head).fit(X, verbose=0)
    for options, text in (
        ({"kinds": []}, "expected a list of at least one kind"),
        ({"kinds": ["all"]}, "expected each of kinds to be one of"),
        ({"weights": [1.0]}, "expected one weight for each of the 2 kinds, got 1"),
        ({"temperature": 0.0}, "expected temperature > 0, got 0.0"),
        ({"loss": "huber"}, "expected loss to be one of"),
    ):
        with pytest.raises(ValueError, match=text):
            UncertaintyDistillation(**options)


def test_a_plain_teacher_has_no_members():
    with pytest.raises(ValueError, match="expected a teacher of several members for DirichletDistillation, got one"):
        distiller(small(1), LogitsDistillation(1.0, losses.DirichletDistillation())).fit(X, verbose=0)


@pytest.mark.parametrize("scaler", [TemperatureScaler(2.5), VectorScaler([1.0, 2.0, 0.5], [0.0, 0.1, -0.1])])
def test_a_calibrated_teacher_is_the_scaled_one(scaler, tmp_path):
    for inner in (small(1), ensemble()):
        teacher = teachers.Calibrated(inner, scaler)
        scaled = np.asarray(scaler.scale(inner(X)))
        np.testing.assert_allclose(teacher(X), scaled, rtol=1e-5, atol=1e-6)
        made = distiller(teacher, LogitsDistillation(2.0))
        expected = np.mean(losses.soft_targets(teacher_logits=scaled, student_logits=made.student(X), temperature=2.0))
        got = made.evaluate(X, Y, verbose=0, return_dict=True)["distillation_loss"]
        assert got == pytest.approx(expected, rel=1e-5)
        before = [w.copy() for w in teacher.get_weights()]
        made.fit(X, Y, verbose=0)
        for one, two in zip(before, teacher.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)
        made.save(tmp_path / "distiller.keras")
        again = keras.models.load_model(tmp_path / "distiller.keras").teacher
        np.testing.assert_allclose(again(X), teacher(X), rtol=1e-6)


def test_calibrated_members_stay_members():
    scalers = [TemperatureScaler(float(t)) for t in (1.5, 2.0, 3.0, 0.5)]
    plain = ensemble()
    scaled = teachers.Ensemble([teachers.Calibrated(m.model, s) for m, s in zip(plain.models, scalers, strict=True)])
    known = teachers.Ensemble([m.model for m in plain.models], temperatures=[s.temperature for s in scalers])
    np.testing.assert_allclose(scaled.listen(X)[0].members, known.listen(X)[0].members, rtol=1e-5)


def test_calibrated_refuses_unfitted_scalers_and_softmax_models():
    with pytest.raises(ValueError, match="expected a fitted scaler or a layer, got float"):
        teachers.Calibrated(small(1), 2.0)
    with pytest.raises(ValueError, match="TemperatureScaler: expected a fitted scaler"):
        teachers.Calibrated(small(1), TemperatureScaler())
    softmax = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    with pytest.raises(ValueError, match="which ends in softmax"):
        teachers.Calibrated(softmax, TemperatureScaler(2.0))
