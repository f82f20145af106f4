"""Figures readable with colour blindness and in grey; each function returns a matplotlib ``Figure``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._checks import error, optional, printable
from keras_distill.metrics import ReliabilityBins
from keras_distill.terms import CrossLayerAttention

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinguishable under every common colour blindness and in grey, each with a line style.
_BLUE, _RED, _INK, _PALE = "#0072B2", "#D55E00", "#222222", "#D9D9D9"
_STYLES = (
    ("#0072B2", "-"),
    ("#D55E00", "--"),
    ("#009E73", "-."),
    ("#CC79A7", ":"),
    ("#E69F00", (0, (5, 1, 1, 1, 1, 1))),
)


def reliability_diagram(bins: ReliabilityBins | Mapping[str, ReliabilityBins]) -> Figure:
    """Draw each model's accuracy against its confidence, and below it the number of examples per bin.

    Args:
        bins: bins from ``metrics.reliability_bins``, a metric's ``bins`` or ``CalibrationMonitor``; or several, by
            model name.

    Returns:
        The figure: one column per model. Bars are accuracies, dots mean confidences, and lines between them the gaps
        that calibration errors sum.

    Raises:
        ValueError: if there is no model, or matplotlib is missing.

    Example:
        >>> from keras_distill.metrics import reliability_bins
        >>> figure = reliability_diagram({"coin": reliability_bins([0, 1], [[0.5, 0.5], [0.4, 0.6]])})
        >>> [axes.get_title() for axes in figure.axes]
        ['coin', '']
    """
    bins = {"": bins} if isinstance(bins, ReliabilityBins) else bins
    figure, grid = _panels("reliability_diagram", len(bins), rows=2, width=3.1, height=4.4, ratios=(3, 1))
    most = max(float(each.weight.max()) for each in bins.values())
    for column, (name, each) in enumerate(bins.items()):
        upper, lower = grid[0][column], grid[1][column]
        width = np.diff(each.edges)
        middle = each.edges[:-1] + width / 2
        upper.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--", label="perfectly calibrated")
        upper.bar(middle, np.nan_to_num(each.accuracy), 0.9 * width, color="#9ECAE1", edgecolor=_BLUE, label="accuracy")
        upper.vlines(each.confidence, each.accuracy, each.confidence, color=_RED, linewidth=2, label="gap")
        upper.plot(each.confidence, each.confidence, "o", color=_RED, markersize=4, label="mean confidence")
        upper.set(title=plain(name), xlim=(0, 1), ylim=(0, 1), xticks=np.linspace(0, 1, 6))
        upper.tick_params(labelbottom=False)
        lower.bar(middle, each.weight, 0.9 * width, color=_PALE, edgecolor=_INK, linewidth=0.6)
        lower.set(xlim=(0, 1), xlabel="confidence", xticks=np.linspace(0, 1, 6), ylim=(0.5, 20 * max(most, 1.0)))
        lower.set_yscale("log")
        for x, count in zip(middle, each.weight, strict=True):
            if count > 0:
                lower.annotate(
                    f"{count:g}", (x, count), (0, 2), textcoords="offset points", ha="center", rotation=90, fontsize=6
                )
    grid[0][0].set_ylabel("accuracy")
    grid[1][0].set_ylabel("examples")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def confusion_matrices(counts: Mapping[str, Any], class_names: Sequence[str] | None = None) -> Figure:
    """Draw each model's confusion matrix; only mistakes are coloured, on one scale for all models.

    Args:
        counts: by model name, (classes, classes) counts, rows are the true classes.
        class_names: one per class; their ids by default. Names and counts are omitted beyond 20 classes.

    Returns:
        The figure: one matrix per model.

    Raises:
        ValueError: if there is no model, or matplotlib is missing.

    Example:
        >>> figure = confusion_matrices({"model": [[9, 1], [2, 8]]}, ["cat", "dog"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['9', '1', '2', '8']
    """
    figure, grid = _panels("confusion_matrices", len(counts), rows=1, width=3.4, height=3.6)
    from matplotlib.colors import LinearSegmentedColormap

    shares = {}
    for name, matrix in counts.items():
        table = np.asarray(matrix, "float64")
        shares[name] = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        np.fill_diagonal(shares[name], np.nan)
    most = max([np.nanmax(share) for share in shares.values() if share.size > 1], default=0.0) or 1.0
    colors = LinearSegmentedColormap.from_list("mistakes", ["#FFFFFF", "#F6B26B", _RED, "#6E2C00"])
    for axes, (name, matrix) in zip(grid[0], counts.items(), strict=True):
        table = np.asarray(matrix)
        size = len(table)
        names = [plain(each) for each in (class_names if class_names is not None else range(size))]
        axes.set_facecolor(_PALE)  # visible on the diagonal, where there are no mistakes to colour
        image = axes.imshow(shares[name], cmap=colors, vmin=0, vmax=most)
        axes.set(title=plain(name), xlabel="answer")
        if size <= 20:
            long = max(map(len, names)) > 3
            axes.set_xticks(range(size), names, rotation=90 if long else 0, fontsize=7)
            axes.set_yticks(range(size), names, fontsize=7)
            for i, j in np.ndindex(table.shape):
                if table[i, j]:
                    dark = i != j and shares[name][i, j] > 0.6 * most
                    axes.text(
                        j, i, f"{table[i, j]}", ha="center", va="center", fontsize=6, color="white" if dark else _INK
                    )
        else:
            axes.set(xticks=[], yticks=[])
    grid[0][0].set_ylabel("true class")
    bar = figure.colorbar(image, ax=list(grid[0]), shrink=0.75, pad=0.02)
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    bar.ax.tick_params(labelsize=7)
    return figure


def layer_attention(terms: CrossLayerAttention | Mapping[str, CrossLayerAttention]) -> Figure:
    """Draw the weight of each teacher layer for each student layer, as learned by ``CrossLayerAttention``.

    Args:
        terms: a trained term; or several, by name.

    Returns:
        The figure: one matrix per term, rows are the student's layers, columns the teacher's; each row sums to 1.

    Raises:
        ValueError: if there is no term, a term has not seen data, or matplotlib is missing.

    Example:
        >>> import keras
        >>> term = CrossLayerAttention(["block_1", "block_2"], ["stage"])
        >>> term.build_from([keras.KerasTensor((None, 8, 8, 2))] * 2, [keras.KerasTensor((None, 8, 8, 2))])
        >>> [text.get_text() for text in layer_attention(term).axes[0].texts]  # untrained: both alike
        ['0.50', '0.50']
    """
    terms = {"": terms} if isinstance(terms, CrossLayerAttention) else terms
    figure, grid = _panels("layer_attention", len(terms), rows=1, width=3.2, height=2.8)
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("attention", ["#FFFFFF", "#9ECAE1", _BLUE])
    for axes, (name, term) in zip(grid[0], terms.items(), strict=True):
        share = term.attention
        image = axes.imshow(share, cmap=colors, vmin=0, vmax=1)
        axes.set_title(plain(name), fontsize=9)
        axes.set_xlabel("teacher's layer", fontsize=8)
        axes.set_xticks(range(share.shape[1]), map(plain, term.teacher_layer_name), fontsize=7)
        axes.set_yticks(range(share.shape[0]), map(plain, term.student_layer_name), fontsize=7)
        for i, j in np.ndindex(share.shape):
            color = "white" if share[i, j] > 0.6 else _INK
            axes.text(j, i, f"{share[i, j]:.2f}", ha="center", va="center", fontsize=8, color=color)
    grid[0][0].set_ylabel("student's layer", fontsize=8)
    bar = figure.colorbar(image, ax=list(grid[0]), shrink=0.75, pad=0.02)
    bar.set_label("share of its teaching", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def training_curves(histories: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]) -> Figure:
    """Draw each quantity over the epochs: the mean over a model's runs, and the band from minimum to maximum.

    Args:
        histories: by model name, one dictionary per run, as Keras' ``History.history``. Quantities of one model only
            are drawn too; runs of different lengths are cut to the shortest.

    Returns:
        The figure: one panel per quantity.

    Raises:
        ValueError: if there is nothing to draw, or matplotlib is missing.

    Example:
        >>> figure = training_curves({"student": [{"loss": [2.0, 1.0]}, {"loss": [4.0, 1.0]}]})
        >>> figure.axes[0].lines[0].get_ydata().tolist()
        [3.0, 1.0]
    """
    quantities = list(dict.fromkeys(key for runs in histories.values() for run in runs for key in run))
    figure, grid = _panels("training_curves", len(quantities), rows=1, width=3.6, height=3.0)
    for axes, quantity in zip(grid[0], quantities, strict=True):
        for index, (name, runs) in enumerate(histories.items()):
            curves = [np.asarray(run[quantity], "float64") for run in runs if quantity in run]
            if curves:
                _curve(axes, plain(name), curves, *_STYLES[index % len(_STYLES)])
        axes.set(title=plain(quantity), xlabel="epoch")
        axes.grid(color="#EEEEEE")
    labels: dict[str, Any] = {}
    for axes in grid[0]:
        handles, names = axes.get_legend_handles_labels()
        labels.update(zip(names, handles, strict=True))
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _curve(axes: Axes, name: str, curves: Sequence[np.ndarray], color: str, style: Any) -> None:
    length = min(map(len, curves))
    stack = np.stack([curve[:length] for curve in curves])
    epochs = np.arange(1, length + 1)
    axes.plot(epochs, stack.mean(axis=0), color=color, linestyle=style, linewidth=1.8, label=name)
    if len(curves) > 1:
        axes.fill_between(epochs, stack.min(axis=0), stack.max(axis=0), color=color, alpha=0.2, linewidth=0)


def plain(name: Any) -> str:
    """Return a name with dollar signs escaped, so that matplotlib draws it as text and not as a formula."""
    return printable(name).replace("$", r"\$")


def _panels(
    owner: str, columns: int, *, rows: int, width: float, height: float, ratios: Sequence[float] = (1,)
) -> tuple[Figure, Any]:
    """Return a figure, independent of matplotlib's global state, and its axes by row and column."""
    if not columns:
        raise error(f"report.{owner}", "something to draw", "nothing")
    with optional(f"report.{owner}", "matplotlib", "demo"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width * columns + 0.6, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.title.set_fontsize(10)
    return figure, grid
