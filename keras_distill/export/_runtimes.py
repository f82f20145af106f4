"""Runtimes for exported files outside Keras: LiteRT, ONNX Runtime, OpenVINO. Each is imported on first use."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill._checks import choice, error, optional

Runtime = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]

#: By file extension: format, which is also the name of the extra.
FORMATS = {".tflite": "litert", ".onnx": "onnx", ".xml": "openvino"}


def runtime_package(owner: str, kind: str) -> Any:
    """Import the package that runs files of a format, or raise the error that names its extra.

    Args:
        owner: name shown in the error message.
        kind: one of ``FORMATS``' values.

    Returns:
        The module.

    Raises:
        ValueError: if it is not installed.
    """
    if kind == "litert":
        with optional(owner, "ai-edge-litert", "litert"):
            from ai_edge_litert import interpreter
        return interpreter
    if kind == "onnx":
        with optional(owner, "onnxruntime", "onnx"):
            import onnxruntime
        return onnxruntime
    with optional(owner, "openvino", "openvino"):
        import openvino
    return openvino


def open_runtime(owner: str, path: str | os.PathLike[str], num_threads: int | None = None) -> Runtime:
    """Load a ``.tflite``, ``.onnx`` or ``.xml`` file in its own runtime.

    Args:
        owner: name shown in the error message.
        path: the file.
        num_threads: number of threads; None leaves the choice to the runtime (LiteRT: one thread).

    Returns:
        A function from arrays by input name to arrays by output name, in the file's order. OpenVINO is set to float32,
        because by default it uses bfloat16 on processors that have it.

    Raises:
        ValueError: if the extension is unknown, the package is missing, or the file does not load.
    """
    path = Path(path)
    choice(owner, "the file's ending", path.suffix, FORMATS)
    kind = FORMATS[path.suffix]
    package = runtime_package(owner, kind)
    opener = {"litert": _open_litert, "onnx": _open_onnx, "openvino": _open_openvino}[kind]
    try:
        return opener(package, path, num_threads)
    except Exception as problem:
        first = (str(problem).splitlines() or [""])[0]
        raise error(owner, f"a file that {kind} can load", f"{path}: {type(problem).__name__}: {first}") from problem


def _open_litert(package: Any, path: Path, num_threads: int | None) -> Runtime:
    # Read into memory, because replacing or removing a memory-mapped file would crash the process.
    interpreter = package.Interpreter(model_content=path.read_bytes(), num_threads=num_threads)
    runner = interpreter.get_signature_runner()

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = {name: np.array(value) for name, value in runner(**feeds).items()}
        return dict(sorted(out.items(), key=lambda item: _number(item[0])))

    return run


def _number(name: str) -> tuple[int, str]:
    match = re.fullmatch(r"output_(\d+)", name)
    return (int(match[1]), "") if match else (0, name)


def _open_onnx(package: Any, path: Path, num_threads: int | None) -> Runtime:
    options = package.SessionOptions()
    options.log_severity_level = 3
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
    session = package.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return run


def _open_openvino(package: Any, path: Path, num_threads: int | None) -> Runtime:
    properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if num_threads is not None:
        properties["INFERENCE_NUM_THREADS"] = num_threads
    compiled = package.Core().compile_model(str(path), "CPU", properties)
    names = [next(iter(sorted(output.get_names())), f"output_{i}") for i, output in enumerate(compiled.outputs)]

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        result = compiled(dict(feeds))
        return {name: np.array(result[output]) for name, output in zip(names, compiled.outputs, strict=True)}

    return run


def flat_outputs(owner: str, out: Mapping[str, np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    """Arrange a runtime's outputs in the student's order: by name if the names were kept, else by position.

    Args:
        owner: name shown in the error message.
        out: the runtime's outputs.
        names: names of the student's outputs, in order.

    Returns:
        Arrays in that order.

    Raises:
        ValueError: if their number differs.
    """
    if len(out) != len(names):
        raise error(owner, f"{len(names)} outputs from the export", f"{len(out)}: {', '.join(out)}")
    return [out[name] for name in names] if set(names) == set(out) else list(out.values())


def latency(run: Callable[[], Any], repeats: int = 30, warmup: int = 3) -> dict[str, float]:
    """Time a call.

    Args:
        run: the function to time.
        repeats: number of timed calls.
        warmup: number of untimed calls before them.

    Returns:
        ``median`` and ``p99`` in milliseconds.
    """
    for _ in range(warmup):
        run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return percentiles(seconds)


def percentiles(seconds: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Summarise times.

    Args:
        seconds: seconds of each call.

    Returns:
        ``median`` and ``p99`` in milliseconds.
    """
    milliseconds = np.asarray(seconds, np.float64) * 1e3
    return {"median": float(np.median(milliseconds)), "p99": float(np.percentile(milliseconds, 99))}
