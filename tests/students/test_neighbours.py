"""Exact retrieval: sorted scores by NumPy, for any block size; saved, exported and loaded again."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import students


@pytest.mark.parametrize("block_size", [3, 10, 64])
def test_the_items_are_those_of_a_full_sort(block_size):
    rng = np.random.default_rng(0)
    items, queries = (rng.normal(size=(n, 5)).astype("float32") for n in (31, 4))
    layer = students.NearestItems(31, 5, k=7, block_size=block_size)
    layer.assign(items)
    got = layer(queries)
    scores = queries @ items.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(got["items"], order)
    np.testing.assert_allclose(got["scores"], np.take_along_axis(scores, order, 1), rtol=1e-5)
    layer.assign(np.ones((31, 5)))  # all equal: the smaller indices come first
    np.testing.assert_array_equal(layer(queries)["items"], [range(7)] * 4 if layer(queries)["scores"][0, 0] else 0)


def test_a_retriever_is_one_model_to_save_and_to_export(tmp_path):
    keras.utils.set_random_seed(0)
    tower = keras.Sequential([keras.Input((1,), dtype="int32"), keras.layers.Embedding(9, 4), keras.layers.Flatten()])
    items = np.random.default_rng(0).normal(size=(50, 4))
    model = students.retriever(tower, items, k=3, block_size=16)
    users = np.arange(9, dtype="int32")[:, None]
    expected = np.argsort(-(tower.predict(users, verbose=0) @ items.T), 1)[:, :3]
    np.testing.assert_array_equal(model(users)["items"], expected)
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(users)["items"], expected)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    np.testing.assert_array_equal(served.serve(users)["items"], expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: students.NearestItems(3, 2, k=4), "NearestItems: expected k of at most 3 items, got 4."),
        (lambda: students.NearestItems(3, 2, k=1).assign(np.zeros((2, 2))), "expected embeddings of shape (3, 2)"),
        (lambda: students.NearestItems(1, 1, k=1).assign([[np.nan]]), "expected finite embeddings"),
        (
            lambda: students.retriever(keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)]), np.zeros((5, 2))),
            "retriever: expected item_embeddings of shape (items, 3), got (5, 2).",
        ),
    ],
)
def test_bad_input_raises_a_clear_error(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
