"""Figures on uncertainty: rejection, out-of-distribution detection, maps, and temperature scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill import metrics
from keras_distill._checks import error
from keras_distill._typing import Tensor
from keras_distill.report._figures import _INK, _PALE, _STYLES, _panels, plain, reliability_diagram

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def risk_coverage(curves: Mapping[str, tuple[Any, Any]]) -> Figure:
    """Draw the error rate of a model that answers only its most certain examples, over the fraction answered.

    Args:
        curves: by model name, coverage and risk from ``metrics.risk_coverage_curve``.

    Returns:
        The figure: one line per model, with its area (AURC, mean risk over all coverages) in the legend; less is
        better.

    Raises:
        ValueError: if there is no curve, or matplotlib is missing.

    Example:
        >>> from keras_distill.metrics import risk_coverage_curve
        >>> curve = risk_coverage_curve([0, 0, 1, 0], [0.1, 0.2, 0.3, 0.4])
        >>> figure = risk_coverage({"model": curve})
        >>> figure.axes[0].get_xlabel()
        'share of examples answered, the most certain first'
    """
    figure, grid = _panels("risk_coverage", min(len(curves), 1), rows=1, width=5.2, height=3.4)
    axes = grid[0][0]
    for index, (name, (coverage, risk)) in enumerate(curves.items()):
        coverage, risk = np.asarray(coverage, "float64"), np.asarray(risk, "float64")
        color, style = _STYLES[index % len(_STYLES)]
        area = np.sum(np.diff(coverage, prepend=0.0) * risk)
        axes.plot(coverage, risk, color=color, linestyle=style, linewidth=1.8, label=f"{plain(name)} (AURC {area:.4f})")
    axes.set(xlim=(0, 1), xlabel="share of examples answered, the most certain first", ylabel="share of errors")
    axes.set_ylim(bottom=0)
    axes.grid(color="#EEEEEE")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def detection_histograms(scores: Mapping[str, Mapping[str, Any]], *, known: str = "test", num_bins: int = 40) -> Figure:
    """Draw histograms of the uncertainty of known and of foreign inputs for each model; less overlap is better.

    Args:
        scores: by model name, the uncertainty of each example by data set name, higher for less certain.
        known: name of the data set for which the models were trained; every model must have it.
        num_bins: >= 1.

    Returns:
        The figure: one panel per model; the known data are filled, lines are the foreign sets with their AUROC.

    Raises:
        ValueError: if there is no model, a model lacks the known data, or matplotlib is missing.

    Example:
        >>> figure = detection_histograms({"model": {"test": [0.1, 0.2, 0.3], "letters": [0.8, 0.9]}})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['test', 'letters: AUROC 1.000']
    """
    figure, grid = _panels("detection_histograms", len(scores), rows=1, width=3.4, height=3.1)
    for axes, (name, sets) in zip(grid[0], scores.items(), strict=True):
        if known not in sets:
            raise error("report.detection_histograms", f"scores of {known!r} for {name!r}", list(sets))
        values = {key: np.asarray(each, "float64").ravel() for key, each in sets.items()}
        edges = np.linspace(min(map(np.min, values.values())), max(map(np.max, values.values())), num_bins + 1)
        axes.hist(
            values[known], edges, density=True, color=_PALE, edgecolor="#888888", linewidth=0.5, label=plain(known)
        )
        for index, (key, each) in enumerate((k, v) for k, v in values.items() if k != known):
            truth = np.repeat([0, 1], [len(values[known]), len(each)])
            area = metrics.auroc(truth, np.concatenate([values[known], each]))
            color, style = _STYLES[index % len(_STYLES)]
            axes.hist(
                each,
                edges,
                density=True,
                histtype="step",
                color=color,
                linestyle=style,
                linewidth=1.8,
                label=f"{plain(key)}: AUROC {area:.3f}",
            )
        axes.set(title=plain(name), xlabel="uncertainty")
        axes.legend(frameon=False, fontsize=7, loc="upper right")
        axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
    grid[0][0].set_ylabel("density of examples")
    return figure


def uncertainty_maps(
    maps: Mapping[str, Any], extent: Sequence[float], points: Any = None, labels: Any = None
) -> Figure:
    """Draw the uncertainties of a model of two inputs over the plane, with the training points.

    Args:
        maps: by name ("total", "data", "knowledge"), (rows, columns) values on a grid, first row at the bottom.
        extent: left, right, bottom, top of the grid.
        points: (n, 2) training inputs, or None.
        labels: (n,) integer classes of the points, each with its own marker; or None.

    Returns:
        The figure: one panel and one scale per map.

    Raises:
        ValueError: if there is no map, or matplotlib is missing.

    Example:
        >>> figure = uncertainty_maps({"knowledge": [[0.0, 0.1], [0.2, 0.3]]}, (-1, 1, -1, 1))
        >>> figure.axes[0].get_title()
        'knowledge'
    """
    figure, grid = _panels("uncertainty_maps", len(maps), rows=1, width=3.4, height=3.2)
    for axes, (name, values) in zip(grid[0], maps.items(), strict=True):
        # A single hue from light to dark is also readable in grey.
        image = axes.imshow(
            np.asarray(values), origin="lower", extent=tuple(extent), cmap="Blues", vmin=0, aspect="auto"
        )
        axes.set(title=plain(name))
        if points is not None:
            places = np.asarray(points)
            kinds = np.zeros(len(places), int) if labels is None else np.asarray(labels)
            for kind in np.unique(kinds):
                own = places[kinds == kind]
                color, marker = _STYLES[1 + int(kind) % 4][0], "o^sDv"[int(kind) % 5]
                axes.scatter(*own.T, s=9, c=color, marker=marker, edgecolors=_INK, linewidths=0.3, label=f"{kind}")
        bar = figure.colorbar(image, ax=axes, shrink=0.85)
        bar.ax.tick_params(labelsize=7)
    return figure


def temperature_scaling(labels: Any, logits: Tensor, scaler: Any, *, num_bins: int = 15) -> Figure:
    """Draw a model's reliability before and after a fitted scaler, with the calibration error of each.

    Args:
        labels: (n,) integer classes of data not used to fit the scaler.
        logits: (n, classes).
        scaler: a fitted scaler of ``keras_distill.calibration``.
        num_bins: >= 1, bins of confidence.

    Returns:
        The figure: two reliability diagrams.

    Raises:
        ValueError: if the scaler is not fitted, shapes do not fit, or matplotlib is missing.

    Example:
        >>> from keras_distill.calibration import TemperatureScaler
        >>> figure = temperature_scaling([0, 1], [[4.0, 0.0], [4.0, 0.0]], TemperatureScaler(temperature=4.0))
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['before: ECE 48.2 %', 'after: ECE 23.1 %']
    """
    shown = {}
    for moment, outputs in (("before", np.asarray(logits)), ("after", np.asarray(scaler.scale(logits)))):
        found = metrics.expected_calibration_error(labels, outputs, num_bins=num_bins, from_logits=True)
        bins = metrics.reliability_bins(labels, outputs, num_bins=num_bins, from_logits=True)
        shown[f"{moment}: ECE {100 * found:.1f} %"] = bins
    return reliability_diagram(shown)
