"""Losses on one layer's values and on the flow between layers: golden references, section L, and properties."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_distill import losses
from keras_distill.losses._features import layer_flow, maps
from tests.golden.record_features import Case


def pair(function, **options):
    return lambda student, teacher: function(teacher_features=teacher, student_features=student, **options)


def several(function, count, **options):
    return lambda *layers: function(
        teacher_features=list(layers[count:]), student_features=list(layers[:count]), **options
    )


def stages(count):
    return [f"student_{i}" for i in range(count)] + [f"teacher_{i}" for i in range(count)]


def algorithms_maps():
    """The maps of ALGORITHMS, section L: student's and teacher's, channels-last."""
    i, c, h, w = np.meshgrid(*map(np.arange, (4, 3, 4, 4)), indexing="ij")
    student = np.sin(0.1 * (1 + i) * (1 + c) + 0.37 * h + 0.53 * w)
    teacher = np.cos(0.2 * (1 + i) + 0.31 * (1 + c) * h - 0.17 * w)
    return [side.transpose(0, 2, 3, 1).astype("float32") for side in (student, teacher)]


MS, MT = algorithms_maps()
MAPS = {"teacher_features": MT, "student_features": MS}


@pytest.mark.parametrize("name", ["fitnet_hint_conv1x1/301", "fitnet_hint_conv1x1/302"])
def test_a_hint_with_a_convolution_equals_the_public_code(name):
    case = Case(name)

    def loss(student, teacher, kernel, bias=0.0):
        adapted = tf.nn.conv2d(student, kernel, 1, "SAME") + bias
        return losses.hint(teacher_features=teacher, student_features=adapted)

    names = ["student", "teacher", "conv_weight", *(["conv_bias"] if "conv_bias" in case.inputs else [])]
    assert len(case.check(loss, *names)) == len(names) - 1


def test_hint_distances_against_numpy():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 4, 3, 2)).astype("float32") * 2
    gap = (student - teacher).astype("float64")
    cosine = (student * teacher).sum(-1) / np.linalg.norm(student, axis=-1) / np.linalg.norm(teacher, axis=-1)
    expected = {
        "mse": (gap**2).mean((1, 2, 3)),
        "mae": np.abs(gap).mean((1, 2, 3)),
        "huber": np.where(np.abs(gap) <= 1, gap**2 / 2, np.abs(gap) - 0.5).mean((1, 2, 3)),
        "cosine": (1 - cosine).mean((1, 2)),
    }
    for distance, values in expected.items():
        got = pair(losses.hint, distance=distance)(student, teacher)
        np.testing.assert_allclose(got, values, rtol=2e-6, err_msg=distance)
    got = pair(losses.hint, mode="paper")(student, teacher)
    np.testing.assert_allclose(got, 0.5 * (gap**2).sum((1, 2, 3)), rtol=2e-6)


def test_huber_equals_that_of_keras():
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(2, 6, 5)).astype("float32") * 2
    theirs = keras.losses.Huber(reduction=None)(teacher, student)
    np.testing.assert_allclose(pair(losses.hint, distance="huber")(student, teacher), theirs, rtol=1e-6)


def test_the_cosine_loss_of_a_zero_vector_is_one_without_gradient():
    student, teacher = tf.constant([[0.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 2.0], [0.0, 0.0]], "float32")
    with tf.GradientTape() as tape:
        tape.watch(student)
        values = pair(losses.hint, distance="cosine")(student, teacher)
    np.testing.assert_allclose(values, [1.0, 0.0], rtol=1e-6, atol=0)
    np.testing.assert_array_equal(tape.gradient(values, student), np.zeros((2, 2)))


@pytest.mark.parametrize("length, cells", [(8, 4), (7, 3), (5, 4), (6, 1), (3, 3)])
@pytest.mark.parametrize("kind", ["average", "max"])
def test_pooling_covers_the_windows_it_says(length, cells, kind):
    features = np.random.default_rng(2).normal(size=(2, length, 4, 3)).astype("float32")
    reduce = np.mean if kind == "average" else np.max
    expected = np.stack(
        [reduce(features[:, i * length // cells : -(-(i + 1) * length // cells)], axis=1) for i in range(cells)], axis=1
    )
    np.testing.assert_allclose(maps.pool(features, [cells, None], kind), expected, rtol=1e-6, atol=1e-7)


def test_the_larger_map_is_pooled_for_teacher_or_student():
    rng = np.random.default_rng(3)
    small, large = rng.normal(size=(2, 2, 2, 3)).astype("float32"), rng.normal(size=(2, 4, 4, 3)).astype("float32")
    pooled = large.reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    expected = pair(losses.hint)(small, pooled)
    np.testing.assert_allclose(pair(losses.hint)(small, large), expected, rtol=1e-6)
    np.testing.assert_allclose(pair(losses.hint)(large, small), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["vid/361", "vid/362"])
def test_variational_information_is_the_public_one(name):
    def loss(student, teacher, first, second, third, raw):
        mean = tf.nn.avg_pool2d(student, 2, 2, "SAME") if student.shape[1] > teacher.shape[1] else student
        for kernel in (first, second):
            mean = tf.nn.relu(tf.nn.conv2d(mean, kernel, 1, "SAME"))
        mean = tf.nn.conv2d(mean, third, 1, "SAME")
        return losses.VariationalInformation()(teacher, [mean, raw])

    assert len(Case(name).check(loss, "student", "teacher", "w0", "w1", "w2", "log_scale")) == 5


def test_variational_information_is_scipys_likelihood_without_its_constant():
    rng = np.random.default_rng(4)
    mean, teacher = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    raw = rng.normal(size=5).astype("float32")
    sd = np.sqrt(np.logaddexp(0, raw.astype("float64")) + 1e-5)
    expected = -(stats.norm(mean, sd).logpdf(teacher) + 0.5 * np.log(2 * np.pi)).mean((1, 2))
    got = losses.variational_information(teacher_features=teacher, student_features=mean, raw_variance=raw)
    np.testing.assert_allclose(got, expected, rtol=2e-6)
    huge = losses.variational_information(teacher_features=teacher, student_features=mean, raw_variance=raw * 0 + 90)
    np.testing.assert_allclose(huge, ((mean - teacher) ** 2 / 180 + np.log(90.0) / 2).mean((1, 2)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"VariationalInformation: expected student_features to be \[mean, raw_var"):
        losses.VariationalInformation()(teacher, mean)


def test_activation_boundaries_are_the_public_ones():
    case = Case("ab/371")
    assert len(case.check(several(losses.activation_boundaries, 2), *stages(2))) == 2
    Case("ab_torchdistill/371").check(several(losses.activation_boundaries, 2, stage_decay=1.0, scale=1.0), *stages(2))
    got = [
        np.mean(pair(losses.activation_boundaries)(case[f"student_{i}"], case[f"teacher_{i}"])) / 2 ** (1 - i)
        for i in range(2)
    ]
    np.testing.assert_allclose(got, case["per_stage"], rtol=1e-5)


def test_margin_relu_is_the_public_one():
    case = Case("ofd/425")
    loss = lambda student, teacher, margin: losses.margin_relu(  # noqa: E731
        teacher_features=teacher, student_features=student, margin=margin
    )
    assert case.check(loss, "student", "teacher", "margin") == ["student"]


def test_margin_is_the_mean_of_a_gaussians_negative_part():
    gamma, beta = np.array([1.0, -2.0, 0.5, 0.7]), np.array([0.3, -1.0, 0.0, 0.9])
    expected = [
        stats.truncnorm.mean(-np.inf, -b / abs(g), loc=b, scale=abs(g)) for g, b in zip(gamma, beta, strict=True)
    ]
    np.testing.assert_allclose(losses.negative_mean(gamma=gamma, beta=beta), expected, rtol=1e-6)
    # Hardly ever negative: -3 sd; zero spread: the offset if it is negative.
    got = losses.negative_mean(gamma=[1.0, 0.0, 0.0], beta=[3.2, -0.5, 0.5])
    np.testing.assert_array_equal(got, np.array([-3.0, -0.5, 0.0], "float32"))


def test_margin_relu_of_a_batch_norm():
    layer = keras.layers.BatchNormalization()
    layer.build((None, 2))
    layer.gamma.assign([1.0, 2.0])
    layer.beta.assign([0.5, -0.5])
    loss = losses.MarginRelu.of(layer)
    np.testing.assert_allclose(loss.margin, losses.negative_mean(gamma=[1.0, 2.0], beta=[0.5, -0.5]))
    with pytest.raises(ValueError, match=r"MarginRelu\.of: expected a built keras\.layers\.BatchNormalization, got D"):
        losses.MarginRelu.of(keras.layers.Dense(2))
    with pytest.raises(ValueError, match=r"MarginRelu: expected margin <= 0, a number or one per channel, got 0\.5"):
        losses.MarginRelu(0.5)


def test_hierarchical_context_is_the_public_one():
    case = Case("reviewkd_hcl/401")
    assert len(case.check(several(losses.hierarchical_context, 4), *stages(4))) == 4
    for i, expected in enumerate(case["per_stage"]):
        got = np.mean(pair(losses.hierarchical_context)(case[f"student_{i}"], case[f"teacher_{i}"]))
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="HierarchicalContext: expected features without a mask"):
        losses.HierarchicalContext().values(MT, MS, mask=np.ones((4, 4, 4), bool))


def test_factor_transfer_equals_the_public_code_in_both_forms():
    for name in ("ft_repdistiller/381/p2_1", "ft_repdistiller/382/p2_1"):
        assert Case(name).check(pair(losses.factor_transfer), "student", "teacher") == ["student"]
    case = Case("ft_torchdistill/381/p1_mean")
    assert case.check(pair(losses.factor_transfer, mode="paper"), "student", "teacher") == ["student"]


def test_solution_flow_is_the_public_one_in_both_forms():
    case = Case("fsp/341")
    assert len(case.check(several(losses.solution_flow, 3), *stages(3))) == 3
    each = [
        np.mean(
            losses.solution_flow(
                teacher_features=[case[f"teacher_{i}"], case[f"teacher_{i + 1}"]],
                student_features=[case[f"student_{i}"], case[f"student_{i + 1}"]],
            )
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(each, case["per_pair"], rtol=1e-6)
    columns = several(losses.solution_flow, 3, pooling="max", distance="column_norm")
    assert len(Case("fsp_torchdistill/341").check(columns, *stages(3))) == 3


def test_solution_flow_of_masked_sequences_is_the_public_one():
    case = Case("textbrewer_fsp_loss/345/mask")
    loss = several(losses.solution_flow, 2, mask=case["mask"])
    assert len(case.check(loss, *stages(2))) == 2


def test_sum_of_squares_is_the_mean_times_the_entries():
    layers = [MS, MT[:, :2, :2]], [MT, MS[:, :2, :2]]
    mean, total = (losses.SolutionFlow(distance=distance).values(*layers) for distance in ("mean_square", "sum_square"))
    np.testing.assert_allclose(total, 9 * mean, rtol=1e-6)


def oracle_singular_vectors(teachers, students, signs=None):
    """KDSVD in NumPy's own SVD, float64; signs of the teacher's vectors as given, else largest component positive."""
    last, total = None, 0.0
    for index, (teacher, student) in enumerate(zip(teachers, students, strict=True)):
        flat = [side.reshape(len(side), -1, side.shape[-1]).astype("float64") for side in (teacher, student)]
        (_, _, vt), (_, _, vs) = (np.linalg.svd(side, full_matrices=False) for side in flat)
        goal, vs = vt[:, 0], vs[:, :4]
        largest = np.take_along_axis(goal, np.abs(goal).argmax(1)[:, None], 1)
        goal = goal * np.sign(largest if signs is None else (goal * signs[index][..., 0]).sum(1, keepdims=True))
        cosine = np.einsum("bkc,bc->bk", vs, goal)
        best = np.abs(cosine).argmax(1)
        rows = np.arange(len(goal))
        made = vs[rows, best] * np.sign(cosine[rows, best])[:, None]
        if last is not None:
            maps = [
                np.exp(-((now[:, :, None] - then[:, None, :]) ** 2) / 8)
                for now, then in zip((goal, made), last, strict=True)
            ]
            total = total + ((maps[1] - maps[0]) ** 2).sum((1, 2))
        last = (goal, made)
    return total


def test_singular_vectors_are_the_public_ones_once_the_signs_agree(monkeypatch):
    case = Case("kdsvd/351")
    signs = [case[f"teacher_v_{i}"] for i in range(3)]
    teachers, students = ([case[f"{side}_{i}"] for i in range(3)] for side in ("teacher", "student"))
    # The oracle of the next test is the public code, signs apart.
    np.testing.assert_allclose(oracle_singular_vectors(teachers, students, signs).mean(), case["loss"], rtol=1e-9)
    given = iter(signs)
    monkeypatch.setattr(layer_flow, "_turned", lambda v: v * tf.sign(tf.reduce_sum(v * next(given), 1, keepdims=True)))
    assert len(case.check(several(losses.singular_vectors, 3), *stages(3))) == 3


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (3, 2, 2, 7), (3, 9, 5)])
def test_singular_vectors_against_numpys_svd(shape):
    rng = np.random.default_rng(5)
    teachers, students = rng.normal(size=(2, 3, *shape)).astype("float32")
    got = several(losses.singular_vectors, 3)(*students, *teachers)
    np.testing.assert_allclose(got, oracle_singular_vectors(list(teachers), list(students)), rtol=1e-5)


def test_singular_vectors_have_a_finite_gradient_where_singular_values_coincide():
    eye = np.tile(np.eye(4, dtype="float32").reshape(1, 2, 2, 4), (2, 1, 1, 1))  # all four singular values are 1
    other = np.random.default_rng(6).normal(size=eye.shape).astype("float32")
    for first in (eye, np.zeros_like(eye)):
        layers = [tf.constant(first), tf.constant(other)]
        with tf.GradientTape() as tape:
            tape.watch(layers)
            value = tf.reduce_sum(losses.singular_vectors(teacher_features=[other, other + 1], student_features=layers))
        gradients = tape.gradient(value, layers)
        assert np.isfinite(value) and all(np.isfinite(each).all() for each in gradients)
        assert np.abs(gradients[1]).max() > 1e-4  # the other layer still learns
        assert np.abs(gradients[0]).max() < 10.0


@pytest.mark.parametrize(
    "function, arguments, expected",
    [
        (losses.solution_flow, {"teacher_features": [MT, MS], "student_features": [MS, MT]}, 0.0780932880),
        (losses.hierarchical_context, MAPS, 0.4901478323),
        (losses.margin_relu, {**MAPS, "margin": -0.5}, 20.8902061951),
        (losses.activation_boundaries, {**MAPS, "scale": 1.0}, 162.0115586809 / 4),
        (losses.attention_transfer, MAPS, 0.0235759538),
        (losses.similarity_preserving, MAPS, 0.0002681673),
        (losses.neuron_selectivity, MAPS, 0.9323654791),
        (
            losses.variational_information,
            {**MAPS, "raw_variance": np.log(np.expm1(np.full(3, 5 - 1e-5)))},
            0.8608242068,
        ),
    ],
)
def test_values_of_section_l(function, arguments, expected):
    # Rows of similarities nearly agree, so their small difference is known only to half a float32 step per entry.
    rounding = 1e-7 * np.sqrt(expected) if function is losses.similarity_preserving else 0.0
    np.testing.assert_allclose(np.mean(function(**arguments)), expected, rtol=1e-6, atol=rounding)
