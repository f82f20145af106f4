"""Tables: encodes columns of numbers and categories inside the served model; synthetic rows for a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import choice, error, integer, number

_KINDS = ("marginal", "perturbed", "mixup")


@keras.saving.register_keras_serializable(package="keras_distill")
class FilledNumber(keras.layers.Layer):
    """Standardises a column of numbers, fills missing ones (NaN) with the mean, and adds a flag for missing ones.

    With ``edges``, it adds the number's position within each bin (piecewise linear encoding).

    Formula: (x - mean) / standard_deviation, 1 if x is missing, clip((x - low_t) / (high_t - low_t), 0, 1) for bin t.

    Args:
        mean: mean of the training rows.
        standard_deviation: > 0, standard deviation of the training rows.
        edges: increasing numbers; none, or at least two.
        **kwargs: as in ``keras.layers.Layer``.

    Example:
        >>> FilledNumber(1.0, 2.0, edges=[0.0, 1.0, 3.0])(np.array([[2.0]])).numpy().tolist()
        [[0.5, 0.0, 1.0, 0.5]]

    Reference:
        Gorishniy, Rubachev, Babenko, "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022,
        arXiv:2203.05556, section 3.2. Differs: the outer bins end at their edges.
    """

    def __init__(self, mean: float, standard_deviation: float, edges: Sequence[float] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean = float(mean)
        self.standard_deviation = number("FilledNumber", "standard_deviation", standard_deviation, above=0.0)
        self.edges = [float(edge) for edge in edges]
        if len(self.edges) == 1 or not (np.diff(np.asarray(self.edges, "float32")) > 0).all():
            raise error("FilledNumber", "no edges, or at least two that increase", self.edges)

    def call(self, column: Any) -> Any:
        """Return (batch, 2 + bins): the standardised number, 1 if it was missing, its position in each bin."""
        column = ops.reshape(ops.cast(column, "float32"), (-1, 1))
        missing = ops.isnan(column)
        filled = ops.where(missing, self.mean, column)
        parts = [(filled - self.mean) / self.standard_deviation, ops.cast(missing, "float32")]
        if self.edges:
            edges = np.asarray(self.edges, "float32")
            parts.append(ops.clip((filled - edges[:-1]) / np.diff(edges), 0.0, 1.0))
        return ops.concatenate(parts, axis=-1)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, int]:
        """Return the shape of the output."""
        return (input_shape[0], 2 + max(0, len(self.edges) - 1))

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs."""
        settings = {"mean": self.mean, "standard_deviation": self.standard_deviation, "edges": self.edges}
        return {**super().get_config(), **settings}


def _columns(owner: str, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return columns as arrays of one length: float32 for numbers, text for everything else."""
    if not columns:
        raise error(owner, "at least one column", "none")
    arrays = {}
    for name, column in columns.items():
        column = np.asarray(column)
        if column.ndim != 1:
            raise error(owner, f"column {name!r} of shape (rows,)", column.shape)
        arrays[name] = column.astype("float32") if column.dtype.kind in "fiub" else column.astype(str)
    if len({len(column) for column in arrays.values()}) > 1:
        raise error(owner, "columns of one length", {name: len(column) for name, column in arrays.items()})
    return arrays


def _edges(column: np.ndarray, num_bins: int) -> list[float]:
    """Return quantiles of a column's distinct values, at most ``num_bins`` + 1; none for a constant column."""
    values = np.unique(column[~np.isnan(column)])
    if not num_bins or len(values) < 2:
        return []
    return np.unique(np.quantile(values, np.linspace(0.0, 1.0, num_bins + 1)).astype("float32")).tolist()


class TableEncoder:
    """Encodes the columns of a table as one vector per row, by a ``keras.utils.FeatureSpace`` for the served model.

    Numbers are standardised; a missing one (NaN) becomes the mean and sets a flag. Categories become one-hot vectors,
    with a separate place for those not seen in training (a missing one is an empty text).

    Args:
        columns: name to (rows,) array, the training rows; numbers, or texts for categories.
        categorical: names of columns whose numbers are categories.
        num_bins: >= 0, largest number of bins per number; their edges are quantiles of its distinct values. 32 to 48
            let a network fit the steps of boosted trees and skewed columns; 0 only standardises.

    Attributes:
        space: the adapted ``keras.utils.FeatureSpace``.
        categories: the categories seen in training, by column name.

    Raises:
        ValueError: if a column has no values, or the columns differ in length.

    Example:
        >>> encoder = TableEncoder({"age": [20.0, 40.0, np.nan], "city": ["Oslo", "Rome", "Oslo"]})
        >>> encoder({"age": [30.0], "city": ["Lima"]}).round(1).tolist()  # age, missing, unseen, Oslo, Rome
        [[0.0, 0.0, 1.0, 0.0, 0.0]]
    """

    def __init__(self, columns: Mapping[str, Any], categorical: Sequence[str] = (), num_bins: int = 0) -> None:
        owner = "TableEncoder"
        integer(owner, "num_bins", num_bins, low=0)
        unknown = sorted(set(categorical) - set(columns))
        if unknown:
            raise error(owner, f"categorical names among {', '.join(map(repr, columns))}", unknown)
        self._categorical = tuple(categorical)
        arrays = self._arrays(owner, columns)
        features: dict[str, Any] = {}
        self.categories: dict[str, np.ndarray] = {}
        for name, column in arrays.items():
            if column.dtype.kind == "f":
                if np.isnan(column).all():
                    raise error(owner, f"a value in column {name!r}", "only missing values", "Drop it")
                spread, mean = float(np.nanstd(column)) or 1.0, float(np.nanmean(column))
                layer = FilledNumber(mean, spread, _edges(column, num_bins), name=f"filled_{len(features)}")
                features[name] = keras.utils.FeatureSpace.feature("float32", layer, "float")
            else:
                if (column == "").all():
                    raise error(owner, f"a value in column {name!r}", "only missing values", "Drop it")
                features[name] = keras.utils.FeatureSpace.string_categorical(num_oov_indices=1)
                self.categories[name] = np.unique(column)
        self.space = keras.utils.FeatureSpace(features, output_mode="concat")
        self.space.adapt(arrays)

    def _arrays(self, owner: str, columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
        arrays = _columns(owner, columns)
        for name in self._categorical:
            if arrays[name].dtype.kind == "f":
                arrays[name] = np.array(["" if np.isnan(each) else f"{each:g}" for each in arrays[name]], dtype=str)
        return arrays

    def check(self, columns: Mapping[str, Any]) -> None:
        """Refuse rows with categories not seen in training, for data where these indicate an error.

        Args:
            columns: as for training.

        Raises:
            ValueError: naming the first such column and its categories.
        """
        for name, column in self._arrays("TableEncoder.check", columns).items():
            if name in self.categories:
                unseen = sorted(set(column.tolist()) - set(self.categories[name].tolist()))
                if unseen:
                    advice = "Encode without check() to treat them as unseen categories"
                    raise error("TableEncoder.check", f"categories of {name!r} seen in training", unseen[:5], advice)

    def __call__(self, columns: Mapping[str, Any]) -> np.ndarray:
        """Encode rows.

        Args:
            columns: as for training; unseen categories and missing values are allowed.

        Returns:
            (rows, width), float32.
        """
        arrays = self._arrays("TableEncoder", columns)
        missing = sorted(set(self.space.features) - set(arrays))
        if missing:
            raise error("TableEncoder", f"columns {', '.join(map(repr, self.space.features))}", f"none of {missing}")
        known = {name: ops.convert_to_tensor(arrays[name][:, None]) for name in self.space.features}
        return np.asarray(ops.convert_to_numpy(self.space(known)), "float32")

    def serve(self, student: keras.Model) -> keras.Model:
        """Put the encoding before a student: a model of raw columns, saved and exported like any other.

        Args:
            student: takes (batch, width).

        Returns:
            A model that takes a dictionary of columns, each (batch, 1); numbers as floats, categories as texts.
        """
        inputs = dict(self.space.get_inputs())
        return keras.Model(inputs, student(self.space.get_encoded_features()), name="served_table")


def synthetic_rows(
    columns: Mapping[str, Any], count: int, *, kind: str = "marginal", strength: float = 0.3, seed: int = 0
) -> dict[str, np.ndarray]:
    """Make rows for a teacher to label, from the rows of a table.

    Args:
        columns: name to (rows,) array of numbers or texts; missing values (NaN, "") may occur in the result.
        count: >= 1 rows.
        kind: "marginal": each entry is replaced with probability ``strength`` by one of the same column; "perturbed":
            numbers move by ``strength`` standard deviations of Gaussian noise, categories as in "marginal"; "mixup":
            numbers lie between those of two rows, categories come from one of them.
        strength: 0 to 1; not used by "mixup".
        seed: >= 0, seed of the draws.

    Returns:
        Columns of ``count`` rows. No number leaves the range of its column (``outside_range`` finds none), and no
        category is new.

    Raises:
        ValueError: if kind is unknown or an argument is out of range.

    Example:
        >>> rows = synthetic_rows({"age": [20.0, 40.0], "city": ["Oslo", "Rome"]}, 100)
        >>> float(rows["age"].min()), float(rows["age"].max())
        (20.0, 40.0)

    Reference:
        Bucila, Caruana, Niculescu-Mizil, "Model Compression", KDD 2006 (which compares such rows). Differs: rows are
        independent of their nearest neighbours.
    """
    owner = "synthetic_rows"
    choice(owner, "kind", kind, _KINDS)
    strength = number(owner, "strength", strength, low=0.0, high=1.0)
    count = integer(owner, "count", count, low=1)
    arrays = _columns(owner, columns)
    rows = len(next(iter(arrays.values())))
    rng = np.random.default_rng(integer(owner, "seed", seed, low=0))
    base, other, share = rng.integers(0, rows, count), rng.integers(0, rows, count), rng.random(count)
    made = {}
    for name, column in arrays.items():
        is_number = column.dtype.kind == "f"
        entries = column[base]
        if kind == "mixup":
            entries = share * entries + (1 - share) * column[other] if is_number else np.where(
                share >= 0.5, entries, column[other]
            )  # fmt: skip
        elif kind == "perturbed" and is_number:
            entries = entries + strength * np.nanstd(column) * rng.normal(size=count)
        else:
            entries = np.where(rng.random(count) < strength, column[rng.integers(0, rows, count)], entries)
        if is_number:
            entries = np.clip(entries, np.nanmin(column), np.nanmax(column)).astype("float32")
        made[name] = entries
    return made


def outside_range(columns: Mapping[str, Any], reference: Mapping[str, Any]) -> np.ndarray:
    """Return the rows that a teacher should not label, because they lie outside the range of its training data.

    Args:
        columns: name to (rows,) array.
        reference: the training rows, with the same names.

    Returns:
        (rows,) bool: true if a number lies outside its column's range, a category is new, or a value is missing in a
        column without missing values.

    Raises:
        ValueError: if the names differ.

    Example:
        >>> outside_range({"age": [30.0, 90.0]}, {"age": [20.0, 40.0]}).tolist()
        [False, True]
    """
    owner = "outside_range"
    arrays, known = _columns(owner, columns), _columns(owner, reference)
    if set(arrays) != set(known):
        raise error(owner, f"columns {sorted(known)}", sorted(arrays))
    outside = np.zeros(len(next(iter(arrays.values()))), bool)
    for name, column in arrays.items():
        if column.dtype.kind == "f":
            seen = known[name]
            outside |= (column < np.nanmin(seen)) | (column > np.nanmax(seen))
            if not np.isnan(seen).any():
                outside |= np.isnan(column)
        else:
            outside |= ~np.isin(column, known[name])
    return outside
