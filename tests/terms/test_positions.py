"""Which positions of a sequence are used: a mask among the inputs, ignored labels, weights, more padding."""

import warnings

import keras
import numpy as np
import pytest

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, losses
from keras_distill.terms import PixelDistillation
from keras_distill.training import Batch
from tests.models import kd

RNG = np.random.default_rng(3)
LENGTHS = np.array([4, 1, 3])
MASK = np.arange(4)[None] < LENGTHS[:, None]
TOKENS = np.where(MASK, RNG.integers(1, 9, (3, 4)), 0)
LABELS = np.where(RNG.random((3, 4)) < 0.5, RNG.integers(0, 5, (3, 4)), -1)


def network(seed, mask="padding_mask"):
    """Like a keras-hub model: the mask is a separate input, and the outputs have no Keras mask."""
    init = keras.initializers.RandomNormal(seed=seed)
    inputs = {"tokens": keras.Input((None,), dtype="int32"), mask: keras.Input((None,), dtype="int32")}
    states = keras.layers.Embedding(9, 6, embeddings_initializer=init, name="states")(inputs["tokens"])
    states = states + 0 * keras.ops.cast(inputs[mask], "float32")[..., None]
    return keras.Model(inputs, keras.layers.Dense(5, kernel_initializer=init)(states))


def distiller(term, *, mask="padding_mask", loss=None, share=0.0):
    made = Distiller(network(1, mask), network(2, mask), term, student_loss_weight=share)
    made.compile("sgd", loss)
    return made


def value(made, inputs, labels=None, weights=None):
    return float(made.measure(Batch(inputs, labels, weights)).distillation_loss)


def oracle(made, inputs, counted, temperature=2.0):
    theirs, ours = (np.asarray(model(inputs)) for model in (made.teacher, made.student))
    return np.mean(kd(theirs, ours, temperature)[counted])


@pytest.mark.parametrize(
    ("name", "mask_input"), [("padding_mask", "auto"), ("there", "there"), ("attention_mask", "auto")]
)
def test_the_mask_is_found_among_the_inputs(name, mask_input):
    made = distiller(LogitsDistillation(2.0, mask_input=mask_input), mask=name)
    inputs = {"tokens": TOKENS, name: MASK.astype("int32")}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*counts every position")
        assert value(made, inputs) == pytest.approx(oracle(made, inputs, MASK), rel=1e-5)
    everything = distiller(LogitsDistillation(2.0, mask_input=None), mask=name)
    assert value(everything, inputs) == pytest.approx(oracle(made, inputs, np.ones_like(MASK)), rel=1e-5)
    again = LogitsDistillation.from_config(made.distillation_losses[0].get_config())
    assert again.mask_input == mask_input


def test_feature_losses_use_the_mask_of_the_inputs():
    for loss in ("mse", losses.HiddenStates()):
        made = distiller(FeatureDistillation(loss, "states", "states"))
        inputs = {"tokens": TOKENS, "padding_mask": MASK.astype("int32")}
        theirs, ours = (model.get_layer("states").embeddings.numpy()[TOKENS] for model in (made.teacher, made.student))
        assert value(made, inputs) == pytest.approx(np.mean(((theirs - ours) ** 2)[MASK]), rel=1e-5)


def test_nothing_is_warned_of_where_ignored_labels_choose_the_positions():
    made = distiller(LogitsDistillation(2.0, ignore_label=-1), mask="there")
    inputs = {"tokens": TOKENS, "there": MASK.astype("int32")}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*counts every position")
        assert value(made, inputs, LABELS) == pytest.approx(oracle(made, inputs, LABELS >= 0), rel=1e-5)


def test_unmasked_padding_is_warned_of_once():
    made = distiller(LogitsDistillation(2.0), mask="there")
    inputs = {"tokens": TOKENS, "there": MASK.astype("int32")}
    with pytest.warns(UserWarning, match=r"counts every position of the sequences, padding too.*mask_input=") as said:
        value(made, inputs)
        value(made, inputs)
    assert len([each for each in said if "counts every position" in str(each.message)]) == 1
    with pytest.raises(ValueError, match=r"LogitsDistillation: expected an input 'their' for mask_input, got only"):
        value(distiller(LogitsDistillation(mask_input="their"), mask="there"), inputs)
    with pytest.raises(ValueError, match="mask_input to be the name of an input"):
        LogitsDistillation(mask_input=3)


def test_positions_ignored_by_the_supervised_loss_are_excluded_from_terms_on_outputs():
    ignoring = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    inputs = {"tokens": TOKENS, "padding_mask": np.ones_like(TOKENS)}
    for term, counted in (
        (LogitsDistillation(2.0), LABELS >= 0),
        (LogitsDistillation(2.0, losses.LogitMatching()), LABELS >= 0),
        (LogitsDistillation(2.0, ignore_label=None), np.ones_like(MASK)),
        (LogitsDistillation(2.0, ignore_label=0), LABELS != 0),
    ):
        made = distiller(term, loss=ignoring, share=0.5)
        labels = LABELS if term.ignore_label != 0 else np.abs(LABELS)
        counted = counted if term.ignore_label != 0 else labels != 0
        expected = oracle(made, inputs, counted)
        if isinstance(term.loss, losses.LogitMatching):
            theirs, ours = (np.asarray(model(inputs)) for model in (made.teacher, made.student))
            expected = np.mean(np.asarray(losses.logit_matching(teacher_logits=theirs, student_logits=ours))[counted])
        assert value(made, inputs, labels) == pytest.approx(expected, rel=1e-5)
    features = distiller(FeatureDistillation("mse", "states", "states"), loss=ignoring, share=0.5)
    theirs, ours = (
        model.get_layer("states").embeddings.numpy()[TOKENS] for model in (features.teacher, features.student)
    )
    assert value(features, inputs, LABELS) == pytest.approx(np.mean((theirs - ours) ** 2), rel=1e-5)


def test_unlabelled_examples_still_learn_from_the_teacher():
    teacher, student = (keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)]) for _ in "ts")
    made = Distiller(teacher, student, LogitsDistillation(2.0))
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1))
    x = RNG.normal(size=(3, 6)).astype("float32")
    expected = np.mean(kd(teacher(x), student(x), 2.0))
    assert value(made, x, np.array([0, -1, 3])) == pytest.approx(expected, rel=1e-5)


def test_void_pixels_are_excluded_from_the_term():
    maps = [keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Conv2D(4, 1)]) for _ in "ts"]
    x, y = RNG.normal(size=(2, 2, 2, 3)).astype("float32"), RNG.integers(0, 4, (2, 2, 2))
    y[0, 0] = 255
    made = Distiller(*maps, PixelDistillation(1.0))
    made.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255))
    theirs, ours = (np.asarray(model(x)) for model in maps)
    assert value(made, x, y) == pytest.approx(np.mean(kd(theirs, ours, 1.0)[y != 255]), rel=1e-5)


@pytest.mark.parametrize("loss", ["kl_divergence", "mse", losses.NormalizedSoftTargets(), losses.JensenShannon()])
def test_more_padding_changes_nothing(loss):
    """By a mask, by weights of 0, and by labels that are ignored; a weight of 2 is one position, counted twice."""
    found = []
    for more in (0, 3):
        tokens, there = (np.pad(each, ((0, 0), (0, more))) for each in (TOKENS, MASK))
        labels = np.where(there, np.pad(np.abs(LABELS), ((0, 0), (0, more))), 0)
        inputs = {"tokens": tokens, "padding_mask": there.astype("int32")}
        weights = np.where(there, np.pad(1.0 + LABELS % 2, ((0, 0), (0, more))), 0.0).astype("float32")
        by_mask = distiller(LogitsDistillation(2.0, loss))
        by_weight = distiller(LogitsDistillation(2.0, loss, mask_input=None))
        found.append(
            [
                value(by_mask, inputs, labels),
                value(by_mask, inputs, labels, weights),
                value(by_weight, inputs, labels, weights),
            ]
        )
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[0][2] == pytest.approx(found[0][1], rel=1e-5)


@pytest.mark.parametrize("loss", ["kl_divergence", "mse"])
@pytest.mark.parametrize("by", ["mask", "weight"])
def test_accumulated_gradients_are_those_of_the_whole_batch(by, loss):
    """Two batches of one and of seven tokens: with the counted fraction, each token has the same weight."""
    lengths = np.array([1, 0, 4, 3])
    there = np.arange(4)[None] < lengths[:, None]
    tokens = np.where(there, RNG.integers(1, 9, (4, 4)), 0)
    labels = np.where(there, RNG.integers(0, 5, (4, 4)), -1)
    inputs = {"tokens": tokens, "padding_mask": (there if by == "mask" else np.ones_like(there)).astype("int32")}
    weights = None if by == "mask" else there.astype("float32")
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def trained(fraction, steps):
        term = LogitsDistillation(2.0, loss, counted_fraction=fraction)
        made = Distiller(network(1), network(2), LogitsDistillation.from_config(term.get_config()))
        supervised = losses.WhereLabelled(crossentropy, labelled_fraction=fraction)
        made.compile(keras.optimizers.SGD(0.5, gradient_accumulation_steps=steps), supervised, run_eagerly=True)
        made.fit(inputs, labels, sample_weight=weights, batch_size=4 // (steps or 1), shuffle=False, verbose=0)
        return np.concatenate([np.ravel(each) for each in made.student.get_weights()])

    start = np.concatenate([np.ravel(each) for each in network(2).get_weights()])
    whole, exact, counting = trained(None, None), trained(there.mean(), 2), trained(None, 2)
    assert np.linalg.norm(exact - whole) < 1e-5 * np.linalg.norm(whole - start)
    assert np.linalg.norm(counting - whole) > 0.1 * np.linalg.norm(whole - start)


@pytest.mark.parametrize("fraction", [0.0, 1.5, float("nan"), "half"])
def test_a_counted_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="LogitsDistillation: expected counted_fraction"):
        LogitsDistillation(counted_fraction=fraction)
