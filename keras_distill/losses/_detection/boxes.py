"""Boxes as masks over a feature map, and matching of anchors to boxes."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_distill import _checks
from keras_distill._typing import Tensor
from keras_distill.losses._numerics.arguments import concrete, float32


def check_boxes(owner: str, boxes: Tensor) -> Tensor:
    """Return ``boxes`` as a float32 tensor (batch, boxes, 4), or raise if shape or values are wrong.

    Values are checked only where they are known, outside of graphs.
    """
    boxes = float32(boxes)
    if len(boxes.shape) != 3 or boxes.shape[-1] not in (4, None):
        got = f"shape {tuple(boxes.shape)}"
        raise _checks.error(owner, "boxes of shape (batch, boxes, 4): x_min, y_min, x_max, y_max", got)
    values = concrete(boxes)
    if values is not None and values.size and not (-1.0 <= values.min() and values.max() <= 1.0 + 1e-6):
        got = f"values from {values.min():g} to {values.max():g}"
        advice = "Divide pixels by the image's width and height; pad the list of boxes with -1"
        raise _checks.error(owner, "boxes in 0..1, relative to the image", got, advice)
    if values is not None and (values[..., 2:] < values[..., :2]).any():
        got = values[(values[..., 2:] < values[..., :2]).any(-1)][0].tolist()
        raise _checks.error(owner, "boxes with x_min <= x_max and y_min <= y_max", got, "Padding has no area: -1 or 0")
    return boxes


def real(boxes: Tensor) -> Tensor:
    """Return (batch, boxes) bool, False for padding, which has no area."""
    return ops.logical_and(boxes[..., 2] > boxes[..., 0], boxes[..., 3] > boxes[..., 1])


def _known_boxes(owner: str, boxes: Tensor, more: bool = False) -> Tensor:
    """Return boxes as float32, or raise unless they have 4 numbers each (or more than 4, if ``more``)."""
    boxes = float32(boxes)
    shape = tuple(boxes.shape)
    if len(shape) < 2 or not (shape[-1] == 4 or (more and (shape[-1] or 0) > 4)):
        raise _checks.error(owner, "boxes (..., boxes, 4): x_min, y_min, x_max, y_max", f"shape {shape}")
    return boxes


def box_masks(*, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Foreground mask of a feature map, and weights that make boxes of every size count equally (FGD).

    A cell is foreground if it overlaps a box. Its scale is 1 over the number of cells of that box, or of the smallest
    if several overlap; a background cell's scale is 1 over the number of background cells.

    Args:
        boxes: (batch, boxes, 4): x_min, y_min, x_max, y_max in 0..1, relative to the image; padding has no area.
        size: (height, width) of the feature map, in cells.

    Returns:
        The foreground, (batch, height, width) bool, and the scale, (batch, height, width) float32.

    Raises:
        ValueError: if the boxes have another shape or lie outside the image.

    Example:
        >>> import numpy as np
        >>> from keras_distill import losses
        >>> foreground, scale = losses.box_masks(boxes=np.array([[[0.0, 0.0, 0.5, 1.0]]]), size=(1, 4))
        >>> foreground.numpy()[0, 0].tolist(), scale.numpy()[0, 0].tolist()
        ([True, True, False, False], [0.5, 0.5, 0.5, 0.5])
    """
    boxes = check_boxes("box_masks", boxes)
    height, width = size
    inside = ops.cast(real(boxes), "float32")
    columns = _overlaps(boxes[..., 0], boxes[..., 2], width)  # (batch, boxes, width)
    rows = _overlaps(boxes[..., 1], boxes[..., 3], height)
    cells = ops.sum(rows, axis=-1) * ops.sum(columns, axis=-1)
    each = inside / ops.maximum(cells, 1.0)
    cover = rows[..., :, None] * columns[..., None, :] * each[..., None, None]
    # An extra row of zeros gives an image without boxes a maximum.
    scale = ops.max(ops.pad(cover, [[0, 0], [0, 1], [0, 0], [0, 0]]), axis=1)
    foreground = scale > 0.0
    background = ops.cast(ops.logical_not(foreground), "float32")
    share = background / ops.maximum(ops.sum(background, axis=(1, 2), keepdims=True), 1.0)
    return foreground, ops.where(foreground, scale, share)


def _overlaps(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Return (batch, boxes, cells), 1 where the cell overlaps the interval from low to high, in 0..1."""
    start = ops.arange(cells, dtype="float32") / cells
    stop = (ops.arange(cells, dtype="float32") + 1.0) / cells
    # The tolerance keeps edges that lie on the grid from reaching into the next cell by rounding.
    return ops.cast(
        ops.logical_and(low[..., None] < stop - 1e-6, high[..., None] > start + 1e-6),
        "float32",
    )


def box_overlaps(*, boxes: Tensor, others: Any) -> Tensor:
    """Intersection over union of all pairs of boxes.

    Args:
        boxes: (..., n, 4): x_min, y_min, x_max, y_max, any unit.
        others: (..., m, 4), the same unit.

    Returns:
        (..., n, m), float32, 0 to 1; 0 where either box has no area.

    Example:
        >>> from keras_distill import losses
        >>> overlap = losses.box_overlaps(boxes=[[0.0, 0.0, 1.0, 1.0]], others=[[0.0, 0.0, 0.5, 1.0]])
        >>> overlap.numpy().tolist()
        [[0.5]]
    """
    boxes, others = _known_boxes("box_overlaps", boxes), _known_boxes("box_overlaps", others)
    pairs = zip(reversed(boxes.shape[:-2]), reversed(others.shape[:-2]), strict=False)
    if any(None not in pair and 1 not in pair and pair[0] != pair[1] for pair in pairs):
        got = f"shapes {tuple(boxes.shape)} and {tuple(others.shape)}"
        raise _checks.error("box_overlaps", "boxes and others with equal leading shapes", got)
    one, other = boxes[..., :, None, :], others[..., None, :, :]
    low, high = ops.maximum(one[..., :2], other[..., :2]), ops.minimum(one[..., 2:], other[..., 2:])
    both = ops.prod(ops.maximum(high - low, 0.0), axis=-1)
    areas = [ops.prod(ops.maximum(each[..., 2:] - each[..., :2], 0.0), axis=-1) for each in (one, other)]
    union = areas[0] + areas[1] - both
    return ops.where(union > 0.0, both / ops.where(union > 0.0, union, 1.0), 0.0)


def match_anchors(
    *,
    anchors: Tensor,
    boxes: Tensor,
    positive_overlap: float = 0.5,
    negative_overlap: float = 0.4,
    force_match: bool = False,
) -> Tensor:
    """Match each anchor to the box that it overlaps most, if the overlap is large enough (RetinaNet's rule).

    Anchors that match nothing in a whole data set have the wrong size: the detector's box loss is then exactly 0.
    ``matched = losses.match_anchors(...) >= 0`` reveals this, and as ``mask`` restricts a term to matched anchors.

    Args:
        anchors: (anchors, 4): x_min, y_min, x_max, y_max, in the boxes' unit.
        boxes: (batch, boxes, 4); padding has no area and is never matched.
        positive_overlap: 0 to 1; an anchor with at least this intersection over union is matched to the box.
        negative_overlap: 0 to positive_overlap; an anchor below it is background.
        force_match: True also matches each box to the anchor that overlaps it most, however little.

    Returns:
        (batch, anchors), int32: the index of the box, -1 for background, -2 between the two thresholds.

    Raises:
        ValueError: if shapes or thresholds do not fit.

    Example:
        >>> from keras_distill import losses
        >>> anchors = [[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.4, 0.6]]
        >>> losses.match_anchors(anchors=anchors, boxes=[[[0.0, 0.0, 0.5, 0.5]]]).numpy().tolist()
        [[0, -1, 0]]
    """
    owner = "match_anchors"
    high = _checks.number(owner, "positive_overlap", positive_overlap, above=0.0, high=1.0)
    low = _checks.number(owner, "negative_overlap", negative_overlap, low=0.0, high=high)
    anchors, boxes = float32(anchors), float32(boxes)
    if len(anchors.shape) != 2 or len(boxes.shape) != 3 or anchors.shape[-1] != 4 or boxes.shape[-1] != 4:
        got = f"shapes {tuple(anchors.shape)} and {tuple(boxes.shape)}"
        raise _checks.error(owner, "anchors (anchors, 4) and boxes (batch, boxes, 4)", got)
    if boxes.shape[1] == 0:
        return ops.full((ops.shape(boxes)[0], anchors.shape[0]), -1, dtype="int32")
    overlap = box_overlaps(boxes=anchors[None], others=boxes)  # (batch, anchors, boxes)
    best = ops.cast(ops.argmax(overlap, axis=-1), "int32")
    most = ops.max(overlap, axis=-1)
    found = ops.where(most >= high, best, ops.where(most < low, -1, -2))
    if not force_match:
        return found
    anchor = ops.argmax(overlap, axis=1)  # (batch, boxes)
    mine = ops.equal(ops.arange(anchors.shape[0])[None, :, None], ops.cast(anchor, "int32")[:, None, :])
    mine = ops.logical_and(mine, (ops.max(overlap, axis=1) > 0.0)[:, None, :])
    return ops.where(ops.any(mine, axis=-1), ops.cast(ops.argmax(ops.cast(mine, "int32"), axis=-1), "int32"), found)


def check_anchors(*, anchors: Tensor, boxes: Tensor, positive_overlap: float = 0.5) -> float:
    """Return the fraction of boxes matched by some anchor, and raise if no anchor matches any box.

    Call it once before training: with anchors of the wrong size a detector's box loss is exactly 0.0 and stays there.

    Args:
        anchors: (anchors, 4): x_min, y_min, x_max, y_max, in the boxes' unit.
        boxes: (images, boxes, 4 or more), boxes of the training set; padding has no area.
        positive_overlap: 0 to 1; an anchor with at least this intersection over union matches a box.

    Returns:
        0 to 1.

    Raises:
        ValueError: if there is no box, or no anchor matches any.

    Example:
        >>> from keras_distill import losses
        >>> losses.check_anchors(anchors=[[0.0, 0.0, 0.5, 0.5]], boxes=[[[0.0, 0.0, 0.5, 0.4], [0.6, 0.6, 0.9, 0.9]]])
        0.5
    """
    owner = "check_anchors"
    high = _checks.number(owner, "positive_overlap", positive_overlap, above=0.0, high=1.0)
    boxes = _known_boxes(owner, boxes, more=True)[..., :4]
    kept = ops.convert_to_numpy(ops.reshape(boxes, (-1, 4)))[ops.convert_to_numpy(ops.reshape(real(boxes), (-1,)))]
    if not len(kept):
        raise _checks.error(owner, "at least one box with an area", "none")
    best = ops.convert_to_numpy(ops.max(box_overlaps(boxes=kept, others=anchors), axis=-1))
    if not (best >= high).any():
        sizes = [f"{each:.3g}" for each in (kept[:, 2:] - kept[:, :2]).mean(axis=0)]
        got = f"a largest overlap of {best.max():.3f} over {len(kept)} boxes, whose mean size is {' x '.join(sizes)}"
        advice = "Choose anchors of about that size, in the boxes' unit"
        raise _checks.error(owner, f"an anchor that overlaps a box by {high:g}", got, advice)
    return float((best >= high).mean())
