"""Properties of every loss on an ensemble's members, from one table, against float64 references with SciPy."""

import dataclasses
import inspect
import re
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses
from tests.oracles import slope
from tests.oracles import uncertainty as oracles


@dataclasses.dataclass
class Row:
    """One loss with options.

    Attributes:
        loss: the class, with options.
        oracle: (members, student[, temperature]) -> float64 values, one per example.
        student: last axis of the student for 3 of the teacher; 0 for heads, of the members' shape.
        teacher: last axis of the members.
        tempered: whether the temperature means anything.
    """

    loss: losses.LogitsLoss
    oracle: Callable
    student: int = 4
    teacher: int = 4
    tempered: bool = True

    @property
    def function(self):
        """The functional twin, or None."""
        name = re.sub(r"(?<=[a-z])([A-Z])|(?<=[A-Z])([A-Z])(?=[a-z])", r"_\1\2", type(self.loss).__name__).lower()
        return getattr(losses, name, None)


def bind(function, **options):
    return lambda *arguments: function(*arguments, **options)


ROWS = [
    Row(losses.EnsembleSoftTargets(), oracles.ensemble_soft_targets),
    Row(losses.MemberSoftTargets(), oracles.member_soft_targets, student=0),
    Row(losses.DirichletDistillation(), oracles.dirichlet_distillation),
    Row(losses.DirichletDistillation(0.0, 1.0), bind(oracles.dirichlet_distillation, smoothing=0.0, offset=1.0)),
    Row(losses.ProxyDirichlet(), oracles.proxy_dirichlet, tempered=False),
    Row(losses.ProxyDirichlet("forward"), bind(oracles.proxy_dirichlet, form="forward"), tempered=False),
    Row(
        losses.ProxyDirichlet(offset=0.0, target_offset=0.5),
        bind(oracles.proxy_dirichlet, offset=0.0, target_offset=0.5),
        tempered=False,
    ),
    Row(losses.NormalInverseGamma(), oracles.normal_inverse_gamma, student=8, tempered=False),
    Row(losses.GaussianMixture(), oracles.gaussian_mixture, student=12, tempered=False),
    Row(losses.EnsembleGaussianKL(), oracles.ensemble_gaussian_kl, tempered=False),
    Row(
        losses.TrustWeighted(kind="knowledge"),
        lambda m, s, t=1.0: oracles.trust(m, True, "knowledge") * oracles.ensemble_soft_targets(m, s, t),
    ),
    Row(
        losses.TrustWeighted(losses.DirichletDistillation()),
        lambda m, s, t=1.0: oracles.trust(m, True) * oracles.dirichlet_distillation(m, s, t),
    ),
]
IDS = [f"{type(row.loss).__name__}-{index}" for index, row in enumerate(ROWS)]
every = pytest.mark.parametrize("row", ROWS, ids=IDS)
MEMBERS = 3


def draw(row, lead=(5,), seed=0):
    """Random members (batch, members, ..., outputs) and a student."""
    rng = np.random.default_rng(seed)
    members = rng.normal(size=(lead[0], 1, *lead[1:], row.teacher)) * 1.5
    members = members + 0.7 * rng.normal(size=(lead[0], MEMBERS, *lead[1:], row.teacher))
    shape = members.shape if row.student == 0 else (*lead, row.student)
    return members.astype("float32"), rng.normal(size=shape).astype("float32")


def gradients(row, members, student, temperature=1.0, **options):
    """Sum of the values, and its gradient to the student."""
    student = tf.convert_to_tensor(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        total = tf.reduce_sum(row.loss.values(members, student, temperature=temperature, **options))
    return total, tape.gradient(total, student)


def expected(row, members, student, temperature=1.0):
    return row.oracle(members, student, temperature) if row.tempered else row.oracle(members, student)


@every
@pytest.mark.parametrize("temperature", [1.0, 3.0, 10.0])
def test_values_and_gradients_are_the_oracles(row, temperature):
    members, student = draw(row)
    values = row.loss.values(members, student, temperature=temperature)
    assert values.dtype == "float32"
    assert values.shape == (5,)
    wanted = expected(row, members, student, temperature)
    np.testing.assert_allclose(values, wanted, rtol=3e-6, atol=2e-6 * np.abs(wanted).max())
    _, got = gradients(row, members, student, temperature)
    wanted = slope(lambda s: expected(row, members, s, temperature), student)
    np.testing.assert_allclose(got, wanted, atol=4e-6 * np.abs(wanted).max())


@every
def test_no_gradient_reaches_the_members(row):
    members, student = draw(row)
    members = tf.constant(members)
    with tf.GradientTape() as tape:
        tape.watch(members)
        total = tf.reduce_sum(row.loss.values(members, student))
    assert tape.gradient(total, members) is None


@every
def test_the_order_of_members_has_no_effect_and_examples_keep_theirs(row):
    members, student = draw(row)
    plain = np.asarray(row.loss.values(members, student))
    turn, order = [2, 0, 1], [3, 0, 4, 1, 2]
    turned = row.loss.values(members[:, turn], student[:, turn] if row.student == 0 else student)
    np.testing.assert_allclose(turned, plain, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(row.loss.values(members[order], student[order]), plain[order], rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(row.loss(members, student), plain.mean(), rtol=2e-6)  # as a Keras loss


@every
def test_sequences_are_positions_one_by_one_and_masked_ones_never_count(row):
    members, student = draw(row, (2, 4))
    heads = row.student == 0

    def flat(tensor, axis):
        moved = np.moveaxis(tensor, 1, 2) if axis else tensor
        return moved.reshape(8, *moved.shape[2:])

    each = row.loss.values(flat(members, 1), flat(student, heads))
    got = row.loss.values(members, student)
    assert got.shape == (2, 4)
    np.testing.assert_allclose(np.reshape(got, 8), each, rtol=2e-6, atol=1e-6)
    mask = np.array([[1, 1, 0, 0], [1, 0, 1, 1]], bool)
    members[np.broadcast_to(~mask[:, None], (2, MEMBERS, 4))] = np.nan
    student[np.broadcast_to(~mask[:, None], (2, MEMBERS, 4)) if heads else ~mask] = np.inf
    masked = row.loss.values(members, student, mask=mask)
    np.testing.assert_allclose(masked, np.where(mask, got, 0) * 8 / 5, rtol=3e-6, atol=1e-6)
    _, gradient = gradients(row, members, student, mask=mask)
    gradient = np.moveaxis(gradient, 1, 2) if heads else gradient.numpy()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[~mask]).max() == 0.0
    with pytest.raises(ValueError, match="expected mask of shape"):
        row.loss.values(members, student, mask=np.ones((2, 3), bool))


@pytest.mark.parametrize("row", [row for row in ROWS if row.tempered], ids=lambda row: type(row.loss).__name__)
def test_one_temperature_per_example(row):
    members, student = draw(row)
    each = np.float32([1.0, 2.0, 3.5, 8.0, 20.0])
    one = [row.loss.values(members[i : i + 1], student[i : i + 1], temperature=float(each[i]))[0] for i in range(5)]
    np.testing.assert_allclose(row.loss.values(members, student, temperature=each), one, rtol=2e-6)
    scalar = row.loss.values(members, student, temperature=tf.constant(3.5))
    np.testing.assert_allclose(scalar, row.loss.values(members, student, temperature=3.5), rtol=2e-6)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="expected temperature > 0"):
            row.loss.values(members, student, temperature=bad)


@every
def test_graph_and_half_precision_are_eager(row):
    members, student = draw(row)
    plain = gradients(row, members, student, 2.0)
    shapes = [tf.TensorSpec((None, *array.shape[1:]), tf.float32) for array in (members, student)]
    got = tf.function(lambda m, s: gradients(row, m, s, 2.0), input_signature=shapes, autograph=False)(members, student)
    np.testing.assert_allclose(got[0], plain[0], rtol=2e-6)
    np.testing.assert_allclose(got[1], plain[1], atol=2e-6 * np.abs(plain[1]).max())
    halves = [tf.cast(side, "bfloat16") for side in (members, student)]
    rounded = [tf.cast(side, "float32") for side in halves]
    np.testing.assert_array_equal(row.loss.values(*halves), row.loss.values(*rounded))
    assert gradients(row, *halves)[1].dtype == "bfloat16"


@pytest.mark.slow
@every
def test_xla_is_eager(row):
    members, student = draw(row)
    plain = gradients(row, members, student, 2.0)
    got = tf.function(lambda m, s: gradients(row, m, s, 2.0), jit_compile=True, autograph=False)(members, student)
    np.testing.assert_allclose(got[0], plain[0], rtol=2e-6)
    np.testing.assert_allclose(got[1], plain[1], atol=5e-6 * np.abs(plain[1]).max())


@every
def test_function_and_class_are_twins(row):
    if row.function is None:
        assert isinstance(row.loss, (losses.TrustWeighted, losses.EnsembleGaussianKL))  # composed of other functions
        return
    parameters = inspect.signature(row.function).parameters
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in parameters.values())
    own = inspect.signature(type(row.loss)).parameters
    for key in set(own) - {"name", "reduction"}:
        assert own[key].default == parameters[key].default, key
    members, student = draw(row)
    options = {key: value for key, value in row.loss.get_config().items() if key in parameters}
    names = [key for key in parameters if key.startswith(("teacher", "student"))]
    got = row.function(**dict(zip(names, (members, student), strict=True)), **options)
    np.testing.assert_array_equal(got, row.loss.values(members, student))


@every
def test_the_config_is_restored(row):
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(row.loss))
    assert type(twin) is type(row.loss)
    assert twin.get_config() == row.loss.get_config()
    members, student = draw(row)
    np.testing.assert_array_equal(twin.values(members, student), row.loss.values(members, student))


@every
def test_members_of_the_wrong_shape_are_refused_and_nan_gives_nan(row):
    members, student = draw(row)
    with pytest.raises(ValueError, match="expected"):
        row.loss.values(members[:, 0], student)
    with pytest.raises(ValueError, match="expected"):
        row.loss.values(members[..., :3], student)
    for side in range(2):
        spoilt = [members.copy(), student.copy()]
        spoilt[side][1, ..., 1] = np.nan
        got = row.loss.values(*spoilt).numpy()
        assert np.isnan(got[1])
        assert np.isfinite(np.delete(got, 1)).all()


def test_every_loss_of_members_is_in_the_table():
    public = [getattr(losses, name) for name in losses.__all__]
    wanted = {each for each in public if isinstance(each, type) and getattr(each, "needs_members", False)}
    assert wanted <= {type(row.loss) for row in ROWS}
