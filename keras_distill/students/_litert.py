"""LiteRT files in memory: converted, run, and timed against each other on one thread."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error, optional
from keras_distill.students import _graph

_TURN = 3.0


def convert(owner: str, model: keras.Model, optimize: bool = False) -> bytes:
    """Return a model as a LiteRT file for one example.

    Args:
        owner: name shown in the error message.
        model: a built Functional or Sequential model.
        optimize: let the converter use the ranges of fake quantisers (and 8-bit weights elsewhere).
    """
    graph = _graph.graph_of(model)
    specs = keras.tree.map_structure(
        lambda tensor: tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name=tensor.name), graph._inputs_struct
    )
    function = tf.function(lambda given: model(given, training=False), input_signature=[specs], autograph=False)
    holder = tf.Module()  # the converter freezes the variables found here
    holder.held = [variable.value for variable in model.variables]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], holder)
            if optimize:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            return converter.convert()
    except Exception as problem:
        first = next((line for line in str(problem).splitlines() if line.strip()), "")
        raise error(owner, "a model that LiteRT can convert", f"{type(problem).__name__}: {first[:200]}") from problem


class Runner:
    """A LiteRT file in its runtime, on one thread.

    Args:
        content: the file.
    """

    def __init__(self, content: bytes) -> None:
        self._interpreter = _interpreter(content)
        self._interpreter.allocate_tensors()
        self.inputs = self._interpreter.get_input_details()
        self.outputs = self._interpreter.get_output_details()

    def __call__(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run one example, given in the order of the file's inputs."""
        for detail, value in zip(self.inputs, values, strict=True):
            self._interpreter.set_tensor(detail["index"], np.asarray(value, detail["dtype"]))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(detail["index"]) for detail in self.outputs]

    def milliseconds(self, repeats: int) -> list[float]:
        """Return the time of each run, on the current input values."""
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            self._interpreter.invoke()
            times.append(1e3 * (time.perf_counter() - started))
        return times


def _interpreter(content: bytes) -> Any:
    with optional("students", "ai-edge-litert", "litert"):
        from ai_edge_litert.interpreter import Interpreter
    return Interpreter(model_content=content, num_threads=1)


def predict(content: bytes, batches: Sequence[np.ndarray]) -> np.ndarray:
    """Return the first output for every example of one input array."""
    run = Runner(content)
    return np.concatenate([run([row[None]])[0] for row in batches])


def times(contents: Sequence[bytes], rounds: int = 12, repeats: int = 10) -> list[float]:
    """Return milliseconds of each file: tenth percentile over rounds that run every file in turn on one thread.

    A turn takes at least ``_TURN`` milliseconds, so that the caches' contents from the previous file do not matter.
    """
    runs = [Runner(content) for content in contents]
    counts = []
    for run in runs:
        values = [np.zeros(detail["shape"], detail["dtype"]) for detail in run.inputs]
        run(values)
        counts.append(max(repeats, math.ceil(_TURN / min(run.milliseconds(3)))))
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, count, found in zip(runs, counts, taken, strict=True):
            found += run.milliseconds(count)
    return [float(np.percentile(found, 10)) for found in taken]


def latency_ratio(content: bytes, reference: bytes) -> float:
    """Return the time of one file over that of another, measured in the same rounds."""
    own, other = times([content, reference])
    return own / other
