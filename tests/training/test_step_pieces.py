"""The parts of a step: two students in one fit with public parts only; custom taps, terms and losses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import DistillationLoss, Distiller, LogitsDistillation, NonFiniteLossError, callbacks
from keras_distill.taps import Taps
from tests.models import batch, batches, copy_of, kd, log_softmax, mlp

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
X, Y = batch(16)


class Chosen(DistillationLoss):
    """A term that overrides its taps: it uses a hidden layer, an input and the outputs."""

    @property
    def student_taps(self):
        return ["dense_0", "features", "final_output"]

    def values(self, teacher_outputs, student_outputs, *, labels=None, mask=None, training=True):
        hidden, features, outputs = student_outputs
        return keras.ops.sum(hidden, -1) + keras.ops.sum(features, -1) + keras.ops.sum(outputs, -1)


class Counted(LogitsDistillation):
    """Counts how often its part of a step is traced."""

    traces = 0

    def values(self, *args, **kwargs):
        self.traces += 1
        return super().values(*args, **kwargs)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_first_step_is_traced_once_and_a_second_fit_not_again(optimizer):
    term = Counted(2.0)
    distiller = Distiller(mlp(4, seed=1), mlp(4, seed=2), term)
    distiller.compile(
        keras.optimizers.get(optimizer), CROSS_ENTROPY, metrics=[keras.metrics.SparseCategoricalAccuracy()]
    )
    for data in ((X, Y), (X, Y), (X[:7], Y[:7])):
        distiller.fit(*data, batch_size=5, epochs=2, verbose=0)
        assert term.traces == 1


def test_an_override_of_taps_is_respected_and_an_input_can_be_tapped():
    inputs = keras.Input((6,), name="features")
    dense = mlp(8, 4, seed=2)
    student = keras.Model(inputs, dense.layers[1](dense.layers[0](inputs)))
    hidden, outputs = np.asarray(dense.layers[0](X)), np.asarray(student(X))
    distiller = Distiller(mlp(4), student, Chosen(), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    expected = (hidden.sum(-1) + X.sum(-1) + outputs.sum(-1)).mean()
    assert distiller.fit(X, batch_size=16, verbose=0).history["loss"][0] == pytest.approx(expected, rel=1e-5)
    for given in (X, {"features": X, "boxes": X[:, :2]}):
        np.testing.assert_array_equal(Taps(student, ["features"])(given)[1]["features"], X)


class Boxes(DistillationLoss):
    """A term that reads a field of the batch that is no input of a model."""

    def values(self, teacher_outputs, student_outputs, *, labels=None, mask=None, training=True, batch=None):
        return keras.ops.sum(batch.extra["boxes"], -1) + 0.0 * keras.ops.sum(student_outputs, -1)


def test_a_term_reads_extra_fields_of_the_batch():
    boxes = np.arange(32, dtype="float32").reshape(16, 2)
    inputs = keras.Input((6,), name="features")
    teacher, student = (keras.Model({"features": inputs}, keras.layers.Dense(4)(inputs)) for _ in "ts")
    distiller = Distiller(teacher, student, Boxes(), student_loss_weight=0.0)
    distiller.compile("sgd")
    data = tf.data.Dataset.from_tensor_slices({"features": X, "boxes": boxes}).batch(16)
    assert distiller.fit(data, verbose=0).history["loss"][0] == pytest.approx(boxes.sum(-1).mean())


class OwnLoss(keras.Sequential):
    """A student that encodes its labels itself, as detectors do."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, (y + 1) % 4, y_pred, sample_weight, training)


def test_a_students_own_loss_is_used_if_requested(tmp_path):
    init = keras.initializers.GlorotUniform(seed=2)
    penalty = keras.regularizers.L2(0.1)
    head = keras.layers.Dense(4, kernel_initializer=init, kernel_regularizer=penalty)
    student = OwnLoss([keras.Input((6,)), head])
    logits, kernel = np.asarray(student(X), "float64"), head.kernel.numpy()
    distiller = Distiller(mlp(4, seed=1), student, LogitsDistillation(2.0), student_loss_weight=0.5)
    with pytest.raises(ValueError, match=r"a compiled student for loss='student', got an uncompiled one"):
        distiller.compile("sgd", "student")
    student.compile("sgd", CROSS_ENTROPY)
    distiller.compile(keras.optimizers.SGD(0.0), "student", metrics=["accuracy"])
    history = distiller.fit(X, Y, batch_size=16, verbose=0).history
    expected = -log_softmax(logits)[np.arange(16), (Y + 1) % 4].mean() + 0.1 * (kernel**2).sum()
    assert history["student_loss"][0] == pytest.approx(expected, rel=1e-5)
    taught = kd(distiller.teacher(X), logits, 2.0).mean()
    assert history["loss"][0] == pytest.approx(0.5 * expected + 0.5 * taught, rel=1e-5)  # the penalty is added once


def test_each_term_and_each_output_has_its_log():
    x = keras.Input((6,))
    teacher, student = (
        keras.Model(x, {name: keras.layers.Dense(4, name=f"{name}_{kind}")(x) for name in ("left", "right")})
        for kind in ("teacher", "student")
    )
    terms = [LogitsDistillation(2.0, name="soft"), LogitsDistillation(1.0, loss={"left": "mse", "right": None})]
    distiller = Distiller(teacher, student, terms, [1.0, 3.0], student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    heard, own = ({k: np.asarray(v, "float64") for k, v in model(X).items()} for model in (teacher, student))
    soft = {name: kd(heard[name], own[name], 2.0).mean() for name in heard}
    mse = ((heard["left"] - own["left"]) ** 2).mean()
    history = {k: v[0] for k, v in distiller.fit(X, batch_size=16, verbose=0).history.items()}
    assert history["soft_loss"] == pytest.approx(sum(soft.values()), rel=1e-5)
    assert history["logits_distillation_loss"] == pytest.approx(mse, rel=1e-5)
    assert history["distillation_left"] == pytest.approx(soft["left"] + 3 * mse, rel=1e-5)
    assert history["distillation_right"] == pytest.approx(soft["right"], rel=1e-5)


def test_fit_without_labels_and_with_metrics():
    distiller = Distiller(mlp(4, seed=1), mlp(4, seed=2), LogitsDistillation(), student_loss_weight=0.0)
    distiller.compile("sgd", CROSS_ENTROPY, metrics=["accuracy"])
    history = distiller.fit(X, epochs=2, verbose=0, validation_data=(X, Y)).history
    wanted = np.mean(np.asarray(distiller.student(X)).argmax(-1) == Y)
    assert "accuracy" not in history and history["val_accuracy"][-1] == pytest.approx(wanted)


def test_a_fit_after_a_resumed_one_starts_at_epoch_0(tmp_path):
    def made():
        distiller = Distiller(mlp(4, seed=1), mlp(4, seed=2), LogitsDistillation(), student_loss_weight=0.0)
        distiller.compile("sgd")
        return distiller

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made().fit(X, epochs=3, verbose=0, callbacks=[callbacks.Backup(tmp_path), Stop()])
    resumed = made()
    resumed.fit(X, epochs=3, verbose=0, callbacks=[callbacks.Backup(tmp_path)])
    assert len(resumed.fit(X, epochs=2, verbose=0).history["loss"]) == 2


ACTIVATIONS = ["relu", "gelu", "tanh"]


def network(kind, activation):
    init = keras.initializers.GlorotUniform(seed=3)
    layers = {
        "dense": [keras.Input((6,)), keras.layers.Dense(8, activation, kernel_initializer=init)],
        "conv": [keras.Input((6,)), keras.layers.Reshape((6, 1)),
                 keras.layers.Conv1D(4, 3, activation=activation, kernel_initializer=init), keras.layers.Flatten()],
        "norm": [keras.Input((6,)), keras.layers.Dense(8, kernel_initializer=init), keras.layers.BatchNormalization(),
                 keras.layers.Activation(activation)],
        "attention": [keras.Input((6,)), keras.layers.Reshape((3, 2)), keras.layers.Dense(4, kernel_initializer=init),
                      Attends(), keras.layers.Activation(activation), keras.layers.Flatten()],
    }[kind]  # fmt: skip
    return keras.Sequential([*layers, keras.layers.Dense(4, kernel_initializer=init)])


class Attends(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = keras.layers.MultiHeadAttention(2, 4)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return self.attention(x, x)


KINDS = [("dense", "relu"), ("dense", "gelu"), ("dense", "tanh"), ("conv", "relu"), ("norm", "relu")]


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}, {"steps_per_execution": 4}], ids=str)
@pytest.mark.parametrize(("kind", "activation"), [*KINDS, ("attention", "relu")])
def test_no_non_finite_input_reaches_a_weight(kind, activation, mode):
    """A ReLU turns a NaN into 0 in the forward pass: only the kernel's gradient is NaN."""
    student = network(kind, activation)
    start = student.get_weights()
    teacher = keras.Sequential([keras.Input((6,)), keras.layers.Lambda(lambda t: keras.ops.zeros_like(t)[:, :4])])
    distiller = Distiller(teacher, student, LogitsDistillation(2.0))
    distiller.compile(keras.optimizers.Adam(0.05), CROSS_ENTROPY, **mode)
    for bad in (np.nan, np.inf):  # one trace for both
        x = X.copy()
        x[13, 2] = bad
        try:
            distiller.fit(batches(x, Y, size=4), verbose=0)
        except NonFiniteLossError as problem:
            assert "at step 3" in str(problem)
        else:
            assert (activation, bad) == ("tanh", np.inf)  # tanh of infinity is 1: its gradient is 0
        assert all(np.isfinite(weight).all() for weight in student.get_weights())
        student.set_weights(start)
        for variable in distiller.optimizer.variables[2:]:  # the moments, after the step and the learning rate
            variable.assign(keras.ops.zeros_like(variable))
        distiller.optimizer.iterations.assign(0)


def test_the_inputs_are_named_where_only_a_gradient_fails():
    x = X.copy()
    x[3, 0] = np.nan
    teacher = keras.Sequential([keras.Input((6,)), keras.layers.Lambda(lambda t: keras.ops.zeros_like(t)[:, :4])])
    positive = keras.layers.Lambda(lambda t: keras.ops.where(t > 0, t, 0.0))  # some ReLU kernels propagate a NaN
    student = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), positive, keras.layers.Dense(4)])
    distiller = Distiller(teacher, student, LogitsDistillation(2.0))
    distiller.compile("adam", CROSS_ENTROPY)
    with pytest.raises(NonFiniteLossError, match="in the inputs at step 0"):
        distiller.fit(x, Y, verbose=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t, s: Distiller([t, t], s, LogitsDistillation()), r"Combine several teachers: teachers.Ensemble"),
        (lambda t, s: Distiller(t, s, LogitsDistillation(), alpha=0.3), r"expected student_loss_weight, got alpha="),
        (lambda t, s: Distiller(t, s, student_loss_fn=CROSS_ENTROPY, distillation_losses=LogitsDistillation()),
         r"expected compile\(loss=...\), got student_loss_fn="),
        (lambda t, s: Distiller(t, s, LogitsDistillation(), 0.3), "distillation_loss_weights to be a list"),
        (lambda t, s: Distiller(t, s, keras.losses.KLDivergence()), "Wrap a loss in a term"),
        (lambda t, s: Distiller(t, s, LogitsDistillation(keras.losses.KLDivergence())),
         r"expected temperature > 0, got KLDivergence\. A loss is given by name"),
        (lambda t, s: Distiller(t, s, LogitsDistillation("mse")),
         r"got mse\. A loss is given by name: LogitsDistillation\(loss="),
        (lambda t, s: Distiller(t, s, LogitsDistillation()).compile("sgd", student_loss_fn=CROSS_ENTROPY),
         r"Distiller\.compile: expected loss, got student_loss_fn="),
        (lambda t, s: Distiller(t, s, LogitsDistillation()).compile("sgd", CROSS_ENTROPY, alpha=0.1),
         r"expected student_loss_weight in Distiller\(\.\.\.\), got alpha="),
    ],
)  # fmt: skip
def test_arguments_of_other_libraries_get_an_error_that_names_the_equivalent(make, message):
    with pytest.raises(ValueError, match=message):
        make(mlp(4, seed=1), mlp(4, seed=2))


def test_impossible_data_raise_a_clear_error():
    distiller = Distiller(mlp(4, seed=1), mlp(4, seed=2), LogitsDistillation())
    with pytest.raises(TypeError, match="unexpected keyword argument 'optimiser'"):
        distiller.compile(optimiser="sgd")
    distiller.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"expected batches of examples, got single examples\. Batch the dataset"):
        distiller.fit(tf.data.Dataset.from_tensor_slices((X, Y)))
    for x in (X[:, :-1], tf.data.Dataset.from_tensors((X[:, :-1], Y))):
        with pytest.raises(
            ValueError, match=r"expected inputs of shape \(6,\) for the teacher .*teachers\.Preprocessed"
        ):
            distiller.fit(x, Y if x is X else None)
    with pytest.raises(ValueError, match=r"got an unknown shape\. Give Dataset\.from_generator an output_signature"):
        distiller.fit(tf.data.Dataset.from_generator(lambda: [(X, Y)], (tf.float32, tf.int64)))
    with pytest.raises(ValueError, match=r"expected numeric labels, got text\. Number the classes"):
        distiller.fit(X, np.array(["cat"] * 16))
    with pytest.raises(ValueError, match=r"expected sample_weight without NaN, got 1 NaN"):
        distiller.fit(X, Y, sample_weight=np.array([np.nan] + [1.0] * 15))
    for texts in (["a cat", "a dog"], np.array(["a cat"]), tf.data.Dataset.from_tensors((tf.constant(["a"]), [0]))):
        with pytest.raises(ValueError, match=r"expected numbers as inputs of .*, got text\. Number the words first"):
            distiller.fit(texts)
    with pytest.warns(UserWarning, match="is not built, so it has no trained weights yet"):
        Distiller(keras.Sequential([keras.layers.Dense(4)]), mlp(4, seed=2), LogitsDistillation())
    frozen = copy_of(mlp(4, seed=3))
    frozen.trainable = False
    distiller = Distiller(mlp(4, seed=1), frozen, LogitsDistillation())
    distiller.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(ValueError, match=r"none\. Set student.trainable = True"):
        distiller.fit(X, Y, verbose=0)


def test_labels_of_padding_are_no_labels_out_of_range():
    x = np.ones((2, 3, 6), "float32")
    x[1, 1:] = 0.0
    layers = [keras.Input((3, 6)), keras.layers.Masking(), keras.layers.Dense(4)]
    student = keras.Sequential(layers)
    teacher = keras.Sequential([keras.Input((3, 6)), keras.layers.Dense(4)])
    distiller = Distiller(teacher, student, LogitsDistillation(2.0, "decoupled_soft_targets"), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    labels = np.array([[0, 1, 2], [3, -100, -100]])
    padded = distiller.fit(x, labels, verbose=0).history["loss"][0]
    labels[1, 1:] = 0
    assert padded == distiller.fit(x, labels, verbose=0).history["loss"][0]
    labels[0, 0] = 7
    with pytest.raises(ValueError, match="expected labels from 0 to 3, got 7"):
        distiller.fit(x, labels, verbose=0)
