"""A minimal stand-in for TensorFlow Serving's Predict, Classify and REST calls, to test a client without Docker.

The messages are the official ones (`tensorflow-serving-api`), and the SavedModel runs through TensorFlow's C API as in
the real server. It has no batching, versions or security: use it only for tests and `serve_client.py --smoke`.

Run:   python examples/serve_stand_in.py serving/student/1
"""

import base64
import concurrent.futures
import http.server
import json
import pathlib
import sys
import threading

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_service_pb2_grpc

from keras_distill.export import ServedError, ServingSession


class Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
    """The gRPC side."""

    def __init__(self, models):
        self.models = models

    def run(self, spec, feeds, outputs, context, signature="serving_default"):
        """Run one signature, or abort the call with the status that TensorFlow Serving returns."""
        if spec.name not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
        session, lock = self.models[spec.name]
        try:
            with lock:
                return session.run(feeds, spec.signature_name or signature, outputs)
        except ServedError as problem:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(problem))

    def Predict(self, request, context):  # noqa: N802 (the service's name)
        """Answer a PredictRequest."""
        feeds = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        out = self.run(request.model_spec, feeds, list(request.output_filter) or None, context)
        response = predict_pb2.PredictResponse(model_spec=request.model_spec)
        for name, value in out.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response

    def Classify(self, request, context):  # noqa: N802
        """Answer a ClassificationRequest."""
        rows = [example.SerializeToString() for example in request.input.example_list.examples]
        out = self.run(request.model_spec, {"inputs": np.array(rows, object)}, None, context, "classify")
        response = classification_pb2.ClassificationResponse(model_spec=request.model_spec)
        for names, scores in zip(out["classes"], out["scores"], strict=True):
            row = response.result.classifications.add()
            for name, score in zip(names, scores, strict=True):
                row.classes.add(label=name.decode(), score=score)
        return response


def rest_handler(models):
    """Make the REST side: metadata, and :predict in the columnar form."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/v1/models/").removesuffix("/metadata")
            if name not in models:
                return self.answer(404, {"error": f"Could not find any versions of model {name}"})
            return self.answer(200, {"metadata": {"signature_def": models[name][0].signatures}})

        def do_POST(self):
            name = self.path.removeprefix("/v1/models/").split(":")[0].split("/")[0]
            if name not in models:
                return self.answer(404, {"error": f"Servable not found for request: Latest({name})"})
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            signature = body.get("signature_name", "serving_default")
            session, lock = models[name]
            try:
                known = session.signatures[signature]["inputs"]
                given = body["inputs"] if isinstance(body["inputs"], dict) else {next(iter(known)): body["inputs"]}
                feeds = {key: array(value, known[key]["dtype"]) for key, value in given.items()}
                with lock:
                    out = session.run(feeds, signature)
            except (KeyError, ValueError) as problem:
                return self.answer(400, {"error": str(problem)})
            return self.answer(200, {"outputs": {key: text(value.tolist()) for key, value in out.items()}})

        def answer(self, status, content):
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *arguments):
            pass

    return Handler


def array(value, dtype):
    """Turn JSON into an array; {"b64": ...} is bytes."""

    def decode(item):
        if isinstance(item, list):
            return [decode(part) for part in item]
        return base64.b64decode(item["b64"]) if isinstance(item, dict) else item

    return np.array(decode(value), dtype=object if dtype == "string" else dtype)


def text(value):
    """Turn bytes into text, in nested lists too."""
    if isinstance(value, list):
        return [text(item) for item in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class StandIn:
    """Serve version directories by model name, on free ports of this machine."""

    def __init__(self, paths, grpc_port=0, rest_port=0):
        self.models = {name: (ServingSession(path), threading.Lock()) for name, path in paths.items()}
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Servicer(self.models), self.server)
        self.grpc_address = f"127.0.0.1:{self.server.add_insecure_port(f'127.0.0.1:{grpc_port}')}"
        self.rest = http.server.ThreadingHTTPServer(("127.0.0.1", rest_port), rest_handler(self.models))
        self.rest_address = f"127.0.0.1:{self.rest.server_port}"

    def __enter__(self):
        self.server.start()
        threading.Thread(target=self.rest.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *problem):
        self.server.stop(None).wait()
        self.rest.shutdown()
        self.rest.server_close()
        for session, _ in self.models.values():
            session.close()


if __name__ == "__main__":
    version = pathlib.Path(sys.argv[1])
    with StandIn({version.parent.name: version}, 8500, 8501) as stand_in:
        print(f"{version.parent.name}: gRPC {stand_in.grpc_address}, REST {stand_in.rest_address}; Enter ends it")
        input()
