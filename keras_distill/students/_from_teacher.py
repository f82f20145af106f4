"""Builds a student from its teacher: fewer blocks, fewer channels, the teacher's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_distill._checks import choice, error, nearest, number
from keras_distill.students import _graph
from keras_distill.students._backbones import is_backbone, smaller, unnumbered
from keras_distill.students._built import Budget, Built
from keras_distill.students._channels import Channels
from keras_distill.students._cost import cost
from keras_distill.students._depth import shallower
from keras_distill.students._fit import fit_budget
from keras_distill.students._inputs import input_batches
from keras_distill.students._scores import channel_scores

_OWNER = "from_teacher"


def from_teacher(
    teacher: keras.Model,
    depth: float | int | None = None,
    width: float | Mapping[str, int] | None = None,
    budget: Budget | None = None,
    score: str = "magnitude",
    data: Any = None,
    *,
    seed: int = 0,
) -> Built:
    """Build a smaller student from its teacher's own blocks, channels and weights.

    Choose it first when teacher and student may have the same architecture: a student that starts from its teacher's
    weights needs far fewer labels and epochs than a random one. Distil it afterwards. To remove most of the channels,
    go in several rounds, each from the previous round's student.

    Channels are traced through the graph: sums and products unite those of their inputs, concatenation and flattening
    pass them on, and an unknown layer keeps all that it reads. The student therefore computes exactly what the teacher
    would with zeros in the rows that read a removed channel; with everything kept it equals the teacher bit for bit.

    Args:
        teacher: a built Functional or Sequential model, nested and shared layers too, or a keras-hub backbone, alone or
            within such a model. It is not changed.
        depth: blocks to keep, evenly spaced: a fraction (float, above 0, at most 1) or a count (int). Blocks are the
            branches of residual sums, a backbone's blocks, or layers of a plain chain that keep the shape.
        width: fraction of the channels to keep, above 0, at most 1, or a mapping from a layer's path to its number of
            channels. In a keras-hub backbone it is the width of the feed-forward layers.
        budget: the ``Budget`` from which to choose the width, instead of ``width``.
        score: how to rank channels: ``"magnitude"`` (size of the weights that produce and read a channel),
            ``"activation"`` (that of the reading weights times the mean size of the channel on ``data``), ``"random"``.
        data: examples as the teacher takes them; for ``score="activation"``, and for the cost of a model with open
            sizes.
        seed: seed of the random choice.

    Returns:
        A ``Built``: the student, the fraction of its weights from the teacher (1.0), the kept indices by layer, and the
        reason for each layer that keeps all channels.

    Raises:
        ValueError: if an argument is out of range, the teacher has no graph, is not built or is quantised, nothing of
            it can be removed, or no width meets the budget (the message gives the nearest).

    Example:
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="hidden"), keras.layers.Dense(3)])
        >>> built = from_teacher(teacher, width=0.5)
        >>> len(built.kept["hidden"]), built.cost.parameters
        (4, 35)

    Reference:
        Fang et al., "DepGraph: Towards Any Structural Pruning", 2023, arXiv:2301.12900 (groups of channels); Sanh et
        al., "DistilBERT", 2019, arXiv:1910.01108 (every other block).
        Differs: groups are found on the Keras graph, one slot per channel.
    """
    _graph.check_graph(_OWNER, teacher)
    choice(_OWNER, "score", score, ("magnitude", "activation", "random"))
    if (score == "activation") and data is None:
        raise error(_OWNER, "data for score='activation'", "None", "Pass some hundred inputs of the teacher")
    if budget is not None and not isinstance(budget, Budget):
        raise error(_OWNER, "budget to be a students.Budget", budget)
    if budget is not None and width is not None:
        raise error(_OWNER, "either width or budget", "both", "The budget chooses the width")
    if width is not None and not isinstance(width, Mapping):
        number(_OWNER, "width", width, above=0, high=1, advice="0.5 keeps half of the channels")
    maker = _Maker(teacher, depth, score, data, seed)
    if budget is None:
        return maker.make(1.0 if width is None else width)
    maker.exact = False
    return fit_budget(_OWNER, maker.make, budget, teacher, parts=len(maker.classes))


class _Maker:
    """Makes students of several widths from one teacher."""

    def __init__(self, teacher: keras.Model, depth: Any, score: str, data: Any, seed: int) -> None:
        self.source, self.data = teacher, data
        self.kept: dict[str, Any] = {}
        self.depth = depth
        self.random = np.random.default_rng(seed) if score == "random" else None
        self.seed = seed
        self.exact = True  # round each width separately
        self.backbones = any(is_backbone(operation) for operation in [teacher, *_operations(teacher)])
        if depth is not None and not self.backbones:
            self.source, dropped = shallower(teacher, depth)
            self.kept["dropped blocks"] = dropped
        self.channels: Any = None if is_backbone(teacher) else Channels(self.source, is_backbone)
        self.classes = [] if self.channels is None else self.channels.classes()
        if not self.classes and not self.backbones and depth is None:
            got = f"{teacher.name!r}, where every layer keeps its channels"
            raise error(_OWNER, "a teacher with channels that can be removed", got, "Add a hidden layer, or use depth")
        self.scores: Any = (
            None if self.channels is None else channel_scores(self.source, self.channels, score, data, seed)
        )

    def make(self, width: Any, wider: Mapping[int, int] | None = None) -> Built:
        """Return the student of one width; ``wider`` gives additional channels to keep, by class."""
        rank = None if self.random is None else lambda scores: np.random.default_rng(self.seed).random(len(scores))
        kept = dict(self.kept)
        used: set[str] = set()
        if self.channels is None:
            model, more, used = smaller(self.source, self.depth, width, rank)
            kept.update(more)
            _check_used(width, used, [])
            return _built(model, kept, {}, self.data)
        removed = self._removed(width, used, wider)

        def replace(builder: Any, path: str, node: Any, args: Any, kwargs: Any) -> Any:
            operation = node.operation
            if is_backbone(operation):

                def reduce() -> Any:
                    new, more, names = smaller(operation, self.depth, width, rank)
                    kept.update(more)
                    used.update(names)
                    for old, own in unnumbered(operation, new):
                        builder.once(old, lambda own=own: own)
                        builder.pair(old, own)
                    return new

                return _graph.call(builder.once(operation, reduce), args, kwargs)
            record = self.channels.records.get(id(operation))
            if record is None:
                return None
            left = self.channels.left(record.outputs, removed)
            new = builder.once(operation, lambda: _graph.like(operation, **record.changes(left)))
            if record.produces:
                kept[path] = left
            return builder.apply(operation, new, self.channels.weights(record, removed), args, kwargs)

        model = _graph.Builder(self.source, replace).build()
        _check_used(width, used, [record.path for record in self.channels.records.values() if record.produces])
        return _built(model, kept, self.channels.frozen(), self.data)

    def _removed(self, width: Any, used: set[str], wider: Mapping[int, int] | None = None) -> np.ndarray:
        removed = np.zeros(len(self.channels.roots), dtype=bool)
        for index, (paths, roots) in enumerate(self.classes):
            count = len(roots)
            if isinstance(width, Mapping):
                wanted = {int(width[path]) - self._elsewhere(path, roots) for path in paths if path in width}
                used.update(path for path in paths if path in width)
                if len(wanted) > 1:
                    expected = f"one number of channels for {', '.join(map(repr, paths))}, which are summed"
                    raise error(_OWNER, expected, dict(width))
                count = wanted.pop() if wanted else count
                if not 1 <= count <= len(roots):
                    expected = f"a width from 1 to {len(roots)} for {paths[0]!r}"
                    raise error(_OWNER, expected, count)
            elif width < 1:
                # Layers of equal size are rounded at different widths, so that a budget is met to within a few
                # channels.
                phase = 0.5 if self.exact else 0.25 + 0.5 * index / len(self.classes)
                count = min(len(roots), max(1, int(np.floor(width * len(roots) + phase)) + (wider or {}).get(index, 0)))
            order = roots[np.argsort(-self.scores[roots], kind="stable")]
            removed[order[count:]] = True
        return removed

    def _elsewhere(self, path: str, roots: np.ndarray) -> int:
        """Return the number of a layer's channels outside one class."""
        record = next(r for r in self.channels.records.values() if r.path == path)
        return len(record.outputs) - len(roots)


def _operations(model: Any) -> list[Any]:
    found = []
    for node in _graph.nodes(_graph.graph_of(model)):
        found.append(node.operation)
        if _graph.graph_of(node.operation) is not None:
            found += _operations(node.operation)
    return found


def _check_used(width: Any, used: set[str], known: list[str]) -> None:
    unknown = sorted(set(width) - used) if isinstance(width, Mapping) else []
    if unknown:
        got = f"{unknown[0]!r}"
        raise error(
            _OWNER, "width of layers whose channels can be removed", got, f"Nearest: {nearest(unknown[0], known)}"
        )


def _built(model: keras.Model, kept: Mapping[str, Any], frozen: Mapping[str, str], data: Any) -> Built:
    return Built(model, 1.0, kept, frozen, cost(model, first_of(data)))


def first_of(data: Any) -> Any:
    """Return one batch of inputs from arrays or a dataset, or None."""
    if data is None:
        return None
    return next(iter(input_batches(_OWNER, data)))
