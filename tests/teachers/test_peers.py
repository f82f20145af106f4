"""Teachers derived from the student: peers, the deepest exit, a gate, a snapshot updated in the step."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, LogitsDistillation, callbacks, teachers
from tests.models import batch, batches, kd, log_softmax, mlp, replicas, softmax

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = batch(16)


def branches(count, classes=4, gate=0):
    x = keras.Input((6,))
    init = [keras.initializers.GlorotUniform(seed=seed) for seed in range(count + 1)]
    sizes = [classes] * count + ([gate] if gate else [])
    heads = [keras.layers.Dense(n, kernel_initializer=init[i], name=f"head_{i}")(x) for i, n in enumerate(sizes)]
    return keras.Model(x, heads)


def outputs_of(model):
    return [np.asarray(each, "float64") for each in model(X)]


def first_loss(teacher, student, loss="kl_divergence"):
    distiller = Distiller(teacher, student, LogitsDistillation(2.0, loss), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.5), run_eagerly=True)  # one step costs less than a trace
    return distiller.fit(X, batch_size=16, verbose=0).history


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("combine", ["pairwise", "mean"])
def test_each_branch_learns_from_the_others(count, combine):
    student = branches(count)
    logits = outputs_of(student)
    kernels = [layer.kernel.numpy().astype("float64") for layer in student.layers[1:]]
    history = first_loss(teachers.Peers(combine), student)
    expected, steps = 0.0, []
    for i, own in enumerate(logits):
        others = [each for j, each in enumerate(logits) if j != i]
        if combine == "pairwise":
            expected += np.mean([kd(each, own, 2.0) for each in others])
            target = np.mean([softmax(each / 2) for each in others], 0)
        else:
            target = np.mean([softmax(each / 2) for each in others], 0)
            expected += kd(2 * np.log(target), own, 2.0).mean()
        steps.append(X.T @ (2 * (softmax(own / 2) - target)) / 16)
    assert history["distillation_loss"][0] == pytest.approx(expected, rel=1e-5)
    assert history["distillation_head_0"][0] > 0
    for layer, kernel, step in zip(student.layers[1:], kernels, steps, strict=True):
        np.testing.assert_allclose(layer.kernel, kernel - 0.5 * step, atol=2e-6)  # no gradient into the others


def test_the_deepest_exit_teaches_and_does_not_learn_from_it():
    student = branches(3)
    before = student.layers[3].get_weights()
    logits = outputs_of(student)
    history = first_loss(teachers.DeepestExit(), student, ["kl_divergence", "kl_divergence", None])
    expected = sum(kd(logits[2], each, 2.0).mean() for each in logits[:2])
    assert history["distillation_loss"][0] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(before[0], student.layers[3].get_weights()[0])


def test_a_gate_mixes_the_branches_and_one_branch_is_itself():
    student = branches(2, gate=2)
    first, second, gate = outputs_of(student)
    weights = softmax(gate)
    mixture = weights[:, :1] * softmax(first) + weights[:, 1:] * softmax(second)
    teacher = teachers.GatedPeers()
    np.testing.assert_allclose(np.exp(teacher.ensemble([first, second], gate)), mixture, rtol=1e-5)
    np.testing.assert_allclose(teacher.ensemble([first], gate[:, :1]), log_softmax(first), atol=1e-6)
    history = first_loss(teacher, student, ["kl_divergence", "kl_divergence", None])
    expected = sum(kd(np.log(mixture), each, 2.0).mean() for each in (first, second))
    assert history["distillation_loss"][0] == pytest.approx(expected, rel=1e-5)


def test_the_virtual_teacher_is_the_formula():
    student = mlp(4, seed=1)
    logits = np.asarray(student(X), "float64")
    p = np.full((16, 4), 0.1 / 3)
    p[np.arange(16), Y] = 0.9
    distiller = Distiller(teachers.VirtualTeacher(0.9), student, LogitsDistillation(20.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    history = distiller.fit(X, Y, batch_size=16, verbose=0).history
    assert history["distillation_loss"][0] == pytest.approx(kd(np.log(p), logits, 20.0).mean(), rel=1e-5)
    with pytest.raises(ValueError, match="expected labels, which VirtualTeacher needs"):
        distiller.fit(X, verbose=0)


@pytest.fixture(scope="module")
def averaged():
    """The weights of a run that stops after each step and averages by hand."""
    other, average = mlp(8, 4, seed=2), mlp(8, 4, seed=2)
    by_hand = Distiller(average, other, LogitsDistillation(2.0))
    by_hand.compile(keras.optimizers.SGD(0.3), CROSS_ENTROPY)
    for step in range(1, 9):
        by_hand.train_on_batch(X[2 * step - 2 : 2 * step], Y[2 * step - 2 : 2 * step])
        if step % 2 == 0:
            moves = step // 2
            decay = min(0.9, 1 - 1 / (moves + 1)) if step <= 6 else 0.9
            pairs = zip(average.get_weights(), other.get_weights(), strict=True)
            average.set_weights([decay * a + (1 - decay) * b for a, b in pairs])
    return average.get_weights()


@pytest.mark.parametrize("case", ["plain", "xla", "many", "eager", "replicas"])
def test_a_snapshot_is_updated_within_the_step(case, averaged):
    modes = {"xla": {"jit_compile": True}, "many": {"steps_per_execution": 4}, "eager": {"run_eagerly": True}}
    with replicas(2 if case == "replicas" else 1).scope():
        student = mlp(8, 4, seed=2)
        teacher = teachers.Snapshot(student, decay=0.9, every_steps=2, warmup_steps=6)
        distiller = Distiller(teacher, student, LogitsDistillation(2.0))
        distiller.compile(keras.optimizers.SGD(0.3), CROSS_ENTROPY, **modes.get(case, {}))
    # The callback must not update it again.
    distiller.fit(batches(X, Y, size=2), verbose=0, callbacks=[teacher.follow(student)])
    for one, two in zip(teacher.model.get_weights(), averaged, strict=True):
        np.testing.assert_allclose(one, two, atol=3e-6)


@pytest.mark.parametrize("kind", ["snapshot", "dropout"])
def test_a_resumed_student_of_a_moving_teacher_ends_with_the_same_bits(kind, tmp_path):
    fit = {"epochs": 2, "batch_size": 8, "shuffle": False, "verbose": 0}

    def made():
        student = mlp(8, 4, seed=2)
        if kind == "snapshot":
            teacher = teachers.Snapshot(student, decay=0.5)
        else:
            init = keras.initializers.GlorotUniform(seed=1)
            head = keras.layers.Dense(4, kernel_initializer=init)
            model = keras.Sequential([keras.Input((6,)), keras.layers.Dropout(0.5), head])
            teacher = teachers.MonteCarloDropout(model, num_samples=2)
        distiller = Distiller(teacher, student, LogitsDistillation(2.0))
        distiller.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY, run_eagerly=True)
        return distiller

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    whole = made()
    whole.fit(X, Y, **fit)
    with pytest.raises(KeyboardInterrupt):
        made().fit(X, Y, callbacks=[callbacks.Backup(tmp_path), Stop()], **fit)
    resumed = made()
    resumed.fit(X, Y, callbacks=[callbacks.Backup(tmp_path)], **fit)
    for one, two in zip(whole.student.get_weights(), resumed.student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: teachers.Peers("median"), "Peers: expected combine to be one of 'pairwise', 'mean'"),
        (lambda: first_loss(teachers.Peers(), mlp(4)), "Peers: expected a student with two or more outputs, got 1"),
        (lambda: first_loss(teachers.GatedPeers(), branches(3)), "last output to be a gate over its 2 other outputs"),
        (lambda: teachers.VirtualTeacher(1.0), "expected correct_probability < 1"),
        (lambda: teachers.DeepestExit()(X), "DeepestExit: expected to be the teacher of a Distiller"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
