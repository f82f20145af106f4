"""Validates a manifest completely before use, because it may come from an untrusted source.

Kept apart from ``_files.py``: it only validates and touches no file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from keras_distill.teachers.store import _format as layout

#: Names of shards: number and digest, without path separators.
SHARD = re.compile(r"shard-(\d{6})-([0-9a-f]{32})\.tfrecord")
_MOST_BYTES = 2**40
_MOST_NESTING = 50


def check_manifest(manifest: dict[str, Any]) -> None:
    """Check every entry that a reader uses.

    Args:
        manifest: the contents of ``manifest.json``, with digest and format already checked.

    Raises:
        ValueError: naming the first part that ``label`` never writes.
    """
    _need(
        isinstance(manifest.get("complete"), bool) and isinstance(manifest.get("teacher"), str), "complete and teacher"
    )
    _need(_is_text(manifest.get("teacher_file", "")), "teacher_file")
    specs = [_spec(each) for each in _listed(manifest.get("outputs"), "outputs")]
    for each in _listed(manifest.get("inputs"), "inputs"):
        _need(_has(each, shape=_is_shape, dtype=_is_text), "inputs")
    template: Any = manifest.get("template")
    _need(_has(template, outputs=_is_dict, features=_is_dict), "template")
    _node(template["outputs"], specs, 0)
    for index in template["features"].values():
        _index(index, specs)
    for name in ("rows_per_block", "batch_size", "batches_per_shard"):
        _need(_is_count(manifest.get(name)), name)
    _need(manifest.get("row_bytes") == layout.row_bytes(specs), "row_bytes")
    _need(_has(manifest.get("options"), **_OPTIONS), "options")
    if manifest["complete"]:
        shards = _listed(manifest.get("shards"), "shards")
        for number, each in enumerate(shards):
            _need(_has(each, file=_is_text, count=_is_count, bytes=_is_count), f"shard {number}")
            match = SHARD.fullmatch(each["file"])
            _need(match is not None and int(match[1]) == number, f"file name {each['file']!r}")
        _need(manifest.get("count") == sum(each["count"] for each in shards), "count")
        _need(_has(manifest.get("dataset"), fingerprint=_is_text), "dataset")
        lost = manifest.get("divergence", {})
        _need(
            _is_dict(lost) and all(type(each) is float and math.isfinite(each) for each in lost.values()), "divergence"
        )


def _need(fine: bool, part: str) -> None:
    if not fine:
        raise ValueError(f"{part} that no label() writes")


def _has(value: Any, **parts: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(name in value and fine(value[name]) for name, fine in parts.items())


def _listed(value: Any, part: str) -> list[Any]:
    _need(isinstance(value, list) and bool(value), part)
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**62


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(size is None or size == 0 or _is_count(size) for size in value)


def _is_count_or_none(value: Any) -> bool:
    return value is None or _is_count(value)


_OPTIONS: dict[str, Callable[[Any], bool]] = {
    "top_k": _is_count_or_none,
    "dtype": lambda value: value in layout.DTYPES,
    "features": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "members": _is_flag,
    "num_views": _is_count,
    "seed": lambda value: type(value) is int,
    "examples_per_shard": _is_count_or_none,
    "augment": _is_flag,
}


def _spec(value: Any) -> layout.OutputSpec:
    parts = {"name": _is_text, "shape": _is_shape, "dtype": _is_text, "top_k": _is_count_or_none, "by_row": _is_flag}
    _need(_has(value, **parts) and set(value) == set(parts) and value["dtype"] in layout.DTYPES, "outputs")
    shape, top_k = value["shape"], value["top_k"]
    _need(None not in shape and math.prod(shape) < _MOST_BYTES, "outputs")
    _need(top_k is None or (bool(shape) and top_k < shape[-1]), "outputs")
    return layout.OutputSpec.from_config(value)


def _index(value: Any, specs: list[layout.OutputSpec]) -> layout.OutputSpec:
    _need(type(value) is int and 0 <= value < len(specs), "template")
    return specs[value]


def _node(node: Any, specs: list[layout.OutputSpec], depth: int) -> None:
    """Check the structure of the outputs: dictionaries, lists and tuples of tensors and members."""
    _need(isinstance(node, dict) and depth < _MOST_NESTING, "template")
    kind = next(iter(sorted(set(node) & {"tensor", "members", "dict", "list", "tuple"})), None)
    if kind == "tensor":
        _index(node["tensor"], specs)
    elif kind == "members":
        _need(len(_index(node["members"], specs).shape) > 1 and isinstance(node.get("combine"), dict), "template")
        if "spread" in node:
            _index(node["spread"], specs)
    else:
        _need(kind is not None and isinstance(node[kind], dict if kind == "dict" else list), "template")
        for each in node[kind].values() if kind == "dict" else node[kind]:
            _node(each, specs, depth + 1)
