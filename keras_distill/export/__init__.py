"""Exports of a trained student for serving, each checked against the Keras student."""

from keras_distill.export._card import ModelCard
from keras_distill.export._edge import litert, onnx, openvino
from keras_distill.export._load import load_student
from keras_distill.export._parity import Export
from keras_distill.export._saved_model import saved_model
from keras_distill.export._serve_check import ServeCheck, serve_check
from keras_distill.export._serving_files import serving_files
from keras_distill.export._session import ServedError, ServingSession
from keras_distill.export._signatures import ImageBytes
from keras_distill.export._warmup import read_warmup, replay_warmup

__all__ = [
    "Export",
    "ImageBytes",
    "ModelCard",
    "ServeCheck",
    "ServedError",
    "ServingSession",
    "litert",
    "load_student",
    "onnx",
    "openvino",
    "read_warmup",
    "replay_warmup",
    "saved_model",
    "serve_check",
    "serving_files",
]
