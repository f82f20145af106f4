"""Smaller keras-hub backbones, built from a changed configuration: fewer blocks, narrower feed-forward layers.

Kept apart from ``_from_teacher.py``: nothing else knows how keras-hub configures a backbone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error
from keras_distill.students import _graph
from keras_distill.students._depth import wanted_depth

_INNER = ("intermediate_dim", "mlp_dim")
_BLOCK = re.compile(r"(?P<stem>.*(?:layer|block|decoder_block)_)(?P<index>\d+)$")


def is_backbone(operation: Any) -> bool:
    """Return whether an operation is a keras-hub backbone with one stack of transformer blocks."""
    if _graph.graph_of(operation) is None or not type(operation).__module__.startswith("keras_hub"):
        return False
    config = operation.get_config()
    return isinstance(config.get("num_layers"), int) and any(name in config for name in _INNER)


def smaller(
    backbone: Any, depth: Any, width: Any, rank: Callable[[np.ndarray], np.ndarray] | None
) -> tuple[Any, dict[str, np.ndarray], set[str]]:
    """Return a backbone with fewer blocks and narrower feed-forward layers, and the kept indices.

    Args:
        backbone: a keras-hub backbone.
        depth: fraction or count of blocks, or None.
        width: fraction of the feed-forward width, or ``{"intermediate_dim": n}``, or None.
        rank: replaces the channels' scores (by random ones); None scores by the size of their weights.

    Returns:
        The backbone with its weights, the kept indices by name, and the names of ``width`` that were used.
    """
    config = backbone.get_config()
    inner = next(name for name in _INNER if name in config)
    blocks = config["num_layers"]
    count = blocks if depth is None else wanted_depth(depth, blocks)
    used: set[str] = set()
    size = config[inner]
    if isinstance(width, Mapping):
        for name in ("num_heads", "hidden_dim", "num_query_heads", "num_key_value_heads"):
            if name in width:
                got = f"width={{{name!r}: {width[name]!r}}}"
                reason = "The head size of a keras-hub backbone is hidden_dim // num_heads, so neither can change alone"
                raise error("from_teacher", f"width of {inner!r} for {backbone.name!r}", got, reason)
        if inner in width:
            size, used = width[inner], {inner}
    elif width is not None:
        size = max(1, round(width * size))
    if not isinstance(size, int) or not 1 <= size <= config[inner]:
        raise error("from_teacher", f"width of {inner!r} from 1 to {config[inner]}", size)
    new = type(backbone).from_config({**config, "num_layers": count, inner: size})
    source = [math.floor(index * blocks / count) for index in range(count)]
    kept: dict[str, np.ndarray] = {f"{backbone.name}/blocks": np.array(source)}
    old_layers = {layer.name: layer for layer in backbone.layers}
    for layer in new.layers:
        match = _BLOCK.match(layer.name)
        name = layer.name if match is None else f"{match['stem']}{source[int(match['index'])]}"
        if name not in old_layers:
            raise error("from_teacher", "a backbone whose blocks are numbered", f"no layer {name!r}", "Leave depth out")
        chosen = _give(old_layers[name], layer, config[inner], size, rank)
        if chosen is not None:
            kept[f"{backbone.name}/{layer.name}/{inner}"] = chosen
    return new, kept, used


def unnumbered(backbone: Any, new: Any) -> list[tuple[Any, Any]]:
    """Return the layers outside the blocks, as embeddings, each with its counterpart in the smaller backbone."""
    own = {layer.name: layer for layer in new.layers}
    return [(each, own[each.name]) for each in backbone.layers if each.name in own and not _BLOCK.match(each.name)]


def _give(old: Any, new: Any, before: int, after: int, rank: Any) -> np.ndarray | None:
    """Copy the weights of a block; if the feed-forward width differs, only those of the best channels."""
    pairs = list(zip(old.weights, new.weights, strict=True))
    narrow = [source for source, target in pairs if tuple(source.shape) != tuple(target.shape)]
    chosen: Any = None
    if narrow:
        scores = np.zeros(before)
        for weight in narrow:
            if len(weight.shape) > 1:
                axis = list(weight.shape).index(before)
                value = np.moveaxis(keras.ops.convert_to_numpy(weight), axis, 0).reshape(before, -1)
                norms = np.linalg.norm(value, axis=1)
                scores += norms / max(norms.mean(), 1e-12)
        scores = scores if rank is None else rank(scores)
        chosen = np.sort(np.argsort(-scores, kind="stable")[:after])
    for source, target in pairs:
        value = keras.ops.convert_to_numpy(source)
        for axis, (size, wanted) in enumerate(zip(source.shape, target.shape, strict=True)):
            if size != wanted:
                value = np.take(value, chosen, axis=axis)
        target.assign(value)
    return chosen
