"""Figures of recorded results, for ``docs/benchmarks.md``: ``python -m benchmarks --page`` redraws them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

OURS, OTHER, PUBLISHED = "#1b6ca8", "#b0b7bf", "#d9822b"


def rows(kept: dict[str, Any], *keys: str) -> list[dict[str, Any]]:
    """Return the results that have all of these keys."""
    return [each for each in kept["results"] if all(key in each for key in keys)]


def hinton_mnist(kept: dict[str, Any], axes: Any) -> None:
    """Test errors after training on all images: ours and the published ones."""
    found = [each for each in rows(kept, "summary", "mean") if not each["summary"].startswith("3%")]
    found.sort(key=lambda each: -each["mean"])
    means, places = [each["mean"] for each in found], range(len(found))
    spreads = [each["sd"] if each["seeds"] > 1 else float("nan") for each in found]  # one seed has no spread
    bars = axes.barh(places, means, 0.6, xerr=spreads, color=OURS, capsize=3, label="here")
    axes.bar_label(bars, [f"{mean:g}" for mean in means], label_type="center", color="white")
    shown = [(i, each["published"]) for i, each in enumerate(found) if each.get("published")]
    axes.plot([value for _, value in shown], [i for i, _ in shown], "D", color=PUBLISHED, label="published (2015)")
    axes.set_yticks(places, [each["summary"] for each in found])
    axes.set_xlabel("test errors of 10,000")
    axes.legend(frameon=False)


def scaling(kept: dict[str, Any], axes: Any) -> None:
    """Step time along each curve, relative to its first point."""
    for curve in ("batch", "classes", "teachers", "terms"):
        points = [(each[curve], each["milliseconds"]) for each in rows(kept, "curve", curve, "milliseconds")]
        if points:
            first_x, first_y = points[0]
            axes.plot([x / first_x for x, _ in points], [y / first_y for _, y in points], "o-", label=curve)
    limits = axes.get_xlim()[1]
    axes.plot([1, limits], [1, limits], ":", color=OTHER, label="proportional")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("how many times as many")
    axes.set_ylabel("step time, first point = 1")
    axes.legend(frameon=False)


def soak(kept: dict[str, Any], axes: Any) -> None:
    """Memory and processor time during a long run, relative to their medians."""
    found = rows(kept, "epoch", "bytes", "cpu")
    epochs = [each["epoch"] for each in found]
    for key, label, color in (("bytes", "resident memory", OURS), ("cpu", "processor time per step", PUBLISHED)):
        values = [each[key] for each in found]
        middle = sorted(values)[len(values) // 2]
        axes.plot(epochs, [value / middle for value in values], "o-", color=color, label=label)
    axes.set_ylim(0, 2)
    axes.set_xlabel("thousands of steps")
    axes.set_ylabel("over the run's median")
    axes.legend(frameon=False)


def against_builtin(kept: dict[str, Any], axes: Any) -> None:
    """Epoch time and accuracy of each program."""
    found = rows(kept, "who")[::-1]
    colors = [OURS if each["who"].startswith("ours") else OTHER for each in found]
    bars = axes.barh([each["who"] for each in found], [each["epoch_seconds"] for each in found], color=colors)
    axes.bar_label(bars, [f"{100 * each['accuracy']:.2f}% right" for each in found], padding=4)
    axes.set_xlabel("seconds per epoch (test accuracy at the end beside it)")
    axes.margins(x=0.25)


def pytorch(kept: dict[str, Any], axes: Any) -> None:
    """Step time in both."""
    found = rows(kept, "losses")
    for offset, name, color in ((-0.2, "ours", OURS), (0.2, "pytorch", OTHER)):
        heights = [each[f"{name}_ms"] for each in found]
        axes.bar([i + offset for i in range(len(found))], heights, 0.38, color=color, label=name)
    axes.set_xticks(range(len(found)), [each["losses"] for each in found])
    axes.set_ylabel("milliseconds per step")
    axes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))


def regimes(kept: dict[str, Any], axes: Any) -> None:
    """Accuracy of every method on Fashion-MNIST compared with the same network trained alone."""
    others = ("chain", "500", "FitNet", "folds", "fusion", "exits untaught")
    found = [each for each in rows(kept, "way", "accuracy") if not each["way"].startswith(others)]
    alone = {each["way"]: each["accuracy"] for each in found if each["way"] in ("alone", "exits: the network alone")}
    found = [each for each in found if each["way"] not in alone][::-1]
    baselines = ("ensemble of", "label smoothing", "virtual teacher")
    colors = [OTHER if each["way"].startswith(baselines) else OURS for each in found]
    own = ["exits: the network alone" if each["way"].startswith("exits") else "alone" for each in found]
    gains = [each["accuracy"] - alone[name] for each, name in zip(found, own, strict=True)]
    spreads = [each["accuracy_sd"] for each in found]
    axes.barh([each["way"] for each in found], gains, xerr=spreads, color=colors, capsize=3)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("points of accuracy over the same network alone (grey: baselines)")


PLOTS: dict[str, Callable[[dict[str, Any], Any], None]] = {
    each.__name__: each for each in (hinton_mnist, against_builtin, pytorch, regimes, scaling, soak)
}


def draw(kept: dict[str, Any], folder: pathlib.Path) -> pathlib.Path | None:
    """Draw one benchmark's figure, if it has one.

    Args:
        kept: the content of its JSON file.
        folder: of the picture.

    Returns:
        The path of the figure, or None.
    """
    plot = PLOTS.get(kept["name"])
    if plot is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(7.0, 3.6), layout="constrained")
    plot(kept, axes)
    axes.spines[["top", "right"]].set_visible(False)
    path = folder / f"{kept['name']}.png"
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    return path
