"""Runs a SavedModel through TensorFlow's C API, as TensorFlow Serving does, without Python TensorFlow.

Kept apart from ``_session.py``, which starts it as a script: it needs only ctypes and NumPy. Messages on stdin and
stdout are framed by ``write_message``: a JSON header, then the bytes of its tensors. Nothing is pickled.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

#: TF_DataType numbers (tensorflow/c/tf_datatype.h) of the types that NumPy can hold.
DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    9: "int64",
    10: "bool",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}
_NUMBERS = {name: number for number, name in DTYPES.items()}
#: TensorFlow's message for an operation that no loaded library has.
UNKNOWN_OP = "Op type not registered"
_STRING_BYTES = 24  # sizeof(TF_TString)


def write_message(stream: BinaryIO, header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a header and named tensors; strings are object arrays of bytes or text.

    Args:
        stream: binary stream to write to and flush.
        header: JSON values.
        tensors: arrays by name.
    """
    entries = []
    blobs = []
    for name, array in tensors.items():
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape)}
        if array.dtype.kind in "OUS":
            texts = [text.encode() if isinstance(text, str) else bytes(text) for text in array.ravel().tolist()]
            entry.update(dtype="string", lengths=[len(text) for text in texts])
            blob = b"".join(texts)
        else:
            entry["dtype"] = str(array.dtype)
            blob = np.ascontiguousarray(array).tobytes()
        entries.append(entry)
        blobs.append(blob)
    encoded = json.dumps({**header, "tensors": entries}).encode()
    stream.write(struct.pack("<QQ", len(encoded), sum(map(len, blobs))) + encoded)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what ``write_message`` wrote.

    Args:
        stream: binary stream.

    Returns:
        The header and the tensors; string tensors are object arrays of bytes.

    Raises:
        EOFError: if the stream ended.
    """
    sizes = stream.read(16)
    if len(sizes) < 16:
        raise EOFError
    header_bytes, blob_bytes = struct.unpack("<QQ", sizes)
    header = json.loads(stream.read(header_bytes))
    blob = stream.read(blob_bytes)
    if len(blob) < blob_bytes:
        raise EOFError
    tensors: dict[str, np.ndarray] = {}
    start = 0
    for entry in header.pop("tensors"):
        shape = tuple(entry["shape"])
        if entry["dtype"] == "string":
            flat = np.empty(len(entry["lengths"]), dtype=object)
            for position, length in enumerate(entry["lengths"]):
                flat[position] = blob[start : start + length]
                start += length
            tensors[entry["name"]] = flat.reshape(shape)
        else:
            dtype = np.dtype(entry["dtype"])
            count = int(np.prod(shape, dtype=np.int64))
            tensors[entry["name"]] = np.frombuffer(blob, dtype, count, start).reshape(shape)
            start += count * dtype.itemsize
    return header, tensors


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Walk the fields of a serialized protocol buffer: (number, int or bytes)."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
        elif wire == 2:
            length = varint()
            yield number, data[position : position + length]
            position += length
        else:
            width = 8 if wire == 1 else 4
            yield number, data[position : position + width]
            position += width


def read_signatures(meta_graph: bytes) -> dict[str, dict[str, Any]]:
    """Read the signatures out of a serialized MetaGraphDef.

    Args:
        meta_graph: from ``TF_LoadSessionFromSavedModel``.

    Returns:
        By signature name: ``method``, and ``inputs`` and ``outputs``, each by name a dictionary of ``tensor``,
        ``dtype`` and ``shape`` (None: unknown rank; -1: unknown dimension).
    """
    out: dict[str, dict[str, Any]] = {}
    for number, entry in _fields(meta_graph):
        if number != 5:  # MetaGraphDef.signature_def
            continue
        key, value = _map_entry(entry)
        signature: dict[str, Any] = {"method": "", "inputs": {}, "outputs": {}}
        for part, content in _fields(value):
            if part == 3:
                signature["method"] = content.decode()
            elif part in (1, 2):
                name, info = _map_entry(content)
                signature["inputs" if part == 1 else "outputs"][name] = _tensor_info(info)
        out[key] = signature
    return out


def _map_entry(entry: bytes) -> tuple[str, bytes]:
    parts = dict(_fields(entry))
    return parts.get(1, b"").decode(), parts.get(2, b"")


def _tensor_info(info: bytes) -> dict[str, Any]:
    out: dict[str, Any] = {"tensor": "", "dtype": "unknown", "shape": None}
    for number, value in _fields(info):
        if number == 1:
            out["tensor"] = value.decode()
        elif number == 2:
            out["dtype"] = DTYPES.get(value, f"TF_DataType {value}")
        elif number == 3:
            parts = list(_fields(value))
            if not any(part == 3 and flag for part, flag in parts):
                dims = [dict(_fields(dim)).get(1, 0) for part, dim in parts if part == 2]
                out["shape"] = [dim - 2**64 if dim >= 2**63 else dim for dim in dims]
    return out


class _Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p))


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class CSession:
    """A loaded SavedModel.

    Args:
        library: path of ``libtensorflow_cc``.
        saved_model: the version directory.
        op_libraries: paths of shared libraries whose operations are registered first.

    Raises:
        RuntimeError: with TensorFlow's own message, if it cannot be loaded.
    """

    def __init__(self, library: str, saved_model: str, op_libraries: Sequence[str] = ()) -> None:
        self._lib = lib = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        for name in (
            "TF_NewStatus TF_NewGraph TF_NewSessionOptions TF_LoadSessionFromSavedModel TF_NewBuffer TF_Message "
            "TF_GraphOperationByName TF_AllocateTensor TF_TensorData TF_StringGetDataPointer TF_LoadLibrary"
        ).split():
            getattr(lib, name).restype = ctypes.c_void_p
        lib.TF_Message.restype = ctypes.c_char_p
        lib.TF_Version.restype = ctypes.c_char_p
        for name in ("TF_TensorByteSize", "TF_StringGetSize"):
            getattr(lib, name).restype = ctypes.c_size_t
        lib.TF_Dim.restype = ctypes.c_int64
        self.version = lib.TF_Version().decode()
        self._status = ctypes.c_void_p(lib.TF_NewStatus())
        for path in op_libraries:
            lib.TF_LoadLibrary(path.encode(), self._status)
            self._check()
        self._graph = ctypes.c_void_p(lib.TF_NewGraph())
        options = ctypes.c_void_p(lib.TF_NewSessionOptions())
        buffer = ctypes.c_void_p(lib.TF_NewBuffer())
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = ctypes.c_void_p(
            lib.TF_LoadSessionFromSavedModel(
                options, None, saved_model.encode(), tags, 1, self._graph, buffer, self._status
            )
        )
        self._check()
        content = ctypes.cast(buffer, ctypes.POINTER(_Buffer)).contents
        self.signatures = read_signatures(ctypes.string_at(content.data, content.length))

    def _check(self) -> None:
        if self._lib.TF_GetCode(self._status):
            raise RuntimeError(self._lib.TF_Message(self._status).decode(errors="replace"))

    def _endpoint(self, tensor: str) -> _Output:
        name, _, index = tensor.partition(":")
        operation = self._lib.TF_GraphOperationByName(self._graph, name.encode())
        if not operation:
            raise RuntimeError(f"the graph has no operation '{name}'")
        return _Output(operation, int(index or 0))

    def run(
        self, signature: str, feeds: Mapping[str, np.ndarray], outputs: list[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run one signature.

        Args:
            signature: its name.
            feeds: arrays by input name.
            outputs: names of the outputs; None for all.

        Returns:
            Arrays by output name.

        Raises:
            RuntimeError: with TensorFlow's own message, if the graph reports an error or a name is unknown.
        """
        lib = self._lib
        if signature not in self.signatures:
            raise RuntimeError(f"no signature '{signature}', there are {sorted(self.signatures)}")
        spec = self.signatures[signature]
        if set(feeds) != set(spec["inputs"]):
            raise RuntimeError(f"signature '{signature}' takes {sorted(spec['inputs'])}, got {sorted(feeds)}")
        names = outputs or list(spec["outputs"])
        sources = (_Output * len(feeds))(*[self._endpoint(spec["inputs"][name]["tensor"]) for name in feeds])
        targets = (_Output * len(names))(*[self._endpoint(spec["outputs"][name]["tensor"]) for name in names])
        given = [self._to_tensor(array, spec["inputs"][name]["dtype"]) for name, array in feeds.items()]
        values = (ctypes.c_void_p * len(given))(*[tensor for tensor, _ in given])
        results = (ctypes.c_void_p * len(names))()
        try:
            lib.TF_SessionRun(
                self._session,
                None,
                sources,
                values,
                len(given),
                targets,
                results,
                len(names),
                None,
                0,
                None,
                self._status,
            )
            self._check()
            return {name: self._to_array(result) for name, result in zip(names, results, strict=True)}
        finally:
            for result in results:
                if result:
                    lib.TF_DeleteTensor(ctypes.c_void_p(result))
            for tensor, strings in given:
                for string in strings:
                    lib.TF_StringDealloc(ctypes.c_void_p(string))
                lib.TF_DeleteTensor(ctypes.c_void_p(tensor))

    def _to_tensor(self, array: np.ndarray, dtype: str) -> tuple[int, list[int]]:
        lib = self._lib
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        if dtype == "string":
            texts = [text.encode() if isinstance(text, str) else bytes(text) for text in array.ravel().tolist()]
            size = ctypes.c_size_t(len(texts) * _STRING_BYTES)
            tensor = lib.TF_AllocateTensor(_NUMBERS[dtype], dims, array.ndim, size)
            start = lib.TF_TensorData(ctypes.c_void_p(tensor)) or 0
            places = [start + position * _STRING_BYTES for position in range(len(texts))]
            for place, text in zip(places, texts, strict=True):
                lib.TF_StringInit(ctypes.c_void_p(place))
                lib.TF_StringCopy(ctypes.c_void_p(place), text, ctypes.c_size_t(len(text)))
            return tensor, places
        array = np.ascontiguousarray(array, dtype)
        tensor = lib.TF_AllocateTensor(_NUMBERS[dtype], dims, array.ndim, ctypes.c_size_t(array.nbytes))
        if array.nbytes:
            ctypes.memmove(lib.TF_TensorData(ctypes.c_void_p(tensor)), array.ctypes.data, array.nbytes)
        return tensor, []

    def _to_array(self, result: int) -> np.ndarray:
        lib = self._lib
        tensor = ctypes.c_void_p(result)
        dtype = DTYPES[lib.TF_TensorType(tensor)]
        shape = tuple(lib.TF_Dim(tensor, axis) for axis in range(lib.TF_NumDims(tensor)))
        data = lib.TF_TensorData(tensor)
        if dtype == "string":
            flat = np.empty(int(np.prod(shape, dtype=np.int64)), dtype=object)
            for position in range(len(flat)):
                place = ctypes.c_void_p(data + position * _STRING_BYTES)
                flat[position] = ctypes.string_at(lib.TF_StringGetDataPointer(place), lib.TF_StringGetSize(place))
            return flat.reshape(shape)
        size = lib.TF_TensorByteSize(tensor)
        content = ctypes.string_at(data, size) if size else b""
        return np.frombuffer(content, dtype).reshape(shape)


def serve(session: CSession, requests: BinaryIO, responses: BinaryIO) -> None:
    """Answer requests until the stream ends: ``run`` returns outputs, ``measure`` the seconds of each run.

    Args:
        session: a loaded SavedModel.
        requests: stream of messages.
        responses: stream of messages, with an ``error`` in the header if TensorFlow reported one.
    """
    while True:
        try:
            header, tensors = read_message(requests)
        except EOFError:
            return
        try:
            if header["op"] == "measure":
                seconds = []
                for _ in range(header["repeats"]):
                    start = time.perf_counter()
                    session.run(header["signature"], tensors, header["outputs"])
                    seconds.append(time.perf_counter() - start)
                write_message(responses, {"seconds": seconds}, {})
            else:
                out = session.run(header["signature"], tensors, header["outputs"])
                write_message(responses, {"python_tensorflow": "tensorflow" in sys.modules}, out)
        except RuntimeError as problem:
            write_message(responses, {"error": str(problem)}, {})


def main(library: str, saved_model: str, *op_libraries: str) -> None:
    """Load the model, send its signatures, then serve stdin.

    Args:
        library: path of ``libtensorflow_cc``.
        saved_model: the version directory.
        *op_libraries: libraries of further operations, loaded if the model has one that TensorFlow does not know.
    """
    responses = sys.stdout.buffer
    try:
        try:
            session = CSession(library, saved_model)
        except RuntimeError as problem:
            if not op_libraries or UNKNOWN_OP not in str(problem):
                raise
            session = CSession(library, saved_model, op_libraries)
    except (RuntimeError, OSError) as problem:
        write_message(responses, {"error": str(problem)}, {})
        return
    hello = {
        "signatures": session.signatures,
        "version": session.version,
        "python_tensorflow": "tensorflow" in sys.modules,
    }
    write_message(responses, hello, {})
    serve(session, sys.stdin.buffer, responses)


if __name__ == "__main__":
    main(*sys.argv[1:])
