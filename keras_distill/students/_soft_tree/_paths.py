"""The path of each example through a soft tree, which explains its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np


def nodes_of(leaf: Any, depth: int) -> tuple[Any, Any]:
    """Return the inner nodes on the path to a leaf and the directions taken there (0 left, 1 right).

    Args:
        leaf: (...,) integers, leaves counted from the left.
        depth: depth of the tree.

    Returns:
        Two lists with one array or tensor per level.
    """
    nodes, directions = [], []
    for level in range(depth):
        nodes.append(2**level - 1 + leaf // 2 ** (depth - level))
        directions.append((leaf // 2 ** (depth - level - 1)) % 2)
    return nodes, directions


@dataclasses.dataclass(frozen=True, eq=False)
class TreePaths:
    """The most probable path of each example through a soft decision tree; ``paths[i]`` is that of one example.

    Args:
        nodes: (examples, depth), inner nodes from the root down; node i has the children 2i + 1 and 2i + 2.
        directions: (examples, depth), 0 for left, 1 for right.
        probabilities: (examples, depth), of the direction taken, 0 to 1.
        filters: (examples, depth, *input shape), the weights of the nodes in the shape of the input.
        leaf: (examples,), leaves counted from the left.
        path_probability: (examples,), product of ``probabilities``: how much of the example this path explains.
        distribution: (examples, classes), the leaf's probabilities.

    Example:
        >>> import numpy as np
        >>> one = TreePaths(*(np.zeros((1, 2)),) * 3, np.zeros((1, 2, 4)), np.array([3]), np.ones(1), np.ones((1, 5)))
        >>> len(one), int(one[0].leaf)
        (1, 3)
    """

    nodes: np.ndarray
    directions: np.ndarray
    probabilities: np.ndarray
    filters: np.ndarray
    leaf: np.ndarray
    path_probability: np.ndarray
    distribution: np.ndarray

    def __len__(self) -> int:
        return len(self.leaf)

    def __getitem__(self, index: Any) -> TreePaths:
        """Return the path of one example (arrays without their first axis), or of a slice."""
        return TreePaths(**{field.name: getattr(self, field.name)[index] for field in dataclasses.fields(self)})

    def __iter__(self) -> Iterator[TreePaths]:
        return (self[index] for index in range(len(self)))

    @property
    def prediction(self) -> np.ndarray:
        """The predicted class."""
        return self.distribution.argmax(-1)
