"""Request predictions from TensorFlow Serving by gRPC or REST: timeouts, retries, splitting of large batches.

Start the server on what `export.saved_model(student, "serving/student")` wrote:

    docker run --rm -p 8500:8500 -p 8501:8501 \
      -v "$PWD/serving/student:/models/student:ro" -e MODEL_NAME=student tensorflow/serving

Then:              python examples/serve_client.py --model student --inputs inputs.npz
Without Docker:    python examples/serve_client.py --smoke      (needs the extra [serving])
"""

import argparse
import base64
import json
import random
import tempfile
import time
import urllib.error
import urllib.request

import numpy as np


def pieces(feeds, size):
    """Split a batch into requests of at most `size` examples, because servers limit the message size."""
    count = len(next(iter(feeds.values())))
    return [{name: value[i : i + size] for name, value in feeds.items()} for i in range(0, count, size)]


def with_retries(call, is_temporary, retries):
    """Retry after 0.1, 0.2, 0.4, ... seconds (with jitter) while the server is busy or starting."""
    for attempt in range(retries + 1):
        try:
            return call()
        except Exception as problem:
            if attempt == retries or not is_temporary(problem):
                raise
            time.sleep(0.1 * 2**attempt * random.uniform(0.5, 1.5))


class Client:
    """Base of both clients; `label` selects a version by its label in models.config, such as "canary"."""

    def __init__(self, address, model, label=None, timeout_seconds=5.0, retries=3, most_examples=64):
        self.address, self.model, self.label = address, model, label
        self.timeout_seconds, self.retries, self.most_examples = timeout_seconds, retries, most_examples

    def predict(self, feeds, signature="serving_default"):
        """Return arrays by output name for arrays by input name."""
        parts = [self._ask(part, signature) for part in pieces(feeds, self.most_examples)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class GrpcClient(Client):
    """Predict over gRPC."""

    outputs = ()  # names of the requested outputs; empty for all

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        import grpc
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        self.grpc, self.request_class = grpc, predict_pb2.PredictRequest
        channel = grpc.insecure_channel(self.address, options=[("grpc.max_receive_message_length", 64 * 2**20)])
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def _ask(self, feeds, signature):
        import tensorflow as tf

        request = self.request_class(output_filter=self.outputs)
        request.model_spec.name, request.model_spec.signature_name = self.model, signature
        if self.label:
            request.model_spec.version_label = self.label
        for name, value in feeds.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        codes = self.grpc.StatusCode
        temporary = (codes.UNAVAILABLE, codes.RESOURCE_EXHAUSTED, codes.DEADLINE_EXCEEDED)

        def is_temporary(problem):
            return isinstance(problem, self.grpc.RpcError) and problem.code() in temporary

        answer = with_retries(
            lambda: self.stub.Predict(request, timeout=self.timeout_seconds), is_temporary, self.retries
        )
        return {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}


class RestClient(Client):
    """Predict over REST, in the columnar form: one array per input and output."""

    def _ask(self, feeds, signature):
        body = {"signature_name": signature, "inputs": {name: _jsonable(value) for name, value in feeds.items()}}
        version = f"/labels/{self.label}" if self.label else ""
        url = f"http://{self.address}/v1/models/{self.model}{version}:predict"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})

        def call():
            with urllib.request.urlopen(request, timeout=self.timeout_seconds) as answer:
                return json.load(answer)["outputs"]

        def is_temporary(problem):
            code = getattr(problem, "code", 503)  # only an HTTPError has one; other failures are temporary
            return isinstance(problem, OSError) and code in (429, 502, 503, 504)

        try:
            out = with_retries(call, is_temporary, self.retries)
        except urllib.error.HTTPError as problem:
            raise ValueError(f"{problem.code}: {json.load(problem).get('error', problem.reason)}") from problem
        out = out if isinstance(out, dict) else {"outputs": out}  # the only output of a signature has no name
        return {name: np.asarray(value) for name, value in out.items()}


def _jsonable(value):
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}  # images, serialized protos
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return [_jsonable(item) for item in value] if isinstance(value, list) else value


def smoke():
    """Export a small student, serve it with the stand-in, request 150 examples both ways."""
    import keras
    from serve_stand_in import StandIn

    from keras_distill import export

    student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
    exported = export.saved_model(student, tempfile.mkdtemp() + "/student", labels=["a", "b", "c"])
    x = np.random.default_rng(0).normal(size=(150, 4)).astype("float32")
    with StandIn({"student": exported}) as server:
        for client in (GrpcClient(server.grpc_address, "student"), RestClient(server.rest_address, "student")):
            answer = client.predict({"x": x})
            difference = np.abs(answer["logits"] - student(x).numpy()).max()
            print(f"{type(client).__name__}: {len(x)} examples in 3 requests, difference from Keras {difference:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--inputs", help="an .npz with one array per input")
    parser.add_argument("--address", metavar="HOST:PORT", default="localhost:8500")
    parser.add_argument("--rest", action="store_true", help="the address speaks REST (8501) instead of gRPC (8500)")
    parser.add_argument("--label", help="version label, such as stable or canary")
    parser.add_argument("--smoke", action="store_true")
    if (options := parser.parse_args()).smoke:
        smoke()
    else:
        client = (RestClient if options.rest else GrpcClient)(options.address, options.model, options.label)
        print(client.predict(dict(np.load(options.inputs, allow_pickle=False))))
