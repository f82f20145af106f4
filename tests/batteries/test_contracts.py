"""Properties of every loss on logits, from one table: values and gradients, against float64 references."""

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses
from tests import oracles
from tests.batteries.logits_losses import (
    ROWS,
    assert_close,
    draw,
    every,
    given,
    gradients,
    one_of_each,
    oracle_gradient,
    per_position,
    rows,
    values,
)


@every
@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0, 20.0, 300.0])
def test_values_are_the_oracles_to_1e_6(row, temperature):
    teacher, student, labels = draw((64, 6))
    expected = row.oracle(teacher, student, temperature, **given(row, labels))
    got = values(row, teacher, student, temperature, labels)
    assert got.dtype == "float32"
    rough = row.loss.needs_batch and temperature > 1  # correlations of nearly equal probabilities
    assert_close(got, expected, 1e-5 if rough else 2e-6)
    np.testing.assert_allclose(np.mean(got), np.mean(expected), rtol=1e-5 if rough else 1e-6)


@every
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_gradients_are_those_of_the_oracle(row, temperature):
    teacher, student, labels = draw((4, 6), seed=1)
    expected = oracle_gradient(row, teacher, student, temperature, labels)
    _, got = gradients(row, teacher, tf.constant(student), temperature, labels)
    np.testing.assert_allclose(got, expected, atol=3e-6 * np.abs(expected).max())


@rows(lambda row: row.extreme)
@pytest.mark.parametrize("temperature", [1.0, 3.0, 40.0])
def test_logits_of_1e4_are_exact_in_value_and_gradient(row, temperature):
    teacher, student, labels = draw((6, 5), seed=2, scale=1e4)
    # Two rows of large logits with near ties, where early rounding to float32 loses all precision.
    teacher[0], student[0] = [9999.5, 9999.0, -1e4, 0.0, 9998.25], [9998.75, 9999.5, -1e4, 0.5, 9999.0]
    teacher[1], student[1] = [-9999.5, -1e4, -9999.0, -9999.25, -9998.5], [9999.5, 9999.25, 9998.0, 9999.0, 9999.5]
    expected = row.oracle(teacher, student, temperature, **given(row, labels))
    total, got = gradients(row, teacher, tf.constant(student), temperature, labels)
    assert_close(values(row, teacher, student, temperature, labels), expected, 2e-6)
    np.testing.assert_allclose(total, np.sum(expected), rtol=1e-6)
    step = 1e-2 if isinstance(row.loss, losses.StandardizedSoftTargets) else 2e-3
    expected = oracle_gradient(row, teacher, student, temperature, labels, step)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max() + 1e-9)


@rows(lambda row: row.zero)
def test_zero_where_student_is_teacher(row):
    for scale in (1.0, 1e4) if row.extreme else (1.0,):
        teacher, _, labels = draw(seed=3, scale=scale)
        total, gradient = gradients(row, teacher, tf.constant(teacher), 2.5, labels)
        assert float(total) == 0.0
        assert np.abs(gradient).max() == 0.0


@rows(lambda row: row.shift)
@pytest.mark.parametrize("shift", [3.0, -4096.0])
def test_a_constant_added_to_the_logits_changes_nothing(row, shift):
    teacher, student, labels = draw(seed=4)
    plain = gradients(row, teacher, tf.constant(student), 4.0, labels)
    for moved in ((teacher + np.float32(shift), student), (teacher, student + np.float32(shift))):
        got = gradients(row, moved[0], tf.constant(moved[1]), 4.0, labels)
        np.testing.assert_allclose(got[0], plain[0], rtol=2e-6)
        np.testing.assert_allclose(got[1], plain[1], atol=2e-6 * np.abs(plain[1]).max())


@every
def test_no_gradient_reaches_the_teacher(row):
    teacher, student, labels = draw()
    teacher = tf.constant(teacher)
    with tf.GradientTape() as tape:
        tape.watch(teacher)
        total = tf.reduce_sum(values(row, teacher, student, 2.0, labels))
    gradient = tape.gradient(total, teacher)
    assert gradient is None or np.abs(gradient).max() == 0.0


@every
def test_values_do_not_depend_on_the_order_of_the_batch(row):
    teacher, student, labels = draw()
    order = np.array([3, 0, 4, 1, 2])
    plain = values(row, teacher, student, 2.0, labels)
    turned = values(row, teacher[order], student[order], 2.0, labels[order])
    np.testing.assert_allclose(turned, plain if row.loss.needs_batch else plain.numpy()[order], rtol=2e-6)


@per_position
def test_weight_0_removes_an_example_and_weight_2_counts_it_twice(row):
    if row.loss.needs_labels:
        return  # a Keras loss takes no labels here; terms weight the values
    teacher, student, _ = draw()
    weights = np.float32([1, 0, 2, 1, 1])
    twice = [0, 2, 2, 3, 4]
    loss = type(row.loss)(**{**row.loss.get_config(), "reduction": "sum"})
    np.testing.assert_allclose(
        loss(teacher, student, sample_weight=weights), loss(teacher[twice], student[twice]), rtol=2e-6
    )
    student = np.where([[0]] * 5, 0, student)
    _, gradient = gradients(row, teacher, tf.constant(student), weights=weights)
    _, plain = gradients(row, teacher, tf.constant(student))
    np.testing.assert_allclose(gradient, plain * weights[:, None], atol=1e-6 * np.abs(plain).max())


@per_position
def test_sequences_are_positions_one_by_one(row):
    teacher, student, labels = draw((2, 3, 6))
    got = values(row, teacher, student, 2.0, labels)
    flat = values(row, teacher.reshape(6, 6), student.reshape(6, 6), 2.0, labels.reshape(6))
    assert got.shape == (2, 3)
    np.testing.assert_allclose(np.reshape(got, 6), flat, rtol=2e-6)


@every
def test_masked_positions_never_count(row):
    teacher, student, labels = draw((3, 4, 6))
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 1]], bool)
    kept_value, kept_gradient = gradients(row, teacher[mask], tf.constant(student[mask]), 2.0, labels[mask])
    spoilt_teacher, spoilt_student = teacher.copy(), student.copy()
    for side, number in ((spoilt_teacher, np.nan), (spoilt_student, np.inf)):
        side[~mask] = number
    for one, two, three in (
        (teacher, student, labels),
        (spoilt_teacher, spoilt_student, np.where(mask, labels, -100)),
    ):
        value, gradient = gradients(row, one, tf.constant(two), 2.0, three, mask=mask)
        # The mean over all positions is the mean over unmasked ones.
        scale = 1.0 if row.loss.needs_batch else 12 / 7
        np.testing.assert_allclose(value, kept_value * scale, rtol=2e-6)
        np.testing.assert_allclose(
            gradient.numpy()[mask], kept_gradient * scale, atol=2e-6 * np.abs(kept_gradient).max()
        )
        assert np.abs(gradient.numpy()[~mask]).max() == 0.0
    nothing, flat = gradients(row, spoilt_teacher, tf.constant(spoilt_student), 2.0, labels, mask=np.zeros_like(mask))
    assert float(nothing) == 0.0
    assert np.abs(flat).max() == 0.0
    full = values(row, teacher, student, 2.0, labels, mask=np.ones_like(mask))
    np.testing.assert_allclose(full, values(row, teacher, student, 2.0, labels), rtol=1e-6)


@rows(lambda row: row.tempered)
def test_a_temperature_tensor_is_the_number_and_has_its_gradient(row):
    teacher, student, labels = draw(seed=6)
    plain = values(row, teacher, student, 3.0, labels)
    got, _, to_temperature = gradients(row, teacher, tf.constant(student), tf.constant(3.0), labels)
    np.testing.assert_allclose(got, np.sum(plain), rtol=1e-6)
    options = given(row, labels)
    expected = oracles.slope(lambda t: row.oracle(teacher, student, float(t), **options), np.float64(3.0), 1e-3)
    np.testing.assert_allclose(to_temperature, expected, rtol=2e-5)


@rows(lambda row: row.tempered and not row.loss.needs_batch)
def test_one_temperature_per_example(row):
    teacher, student, labels = draw(seed=7)
    each = np.float32([1.0, 2.0, 3.5, 8.0, 20.0])
    expected = [
        values(row, teacher[i : i + 1], student[i : i + 1], float(each[i]), labels[i : i + 1])[0] for i in range(5)
    ]
    slopes = [
        gradients(row, teacher[i : i + 1], tf.constant(student[i : i + 1]), tf.constant(each[i]), labels[i : i + 1])[2]
        for i in range(5)
    ]
    for shape in ((5,), (5, 1)):
        got, _, to_each = gradients(row, teacher, tf.constant(student), tf.constant(each.reshape(shape)), labels)
        np.testing.assert_allclose(got, np.sum(expected), rtol=2e-6)
        assert to_each.shape == shape
        np.testing.assert_allclose(np.ravel(to_each), slopes, rtol=1e-4, atol=1e-6 * np.abs(slopes).max())
    np.testing.assert_allclose(values(row, teacher, student, each, labels), expected, rtol=2e-6)
    deep = values(row, teacher[:, None], student[:, None], each, labels[:, None])
    np.testing.assert_allclose(deep[:, 0], expected, rtol=2e-6)


@one_of_each
def test_graph_and_half_precision_are_eager(row):
    teacher, student, labels = draw()
    plain = gradients(row, teacher, tf.constant(student), 2.0, labels)
    spec = tf.TensorSpec((None, 6), tf.float32)
    traced = tf.function(
        lambda t, s, y: gradients(row, t, s, 2.0, y),
        input_signature=[spec, spec, tf.TensorSpec((None,), tf.int64)],
        autograph=False,
    )
    got = traced(teacher, student, labels)
    np.testing.assert_allclose(got[0], plain[0], rtol=2e-6)
    np.testing.assert_allclose(got[1], plain[1], atol=2e-6 * np.abs(plain[1]).max())
    for dtype in ("float16", "bfloat16"):
        halves = [tf.cast(side, dtype) for side in (teacher, student)]
        rounded = [tf.cast(side, "float32") for side in halves]
        half = values(row, *halves, 2.0, labels)
        assert half.dtype == "float32"
        np.testing.assert_array_equal(half, values(row, *rounded, 2.0, labels))
        _, gradient = gradients(row, halves[0], halves[1], 2.0, labels)
        assert gradient.dtype == dtype


@pytest.mark.slow
@one_of_each
def test_xla_is_eager(row):
    teacher, student, labels = draw()
    student[0] *= 1e3
    plain = gradients(row, teacher, tf.constant(student), 2.0, labels)
    compiled = tf.function(lambda t, s, y: gradients(row, t, s, 2.0, y), jit_compile=True, autograph=False)
    got = compiled(teacher, student, labels)
    np.testing.assert_allclose(got[0], plain[0], rtol=2e-6)
    np.testing.assert_allclose(got[1], plain[1], atol=5e-6 * np.abs(plain[1]).max())


@rows(lambda row: row.loss.needs_labels)
def test_labels_may_be_one_hot_and_must_be_in_range(row):
    teacher, student, labels = draw()
    plain = values(row, teacher, student, 2.0, labels)
    for same in (np.eye(6, dtype="float32")[labels], labels[:, None], labels.astype("int32")):
        np.testing.assert_array_equal(values(row, teacher, student, 2.0, same), plain)
    for bad in (6, -1):
        with pytest.raises(ValueError, match=f"expected labels from 0 to 5, got {bad}"):
            values(row, teacher, student, 2.0, np.where(np.arange(5) == 2, bad, labels))
    with pytest.raises(ValueError, match="expected labels"):
        row.loss(teacher, student)
    with pytest.raises(ValueError, match=r"expected labels of shape \(5,\)"):
        values(row, teacher, student, 2.0, labels[None, None])

    @tf.function(autograph=False)
    def traced(y):
        return values(row, teacher, student, 2.0, y)

    got = traced(tf.constant(np.where(np.arange(5) == 2, 6, labels))).numpy()
    assert np.isnan(got[2])
    np.testing.assert_allclose(np.delete(got, 2), np.delete(plain, 2), rtol=2e-6)


@every
def test_nan_logits_give_nan(row):
    """A NaN gives NaN, which the distiller's guard detects; it never becomes a plausible number."""
    teacher, student, labels = draw()
    for side in range(2):
        logits = [teacher.copy(), student.copy()]
        logits[side][1, 2] = np.nan
        got = values(row, *logits, 2.0, labels)
        if isinstance(row.loss, (losses.HardTargets, losses.TopKSoftTargets)) and side == 0:
            continue  # the order of the teacher's classes is not defined
        if isinstance(row.loss, losses.PolicyTargets) and row.loss.target == "nll" and side == 0:
            continue  # so is that of its actions
        if isinstance(row.loss, losses.MisleadingEvidence) and side == 0:
            continue  # only the labels are used
        assert np.isnan(got if row.loss.needs_batch else got[1])
        if not row.loss.needs_batch:
            clean = values(row, teacher, student, 2.0, labels)
            np.testing.assert_allclose(np.delete(got, 1), np.delete(clean, 1), rtol=1e-6)


@every
def test_function_and_class_are_twins(row):
    """The function has the class's arguments, names and defaults, and gives the same values."""
    if isinstance(row.loss, (losses.TrustWeighted, losses.ConfidentTargets)):
        return  # a factor of another loss
    name = type(row.loss).__name__
    function = getattr(losses, re.sub(r"(?<=[a-z])([A-Z])|(?<=[A-Z])([A-Z])(?=[a-z])", r"_\1\2", name).lower())
    parameters = inspect.signature(function).parameters
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in parameters.values())
    own = inspect.signature(type(row.loss)).parameters
    for key in set(own) - {"name", "reduction", "k"}:
        assert own[key].default == parameters[key].default, key
    if "teacher_logits" not in parameters or isinstance(row.loss, losses.TopKSoftTargets):
        return
    options = {key: value for key, value in row.loss.get_config().items() if key in parameters}
    teacher, student, labels = draw()
    options |= given(row, labels)
    got = function(teacher_logits=teacher, student_logits=student, **{"temperature": 2.0, **options})
    np.testing.assert_array_equal(got, values(row, teacher, student, 2.0, labels))
    if not row.loss.needs_labels:
        mean = np.mean(values(row, teacher, student))
        np.testing.assert_allclose(row.loss(teacher, student), mean, rtol=1e-6)


@every
def test_the_config_is_restored(row):
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(row.loss))
    assert type(twin) is type(row.loss)
    assert twin.get_config() == row.loss.get_config()
    teacher, student, labels = draw()
    got = twin.values(teacher, student, **given(row, labels))
    np.testing.assert_array_equal(got, values(row, teacher, student, labels=labels))


@every
def test_arguments_that_do_not_fit_are_refused(row):
    teacher, student, labels = draw()
    with pytest.raises(ValueError, match=r"teacher and student .* of one shape, got \(5, .\) and \(5, .\)"):
        values(row, teacher[:, :4], student, 1.0, labels)
    with pytest.raises(ValueError, match=r"expected mask of shape \(5,\), got \(5, 6\)"):
        values(row, teacher, student, 1.0, labels, mask=np.ones((5, 6), bool))
    if row.tempered:
        for bad in (0.0, -1.0, float("nan"), float("inf"), np.float32([1, 2, 0, 1, 1])):
            with pytest.raises(ValueError, match="expected temperature > 0"):
                values(row, teacher, student, bad, labels)


def test_every_loss_on_logits_is_in_the_table():
    public = {
        name
        for name in losses.__all__
        if isinstance(getattr(losses, name), type) and issubclass(getattr(losses, name), losses.LogitsLoss)
    }
    members = {name for name in public if getattr(losses, name).needs_members}  # see test_contracts_members.py
    members |= {name for name in public if getattr(losses, name).needs_lists}  # see losses/test_ranking.py
    sequences = {name for name in public if getattr(losses, name).uses_mask}  # see test_contracts_sequences.py
    assert public - members - sequences - {type(row.loss).__name__ for row in ROWS} == {"LogitsLoss"}
