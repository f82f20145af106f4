"""Low-rank models: full rank equals the model, a low rank is the best projection of a layer's outputs."""

import keras
import numpy as np
import pytest

from keras_distill import students

L = keras.layers


def picture_model():
    keras.utils.set_random_seed(0)
    shared = L.Dense(10, activation="relu", name="shared")
    x = keras.Input((8, 8, 3))
    hidden = L.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="conv")(x)
    hidden = L.Dense(10, name="last_axis")(hidden)
    hidden = L.GlobalAveragePooling2D()(hidden)
    hidden = shared(shared(hidden))
    model = keras.Model(x, L.Dense(4, name="head")(hidden))
    for weight in model.weights:
        if weight.path.endswith("bias"):
            weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    return model


def pictures(count=80):
    return np.random.default_rng(1).normal(size=(count, 8, 8, 3)).astype("float32")


def test_full_rank_is_the_model():
    model, x = picture_model(), pictures()
    ranks = {"conv": 12, "last_axis": 10, "shared": 10, "head": 4}
    built = students.factorize(model, x, ranks=ranks)
    assert built.kept == ranks
    want, got = np.asarray(model(x)), np.asarray(built.model(x))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_full_rank_of_token_layers_is_the_model():
    tokens = keras.Input((5,), dtype="int32")
    hidden = L.Embedding(20, 6, name="table")(tokens)
    hidden = L.EinsumDense("abc,cd->abd", output_shape=(None, 7), bias_axes="d", activation="tanh", name="ein")(hidden)
    model = keras.Model(tokens, L.Dense(2, name="head")(hidden))
    x = np.random.default_rng(0).integers(0, 20, (64, 5))
    built = students.factorize(model, x, ranks={"table": 6, "ein": 6})
    np.testing.assert_allclose(np.asarray(built.model(x)), np.asarray(model(x)), atol=1e-5)


def test_a_low_rank_is_the_best_plane_through_the_outputs():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), L.Dense(8, name="only")])
    x = np.random.default_rng(0).normal(size=(200, 6)).astype("float32") @ np.diag([5, 4, 1, 1, 0.5, 0.1]).astype(
        "float32"
    )
    got = np.asarray(students.factorize(model, x, ranks={"only": 2}).model(x))
    y = np.asarray(model(x)).astype("float64")
    centre = y.mean(0)
    u, s, v = np.linalg.svd(y - centre, full_matrices=False)
    np.testing.assert_allclose(got, centre + (u[:, :2] * s[:2]) @ v[:2], atol=1e-4)


def test_energy_takes_the_smallest_rank_that_keeps_it():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((30,)), L.Dense(30, name="wide"), L.Dense(1, name="head")])
    x = np.random.default_rng(0).normal(size=(300, 30)) * np.r_[np.full(5, 10.0), np.full(25, 0.1)]
    y = np.asarray(model.layers[0](x)).astype("float64")
    shares = np.linalg.svd(y - y.mean(0), compute_uv=False) ** 2
    rank = int(np.argmax(np.cumsum(shares) / shares.sum() >= 0.9)) + 1
    built = students.factorize(model, x, energy=0.9)
    assert built.kept == {"wide": rank}
    assert built.frozen["head"] == "its rank would not make it smaller"
    assert students.factorize(model, x, energy=1.0).kept == {}


def test_a_budget_is_met_and_buys_where_variance_is_cheap():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((40,))
    both = L.Add()([L.Dense(40, name="poor")(inputs), L.Dense(40, name="rich")(inputs)])
    model = keras.Model(inputs, L.Dense(2)(both))
    kernel = np.linalg.qr(np.random.default_rng(1).normal(size=(40, 40)))[0]
    low = kernel[:, :3] @ kernel[:3]
    model.get_layer("poor").set_weights([low, np.zeros(40)])
    model.get_layer("rich").set_weights([kernel, np.zeros(40)])
    x = np.random.default_rng(0).normal(size=(300, 40))
    wanted = students.cost(model).parameters // 2
    built = students.factorize(model, x, budget=students.Budget(parameters=wanted))
    assert wanted * 0.9 < built.cost.parameters <= wanted
    assert built.kept["poor"] == 3


def test_the_result_saves_and_loads(tmp_path):
    model, x = picture_model(), pictures()
    built = students.factorize(model, x, energy=0.8)
    built.model.save(tmp_path / "low.keras")
    again = keras.saving.load_model(tmp_path / "low.keras")
    np.testing.assert_array_equal(np.asarray(again(x)), np.asarray(built.model(x)))
    assert built.model.trainable_weights


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, r"factorize: expected one of energy, budget and ranks, got none. energy=0.9 is a start"),
        ({"energy": 1.2}, r"factorize: expected energy > 0 and <= 1, got 1.2"),
        ({"ranks": {"cnv": 2}}, r"factorize: expected ranks of layers that can be .* got 'cnv'. Nearest: 'conv'"),
        ({"ranks": {"head": 5}}, r"factorize: expected ranks\['head'\] of at most 4, got 5"),
        ({"budget": students.Budget(parameters=9)}, r"a budget that some size meets: parameters <= 9, got \d+ for the"),
        ({"energy": 0.9, "data": np.ones((5, 4))}, r"factorize: expected data of shape .* got \(5, 4\)"),
    ],
)
def test_bad_input_raises_a_clear_error(options, text):
    data = options.pop("data", None)
    with pytest.raises(ValueError, match=text):
        students.factorize(picture_model(), pictures(8) if data is None else data, **options)
