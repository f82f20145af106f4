"""LiteRT, ONNX and OpenVINO files, run in their own runtimes and compared with the Keras student and with NumPy."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax
from sklearn.datasets import load_digits

from keras_distill import export
from keras_distill.export import _edge
from keras_distill.export._runtimes import latency, open_runtime
from tests.formats import needs_to_write

WRITERS = {
    "litert": (export.litert, "student.tflite", "ai_edge_litert"),
    "onnx": (export.onnx, "student.onnx", "onnxruntime"),
    "openvino": (export.openvino, "student.xml", "openvino"),
}


@pytest.fixture(params=list(WRITERS))
def writer(request):
    function, name, _ = WRITERS[request.param]
    needs_to_write(request.param)
    return request.param, function, name


@pytest.fixture(scope="module")
def digits():
    """Real handwritten digits, and a small student trained on half of them."""
    keras.utils.set_random_seed(0)
    data = load_digits()
    x, y = (data.images[..., None] / 16).astype("float32"), data.target
    student = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="pixels"),
            keras.layers.Conv2D(8, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.2),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    student.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    student.fit(x[:900], y[:900], epochs=4, verbose=0)
    return student, x[:900], x[900:], y[900:]


def test_float32_on_real_data(writer, digits, tmp_path):
    kind, function, name = writer
    student, _, x, y = digits
    exported = function(student, tmp_path / name, check_inputs=x, check_labels=y, latency_batch_sizes=(1, 4))
    logits = student(x, training=False).numpy()
    assert exported.format == kind
    assert exported.num_examples == len(x)
    assert exported.max_difference < 1e-5 and exported.max_logit_difference < 1e-4
    assert exported.agreement == 1.0
    assert exported.accuracy == exported.student_accuracy == (logits.argmax(-1) == y).mean() > 0.8
    assert exported.ece == pytest.approx(exported.student_ece, abs=1e-4)
    assert exported.size_bytes == sum(path.stat().st_size for path in tmp_path.glob("student.*"))
    assert set(exported.latency_ms) == {1, 4} and 0 < exported.latency_ms[1]["median"] <= exported.latency_ms[1]["p99"]
    run = open_runtime("test", exported)
    for count in (1, 7, 1000):
        batch = np.resize(x, (count, 8, 8, 1))
        (got,) = run({"pixels": batch}).values()
        np.testing.assert_allclose(got, student(batch, training=False), atol=1e-4)
    json.dumps(exported.as_dict())


@pytest.mark.parametrize("quantize", ["float16", "dynamic", "int8"])
def test_litert_precisions(digits, tmp_path, quantize):
    needs_to_write("litert")
    student, train, x, y = digits
    full = export.litert(student, tmp_path / "full.tflite", check_inputs=x, check_labels=y, latency_batch_sizes=())
    data = train[:200] if quantize == "int8" else None
    small = export.litert(
        student,
        tmp_path / "small.tflite",
        quantize,
        representative_data=data,
        check_inputs=x,
        check_labels=y,
        latency_batch_sizes=(),
    )
    assert small.size_bytes < full.size_bytes
    assert small.agreement > 0.98 and abs(small.accuracy - full.accuracy) < 0.02
    assert 0 < small.max_difference < {"float16": 0.02, "dynamic": 0.2, "int8": 0.5}[quantize]
    # The metrics are those of the file itself.
    (got,) = open_runtime("test", small)({"pixels": x}).values()
    wanted = softmax(student(x, training=False).numpy().astype("float64"), axis=-1)
    assert got.dtype == np.float32
    difference = np.abs(softmax(got.astype("float64"), axis=-1) - wanted).max()
    assert small.max_difference == pytest.approx(difference, rel=1e-3)
    assert small.accuracy == (got.argmax(-1) == y).mean()


def test_int8_weights_are_int8(digits, tmp_path):
    needs_to_write("litert")
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    student, train, x, _ = digits
    dataset = tf.data.Dataset.from_tensor_slices(train[:64]).batch(16)
    exported = export.litert(
        student, tmp_path / "s.tflite", "int8", representative_data=dataset, check_inputs=x, latency_batch_sizes=()
    )
    details = interpreter.Interpreter(str(exported)).get_tensor_details()
    kernels = [d for d in details if tuple(d["shape"]) in ((8, 3, 3, 1), (10, 288))]
    assert len(kernels) == 2 and all(d["dtype"] == np.int8 for d in kernels)


def test_several_inputs_and_outputs(writer, tmp_path):
    _, function, name = writer
    size, tokens = keras.Input((4,), name="size"), keras.Input((None,), dtype="int32", name="tokens")
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(10, 3)(tokens))
    joined = keras.layers.Concatenate()([size, pooled])
    heads = [keras.layers.Dense(n, a)(joined) for n, a in ((3, "softmax"), (1, "sigmoid"), (2, None))]
    x = [np.random.default_rng(0).normal(size=(6, 4)).astype("float32"), np.arange(30).reshape(6, 5) % 10]
    for outputs in (heads, dict(zip("zyx", heads, strict=True))):  # dictionary keys are not in sorted order
        student = keras.Model([size, tokens], outputs)
        third = "x" if isinstance(outputs, dict) else student.output_names[2]
        exported = function(
            student, tmp_path / third / name, check_inputs=x, task={third: "regression"}, latency_batch_sizes=()
        )
        assert exported.max_difference < 1e-5
        run = open_runtime("test", exported)
        longer = {"size": x[0], "tokens": np.ones((6, 9), "int32")}  # the unknown length stayed unknown
        assert all(len(value) == 6 for value in run(longer).values())


def test_mixed_precision_is_exported_in_float32(writer, tmp_path):
    _, function, name = writer
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, "relu", dtype="mixed_float16")])
    student = keras.Sequential([keras.Input((4,), name="x"), inner, keras.layers.Dense(3, dtype="mixed_float16")])
    x = np.random.default_rng(0).normal(size=(9, 4)).astype("float32")
    exported = function(student, tmp_path / name, check_inputs=x, latency_batch_sizes=())
    (got,) = open_runtime("test", exported)({"x": x}).values()
    hidden = np.maximum(x @ inner.layers[0].kernel.numpy() + inner.layers[0].bias.numpy(), 0)
    expected = hidden @ student.layers[-1].kernel.numpy() + student.layers[-1].bias.numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)  # float32 throughout, unlike the student
    assert student.layers[-1].compute_dtype == "float16"


@keras.saving.register_keras_serializable("tests")
class Scale(keras.layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.factor


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.scale = Scale()
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.scale(x))


def test_subclassed_student_with_a_custom_layer(writer, tmp_path):
    _, function, name = writer
    student = Subclassed()
    x = np.random.default_rng(0).normal(size=(9, 4)).astype("float32")
    student(x)
    exported = function(student, tmp_path / name, check_inputs=x, latency_batch_sizes=())
    assert exported.max_logit_difference < 1e-5 and exported.agreement == 1.0


def test_disagreement_fails_and_leaves_no_file(writer, digits, tmp_path, monkeypatch):
    _, function, name = writer
    student, _, x, _ = digits
    real = _edge.open_runtime

    def wrong(*args, **kwargs):
        run = real(*args, **kwargs)
        return lambda feeds: {key: value + 0.1 * np.arange(10, dtype="float32") for key, value in run(feeds).items()}

    monkeypatch.setattr(_edge, "open_runtime", wrong)
    with pytest.raises(ValueError, match=r"expected the export to agree with the student within .* Nothing was kept"):
        function(student, tmp_path / "new" / name, check_inputs=x)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"expected the export to give the student's class for at least 1 of the"):
        function(student, tmp_path / "new" / name, check_inputs=x, tolerance=1.0, min_agreement=1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_keeps_the_earlier_file(digits, tmp_path):
    needs_to_write("litert")
    student, _, x, _ = digits
    exported = export.litert(student, tmp_path / "s.tflite", check_inputs=x, latency_batch_sizes=())
    before = exported.path.read_bytes()
    with pytest.raises(ValueError, match="expected tolerance >= 0"):
        export.litert(student, exported.path, check_inputs=x, tolerance=-1)
    with pytest.raises(ValueError, match="expected the export to agree"):
        export.litert(student, exported.path, "dynamic", check_inputs=x, tolerance=0, latency_batch_sizes=())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["MODEL_CARD.md", "distillation.json", "s.tflite"]
    assert exported.path.read_bytes() == before


def test_text_is_converted_right_or_refused(tmp_path):
    needs_to_write("litert")
    student = keras.Sequential(
        [
            keras.Input((1,), dtype="string"),
            keras.layers.TextVectorization(vocabulary=["a", "b"], output_mode="multi_hot"),
            keras.layers.Dense(2),
        ]
    )
    text = np.array([["a"], ["x"]], dtype=object)
    if tf.__version__.startswith("2.18."):  # it provides the runtime with its own operations
        assert export.litert(student, tmp_path / "s.tflite", check_inputs=text).agreement == 1.0
        return
    with pytest.raises(
        ValueError, match=r"expected a student that the litert converter can convert|an export that runs"
    ):
        export.litert(student, tmp_path / "s.tflite", check_inputs=text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["litert", "openvino"])
def test_an_older_keras_is_refused_before_the_conversion(kind, digits, tmp_path, monkeypatch):
    function, name, package = WRITERS[kind]
    pytest.importorskip(package)
    monkeypatch.setattr(keras, "__version__", "3.12.4")
    with pytest.raises(ValueError, match=rf"expected Keras 3\.1\d or newer, got 3\.12\.4.*keras-distill\[{kind}\]"):
        function(digits[0], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


BAD = [
    (dict(quantize="int4"), "expected quantize to be one of None, 'float16', 'dynamic', 'int8', got int4"),
    (dict(quantize=np.zeros((2, 3))), r"expected quantize to be one of None, .*, got array"),
    (dict(quantize="int8"), "expected representative_data for quantize='int8', and only for it"),
    (
        dict(quantize="dynamic", representative_data=[[0.0]]),
        "expected representative_data for quantize='int8', and only",
    ),
    (
        dict(quantize="int8", representative_data=np.zeros((2, 3))),
        r"expected representative_data of shape \(None, 8, 8, 1\)",
    ),
    (dict(min_agreement=1.5), "expected min_agreement >= 0 and <= 1, got 1.5"),
    (dict(latency_batch_sizes=[0]), "expected latency_batch_sizes to be an integer >= 1, got 0"),
    (dict(path="student.onnx"), r"expected a path that ends in \.tflite, got .*student\.onnx"),
    (dict(student=3), "expected student to be a keras.Model, got int"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_bad_arguments(digits, tmp_path, change, message):
    needs_to_write("litert")
    arguments = {"student": digits[0], "path": "s.tflite", **change}
    with pytest.raises(ValueError, match=message):
        export.litert(arguments.pop("student"), tmp_path / arguments.pop("path"), **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.tflite", "x.onnx", "x.xml"])
def test_files_that_are_not_models_are_refused(tmp_path, name):
    pytest.importorskip({"x.tflite": "ai_edge_litert", "x.onnx": "onnxruntime", "x.xml": "openvino"}[name])
    for content in (b"", b"garbage" * 50):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"expected a file that .* can load, got"):
            open_runtime("test", tmp_path / name)


def test_latency_counts_calls():
    calls = []
    measured = latency(lambda: calls.append(1), repeats=7, warmup=2)
    assert len(calls) == 9
    assert 0 <= measured["median"] <= measured["p99"]
