"""Loads a SavedModel as TensorFlow Serving does, and checks that it answers, its speed, and its agreement."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill._checks import choice, error, integer, number
from keras_distill.export._card import read_card
from keras_distill.export._heads import TASKS, Head, describe_heads
from keras_distill.export._inputs import Inputs, describe_inputs
from keras_distill.export._load import read_arrays
from keras_distill.export._parity import compare, largest_difference, tolerance_for
from keras_distill.export._runtimes import percentiles
from keras_distill.export._session import ServingSession
from keras_distill.export._staging import versions
from keras_distill.export._student import check_student, run_student
from keras_distill.export._warmup import WARMUP_FILE, read_warmup, replay_warmup

_OWNER = "serve_check"
#: Generated inputs and the Keras student's answers to them, in the version directory.
PARITY_FILE = Path("assets.extra") / "parity_check.npz"
_MOST_PARITY_BYTES = 2**20
_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class ServeCheck:
    """The findings of a serving process.

    Args:
        path: the version directory.
        tensorflow_version: version of the C library.
        signatures: by name: ``method``, ``inputs``, ``outputs``.
        parity: largest difference from the Keras student by output; empty if there was no reference.
        parity_source: description of the reference.
        num_examples: number of inputs compared.
        warmup_records: number of warm-up requests replayed.
        latency_ms: ``median``, ``p90`` and ``p99`` of ``serving_default`` by batch size.
        size_bytes: size of the version directory.
        quality: accuracy and calibration error, if labels were given.
    """

    path: Path
    tensorflow_version: str
    signatures: Mapping[str, Any]
    parity: Mapping[str, float]
    parity_source: str
    num_examples: int
    warmup_records: int
    latency_ms: Mapping[int, Mapping[str, float]]
    size_bytes: int
    quality: Mapping[str, float]

    def text(self) -> str:
        """Return the report that ``keras-distill serve-check`` shows.

        Returns:
            Lines of text.
        """
        lines = [f"{self.path}: {self.size_bytes:,} bytes, loaded by TensorFlow {self.tensorflow_version}'s C API"]
        for name, signature in sorted(self.signatures.items(), key=lambda item: item[0] != "serving_default"):
            lines.append(f"signature {name} ({signature['method']})")
            for side in ("inputs", "outputs"):
                for key, info in sorted(signature[side].items()):
                    lines.append(f"  {side[:-1]:<6} {key}: {info['dtype']} {_shape(info['shape'])}")
        if self.parity:
            lines.append(f"parity with {self.parity_source}, {self.num_examples} examples, largest difference:")
            lines += [f"  {name}: {value:.3g}" for name, value in sorted(self.parity.items())]
        else:
            lines.append("parity: nothing to compare with; pass the student's .keras file")
        lines += [f"{name}: {value:.4f}" for name, value in self.quality.items()]
        lines.append(f"warm-up requests replayed: {self.warmup_records}")
        for size, times in self.latency_ms.items():
            shown = ", ".join(f"{name} {value:.3f}" for name, value in times.items())
            lines.append(f"latency at batch {size}, ms: {shown}")
        return "\n".join(lines) + "\n"


def _shape(shape: Sequence[int] | None) -> str:
    if shape is None:
        return "(any rank)"
    return "(" + ", ".join("any" if size < 0 else str(size) for size in shape) + ")"


def serve_check(
    directory: str | os.PathLike[str],
    *,
    student: keras.Model | None = None,
    check_inputs: Any = None,
    check_labels: Any = None,
    from_logits: Any = None,
    task: Any = None,
    tolerance: float | None = None,
    batch_sizes: Sequence[int] = (1, 32),
    repeats: int = 100,
) -> ServeCheck:
    """Load a SavedModel through the C API, as TensorFlow Serving does, and check its answers.

    Without ``student``, the reference is the Keras student's answers to generated inputs, recorded by the export
    (``assets.extra/parity_check.npz``). Warm-up requests are replayed, batches of 1 and 7 must agree, and
    ``serving_default`` is timed inside the serving process.

    Args:
        directory: a version directory, or the base path, whose newest version is used.
        student: the Keras student to compare with.
        check_inputs: inputs to compare on; None generates some.
        check_labels: integer labels of ``check_inputs``; needs ``student``.
        from_logits: as in ``saved_model``.
        task: as in ``saved_model``.
        tolerance: largest difference allowed in probabilities, and in logits and values relative to the largest. None:
            1e-4, or 0.01 for a student that computes in half precision.
        batch_sizes: batch sizes to time.
        repeats: number of timed calls for each.

    Returns:
        A ``ServeCheck``; ``text()`` shows it.

    Raises:
        ValueError: if it does not load, a request fails, or the numbers differ.
    """
    path = version_directory(directory)
    if tolerance is not None:
        number(_OWNER, "tolerance", tolerance, low=0)
    repeats = integer(_OWNER, "repeats", repeats, low=1)
    sizes = [integer(_OWNER, "batch_sizes", size, low=1) for size in batch_sizes]
    if student is None and (check_inputs is not None or check_labels is not None):
        raise error(_OWNER, "a student to compare with on check_inputs", "None", "Pass student=")
    quality: dict[str, float] = {}
    with ServingSession(path) as session:
        if "serving_default" not in session.signatures:
            raise error(_OWNER, "a signature serving_default", f"{sorted(session.signatures)}")
        signature = session.signatures["serving_default"]
        if student is not None:
            feeds, parity, quality, source, count = _against_student(
                session, path, student, check_inputs, check_labels, from_logits, task, tolerance
            )
        else:
            feeds, expected, recorded = read_parity(path)
            parity = _differences(session, feeds, expected, recorded if tolerance is None else tolerance)
            source, count = "the Keras student's recorded answers", len(next(iter(feeds.values()), ()))
            feeds = feeds or _made_up(signature)
        _check_batches(session, feeds)
        logs = read_warmup(path) if (path / WARMUP_FILE).is_file() else []
        replay_warmup(session, logs)
        latency = {}
        for size in sizes:
            batch = {name: value[np.arange(size) % len(value)] for name, value in feeds.items()}
            seconds = session.measure(batch, repeats=repeats)
            times = percentiles(seconds)
            p90 = float(np.percentile(seconds, 90) * 1e3)
            latency[size] = {"median": times["median"], "p90": p90, "p99": times["p99"]}
        signatures = {k: v for k, v in session.signatures.items() if not k.startswith("__")}
        return ServeCheck(
            path,
            session.version,
            signatures,
            parity,
            source,
            count,
            len(logs),
            latency,
            sum(part.stat().st_size for part in path.rglob("*") if part.is_file()),
            quality,
        )


def version_directory(directory: str | os.PathLike[str]) -> Path:
    """Find the version that TensorFlow Serving would load.

    Args:
        directory: a version directory, or a base path with numbered children.

    Returns:
        The version directory.

    Raises:
        ValueError: if there is none.
    """
    path = Path(directory)
    if (path / "saved_model.pb").is_file():
        return path
    known = versions(path)
    if not known:
        raise error(_OWNER, "a SavedModel, or a directory with numbered versions of one", str(path))
    return path / str(known[-1])


def write_parity(path: Path, student: keras.Model, inputs: Inputs, heads: Sequence[Head], tolerance: float) -> bool:
    """Record the Keras student's answers to generated inputs for ``serve_check``; exports never contain real data.

    Args:
        path: the version directory.
        student: the model.
        inputs: its inputs.
        heads: interpretation of its outputs.
        tolerance: the difference allowed for the export.

    Returns:
        Whether the file was written; it is not if the student cannot be run on generated inputs or they are too large.
    """
    arrays = inputs.random()
    per_example = max(1, sum(array.nbytes for array in arrays) // len(arrays[0]))
    count = min(len(arrays[0]), _MOST_PARITY_BYTES // per_example)
    if count < 1:
        return False
    arrays = [array[:count] for array in arrays]
    try:
        raw = run_student(_OWNER, student, inputs, arrays, made_up=True)
    except ValueError:
        return False
    content: dict[str, np.ndarray] = {"tolerance": np.array(max(tolerance, _TOLERANCE))}
    for name, array in zip(inputs.names, arrays, strict=True):
        if array.dtype == object:
            array = np.array([text.encode() for text in array.ravel()]).reshape(array.shape)
        content[f"inputs/{name}"] = array
    for head, value in zip(heads, raw.values(), strict=True):
        for name, expected in head.expected(value).items():
            if np.isnan(expected).any():
                return False
            content[f"outputs/{name}"] = expected.astype(np.float32)
    file = path / PARITY_FILE
    file.parent.mkdir(exist_ok=True)
    np.savez_compressed(file, **content)  # type: ignore[arg-type]
    return True


def read_parity(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
    """Read what ``write_parity`` recorded.

    Args:
        path: the version directory.

    Returns:
        Inputs and expected outputs by name, empty if there is no file; and the tolerance.

    Raises:
        ValueError: if the file is damaged.
    """
    file = path / PARITY_FILE
    if not file.is_file():
        return {}, {}, _TOLERANCE
    arrays = read_arrays(_OWNER, file, "a parity_check.npz written by an export")
    feeds = {name.removeprefix("inputs/"): value for name, value in arrays.items() if name.startswith("inputs/")}
    expected = {name.removeprefix("outputs/"): value for name, value in arrays.items() if name.startswith("outputs/")}
    lengths = {value.shape[0] if value.ndim else 0 for value in (*feeds.values(), *expected.values())}
    tolerance = arrays.get("tolerance", np.array(np.nan))
    well_formed = tolerance.shape == () and tolerance.dtype.kind == "f" and float(tolerance) >= 0
    if not feeds or not expected or len(lengths) != 1 or 0 in lengths or not well_formed:
        raise error(_OWNER, "a parity_check.npz written by an export", f"{file} with other content")
    feeds = {name: value.astype(object) if value.dtype.kind == "S" else value for name, value in feeds.items()}
    return feeds, expected, float(tolerance)


def _differences(
    session: ServingSession, feeds: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tolerance: float
) -> dict[str, float]:
    if not feeds:
        return {}
    out = session.run(feeds)
    found = {}
    for name, wanted in expected.items():
        if name not in out or out[name].shape != wanted.shape:
            raise error(
                _OWNER, f"output '{name}' of shape {wanted.shape}", out[name].shape if name in out else "nothing"
            )
        found[name] = largest_difference(out[name], wanted)
        relative = name.endswith(("logits", "values"))
        scale = max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))) if relative else 1.0
        if not found[name] <= tolerance * scale:
            raise error(
                _OWNER,
                f"'{name}' to agree with the Keras student within {tolerance * scale:.3g}",
                f"a difference of {found[name]:.3g}",
                "Export the student again",
            )
    return found


def _against_student(
    session: ServingSession,
    path: Path,
    student: keras.Model,
    check_inputs: Any,
    check_labels: Any,
    from_logits: Any,
    task: Any,
    tolerance: float | None,
) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, float], str, int]:
    check_student(_OWNER, student)
    inputs = describe_inputs(_OWNER, student, None, check_inputs)
    arrays = inputs.random() if check_inputs is None else inputs.flatten(_OWNER, check_inputs)
    raw = run_student(_OWNER, student, inputs, arrays, made_up=check_inputs is None)
    heads = _recorded_heads(path, raw) if task is None and from_logits is None else None
    heads = heads or describe_heads(_OWNER, student, raw, task=task, from_logits=from_logits)
    if tolerance is None:
        tolerance = max(_TOLERANCE, tolerance_for(_OWNER, None, student))
    feeds = dict(zip(inputs.names, arrays, strict=True))
    served = session.run(feeds)
    result = compare(_OWNER, "saved_model", path, heads, raw, served, check_labels, tolerance)
    parity = {"probabilities or values": result.max_difference}
    if result.max_logit_difference is not None:
        parity["logits"] = result.max_logit_difference
    measured = {"accuracy": result.accuracy, "accuracy of the student": result.student_accuracy}
    measured.update({"ECE": result.ece, "ECE of the student": result.student_ece})
    quality = {name: value for name, value in measured.items() if value is not None}
    return feeds, parity, quality, f"the Keras student '{student.name}'", result.num_examples


def _recorded_heads(path: Path, raw: Mapping[str, np.ndarray]) -> list[Head] | None:
    """Read from the model card how the outputs were exported: task, ``from_logits``, calibration temperature."""
    recorded = read_card(_OWNER, path).get("student", {}).get("outputs", {})
    if set(recorded) != set(raw):
        return None
    heads = []
    for name in raw:
        entry = recorded[name]
        choice(_OWNER, f"task of output '{name}' in the model card", entry.get("task"), TASKS)
        heads.append(
            Head(
                prefix="" if len(raw) == 1 else f"{name}_",
                task=entry["task"],
                from_logits=bool(entry.get("from_logits", True)),
                certain=True,
                temperature=number(_OWNER, "temperature in the model card", entry.get("temperature", 1.0), above=0),
            )
        )
    return heads


def _made_up(signature: Mapping[str, Any]) -> dict[str, np.ndarray]:
    specs = []
    for name, info in signature["inputs"].items():
        shape = [None if size < 0 else size for size in info["shape"] or [None]]
        specs.append(keras.InputSpec(shape=(None, *shape[1:]), dtype=info["dtype"], name=name))
    names = tuple(signature["inputs"])
    inputs = Inputs(list(range(len(names))), names, tuple(specs))
    return dict(zip(names, inputs.random(), strict=True))


def _check_batches(session: ServingSession, feeds: Mapping[str, np.ndarray]) -> None:
    """Check that a batch of 7 gives the same as its examples one by one."""
    seven = {name: value[np.arange(7) % len(value)] for name, value in feeds.items()}
    together = session.run(seven)
    alone = session.run({name: value[:1] for name, value in seven.items()})
    for name, value in together.items():
        if value.dtype.kind != "f" or value.shape[:1] != (7,):
            continue
        difference = largest_difference(alone[name], value[:1])
        scale = max(1.0, float(np.abs(value[np.isfinite(value)]).max(initial=0.0)))
        if not difference <= 1e-3 * scale:
            raise error(
                _OWNER, f"'{name}' of an example not to depend on its batch", f"a difference of {difference:.3g}"
            )
