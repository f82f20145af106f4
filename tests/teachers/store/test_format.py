"""How a store encodes a teacher's outputs, against NumPy."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, logsumexp, softmax

from keras_distill.teachers.store import _format as layout
from tests.processes import Child

rng = np.random.default_rng(2)
LOGITS = (rng.normal(size=(7, 40)) * 5).astype("float32")


def round_trip(spec, values):
    fields = spec.encode(tf.constant(values))
    prints = layout.fingerprint(tf.range(len(values)))
    raw = layout.to_bytes(prints, fields)
    assert raw.shape == (len(values), layout.row_bytes([spec]))
    rows = layout.rows_of(tf.constant(raw.numpy().tobytes()), [spec])
    np.testing.assert_array_equal(layout.fingerprints_of(rows), prints)
    return np.asarray(spec.decode(layout.from_bytes(rows, [spec])))


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"), [("float32", "float32"), ("float16", "float16"), ("bfloat16", ml_dtypes.bfloat16)]
)
@pytest.mark.parametrize("shape", [(40,), (8, 5), (2, 2, 10)])
def test_floats_are_rounded_once_and_to_nearest(dtype, numpy_dtype, shape):
    values = LOGITS.reshape(7, *shape)
    stored = round_trip(layout.OutputSpec("output", shape, dtype), values)
    np.testing.assert_array_equal(stored, values.astype(numpy_dtype).astype("float32"))


@pytest.mark.parametrize("by_row", [True, False])
def test_int8_is_within_half_a_step(by_row):
    values = LOGITS.reshape(7, 4, 10)
    stored = round_trip(layout.OutputSpec("output", (4, 10), "int8", by_row=by_row), values)
    axes = -1 if by_row else (1, 2)
    step = (values.max(axes, keepdims=True) - values.min(axes, keepdims=True)) / 255
    assert np.all(np.abs(stored - values) <= step / 2 + 1e-5)
    constant = np.full((2, 3), 7.25, "float32")
    np.testing.assert_array_equal(round_trip(layout.OutputSpec("output", (3,), "int8"), constant), constant)


@pytest.mark.parametrize("top_k", [1, 5, 39])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_top_k_keeps_the_best_and_the_mass_of_the_rest(top_k, dtype):
    spec = layout.OutputSpec("output", (40,), dtype, top_k)
    stored = round_trip(spec, LOGITS)
    exact = log_softmax(LOGITS.astype("float64"), -1)
    order = np.argsort(-exact, -1)
    expected = np.empty_like(exact)
    for row in range(7):
        kept = order[row, :top_k]
        expected[row] = logsumexp(exact[row, order[row, top_k:]]) - np.log(40 - top_k)
        expected[row, kept] = exact[row, kept]
    tolerance = {"float32": 1e-5, "float16": 2e-2, "bfloat16": 0.15, "int8": 0.1}[dtype]
    np.testing.assert_allclose(stored, expected, atol=tolerance)
    if dtype == "float32":
        p = softmax(stored, -1)
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(np.sort(p, -1)[:, -top_k:], np.sort(softmax(LOGITS, -1), -1)[:, -top_k:], rtol=1e-5)


def test_top_k_of_sequences_and_members_keeps_their_shape():
    values = rng.normal(size=(3, 2, 4, 300)).astype("float32")
    spec = layout.OutputSpec("output", (2, 4, 300), "float32", 3)
    stored = round_trip(spec, values)
    flat = round_trip(layout.OutputSpec("output", (300,), "float32", 3), values.reshape(-1, 300))
    np.testing.assert_array_equal(stored.reshape(-1, 300), flat)


def test_the_number_of_bytes_for_a_thousand_classes():
    dense = layout.row_bytes([layout.OutputSpec("output", (1000,), "float16")])
    few = layout.row_bytes([layout.OutputSpec("output", (1000,), "float16", 16)])
    assert (dense, few) == (8 + 2000, 8 + 16 * (2 + 2) + 4)


def test_ruled_out_classes_survive():
    values = np.array([[0.0, -np.inf, 1.0]], "float32")
    np.testing.assert_array_equal(round_trip(layout.OutputSpec("output", (3,), "float16"), values), values)


def test_fingerprints_are_farmhash_whatever_the_batch_and_the_process():
    x = np.arange(24, dtype="uint8").reshape(4, 3, 2)
    found = layout.fingerprint(tf.constant(x)).numpy()
    strings = tf.constant([row.tobytes() for row in x])
    farm = tf.strings.to_hash_bucket_fast(strings, 2**62).numpy()
    np.testing.assert_array_equal(found.view("uint64") % np.uint64(2**62), farm.astype("uint64"))
    np.testing.assert_array_equal(layout.fingerprint(tf.constant(x[2:])), found[2:])
    code = (
        "import numpy as np, tensorflow as tf; from keras_distill.teachers.store import _format as f;"
        "x = np.arange(24, dtype='uint8').reshape(4, 3, 2);"
        "print(f.fingerprint({'b': tf.constant(x), 'a': tf.constant(x[:, 0])}).numpy().tolist())"
    )
    other = Child(code)
    assert other.wait() == 0, other.read()
    both = layout.fingerprint({"a": tf.constant(x[:, 0]), "b": tf.constant(x)}).numpy()
    assert other.read().strip().endswith(str(both.tolist()))
    changed = x.copy()
    changed[1, 2, 1] ^= 1
    np.testing.assert_array_equal(layout.fingerprint(tf.constant(changed)).numpy() == found, [True, False, True, True])


def test_texts_have_fingerprints_too():
    found = layout.fingerprint(tf.constant(["a", "b", "a"])).numpy()
    assert found[0] == found[2] != found[1]
