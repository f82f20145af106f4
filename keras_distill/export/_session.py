"""The client of ``_capi.py``: a SavedModel in its own process, loaded as TensorFlow Serving loads it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from keras_distill._checks import error
from keras_distill.export import _capi

_OWNER = "ServingSession"


class ServedError(ValueError):
    """An error from TensorFlow's C API: the SavedModel does not load, or the graph refused an input."""


class ServingSession:
    """A SavedModel loaded through ``TF_LoadSessionFromSavedModel``, in a process that never imports Python TensorFlow.

    What works here works in TensorFlow Serving: it uses the same loader and session, without Keras, custom layers or
    Python. The operations of tensorflow-text, which keras-hub's tokenizers use, are part of TensorFlow Serving; here
    they are loaded from the installed package. Starting takes a second; close the session, or use a ``with`` statement.

    Args:
        path: a version directory, such as ``serving/student/1``.

    Attributes:
        signatures: by name, a dictionary of ``method``, ``inputs`` and ``outputs`` with ``dtype`` and ``shape`` each.
        version: version of the TensorFlow library.
        python_tensorflow: whether the process had imported Python TensorFlow at its last answer; always False.

    Raises:
        ServedError: if the directory is not a servable SavedModel.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> from keras_distill import export
        >>> student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, kernel_initializer="zeros")])
        >>> exported = export.saved_model(student, tempfile.mkdtemp())
        >>> with export.ServingSession(exported) as session:
        ...     session.run({"x": np.ones((1, 4))})["logits"].tolist()
        [[0.0, 0.0, 0.0]]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / "saved_model.pb").is_file():
            raise error(_OWNER, "a version directory with a saved_model.pb", str(self.path))
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", _capi.__file__, str(find_library()), str(self.path), *_text_libraries()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        try:
            hello, _ = self._receive()
        except BaseException:
            self.close()
            raise
        self.signatures: dict[str, Any] = hello["signatures"]
        self.version: str = hello["version"]
        self.python_tensorflow: bool = hello["python_tensorflow"]

    def run(
        self,
        feeds: Mapping[str, Any],
        signature: str = "serving_default",
        outputs: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Run one signature.

        Args:
            feeds: arrays by input name; text as ``str`` or ``bytes``.
            signature: its name.
            outputs: which outputs; None for all.

        Returns:
            Arrays by output name; strings are object arrays of ``bytes``.

        Raises:
            ServedError: with TensorFlow's message, if the graph refuses the input.
        """
        header, out = self._ask("run", feeds, signature, outputs)
        self.python_tensorflow = header["python_tensorflow"]
        return out

    def measure(
        self,
        feeds: Mapping[str, Any],
        signature: str = "serving_default",
        outputs: Sequence[str] | None = None,
        repeats: int = 100,
        warmup: int = 5,
    ) -> np.ndarray:
        """Time runs inside the serving process, without the transport to it.

        Args:
            feeds: arrays by input name.
            signature: its name.
            outputs: which outputs; None for all.
            repeats: number of timed runs.
            warmup: number of untimed runs before them.

        Returns:
            Seconds of each run, (repeats,).
        """
        header, _ = self._ask("measure", feeds, signature, outputs, repeats=repeats + warmup)
        return np.asarray(header["seconds"][warmup:])

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> ServingSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self, op: str, feeds: Mapping[str, Any], signature: str, outputs: Sequence[str] | None, **more: Any
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        known = self.signatures.get(signature, {}).get("inputs", {})
        arrays = {}
        for name, value in feeds.items():
            dtype = known.get(name, {}).get("dtype")
            arrays[name] = np.asarray(value, dtype=object if dtype == "string" else None)
        header = {"op": op, "signature": signature, "outputs": list(outputs) if outputs else None, **more}
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            raise ServedError(f"{_OWNER}: expected an open session, got a closed one.")
        _capi.write_message(stdin, header, arrays)  # type: ignore[arg-type]
        return self._receive()

    def _receive(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        try:
            header, tensors = _capi.read_message(self._process.stdout)  # type: ignore[arg-type]
        except EOFError:
            code = self._process.wait()
            self._log.seek(0)
            tail = self._log.read().decode(errors="replace")[-2000:]
            raise ServedError(
                f"{_OWNER}: expected an answer for {self.path}, got exit code {code} of the process. {tail}"
            ) from None
        if "error" in header:
            advice = (
                " Is tensorflow-text installed? A tokenizer may need it." if _capi.UNKNOWN_OP in header["error"] else ""
            )
            raise ServedError(f"{_OWNER}: expected {self.path} to be served, got: {header['error']}{advice}")
        return header, tensors


def _text_libraries() -> list[str]:
    """Return the shared libraries of tensorflow-text, if it is installed, without importing it."""
    spec = importlib.util.find_spec("tensorflow_text")
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    return sorted(str(file) for base in folders for file in Path(base).glob("python/ops/*.so"))


def find_library() -> Path:
    """Find ``libtensorflow_cc`` of the installed wheel, without importing it.

    Returns:
        The path.

    Raises:
        ValueError: if there is none.
    """
    spec = importlib.util.find_spec("tensorflow")
    for base in (spec.submodule_search_locations or []) if spec is not None else []:
        for name in ("libtensorflow_cc.so.2", "libtensorflow_cc.2.dylib"):
            if (Path(base) / name).is_file():
                return Path(base) / name
    raise error(_OWNER, "libtensorflow_cc in the installed tensorflow", "none", "Install tensorflow for Linux or macOS")
