"""Generations, chains and stages equal fits by hand, bit for bit, also after a kill in between."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, regimes, teachers
from tests.models import batch, copy_of, mlp, replicas, softmax

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = batch(24)
FIT = {"epochs": 2, "batch_size": 12, "shuffle": False, "verbose": 0}
EAGER = {"run_eagerly": True}  # four steps cost less than a trace


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def counted(seeds):
    """Return a function that makes students with seeds 0, 1, ..., whatever was made before."""
    numbers = iter(range(seeds))
    return lambda: mlp(8, 4, seed=10 * next(numbers))


def same(one, two):
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def by_hand(teacher, student, term=None, eager=True, **fit):
    distiller = Distiller(teacher, student, term or LogitsDistillation(1.0))
    distiller.compile(sgd(), CROSS_ENTROPY, run_eagerly=eager)
    distiller.fit(X, Y, **{**FIT, **fit})
    return student


def test_one_generation_is_two_fits_by_hand():
    born_again = regimes.BornAgain(counted(2), num_generations=1)
    born_again.compile(sgd(), CROSS_ENTROPY)
    born_again.fit(X, Y, **FIT)
    first, second = mlp(8, 4, seed=0), mlp(8, 4, seed=10)
    first.compile(sgd(), CROSS_ENTROPY)
    first.fit(X, Y, **FIT)
    for a, b in zip(first.get_weights(), born_again.students[0].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    same(by_hand(born_again.students[0], second, eager=False), born_again.student)
    logits = [np.asarray(each(X), "float64") for each in born_again.students]
    shares = [np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in logits]
    np.testing.assert_allclose(np.exp(born_again.ensemble()(X)), np.mean(shares, 0), rtol=1e-5)


def test_permuted_knowledge_keeps_the_confidence_and_permutes_the_rest():
    teacher = mlp(8, 4, seed=1)
    plain = np.asarray(teacher(X))
    permuted = np.concatenate([teachers.PermutedDarkKnowledge(teacher, seed=s)(X).numpy() for s in range(60)])
    plain = np.concatenate([plain] * 60)
    np.testing.assert_allclose(np.sort(permuted, -1), np.sort(plain, -1), rtol=1e-6)
    top = plain.argmax(-1)
    np.testing.assert_array_equal(permuted.argmax(-1), top)
    rows = np.arange(len(top))
    kept = np.mean(np.isclose(permuted, plain).sum(-1) == 4)
    assert kept == pytest.approx(1 / 6, abs=0.05)  # one order of three classes in six
    assert np.all(permuted[rows, top] == plain[rows, top])


def test_no_assistants_equals_one_distiller_and_one_equals_two_in_a_row():
    teacher, assistant, student = mlp(16, 4, seed=1), mlp(8, 4, seed=2), mlp(4, 4, seed=3)
    for assistants in ([], [assistant]):
        chain = regimes.AssistantChain(teacher, [copy_of(each) for each in assistants], copy_of(student))
        chain.compile(sgd(), CROSS_ENTROPY, **EAGER)
        chain.fit(X, Y, **FIT)
        guide = teacher
        for each in assistants:
            guide = by_hand(guide, copy_of(each), LogitsDistillation(4.0))
        same(by_hand(guide, copy_of(student), LogitsDistillation(4.0)), chain.student)


def test_a_densely_guided_student_learns_from_the_mean_loss_over_all_guides():
    teacher, assistant, student = mlp(16, 4, seed=1), mlp(8, 4, seed=2), mlp(4, 4, seed=3)
    chain = regimes.AssistantChain(teacher, [assistant], student, guides="all")
    chain.compile(sgd(), CROSS_ENTROPY, **EAGER)
    before = copy_of(student)
    chain.fit(X, Y, **FIT)
    guides = teachers.Ensemble([teacher, chain.students[0]], combine="mean_loss")
    same(by_hand(guides, before, LogitsDistillation(4.0)), chain.student)


def stages_of(teacher, student):
    hints = Distiller(teacher, student, FeatureDistillation("mse", "dense_0", "dense_0"), student_loss_weight=0.0)
    return [
        regimes.Stage(hints, epochs=2, name="hints"),
        regimes.Stage(Distiller(teacher, student, LogitsDistillation(4.0)), epochs=3, freeze="dense_0"),
    ]


def test_two_stages_equal_two_fits_by_hand_and_frozen_layers_do_not_change():
    teacher, student = mlp(8, 4, seed=1), mlp(8, 4, seed=2)
    other = copy_of(student)
    run = regimes.Stages(stages_of(teacher, student))
    run.compile(sgd(), CROSS_ENTROPY, **EAGER)
    run.fit(X, Y, **{**FIT, "epochs": 1})
    hints = Distiller(teacher, other, FeatureDistillation("mse", "dense_0", "dense_0"), student_loss_weight=0.0)
    hints.compile(sgd(), CROSS_ENTROPY, **EAGER)
    hints.fit(X, Y, **FIT)
    hidden = other.layers[0].get_weights()
    other.layers[0].trainable = False
    by_hand(teacher, other, LogitsDistillation(4.0), epochs=3)
    same(other, student)
    np.testing.assert_array_equal(hidden[0], student.layers[0].get_weights()[0])
    assert student.layers[0].trainable


def test_a_kept_optimizer_continues_with_its_moments():
    teacher, student = mlp(8, 4, seed=1), mlp(8, 4, seed=2)
    whole = by_hand(teacher, copy_of(student), LogitsDistillation(4.0), epochs=4)
    distillers = [Distiller(teacher, student, LogitsDistillation(4.0)) for _ in range(2)]
    run = regimes.Stages([regimes.Stage(distillers[0], 2), regimes.Stage(distillers[1], 2, optimizer="keep")])
    run.compile(sgd(), CROSS_ENTROPY, **EAGER)
    run.fit(X, Y, **FIT)
    same(whole, student)


class Killed(BaseException):
    pass


class KillAfter(keras.callbacks.Callback):
    """Ends the run after this many epochs have started, over all trainings."""

    def __init__(self, epochs):
        super().__init__()
        self.left = epochs

    def on_epoch_begin(self, epoch, logs=None):
        self.left -= 1
        if self.left < 0:
            raise Killed


def driver(kind, directory):
    if kind == "generations":
        return regimes.BornAgain(lambda: mlp(8, 4, seed=5), 2, directory=directory, seed=3)
    if kind == "chain":
        models = [mlp(16, 4, seed=1), [mlp(8, 4, seed=2)], mlp(4, 4, seed=3)]
        return regimes.AssistantChain(*models, directory=directory)
    return regimes.Stages(stages_of(mlp(8, 4, seed=1), mlp(8, 4, seed=2)), directory=directory)


@pytest.mark.parametrize("kind", ["generations", "chain", "stages"])
def test_killed_anywhere_and_restarted_it_ends_with_the_same_bits(kind, tmp_path):
    def run(directory, *callbacks):
        made = driver(kind, directory)
        made.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY, **EAGER)
        made.fit(X, Y, **FIT, callbacks=list(callbacks))
        return made

    whole = run(None)
    for epochs in (1, 3):
        with pytest.raises(Killed):
            run(tmp_path / str(epochs), KillAfter(epochs))
        resumed = run(tmp_path / str(epochs))
        same(whole.student, resumed.student)
        assert resumed.histories == whole.histories
    again = run(tmp_path / "3", KillAfter(0))  # everything is finished: nothing is trained
    same(whole.student, again.student)


def storing(kind, store_answers, directory=None):
    if kind == "generations":
        made = regimes.BornAgain(lambda: mlp(8, 4, seed=5), 2, directory=directory, seed=3, store_answers=store_answers)
    else:
        models = [mlp(16, 4, seed=1), [mlp(8, 4, seed=2)], mlp(4, 4, seed=3)]
        made = regimes.AssistantChain(*models, guides=kind, directory=directory, store_answers=store_answers)
    made.compile(sgd(), CROSS_ENTROPY, **EAGER)
    return made


@pytest.mark.parametrize("kind", ["generations", "nearest", "all"])
def test_stored_predictions_teach_as_their_models_do_and_are_computed_once(kind, tmp_path):
    live, stored = storing(kind, False), storing(kind, True, tmp_path)
    live.fit(X, Y, **FIT)
    with pytest.raises(Killed):
        stored.fit(X, Y, **FIT, callbacks=[KillAfter(5 if kind == "generations" else 3)])  # in the last training
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("answers-*.npy")}
    assert len(files) == 2
    resumed = storing(kind, True, tmp_path)
    history = resumed.fit(X, Y, **FIT, validation_data=batch(8, seed=9)).history
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("answers-*.npy")} == files
    for one, two in zip(live.student.get_weights(), resumed.student.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert "val_student_loss" in history and "val_distillation_loss" not in history
    first = np.load(next(tmp_path.glob("answers-teacher_0-*")))
    teacher = resumed.students[0] if kind == "generations" else mlp(16, 4, seed=1)
    np.testing.assert_allclose(first, teacher(X), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="expected x to be one NumPy array with store_answers=True, got list"):
        storing(kind, True).fit([X, X], Y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: regimes.BornAgain("model"), "BornAgain: expected make_student to be a function"),
        (lambda: regimes.BornAgain(counted(1), 0), "expected num_generations to be an integer >= 1, got 0"),
        (
            lambda: regimes.BornAgain(counted(1), term=LogitsDistillation(2.0), knowledge="confidence"),
            "BornAgain: expected no term with knowledge='confidence'",
        ),
        (lambda: regimes.AssistantChain(mlp(4), [], mlp(4), guides="all"), "expected assistants with guides='all'"),
        (lambda: regimes.AssistantChain(mlp(4), ["m"], mlp(4)), "expected Keras models as teacher, assistants"),
        (lambda: regimes.Stages([]), "Stages: expected a list of regimes.Stage objects"),
        (lambda: regimes.Stage(mlp(4), 0), "Stage: expected epochs to be an integer >= 1, got 0"),
        (lambda: regimes.Stage(mlp(4), optimizer="adam"), "expected optimizer to be one of None, 'keep'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_student_larger_than_its_teacher_is_warned_of():
    with pytest.warns(UserWarning, match="more than the .* of its teacher"):
        regimes.AssistantChain(mlp(4, 4), [mlp(9, 4, seed=1)], mlp(3, 4, seed=2))


def test_a_layer_to_freeze_that_does_not_exist():
    model = mlp(8, 4, seed=2)
    run = regimes.Stages([regimes.Stage(regimes.Alone(model), freeze="block*")])
    run.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"expected a layer of .* to freeze, got 'block\*'"):
        run.fit(X, Y, **FIT)


def test_a_directory_of_another_run_is_refused(tmp_path):
    first = regimes.BornAgain(lambda: mlp(8, 4), directory=tmp_path)
    first.compile("sgd", CROSS_ENTROPY, **EAGER)
    first.fit(X, Y, **{**FIT, "epochs": 1})
    other = driver("chain", tmp_path)
    other.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"expected a directory of this run .* got one of BornAgain"):
        other.fit(X, Y, **FIT)


@pytest.mark.parametrize("count", [1, 2])
def test_confidence_knowledge_weights_the_labels(count):
    with replicas(count).scope():
        teacher, student = mlp(8, 4, seed=1), mlp(4, seed=2)
        kernel, bias = (w.astype("float64") for w in student.get_weights())
        sure = softmax(teacher(X)).max(-1)
        weights, p = sure / sure.mean(), softmax(student(X))
        born_again = regimes.BornAgain(lambda: student, teacher=teacher, knowledge="confidence")
        born_again.compile(keras.optimizers.SGD(0.5), CROSS_ENTROPY)
        born_again.fit(X, Y, batch_size=24, verbose=0)
    expected = np.mean(weights * -np.log(p[np.arange(24), Y]))
    pull = weights[:, None] * (p - np.eye(4)[Y]) / 24
    assert born_again.histories["generation_1"]["loss"][0] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(student.get_weights()[0], kernel - 0.5 * X.T @ pull, atol=2e-6)
    np.testing.assert_allclose(student.get_weights()[1], bias - 0.5 * pull.sum(0), atol=2e-6)
