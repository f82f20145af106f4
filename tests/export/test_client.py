"""The client example over real gRPC and HTTP, with the official messages, against a SavedModel behind the C API."""

import http.server
import importlib
import json
import socket
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill import export

pytest.importorskip("tensorflow_serving")
import grpc
from tensorflow_serving.apis import classification_pb2, prediction_service_pb2_grpc

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
serve_client, serve_stand_in = map(importlib.import_module, ("serve_client", "serve_stand_in"))
sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def student():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6, 6, 1), name="x"), keras.layers.Flatten(), keras.layers.Dense(3)])


@pytest.fixture(scope="module")
def server(student, tmp_path_factory):
    exported = export.saved_model(
        student,
        tmp_path_factory.mktemp("s") / "student",
        labels=["a", "b", "\u4f60"],
        examples=True,
        image=export.ImageBytes(),
    )
    with serve_stand_in.StandIn({"student": exported}) as running:
        yield running


@pytest.fixture(params=["grpc", "rest"])
def make(request, server):
    if request.param == "grpc":
        return lambda **options: serve_client.GrpcClient(
            server.grpc_address, options.pop("model", "student"), **options
        )
    return lambda **options: serve_client.RestClient(server.rest_address, options.pop("model", "student"), **options)


def images(count):
    return np.random.default_rng(count).random((count, 6, 6, 1)).astype("float32")


def as_text(value):
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize(("count", "most"), [(1, 64), (7, 3), (200, 64)])
def test_predictions_equal_the_students(make, student, count, most):
    x = images(count)
    answer = make(most_examples=most, timeout_seconds=60).predict({"x": x})
    logits = student(x).numpy()
    np.testing.assert_allclose(answer["logits"], logits, atol=1e-6)
    np.testing.assert_allclose(answer["probabilities"], keras.ops.softmax(logits), atol=1e-6)
    assert answer["classes"].tolist() == logits.argmax(-1).tolist()
    best = [["a", "b", "\u4f60"][k] for k in logits.argmax(-1)]
    assert [as_text(row[0]) for row in answer["labels"]] == best


def test_image_files_travel_as_bytes(make, student):
    import tensorflow as tf

    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 1), dtype=np.uint8)
    files = np.array([tf.io.encode_png(p).numpy() for p in pixels], dtype=object)
    answer = make(timeout_seconds=60).predict({"image_bytes": files}, "image_bytes")
    np.testing.assert_allclose(answer["logits"], student((pixels / 255).astype("float32")), atol=1e-5)


def test_an_error_of_the_server_is_raised_in_the_client(make):
    start = time.monotonic()
    with pytest.raises((ValueError, grpc.RpcError), match=r"takes \['x'\], got \['y'\]|'y'"):
        make(timeout_seconds=60).predict({"y": images(1)})
    with pytest.raises((ValueError, grpc.RpcError), match="Servable not found"):
        make(model="nobody", timeout_seconds=60).predict({"x": images(1)})
    assert time.monotonic() - start < 30  # permanent errors are not retried


def test_output_filter(server):
    client = serve_client.GrpcClient(server.grpc_address, "student", timeout_seconds=60)
    client.outputs = ["classes"]
    assert set(client.predict({"x": images(2)})) == {"classes"}


def test_classify_message(server, student):
    from keras_distill.export._signatures import serialize_example

    x = images(3)
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "student"
    for picture in x:
        request.input.example_list.examples.add().ParseFromString(serialize_example({"x": picture}))
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Classify(request, timeout=60)
    logits = student(x).numpy()
    for row, expected in zip(answer.result.classifications, logits, strict=True):
        assert row.classes[0].label == ["a", "b", "\u4f60"][expected.argmax()]
        np.testing.assert_allclose(sum(c.score for c in row.classes), 1, atol=1e-5)


def test_retries_wait_for_a_server_that_is_busy(monkeypatch):
    monkeypatch.setattr(serve_client.time, "sleep", lambda seconds: None)
    calls = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            calls.append(self.path)
            busy = len(calls) < 3
            body = json.dumps({"error": "busy"} if busy else {"outputs": [1.0]}).encode()
            self.send_response(503 if busy else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as busy_server:
        threading.Thread(target=busy_server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{busy_server.server_port}"
        client = serve_client.RestClient(address, "m", label="canary", retries=2, timeout_seconds=30)
        assert client.predict({"x": np.ones(1)})["outputs"].tolist() == [1.0]
        assert calls == ["/v1/models/m/labels/canary:predict"] * 3
        calls.clear()
        with pytest.raises(ValueError, match="503: busy"):
            serve_client.RestClient(address, "m", retries=1, timeout_seconds=30).predict({"x": np.ones(1)})
        assert len(calls) == 2
        busy_server.shutdown()


def test_timeouts_are_kept(monkeypatch):
    monkeypatch.setattr(serve_client.time, "sleep", lambda seconds: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(grpc.RpcError) as problem:
            serve_client.GrpcClient(address, "m", timeout_seconds=0.3, retries=1).predict({"x": np.ones(1)})
        assert problem.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        with pytest.raises((TimeoutError, OSError)):
            serve_client.RestClient(address, "m", timeout_seconds=0.3, retries=1).predict({"x": np.ones(1)})
        assert time.monotonic() - start < 20
