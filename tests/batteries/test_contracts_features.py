"""Properties of every loss on features, from one table."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses

MAPS = ((5, 6, 6, 4), (5, 6, 6, 4))
MAPS_APART = ((5, 4, 4, 3), (5, 6, 6, 4))  # student, teacher
STEPS = ((5, 6, 4), (5, 6, 4))
VECTORS = ((5, 6), (5, 6))
HEADS = ((5, 2, 4, 4), (5, 2, 4, 4))


@dataclasses.dataclass
class Row:
    """One loss with options.

    Attributes:
        loss: the class, with options.
        shapes: the student's and the teacher's.
        layers: how many of each it takes as a list; 0 for plain tensors.
        zero: whether it is zero where student = teacher.
        mask: the rank of the shapes with which a mask works; None where there is none.
        own: whether the value of an example depends on it alone.
        order: whether the order of the batch is free.
        smooth: the step of the finite differences; None for losses whose kinks they would meet.
    """

    loss: keras.losses.Loss
    shapes: tuple = MAPS
    layers: int = 0
    zero: bool = True
    mask: tuple | None = STEPS
    own: bool = True
    order: bool = True
    smooth: float | None = 0.02


ROWS = [
    Row(losses.HintMatching()),
    Row(losses.HintMatching("mae"), smooth=1e-3),
    Row(losses.HintMatching("cosine")),
    Row(losses.HintMatching("huber"), STEPS),
    Row(losses.HintMatching(mode="paper"), VECTORS),
    Row(losses.AttentionTransfer(), MAPS_APART),
    Row(losses.AttentionTransfer(mode="paper"), STEPS),
    Row(losses.AttentionTransfer(p=3, absolute=False), MAPS_APART),
    Row(losses.AttentionTransfer(p=1), MAPS_APART, smooth=1e-3),
    Row(losses.NeuronSelectivity(), MAPS_APART),
    Row(losses.NeuronSelectivity("linear"), MAPS_APART),
    Row(losses.NeuronSelectivity("gaussian"), MAPS_APART),
    Row(losses.FactorTransfer(), MAPS_APART, smooth=1e-3),
    Row(losses.FactorTransfer("paper", distance_power=2.0)),
    Row(losses.ActivationBoundaries(scale=1.0), zero=False, smooth=1e-3),
    Row(losses.ActivationBoundaries(), VECTORS, layers=3, zero=False, smooth=1e-3),
    Row(losses.MarginRelu(-0.3), zero=False, smooth=1e-3),
    Row(losses.MarginRelu([-0.1, -0.2, -0.3, -0.4]), STEPS, zero=False, smooth=1e-3),
    Row(losses.HierarchicalContext(), mask=None),
    Row(losses.HierarchicalContext([2]), STEPS, layers=2, mask=None),
    Row(losses.SolutionFlow(), layers=2),
    Row(losses.SolutionFlow("max", "column_norm"), layers=3),
    Row(losses.SolutionFlow(distance="sum_square"), STEPS, layers=2),
    Row(losses.SingularVectors(), layers=2, smooth=3e-4),
    Row(losses.SingularVectors(2), STEPS, layers=2, smooth=3e-4),
    Row(losses.SimilarityPreserving(), MAPS_APART, own=False),
    Row(losses.SimilarityPreserving("l1"), VECTORS, own=False, smooth=1e-3),
    Row(losses.ProbabilisticTransfer(), MAPS_APART, own=False),
    Row(losses.ProbabilisticTransfer("row"), VECTORS, own=False),
    Row(losses.CorrelationCongruence(), MAPS_APART, own=False),
    Row(losses.CorrelationCongruence(kernel="bilinear", variant="frobenius", normalize=False), VECTORS, own=False),
    Row(losses.CorrelationCongruence(variant="neighbour"), VECTORS, own=False, order=False, smooth=1e-3),
    Row(losses.RelationalDistance(), MAPS_APART, own=False),
    Row(losses.RelationalDistance(squared=True), VECTORS, own=False),
    Row(losses.RelationalAngle(), MAPS_APART, own=False),
    Row(losses.ContrastiveRepresentation(0.5), VECTORS, zero=False, own=False),
    Row(losses.AttentionMaps(), HEADS),
    Row(losses.AttentionMaps("kl", padding_score=None), HEADS),
    Row(losses.HiddenStates(), STEPS),
    Row(losses.HiddenStates("cosine"), STEPS),
    Row(losses.HiddenStates("patient"), STEPS, mask=None),
    Row(losses.ChannelDistributions()),
    Row(losses.ChannelDistributions(1.0), STEPS),
    Row(losses.CenterHeatmaps()),
    Row(losses.CenterHeatmaps(0.0), STEPS),
    Row(losses.PixelSimilarities(), MAPS_APART),
    Row(losses.PixelSimilarities(3), STEPS),
    Row(losses.NormalizedFeatures(), own=False),
    Row(losses.NormalizedFeatures(), VECTORS, own=False),
    Row(losses.SelfAttentionRelation(2), STEPS, layers=3),
    Row(losses.SelfAttentionRelation(2, ("vv",)), STEPS),
]
IDS = [f"{type(row.loss).__name__}-{index}" for index, row in enumerate(ROWS)]


def rows(wanted):
    """Run a test on the rows that it is for."""
    kept = [index for index, row in enumerate(ROWS) if wanted(row)]
    return pytest.mark.parametrize("row", [ROWS[i] for i in kept], ids=[IDS[i] for i in kept])


every = rows(lambda row: True)
# Tracing and compiling take seconds: once for each class.
one_of_each = rows(lambda row: row is next(each for each in ROWS if type(each.loss) is type(row.loss)))


def draw(row, seed=0, scale=1.0, shapes=None):
    """Random student and teacher features, tensors or lists of tensors."""
    rng = np.random.default_rng(seed)
    made = []
    for shape in shapes or row.shapes:
        each = [tf.constant(scale * rng.normal(size=shape).astype("float32")) for _ in range(max(1, row.layers))]
        made.append(each if row.layers else each[0])
    return made


def change(features, function):
    return [function(each) for each in features] if isinstance(features, list) else function(features)


def mean(row, student, teacher, **options):
    return tf.reduce_mean(row.loss.values(teacher, student, **options))


def gradient(row, student, teacher, **options):
    """Value and gradients with respect to every student tensor, one after the other."""
    layers = student if isinstance(student, list) else [student]
    with tf.GradientTape() as tape:
        tape.watch(layers)
        value = mean(row, student, teacher, **options)
    return value, [g if g is not None else tf.zeros_like(x) for x, g in zip(layers, tape.gradient(value, layers))]  # noqa: B905


@every
def test_values_are_float32_one_per_example_or_one_in_all(row):
    student, teacher = draw(row)
    values = row.loss.values(teacher, student)
    assert values.dtype == "float32"
    assert values.shape == (() if row.loss.needs_batch else (5,))
    np.testing.assert_allclose(mean(row, student, teacher), np.mean(values), rtol=1e-6)
    if not row.layers:
        np.testing.assert_allclose(row.loss(teacher, student), np.mean(values), rtol=1e-6)


@every
def test_function_and_class_are_twins(row):
    """The function has the class's arguments, names and defaults, and gives the same values."""
    name = type(row.loss).__name__
    named = {"HintMatching": "hint", "AttentionMaps": "attention_maps", "HiddenStates": "hidden_states"}
    function = getattr(
        losses, named.get(name, "".join("_" + c.lower() if c.isupper() else c for c in name).removeprefix("_"))
    )
    parameters = inspect.signature(function).parameters
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in parameters.values())
    own = inspect.signature(type(row.loss)).parameters
    for key in set(own) - {"name", "reduction", "gather_replicas"}:
        if own[key].default is not inspect.Parameter.empty:
            assert own[key].default == parameters[key].default, key
    options = {key: value for key, value in row.loss.get_config().items() if key in parameters}
    student, teacher = draw(row)
    got = function(teacher_features=teacher, student_features=student, **options)
    np.testing.assert_array_equal(got, row.loss.values(teacher, student))


@rows(lambda row: row.zero)
def test_zero_where_student_is_teacher(row):
    student, _ = draw(row, shapes=(row.shapes[0], row.shapes[0]))
    value, gradients = gradient(row, student, student)
    np.testing.assert_allclose(value, 0.0, atol=2e-8)
    assert max(np.abs(g).max() for g in gradients) < 1e-5


@every
def test_no_gradient_reaches_the_teacher(row):
    student, teacher = draw(row)
    layers = teacher if isinstance(teacher, list) else [teacher]
    with tf.GradientTape() as tape:
        tape.watch(layers)
        value = mean(row, student, teacher)
    assert all(g is None or np.abs(g).max() == 0.0 for g in tape.gradient(value, layers))


@every
def test_gradient_agrees_with_finite_differences(row):
    student, teacher = draw(row, seed=3)
    _, gradients = gradient(row, student, teacher)
    layers = student if isinstance(student, list) else [student]
    rng = np.random.default_rng(4)
    for _ in range(2):
        # Along the gradient plus a random direction: large compared with rounding.
        ways = []
        for g in gradients:
            g = g.numpy()
            ways.append(g / np.abs(g).max() + 0.3 * rng.normal(size=g.shape))
        expected = sum(float(np.sum(np.asarray(g, "f8") * w)) for g, w in zip(gradients, ways, strict=True))

        def at(step, ways=ways):
            moved = [x + np.float32(step) * w.astype("float32") for x, w in zip(layers, ways, strict=True)]
            return float(mean(row, moved if row.layers else moved[0], teacher))

        h = row.smooth
        got = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        noise = 4e-7 * max(abs(at(0.0)), 1e-3) / h
        assert abs(got - expected) <= 2e-3 * abs(expected) + noise, (got, expected, noise)


@every
def test_values_do_not_depend_on_the_order_of_the_batch(row):
    student, teacher = draw(row)
    order = np.array([3, 0, 4, 1, 2])
    turned = [change(side, lambda x: tf.gather(x, order)) for side in (student, teacher)]
    values, got = row.loss.values(teacher, student), row.loss.values(turned[1], turned[0])
    if row.loss.needs_batch:
        same = np.allclose(got, values, rtol=1e-5, atol=1e-8)
        assert same == row.order
    else:
        np.testing.assert_allclose(got, tf.gather(values, order), rtol=1e-5, atol=1e-8)


@every
def test_the_value_of_an_example_does_not_depend_on_its_batch(row):
    """The value of an example is the same in any batch, so that weights remove and repeat examples."""
    student, teacher = draw(row)
    few = [change(side, lambda x: x[1:4]) for side in (student, teacher)]
    values, got = row.loss.values(teacher, student).numpy(), row.loss.values(few[1], few[0])
    if row.own:
        np.testing.assert_allclose(got, values[1:4], rtol=1e-5, atol=1e-8)
        if not row.layers:
            weighted = row.loss(teacher, student, sample_weight=np.float32([0, 1, 2, 0, 0]))
            np.testing.assert_allclose(weighted, (values[1] + 2 * values[2]) / 5, rtol=1e-5)
    else:
        assert not np.allclose(np.mean(got), np.mean(values[1:4] if values.ndim else values), rtol=1e-4)


@every
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_finite_at_extreme_scales(row, scale):
    student, teacher = draw(row, scale=scale)
    value, gradients = gradient(row, student, teacher)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
    still, _ = draw(row, seed=1)
    for silent in (change(student, tf.zeros_like), change(student, tf.ones_like)):
        value, gradients = gradient(row, silent, still)
        assert np.isfinite(value) and all(np.abs(g).max() < 1e3 for g in gradients)


@one_of_each
def test_graph_and_half_precision_are_eager(row):
    student, teacher = draw(row)
    value, gradients = gradient(row, student, teacher)
    unknown = [change(side, lambda x: tf.TensorSpec((None, *x.shape[1:]), tf.float32)) for side in (student, teacher)]
    traced = tf.function(lambda s, t: gradient(row, s, t), input_signature=unknown, autograph=False)
    graph_value, graph_gradients = traced(student, teacher)
    np.testing.assert_allclose(graph_value, value, rtol=2e-6, atol=1e-9)
    for got, wanted in zip(graph_gradients, gradients, strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())
    halves = [change(side, lambda x: tf.cast(x, "float16")) for side in (student, teacher)]
    rounded = [change(side, lambda x: tf.cast(x, "float32")) for side in halves]
    np.testing.assert_array_equal(row.loss.values(*halves[::-1]), row.loss.values(*rounded[::-1]))


@pytest.mark.slow
@one_of_each
def test_xla_is_eager(row):
    student, teacher = draw(row)
    value, gradients = gradient(row, student, teacher)
    compiled = tf.function(lambda s, t: gradient(row, s, t), jit_compile=True, autograph=False)
    got_value, got = compiled(student, teacher)
    np.testing.assert_allclose(got_value, value, rtol=1e-5, atol=1e-8)
    for got_layer, wanted in zip(got, gradients, strict=True):
        np.testing.assert_allclose(got_layer, wanted, atol=5e-5 * np.abs(wanted).max())


@every
def test_the_config_is_restored(row):
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(row.loss))
    assert type(twin) is type(row.loss) and twin.get_config() == row.loss.get_config()
    student, teacher = draw(row)
    np.testing.assert_array_equal(twin.values(teacher, student), row.loss.values(teacher, student))


def masked_shapes(row):
    return HEADS if isinstance(row.loss, losses.AttentionMaps) else row.mask


@rows(lambda row: row.mask is not None)
def test_masked_positions_never_count(row):
    shapes = masked_shapes(row)
    student, teacher = draw(row, shapes=shapes)
    time = shapes[0][-2] if shapes is HEADS else shapes[0][1]
    mask = tf.constant(np.arange(time) < np.array([[time], [2], [3], [1], [time - 1]]))

    def spoil(x):
        garbage = tf.constant(np.random.default_rng(9).normal(size=x.shape).astype("float32") * 1e3)
        seen = mask[:, None, :, None] & mask[:, None, None, :] if shapes is HEADS else mask[..., None]
        return tf.where(seen, x, garbage)

    value, gradients = gradient(row, student, teacher, mask=mask)
    spoilt = [change(side, spoil) for side in (student, teacher)]
    got, spoilt_gradients = gradient(row, *spoilt, mask=mask)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    for one, two in zip(gradients, spoilt_gradients, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5 * np.abs(one).max())
        hidden = tf.boolean_mask(tf.transpose(one, (0, 2, 1, 3)) if shapes is HEADS else one, ~mask)
        assert np.abs(hidden).max() == 0.0
    full = row.loss.values(teacher, student, mask=tf.ones_like(mask))
    np.testing.assert_allclose(full, row.loss.values(teacher, student), rtol=1e-5, atol=1e-8)
    assert abs(float(value) - float(mean(row, student, teacher))) > 1e-6  # the mask had an effect
    nothing, flat = gradient(row, student, teacher, mask=tf.zeros_like(mask))
    if not isinstance(row.loss, losses.ContrastiveRepresentation):
        np.testing.assert_allclose(nothing, 0.0, atol=1e-6)
    assert all(np.abs(g).max() == 0.0 for g in flat)


@every
def test_a_mask_of_the_wrong_shape_is_refused(row):
    student, teacher = draw(row)
    with pytest.raises(ValueError, match=r"expected (a mask|mask of|features without a mask)"):
        row.loss.values(teacher, student, mask=np.ones((5, 3), bool))


@pytest.mark.parametrize(
    "loss, shapes, text",
    [
        (
            losses.HintMatching(),
            ((2, 3), (2, 4)),
            "hint: expected .* equally many channels, got 4 and 3. Give the term",
        ),
        (
            losses.HintMatching(),
            ((2, 3), (2, 5, 3)),
            r"hint: expected .* equal rank, got shapes \(2, 5, 3\) and \(2, 3\)",
        ),
        (losses.AttentionTransfer(), ((2, 3), (2, 3)), "attention_transfer: expected teacher_features of rank 3 or 4"),
        (losses.HiddenStates(), ((2, 3, 4), (2, 5, 4)), "hidden_states: expected equally many tokens, got 5 and 3"),
        (
            losses.AttentionMaps(),
            ((2, 3, 4, 4), (2, 2, 4, 4)),
            "attention_maps: expected .*attention maps of one shape",
        ),
        (losses.SolutionFlow(), ((2, 3, 4), (2, 3, 4)), "solution_flow: expected lists of equally many"),
    ],
)
def test_mismatched_shapes_are_refused_with_advice(loss, shapes, text):
    with pytest.raises(ValueError, match=text):
        loss.values(*(np.zeros(shape, "float32") for shape in reversed(shapes)))


@pytest.mark.parametrize(
    "make, text",
    [
        (
            lambda: losses.HintMatching("l3"),
            "HintMatching: expected distance to be one of 'mse', 'mae', 'cosine', 'hub",
        ),
        (lambda: losses.HintMatching("mae", "paper"), "HintMatching: expected mode to be one of 'code', got paper"),
        (lambda: losses.AttentionTransfer(p=0.5), r"AttentionTransfer: expected p >= 1, got 0\.5"),
        (lambda: losses.NeuronSelectivity("cubic"), "NeuronSelectivity: expected kernel to be one of"),
        (lambda: losses.VariationalInformation(0.0), r"VariationalInformation: expected min_variance > 0, got 0\.0"),
        (lambda: losses.ContrastiveRepresentation(-1), r"expected contrast_temperature > 0, got -1\.0"),
        (lambda: losses.CorrelationCongruence(order=0), "CorrelationCongruence: expected order to be an integer >= 1"),
        (lambda: losses.SingularVectors(0), "SingularVectors: expected num_vectors to be an integer >= 1, got 0"),
        (lambda: losses.SimilarityPreserving("l3"), "SimilarityPreserving: expected norm to be one of 'l2', 'l1'"),
        (lambda: losses.SolutionFlow("sum"), "SolutionFlow: expected pooling to be one of 'average', 'max'"),
        (lambda: losses.HierarchicalContext([0]), "HierarchicalContext: expected levels to be an integer >= 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused_in_the_constructor(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_every_feature_loss_is_in_the_table():
    public = {
        name
        for name in losses.__all__
        if isinstance(getattr(losses, name), type) and issubclass(getattr(losses, name), losses.FeatureLoss)
    }
    # Their inputs are pairs: see the tests of losses.
    assert public - {type(row.loss).__name__ for row in ROWS} == {
        "FeatureLoss",
        "VariationalInformation",
        "CenterBoxes",
    }
