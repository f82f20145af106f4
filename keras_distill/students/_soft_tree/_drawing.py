"""Draws a soft tree. Matplotlib is imported here and nowhere else below the reports."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_distill._checks import integer, optional
from keras_distill.students._soft_tree._rules import names_or_default

_OWNER = "SoftDecisionTree.draw"
_INK, _BLUE, _LINE = "#222222", "#0072B2", "#999999"


@dataclasses.dataclass(frozen=True, eq=False)
class TreePicture:
    """The drawn part of a soft tree: its upper levels, as arrays that can be stored.

    Args:
        filters: (2**levels - 1, *input shape), the weights of the drawn nodes.
        distributions: (2**levels, classes), mean answer to the examples below the last drawn level.
        shares: (2**(levels + 1) - 1,), share of the examples at each drawn node; None if unknown.
    """

    filters: np.ndarray
    distributions: np.ndarray
    shares: np.ndarray | None

    @property
    def levels(self) -> int:
        """The number of levels of filters."""
        return (len(self.filters) + 1).bit_length() - 1


def picture_of(tree: Any, data: Any = None, levels: int | None = None) -> TreePicture:
    """Return the picture of a ``SoftDecisionTree``; the arguments are those of its ``draw``."""
    shown = min(tree.depth, 4) if levels is None else min(integer(_OWNER, "levels", levels, low=1), tree.depth)
    shares = tree.shares if data is None else tree.shares_of(data)
    kernel = ops.convert_to_numpy(ops.convert_to_tensor(tree.kernel)).reshape(-1, *tree.sizes)
    upper = None if shares is None else shares[: 2 ** (shown + 1) - 1]
    return TreePicture(kernel[: 2**shown - 1], _subtree_distributions(tree, shares, shown), upper)


def draw_tree(
    tree: Any,
    path: str | os.PathLike[str],
    data: Any,
    levels: int | None,
    feature_names: Sequence[str] | None,
    class_names: Sequence[str] | None,
) -> pathlib.Path:
    """Draw the tree into a file; the arguments are those of ``SoftDecisionTree.draw``."""
    figure = tree_figure(picture_of(tree, data, levels), feature_names, class_names)
    path = pathlib.Path(path)
    figure.savefig(path, dpi=130)
    return path


def tree_figure(
    picture: TreePicture,
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Any:
    """Return the matplotlib figure of a picture.

    Args:
        picture: picture of a tree.
        feature_names: one per column, for tables.
        class_names: one per class.

    Returns:
        The figure.

    Raises:
        ValueError: if matplotlib is missing, or a list of names has another length.
    """
    with optional(_OWNER, "matplotlib", "explain"):
        from matplotlib.figure import Figure
    shown, shares, kernel, last = picture.levels, picture.shares, picture.filters, picture.distributions
    classes = last.shape[1]
    names = names_or_default(_OWNER, "class_names", class_names, classes, "")
    columns = 2**shown
    figure = Figure(figsize=(max(4.0, 0.95 * columns), 1.35 * (shown + 1) + 0.3))
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, 1), ylim=(0, 1))
    canvas.axis("off")
    height = 1.0 / (shown + 1)

    def place(level: int, position: int) -> tuple[float, float]:
        return (position + 0.5) / 2**level, 1.0 - (level + 0.45) * height

    for level in range(shown):
        for position in range(2**level):
            x, y = place(level, position)
            for side in (0, 1):
                below = place(level + 1, 2 * position + side)
                share = 0.5 if shares is None else float(shares[2 ** (level + 1) - 1 + 2 * position + side])
                width = 0.4 + 4.0 * share
                canvas.plot([x, below[0]], [y, below[1]], color=_LINE, linewidth=width, zorder=0, solid_capstyle="butt")
    for level in range(shown):
        for position in range(2**level):
            node = 2**level - 1 + position
            axes = _box(figure, *place(level, position), 0.62 / columns, 0.56 * height)
            _filter(axes, kernel[node], feature_names)
            axes.set_title(_share(shares, node), fontsize=6, pad=1.5, color=_INK)
    for position in range(columns):
        axes = _box(figure, *place(shown, position), 0.72 / columns, 0.34 * height)
        distribution = last[position]
        axes.bar(range(classes), distribution, color=_BLUE, width=0.85)
        axes.set(ylim=(0, 1), yticks=[], xticks=[])
        axes.spines[["top", "right", "left"]].set_visible(False)
        best = int(distribution.argmax())
        label = f"{names[best]}\n{100 * distribution[best]:.0f}%"
        axes.set_xlabel(label, fontsize=6, labelpad=1.5, color=_INK)
        axes.set_title(_share(shares, 2**shown - 1 + position), fontsize=6, pad=1.5, color=_INK)
    return figure


def _box(figure: Any, x: float, y: float, width: float, height: float) -> Any:
    return figure.add_axes((x - width / 2, y - height / 2, width, height))


def _share(shares: np.ndarray | None, node: int) -> str:
    return "" if shares is None else f"{100 * shares[node]:.{1 if shares[node] < 0.1 else 0}f}% here"


def _filter(axes: Any, weights: np.ndarray, feature_names: Sequence[str] | None) -> None:
    """Draw an image filter as a picture (blue sends left, red right), a table's as its strongest columns."""
    if weights.ndim >= 2:
        picture = weights.sum(axis=-1) if weights.ndim == 3 else weights
        most = float(np.abs(picture).max()) or 1.0
        axes.imshow(picture, cmap="RdBu_r", vmin=-most, vmax=most, aspect="equal")
        axes.set(xticks=[], yticks=[])
        return
    names = names_or_default(_OWNER, "feature_names", feature_names, len(weights), "x")
    strongest = np.argsort(-np.abs(weights), kind="stable")[:4][::-1]
    colors = ["#D55E00" if weights[index] > 0 else _BLUE for index in strongest]
    axes.barh(range(len(strongest)), weights[strongest], color=colors)
    axes.set(xticks=[], yticks=[])
    axes.margins(y=0.08)
    for row, index in enumerate(strongest):
        axes.text(0.5, row, names[index], fontsize=5, va="center", ha="center", transform=axes.get_yaxis_transform())
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def _subtree_distributions(tree: Any, shares: np.ndarray | None, level: int) -> np.ndarray:
    """Return the mean answer to the examples that reach each node of a level, (2**level, classes)."""
    leaves = tree.leaf_distributions()
    weights = np.ones(len(leaves)) if shares is None else shares[tree.num_nodes :] + 1e-12
    grouped = weights.reshape(2**level, -1, 1)
    return (leaves.reshape(2**level, -1, tree.classes) * grouped).sum(axis=1) / grouped.sum(axis=1)
