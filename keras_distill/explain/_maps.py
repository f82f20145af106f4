"""Similarity of two maps, example by example."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_distill._checks import error, number, optional


def spearman(first: Any, second: Any) -> np.ndarray:
    """Signed rank correlation of two attributions of each example.

    Args:
        first: (examples, ...), attributions.
        second: the same shape.

    Returns:
        (examples,), -1 to 1, float64; 0 if one of the two is constant.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> spearman([[1.0, 2.0, 9.0]], [[0.1, 0.2, 0.3]])
        array([1.])
    """
    with optional("explain.spearman", "scipy", "explain"):
        from scipy.stats import rankdata
    a, b = _rows("spearman", first, second)
    ranks = [rankdata(side, axis=-1) - (side.shape[-1] + 1) / 2 for side in (a, b)]
    scale = np.sqrt((ranks[0] ** 2).sum(-1) * (ranks[1] ** 2).sum(-1))
    return (ranks[0] * ranks[1]).sum(-1) / np.where(scale > 0, scale, 1.0)


def top_overlap(first: Any, second: Any, fraction: float = 0.1) -> np.ndarray:
    """Fraction of the numbers with the largest attributions, by magnitude, that two maps have in common.

    Maps of images tend to share the centre whatever a model has learned: compare with an untrained model first.

    Args:
        first: (examples, ...), attributions.
        second: the same shape.
        fraction: above 0 and up to 1, fraction of the numbers that count as largest; at least one number.

    Returns:
        (examples,), 0 to 1, float64.

    Raises:
        ValueError: if the shapes differ, or the fraction is out of range.

    Example:
        >>> top_overlap([[9.0, -8.0, 1.0, 0.0]], [[-7.0, 0.0, 1.0, 6.0]], fraction=0.5)
        array([0.5])
    """
    number("top_overlap", "fraction", fraction, above=0, high=1)
    sides = [np.abs(side) for side in _rows("top_overlap", first, second)]
    count = max(1, round(fraction * sides[0].shape[-1]))
    largest = [np.argsort(-side, axis=-1, kind="stable")[:, :count] for side in sides]
    chosen = [np.zeros(sides[0].shape, bool) for _ in sides]
    for mask, index in zip(chosen, largest, strict=True):
        np.put_along_axis(mask, index, True, axis=-1)
    return (chosen[0] & chosen[1]).sum(-1) / count


def structural_similarity(first: Any, second: Any) -> np.ndarray:
    """Structural similarity of two attributions of each image (SSIM), each divided by its largest magnitude.

    Args:
        first: (examples, height, width, channels), attributions; channels are summed.
        second: the same shape.

    Returns:
        (examples,), -1 to 1, float64.

    Raises:
        ValueError: if the shapes differ or are not those of images.

    Example:
        >>> maps = np.random.default_rng(0).normal(size=(1, 16, 16, 1))
        >>> structural_similarity(maps, 3 * maps).round(6)
        array([1.])

    Reference:
        Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity",
        IEEE TIP 2004. Differs: maps are scaled to -1..1, so the range is 2; small images use a smaller window.
    """
    import tensorflow as tf

    _rows("structural_similarity", first, second)
    sides = [np.asarray(side, "float32") for side in (first, second)]
    if sides[0].ndim != 4:
        expected = "maps of shape (examples, height, width, channels)"
        raise error("structural_similarity", expected, f"shape {sides[0].shape}")
    summed = [side.sum(-1, keepdims=True) for side in sides]
    scaled = [side / np.maximum(np.abs(side).max((1, 2, 3), keepdims=True), 1e-30) for side in summed]
    window = min(11, *sides[0].shape[1:3])
    return np.asarray(tf.image.ssim(*scaled, max_val=2.0, filter_size=window), "float64")


def _rows(owner: str, first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first, "float64"), np.asarray(second, "float64")
    if a.shape != b.shape or a.ndim < 2 or not len(a):
        raise error(owner, "two maps of one shape (examples, ...)", f"{a.shape} and {b.shape}")
    return a.reshape(len(a), -1), b.reshape(len(b), -1)
