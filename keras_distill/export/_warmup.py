"""Warm-up requests, which TensorFlow Serving replays before a version becomes available."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill._checks import error, optional
from keras_distill.export._session import ServingSession

#: Path in the version directory where TensorFlow Serving looks.
WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
#: TensorFlow Serving refuses files with more records.
MOST_RECORDS = 1000


def _protos(owner: str) -> Any:
    """Return the module of TensorFlow Serving's warm-up requests."""
    with optional(owner, "tensorflow-serving-api", "serving"):
        from tensorflow_serving.apis import prediction_log_pb2
    return prediction_log_pb2


def predict_log(owner: str, model: str, signature: str, feeds: Mapping[str, np.ndarray]) -> Any:
    """Make a PredictionLog of a Predict call.

    Args:
        owner: name shown in the error message.
        model: name of the model.
        signature: name of the signature.
        feeds: arrays by input name.

    Returns:
        The ``PredictionLog`` proto.
    """
    logs = _protos(owner)
    log = logs.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, array in feeds.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return log


def example_log(owner: str, model: str, signature: str, serialized: Sequence[bytes]) -> Any:
    """Make a PredictionLog of a Classify or Regress call.

    Args:
        owner: name shown in the error message.
        model: name of the model.
        signature: ``"classify"`` or ``"regress"``.
        serialized: ``tf.train.Example`` protos.

    Returns:
        The ``PredictionLog`` proto.
    """
    logs = _protos(owner)
    log = logs.PredictionLog()
    request = (log.classify_log if signature == "classify" else log.regress_log).request
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for content in serialized:
        request.input.example_list.examples.add().ParseFromString(content)
    return log


def write_warmup(owner: str, version_directory: str | os.PathLike[str], logs: Sequence[Any]) -> Path:
    """Write the records to where TensorFlow Serving looks for them.

    Args:
        owner: name shown in the error message.
        version_directory: of the SavedModel.
        logs: ``PredictionLog`` protos.

    Returns:
        The file.

    Raises:
        ValueError: if there are more than 1000 records.
    """
    if len(logs) > MOST_RECORDS:
        raise error(owner, f"at most {MOST_RECORDS} warm-up requests", len(logs))
    path = Path(version_directory) / WARMUP_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())
    return path


def read_warmup(version_directory: str | os.PathLike[str]) -> list[Any]:
    """Parse the warm-up file of a version.

    Args:
        version_directory: of the SavedModel.

    Returns:
        ``PredictionLog`` protos; empty if there is no file.

    Raises:
        ValueError: if the file does not hold warm-up requests.
    """
    owner = "read_warmup"
    path = Path(version_directory) / WARMUP_FILE
    if not path.is_file():
        return []
    logs = _protos(owner)
    try:
        out = [logs.PredictionLog.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
    except Exception as problem:
        raise error(owner, "a file of PredictionLog records", f"{path} ({type(problem).__name__})") from problem
    if not out:
        raise error(owner, "a file of PredictionLog records", f"{path} without one")
    return out


def replay_warmup(session: ServingSession, logs: Sequence[Any]) -> list[dict[str, np.ndarray]]:
    """Run every record through a serving session, as the server does when it loads the version.

    Args:
        session: the loaded version.
        logs: records from ``read_warmup``.

    Returns:
        The outputs of each record.

    Raises:
        ServedError: if a record fails.
    """
    out = []
    for log in logs:
        kind = log.WhichOneof("log_type")
        request = getattr(log, kind).request
        signature = request.model_spec.signature_name or "serving_default"
        if kind == "predict_log":
            feeds = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        else:
            examples = [example.SerializeToString() for example in request.input.example_list.examples]
            feeds = {"inputs": np.array(examples, dtype=object)}
        out.append(session.run(feeds, signature))
    return out
