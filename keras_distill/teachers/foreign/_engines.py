"""Runtimes of foreign models: one class each, all with arrays by name as inputs and outputs.

Kept apart from ``_teacher.py``: the runtimes are optional, and each is imported here alone.
"""

from __future__ import annotations

import dataclasses
import numbers
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill._checks import error, optional
from keras_distill.teachers.foreign._files import check_onnx, check_saved_model


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or an output: its name, its shape with the batch axis first (None where it is free), its dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Engine:
    """A model in its runtime.

    Attributes:
        inputs: the input ports; None if unknown (a function takes whatever it is given).
        outputs: the output ports; None if unknown before the first call.
        in_graph: True if it consists of TensorFlow operations, so that ``run`` takes and returns tensors.
    """

    inputs: list[Port] | None = None
    outputs: list[Port] | None = None
    in_graph = False

    def run(self, feeds: Any) -> dict[str, Any]:
        """Return arrays (tensors if ``in_graph``) by output name, for arrays by input name."""
        raise NotImplementedError(f"{type(self).__name__} must define run().")

    @property
    def batch(self) -> int | None:
        """The fixed number of rows per call, or None if any number is accepted."""
        return self.inputs[0].shape[0] if self.inputs else None


class Function(Engine):
    """A Python function of arrays, or a ``tf.function``, which stays in the graph."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.in_graph = isinstance(function, tf.types.experimental.Callable)

    def run(self, feeds: Any) -> dict[str, Any]:
        """Call the function with the inputs in their own structure."""
        return by_name(self.function(feeds))


def by_name(found: Any) -> dict[str, Any]:
    """Return a function's result as a dict: ``"output"`` for one array, ``"output_0"``, ... for a list."""
    if isinstance(found, dict):
        return {str(name): each for name, each in found.items()}
    if isinstance(found, (list, tuple)) and found and hasattr(found[0], "shape"):
        return {f"output_{index}": each for index, each in enumerate(found)}
    return {"output": found}


class SavedModel(Engine):
    """A signature of a SavedModel, as TensorFlow operations."""

    in_graph = True

    def __init__(self, owner: str, path: Path, max_bytes: int, signature: str = "serving_default") -> None:
        check_saved_model(owner, path)
        self.loaded = tf.saved_model.load(str(path))
        if signature not in self.loaded.signatures:
            known = ", ".join(map(repr, self.loaded.signatures)) or "none"
            raise error(owner, f"a signature of {path} ({known})", repr(signature))
        self.function = self.loaded.signatures[signature]
        self.inputs = [_port(name, spec) for name, spec in self.function.structured_input_signature[1].items()]
        self.outputs = [_port(name, spec) for name, spec in self.function.structured_outputs.items()]

    def run(self, feeds: Any) -> dict[str, Any]:
        """Call the signature."""
        return self.function(**feeds)


def _port(name: str, spec: Any) -> Port:
    shape = spec.shape
    sizes = (None,) if shape.rank is None else tuple(shape.as_list())
    return Port(name, sizes, spec.dtype.name)


class Onnx(Engine):
    """An ONNX file in ONNX Runtime on the CPU."""

    def __init__(self, owner: str, path: Path, max_bytes: int) -> None:
        with optional(owner, "onnxruntime", "onnx"):
            import onnxruntime as runtime
        check_onnx(owner, path, max_bytes)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = (
            [Port(each.name, _sizes(each.shape), _onnx_dtype(each.type)) for each in ports]
            for ports in (self.session.get_inputs(), self.session.get_outputs())
        )

    def run(self, feeds: Any) -> dict[str, Any]:
        """Run the session; it may be called from several threads at once."""
        names = [port.name for port in self.outputs or ()]
        return dict(zip(names, self.session.run(names, feeds), strict=True))


def _sizes(shape: Sequence[Any]) -> tuple[int | None, ...]:
    return tuple(int(s) if isinstance(s, numbers.Integral) and int(s) > 0 else None for s in shape) or (None,)


def _onnx_dtype(name: str) -> str:
    inner = name.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


class LiteRT(Engine):
    """A ``.tflite`` file; each thread has its own interpreter, because interpreters are not thread-safe."""

    def __init__(self, owner: str, path: Path, max_bytes: int) -> None:
        with optional(owner, "ai-edge-litert", "litert"):
            from ai_edge_litert import interpreter as package
        self._package = package
        self._content = path.read_bytes()  # replacing a memory-mapped file would crash the process
        self._mine = threading.local()
        interpreter = self._interpreter()
        signatures = interpreter.get_signature_list()
        self._signature = next(iter(signatures), None)
        if self._signature is not None:
            runner = interpreter.get_signature_runner(self._signature)
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
        else:
            inputs = {each["name"]: each for each in interpreter.get_input_details()}
            outputs = {each["name"]: each for each in interpreter.get_output_details()}
        self._scales = {name: each["quantization"] for name, each in {**inputs, **outputs}.items()}
        self.inputs, self.outputs = (
            [Port(name, _sizes(each["shape_signature"]), self._seen_dtype(name, each)) for name, each in ports.items()]
            for ports in (inputs, outputs)
        )
        self._dtypes = {name: each["dtype"] for name, each in inputs.items()}

    def _interpreter(self) -> Any:
        if not hasattr(self._mine, "interpreter"):
            self._mine.interpreter = self._package.Interpreter(model_content=self._content)
            self._mine.interpreter.allocate_tensors()
        return self._mine.interpreter

    def _seen_dtype(self, name: str, details: dict[str, Any]) -> str:
        """Return float32 for a quantised tensor, which is rescaled here, else the file's own dtype."""
        return "float32" if self._scales[name][0] else np.dtype(details["dtype"]).name

    def run(self, feeds: Any) -> dict[str, Any]:
        """Run this thread's interpreter, applying the file's scales if it is quantised."""
        interpreter = self._interpreter()
        feeds = {name: self._quantized(name, array) for name, array in feeds.items()}
        if self._signature is not None:
            found = interpreter.get_signature_runner(self._signature)(**feeds)
            return {name: self._plain(name, np.array(found[name])) for name in found}
        details = {each["name"]: each for each in interpreter.get_input_details()}
        if any(tuple(details[name]["shape"]) != array.shape for name, array in feeds.items()):
            for name, array in feeds.items():
                interpreter.resize_tensor_input(details[name]["index"], array.shape)
            interpreter.allocate_tensors()
        for name, array in feeds.items():
            interpreter.set_tensor(details[name]["index"], array)
        interpreter.invoke()
        return {each["name"]: self._plain(each["name"], np.array(interpreter.get_tensor(each["index"])))
                for each in interpreter.get_output_details()}  # fmt: skip

    def _quantized(self, name: str, array: np.ndarray) -> np.ndarray:
        scale, zero = self._scales[name]
        dtype = self._dtypes[name]
        if not scale:
            return array
        limits = np.iinfo(dtype)
        return np.clip(np.round(array / scale) + zero, limits.min, limits.max).astype(dtype)

    def _plain(self, name: str, array: np.ndarray) -> np.ndarray:
        scale, zero = self._scales[name]
        return (array.astype("float32") - zero) * np.float32(scale) if scale else array


FORMATS: dict[str, tuple[Callable[..., Engine], str | None]] = {
    "saved_model": (SavedModel, None),
    "onnx": (Onnx, ".onnx"),
    "litert": (LiteRT, ".tflite"),
}
