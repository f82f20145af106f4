"""Adapters: their outputs and documented shapes, float32, round trips, and the choice from two shapes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import FeatureDistillation, adapters, losses
from tests.golden.record_features import Case
from tests.models import batches

# adapter, input shape (batch included; a list for two inputs)
ADAPTERS = [
    (lambda: adapters.Dense(5), (2, 7, 3)),
    (lambda: adapters.Dense(5), (2, 3)),
    (lambda: adapters.Conv1x1(5), (2, 4, 4, 3)),
    (lambda: adapters.Conv1x1(5, use_bias=False), (2, 4, 4, 3)),
    (lambda: adapters.ConvRegressor(5, (4, 4)), (2, 8, 8, 3)),
    (lambda: adapters.ConvRegressor(5, (8, 8)), (2, 4, 4, 3)),
    (lambda: adapters.ConvRegressor(5, (4, 3), relu=False), (2, 5, 5, 3)),
    (lambda: adapters.Embedding(5), (2, 2, 2, 3)),
    (lambda: adapters.Embedding(5, normalize=False), (2, 3)),
    (lambda: adapters.AdaptiveAveragePool((2, 3)), (2, 5, 2, 3)),
    (lambda: adapters.Resize((5, 6)), (2, 4, 4, 3)),
    (lambda: adapters.SequenceInterpolation(4), (2, 7, 3)),
    (lambda: adapters.AttentionPool(5), (2, 4, 4, 3)),
    (lambda: adapters.AttentionPool(), (2, 7, 3)),
    (lambda: adapters.VariationalRegressor(5, hidden_units=4), (2, 7, 3)),
    (lambda: adapters.VariationalRegressor(5, size=(2, 2)), (2, 4, 4, 3)),
    (lambda: adapters.Translator(5), (2, 4, 4, 3)),
    (lambda: adapters.Paraphraser(0.5), (2, 4, 4, 6)),
    (lambda: adapters.BottleneckRegressor(5), (2, 4, 4, 3)),
    (lambda: adapters.AttentionFusion(5, 4), [(2, 4, 4, 3), (2, 2, 2, 4)]),
    (lambda: adapters.AttentionFusion(5, 4, size=(8, 8)), (2, 4, 4, 3)),
    (lambda: adapters.LayerEmbedding(5), (2, 4, 4, 3)),
    (lambda: adapters.SimilarityEmbedding(5, batch_size=2), (2, 4, 4, 3)),
]
IDS = [f"{make().__class__.__name__}-{index}" for index, (make, _) in enumerate(ADAPTERS)]


def inputs_of(shape, seed=0):
    rng = np.random.default_rng(seed)
    if isinstance(shape, list):
        return [rng.normal(size=each).astype("float32") for each in shape]
    return rng.normal(size=shape).astype("float32")


@pytest.mark.parametrize("make, shape", ADAPTERS, ids=IDS)
def test_adapter_has_the_documented_shape_config_and_dtype(make, shape):
    """The documented shape is right; config and weights are restored; surrounding float16 changes no dtype."""
    inputs = inputs_of(shape)
    layer = make()
    outputs = keras.tree.flatten(layer(inputs))
    unknown = keras.tree.map_shape_structure(lambda each: (None, *each[1:]), shape)
    promised = [
        each.shape for each in keras.tree.flatten(layer.compute_output_spec(keras.tree.map_shape_structure(
            lambda each: keras.KerasTensor(each, "float32"), unknown
        )))
    ]  # fmt: skip
    declared = []
    keras.tree.map_shape_structure(lambda each: declared.append(tuple(each)), layer.compute_output_shape(unknown))
    for value, first, second in zip(outputs, promised, declared, strict=True):
        assert value.dtype == "float32"
        assert tuple(first) == tuple(second)
        assert tuple(value.shape)[1:] == tuple(first)[1:]
        assert first[0] in (None, value.shape[0])

    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    twin.set_weights(layer.get_weights())
    for one, two in zip(outputs, keras.tree.flatten(twin(inputs)), strict=True):
        np.testing.assert_array_equal(one, two)

    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = make()
        halves = keras.tree.map_structure(lambda each: tf.cast(each, "float16"), inputs)
        first = half(halves)
        half.set_weights(layer.get_weights())
        again = keras.tree.flatten(half(halves))
    finally:
        keras.config.set_dtype_policy("float32")
    assert {each.dtype for each in keras.tree.flatten(first)} == {tf.float32}
    exact = keras.tree.flatten(layer(keras.tree.map_structure(lambda each: tf.cast(each, "float32"), halves)))
    for one, two in zip(again, exact, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["fitnet_convreg/311", "fitnet_convreg/312", "fitnet_convreg/313"])
def test_conv_regressor_is_the_public_one(name):
    case = Case(name)
    layer = adapters.ConvRegressor(case["teacher"].shape[-1], case["teacher"].shape[1:3])
    layer.build(case["student"].shape)
    layer.convolution.set_weights([case["conv_weight"]])
    layer.normalization.gamma.assign(case["bn_weight"])
    layer.normalization.beta.assign(case["bn_bias"])
    student = tf.constant(case["student"])
    norm = layer.normalization
    sources = {
        "student": student,
        "conv_weight": layer.convolution.kernel,
        "bn_weight": norm.gamma,
        "bn_bias": norm.beta,
    }
    with tf.GradientTape() as tape:
        tape.watch(student)
        adapted = layer(student, training=True)
        value = tf.reduce_mean(losses.hint(teacher_features=case["teacher"], student_features=adapted))
    np.testing.assert_allclose(adapted, case["adapted"], atol=2e-6)
    np.testing.assert_allclose(value, case["loss"], rtol=1e-6)
    gradients = tape.gradient(value, [getattr(each, "value", each) for each in sources.values()])
    for key, gradient in zip(sources, gradients, strict=True):
        wanted = case[f"grad_{key}"]
        np.testing.assert_allclose(gradient, wanted, atol=2e-5 * np.abs(wanted).max(), err_msg=key)


def test_conv_regressor_refuses_what_no_convolution_gives():
    with pytest.raises(
        ValueError, match=r"ConvRegressor: expected a student map of twice, half or more than \(8, 8\), g"
    ):
        adapters.ConvRegressor(4, (8, 8)).build((None, 5, 5, 3))


@pytest.mark.parametrize("name", ["vid/361", "vid/362"])
def test_variational_regressor_and_its_loss_are_the_public_ones(name):
    case = Case(name)
    channels = case["teacher"].shape[-1]
    layer = adapters.VariationalRegressor(channels, size=case["teacher"].shape[1:3])
    layer.build(case["student"].shape)
    np.testing.assert_allclose(layer.raw_variance, case["log_scale"], atol=2.0)  # starts near 5, as in the public code
    np.testing.assert_allclose(np.logaddexp(0, layer.raw_variance) + 1e-5, 5.0, rtol=1e-6)
    for dense, kernel in zip(layer.maps, "012", strict=True):
        dense.kernel.assign(case[f"w{kernel}"][0, 0])
    layer.raw_variance.assign(case["log_scale"])
    student = tf.constant(case["student"])
    variables = [dense.kernel.value for dense in layer.maps] + [layer.raw_variance.value]
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = losses.VariationalInformation()(case["teacher"], layer(student))
    np.testing.assert_allclose(value, case["loss"], rtol=1e-6)
    for key, gradient in zip(
        ("student", "w0", "w1", "w2", "log_scale"), tape.gradient(value, [student, *variables]), strict=True
    ):
        wanted = case[f"grad_{key}"].reshape(gradient.shape)
        np.testing.assert_allclose(gradient, wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=key)


def test_attention_fusion_is_the_public_one():
    case = Case("reviewkd_abf/405")
    layer = adapters.AttentionFusion(7, 6)
    stage, residual = tf.constant(case["student"]), tf.constant(case["student_residual"])
    layer.build([stage.shape, residual.shape])
    sources = {
        "conv1_0_weight": layer.reduce.kernel,
        "conv1_1_weight": layer.reduce_norm.gamma,
        "conv1_1_bias": layer.reduce_norm.beta,
        "conv2_0_weight": layer.expand.kernel,
        "conv2_1_weight": layer.expand_norm.gamma,
        "conv2_1_bias": layer.expand_norm.beta,
        "att_conv_0_weight": layer.gates.kernel,
        "att_conv_0_bias": layer.gates.bias,
    }
    for key, variable in sources.items():
        variable.assign(case[key])
    with tf.GradientTape() as tape:
        tape.watch([stage, residual])
        output, fused = layer([stage, residual], training=True)
        value = tf.reduce_mean(losses.hierarchical_context(teacher_features=case["teacher"], student_features=output))
    np.testing.assert_allclose(output, case["output"], atol=3e-6)
    np.testing.assert_allclose(fused, case["residual"], atol=3e-6)
    np.testing.assert_allclose(value, case["loss"], rtol=1e-6)
    everything = [stage, residual, *(variable.value for variable in sources.values())]
    for key, gradient in zip(("student", "student_residual", *sources), tape.gradient(value, everything), strict=True):
        wanted = case[f"grad_{key}"]
        np.testing.assert_allclose(gradient, wanted, atol=2e-5 * np.abs(wanted).max(), err_msg=key)


def test_interpolation_is_numpys_at_the_centres_of_the_steps():
    steps = np.random.default_rng(1).normal(size=(1, 7, 1)).astype("float32")
    for length in (3, 7, 12):
        place = np.clip((np.arange(length) + 0.5) * 7 / length - 0.5, 0, 6)
        expected = np.interp(place, np.arange(7), steps[0, :, 0])
        np.testing.assert_allclose(adapters.SequenceInterpolation(length)(steps)[0, :, 0], expected, rtol=1e-5)


def test_interpolation_and_pool_leave_padding_out():
    rng = np.random.default_rng(2)
    steps = rng.normal(size=(2, 6, 3)).astype("float32")
    mask = np.arange(6) < np.array([[4], [6]])
    garbage = np.where(mask[..., None], steps, 1e9)
    layer = adapters.SequenceInterpolation(3)
    np.testing.assert_array_equal(layer(garbage, mask=mask), layer(steps, mask=mask))
    np.testing.assert_allclose(layer(steps, mask=mask)[1], layer(steps)[1], rtol=1e-6)
    np.testing.assert_array_equal(layer.compute_mask(steps, mask), [[True, True, False], [True] * 3])
    pool = adapters.AttentionPool()
    pool.build(steps.shape)
    np.testing.assert_allclose(pool(garbage, mask=mask)[0], steps[0, :4].mean(0), rtol=1e-5)  # starts as the mean
    pool.query.assign([1.0, -2.0, 0.5])
    weights = np.exp(steps[0, :4] @ [1.0, -2.0, 0.5] / 3**0.5)
    np.testing.assert_allclose(pool(garbage, mask=mask)[0], weights @ steps[0, :4] / weights.sum(), atol=1e-6)


def test_mask_reaches_the_pool_from_the_layer_before():
    inputs = keras.Input((None, 2))
    masked = keras.layers.Masking()(inputs)
    model = keras.Model(inputs, adapters.AttentionPool()(masked))
    steps = np.array([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]], "float32")
    np.testing.assert_allclose(model(steps), [[2.0, 3.0]], rtol=1e-6)


def test_paraphraser_learns_to_reconstruct_with_the_weights_that_the_factor_uses():
    rng = np.random.default_rng(3)
    features = (rng.normal(size=(16, 3, 3, 2)) @ rng.normal(size=(2, 4))).astype("float32")  # from two channels
    layer = adapters.Paraphraser(0.5)
    model = layer.autoencoder((3, 3, 4))
    before = layer(features)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    history = model.fit(batches(features, features, size=16), epochs=30, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]
    assert before.shape == (16, 3, 3, 2) and np.abs(layer(features) - before).max() > 1e-3
    np.testing.assert_allclose(model(features), layer.reconstruct(layer(features)), rtol=1e-6)


def test_memory_starts_in_its_range_and_follows_its_momentum():
    bank = adapters.MemoryBank(200, 12, momentum=0.5, seed=1)
    memory = bank.memory.numpy()
    assert np.abs(memory).max() <= 0.5 and np.abs(memory).max() > 0.48  # sqrt(3 / 12)
    new = np.random.default_rng(4).normal(size=(2, 12)).astype("float32")
    bank.update(new, np.array([7, 3]))
    mixed = 0.5 * memory[[7, 3]] + 0.5 * new
    expected = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    np.testing.assert_allclose(bank.candidates(np.array([7, 3])), expected, rtol=1e-5)
    others = np.delete(np.arange(200), [3, 7])
    np.testing.assert_array_equal(bank.memory.numpy()[others], memory[others])
    assert bank.trainable_variables == []


def test_similarity_embedding_requires_its_batch_size():
    layer = adapters.SimilarityEmbedding(2, batch_size=8)
    with pytest.raises(ValueError, match="SimilarityEmbedding: expected a batch of 8, got 6"):
        layer(np.zeros((6, 3), "float32"))


@pytest.mark.parametrize(
    "teacher, student, said",
    [
        ((None, 8), (None, 8), "no adapter is needed"),
        ((None, 8), (None, 5), "Dense(8) on the student"),
        ((None, 9, 8), (None, 9, 5), "Dense(8) on the student"),
        ((None, None, 8), (None, None, 5), "Dense(8) on the student"),
        ((None, 6, 8), (None, 9, 8), "SequenceInterpolation(6) on the student"),
        ((None, 6, 8), (None, 9, 5), "SequenceInterpolation(6), Dense(8) on the student"),
        ((None, 4, 4, 8), (None, 4, 4, 8), "no adapter is needed"),
        ((None, 4, 4, 8), (None, 4, 4, 5), "Conv1x1(8) on the student"),
        ((None, 4, 4, 8), (None, 8, 8, 5), "AdaptiveAveragePool((4, 4)), Conv1x1(8) on the student"),
        ((None, 8, 8, 8), (None, 4, 4, 5), "Conv1x1(8) on the student"),
        ((None, 8), (None, 4, 4, 5), "AttentionPool(8) on the student"),
        ((None, 8), (None, 9, 5), "AttentionPool(8) on the student"),
        ((None, 16, 8), (None, 4, 4, 5), "Reshape((16, 5)), Dense(8) on the student"),
        ((None, 9, 8), (None, 4, 4, 5), "Reshape((16, 5)), SequenceInterpolation(9), Dense(8) on the student"),
        ((None, 4, 4, 8), (None, 16, 5), "Reshape((4, 4, 5)), Conv1x1(8) on the student"),
    ],
)
def test_auto_adapts_one_shape_to_another_and_reports_how(teacher, student, said):
    adapter, side, reason = adapters.auto(teacher, student)
    assert reason == f"student {student} to teacher {teacher}: {said}" and side == "student"
    features = np.random.default_rng(5).normal(size=[2 if n is None else n for n in student]).astype("float32")
    target = np.random.default_rng(6).normal(size=[2 if n is None else n for n in teacher]).astype("float32")
    adapted = features if adapter is None else adapter(features)
    assert losses.hint(teacher_features=target, student_features=adapted).shape == (2,)
    if adapter is not None:
        assert tuple(adapter.compute_output_shape((2, *features.shape[1:]))) == tuple(adapted.shape)


@pytest.mark.parametrize(
    "teacher, student", [((None, 4, 8), (None, 8)), ((None, 4, 4, 8), (None, 9, 5)), ((None, None), (None, 3))]
)
def test_auto_refuses_shapes_that_it_cannot_adapt(teacher, student):
    with pytest.raises(ValueError, match=r"adapters\.auto: expected shapes"):
        adapters.auto(teacher, student)


@pytest.mark.parametrize("loss", [losses.VariationalInformation(), losses.HintMatching("huber")])
def test_a_term_trains_its_adapter(loss):
    """Gradient descent on the term's value trains the adapter and decreases the value."""
    rng = np.random.default_rng(7)
    student = rng.normal(size=(32, 4, 4, 3)).astype("float32")
    teacher = (student @ rng.normal(size=(3, 5))).astype("float32")
    variational = isinstance(loss, losses.VariationalInformation)
    adapter = adapters.VariationalRegressor(5, hidden_units=16) if variational else "auto"
    term = FeatureDistillation(loss, "some", "where", adapter=adapter)
    optimizer = keras.optimizers.Adam(0.02)
    history = []
    for _ in range(30):
        with tf.GradientTape() as tape:
            value = term.compute_loss(teacher, student)
        variables = term.trainable_variables
        gradients = tape.gradient(value, variables)
        assert all(gradient is not None for gradient in gradients)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        history.append(float(value))
    assert len(variables) == (4 if variational else 2)
    assert history[-1] < history[0] - 0.1
