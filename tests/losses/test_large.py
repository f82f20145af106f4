"""Many classes: rows are processed in blocks, which changes only the memory."""

import functools
import types

import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses
from keras_distill.losses._numerics import row_blocks
from tests import oracles
from tests.batteries import test_contracts

NOT_IN_BLOCKS = (losses.Evidential, losses.MisleadingEvidence)


def in_blocks(row):
    """Evidential losses have no row blocks; a policy's NLL or squared error needs no softmax over the actions."""
    return not isinstance(row.loss, NOT_IN_BLOCKS) and getattr(row.loss, "target", "kl") == "kl"


every = test_contracts.rows(in_blocks)
FIRST = {type(row.loss): row for row in reversed(test_contracts.ROWS)}
one_of_each = test_contracts.rows(lambda row: row is FIRST[type(row.loss)] and in_blocks(row))
modes = pytest.mark.parametrize("mode", ["eager", "graph", pytest.param("xla", marks=pytest.mark.slow)])
RUN = {
    "eager": lambda f: f,
    "graph": lambda f: tf.function(f, autograph=False),
    "xla": lambda f: tf.function(f, jit_compile=True, autograph=False),
}


def draw(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return [tf.constant(2 * rng.normal(size=shape).astype("float32")) for _ in range(2)]


def weighted_slopes(row, teacher, student, temperature, labels, **options):
    """Values, and the gradients of their sum with weights 1, 2, 3, ..., so that no two rows have the same upstream."""
    with tf.GradientTape() as tape:
        tape.watch([student, temperature])
        value = test_contracts.values(row, teacher, student, temperature, labels, **options)
        weights = tf.reshape(tf.range(1.0, tf.cast(tf.size(value), tf.float32) + 1.0), tf.shape(value))
        total = tf.reduce_sum(value * weights)
    return value, *tape.gradient(total, [student, temperature], unconnected_gradients="zero")


def first_derivative(row):
    """Return a tape that recorded the gradient of a loss, that gradient and the student's logits."""
    teacher, student = draw(4, 60)
    with tf.GradientTape() as outer:
        outer.watch(student)
        with tf.GradientTape() as inner:
            inner.watch(student)
            value = test_contracts.values(row, teacher, student, 2.0, np.arange(4))
        gradient = inner.gradient(value, student)
    return outer, gradient, student


def assert_same(cut, whole, rtol=1e-5):
    for got, wanted in zip(cut, whole, strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=0.1 * rtol * np.abs(wanted).max())


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of two rows from 50 classes on; the calls of map are counted."""
    calls = []
    kept = row_blocks.ops.map
    monkeypatch.setattr(row_blocks, "CHUNKED_FROM_CLASSES", 50)
    monkeypatch.setattr(row_blocks, "CHUNK_ELEMENTS", 130)
    monkeypatch.setattr(row_blocks, "EAGER_CHUNK_ELEMENTS", 130)
    monkeypatch.setattr(
        row_blocks.ops, "map", lambda function, parts: calls.append(len(parts)) or kept(function, parts)
    )
    return calls


@modes
@every
def test_row_blocks_equal_a_single_pass(row, mode, blocks, monkeypatch):
    """In a graph no size is known before it runs; under XLA all are, and the rows are divisible by two."""
    if mode != "eager" and row is not FIRST[type(row.loss)]:
        pytest.skip("compiled once per class; its other options run eagerly")
    shape, mask = (3, 4), np.arange(4) < np.array([[4], [2], [1]])
    teacher, student = draw(*shape, 60)
    labels = np.random.default_rng(1).integers(0, 60, shape)
    temperature = tf.constant(2.0) if row.loss.needs_batch else tf.constant([1.0, 2.0, 5.0])
    run = RUN[mode]
    if mode == "graph":
        logits, ids = tf.TensorSpec((None, None, 60)), tf.TensorSpec((None, None), tf.int64)
        signature = [logits, logits, tf.TensorSpec(temperature.shape), ids]
        run = functools.partial(tf.function, input_signature=signature, autograph=False)
    # Masks are tested eagerly; each trace takes a second or more.
    for options in ({}, {"mask": mask}) if mode == "eager" else ({"mask": mask},):
        cut = run(lambda t, s, each, y, options=options: weighted_slopes(row, t, s, each, y, **options))
        result = cut(teacher, student, temperature, tf.constant(labels))
        assert blocks, "not taken block by block"
        with monkeypatch.context() as patch:
            patch.setattr(row_blocks, "CHUNKED_FROM_CLASSES", 1000)
            whole = weighted_slopes(row, teacher, student, temperature, labels, **options)
        assert_same(result, whole)
        blocks.clear()


@every
def test_the_contracts_hold_in_row_blocks(row, blocks, monkeypatch):
    """Float64 twins, finite differences, garbage behind masks, learned temperatures: in blocks."""
    monkeypatch.setattr(row_blocks, "CHUNKED_FROM_CLASSES", 3)
    monkeypatch.setattr(row_blocks, "EAGER_CHUNK_ELEMENTS", 100)
    test_contracts.test_values_are_the_oracles_to_1e_6(row, 4.0)  # 64 rows, so longer blocks
    monkeypatch.setattr(row_blocks, "EAGER_CHUNK_ELEMENTS", 13)
    test_contracts.test_gradients_are_those_of_the_oracle(row, 5.0)
    assert blocks, "not taken block by block"
    if row is not FIRST[type(row.loss)]:
        return  # for its other options, blocks equal one piece: see above
    test_contracts.test_masked_positions_never_count(row)
    if not row.loss.needs_batch:
        test_contracts.test_weight_0_removes_an_example_and_weight_2_counts_it_twice(row)
    if row.tempered:
        test_contracts.test_a_temperature_tensor_is_the_number_and_has_its_gradient(row)
    if row.tempered and not row.loss.needs_batch:
        test_contracts.test_one_temperature_per_example(row)
    if row.zero:
        test_contracts.test_zero_where_student_is_teacher(row)
    if row.extreme:
        test_contracts.test_logits_of_1e4_are_exact_in_value_and_gradient(row, 3.0)


@one_of_each
def test_a_loss_compiled_by_xla_equals_its_eager_value(row, monkeypatch):
    """From 512 classes on, a loss in a graph is compiled by XLA; an eager call never is."""
    monkeypatch.setattr(row_blocks, "FUSED_FROM_CLASSES", 50)
    programs, kept = [], row_blocks.fused
    monkeypatch.setattr(
        row_blocks, "fused", lambda f, x, *args: programs.append(row_blocks.fuses(x)) or kept(f, x, *args)
    )
    teacher, student = draw(3, 4, 60)
    labels = np.random.default_rng(1).integers(0, 60, (3, 4))
    temperature = tf.constant(2.0) if row.loss.needs_batch else tf.constant([1.0, 2.0, 5.0])
    masked = {"mask": np.arange(4) < np.array([[4], [2], [1]])}
    # A mask makes the program longer; without one, one loss of each kind is compiled.
    bare = type(row.loss) in (losses.SoftTargets, losses.DecoupledSoftTargets, losses.ClassCorrelation)
    for options in ({}, masked) if bare else (masked,):

        def slopes(t, s, each, options=options):
            return weighted_slopes(row, t, s, each, labels, **options)

        alone = tf.function(slopes, autograph=False)(teacher, student, temperature)
        assert any(programs)
        programs.clear()
        whole = slopes(teacher, student, temperature)
        assert not any(programs)
        assert_same(alone[:2], whole[:2])
        # Parts of 2 / temperature * value cancel in its slope.
        weighted = np.abs(whole[0]) * np.arange(1.0, np.size(whole[0]) + 1.0).reshape(np.shape(whole[0]))
        np.testing.assert_allclose(alone[2], whole[2], atol=2e-6 * np.sum(weighted))


@one_of_each
def test_a_second_derivative_of_a_fused_loss_is_refused(row, monkeypatch):
    monkeypatch.setattr(row_blocks, "FUSED_FROM_CLASSES", 50)

    @tf.function(autograph=False)
    def second():
        outer, gradient, student = first_derivative(row)
        return outer.gradient(gradient, student)

    with pytest.raises(ValueError, match="losses: expected at most one derivative of a divergence, got a second one"):
        second()


def test_losses_over_many_classes_are_fused_only_in_graphs():
    def fuses(*shape):
        return row_blocks.fuses(tf.TensorSpec(shape))

    @tf.function(autograph=False)
    def graph():
        assert fuses(None, 512)
        assert fuses(8, 16, 1000)
        assert fuses(None, 16, 1000)
        assert not fuses(None, 511)
        assert not fuses(None, None, 1000), "each length would be compiled anew"
        assert not fuses(None, None)
        assert not fuses(8, 32_000), "those go in blocks"
        assert not fuses(1000)

    graph()
    assert not fuses(8, 1000), "not in eager mode"


@pytest.mark.parametrize(
    "spec", [(None, 4, 60), (None, 60), (7, 60)], ids=["unknown batch", "unknown rows", "prime rows"]
)
def test_dynamic_shapes_are_supported(spec, blocks):
    """The same code cuts the blocks of every loss; shapes that are unknown in full are above, with each loss."""
    row = FIRST[losses.SoftTargets]
    shape = tuple(given or size for given, size in zip(spec, (3, 4, 60)[-len(spec) :], strict=True))
    teacher, student = draw(*shape)
    traced = tf.function(
        lambda t, s: weighted_slopes(row, t, s, tf.constant(3.0), None),
        input_signature=[tf.TensorSpec(spec)] * 2,
        autograph=False,
    )
    value, gradient, _ = traced(teacher, student)
    assert blocks
    assert gradient.shape == student.shape
    np.testing.assert_allclose(value, row.oracle(teacher, student, 3.0), rtol=2e-6)


@one_of_each
@pytest.mark.parametrize(("dtype", "mode"), [("float16", "eager"), ("bfloat16", "eager"), ("bfloat16", "graph")])
def test_half_precision_is_cast_to_float32_within_the_row_blocks(row, dtype, mode, blocks, monkeypatch):
    if mode == "graph" and type(row.loss) not in (losses.SoftTargets, losses.ClassCorrelation):
        pytest.skip("a graph casts as eager calls do: traced for one loss per example and one per batch")
    teacher, student = (tf.cast(each, dtype) for each in draw(5, 60))
    labels = np.random.default_rng(1).integers(0, 60, 5)

    def slopes(teacher, student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            # So small that a gradient multiplied by it afterwards underflows in half precision.
            total = 1e-3 * tf.reduce_sum(test_contracts.values(row, teacher, student, 2.0, labels))
            scaled = total * 2.0**10
        return scaled, tape.gradient(scaled, student)

    cut = RUN[mode](slopes)(teacher, student)
    assert blocks
    assert cut[1].dtype == dtype
    monkeypatch.setattr(row_blocks, "CHUNKED_FROM_CLASSES", 1000)
    value, gradient = slopes(*(tf.cast(each, "float32") for each in (teacher, student)))
    np.testing.assert_allclose(cut[0], value, rtol=1e-5)
    # The float32 gradient, rounded once.
    step = float(np.spacing(np.float16(1.0))) if dtype == "float16" else 2.0**-7
    np.testing.assert_allclose(tf.cast(cut[1], "float32"), gradient, rtol=step, atol=1e-5 * np.abs(gradient).max())


@modes
@pytest.mark.parametrize("missing", ["spread", "ignore"])
def test_a_stored_top_k_teacher_is_expanded_within_the_row_blocks(mode, missing, blocks, monkeypatch):
    teacher, student = draw(6, 60)
    values, indices = tf.math.top_k(tf.nn.log_softmax(teacher), 4)
    mask = np.array([1, 1, 0, 1, 0, 1], bool)

    def slopes(student, values):
        with tf.GradientTape() as tape:
            tape.watch([student, values])
            each = losses.top_k_soft_targets(
                teacher_logits=(values, indices), student_logits=student, temperature=2.0, missing=missing, mask=mask
            )
            total = tf.reduce_sum(each * tf.range(1.0, 7.0))
        return each, *tape.gradient(total, [student, values], unconnected_gradients="zero")

    cut = RUN[mode](slopes)(student, values)
    assert blocks
    assert np.abs(cut[2]).max() == 0.0, "a gradient reached the teacher"
    expected = oracles.top_k_soft_targets(teacher, student, 2.0, k=4, missing=missing)
    np.testing.assert_allclose(cut[0], np.where(mask, expected * 6 / 4, 0.0), rtol=2e-6)
    monkeypatch.setattr(row_blocks, "CHUNKED_FROM_CLASSES", 1000)
    assert_same(cut, slopes(student, values))


@modes
def test_the_bounded_regression_has_its_labels_in_the_blocks(mode, blocks, monkeypatch):
    teacher, student = draw(6, 60)
    labels = tf.constant(draw(6, 60, seed=1)[0])
    mask = np.array([1, 1, 1, 1, 1, 0], bool)
    loss = losses.RegressionMatching(margin=5.0)
    truth = tf.where(mask[:, None], labels, np.nan)  # garbage at masked positions

    def slopes(student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            each = loss.values(teacher, student, labels=truth, mask=mask)
        return each, tape.gradient(each, student)

    cut = RUN[mode](slopes)(student)
    assert blocks
    expected = oracles.regression_matching(teacher, student, labels=labels, margin=5.0)
    assert 0 < np.count_nonzero(expected[:5]) < 5, "the bound takes some examples and leaves some"
    np.testing.assert_allclose(cut[0], np.where(mask, expected * 6 / 5, 0.0), rtol=2e-6)
    counted = np.where(mask, expected > 0, False)[:, None]
    exact = np.where(counted, 2.0 * (student.numpy() - labels.numpy()) * 6 / 5, 0.0)
    np.testing.assert_allclose(cut[1], exact, atol=1e-6 * np.abs(exact).max())


@modes
def test_means_and_variances_may_be_separate_tensors(mode, blocks):
    teacher, student = draw(5, 120)

    def slopes(mean, logs):
        with tf.GradientTape() as tape:
            tape.watch([mean, logs])
            each = losses.gaussian_kl(
                teacher_mean=teacher[:, :60],
                teacher_log_variance=teacher[:, 60:],
                student_mean=mean,
                student_log_variance=logs,
            )
            total = tf.reduce_sum(each * tf.range(1.0, 6.0))
        return each, tape.gradient(total, [mean, logs])

    value, gradients = RUN[mode](slopes)(student[:, :60], student[:, 60:])
    assert blocks
    np.testing.assert_allclose(value, oracles.gaussian_kl(teacher, student), rtol=2e-6)
    t, s = (np.asarray(each, "float64") for each in (teacher, student))
    apart, ratio = s[:, :60] - t[:, :60], np.exp(t[:, 60:] - s[:, 60:])
    to_mean = apart * np.exp(-s[:, 60:])
    exact = to_mean, -0.5 * (ratio - 1.0 + apart * to_mean)
    for got, wanted in zip(gradients, exact, strict=True):
        wanted = wanted * np.arange(1.0, 6.0)[:, None]
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@one_of_each
def test_a_second_derivative_is_refused(row, blocks):
    outer, gradient, student = first_derivative(row)
    with pytest.raises(ValueError, match="losses: expected at most one derivative of a divergence, got a second one"):
        outer.gradient(gradient, student)


@one_of_each
def test_a_vocabulary_of_32000(row, monkeypatch):
    """Sums of 32000 float32: even one piece differs from float64 by up to 4e-6 of the value or largest gradient."""
    teacher, student = draw(1, 20, 32_000)
    labels = np.random.default_rng(1).integers(0, 32_000, (1, 20))
    mask = np.arange(20)[None] != 3
    temperature = tf.constant(2.0)
    monkeypatch.setattr(row_blocks, "EAGER_CHUNK_ELEMENTS", row_blocks.CHUNK_ELEMENTS)  # the blocks of a graph
    value, gradient, to_temperature = weighted_slopes(row, teacher, student, temperature, labels, mask=mask)
    options = test_contracts.given(row, labels[:, mask[0]])
    kept = [side.numpy()[:, mask[0]] for side in (teacher, student)]
    weights = np.arange(1, 21)[mask[0]] * 20 / 19

    def oracle(temperature):
        each = row.oracle(*kept, float(temperature), **options)
        return each if row.loss.needs_batch else weights * each[0]

    expected = oracle(2.0)
    got = value if row.loss.needs_batch else np.arange(1, 21)[mask[0]] * value[mask]
    np.testing.assert_allclose(got, expected, rtol=5e-6)
    # Parts of 2 / temperature * value cancel in the slope.
    exact = oracles.slope(lambda t: np.sum(oracle(t)), np.float64(2.0), 1e-3) if row.tempered else 0.0
    np.testing.assert_allclose(to_temperature, exact, atol=1e-6 * np.sum(np.abs(expected)))
    monkeypatch.setattr(row_blocks, "CHUNKED_FROM_CLASSES", 1 << 20)
    whole = weighted_slopes(row, teacher, student, temperature, labels, mask=mask)[1]
    np.testing.assert_allclose(gradient, whole, atol=1e-5 * np.abs(whole).max())
    assert np.abs(gradient.numpy()[~mask]).max() == 0.0


def test_soft_targets_over_32000_classes_against_float64():
    teacher, student = draw(1, 40, 32_000)
    run = tf.function(
        lambda t, s: weighted_slopes(FIRST[losses.SoftTargets], t, s, tf.constant(2.0), None), autograph=False
    )
    value, gradient, _ = run(teacher, student)
    np.testing.assert_allclose(value, oracles.soft_targets(teacher, student, 2.0), rtol=1e-6)
    p, q = (np.exp(oracles.log_softmax(side / 2.0)) for side in (teacher, student))
    expected = 2.0 * (q - p) * np.arange(1, 41)[None, :, None]
    np.testing.assert_allclose(gradient, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("classes", [1500, 6000, 32_000])
def test_a_flat_teacher_is_summed_exactly_by_xla(classes):
    """All classes but one share the rest evenly: a sequential sum would be off by up to 2e-5."""
    teacher = np.zeros((4, classes), "float32")
    teacher[:, 7] = 5.0
    student = draw(4, classes)[1]
    loss = losses.SoftTargets()
    compiled = tf.function(lambda t, s: loss.values(t, s, temperature=2.0), jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(teacher, student), oracles.soft_targets(teacher, student, 2.0), rtol=1e-6)


def test_the_number_of_rows_in_a_block_divides_a_static_number_of_rows(monkeypatch):
    monkeypatch.setattr(row_blocks, "eager", lambda: False)  # as in a graph: eager blocks are longer
    for shape, expected in (
        ((4, 100, 32_000), 16),  # 16 rows of 32000 fit, and 400 is 25 times 16
        ((4, 100, 31_999), None),
        ((None, 7, 32_000), 7),
        ((None, 32_000), 1),
        ((2, 8, 32_000), None),  # all fit in one block
    ):
        assert row_blocks.rows_per_block(types.SimpleNamespace(shape=shape)) == expected, shape
