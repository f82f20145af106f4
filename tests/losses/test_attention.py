"""Losses on attention, spatial and of transformers, and on the attention between layers."""

import numpy as np
import pytest
import tensorflow as tf

from keras_distill import adapters, losses
from tests import models
from tests.golden.record_features import Case


def pair(function, **options):
    return lambda student, teacher: function(teacher_features=teacher, student_features=student, **options)


def several(function, count, **options):
    return lambda *layers: function(
        teacher_features=list(layers[count:]), student_features=list(layers[:count]), **options
    )


@pytest.mark.parametrize(
    "name, function",
    [
        ("at/F0/p2", pair(losses.attention_transfer)),
        ("at/F1/p2", pair(losses.attention_transfer)),
        ("at/F2/p2", pair(losses.attention_transfer)),
        ("at/F0/p4", pair(losses.attention_transfer, p=4)),
        ("at_paper/F0", pair(losses.attention_transfer, mode="paper")),
        ("nst/F0", pair(losses.neuron_selectivity)),
        ("nst/F1", pair(losses.neuron_selectivity)),
        ("nst/F2", pair(losses.neuron_selectivity)),
        ("patient_kd/501/nomask", pair(losses.hidden_states, mode="patient")),
    ],
)
def test_loss_is_the_public_one(name, function):
    assert Case(name).check(function, "student", "teacher") == ["student"]


@pytest.mark.parametrize(
    "name, function", [("at_multi/FM/p2", "attention_transfer"), ("nst_multi/FM", "neuron_selectivity")]
)
def test_the_sum_over_stages_equals_the_public_codes(name, function):
    def loss(*layers):
        return sum(pair(getattr(losses, function))(*each) for each in zip(layers[:3], layers[3:], strict=True))

    names = [f"student_{i}" for i in range(3)] + [f"teacher_{i}" for i in range(3)]
    assert len(Case(name).check(loss, *names)) == 3


def oracle_attention(features, p, absolute=True):
    features = features.astype("float64")
    powered = (np.abs(features) if absolute else features) ** p
    flat = powered.mean(-1).reshape(len(features), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_odd_powers_with_and_without_the_sign():
    case = Case("at/F0/p2")
    for p, signed, magnitude in ((1, 0.028928, 0.002725), (3, 0.034352, 0.012839)):  # QUIRKS, 2.2
        for absolute, expected in ((False, signed), (True, magnitude)):
            got = np.mean(pair(losses.attention_transfer, p=p, absolute=absolute)(case["student"], case["teacher"]))
            oracle = [oracle_attention(case[side], p, absolute) for side in ("student", "teacher")]
            np.testing.assert_allclose(got, ((oracle[0] - oracle[1]) ** 2).mean(), rtol=1e-6)
            np.testing.assert_allclose(got, expected, atol=5e-7)


@pytest.mark.parametrize("magnitude", [1e-12, 1e-4, 1.0, 1e4, 1e9])
def test_attention_transfer_has_no_scale(magnitude):
    case = Case("at/F0/p4")
    loss = pair(losses.attention_transfer, p=4)
    x = tf.constant(magnitude * case["student"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_mean(loss(x, case["teacher"] / magnitude))
    np.testing.assert_allclose(value, case["loss"], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(value, x) * magnitude, case["grad_student"], atol=1e-8)


def test_an_empty_map_has_the_teachers_norm_as_loss_and_no_gradient():
    teacher = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype("float32")
    x = tf.zeros((2, 3, 3, 5))
    for loss, expected in (
        (losses.AttentionTransfer(), 1 / 9),
        (losses.AttentionTransfer(mode="paper"), 1.0),
        (losses.AttentionTransfer(p=1), 1 / 9),
    ):
        with tf.GradientTape() as tape:
            tape.watch(x)
            values = loss.values(teacher, x)
        np.testing.assert_allclose(values, [expected] * 2, rtol=1e-6)
        np.testing.assert_array_equal(tape.gradient(values, x), tf.zeros_like(x))


@pytest.mark.parametrize("kernel", ["polynomial", "linear", "gaussian"])
def test_selectivity_is_the_mean_discrepancy_of_all_pairs_of_channels(kernel):
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(2, 3, 3, 4)), rng.normal(size=(2, 3, 3, 5))
    for example in range(2):
        s, t = (side[example].reshape(9, -1).T for side in (student, teacher))
        s, t = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (s, t))
        width = np.mean([((a - b) ** 2).sum() for a in s for b in t])
        k = {
            "polynomial": lambda a, b: (a @ b) ** 2,
            "linear": lambda a, b: a @ b,
            "gaussian": lambda a, b, width=width: np.exp(-((a - b) ** 2).sum() / (2 * width)),
        }[kernel]
        mean = lambda left, right, k=k: np.mean([k(a, b) for a in left for b in right])  # noqa: E731
        expected = mean(t, t) + mean(s, s) - 2 * mean(s, t)
        got = pair(losses.neuron_selectivity, kernel=kernel)(student.astype("f4"), teacher.astype("f4"))[example]
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("kernel", ["polynomial", "linear", "gaussian"])
def test_selectivity_ignores_the_order_and_the_scale_of_channels(kernel):
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(size=(2, 3, 4, 4, 6)).astype("float32")
    loss = pair(losses.neuron_selectivity, kernel=kernel)
    changed = student[..., ::-1] * np.float32([1, 2, 3, 4, 5, 60])
    np.testing.assert_allclose(loss(changed, teacher), loss(student, teacher), rtol=1e-5)
    np.testing.assert_allclose(loss(changed, student), 0.0, atol=1e-6)


def test_a_dead_channel_gets_no_gradient():
    rng = np.random.default_rng(3)
    teacher = rng.normal(size=(2, 3, 3, 4)).astype("float32")
    x = tf.constant(rng.normal(size=(2, 3, 3, 4)).astype("float32") * np.float32([1, 0, 1, 1]))
    for kernel in ("polynomial", "linear", "gaussian"):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(pair(losses.neuron_selectivity, kernel=kernel)(x, teacher))
        gradient = tape.gradient(value, x).numpy()
        assert np.abs(gradient[..., 1]).max() == 0.0 and 1e-4 < np.abs(gradient[..., 0]).max() < 10.0


def test_tinybert_layers_are_the_public_ones():
    scores = ["student_att_0", "student_att_1", "teacher_att_1", "teacher_att_3"]
    both = lambda a, b, c, d: pair(losses.attention_maps)(a, c) + pair(losses.attention_maps)(b, d)  # noqa: E731
    assert len(Case("tinybert_att/501").check(both, *scores)) == 2

    def hidden(*arrays):
        students, teachers, (kernel, bias) = arrays[:3], arrays[3:6], arrays[6:]
        return sum(pair(losses.hidden_states)(s @ kernel + bias, t) for s, t in zip(students, teachers, strict=True))

    names = [f"student_rep_{i}" for i in range(3)] + [f"teacher_rep_{2 * i}" for i in range(3)]
    assert len(Case("tinybert_hidden/501").check(hidden, *names, "proj_weight", "proj_bias")) == 5


@pytest.mark.parametrize("function", ["hint", "hidden_states"])
@pytest.mark.parametrize("which", ["mask", "nomask"])
def test_hidden_states_with_and_without_padding_are_the_public_ones(function, which):
    for distance in ("mse", "cosine"):
        case = Case(f"hidden_{distance}/501/{which}")
        option = {"distance" if function == "hint" else "mode": distance}
        mask = case["mask"] if which == "mask" else None
        assert case.check(pair(getattr(losses, function), mask=mask, **option), "student", "teacher") == ["student"]


def test_scores_with_padding_are_the_public_ones():
    case = Case("textbrewer_att_mse_loss/501/mask")
    loss = pair(losses.attention_maps, mask=case["mask"], padding_score=None)
    assert case.check(loss, "student", "teacher") == ["student"]


@pytest.mark.parametrize("which", ["mask", "full"])
@pytest.mark.parametrize("version, relations", [("v1", "qk_vv"), ("v2", "qq_kk_vv")])
def test_minilm_is_the_public_one(which, version, relations):
    case = Case(f"minilm_{version}_relations/521/{which}/{relations}")
    options = {"num_heads": 2, "relations": relations.split("_"), "mask": case["attention_mask"]}
    names = [f"{side}_{letter}" for side in ("student", "teacher") for letter in "qkv"]
    assert len(case.check(several(losses.self_attention_relation, 3, **options), *names)) == 3


def test_minilm_on_probabilities_is_the_papers_not_the_double_softmax():
    case = Case("minilm_v1_glmkd/521")
    sides = {side: [case[f"{side}_attention_probs"], case[f"{side}_value"]] for side in ("student", "teacher")}
    maps = losses.AttentionMaps("kl", from_scores=False).values(sides["teacher"][0], sides["student"][0])
    values = [sides[side][1].transpose(0, 2, 1, 3) for side in ("teacher", "student")]  # (batch, tokens, heads, size)
    relation = losses.SelfAttentionRelation(num_heads=2, relations=["vv"]).values(*values)
    (paper,) = case.variants.values()
    np.testing.assert_allclose(np.mean(maps + relation), paper, rtol=1e-6)
    logits = [np.log(sides[side][0]) for side in ("teacher", "student")]
    np.testing.assert_allclose(losses.AttentionMaps("kl").values(*logits), maps, rtol=1e-5)


def test_queries_of_a_keras_layer_are_split_as_they_are_written():
    rng = np.random.default_rng(4)
    flat = rng.normal(size=(2, 5, 6)).astype("float32")
    other = rng.normal(size=(2, 5, 4)).astype("float32")
    loss = losses.SelfAttentionRelation(num_heads=2, relations=["qq"])
    np.testing.assert_allclose(loss.values(flat.reshape(2, 5, 3, 2), other), loss.values(flat, other), rtol=1e-6)
    # One head of size 6 by hand.
    one = losses.self_attention_relation(
        teacher_features=flat, student_features=flat * 2, num_heads=1, relations=["qq"]
    )
    log_t, log_s = (models.log_softmax(c * flat.astype("f8") @ flat.transpose(0, 2, 1) / 6**0.5) for c in (1, 4))
    np.testing.assert_allclose(one, (np.exp(log_t) * (log_t - log_s)).sum(-1).mean(-1), rtol=1e-5)


def test_semantic_calibration_is_the_public_one():
    case = Case("semckd/411")
    sizes = {0: 8, 1: 4, 2: 2}
    parts = {}
    for name in case.inputs:
        if name.startswith(("key", "query", "regressor")):
            parts[name] = case[name]

    def embed(features, prefix):
        layer = adapters.SimilarityEmbedding(2, batch_size=8)
        layer.build(features.shape)
        layer.first.set_weights([weights[f"{prefix}_linear1_weight"], weights[f"{prefix}_linear1_bias"]])
        layer.second.set_weights([weights[f"{prefix}_linear2_weight"], weights[f"{prefix}_linear2_bias"]])
        trained.append((prefix, layer))
        return layer(features)

    def regress(features, prefix, channels):
        layer = adapters.BottleneckRegressor(channels)
        layer.build(features.shape)
        for index, place in enumerate((0, 3, 6)):
            layer.convolutions[index].set_weights([weights[f"{prefix}_regressor_{place}_weight"]])
        for index, place in enumerate((1, 4)):
            norm = layer.norms[index]
            norm.gamma.assign(weights[f"{prefix}_regressor_{place}_weight"])
            norm.beta.assign(weights[f"{prefix}_regressor_{place}_bias"])
        trained.append((prefix, layer))
        return layer(features, training=True)

    weights, trained = parts, []
    teachers = [tf.constant(case[f"teacher_{i}"]) for i in range(3)]
    students = [tf.constant(case[f"student_{i}"]) for i in range(2)]
    with tf.GradientTape() as tape:
        tape.watch(students)
        queries = tf.stack([embed(s, f"query_weight{i}") for i, s in enumerate(students)], axis=1)
        keys = tf.stack([embed(t, f"key_weight{i}") for i, t in enumerate(teachers)], axis=1)
        attention = losses.layer_attention(queries=queries, keys=keys)
        pairs = [
            [
                regress(adapters.AdaptiveAveragePool((sizes[j],) * 2)(s), f"regressor{i}{j}", teachers[j].shape[-1])
                for j in range(3)
            ]
            for i, s in enumerate(students)
        ]
        values = losses.semantic_calibration(teacher_features=teachers, student_features=pairs, attention=attention)
        value = tf.reduce_mean(values)
    np.testing.assert_allclose(value, case["loss"], rtol=1e-6)
    np.testing.assert_allclose(attention, case["attention"], atol=1e-6)
    kernels = {
        "query_weight0": lambda layer: (layer.first.kernel, "linear1_weight"),
        "key_weight2": lambda layer: (layer.second.bias, "linear2_bias"),
        "regressor02": lambda layer: (layer.convolutions[1].kernel, "regressor_3_weight"),
        "regressor12": lambda layer: (layer.norms[0].gamma, "regressor_1_weight"),
    }
    sources = {f"student_{i}": each for i, each in enumerate(students)}
    for prefix, layer in trained:
        if prefix in kernels:
            variable, name = kernels[prefix](layer)
            sources[f"{prefix}_{name}"] = variable.value
    for name, gradient in zip(sources, tape.gradient(value, list(sources.values())), strict=True):
        wanted = case[f"grad_{name}"]
        np.testing.assert_allclose(gradient, wanted, atol=1e-6 + 1e-5 * np.abs(wanted).max(), err_msg=name)


def test_attention_between_layers_must_fit_the_lists():
    with pytest.raises(ValueError, match="semantic_calibration: expected one adapted student layer for each entry"):
        losses.semantic_calibration(
            teacher_features=[np.zeros((2, 3))], student_features=[[np.zeros((2, 3))]], attention=np.zeros((2, 1, 2))
        )


def test_heads_that_do_not_divide_are_refused():
    states = np.zeros((1, 3, 10), "float32")
    with pytest.raises(ValueError, match="self_attention_relation: expected channels that 4 heads divide, got 10"):
        losses.self_attention_relation(teacher_features=states, student_features=states, num_heads=4, relations=["vv"])
    with pytest.raises(
        ValueError, match=r"expected \[queries, keys, values\] for the relations qq, kk, vv, got 1 tens"
    ):
        losses.self_attention_relation(teacher_features=states, student_features=states, num_heads=2)
    with pytest.raises(ValueError, match=r"SelfAttentionRelation: expected relations to be one of 'qq'.*got qx\."):
        losses.SelfAttentionRelation(relations=["qx"])
