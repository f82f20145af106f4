"""Low-rank layers: on real data a layer's outputs lie near a few directions, which two thin layers keep."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error, integer, nearest, number
from keras_distill._typing import Structure
from keras_distill.students import _graph
from keras_distill.students._built import Budget, Built
from keras_distill.students._cost import cost
from keras_distill.students._fit import fit_budget
from keras_distill.students._inputs import check_inputs, input_batches

_OWNER = "factorize"
_NOTHING = 1e-9  # fraction of a layer's variance
layers = keras.layers


def factorize(
    model: keras.Model,
    data: Any,
    energy: float | None = None,
    budget: Budget | None = None,
    *,
    ranks: Mapping[str, int] | None = None,
) -> Built:
    """Replace layers by two thin ones of low rank, chosen by the layers' outputs on real data.

    Choose it when the architecture must stay and a third of the parameters is enough: it needs no labels, and keeps
    most of the accuracy before any training. Distil afterwards. Small layers and depthwise convolutions gain nothing
    and are unchanged. Two thin layers are not always faster than one: measure.

    Formula: with y = x W + b, its mean m and the covariance C of y over the data, C = V diag(l) V^T: the layer becomes
    x (W V_r), then V_r^T and the bias m + (b - m) V_r V_r^T; the activation follows. A convolution becomes k x k to r
    channels, then 1 x 1. For an embedding, C is that of the rows that occur.

    The rank of each layer follows from one price: a direction of layer i brings l_ij / sum_j l_ij for the parameters it
    costs; the best directions of all layers are bought until the budget is used up.

    Args:
        model: a built Functional or Sequential model; nested and shared layers too. It is not changed.
        data: some hundred inputs as the model takes them, or a ``tf.data.Dataset`` of batches.
        energy: fraction of each layer's variance to keep, above 0, at most 1; a layer that would not shrink is
            unchanged.
        budget: limits for the whole model, instead of ``energy``.
        ranks: the rank of named layers, instead of either; 1 to the smaller side of the matrix.

    Returns:
        A ``Built``; ``kept`` holds the rank of each replaced layer, ``frozen`` why others were not replaced.

    Raises:
        ValueError: unless exactly one of energy, budget and ranks is given and in range; also if the data do not fit,
            no layer can be factorised, or no ranks meet the budget.

    Example:
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((8,)), layers.Dense(16, name="hidden"), layers.Dense(3)])
        >>> built = factorize(model, np.random.default_rng(0).normal(size=(64, 8)), ranks={"hidden": 2})
        >>> built.kept, built.cost.parameters == 8 * 2 + 2 * 16 + 16 + 16 * 3 + 3
        ({'hidden': 2}, True)

    Reference:
        Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", 2015,
        arXiv:1505.06798, section 3.1 (linear case).
        Differs: ranks are bought greedily over all layers by variance per parameter; embeddings too.
    """
    _graph.check_graph(_OWNER, model)
    if sum(option is not None for option in (energy, budget, ranks)) != 1:
        got = ", ".join(n for n, v in (("energy", energy), ("budget", budget), ("ranks", ranks)) if v is not None)
        raise error(_OWNER, "one of energy, budget and ranks", got or "none", "energy=0.9 is a start")
    if energy is not None:
        number(_OWNER, "energy", energy, above=0, high=1, advice="0.9 keeps nine tenths of the variance")
    if budget is not None and not isinstance(budget, Budget):
        raise error(_OWNER, "budget to be a students.Budget", budget)
    found, frozen = _spectra(model, data)
    if not found:
        got = f"{model.name!r}, which has none"
        raise error(_OWNER, "a model with Dense, Conv2D, EinsumDense or Embedding layers", got)
    first = next(iter(input_batches(_OWNER, data)))
    if ranks is not None:
        return _build(model, found, _checked(ranks, found), frozen, first)
    if energy is not None:
        return _build(model, found, _by_energy(found, energy), frozen, first)
    limits: Any = budget
    order = _purchases(found)

    def make(size: float, _: Any = None) -> Built:
        return _build(model, found, _bought(found, order, size), frozen, first)

    return fit_budget(_OWNER, make, limits, model)


@dataclasses.dataclass(eq=False)
class _Spectrum:
    """A layer's matrix, and the directions of its outputs by decreasing variance."""

    layer: Any
    rows: int
    columns: int
    variances: np.ndarray
    directions: np.ndarray  # (columns, columns), one direction per column
    mean: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        total = float(self.variances.sum())
        return self.variances / total if total > 0 else self.variances

    @property
    def most(self) -> int:
        """The largest rank that makes the layer smaller."""
        return max(0, math.ceil(self.rows * self.columns / (self.rows + self.columns)) - 1)


def _matrix_rows(layer: Any) -> int | None:
    """Return the number of rows of a layer's weight as a matrix (rows, outputs), or None if it does not apply."""
    kind = type(layer)
    if kind is layers.Dense or (kind is layers.Conv2D and layer.groups == 1):
        return math.prod(layer.kernel.shape[:-1])
    if kind is layers.EinsumDense:
        left, kernel, right = layer.equation.replace("->", ",").replace(" ", "").split(",")
        plain = len(kernel) == 2 and left[-1] == kernel[0] and right == left[:-1] + kernel[1]
        return layer.kernel.shape[0] if plain and (layer.bias is None or len(layer.bias.shape) == 1) else None
    if kind is layers.Embedding:
        return layer.input_dim
    return None


def _spectra(model: keras.Model, data: Any) -> tuple[dict[str, _Spectrum], dict[str, str]]:
    """Return the spectrum of each layer that can be factorised, and why others cannot."""
    sums: dict[int, list[Any]] = {}
    paths: dict[int, tuple[str, Any]] = {}
    frozen: dict[str, str] = {}

    def see(path: str, layer: Any, args: Any, results: Any) -> None:
        if not _graph.is_kernel_layer(layer):
            return
        if _matrix_rows(layer) is None:
            frozen[path] = f"{type(layer).__name__} is not factorised"
            return
        paths.setdefault(id(layer), (path, layer))
        value = keras.ops.convert_to_numpy(_before_activation(layer, args[0])).astype("float64")
        rows = value.reshape(-1, value.shape[-1])
        count, total, products = sums.get(id(layer), [0, 0.0, 0.0])
        sums[id(layer)] = [count + len(rows), total + rows.sum(0), products + rows.T @ rows]

    for batch in input_batches(_OWNER, data):
        _graph.run_arrays(model, check_inputs(_OWNER, model, batch), see)
    found = {}
    for key, (count, total, products) in sums.items():
        path, layer = paths[key]
        mean = total / count
        variances, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
        order = np.argsort(-variances)
        rows = _matrix_rows(layer)
        found[path] = _Spectrum(
            layer, rows or 0, len(mean), np.maximum(variances[order], 0), directions[:, order], mean
        )
    return found, frozen


def _before_activation(layer: Any, inputs: Structure) -> Any:
    if isinstance(layer, layers.Embedding) or layer.activation is keras.activations.linear:
        return layer(inputs)
    activation = layer.activation
    layer.activation = keras.activations.linear
    try:
        return layer(inputs)
    finally:
        layer.activation = activation


def _checked(ranks: Mapping[str, int], found: Mapping[str, _Spectrum]) -> dict[str, int]:
    for path, rank in ranks.items():
        if path not in found:
            advice = f"Nearest: {nearest(path, found)}"
            raise error(_OWNER, "ranks of layers that can be factorised", f"{path!r}", advice)
        integer(_OWNER, f"ranks[{path!r}]", rank, low=1)
        most = min(found[path].rows, found[path].columns)
        if rank > most:
            raise error(_OWNER, f"ranks[{path!r}] of at most {most}", rank)
    return dict(ranks)


def _by_energy(found: Mapping[str, _Spectrum], energy: float) -> dict[str, int]:
    ranks = {}
    for path, spectrum in found.items():
        reached = np.cumsum(spectrum.shares) >= energy - 1e-12
        rank = int(np.argmax(reached)) + 1 if reached.any() else spectrum.columns
        if rank <= spectrum.most:
            ranks[path] = rank
    return ranks


def _purchases(found: Mapping[str, _Spectrum]) -> list[tuple[str, int]]:
    """Return the order in which ranks are bought: the most variance per parameter first.

    Each layer begins with rank 1. Above ``most`` the original layer is cheaper; rank 0 denotes it.
    """
    waiting: list[tuple[float, str, int]] = []

    def offer(path: str, rank: int) -> None:
        spectrum = found[path]
        if spectrum.shares[rank:].sum() < _NOTHING:
            return  # the remaining variance is negligible
        if rank < spectrum.most:
            gain, price = spectrum.shares[rank], spectrum.rows + spectrum.columns
            heapq.heappush(waiting, (-gain / price, path, rank + 1))
        elif rank == spectrum.most:
            gain = spectrum.shares[rank:].sum()
            price = spectrum.rows * spectrum.columns - rank * (spectrum.rows + spectrum.columns)
            heapq.heappush(waiting, (-gain / max(price, 1), path, 0))

    for path, spectrum in found.items():
        if spectrum.most:
            offer(path, 1)
    order = []
    while waiting:
        _, path, rank = heapq.heappop(waiting)
        order.append((path, rank))
        if rank:
            offer(path, rank)
    return order


def _bought(found: Mapping[str, _Spectrum], order: list[tuple[str, int]], size: float) -> dict[str, int]:
    ranks = {path: 1 for path, spectrum in found.items() if spectrum.most}
    for path, rank in order[: round(size * len(order))]:
        ranks[path] = rank
    return {path: rank for path, rank in ranks.items() if rank}


def _build(
    model: keras.Model, found: Mapping[str, _Spectrum], ranks: Mapping[str, int], frozen: Mapping[str, str], first: Any
) -> Built:
    by_layer = {id(spectrum.layer): (spectrum, ranks[path]) for path, spectrum in found.items() if path in ranks}

    def replace(builder: Any, path: str, node: Any, args: Any, kwargs: Any) -> Any:
        if id(node.operation) not in by_layer:
            return None
        spectrum, rank = by_layer[id(node.operation)]
        thin, wide, weights = builder.once(node.operation, lambda: _pair(spectrum, rank))
        results = builder.apply(node.operation, thin, weights[0], args, kwargs)
        return builder.apply(node.operation, wide, weights[1], results, {})

    new = _graph.Builder(model, replace).build()
    whole = {path: "its rank would not make it smaller" for path in found if path not in ranks}
    return Built(new, 1.0, dict(ranks), {**frozen, **whole}, cost(new, first))


def _pair(spectrum: _Spectrum, rank: int) -> tuple[Any, Any, tuple[list[np.ndarray], list[np.ndarray]]]:
    """Return the two thin layers and their weights."""
    layer = spectrum.layer
    name = f"{layer.name}_basis"
    basis = spectrum.directions[:, :rank]
    weight = layer.get_weights()[0].astype("float64")
    narrow = weight @ basis
    spread = basis.T
    if type(layer) is layers.Embedding:
        thin = _graph.like(layer, name=name, output_dim=rank)
        wide = layers.Dense(spectrum.columns, name=layer.name, dtype=layer.dtype_policy)
        offset = spectrum.mean - basis @ (spread @ spectrum.mean)
        return thin, wide, ([narrow], [spread, offset])
    bias = layer.get_weights()[1].astype("float64") if layer.bias is not None else np.zeros(spectrum.columns)
    offset = _through(basis, bias - spectrum.mean) + spectrum.mean
    if type(layer) is layers.Conv2D:
        thin = _graph.like(layer, name=name, filters=rank, use_bias=False, activation="linear")
        wide = layers.Conv2D(
            spectrum.columns,
            1,
            activation=layer.activation,
            data_format=layer.data_format,
            name=layer.name,
            dtype=layer.dtype_policy,
        )
        return thin, wide, ([narrow], [spread[None, None], offset])
    if type(layer) is layers.Dense:
        thin = _graph.like(layer, name=name, units=rank, use_bias=False, activation="linear")
    else:
        thin = layers.Dense(rank, use_bias=False, name=name, dtype=layer.dtype_policy)
    wide = layers.Dense(spectrum.columns, activation=layer.activation, name=layer.name, dtype=layer.dtype_policy)
    return thin, wide, ([narrow], [spread, offset])


def _through(basis: np.ndarray, value: np.ndarray) -> np.ndarray:
    return basis @ (basis.T @ value)
