"""A student built from its teacher equals the teacher with zeros in the rows that read a removed channel."""

import os

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_distill import Distiller, LogitsDistillation, students
from keras_distill.students._channels import Channels

L = keras.layers


def shake(model, seed=0):
    """Give batch normalisations nontrivial statistics: with 0 and 1 many errors would stay undetected."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.endswith(("moving_mean", "beta", "bias")):
            weight.assign(rng.normal(size=weight.shape) * 0.2)
        elif weight.path.endswith(("moving_variance", "gamma")):
            weight.assign(rng.uniform(0.6, 1.4, size=weight.shape))
    return model


def inputs_of(model, seed=1, rows=2):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(rows, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]


def zero_rows(model, kept):
    """Put zeros in the rows that read a removed channel, as given by ``kept``."""
    channels = Channels(model)
    gone = set()
    for record in channels.records.values():
        if record.produces:
            gone |= set(channels.roots[np.delete(record.outputs, kept[record.path])].tolist())
    for record in channels.records.values():
        if record.consumes is None:
            continue
        weight, axis = record.consumes
        values = record.layer.get_weights()
        rows = [i for i, slot in enumerate(record.axes[weight][axis]) if int(channels.roots[slot]) in gone]
        np.moveaxis(values[weight], axis, 0)[rows] = 0
        record.layer.set_weights(values)


def difference(model, built, seed=1):
    x = inputs_of(model, seed)
    kept_weights = model.get_weights()
    try:
        zero_rows(model, built.kept)
        want = [np.asarray(v) for v in keras.tree.flatten(model(x if len(x) > 1 else x[0], training=False))]
    finally:
        model.set_weights(kept_weights)
    got = keras.tree.flatten(built.model(x if len(x) > 1 else x[0], training=False))
    return max(np.abs(a - np.asarray(b)).max() / max(np.abs(a).max(), 1e-6) for a, b in zip(want, got, strict=True))


# Size, width multiplier, and whether it is small enough for every test run.
FAMILIES = {
    "MobileNetV2": (32, 0.35, True),
    "VGG16": (32, None, True),
    "MobileNetV3Small": (32, 1.0, False),
    "EfficientNetB0": (32, None, False),
    "ResNet50V2": (32, None, False),
    "DenseNet121": (32, None, False),
    "Xception": (71, None, False),
    "InceptionV3": (75, None, False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_keras_applications(family):
    size, alpha, quick = FAMILIES[family]
    if not quick and not os.environ.get("KERAS_DISTILL_FULL"):
        pytest.skip("takes 5 to 20 s; KERAS_DISTILL_FULL=1 runs it")
    more = {} if alpha is None else {"alpha": alpha}
    teacher = getattr(keras.applications, family)(
        weights=None, classes=5, classifier_activation=None, input_shape=(size, size, 3), **more
    )
    shake(teacher)
    built = students.from_teacher(teacher, width=0.6)
    assert built.cost.parameters < 0.5 * teacher.count_params()
    assert built.fraction_initialised == 1.0
    assert difference(teacher, built) < 1e-5


def mixed(rng, seed):
    """Return a random graph of sums, products, concatenations, squeeze-and-excite, shared and nested layers."""
    keras.utils.set_random_seed(seed)
    x = keras.Input((8, 8, 3))
    flows = [L.Conv2D(6, 3, padding="same")(x)]
    shared = L.Conv2D(6, 1, activation="relu")
    inner_in = keras.Input((8, 8, 6))
    inner = L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", depth_multiplier=1)(inner_in))
    nested = keras.Model(inner_in, L.Conv2D(6, 1)(L.PReLU(shared_axes=[1, 2])(inner)), name="nested")
    for _ in range(rng.integers(3, 7)):
        last = flows[-1]
        kind = rng.integers(0, 8)
        if last.shape[-1] != 6 and kind in (2, 3, 6):
            kind = 0
        if kind == 0:
            new = L.Conv2D(6, 3, padding="same", activation="relu")(L.BatchNormalization()(last))
        elif kind == 1:
            new = L.Concatenate()([last, flows[int(rng.integers(len(flows)))]])
        elif kind == 2:
            new = shared(last)
        elif kind == 3:
            new = nested(last)
        elif kind == 4:
            gate = L.GlobalAveragePooling2D()(last)
            gate = L.Dense(4, activation="relu")(gate)
            gate = L.Dense(last.shape[-1], activation="sigmoid")(gate)
            new = last * L.Reshape((1, 1, last.shape[-1]))(gate)
        elif kind == 5:
            new = L.SeparableConv2D(6, 3, padding="same", depth_multiplier=2)(last)
        elif kind == 6:
            others = [flow for flow in flows if flow.shape == last.shape]
            new = L.Add()([last, others[int(rng.integers(len(others)))]])
        else:
            new = L.Activation("swish")(keras.ops.maximum(last, 0.1 * last))
        flows.append(new)
    small = L.AveragePooling2D(4)(flows[-1])
    top = L.Dense(5, activation="tanh")(L.Flatten()(small))
    return shake(keras.Model(x, [L.Dense(3)(top), L.Dense(2)(L.GlobalMaxPooling2D()(flows[0]))]), seed)


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10_000), st.floats(0.2, 0.9))
def test_random_graphs(seed, width):
    teacher = mixed(np.random.default_rng(seed), seed)
    built = students.from_teacher(teacher, width=width, score="random", seed=seed)
    assert difference(teacher, built) < 1e-5
    whole = students.from_teacher(teacher, width=1.0).model
    x = inputs_of(teacher)[0]
    for a, b in zip(teacher(x), whole(x), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_sequential_models_stay_sequential_and_save(tmp_path):
    teacher = keras.Sequential(
        [
            keras.Input((9, 4)),
            L.Conv1D(8, 3, name="conv"),
            L.ReLU(),
            L.Flatten(),
            L.Dense(12, name="hidden"),
            L.Dense(3),
        ]
    )
    built = students.from_teacher(teacher, width={"conv": 5})
    assert isinstance(built.model, keras.Sequential)
    assert len(built.kept["conv"]) == 5
    assert len(built.kept["hidden"]) == 12
    assert difference(teacher, built) < 1e-5
    built.model.save(tmp_path / "student.keras")
    again = keras.saving.load_model(tmp_path / "student.keras")
    x = inputs_of(teacher)[0]
    np.testing.assert_array_equal(np.asarray(built.model(x)), np.asarray(again(x)))


def test_layers_that_need_all_channels_keep_them_and_report_why():
    x = keras.Input((6, 8))
    hidden = L.Dense(8, name="inside")(x)
    hidden = L.Dense(8, name="summed")(hidden)
    normal = L.LayerNormalization(name="norm")(hidden)
    built = students.from_teacher(keras.Model(x, L.Dense(2, name="head")(normal)), width=0.5)
    assert len(built.kept["inside"]) == 4
    assert len(built.kept["summed"]) == 8
    assert built.frozen["summed"] == "norm (LayerNormalization) reads all its channels together"
    assert built.frozen["head"] == "it is an output of the model"


def test_magnitude_and_activation_select_the_documented_channels():
    teacher = keras.Sequential([keras.Input((3,)), L.Dense(4, name="hidden", activation="relu"), L.Dense(2)])
    first = np.ones((3, 4), "float32") * [1, 3, 2, 4]
    teacher.layers[0].set_weights([first, np.zeros(4)])
    teacher.layers[1].set_weights([np.ones((4, 2)), np.zeros(2)])
    assert students.from_teacher(teacher, width=0.5).kept["hidden"].tolist() == [1, 3]
    teacher.layers[0].set_weights([first, np.array([0, -100.0, 0, -100.0])])  # these two are never active
    data = np.ones((8, 3), "float32")
    built = students.from_teacher(teacher, width=0.5, score="activation", data=data)
    assert built.kept["hidden"].tolist() == [0, 2]


def test_depth_takes_blocks_evenly_and_full_depth_is_the_teacher():
    x = hidden = keras.Input((4,))
    hidden = L.Dense(5)(hidden)
    for index in range(4):
        branch = L.Dense(5, activation="relu", name=f"inner{index}")(hidden)
        hidden = L.Add(name=f"sum{index}")([hidden, L.Dense(5, name=f"outer{index}")(branch)])
    teacher = keras.Model(x, L.Dense(2)(hidden))
    half = students.from_teacher(teacher, depth=0.5)
    names = [layer.name for layer in half.model.layers]
    assert [name for name in names if name.startswith("inner")] == ["inner0", "inner2"]
    for name in ("outer1", "outer3"):
        teacher.get_layer(name).set_weights([np.zeros((5, 5)), np.zeros(5)])
    values = inputs_of(teacher)[0]
    np.testing.assert_allclose(np.asarray(half.model(values)), np.asarray(teacher(values)), atol=1e-6)
    whole = students.from_teacher(teacher, depth=4).model
    np.testing.assert_array_equal(np.asarray(whole(values)), np.asarray(teacher(values)))


def test_a_plain_chain_is_shortened_by_layers_that_keep_the_shape():
    teacher = keras.Sequential([keras.Input((4,)), *[L.Dense(6, name=f"d{i}") for i in range(5)], L.Dense(2)])
    built = students.from_teacher(teacher, depth=2)
    assert [layer.name for layer in built.model.layers if layer.name.startswith("d")][:3] == ["d0", "d1", "d3"]


def test_a_teacher_that_a_distiller_held_gives_a_trainable_student_without_its_compile_settings():
    teacher = keras.Sequential([keras.Input((4,)), L.Dense(8), L.BatchNormalization(), L.Dense(3)])
    teacher.compile("sgd", "mse")
    Distiller(teacher, keras.Sequential([keras.Input((4,)), L.Dense(3)]), LogitsDistillation())
    student = students.from_teacher(teacher, width=0.5).model
    assert len(student.trainable_weights) == 6
    assert not student.compiled


def test_budgets_are_met_within_two_per_cent():
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(32, 3), L.ReLU(), L.Conv2D(32, 3), L.Flatten(), L.Dense(64), L.Dense(10)]
    )
    parameters = students.cost(teacher).parameters // 4
    built = students.from_teacher(teacher, budget=students.Budget(parameters=parameters))
    assert 0.98 * parameters <= built.cost.parameters <= parameters
    macs = students.cost(teacher).macs // 3
    built = students.from_teacher(teacher, budget=students.Budget(macs=macs))
    assert 0.98 * macs <= built.cost.macs <= macs


def small():
    return keras.Sequential([keras.Input((4,)), L.Dense(8, name="hidden"), L.Dense(3)], name="small")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.dense = L.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def built_subclass():
    model = Subclassed()
    model(np.ones((1, 3)))
    return model


def quantized():
    model = small()
    model.quantize("int8")
    return model


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (small, {"width": 1.5}, r"from_teacher: expected width > 0 and <= 1, got 1.5. 0.5 keeps half"),
        (
            small,
            {"width": {"hiden": 3}},
            r"from_teacher: expected width of layers whose .* got 'hiden'. Nearest: 'hidden'",
        ),
        (small, {"width": {"hidden": 9}}, r"from_teacher: expected a width from 1 to 8 for 'hidden', got 9"),
        (
            small,
            {"depth": 0.5},
            r"expected a model with residual blocks .* got 'small', which has none. Leave depth out",
        ),
        (
            small,
            {"budget": students.Budget(parameters=5)},
            r"that some size meets: parameters <= 5, got 11 for the smallest",
        ),
        (small, {"budget": students.Budget(macs=50), "width": 0.5}, r"expected either width or budget, got both"),
        (small, {"score": "taylor"}, r"from_teacher: expected score to be one of 'magnitude', 'activation', 'random'"),
        (small, {"score": "activation"}, r"from_teacher: expected data for score='activation', got None"),
        (
            small,
            {"score": "activation", "data": np.ones((5, 3))},
            r"data of shape \(None, 4\) for input .* got \(5, 3\)",
        ),
        (built_subclass, {"width": 0.5}, r"a Functional or Sequential model, got 'mine', a subclassed model without a"),
        (lambda: keras.Sequential([L.Dense(2)], name="raw"), {}, r"a built model, got 'raw', which is not built"),
        (lambda: keras.Sequential([keras.Input((2,)), L.ReLU()], name="bare"), {}, r"a model with weights, got 'bare'"),
        (quantized, {"width": 0.5}, r"expected layers in floating point, got 'hidden', which is quantised already"),
    ],
)
def test_bad_input_raises_a_clear_error(make, options, text):
    with pytest.raises(ValueError, match=text):
        students.from_teacher(make(), **options)


def bert():
    keras_hub = pytest.importorskip("keras_hub")
    return keras_hub.models.BertBackbone(
        vocabulary_size=30, num_layers=4, num_heads=2, hidden_dim=8, intermediate_dim=12, max_sequence_length=6
    )


def bert_inputs():
    rng = np.random.default_rng(0)
    return {
        "token_ids": rng.integers(0, 30, (2, 6)),
        "segment_ids": np.zeros((2, 6), "int32"),
        "padding_mask": np.array([[1] * 6, [1] * 4 + [0] * 2]),
    }


def test_bert_loses_blocks_and_feed_forward_channels():
    teacher = shake(bert())
    x = bert_inputs()
    outputs = {key: keras.ops.convert_to_numpy(value) for key, value in teacher(x).items()}
    whole = students.from_teacher(teacher, width=1.0, data=x).model(x)
    for key, value in outputs.items():
        np.testing.assert_array_equal(value, keras.ops.convert_to_numpy(whole[key]))
    built = students.from_teacher(teacher, width=0.5, depth=1.0, data=x)
    for index in range(4):
        kept = built.kept[f"{teacher.name}/transformer_layer_{index}/intermediate_dim"]
        assert len(kept) == 6
        dense = teacher.get_layer(f"transformer_layer_{index}")._feedforward_output_dense
        kernel, bias = dense.get_weights()
        kernel[np.setdiff1d(np.arange(12), kept)] = 0
        dense.set_weights([kernel, bias])
    want, got = teacher(x), built.model(x)
    for key in want:
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(want[key]), keras.ops.convert_to_numpy(got[key]), rtol=1e-5, atol=1e-5
        )


def test_half_of_bert_within_a_classifier_is_every_other_block():
    backbone = shake(bert())
    logits = L.Dense(3, name="head")(backbone.output["pooled_output"])
    flat = keras.Model(backbone.input, logits)
    inputs = {key: keras.Input((6,), dtype="int32", name=key) for key in backbone.input}
    nested = keras.Model(inputs, L.Dense(3)(backbone(inputs)["pooled_output"]), name="nested")
    assert flat.count_params() == nested.count_params()
    built = students.from_teacher(nested, depth=2)
    small = built.model.get_layer(backbone.name)
    assert built.kept[f"{backbone.name}/blocks"].tolist() == [0, 2]
    for new, old in ((0, 0), (1, 2)):
        for a, b in zip(
            small.get_layer(f"transformer_layer_{new}").weights,
            backbone.get_layer(f"transformer_layer_{old}").weights,
            strict=True,
        ):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_heads_of_a_backbone_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"head size of a keras-hub backbone is hidden_dim // num_heads, so neither"):
        students.from_teacher(bert(), width={"num_heads": 1}, data=bert_inputs())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["DistilBertBackbone", "RobertaBackbone", "GPT2Backbone"])
def test_other_backbones_are_the_teacher_at_full_width_and_smaller_at_half(family):
    keras_hub = pytest.importorskip("keras_hub")
    teacher = getattr(keras_hub.models, family)(
        vocabulary_size=30, num_layers=4, num_heads=2, hidden_dim=8, intermediate_dim=12, max_sequence_length=6
    )
    x = {key: value for key, value in bert_inputs().items() if key != "segment_ids"}
    whole = students.from_teacher(teacher, width=1.0, data=x).model
    for a, b in zip(keras.tree.flatten(teacher(x)), keras.tree.flatten(whole(x)), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
    half = students.from_teacher(teacher, depth=0.5, width=0.5, data=x)
    assert half.kept[f"{teacher.name}/blocks"].tolist() == [0, 2]
    assert half.cost.parameters < 0.5 * teacher.count_params()


@pytest.mark.parametrize("family", ["Bert", "Roberta", "GPT2"])
def test_an_embedding_tied_to_the_output_stays_tied(family):
    models = pytest.importorskip("keras_hub").models

    def made(blocks):
        backbone = getattr(models, f"{family}Backbone")(
            vocabulary_size=30, num_layers=blocks, num_heads=2, hidden_dim=8, intermediate_dim=12, max_sequence_length=6
        )
        return getattr(models, f"{family}{'CausalLM' if family == 'GPT2' else 'MaskedLM'}")(backbone)

    teacher, half = shake(made(4)), made(2)
    x = {name: value for name, value in bert_inputs().items() if name in teacher.input}
    if family != "GPT2":
        x["mask_positions"] = np.array([[1, 2], [0, 3]])
    student = students.from_teacher(teacher, depth=0.5, data=x).model
    assert student.count_params() == half.count_params()  # an untied one has 240 more
    whole = students.from_teacher(teacher, depth=1.0, data=x).model
    np.testing.assert_array_equal(np.asarray(whole(x)), np.asarray(teacher(x)))
    embedding = next(weight for weight in student.weights if tuple(weight.shape) == (30, 8))
    before = np.asarray(student(x))
    embedding.assign(embedding * 2.0)
    half.set_weights(student.get_weights())  # keras-hub's own tied model is the oracle
    np.testing.assert_allclose(np.asarray(student(x)), np.asarray(half(x)), rtol=1e-6, atol=1e-6)
    assert np.abs(np.asarray(student(x)) - before).max() > 1e-3
