"""SavedModels of students with several inputs and outputs, text of any length, and inputs that cannot be served."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import export
from tests.export.test_saved_model import signature


def test_several_inputs_and_outputs(tmp_path):
    pixels = keras.Input((4,), name="pixels")
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 3)(tokens))
    joined = keras.layers.Concatenate()([pixels, pooled])
    outputs = {
        "colour": keras.layers.Dense(3, "softmax")(joined),
        "is_new": keras.layers.Dense(1, "sigmoid")(joined),
        "price": keras.layers.Dense(1)(joined),
    }
    student = keras.Model({"pixels": pixels, "tokens": tokens}, outputs)
    x = {"pixels": np.ones((5, 4), "float32"), "tokens": np.arange(30).reshape(5, 6) % 10}
    exported = export.saved_model(
        student,
        tmp_path,
        check_inputs=x,
        task={"price": "regression"},
        labels={"colour": ["red", "green", "blue"]},
    )
    serve = signature(exported)
    spec = serve.structured_input_signature[1]
    assert (spec["pixels"].shape.as_list(), spec["tokens"].shape.as_list()) == ([None, 4], [None, None])
    out = serve(pixels=x["pixels"], tokens=x["tokens"].astype("int32"))
    wanted = student(x, training=False)
    np.testing.assert_allclose(out["colour_probabilities"], wanted["colour"], atol=1e-6)
    np.testing.assert_allclose(out["is_new_probabilities"], wanted["is_new"], atol=1e-6)
    np.testing.assert_allclose(out["price_values"], wanted["price"], atol=1e-6)
    assert out["colour_labels"].shape == (5, 3)
    assert not any(name.startswith("price_") and name != "price_values" for name in out)
    longer = serve(pixels=x["pixels"], tokens=np.ones((5, 11), "int32"))  # the unknown length stayed unknown
    assert longer["price_values"].shape == (5, 1)


def test_text_student_with_vocabulary_masks_and_lengths(tmp_path):
    vectorize = keras.layers.TextVectorization(output_sequence_length=7)
    vectorize.adapt(["the good film", "caf\u00e9 \u4f60\u597d \U0001f600", "bad"])
    student = keras.Sequential(
        [
            keras.Input((1,), dtype="string", name="sentence"),
            vectorize,
            keras.layers.Embedding(20, 4, mask_zero=True),
            keras.layers.GRU(5),
            keras.layers.Dense(2),
        ]
    )
    texts = np.array([["the good film"], [""], ["caf\u00e9 \u4f60\u597d"], ["\U0001f600 " * 40]], dtype=object)
    exported = export.saved_model(student, tmp_path, check_inputs=texts)
    got = signature(exported)(sentence=tf.constant(texts))["logits"]
    np.testing.assert_allclose(got, student(tf.constant(texts)), atol=1e-6)


class RaggedTextNet(keras.Model):
    """Takes texts; inside, a RaggedTensor with the words of each text, without padding."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.words = keras.layers.TextVectorization(ragged=True)
        self.words.adapt(["the good film", "bad plot and worse acting"])
        self.table = self.add_weight(shape=(20, 4), initializer="glorot_uniform", name="table")
        self.head = keras.layers.Dense(3)

    def call(self, texts):
        words = self.words(texts)
        vectors = tf.ragged.map_flat_values(lambda ids: tf.gather(self.table, ids), words)
        lengths = tf.cast(tf.maximum(words.row_lengths(), 1), tf.float32)
        return self.head(tf.reduce_sum(vectors, axis=1) / lengths[:, None])


def test_ragged_text_inside_the_student(tmp_path):
    texts = np.array(["the good film", "", "bad plot " * 30, "caf\u00e9 \U0001f600"], dtype=object)
    student = RaggedTextNet()
    student(tf.constant(texts))
    serve = signature(export.saved_model(student, tmp_path, check_inputs=texts, text=True))
    (name,) = serve.structured_input_signature[1]
    together = serve(**{name: tf.constant(texts)})["logits"]
    np.testing.assert_allclose(together, student(tf.constant(texts)), atol=1e-6)
    for i, text in enumerate(texts):  # the same alone and among longer ones
        np.testing.assert_allclose(serve(**{name: tf.constant([text])})["logits"][0], together[i], atol=1e-6)


def test_text_padded_to_the_longest_of_its_batch(tmp_path):
    """Without a fixed length: with the mask, a short text's output is the same among longer ones."""
    words = keras.layers.TextVectorization()
    words.adapt(["the good film", "bad plot and worse acting"])
    student = keras.Sequential(
        [
            keras.Input((), dtype="string", name="text"),
            words,
            keras.layers.Embedding(20, 4, mask_zero=True),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(2),
        ]
    )
    texts = np.array(["the good film", "bad", "bad plot " * 30], dtype=object)
    serve = signature(export.saved_model(student, tmp_path, check_inputs=texts))
    together = serve(text=tf.constant(texts))["logits"].numpy()
    alone = [serve(text=tf.constant([text]))["logits"].numpy()[0] for text in texts]
    np.testing.assert_allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize("kind", ["ragged", "sparse"])
def test_ragged_and_sparse_inputs_are_refused_with_advice(tmp_path, kind):
    tokens = keras.Input((6,), name="tokens", **{kind: True})
    student = keras.Model(tokens, keras.layers.Dense(2)(keras.layers.Dense(3)(tokens)), name="small")
    advice = r"Let the student take texts \(TextVectorization inside\), or pad to a length and mask"
    expected = rf"expected a student with dense inputs, got the {kind} input 'tokens' of 'small'\. {advice}"
    with pytest.raises(ValueError, match=f"saved_model: {expected}"):
        export.saved_model(student, tmp_path / "a")
    with pytest.raises(ValueError, match=f"litert: {expected}"):
        export.litert(student, tmp_path / "a.tflite")
    dense = keras.Sequential([keras.Input((None,), name="tokens"), keras.layers.Lambda(tf.identity)])
    ragged = tf.ragged.constant([[1.0, 2.0], [3.0]])
    given = ragged if kind == "ragged" else ragged.to_sparse()
    with pytest.raises(ValueError, match=rf"check_inputs as dense arrays for input 'tokens', got \w+\. {advice}"):
        export.saved_model(dense, tmp_path / "a", check_inputs=given)
    with pytest.raises(ValueError, match=rf"got the {kind} input '\w+' of 'texts'"):
        opaque = RaggedTextNet(name="texts")
        opaque(tf.constant(["the"]))
        export.saved_model(opaque, tmp_path / "a", check_inputs=given)
    assert not list(tmp_path.iterdir())
