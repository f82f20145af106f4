"""The model card of an export: the student's origin, its scores, and how to reproduce it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill import _files
from keras_distill._checks import error, printable
from keras_distill.export._heads import Head
from keras_distill.export._inputs import Inputs
from keras_distill.export._parity import Export

JSON_NAME = "distillation.json"
PAGE_NAME = "MODEL_CARD.md"
_SCHEMA = 1
_LIBRARIES = ("keras", "tensorflow", "numpy")
_RUNTIMES = {"litert": ("ai-edge-litert",), "onnx": ("tf2onnx", "onnx", "onnxruntime"), "openvino": ("openvino",)}


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """Facts about a student that only you know; the export adds what it measures itself.

    Args:
        distiller: the distiller that trained it, from which the teacher's fingerprint, terms, weights, temperatures and
            optimizer are recorded.
        data: a ``keras_distill.data.Data``, or a dictionary, preferably with ``name`` and ``fingerprint``.
        metrics: by name, a number or one number per seed; mean and spread (standard deviation) are written.
        training: settings that the distiller does not hold: epochs, batch size, seeds, callbacks' schedules.
        command: the command line that trained it.
        notes: free text on intended use and limits.

    Raises:
        ValueError: if a value is of the wrong kind.

    Example:
        >>> card = ModelCard(data={"name": "digits"}, metrics={"accuracy": [0.9, 0.8]}, command="python train.py")
        >>> {key: round(value, 3) for key, value in card.as_dict()["metrics"]["accuracy"].items() if key != "values"}
        {'mean': 0.85, 'spread': 0.071}
    """

    distiller: Any = None
    data: Any = None
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    command: str | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        self.as_dict()

    def as_dict(self) -> dict[str, Any]:
        """Return the plain values for ``distillation.json``.

        Returns:
            A dictionary of the known facts.
        """
        for name, wanted, value in (("command", str | None, self.command), ("notes", str, self.notes)):
            if not isinstance(value, wanted):
                raise error("ModelCard", f"{name} to be text", value)
        out: dict[str, Any] = {}
        if self.distiller is not None:
            out.update(_describe_distiller(self.distiller))
        if self.data is not None:
            out["data"] = _describe_data(self.data)
        if self.metrics:
            out["metrics"] = {str(name): _spread(str(name), value) for name, value in self.metrics.items()}
        if self.training:
            out["training"] = _plain("training", dict(self.training))
        if self.command:
            out["command"] = self.command
        if self.notes:
            out["notes"] = self.notes
        return out


def check_card(owner: str, card: Any) -> None:
    """Refuse a card of the wrong kind before anything is converted.

    Args:
        owner: name shown in the error message.
        card: the argument to check.

    Raises:
        ValueError: if it is neither None nor a ``ModelCard``.
    """
    if card is not None and not isinstance(card, ModelCard):
        raise error(owner, "card to be an export.ModelCard", type(card).__name__)


def fingerprint(model: keras.Model) -> str:
    """SHA-256 of the shape, dtype and bytes of every weight, in order; independent of names.

    Args:
        model: any built model.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(f"{array.shape} {array.dtype} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _describe_distiller(distiller: Any) -> dict[str, Any]:
    if not isinstance(distiller, keras.Model) or not hasattr(distiller, "distillation_losses"):
        raise error("ModelCard", "distiller to be a Distiller", type(distiller).__name__)
    teacher = distiller.teacher
    config = distiller.get_config()
    distillation = {
        "terms": config["distillation_losses"],
        "weights": config["distillation_loss_weights"],
        "student_loss_weight": config["student_loss_weight"],
    }
    if distiller.compiled:
        distillation["optimizer"] = keras.saving.serialize_keras_object(distiller.optimizer)
        distillation["loss"] = keras.saving.serialize_keras_object(distiller.loss)
    return {
        "teacher": {
            "name": teacher.name,
            "class": type(teacher).__name__,
            "num_parameters": int(teacher.count_params()),
            "fingerprint": fingerprint(teacher),
        },
        "distillation": _plain("distiller", distillation),
    }


def _describe_data(data: Any) -> dict[str, Any]:
    if isinstance(data, Mapping):
        return _plain("data", dict(data))
    try:
        splits = {name: len(examples.labels) for name, examples in data.splits.items()}
        return {"name": data.name, "fingerprint": data.fingerprint, "source": data.source, "num_examples": splits}
    except AttributeError as problem:
        raise error(
            "ModelCard", "data to be a keras_distill.data.Data or a dictionary", type(data).__name__
        ) from problem


def _spread(name: str, value: Any) -> Any:
    values = np.asarray(value)
    if values.dtype.kind not in "fiu" or values.ndim > 1 or not values.size:
        raise error("ModelCard", f"metrics[{name!r}] to be a number or one number per seed", value)
    if values.ndim == 0:
        return float(values)
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "spread": spread, "values": [float(v) for v in values]}


def _plain(name: str, value: Any) -> Any:
    def convert(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        if isinstance(item, np.ndarray):
            return item.tolist()
        return keras.saving.serialize_keras_object(item)

    try:
        return json.loads(json.dumps(value, default=convert))
    except (TypeError, ValueError) as problem:
        raise error("ModelCard", f"{name} of plain values", f"{type(problem).__name__}: {problem}") from problem


def read_card(owner: str, folder: Path) -> dict[str, Any]:
    """Read the ``distillation.json`` of a directory.

    Args:
        owner: name shown in the error message.
        folder: the directory.

    Returns:
        Its content; empty if there is none.

    Raises:
        ValueError: if an export did not write it.
    """
    path = folder / JSON_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["schema"] == _SCHEMA and isinstance(content["student"]["fingerprint"], str)
        if not known or not all(isinstance(entry, dict) for entry in content["exports"].values()):
            raise ValueError("unknown content")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as problem:
        advice = "Move it away, or export into another directory"
        raise error(
            owner, f"a {JSON_NAME} written by an export", f"{path} ({type(problem).__name__})", advice
        ) from problem
    return content


def check_folder(owner: str, path: Path, student: keras.Model) -> dict[str, Any]:
    """Check, before anything is converted, that the card beside a file may be written.

    Args:
        owner: name shown in the error message.
        path: the file to be written.
        student: the exported student.

    Returns:
        The exports that the card already lists, by file name.

    Raises:
        ValueError: if there is a card that no export wrote or that was edited, or one for other weights that also lists
            other files.
    """
    folder = path.parent
    existing = read_card(owner, folder)
    page = folder / PAGE_NAME
    if page.exists():
        known = existing.get("page_sha256", hashlib.sha256(page.read_bytes()).hexdigest()) if existing else None
        if known != hashlib.sha256(page.read_bytes()).hexdigest():
            got = f"{page}, which no export wrote" if not existing else f"{page}, which was edited since"
            raise error(
                owner, f"to write {PAGE_NAME} beside the file", got, "Export into another directory, or move it"
            )
    if existing and existing["student"]["fingerprint"] != fingerprint(student):
        others = sorted(name for name in existing["exports"] if (folder / name).exists() and name != path.name)
        if others:
            raise error(
                owner,
                "one student per directory, because its card describes one",
                f"{folder / JSON_NAME} of other weights",
                f"Export into another directory, or remove the old files: {', '.join(others)}",
            )
        return {}  # the same file again, after further training
    return existing.get("exports", {})


def write_card(
    folder: Path,
    student: keras.Model,
    inputs: Inputs,
    heads: Sequence[Head],
    exported: Export,
    card: ModelCard | None,
    earlier: Mapping[str, Any] | None = None,
) -> None:
    """Write ``distillation.json`` and ``MODEL_CARD.md``.

    Args:
        folder: output directory.
        student: the exported student.
        inputs: its inputs.
        heads: interpretation of its outputs.
        exported: the measurements.
        card: the user's facts, or None.
        earlier: other exports of the same student in the same directory.
    """
    content: dict[str, Any] = {
        "schema": _SCHEMA,
        "student": {
            "name": student.name,
            "class": type(student).__name__,
            "num_parameters": int(student.count_params()),
            "fingerprint": fingerprint(student),
            "inputs": {
                name: {"shape": list(spec.shape), "dtype": spec.dtype}
                for name, spec in zip(inputs.names, inputs.specs, strict=True)
            },
            "outputs": {head.prefix.removesuffix("_") or "outputs": _describe_head(head) for head in heads},
        },
        **(card.as_dict() if card is not None else {}),
        "exports": {**(earlier or {}), exported.path.name: exported.as_dict()},
        "libraries": _versions({entry["format"] for entry in (earlier or {}).values()} | {exported.format}),
    }
    try:
        content["student"]["config"] = json.loads(json.dumps(keras.saving.serialize_keras_object(student)))
    except (NotImplementedError, TypeError, ValueError):
        content["student"]["config"] = None  # a subclassed model without get_config is described only by its code
    page = _page(content).encode()
    content["page_sha256"] = hashlib.sha256(page).hexdigest()
    text = json.dumps(content, indent=1, ensure_ascii=False)
    text = re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)  # UTF-8 cannot hold lone surrogates
    _files.write(folder / JSON_NAME, f"{text}\n".encode())
    _files.write(folder / PAGE_NAME, page)


def _describe_head(head: Head) -> dict[str, Any]:
    out: dict[str, Any] = {"task": head.task}
    if head.task != "regression":
        out.update(from_logits=head.from_logits, temperature=head.temperature)
        out["labels"] = list(head.labels) if head.labels is not None else None
    return out


def _versions(formats: set[str]) -> dict[str, str]:
    names = [*_LIBRARIES, *(package for kind in sorted(formats) for package in _RUNTIMES.get(kind, ()))]
    from keras_distill import __version__  # the package imports this module

    out = {"python": platform.python_version(), "platform": platform.platform(), "keras-distill": __version__}
    for name in names:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "not installed as a package"
    return out


def _page(content: Mapping[str, Any]) -> str:
    student = content["student"]
    parameters = f"{student['num_parameters']:,} parameters, fingerprint `{_short(student)}`."
    lines = [f"# {_inline(student['name'])}", "", parameters]
    if "notes" in content:
        lines += ["", printable(content["notes"]).replace("<", "&lt;")]
    lines += ["", "## Inputs and outputs", ""]
    for name, spec in student["inputs"].items():
        shape = ", ".join("any" if size is None else str(size) for size in spec["shape"])
        lines.append(f"- in: {_code(name)}, {_inline(spec['dtype'])} ({shape})")
    for name, head in student["outputs"].items():
        said = head["task"]
        if "temperature" in head:
            said += f", {'logits' if head['from_logits'] else 'probabilities'}, temperature {head['temperature']:g}"
        if head.get("labels"):
            said += f", classes: {', '.join(map(_inline, head['labels']))}"
        lines.append(f"- out: {_code(name)}, {said}")
    if "metrics" in content:
        lines += ["", "## Measured", "", "| metric | value |", "|---|---|"]
        for name, value in content["metrics"].items():
            runs = value["values"] if isinstance(value, dict) else [value]
            shown = f"{np.mean(runs):.4g}"
            if len(runs) > 1:
                shown += f" ± {value['spread']:.2g} over {len(runs)} runs"
            lines.append(f"| {_inline(name)} | {shown} |")
    lines += ["", "## Exports, each compared with the Keras student", ""]
    lines += [
        "| file | format | bytes | examples | largest difference | agreement | accuracy | ECE |",
        "|" + "---|" * 8,
    ]
    for name, entry in content["exports"].items():
        cells = [name, entry["format"], f"{entry['size_bytes']:,}", entry["num_examples"]]
        cells += [_cell(entry[key]) for key in ("max_difference", "agreement", "accuracy", "ece")]
        lines.append("| " + " | ".join(map(_inline, cells)) + " |")
    lines += ["", "## Origin", ""]
    if "teacher" in content:
        teacher = content["teacher"]
        lines.append(
            f"- teacher: {_code(teacher['name'])} ({_inline(teacher['class'])}), "
            f"{teacher['num_parameters']:,} parameters, fingerprint `{_short(teacher)}`"
        )
    if "distillation" in content:
        part = content["distillation"]
        for term, weight in zip(part["terms"], part["weights"], strict=True):
            config = {k: v for k, v in term["config"].items() if k not in ("name", "trainable", "dtype")}
            said = f"{term['class_name']}, weight {json.dumps(weight)}, {json.dumps(config)}"
            lines.append(f"- term: {_inline(said)}")
        lines.append(f"- student loss weight: {json.dumps(part['student_loss_weight'])}")
    for key in ("data", "training"):
        if key in content:
            said = ", ".join(f"{k} {json.dumps(v)}" for k, v in content[key].items())
            lines.append(f"- {key}: {_inline(said)}")
    if lines[-1] == "":
        lines.append("Not recorded: pass `card=export.ModelCard(...)` when exporting.")
    lines += ["", "## To reproduce it", ""]
    if "command" in content:
        command = printable(content["command"])
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
        lines += [fence, command, fence, ""]
    libraries = (_inline(f"{name} {version}") for name, version in content["libraries"].items())
    lines.append(f"With {', '.join(libraries)}.")
    lines += [f"`{JSON_NAME}` holds the same facts in full, including the student's architecture.", ""]
    return "\n".join(lines)


def _inline(text: Any) -> str:
    """Return text escaped for one line of Markdown, so that it starts no tag, link, heading, code or cell."""
    shown = " ".join(printable(text).split()).replace("\\", "\\\\")
    for sign, escaped in (("<", "&lt;"), ("`", "\\`"), ("|", "\\|"), ("](", "]\\("), ("][", "]\\[")):
        shown = shown.replace(sign, escaped)
    return shown


def _code(name: Any) -> str:
    """Return a name as inline code, or as text if it contains Markdown or HTML characters."""
    shown = " ".join(printable(name).split())
    return f"`{shown}`" if re.fullmatch(r"[\w ./:()-]*", shown) else _inline(name)


def _short(part: Mapping[str, Any]) -> str:
    return str(part["fingerprint"])[:16]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
