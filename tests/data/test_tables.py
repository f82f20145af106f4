"""Tables: encoding by hand, one served model from raw columns, synthetic rows within range, bad columns refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import data


def table(rows=200, seed=0):
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 10, rows).astype("float32")
    age[::7] = np.nan
    return {"age": age, "city": rng.choice(["Oslo", "Rome", ""], rows), "code": rng.integers(0, 3, rows)}


def test_each_column_is_encoded_as_documented_and_the_width_is_their_sum():
    columns = table()
    encoder = data.TableEncoder(columns, categorical=["code"])
    rows = encoder(columns)
    assert rows.shape == (200, 2 + 4 + 4)
    missing = np.isnan(columns["age"])
    np.testing.assert_array_equal(rows[:, 1], missing)
    expected = (columns["age"] - np.nanmean(columns["age"])) / np.nanstd(columns["age"])
    np.testing.assert_allclose(rows[:, 0], np.where(missing, 0, expected), atol=1e-5)
    for name, block in (("city", rows[:, 2:6]), ("code", rows[:, 6:])):
        assert (block.sum(1) == 1).all() and (block[:, 0] == 0).all()
        for place in range(1, 4):  # one column, one category
            assert len(np.unique(columns[name][block[:, place] == 1])) == 1
    new = encoder({"age": [np.nan], "city": ["Lima"], "code": [9]})
    np.testing.assert_array_equal(new, [[0, 1, 1, 0, 0, 0, 1, 0, 0, 0]])


def test_bins_are_numpy_s_interpolation_between_quantiles_of_distinct_values(tmp_path):
    columns = {"gain": np.concatenate([np.zeros(150), np.arange(1.0, 51.0) ** 2, [np.nan]]), "one": np.ones(201)}
    encoder = data.TableEncoder(columns, num_bins=4)
    rows = encoder(columns)
    assert rows.shape == (201, 2 + 4 + 2)  # the constant column has no bins
    edges = np.quantile(np.unique(columns["gain"][:200]), [0, 0.25, 0.5, 0.75, 1])
    asked = np.array([-5.0, 0.0, 7.0, 700.0, 2500.0, 9999.0])
    found = encoder({"gain": asked, "one": np.ones(6)})[:, 2:6]
    for bin_ in range(4):
        expected = np.interp(asked, edges[bin_ : bin_ + 2], [0, 1])
        np.testing.assert_allclose(found[:, bin_], expected, atol=1e-6)
    student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    encoder.serve(student).save(tmp_path / "m.keras")
    inputs = {name: tf.constant(np.asarray(column, "float32")[:, None]) for name, column in columns.items()}
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "m.keras")(inputs), student(rows), atol=1e-5)


def test_the_served_model_takes_raw_columns_and_says_the_same(tmp_path):
    columns = table()
    encoder = data.TableEncoder(columns, categorical=["code"])
    keras.utils.set_random_seed(0)
    student = keras.Sequential([keras.Input((10,)), keras.layers.Dense(1)])
    expected = student.predict(encoder(columns), verbose=0)
    served = encoder.serve(student)
    raw = {name: column[:, None] for name, column in encoder._arrays("test", columns).items()}
    inputs = {name: tf.constant(column) for name, column in raw.items()}
    np.testing.assert_allclose(served(inputs), expected, atol=1e-6)
    served.save(tmp_path / "m.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "m.keras")(inputs), expected, atol=1e-6)
    served.export(tmp_path / "served", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_allclose(loaded.serve(inputs), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["marginal", "perturbed", "mixup"])
def test_synthetic_rows_are_within_range_new_and_repeat(kind):
    columns = table()
    made = data.synthetic_rows(columns, 3000, kind=kind, seed=1)
    assert not data.outside_range(made, columns).any()
    again = data.synthetic_rows(columns, 3000, kind=kind, seed=1)
    for name, column in made.items():
        np.testing.assert_array_equal(column, again[name])
        assert len(column) == 3000
    # The marginal distribution does not change.
    assert np.nanmean(made["age"]) == pytest.approx(np.nanmean(columns["age"]), abs=1.0)
    assert np.mean(made["city"] == "Oslo") == pytest.approx(np.mean(columns["city"] == "Oslo"), abs=0.05)
    known = set(zip(columns["age"], columns["city"], strict=True))
    pairs = set(zip(made["age"], made["city"], strict=True))
    assert len(pairs - known) > 100


def test_strength_0_keeps_the_rows_and_1_makes_columns_independent():
    x = np.arange(500.0)
    same = data.synthetic_rows({"a": x, "b": x}, 4000, strength=0.0)
    np.testing.assert_array_equal(same["a"], same["b"])
    apart = data.synthetic_rows({"a": x, "b": x}, 4000, strength=1.0)
    assert abs(np.corrcoef(apart["a"], apart["b"])[0, 1]) < 0.05


def test_rows_out_of_range_are_found():
    reference = {"a": [0.0, 1.0], "b": [np.nan, 1.0], "c": ["x", "y"]}
    rows = {"a": [0.5, 2.0, np.nan, 0.5], "b": [np.nan, 1.0, 1.0, 1.0], "c": ["x", "x", "x", "z"]}
    assert data.outside_range(rows, reference).tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: data.TableEncoder({"a": [np.nan, np.nan]}), "a value in column 'a', got only missing values"),
        (lambda: data.TableEncoder({"a": ["", ""]}), "a value in column 'a', got only missing values."),
        (lambda: data.TableEncoder({"a": [1.0], "b": [1.0, 2.0]}), "TableEncoder: expected columns of one length"),
        (lambda: data.FilledNumber(0.0, 1.0, edges=[1.0, 1.0]), "expected no edges, or at least two that increase"),
        (lambda: data.TableEncoder({"a": [1.0]}, num_bins=-1), "expected num_bins"),
        (lambda: data.TableEncoder({"a": [1.0]}, categorical=["b"]), "categorical names among 'a', got ['b']."),
        (
            lambda: data.TableEncoder({"a": ["x", "y"]}).check({"a": ["x", "z"]}),
            "TableEncoder.check: expected categories of 'a' seen in training, got ['z'].",
        ),
        (lambda: data.TableEncoder({"a": ["x"], "b": [1.0]})({"a": ["x"]}), "TableEncoder: expected columns 'a', 'b'"),
        (lambda: data.synthetic_rows({"a": [1.0]}, 3, kind="x"), "synthetic_rows: expected kind to be one of"),
        (lambda: data.outside_range({"a": [1.0]}, {"b": [1.0]}), "outside_range: expected columns ['b'], got ['a']."),
    ],
)
def test_bad_input_raises_a_clear_error(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
