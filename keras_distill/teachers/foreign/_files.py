"""Checks model files from untrusted sources (sizes, paths, digests) before a runtime loads them."""

from __future__ import annotations

import hashlib
import marshal
import os
import pickle
from pathlib import Path
from typing import Any

from keras_distill._checks import error, optional

#: TensorFlow operations that reach outside the graph: Python functions, and files that are not part of the model.
OUTSIDE_OPS = frozenset({
    "PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "LoadDataset", "SaveDataset",
    "SaveDatasetV2", "TextLineDataset", "TFRecordDataset", "FixedLengthRecordDataset", "TextLineReader",
    "TextLineReaderV2", "WholeFileReader", "WholeFileReaderV2", "TFRecordReader", "TFRecordReaderV2", "DebugIdentity",
    "DebugIdentityV2", "PrintV2", "RpcCall", "DataServiceDataset", "SqlDataset", "Recv", "_Recv", "Send", "_Send",
})  # fmt: skip


def checked(owner: str, path: str | os.PathLike[str], suffix: str | None, max_bytes: int) -> tuple[Path, int]:
    """Return the resolved path of a model and its size in bytes, or raise the error that names the file.

    Args:
        owner: name shown in the error message.
        path: a file, or a directory if ``suffix`` is None.
        suffix: the required file extension; None expects a SavedModel directory.
        max_bytes: the largest total size allowed.

    Returns:
        The path and the number of bytes.

    Raises:
        ValueError: if nothing is there, the extension is wrong, a file lies outside the directory, or the size is too
            large.
    """
    path = Path(path)
    if suffix is not None:
        if path.suffix.lower() != suffix:
            raise error(owner, f"a path that ends in {suffix}", str(path))
        if not path.is_file():
            raise error(owner, f"a {suffix} file", f"nothing at {path}")
        files = [path]
    else:
        if not (path / "saved_model.pb").is_file():
            advice = "Give the directory that holds saved_model.pb"
            raise error(owner, "a SavedModel directory", f"no saved_model.pb in {path}", advice)
        files = [each for each in path.rglob("*") if each.is_symlink() or not each.is_dir()]
        for each in files:
            if not each.resolve().is_relative_to(path.resolve()):
                advice = "Copy the file itself into the directory"
                raise error(owner, f"files inside {path}", f"{each}, which leads to {each.resolve()}", advice)
    size = sum(each.stat().st_size for each in files)
    if not 0 < size <= max_bytes:
        raise error(owner, f"1 to {max_bytes} bytes in {path}", size, "Raise max_bytes if you trust the file")
    return path.resolve(), size


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a directory's files with their names; 64 hexadecimal digits."""
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for each in files:
        if each != path:
            if each.name == "fingerprint.pb":  # contains a random number that differs between saves
                continue
            total.update(each.relative_to(path).as_posix().encode() + b"\0")
        with open(each, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def check_saved_model(owner: str, path: Path) -> None:
    """Raise ``ValueError`` if a SavedModel's graph has an operation that reaches outside of it."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        message = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    except DecodeError as problem:
        raise error(owner, "a readable saved_model.pb", f"{path / 'saved_model.pb'}: {problem}") from problem
    for meta in message.meta_graphs:
        graph = meta.graph_def
        used = {node.op for node in graph.node}
        used |= {node.op for function in graph.library.function for node in function.node_def}
        if used & OUTSIDE_OPS:
            got = f"{sorted(used & OUTSIDE_OPS)[0]} in {path}"
            raise error(owner, "a graph that reads and runs nothing outside of itself", got, "Do not load this file")


def check_onnx(owner: str, path: Path, max_bytes: int) -> None:
    """Raise ``ValueError`` if an ONNX file refers to external data outside its directory, or to too much of it."""
    with optional(owner, "onnx", "onnx"):
        import onnx
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as problem:  # DecodeError of any protobuf implementation
        raise error(owner, "a readable .onnx file", f"{path}: {type(problem).__name__}") from problem
    size = path.stat().st_size
    for each in {entry.value for tensor in _tensors(model.graph) for entry in tensor.external_data
                 if entry.key == "location"}:  # fmt: skip
        file = (path.parent / each).resolve()
        if not file.is_relative_to(path.parent.resolve()):
            raise error(owner, f"external data beside {path}", repr(each), "Do not load this file")
        if not file.is_file():
            raise error(owner, f"the external data of {path}", f"nothing at {file}")
        size += file.stat().st_size
    if size > max_bytes:
        advice = "Raise max_bytes if you trust the file"
        raise error(owner, f"at most {max_bytes} bytes in {path} and its external data", size, advice)


def _tensors(graph: Any) -> Any:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t, *attribute.tensors]
            for inner in [attribute.g, *attribute.graphs]:
                yield from _tensors(inner)


def digest_of_function(function: Any) -> str:
    """Return a SHA-256 of a function's code and of the objects it refers to.

    The bound object, default values and closure enter with their pickled bytes if they can be pickled; global variables
    are ignored. Nothing is unpickled.
    """
    total = hashlib.sha256()
    inner = getattr(function, "__func__", function)
    total.update(f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner))}".encode())
    code = getattr(inner, "__code__", None)
    if code is not None:
        total.update(marshal.dumps((code.co_code, code.co_names, [c for c in code.co_consts if _is_plain(c)])))
    held = [getattr(function, "__self__", None), getattr(inner, "__defaults__", None)]
    held += [cell.cell_contents for cell in getattr(inner, "__closure__", None) or ()]
    held += [] if code is not None or held[0] is not None else [function]
    for each in held:
        text = getattr(each, "model_to_string", None)  # LightGBM: its text is the same in every process
        try:
            total.update(text().encode() if callable(text) else pickle.dumps(each, protocol=4))
        except Exception:  # unpicklable objects enter with their type only
            total.update(type(each).__qualname__.encode())
    return total.hexdigest()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, bytes))
