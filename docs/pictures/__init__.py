"""The pictures of the guides; each module writes some: ``python -m docs.pictures.measured`` and so on."""

import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
OURS, OTHER, WARM, GREEN = "#1b6ca8", "#8a949e", "#d9822b", "#3f8f5b"


def save(figure, name):
    """Write a figure as docs/pictures/<name>.png."""
    figure.savefig(HERE / f"{name}.png", dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    print("written", f"docs/pictures/{name}.png", flush=True)


def draw(functions):
    """Draw those whose names are on the command line, or all of them."""
    for function in functions:
        if not sys.argv[1:] or function.__name__ in sys.argv[1:]:
            figure = function()
            save(figure, function.__name__)


def bars(axis, names, values, label, colors=OURS, form="{:g}"):
    """Horizontal bars, the first on top, each with its value."""
    drawn = axis.barh(range(len(names)), values, 0.62, color=colors)
    axis.bar_label(drawn, [form.format(value) for value in values], padding=4)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.margins(x=0.16)
    axis.spines[["top", "right"]].set_visible(False)
