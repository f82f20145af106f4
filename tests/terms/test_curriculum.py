"""Terms that adapt their temperature: the published value and reversed gradient, the ramp, and equal entropies."""

import keras
import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf

from keras_distill import Distiller
from keras_distill.losses import SoftTargets
from keras_distill.teachers import Ensemble
from keras_distill.terms import CurriculumTemperature, EntropyMatchedTemperature, LogitsDistillation
from tests.golden.record_curriculum import load
from tests.models import batch, kd, log_softmax, mlp, softmax

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = batch(12)
RNG = np.random.default_rng(0)
TEACHER, STUDENT = (3 * RNG.normal(size=(7, 5)).astype("float32") for _ in "ts")


def kd_each(teacher, student, column):
    """One temperature per example."""
    rows = zip(teacher, student, column[:, 0], strict=True)
    return np.array([kd(row, other, temperature) for row, other, temperature in rows])


def built(term):
    spec = keras.KerasTensor((None, 5))
    term.build_from(spec, spec)
    return term


def with_gradients(term, teacher, student, variables=()):
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = term.compute_loss(teacher, student)
    to_student, *rest = tape.gradient(loss, [student, *(v.value for v in variables)])
    return float(loss), to_student.numpy(), [np.asarray(each) for each in rest]


def test_values_and_gradients_equal_those_of_the_published_code():
    case, golden = load()
    assert case["hyper_parameters"] == {"t_start": 1.0, "t_end": 20.0, "lambda": -1.0}
    term = CurriculumTemperature(ramp_steps=0)
    term.build_from(None, None)
    term.trainable_weights[0].assign(golden["global_T_raw"][0])
    loss, to_student, (to_theta,) = with_gradients(
        term, golden["teacher_logits"], golden["student_logits"], term.trainable_weights
    )
    assert loss == pytest.approx(golden["loss"], rel=1e-6)
    assert term.temperature == pytest.approx(golden["temperature"], rel=1e-6)
    np.testing.assert_allclose(to_student, golden["grad_student_logits"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(to_theta, golden["grad_global_T_raw"][0], rtol=2e-4)


def theta_slope(theta, low=1.0, high=21.0):
    """d loss / d theta by finite differences in float64."""

    def loss(theta):
        return kd(TEACHER, STUDENT, low + (high - low) / (1 + np.exp(-theta))).mean()

    return (loss(theta + 1e-5) - loss(theta - 1e-5)) / 2e-5


@pytest.mark.parametrize("theta", [-3.0, 0.0, 1.0])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_gradient_of_theta_is_reversed_and_no_other(theta, strength):
    low, high = 0.5, 5.0
    term = built(
        CurriculumTemperature(ramp_steps=0, reversal_strength=strength, min_temperature=low, max_temperature=high)
    )
    term.trainable_weights[0].assign(theta)
    loss, to_student, (to_theta,) = with_gradients(term, TEACHER, STUDENT, term.trainable_weights)
    temperature = low + (high - low) / (1 + np.exp(-theta))
    assert loss == pytest.approx(kd(TEACHER, STUDENT, temperature).mean(), rel=1e-5)
    expected = temperature * (softmax(STUDENT / temperature) - softmax(TEACHER / temperature)) / len(TEACHER)
    np.testing.assert_allclose(to_student, expected, rtol=1e-4, atol=1e-6)
    assert to_theta == pytest.approx(-strength * theta_slope(theta, low, high), rel=1e-3, abs=1e-9)


def distiller(term, rate=0.5, share=0.0, **kwargs):
    made = Distiller(mlp(4, seed=1), mlp(4, seed=9), term, student_loss_weight=share)
    made.compile(keras.optimizers.SGD(rate), CROSS_ENTROPY, **{"jit_compile": False, **kwargs})
    return made


def fit(made, epochs=3, **kwargs):
    return made.fit(X, Y, epochs=epochs, batch_size=4, shuffle=False, verbose=0, **kwargs).history


def test_the_ramp_follows_the_optimizers_steps():
    made = distiller(CurriculumTemperature(ramp_steps=6, reversal_strength=2.0), rate=0.0)
    history = fit(made, epochs=4)
    last = np.array([2, 5, 8, 11])
    np.testing.assert_allclose(
        history["reversal_strength"], 1 - np.cos(np.pi * np.minimum(last / 6, 1)), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(history["temperature"], 1 + 20 / (1 + np.exp(-1)), rtol=1e-6)
    made.distillation_losses[0].reversal_strength = 0.25
    assert fit(made, epochs=1)["reversal_strength"] == [0.25]


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_training_moves_the_temperature_towards_the_larger_loss(mode):
    """One step: theta moves by rate * strength * slope, towards the larger loss; the student the other way."""
    term = CurriculumTemperature(ramp_steps=0, reversal_strength=0.5, initial_temperature=2.0, max_temperature=6.0)
    made = distiller(term, rate=0.1, share=0.2, run_eagerly=mode == "eager", jit_compile=mode == "xla")
    teacher, student = made.teacher(X).numpy(), made.student(X).numpy()

    def loss(theta):
        return kd(teacher, student, 1 + 5 / (1 + np.exp(-theta))).mean()

    theta = np.log(1 / 4)
    slope = (loss(theta + 1e-5) - loss(theta - 1e-5)) / 2e-5
    logs = made.train_on_batch(X, Y, return_dict=True)
    assert logs["distillation_loss"] == pytest.approx(loss(theta), rel=1e-5)
    got = float(term.trainable_weights[0])
    assert got - theta == pytest.approx(0.1 * 0.8 * 0.5 * slope, rel=2e-3)
    assert logs["temperature"] == pytest.approx(2.0, rel=1e-6)
    assert term.temperature == pytest.approx(1 + 5 / (1 + np.exp(-got)), rel=1e-6)


def test_each_example_has_its_own_temperature():
    term = built(CurriculumTemperature(per_example=True, ramp_steps=0, hidden_units=3))
    start = 1 + 20 / (1 + np.exp(-1))
    np.testing.assert_allclose(term.values(TEACHER, STUDENT), kd(TEACHER, STUDENT, start), rtol=2e-4)
    hidden, bias, head, last = term.trainable_weights
    head.assign(0.1 * RNG.normal(size=(3, 1)))
    seen = np.concatenate([TEACHER, STUDENT], -1).astype("float64")
    weights = [np.asarray(each, "float64") for each in (hidden, bias, head, last)]

    def temperatures(kernel, bias, head, last):
        theta = (np.maximum(seen @ kernel + bias, 0) @ head + last)[:, 0]
        return 1 + 20 / (1 + np.exp(-theta))

    found = temperatures(*weights)
    assert found.std() > 0.1
    loss, to_student, gradients = with_gradients(term, TEACHER, STUDENT, term.trainable_weights)
    column = found[:, None]
    assert loss == pytest.approx(kd_each(TEACHER, STUDENT, column).mean(), rel=1e-4)
    # No gradient through the network: as with fixed temperatures.
    expected = column * (softmax(STUDENT / column) - softmax(TEACHER / column)) / len(TEACHER)
    np.testing.assert_allclose(to_student, expected, rtol=2e-4, atol=2e-6)
    for index, gradient in enumerate(gradients):
        for where in np.ndindex(gradient.shape):
            if where[0] % 3:
                continue
            shifted = [[each.copy() for each in weights] for _ in "+-"]
            for sign, each in zip((1e-5, -1e-5), shifted, strict=True):
                each[index][where] += sign
            slopes = [kd_each(TEACHER, STUDENT, temperatures(*each)[:, None]).mean() for each in shifted]
            assert gradient[where] == pytest.approx(-(slopes[0] - slopes[1]) / 2e-5, rel=5e-3, abs=2e-5)


def test_a_temperature_per_example_trains_in_a_distiller():
    term = CurriculumTemperature(per_example=True, ramp_steps=3)
    history = fit(distiller(term, share=0.3), epochs=4)
    assert len(set(history["temperature"])) > 2
    assert term.temperature == pytest.approx(history["temperature"][-1])


@pytest.mark.parametrize("per_example", [False, True])
def test_it_resumes_after_saving_and_loading(per_example, tmp_path):
    loss = "kl_divergence" if per_example else "categorical_crossentropy"
    term = CurriculumTemperature(loss, 40, per_example, 3.0, 1.0, 9.0, 0.7, 5)
    made = distiller(term, rate=0.05, share=0.3)
    fit(made, epochs=2)
    made.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.distillation_losses[0].get_config() == term.get_config()
    one, two = fit(made, epochs=1), fit(loaded, epochs=1)
    assert {name: values[0] for name, values in one.items()} == pytest.approx(
        {name: values[0] for name, values in two.items()}, rel=1e-6
    )
    theta, again = (each.distillation_losses[0].trainable_weights for each in (made, loaded))
    for one, two in zip(theta, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_its_temperature_may_be_assigned():
    term = built(CurriculumTemperature(max_temperature=9.0))
    term.temperature = 4.0
    assert term.temperature == pytest.approx(4.0, rel=1e-6)
    assert float(term.compute_loss(TEACHER, STUDENT)) == pytest.approx(kd(TEACHER, STUDENT, 4.0).mean(), rel=1e-5)


def test_a_term_has_the_same_value_in_keras_own_distiller():
    term = CurriculumTemperature(ramp_steps=0, initial_temperature=2.0)
    teacher, student = mlp(4, seed=1), mlp(4, seed=9)
    made = keras.distillation.Distiller(teacher, student, term, student_loss_weight=0.0)
    made.compile("sgd", CROSS_ENTROPY, run_eagerly=True)
    expected = kd(teacher(X).numpy(), student(X).numpy(), 2.0).mean()
    assert made.evaluate(X, Y, verbose=0, return_dict=True)["distillation_loss"] == pytest.approx(expected, rel=1e-5)


def entropy(logits):
    return -(softmax(logits) * np.where(np.isfinite(logits), log_softmax(logits), 0)).sum(-1)


def matching(row, target, low, high):
    """The temperature by Brent's method in float64."""
    row = row.astype("float64") - row.max()
    if entropy(row / low) >= target:
        return low
    if entropy(row / high) <= target:
        return high
    return scipy.optimize.brentq(lambda t: entropy(row / t) - target, low, high, xtol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 5.0, 60.0])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_every_target_has_the_target_entropy(scale, fraction):
    teacher = (scale * np.random.default_rng(4).normal(size=(40, 9))).astype("float32")
    term = EntropyMatchedTemperature("kl_divergence", fraction, 1e-4, 500.0)
    found = term._temperatures(teacher, teacher).numpy()
    target = fraction * np.log(9)
    np.testing.assert_allclose(found, [matching(row, target, 1e-4, 500.0) for row in teacher], rtol=1e-5)
    np.testing.assert_allclose(entropy(teacher / found[:, None]), target, rtol=5e-5)


def test_extreme_and_impossible_logits():
    teacher = np.array([[1e4, 1e4 - 3, 0, 2], [5.0, 1.0, -np.inf, -np.inf], [0, 0, 0, 0], [9, 9, 0, 0]], "float32")
    term = EntropyMatchedTemperature(entropy_fraction=0.4, min_temperature=0.1, max_temperature=50.0)
    found = term._temperatures(teacher, teacher).numpy()
    targets = 0.4 * np.log([4, 2, 4, 4])  # two of the second row's classes are impossible
    expected = [matching(row, target, 0.1, 50.0) for row, target in zip(teacher, targets, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[2] == pytest.approx(0.1, rel=1e-5)  # uniform already
    assert found[3] == pytest.approx(0.1, rel=1e-5)  # a tie of two: never as sharp as the target entropy


def test_each_example_is_compared_at_its_temperature():
    term = EntropyMatchedTemperature(entropy_fraction=0.6, max_temperature=8.0)
    column = np.array([[matching(row, 0.6 * np.log(5), 0.25, 8.0)] for row in TEACHER])
    assert column.std() > 0.1
    loss, to_student, _ = with_gradients(term, TEACHER, STUDENT)
    assert loss == pytest.approx(kd_each(TEACHER, STUDENT, column).mean(), rel=1e-4)
    expected = column * (softmax(STUDENT / column) - softmax(TEACHER / column)) / len(TEACHER)
    np.testing.assert_allclose(to_student, expected, rtol=2e-4, atol=2e-6)
    assert term.temperature == pytest.approx(column.mean(), rel=1e-4)


@pytest.mark.parametrize("term", [EntropyMatchedTemperature, lambda: built(CurriculumTemperature(per_example=True))])
def test_sequences_have_a_temperature_for_each_position(term):
    term = term()
    teacher, student = (np.stack([each, each[::-1]]) for each in (TEACHER, STUDENT))
    flat = np.stack([term.values(TEACHER, STUDENT), term.values(TEACHER[::-1], STUDENT[::-1])])
    np.testing.assert_allclose(term.values(teacher, student), flat, rtol=1e-5)


class Counted(SoftTargets):
    """Soft targets that count how often they are traced."""

    traces = 0

    def values(self, *args, **kwargs):
        Counted.traces += 1
        return super().values(*args, **kwargs)


@pytest.mark.parametrize("xla", [False, True])
def test_the_target_entropy_may_change_during_training(xla):
    curve = keras.optimizers.schedules.PolynomialDecay(0.9, 9, end_learning_rate=0.3)
    term = EntropyMatchedTemperature(Counted(), curve)
    made = distiller(term, rate=0.0, jit_compile=xla)
    history = fit(made)
    np.testing.assert_allclose(history["entropy_fraction"], [0.9 - 0.6 * step / 9 for step in (2, 5, 8)], rtol=1e-5)
    assert history["temperature"][0] > history["temperature"][1] > history["temperature"][2]
    before = Counted.traces
    term.entropy_fraction = 0.5
    history = fit(made, epochs=1)
    assert Counted.traces == before
    teacher, student = made.teacher(X).numpy(), made.student(X).numpy()
    column = np.array([[matching(row, 0.5 * np.log(4), 0.25, 20.0)] for row in teacher])
    assert history["distillation_loss"][0] == pytest.approx(kd_each(teacher, student, column).mean(), rel=1e-4)
    assert history["temperature"][0] == pytest.approx(column.mean(), rel=1e-5)


def test_entropy_matching_saved_and_loaded(tmp_path):
    term = EntropyMatchedTemperature("kl_divergence", 0.3, 0.5, 4.0, standardize=False, name="matched")
    made = distiller(term, share=0.3, run_eagerly=True)
    made.distillation_losses[0].entropy_fraction = 0.4
    fit(made, epochs=1)
    made.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.distillation_losses[0].get_config() == term.get_config()
    assert loaded.distillation_losses[0].entropy_fraction == pytest.approx(0.4)
    one, two = (each.evaluate(X, Y, verbose=0) for each in (made, loaded))
    np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize("term", [EntropyMatchedTemperature, CurriculumTemperature])
def test_an_ensemble_of_one_is_its_member(term):
    teacher, student = mlp(4, seed=1), mlp(4, seed=9)
    values = []
    for heard in (teacher, Ensemble([teacher])):
        made = Distiller(heard, student, term(), student_loss_weight=0.0)
        made.compile("sgd", run_eagerly=True)
        values.append(made.evaluate(X, verbose=0, return_dict=True)["distillation_loss"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CurriculumTemperature(min_temperature=0), "min_temperature > 0, got 0.0"),
        (lambda: CurriculumTemperature(max_temperature=1), "max_temperature > 1, got 1.0"),
        (lambda: CurriculumTemperature(initial_temperature=1.0), "initial_temperature > 1, got 1.0"),
        (lambda: CurriculumTemperature(initial_temperature=21.0), "initial_temperature < 21, got 21.0"),
        (lambda: CurriculumTemperature(ramp_steps=-1), "ramp_steps to be an integer >= 0, got -1"),
        (lambda: CurriculumTemperature(reversal_strength=-1.0), "reversal_strength >= 0, got -1.0"),
        (lambda: CurriculumTemperature(hidden_units=0), "hidden_units to be an integer >= 1, got 0"),
        (lambda: setattr(built(CurriculumTemperature()), "temperature", 0.5), "temperature > 1, got 0.5"),
        (lambda: setattr(built(CurriculumTemperature()), "temperature", 30.0), "temperature < 21, got 30.0"),
        (lambda: setattr(built(CurriculumTemperature(per_example=True)), "temperature", 3.0), "no temperature to be"),
        (lambda: EntropyMatchedTemperature(entropy_fraction=0.0), "entropy_fraction > 0 and <= 1, got 0.0"),
        (lambda: EntropyMatchedTemperature(entropy_fraction=1.0), "entropy_fraction < 1, got 1.0"),
        (lambda: EntropyMatchedTemperature(max_temperature=0.1), "max_temperature > 0.25, got 0.1"),
        (
            lambda: setattr(EntropyMatchedTemperature(), "temperature", 2.0),
            "no temperature, because the term sets its own",
        ),
        (
            lambda: CurriculumTemperature(per_example=True).build_from(*[[keras.KerasTensor((None, 5))] * 2] * 2),
            "one output for per_example=True, got 2",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=rf"Temperature: expected .*{message}"):
        make()


def test_a_scheduler_without_a_temperature_to_set_is_refused():
    from keras_distill.callbacks import TemperatureScheduler

    made = distiller(CurriculumTemperature())
    with pytest.raises(ValueError, match="a term with a temperature to control, got none"):
        fit(made, callbacks=[TemperatureScheduler(lambda epoch: 2.0)])
    assert LogitsDistillation(2.0).temperature == 2.0
