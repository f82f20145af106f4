"""A student without data: each objective is its formula, gradients reach the generator through the frozen teacher."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import NonFiniteLossError, callbacks, regimes, teachers
from keras_distill.regimes._contrast import shifted
from keras_distill.regimes._impressions import dirichlet_targets
from keras_distill.taps import Taps
from tests.models import log_softmax, mlp, softmax

RNG, OTHER = np.random.default_rng(0), np.random.default_rng(1)
T, S = (RNG.normal(size=(8, 4)).astype("float32") for _ in "ts")
SHOWN = regimes.Shown(T, S, {"hidden": RNG.normal(size=(8, 5)).astype("float32")})


def normalized(seed=0):
    init = keras.initializers.GlorotUniform(seed=seed)
    layers = [keras.layers.Dense(8, kernel_initializer=init), keras.layers.BatchNormalization(name="norm"),
              keras.layers.ReLU(name="hidden"), keras.layers.Dense(4, kernel_initializer=init)]  # fmt: skip
    return keras.Sequential([keras.Input((6,)), *layers])


def generator(seed=7):
    return mlp(8, 6, inputs=3, seed=seed, activation="tanh")


@pytest.mark.parametrize(("distance", "expected"), [
    ("l1", np.abs(T.astype("float64") - S).mean()),
    ("mse", ((T.astype("float64") - S) ** 2).mean()),
    ("kl", (softmax(T) * (log_softmax(T) - log_softmax(S))).sum(-1).mean()),
])  # fmt: skip
def test_disagreement_is_the_distance_and_its_negative(distance, expected):
    objective = regimes.Disagreement(distance)
    assert float(objective.student_loss(SHOWN)) == pytest.approx(expected, rel=1e-5)
    assert float(objective.generator_loss(SHOWN, None)) == pytest.approx(-expected, rel=1e-5)


def looking(seed, channels, positions=3):
    init = keras.initializers.GlorotUniform(seed=seed)
    layers = [keras.layers.Reshape((positions, -1)), keras.layers.Dense(channels, "tanh", name="stage"),
              keras.layers.Flatten(), keras.layers.Dense(4)]  # fmt: skip
    for layer in layers[1::2]:
        layer.kernel_initializer = init
    return keras.Sequential([keras.Input((6,)), *layers])


def test_a_student_also_matches_the_teachers_attention():
    teacher, student, maker = looking(1, 5), looking(2, 3), generator()
    objective = regimes.Disagreement("kl", [("stage", "stage")], attention_weight=7.0) + regimes.ClassInversion()
    regime = regimes.DataFree(teacher, student, maker, objective, 1, seed=5)
    same = keras.random.SeedGenerator(5)
    x = np.asarray(maker(keras.random.normal((8, 3), seed=same)))
    (z, maps), (own, student_maps) = (Taps(model, ["stage"])(x) for model in (teacher, student))
    one, two = (unit((np.asarray(each["stage"], "float64") ** 2).mean(-1)) for each in (maps, student_maps))
    divergence = (softmax(z) * (log_softmax(z) - log_softmax(own))).sum(-1).mean()
    expected = divergence + 7.0 * ((one - two) ** 2).mean()
    assert 7.0 * ((one - two) ** 2).mean() > 0.01
    regime.compile(keras.optimizers.SGD(0.1))
    history = regime.fit(steps=1, epochs=1, batch_size=8, verbose=0).history
    assert history["student_loss"][0] == pytest.approx(expected, rel=1e-5)
    # The generator's loss uses the predictions only.
    assert float(regimes.Disagreement("kl", [("a", "b")]).generator_loss(SHOWN, None)) == pytest.approx(
        float(regimes.Disagreement("kl").generator_loss(SHOWN, None)), rel=1e-6
    )


def test_class_inversion_is_the_formula_and_objectives_add_up():
    objective = regimes.ClassInversion(1.0, 5.0, 0.1, "hidden")
    certainty = -log_softmax(T)[np.arange(8), T.argmax(-1)].mean()
    share = softmax(T).mean(0)
    expected = certainty + 5.0 * (share * np.log(share)).sum() - 0.1 * np.abs(SHOWN.taps["hidden"]).mean()
    assert float(objective.generator_loss(SHOWN, None)) == pytest.approx(expected, rel=1e-5)
    total = (regimes.Disagreement() + objective).generator_loss(SHOWN, None)
    assert float(total) == pytest.approx(expected - np.abs(T - S).mean(), rel=1e-5)


def test_batch_statistics_is_zero_at_the_teachers_own():
    teacher = normalized()
    features = RNG.normal(size=(64, 8)).astype("float32")
    norm = teacher.get_layer("norm")
    shown = regimes.Shown(T, S, {"norm:input": features})
    expected = (features.mean(0) ** 2).sum() + ((features.var(0) - 1) ** 2).sum()  # moving statistics 0 and 1
    objective = regimes.BatchStatistics()
    assert float(objective.generator_loss(shown, teacher)) == pytest.approx(expected, rel=1e-4)
    norm.moving_mean.assign(features.mean(0))
    norm.moving_variance.assign(features.var(0))
    assert float(objective.generator_loss(shown, teacher)) == pytest.approx(0.0, abs=1e-8)


def unit(features):
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def test_contrast_is_the_formula_with_a_memory_that_forgets_the_oldest():
    teacher = normalized(3)
    objective = regimes.Contrastive("norm", num_examples=20, temperature=0.5, weight=2.0, view=lambda x, seed: 1.1 * x)
    (memory,) = objective.states(teacher, (6,))
    taps = Taps(teacher, ["norm"])
    remembered = np.zeros((0, 8))
    for _ in range(4):
        x = OTHER.normal(size=(8, 6)).astype("float32")
        own, view = (unit(np.asarray(taps(scale * x)[1]["norm"], "float64")) for scale in (1.0, 1.1))
        same = np.exp((own * view).sum(-1) / 0.5)
        others = np.exp(own @ own.T / 0.5).sum(-1) - np.exp(1 / 0.5)
        before = np.exp(own @ remembered.T / 0.5).sum(-1)
        expected = -2.0 * np.log(same / (same + others + before)).mean()
        found = objective.generator_loss(regimes.Shown(T, S, taps(x)[1], x), teacher)
        assert float(found) == pytest.approx(expected, rel=1e-4)
        remembered = np.concatenate([remembered, own])[-20:]
    kept = np.asarray(memory.features)
    assert {tuple(row.round(4)) for row in kept} == {tuple(row.astype("float32").round(4)) for row in remembered}
    with pytest.raises(ValueError, match="Contrastive: expected to be used by DataFree"):
        regimes.Contrastive("norm").generator_loss(SHOWN, teacher)


def test_views_are_slightly_augmented_examples():
    images = OTHER.normal(size=(3, 16, 16, 2)).astype("float32")
    seeds, found = keras.random.SeedGenerator(0), set()
    for _ in range(20):
        view = np.asarray(shifted(images, seeds))
        by = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if np.array_equal(
            view[:, 4:12, 4:12], images[:, 4 + i : 12 + i, 4 + j : 12 + j])]  # fmt: skip
        assert len(by) == 1
        found.add(by[0])
    assert len(found) > 8
    noisy = np.asarray(shifted(np.zeros((500, 20), "float32"), seeds))
    assert noisy.std() == pytest.approx(0.1, rel=0.05)


def test_impressions_have_the_sampled_predictions():
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential([keras.Input((6,)), keras.layers.Dense(32, "tanh"), keras.layers.Dense(4)])
    found = regimes.data_impressions(teacher, 30, temperature=2.0, steps=300, learning_rate=0.05, batch_size=16, seed=3)
    kernel = np.asarray(teacher.layers[-1].kernel, "float64")
    wanted = dirichlet_targets(kernel, 30, (1.0, 0.1), np.random.default_rng(3))
    cosines = (kernel / np.linalg.norm(kernel, axis=0)).T @ (kernel / np.linalg.norm(kernel, axis=0))
    rows = (cosines - cosines.min(-1, keepdims=True)) / (1 - cosines.min(-1, keepdims=True))
    # The mean of many targets is the normalised concentration.
    many = dirichlet_targets(kernel, 80_000, (1.0,), np.random.default_rng(0))
    for k in range(4):
        np.testing.assert_allclose(many[k::4].mean(0), rows[k] / rows[k].sum(), atol=0.015)

    def gap(x):
        q = log_softmax(np.asarray(teacher(x), "float64") / 2.0, -1)
        return (wanted * (np.log(np.maximum(wanted, 1e-30)) - q)).sum(-1).mean()

    start = np.random.default_rng(1).normal(size=(30, 6))
    assert found.shape == (30, 6) and gap(found) < 0.3 * gap(start)
    again = regimes.data_impressions(teacher, 30, temperature=2.0, steps=3, batch_size=16, seed=3)
    np.testing.assert_array_equal(
        again, regimes.data_impressions(teacher, 30, temperature=2.0, steps=3, batch_size=16, seed=3)
    )


def made(objective=None, **kwargs):
    teacher, student = normalized(1), mlp(8, 4, seed=2)
    return regimes.DataFree(teacher, student, generator(), objective, **{"student_steps": 2, **kwargs})


def test_the_generators_step_is_the_gradient_through_the_frozen_teacher():
    regime = made(student_steps=1)
    teacher_before, start = regime.teacher.get_weights(), regime.generator.get_weights()
    regime.compile({"student": keras.optimizers.SGD(0.0), "generator": keras.optimizers.SGD(0.1)})
    state = regime.noise.state.numpy()
    regime.fit(steps=1, epochs=1, batch_size=8, verbose=0)
    regime.noise.state.assign(state)
    keras.random.normal((8, 3), seed=regime.noise)  # the student's examples
    noise = keras.random.normal((8, 3), seed=regime.noise)
    after = regime.generator.get_weights()
    regime.generator.set_weights(start)
    with tf.GradientTape() as tape:
        x = regime.generator(noise)
        loss = -tf.reduce_mean(tf.abs(regime.teacher(x, training=False) - regime.student(x)))
    for got, want, step in zip(after, start, tape.gradient(loss, regime.generator.trainable_weights), strict=True):
        np.testing.assert_allclose(got, want - 0.1 * step.numpy(), atol=1e-6)
        assert np.abs(step).max() > 0
    for one, two in zip(teacher_before, regime.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_ensemble_of_one_trains_the_generator_as_its_model_does():
    weights = []
    for wrap in (lambda model: model, teachers.Single, lambda m: teachers.Ensemble([m], combine="mean_logits")):
        objective = regimes.ClassInversion(1.0, 1.0) + regimes.BatchStatistics()  # all through the teacher
        regime = regimes.DataFree(wrap(normalized(1)), mlp(8, 4, seed=2), generator(), objective, 1)
        regime.compile(keras.optimizers.SGD(0.1), run_eagerly=True)  # two steps cost less than a trace
        regime.fit(steps=2, epochs=1, batch_size=8, verbose=0)
        weights.append(regime.generator.get_weights())
    for first, *others in zip(*weights, strict=True):
        for other in others:
            np.testing.assert_allclose(first, other, atol=1e-6)
    assert np.abs(weights[0][0] - generator().get_weights()[0]).max() > 0


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}, {"steps_per_execution": 2}], ids=str)
def test_a_student_comes_closer_to_its_teacher_on_real_data(mode):
    regime = made(regimes.Disagreement() + regimes.ClassInversion(0.0, 1.0) + regimes.BatchStatistics(0.01))
    regime.compile(keras.optimizers.Adam(0.01), keras.losses.MeanAbsoluteError(), **mode)
    x = RNG.normal(size=(256, 6)).astype("float32")
    logits = np.asarray(regime.teacher(x))
    before = np.abs(logits - np.asarray(regime.student(x))).mean()
    history = regime.fit(steps=40, epochs=3, batch_size=32, verbose=0, validation_data=(x, logits)).history
    assert history["val_loss"][-1] < 0.6 * before
    assert history["val_loss"][-1] == pytest.approx(np.abs(logits - np.asarray(regime.student(x))).mean(), rel=1e-4)
    assert set(history) >= {"student_loss", "generator_loss", "class_balance", "val_loss"}
    assert "val_generator_loss" not in history


@pytest.mark.parametrize("objective", [None, "contrast"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, objective):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def run(*extra):
        regime = made(regimes.Disagreement() + regimes.Contrastive("norm", 20) if objective else None)
        regime.compile("adam")
        regime.fit(steps=4, epochs=2, batch_size=8, verbose=0, callbacks=list(extra))
        return regime

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(callbacks.Backup(tmp_path), Stop())
    for one, two in zip(whole.get_weights(), run(callbacks.Backup(tmp_path)).get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_nan_in_the_generator_skips_the_students_update():
    regime = made()
    regime.compile("adam")
    regime.generator.layers[0].kernel.assign(np.full((3, 8), np.nan))
    before = regime.student.get_weights()
    with pytest.raises(NonFiniteLossError, match=r"DataFree: .* at step 0"):
        regime.fit(steps=2, epochs=1, batch_size=8, verbose=0)
    for one, two in zip(before, regime.student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_collapsed_generator_is_warned_of():
    regime = made()
    regime.teacher.layers[-1].bias.assign([50.0, 0.0, 0.0, 0.0])
    regime.compile("sgd")
    with pytest.warns(UserWarning, match="the generator may have collapsed"):
        regime.fit(steps=1, epochs=1, batch_size=8, verbose=0)


@pytest.mark.parametrize("shape", [(5,), (7, 9, 2), (28, 28, 1)])
def test_a_generator_fits_the_teachers_input_and_examples_repeat(shape):
    teacher = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(3)])
    maker = regimes.make_generator(teacher, noise_size=4, width=8)
    one, two = (regimes.synthesize(maker, 3, seed=1, batch_size=size) for size in (3, 2))
    assert one.shape == (3, *shape)
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regimes.DataFree(mlp(4), mlp(4, seed=1), mlp(5, inputs=3)), "a generator whose outputs the teacher"),
        (lambda: regimes.DataFree(mlp(4), mlp(3, seed=1), generator()), "the same number of classes, got 4 and 3"),
        (lambda: made(regimes.BatchStatistics()) and regimes.DataFree(
            mlp(4), mlp(4, seed=1), generator(), regimes.BatchStatistics()), "expected a teacher with BatchNorm"),
        (lambda: made("l1"), r"expected an objective such as Disagreement\('l1'\)"),
        (lambda: regimes.Disagreement(attention_layers="stage"), "attention_layers as pairs"),
        (lambda: regimes.Disagreement(attention_layers=[("a", 1)]), r"attention_layers as pairs .* got \('a', 1\)"),
        (lambda: made(regimes.Disagreement(attention_layers=[("norm", "dense_0")])), "attention_transfer: expected"),
        (lambda: made(regimes.Disagreement(attention_layers=[("norm", "stage")])), "DataFree: .*'stage'"),
        (lambda: made(regimes.Disagreement(attention_layers=[("stage", "dense_0")])), "Single: .*'stage'"),
        (lambda: regimes.ClassInversion() + regimes.Disagreement(attention_layers=[("a", "b")]), "first in a sum"),
        (lambda: regimes.Disagreement("l2"), "expected distance to be one of 'l1', 'kl', 'mse'"),
        (lambda: regimes.DataFree(teachers.VirtualTeacher(0.9), mlp(4)), "a teacher that is run on synthetic examples"),
        (lambda: made(student_steps=0), "expected student_steps to be an integer >= 1"),
        (lambda: regimes.Contrastive("norm", 0), "Contrastive: expected num_examples to be an integer >= 1"),
        (lambda: made(regimes.Contrastive("nrom")), "Contrastive: .*nrom"),
        (lambda: regimes.data_impressions(mlp(4), 3, scales=[0.0]), "expected each of scales > 0"),
        (lambda: regimes.data_impressions(keras.Sequential([mlp(4), keras.layers.Softmax()]), 3),
         r"data_impressions: expected a teacher whose last layer is a Dense that gives logits, got Softmax\. Remove"),
    ],
)  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
