"""A model of another runtime as a teacher, live through NumPy arrays or labelled once."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import choice, error, integer, nearest
from keras_distill._typing import Tensor
from keras_distill.teachers._base import Teacher, refuse_gradient, silent
from keras_distill.teachers.foreign import _engines
from keras_distill.teachers.foreign._files import checked, digest, digest_of_function

_TINY = float(np.finfo("float32").tiny)
_SENTENCE = re.compile(r"(?:^|ValueError: )(from_\w+: expected .*?)(?:\n|$)")
_PATIENCE = 20.0  # seconds
_LABEL_FIRST = "Run teachers.label(teacher, dataset, path) once and train on its store, or compile(jit_compile=False)"


@keras.saving.register_keras_serializable(package="keras_distill")
class Foreign(Teacher):
    """A black-box teacher, made by ``from_saved_model``, ``from_onnx``, ``from_litert`` and ``from_callable``.

    Its named outputs serve as the final outputs, and each of them as a tap for feature terms (``teacher_layer_name``)
    and for ``teachers.label(features=...)``. A saved distiller keeps the path, the settings and the file's digest, not
    the file; the digest is compared when the teacher is first used after loading.

    Args:
        format: ``"saved_model"``, ``"onnx"``, ``"litert"`` or ``"callable"``.
        path: path of the model; None for a function.
        function: the function to call; None for a file.
        preprocess: see ``from_callable``.
        outputs: see ``from_callable``.
        activation: see ``from_callable``.
        batch_size: see ``from_callable``.
        num_threads: see ``from_callable``.
        fingerprint: fingerprint of the file or the function; None computes it.
        max_bytes: see ``from_onnx``.
        options: settings specific to one format, such as the signature of a SavedModel.
        **kwargs: passed on to ``keras.Model`` (``name``).
    """

    def __init__(
        self,
        format: str,
        path: str | None = None,
        function: Callable[..., Any] | None = None,
        preprocess: Callable[[Any], Any] | None = None,
        outputs: Any = None,
        activation: Any = None,
        batch_size: int | None = None,
        num_threads: int = 1,
        fingerprint: str | None = None,
        max_bytes: int = 2 * 2**30,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner = f"from_{format}"
        choice("Foreign", "format", format, ["callable", *_engines.FORMATS])
        if format == "callable" and not callable(function):
            raise error(owner, "a function of arrays", type(function).__name__, "Give model.predict_proba, for example")
        if preprocess is not None and not callable(preprocess):
            raise error(owner, "preprocess to be a function or None", preprocess)
        for each in activation.values() if isinstance(activation, dict) else [activation]:
            choice(owner, "activation", each, (None, "softmax", "sigmoid"))
        if batch_size is not None:
            integer(owner, "batch_size", batch_size, low=1)
        integer(owner, "max_bytes", max_bytes, low=1)
        integer(owner, "num_threads", num_threads, low=1)
        self.fingerprint = fingerprint or (digest_of_function(function) if format == "callable" else None)
        settings = {"format": format, "path": path, "function": function, "preprocess": preprocess, "outputs": outputs,
                    "activation": activation, "batch_size": batch_size, "num_threads": num_threads,
                    "max_bytes": max_bytes, "options": options}  # fmt: skip
        object.__setattr__(self, "_given", settings)  # plain data and open files, not to be tracked by Keras
        object.__setattr__(self, "_open", {})
        self.supports_jit = isinstance(function, tf.types.experimental.Callable) or format == "saved_model"

    # ------------------------------------------------------------------------------------- the model itself

    @property
    def owner(self) -> str:
        """The name shown in error messages: the function that makes such a teacher."""
        return f"from_{self._given['format']}"

    @property
    def path(self) -> str | None:
        """Path of the model's file; None for a function."""
        return self._given["path"]

    @property
    def identity(self) -> str:
        """Identity of a foreign teacher, independent of its file's location: digest and settings."""
        given = self._given
        before = None if given["preprocess"] is None else digest_of_function(given["preprocess"])
        kept = {key: given[key] for key in ("format", "outputs", "activation", "options")}
        _ = self.engine
        return json.dumps({**kept, "fingerprint": self.fingerprint, "preprocess": before}, sort_keys=True)

    @property
    def engine(self) -> _engines.Engine:
        """The model in its runtime, opened on first use."""
        if "engine" not in self._open:
            given = self._given
            if given["format"] == "callable":
                self._open["engine"] = _engines.Function(given["function"])
            else:
                kind, suffix = _engines.FORMATS[given["format"]]
                file, _ = checked(self.owner, given["path"], suffix, given["max_bytes"])
                found = digest(file)
                if self.fingerprint is not None and found != self.fingerprint:
                    got = f"one that begins with {found[:12]}"
                    raise error(self.owner, f"the SHA-256 {self.fingerprint[:12]}... of {file}", got)
                self.fingerprint = found
                try:
                    self._open["engine"] = kind(self.owner, file, given["max_bytes"], **(given["options"] or {}))
                except Exception as problem:  # each runtime raises its own errors
                    if str(problem).startswith(f"{self.owner}: expected"):
                        raise
                    first = (str(problem).splitlines() or [""])[0][:200]
                    got = f"{file}: {type(problem).__name__}: {first}"
                    raise error(self.owner, f"a model that {given['format']} can load", got) from problem
        return self._open["engine"]

    @property
    def output_ports(self) -> dict[str, _engines.Port]:
        """Every output by name. A function is called once, with zeros, to find its outputs."""
        known = self.engine.outputs or self._open.get("probed")
        if known is None:
            got = "a function that was not called yet"
            raise error(self.owner, "outputs that are known", got, "Call the teacher on one batch first")
        return {port.name: port for port in known}

    # ------------------------------------------------------------------------------------- what the Distiller calls

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Run the model once; taps are names of its outputs, with ``activation`` undone. See ``Teacher.listen``."""
        refuse_gradient(self, differentiable)
        given = self._given
        x = teacher_x if given["preprocess"] is None else given["preprocess"](teacher_x)
        feeds = self._feeds(x)
        if self.engine.in_graph:
            found = self._in_graph_parts(feeds)
            if self.engine.outputs is None:
                self._open["probed"] = [_engines.Port(name, tuple(t.shape), "") for name, t in found.items()]
        else:
            found = self._bridge(feeds)
        for name in taps:
            self._known(name)
        picked = {name: silent(self._logits(name, found[name])) for name in self._wanted(list(found))}
        wanted = given["outputs"]
        tapped = {name: silent(self._logits(name, found[name])) for name in taps}
        if isinstance(wanted, dict):
            return {ours: picked[theirs] for ours, theirs in wanted.items()}, tapped
        return (next(iter(picked.values())) if isinstance(wanted, str) or len(picked) == 1 else picked), tapped

    def _wanted(self, every: list[str]) -> list[str]:
        wanted = self._given["outputs"]
        if wanted is None:
            return every
        names = [wanted] if isinstance(wanted, str) else list(wanted.values() if isinstance(wanted, dict) else wanted)
        return [self._known(name) for name in names]

    def _known(self, name: str) -> str:
        if name not in self.output_ports:
            got = f"{name!r} (nearest: {nearest(str(name), self.output_ports)})"
            raise error(self.owner, "the name of an output", got)
        return name

    def _logits(self, name: str, tensor: Tensor) -> Any:
        """Undo the model's last activation, so that terms see logits; the result is always finite."""
        kind = self._given["activation"]
        kind = kind.get(name) if isinstance(kind, dict) else kind
        tensor = tf.cast(tensor, tf.float32)
        if kind == "softmax":
            return tf.math.log(tf.maximum(tensor, _TINY))
        if kind == "sigmoid":
            inside = tf.clip_by_value(tensor, _TINY, 1.0 - 2.0**-24)
            return tf.math.log(inside) - tf.math.log1p(-inside)
        return tensor

    def _feeds(self, x: Any) -> Any:
        """Return the engine's inputs: by name, cast and checked, or for a function x unchanged."""
        ports = self.engine.inputs
        if ports is None:
            return keras.tree.map_structure(tf.convert_to_tensor, x)
        leaves = keras.tree.flatten(x)
        if isinstance(x, dict) and set(x) == {port.name for port in ports}:
            leaves = [x[port.name] for port in ports]
        if len(leaves) != len(ports):
            names = ", ".join(repr(port.name) for port in ports)
            raise error(self.owner, f"{len(ports)} inputs ({names})", len(leaves), "Give preprocess=...")
        return {port.name: self._fitted(port, tf.convert_to_tensor(leaf)) for port, leaf in zip(ports, leaves)}  # noqa: B905

    def _fitted(self, port: _engines.Port, tensor: tf.Tensor) -> tf.Tensor:
        wanted = tf.dtypes.as_dtype({"bool": "bool", "string": "string"}.get(port.dtype, port.dtype))
        floats = tensor.dtype.is_floating and not wanted.is_floating
        if floats or (tensor.dtype == tf.string) != (wanted == tf.string):
            advice = "Give preprocess=..., which scales and rounds as the model expects"
            raise error(self.owner, f"{wanted.name} for input {port.name!r}", tensor.dtype.name, advice)
        sizes = zip(port.shape[1:], tensor.shape[1:], strict=False)
        same_rank = len(port.shape) < 2 or len(port.shape) == len(tensor.shape)
        if not same_rank or any(ours is not None and theirs not in (None, ours) for ours, theirs in sizes):
            advice = "Give preprocess=..., for instance tf.image.resize"
            expected = f"shape {('batch', *port.shape[1:])} for input {port.name!r}"
            raise error(self.owner, expected, tuple(tensor.shape), advice)
        return tf.cast(tensor, wanted) if tensor.dtype != wanted else tensor

    # ------------------------------------------------------------------------------------- the bridge of arrays

    def _bridge(self, feeds: Any) -> dict[str, Any]:
        leaves = keras.tree.flatten(feeds)
        ports = self.engine.outputs or self._probe(feeds)

        def call(*arrays: np.ndarray) -> list[np.ndarray]:
            found = self._watched(keras.tree.pack_sequence_as(feeds, list(arrays)))
            return [np.asarray(found[port.name], port.dtype) for port in ports]

        rows = leaves[0].shape[0]
        found = tf.numpy_function(call, leaves, [tf.dtypes.as_dtype(port.dtype) for port in ports])
        found = found if isinstance(found, (list, tuple)) else [found]  # a single output comes without a list
        for tensor, port in zip(found, ports, strict=True):
            tensor.set_shape((rows, *port.shape[1:]))
        return {port.name: tensor for port, tensor in zip(ports, found, strict=True)}

    def _probe(self, feeds: Any) -> list[_engines.Port]:
        """Call a function on two rows of zeros to find its outputs before a graph needs them."""
        if "probed" not in self._open:
            leaves = keras.tree.flatten(feeds)
            if any(None in tensor.shape[1:] for tensor in leaves):
                got = f"{[tuple(tensor.shape) for tensor in leaves]}"
                advice = "Pad to one size, or use teachers.label, which sees real batches"
                raise error(self.owner, "inputs whose shape is known except for the batch", got, advice)
            zeros = [np.zeros((2, *tensor.shape[1:]), tensor.dtype.as_numpy_dtype) for tensor in leaves]
            # In a separate thread: a function that uses TensorFlow must not run inside the graph being traced.
            with ThreadPoolExecutor(1) as thread:
                found = thread.submit(self._in_parts, keras.tree.pack_sequence_as(feeds, zeros)).result()
            self._open["probed"] = [
                _engines.Port(name, (None, *array.shape[1:]), array.dtype.name) for name, array in found.items()
            ]
        return self._open["probed"]

    def _watched(self, feeds: Any) -> dict[str, np.ndarray]:
        """Run the engine; warn if a function may wait for the only thread of TensorFlow, which this call occupies."""
        if not isinstance(self.engine, _engines.Function) or _inter_op_threads() > 1:
            return self._in_parts(feeds)
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(self._in_parts, feeds)
            if not wait([running], timeout=_PATIENCE).done:
                warnings.warn(
                    f"{self.owner}: no answer after {_PATIENCE:g} s, and TensorFlow has a single inter-op thread. "
                    "A function that itself runs TensorFlow waits forever for that thread: decorate it with "
                    "tf.function, or call tf.config.threading.set_inter_op_parallelism_threads(2) first.",
                    stacklevel=2,
                )
            return running.result()

    def _in_parts(self, feeds: Any) -> dict[str, np.ndarray]:
        """Run the engine on a whole batch in parts of its batch size, several concurrently."""
        rows = len(keras.tree.flatten(feeds)[0])
        fixed = self.engine.batch
        size = fixed or self._given["batch_size"] or max(1, -(-rows // self._given["num_threads"]))
        starts = range(0, max(rows, 1), size)
        if len(starts) == 1 or self._given["num_threads"] == 1:
            found = [self._part(feeds, start, size, fixed) for start in starts]
        else:
            found = list(self._pool.map(lambda start: self._part(feeds, start, size, fixed), starts))
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def _in_graph_parts(self, feeds: Any) -> dict[str, Any]:
        """Run an engine of TensorFlow operations in parts of its batch size; the last part is padded with zeros."""
        size = self.engine.batch or self._given["batch_size"]
        first_feed = keras.tree.flatten(feeds)[0]
        known = first_feed.shape[0]
        if size is None or known == size:
            return self.engine.run(feeds)
        rows = tf.shape(first_feed)[0]
        count = tf.maximum(-(-rows // size), 1)

        def in_parts(x: Any) -> Any:
            x = tf.pad(x, [[0, count * size - rows], *[[0, 0]] * (len(x.shape) - 1)])
            return tf.ensure_shape(
                tf.reshape(x, tf.concat([[count, size], tf.shape(x)[1:]], 0)), (None, size, *x.shape[1:])
            )

        parts = keras.tree.map_structure(in_parts, feeds)
        if "specs" not in self._open:  # one call on the first part tells what the others return
            first = self.engine.run(keras.tree.map_structure(lambda part: part[0], parts))
            self._open["specs"] = {name: tf.TensorSpec(each.shape, each.dtype) for name, each in first.items()}
        for name, spec in self._open["specs"].items():
            if spec.shape[:1].as_list() not in ([None], [size]):
                got = f"shape {tuple(spec.shape)}"
                raise error(self.owner, f"one row per example ({size}) in output {name!r}", got)
        answers = tf.map_fn(self.engine.run, parts, fn_output_signature=self._open["specs"])
        found = {}
        for name, each in answers.items():
            joined = tf.reshape(each, tf.concat([[count * size], tf.shape(each)[2:]], 0))[:rows]
            found[name] = tf.ensure_shape(joined, (known, *each.shape[2:]))
        return found

    def _part(self, feeds: Any, start: int, size: int, fixed: int | None) -> dict[str, np.ndarray]:
        part = keras.tree.map_structure(lambda array: array[start : start + size], feeds)
        rows = len(keras.tree.flatten(part)[0])
        if fixed and rows < fixed:  # the last part, for a model with a fixed batch size
            part = keras.tree.map_structure(lambda a: np.concatenate([a, np.repeat(a[-1:], fixed - rows, 0)]), part)
        found = {name: np.asarray(array) for name, array in self.engine.run(part).items()}
        for name, array in found.items():
            if array.ndim == 0 or len(array) != (fixed or rows):
                got = f"shape {array.shape}"
                raise error(self.owner, f"one row per example ({fixed or rows}) in output {name!r}", got)
        return {name: array[:rows] for name, array in found.items()}

    @property
    def _pool(self) -> ThreadPoolExecutor:
        if "pool" not in self._open:
            self._open["pool"] = ThreadPoolExecutor(self._given["num_threads"])
        return self._open["pool"]

    def translate(self, problem: Exception) -> Exception:
        """Return a clear error in place of TensorFlow's: XLA cannot call the model, or the model refused a batch."""
        text = str(problem)
        if "PyFunc" in text and ("compil" in text.lower() or "XLA" in text):
            got = "a step that XLA compiles"
            return error(self.owner, "a training step outside XLA for a live foreign teacher", got, _LABEL_FIRST)
        found = _SENTENCE.search(text)
        return ValueError(found[1]) if found else problem

    # ------------------------------------------------------------------------------------- files

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor; functions must be registered with Keras to be saved."""
        given = dict(self._given)
        for key in ("function", "preprocess"):
            given[key] = None if given[key] is None else keras.saving.serialize_keras_object(given[key])
        path = given["path"]
        return {"name": self.name, **given, "path": path and str(Path(path)), "fingerprint": self.fingerprint}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Foreign:
        """Rebuild the teacher from ``get_config``; the file is opened on first use."""
        config = dict(config)
        for key in ("function", "preprocess"):
            config[key] = keras.saving.deserialize_keras_object(config[key], custom_objects) if config[key] else None
        return cls(**config)


def _inter_op_threads() -> int:
    """Return how many operations TensorFlow runs at once: as configured, or one for each core."""
    configured = tf.config.threading.get_inter_op_parallelism_threads() or os.environ.get("TF_NUM_INTEROP_THREADS")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return int(configured or cores or 1)
