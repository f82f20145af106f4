"""The SavedModel as TensorFlow Serving sees it: through the C API; image, text and Example signatures; warm-up."""

import io
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_distill import adapters, export, metrics
from keras_distill.export import _capi
from keras_distill.export._signatures import serialize_example

pytest.importorskip("tensorflow_serving")
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2


@pytest.fixture(scope="module")
def student():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((12, 10, 3), name="pixels"),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(moving_variance_initializer=keras.initializers.RandomUniform(0.5, 2)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).random((9, 12, 10, 3)).astype("float32")


IMAGE = export.ImageBytes(scale=1 / 255, mean=[0.5, 0.4, 0.3], std=0.25)


@pytest.fixture(scope="module")
def exported(student, pixels, tmp_path_factory):
    return export.saved_model(
        student,
        tmp_path_factory.mktemp("serving") / "pictures",
        check_inputs=pixels,
        labels=["cat", "dog", "\u718a"],
        uncertainty=True,
        image=IMAGE,
        examples=True,
        warmup_batch_sizes=(1, 7),
    )


@pytest.fixture(scope="module")
def session(exported):
    with export.ServingSession(exported) as opened:
        yield opened


def test_c_api_equals_the_student_without_python_tensorflow(session, student, pixels):
    out = session.run({"pixels": pixels})
    assert session.python_tensorflow is False
    assert session.version == tf.__version__
    logits = student(pixels, training=False).numpy()
    np.testing.assert_allclose(out["logits"], logits, atol=1e-6)
    np.testing.assert_allclose(out["probabilities"], tf.nn.softmax(logits), atol=1e-6)
    np.testing.assert_array_equal(out["classes"], logits.argmax(-1))
    best = np.array(["cat", "dog", "\u718a"])[logits.argmax(-1)]
    assert [row[0].decode() for row in out["labels"]] == best.tolist()


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_dynamic_batch_through_the_c_api(session, student, count):
    x = np.random.default_rng(count).random((count, 12, 10, 3)).astype("float32")
    np.testing.assert_allclose(session.run({"pixels": x})["logits"], student(x, training=False), atol=1e-6)


def test_signatures_agree_with_the_official_proto(session, exported):
    proto = saved_model_pb2.SavedModel.FromString((exported.path / "saved_model.pb").read_bytes())
    official = proto.meta_graphs[0].signature_def
    assert set(session.signatures) == set(official)
    for name, signature in official.items():
        ours = session.signatures[name]
        assert ours["method"] == signature.method_name
        for side in ("inputs", "outputs"):
            for key, info in getattr(signature, side).items():
                assert ours[side][key]["tensor"] == info.name
                if info.dtype:
                    assert ours[side][key]["dtype"] == tf.dtypes.as_dtype(info.dtype).name
                    assert ours[side][key]["shape"] == [dim.size for dim in info.tensor_shape.dim]
    assert official["classify"].method_name == "tensorflow/serving/classify"


def test_chosen_outputs_and_times(session, pixels):
    assert set(session.run({"pixels": pixels}, outputs=["classes", "logits"])) == {"classes", "logits"}
    seconds = session.measure({"pixels": pixels[:1]}, repeats=20)
    assert seconds.shape == (20,) and (seconds > 0).all() and np.median(seconds) < 1


@pytest.mark.parametrize(
    ("feeds", "signature", "message"),
    [
        ({"pixel": [[0.0]]}, "serving_default", r"takes \['pixels'\], got \['pixel'\]"),
        ({"pixels": np.zeros((2, 3), "float32")}, "serving_default", "[Dd]imension|shape|rank"),
        ({"pixels": [0.0]}, "predict", r"no signature 'predict', there are .*'classify'"),
    ],
)
def test_invalid_requests_are_errors_and_the_session_survives(session, pixels, feeds, signature, message):
    with pytest.raises(export.ServedError, match=message):
        session.run(feeds, signature)
    assert session.run({"pixels": pixels})["logits"].shape == (9, 3)


def test_directories_that_are_not_saved_models_are_refused(tmp_path, exported):
    with pytest.raises(ValueError, match=r"expected a version directory with a saved_model\.pb, got"):
        export.ServingSession(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(exported, broken)
    (broken / "saved_model.pb").write_bytes(b"\x0a\xff not a proto")
    with pytest.raises(export.ServedError, match=r"expected .*/broken to be served, got"):
        export.ServingSession(broken)
    no_weights = tmp_path / "no_weights"
    shutil.copytree(exported, no_weights)
    for part in (no_weights / "variables").glob("*.data*"):
        part.unlink()
    with pytest.raises(export.ServedError, match=r"expected .*/no_weights to be served, got"):
        export.ServingSession(no_weights)
    shutil.rmtree(no_weights / "variables")  # TensorFlow loads this; its first request fails
    with (
        export.ServingSession(no_weights) as session,
        pytest.raises(export.ServedError, match=r"expected .*/no_weights to be served, got"),
    ):
        session.run({"pixels": np.zeros((1, 12, 10, 3), "float32")})


def encode(pixels, kind):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def test_png_of_the_student_size(session, student):
    pictures = np.random.default_rng(5).integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
    out = session.run({"image_bytes": [encode(p, "PNG") for p in pictures]}, "image_bytes")
    x = ((pictures / 255.0 - [0.5, 0.4, 0.3]) / 0.25).astype("float32")
    np.testing.assert_allclose(out["logits"], student(x, training=False), atol=1e-5)


def test_jpeg_and_png_are_resized_as_pil_does(session, student):
    smooth = np.linspace(0, 255, 60)[:, None, None] * np.linspace(0.2, 1, 40)[None, :, None] * np.array([1.0, 0.7, 0.4])
    picture = smooth.astype(np.uint8)
    files = [encode(picture, "PNG"), encode(picture, "JPEG")]
    out = session.run({"image_bytes": files}, "image_bytes")
    small = np.asarray(Image.fromarray(picture).resize((10, 12), Image.Resampling.BILINEAR))
    x = ((small / 255.0 - [0.5, 0.4, 0.3]) / 0.25).astype("float32")
    expected = student(x[None], training=False).numpy()[0]
    np.testing.assert_allclose(out["logits"][0], expected, atol=0.02)
    np.testing.assert_allclose(out["logits"][1], expected, atol=0.1)


def test_grey_images_are_converted_to_three_channels(session, student):
    grey = np.random.default_rng(6).integers(0, 256, (12, 10), dtype=np.uint8)
    out = session.run({"image_bytes": [encode(grey, "PNG")]}, "image_bytes")
    x = ((grey[..., None] / 255.0 - [0.5, 0.4, 0.3]) / 0.25).astype("float32")
    np.testing.assert_allclose(out["logits"], student(x[None], training=False), atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0broken", None])
def test_a_corrupt_image_is_an_error_of_the_graph(session, content):
    good = encode(np.zeros((12, 10, 3), np.uint8), "JPEG")
    content = good[: len(good) // 2] if content is None else content
    with pytest.raises(export.ServedError, match=r"JPEG|Unknown image file format|decode"):
        session.run({"image_bytes": [good, content]}, "image_bytes")
    assert session.run({"image_bytes": [good]}, "image_bytes")["classes"].shape == (1,)


def test_classify_takes_examples(session, student, pixels):
    serialized = [serialize_example({"pixels": picture}) for picture in pixels]
    out = session.run({"inputs": serialized}, "classify")
    probabilities = tf.nn.softmax(student(pixels, training=False)).numpy()
    np.testing.assert_allclose(out["scores"], -np.sort(-probabilities, axis=-1), atol=1e-6)
    names = np.array(["cat", "dog", "\u718a"])[np.argsort(-probabilities, axis=-1)]
    assert [[text.decode() for text in row] for row in out["classes"]] == names.tolist()
    with pytest.raises(export.ServedError, match="pixels"):
        session.run({"inputs": [serialize_example({"other": np.zeros(3)})]}, "classify")


def test_warmup_file_parses_and_every_record_runs(session, exported, student, pixels):
    path = exported.path / "assets.extra" / "tf_serving_warmup_requests"
    records = [r.numpy() for r in tf.data.TFRecordDataset(str(path))]
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    assert [log.WhichOneof("log_type") for log in logs] == ["predict_log", "predict_log", "classify_log"] * 2
    assert {log.predict_log.request.model_spec.name for log in logs if log.HasField("predict_log")} == {"pictures"}
    assert len(logs[5].classify_log.request.input.example_list.examples) == 7
    outputs = export.replay_warmup(session, export.read_warmup(exported))
    assert len(outputs) == 6
    np.testing.assert_allclose(outputs[3]["logits"], student(pixels[:7], training=False), atol=1e-6)


def test_a_version_without_warmup(tmp_path, student):
    exported = export.saved_model(student, tmp_path)
    assert export.read_warmup(exported) == []
    (exported.path / "assets.extra").mkdir(exist_ok=True)
    for content in (b"", b"garbage", b"garbage" * 100):
        (exported.path / "assets.extra" / "tf_serving_warmup_requests").write_bytes(content)
        with pytest.raises(ValueError, match="expected a file of PredictionLog records, got"):
            export.read_warmup(exported)


def test_text_signature_with_a_preprocessing_layer(tmp_path):
    vectorize = keras.layers.TextVectorization(output_sequence_length=6)
    vectorize.adapt(["a good film", "caf\u00e9 \u4f60\u597d"])
    student = keras.Sequential(
        [
            keras.Input((6,), dtype="int64", name="tokens"),
            keras.layers.Embedding(12, 4),
            keras.layers.Flatten(),
            keras.layers.Dense(2),
        ]
    )
    exported = export.saved_model(student, tmp_path / "film", text=vectorize, warmup_batch_sizes=(2,))
    texts = ["a good film", "", "caf\u00e9 \u4f60\u597d \U0001f600", "film " * 50]
    with export.ServingSession(exported) as session:
        got = session.run({"text": texts}, "text")["logits"]
        assert len(export.replay_warmup(session, export.read_warmup(exported))) == 2
    np.testing.assert_allclose(got, student(vectorize(texts), training=False), atol=1e-6)


def test_raw_text_is_split_into_word_pieces_inside_the_served_model(tmp_path):
    pytest.importorskip("tensorflow_text")
    tokenizers = pytest.importorskip("keras_hub").tokenizers
    words = ["[PAD]", "[UNK]", "a", "good", "bad", "film", "##s"]
    tokenizer = tokenizers.WordPieceTokenizer(vocabulary=words, sequence_length=4, lowercase=True)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Embedding(7, 4), keras.layers.Flatten(), keras.layers.Dense(2)]
    student = keras.Sequential([keras.Input((4,), dtype="int32", name="tokens"), *layers])
    exported = export.saved_model(student, tmp_path / "films", text=tokenizer, warmup_batch_sizes=())
    texts = ["a good film", "BAD films", "", "caf\u00e9 \u4f60", "a bad film " * 9, "good"]
    with export.ServingSession(exported) as session:
        got = session.run({"text": texts}, "text")["logits"]
        assert not session.python_tensorflow
    expected = np.asarray(student(tokenizer(texts), training=False))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert len(np.unique(expected.argmax(-1))) == 2 and (got.argmax(-1) == expected.argmax(-1)).all()


def test_a_recogniser_gives_the_same_words_through_the_c_api(tmp_path):
    keras.utils.set_random_seed(0)
    waveform = keras.Input((2400,), name="waveform")
    frames = adapters.LogMel(8000, 12, step_seconds=0.02)(waveform)
    frames = keras.layers.Bidirectional(keras.layers.GRU(5, return_sequences=True))(frames)
    student = keras.Model(waveform, keras.layers.Dense(4)(frames))
    sounds = np.random.default_rng(0).normal(0, 0.2, (6, 2400)).astype("float32")
    sounds[1, 1500:], sounds[2] = 0.0, 0.0  # padded, and completely silent
    expected = student.predict(sounds, verbose=0)
    exported = export.saved_model(student, tmp_path / "recogniser", check_inputs=sounds[:2], warmup_batch_sizes=())
    with export.ServingSession(exported) as opened:
        got = opened.run({"waveform": sounds})["logits"]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    heard = [metrics.ctc_greedy_decode(each).numpy().tolist() for each in (got, expected)]
    assert heard[0] == heard[1] and any(row[0] > 0 for row in heard[0])


def test_regress_from_examples_of_strings_and_numbers(tmp_path):
    words = keras.Input((1,), dtype="string", name="word")
    size = keras.Input((2,), name="size")
    lookup = keras.layers.StringLookup(vocabulary=["one", "two"], output_mode="one_hot")
    joined = keras.layers.Concatenate()([lookup(words), size])
    student = keras.Model([words, size], keras.layers.Dense(1)(joined))
    x = [np.array([["one"], ["two"], ["caf\u00e9"]], dtype=object), np.arange(6, dtype="float32").reshape(3, 2)]
    exported = export.saved_model(student, tmp_path, check_inputs=x, task="regression", examples=True)
    rows = [serialize_example({"word": word, "size": pair}) for word, pair in zip(*x, strict=True)]
    with export.ServingSession(exported) as session:
        assert session.signatures["regress"]["method"] == "tensorflow/serving/regress"
        out = session.run({"inputs": rows}, "regress")["outputs"]
        direct = session.run({"word": x[0], "size": x[1]})["values"]
    np.testing.assert_allclose(out, student([tf.constant(x[0]), tf.constant(x[1])]), atol=1e-6)
    np.testing.assert_allclose(direct, out, atol=1e-6)


def test_messages_round_trip():
    tensors = {
        "text": np.array([["", "caf\u00e9"], [b"\x00\xff", "x" * 100]], dtype=object),
        "empty": np.zeros((0, 3), "float32"),
        "number": np.array(3, "int64"),
        "half": np.arange(5).astype("float16"),
    }
    stream = io.BytesIO()
    _capi.write_message(stream, {"op": "run"}, tensors)
    stream.seek(0)
    header, back = _capi.read_message(stream)
    assert header == {"op": "run"}
    assert back["text"].tolist() == [[b"", "caf\u00e9".encode()], [b"\x00\xff", b"x" * 100]]
    for name in ("empty", "number", "half"):
        np.testing.assert_array_equal(back[name], tensors[name])
        assert back[name].dtype == tensors[name].dtype
    with pytest.raises(EOFError):
        _capi.read_message(io.BytesIO(stream.getvalue()[:-1]))


def test_a_closed_session_is_refused(exported):
    session = export.ServingSession(exported)
    session.close()
    session.close()
    with pytest.raises(export.ServedError, match="expected an open session, got a closed one"):
        session.run({"pixels": np.zeros((1, 12, 10, 3), "float32")})


def test_image_bytes_arguments():
    for change, message in [
        (dict(std=0), "ImageBytes: expected std > 0, got 0.0"),
        (dict(scale=float("inf")), "ImageBytes: expected scale to be a finite number, got inf"),
        (dict(resize="lanczos"), "ImageBytes: expected resize to be one of 'bilinear'"),
    ]:
        with pytest.raises(ValueError, match=message):
            export.ImageBytes(**change)
