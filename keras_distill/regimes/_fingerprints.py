"""Digests of arrays, row by row, to recognise examples."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_distill._checks import error


def fingerprints(inputs: Any, *, apart: bool = False) -> list[str]:
    """Return a digest of each example; equal arrays of the same dtype and shape have equal digests.

    Args:
        inputs: an array with one example per row.
        apart: whether to number equal rows, so that each has its own digest.

    Returns:
        One text per row.
    """
    rows = np.ascontiguousarray(inputs)
    kind = f"{rows.dtype.str}{rows.shape[1:]}".encode()
    found = [hashlib.blake2b(kind + row.tobytes(), digest_size=16).hexdigest() for row in rows]
    if not apart:
        return found
    seen: collections.Counter[str] = collections.Counter()
    named = []
    for name in found:
        named.append(f"{name}.{seen[name]}")
        seen[name] += 1
    return named


def check_disjoint(owner: str, shards: Sequence[Any], num_teachers: int) -> None:
    """Raise an error if there is not one shard per teacher, or an example is in two of them.

    Args:
        owner: name shown in the error message.
        shards: for each teacher an array, or a tuple whose first part is one.
        num_teachers: required number of shards.
    """
    shards = list(shards)
    if len(shards) != num_teachers:
        raise error(owner, f"one shard for each of {num_teachers} teachers", f"{len(shards)} shards")
    owners: dict[str, int] = {}
    overlaps: collections.Counter[tuple[int, int]] = collections.Counter()
    for index, shard in enumerate(shards):
        for fingerprint in fingerprints(shard[0] if isinstance(shard, tuple) else shard):
            other = owners.setdefault(fingerprint, index)
            if other != index:
                overlaps[other, index] += 1
    if overlaps:
        (one, two), count = min(overlaps.items())
        got = f"{count} example{'s' if count > 1 else ''} in both shard {one} and shard {two}"
        raise error(owner, "disjoint shards", got, "Remove duplicates first, then give each example to one teacher")
