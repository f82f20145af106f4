"""Diagrams, and curves computed by the package: ``python -m docs.pictures.drawn [name ...]``."""

import numpy as np
from matplotlib import pyplot as plt

from docs.pictures import GREEN, OTHER, OURS, WARM, draw
from keras_distill.schedules import Linear, WarmUp


def _canvas(width, height):
    figure, axis = plt.subplots(figsize=(width, height))
    axis.set(xlim=(0, 10 * width / 6), ylim=(0, 10 * height / 6), aspect="equal")
    axis.axis("off")
    return figure, axis


def _box(axis, x, y, text, color=OURS, width=2.0, height=0.8, filled=True):
    style = {
        "boxstyle": "round,pad=0.02,rounding_size=0.12",
        "lw": 1.5,
        "ec": color,
        "fc": color if filled else "white",
    }
    axis.add_patch(plt.matplotlib.patches.FancyBboxPatch((x - width / 2, y - height / 2), width, height, **style))
    axis.text(x, y, text, ha="center", va="center", color="white" if filled else "black", fontsize=9)


def _arrow(axis, start, end, color=OTHER, text="", curve=0.0, ends="-|>"):
    style = {"arrowstyle": ends, "color": color, "lw": 1.5, "connectionstyle": f"arc3,rad={curve}"}
    axis.annotate("", end, start, arrowprops={**style, "shrinkA": 2, "shrinkB": 2})
    if text:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.15)
        axis.text(*middle, text, ha="center", va="bottom", fontsize=8, color="#333333")


def regimes():
    """Six regimes: which model learns from which."""
    figure, panels = plt.subplots(2, 3, figsize=(9, 4.4))
    for axis in panels.flat:
        axis.set(xlim=(0, 6), ylim=(0, 4), aspect="equal")
        axis.axis("off")
    (plain, mutual, born), (chain, exits, mean) = panels
    titles = ["Distiller", "MutualLearning", "BornAgain", "AssistantChain", "DeepestExit", "Snapshot"]
    for axis, title in zip(panels.flat, titles, strict=True):
        axis.set_title(title, fontsize=10)

    _box(plain, 1.3, 2, "teacher", OTHER, 1.8)
    _box(plain, 4.7, 2, "student", OURS, 1.8)
    _arrow(plain, (2.2, 2), (3.8, 2))

    for x, y, name in ((1.2, 0.9, "peer 1"), (4.8, 0.9, "peer 2"), (3, 3.2, "peer 3")):
        _box(mutual, x, y, name, OURS, 1.5)
    for start, end in (((2.0, 0.9), (4.0, 0.9)), ((1.5, 1.35), (2.5, 2.75)), ((4.5, 1.35), (3.5, 2.75))):
        _arrow(mutual, start, end, ends="<|-|>")

    for x, name in ((0.9, "born 0"), (3, "born 1"), (5.1, "born 2")):
        _box(born, x, 2, name, OURS, 1.3)
    _arrow(born, (1.6, 2), (2.3, 2))
    _arrow(born, (3.7, 2), (4.4, 2))

    for x, name, size, color in (
        (0.9, "teacher", 1.6, OTHER),
        (3, "assistant", 1.2, GREEN),
        (5.1, "student", 0.8, OURS),
    ):
        _box(chain, x, 2, name, color, 1.55, size)
    _arrow(chain, (1.7, 2), (2.2, 2))
    _arrow(chain, (3.8, 2), (4.3, 2))
    _arrow(chain, (1.0, 2.9), (5.0, 2.5), curve=-0.25)
    chain.text(3, 3.5, 'guides="all"', ha="center", fontsize=8)

    for x, name in ((1.1, "block"), (3, "block"), (4.9, "block")):
        _box(exits, x, 0.9, name, OTHER, 1.3)
    for x, name, color in ((1.1, "exit", OURS), (3, "exit", OURS), (4.9, "deepest", GREEN)):
        _box(exits, x, 2.5, name, color, 1.35, 0.7)
        _arrow(exits, (x, 1.3), (x, 2.15))
    _arrow(exits, (1.75, 0.9), (2.35, 0.9))
    _arrow(exits, (3.65, 0.9), (4.25, 0.9))
    _arrow(exits, (4.9, 2.9), (3.1, 2.9), GREEN, curve=0.5)
    _arrow(exits, (4.9, 2.9), (1.2, 2.9), GREEN, curve=0.35)

    _box(mean, 1.3, 2, "moving\naverage", GREEN, 1.8, 1.1)
    _box(mean, 4.7, 2, "student", OURS, 1.8)
    _arrow(mean, (2.2, 2.2), (3.8, 2.2), text="predictions")
    _arrow(mean, (3.8, 1.7), (2.2, 1.7))
    mean.text(3, 1.2, "weights", ha="center", fontsize=8, color="#333333")
    figure.tight_layout()
    return figure


def bert_to_small():
    """Every other block is copied; three things are compared."""
    figure, axis = _canvas(7, 4.3)
    for block in range(6):
        _box(axis, 2, 1 + block, f"block {block + 1}", OTHER, 2.2, 0.7)
    for block in range(3):
        _box(axis, 9, 1 + 2 * block, f"block {block + 1}", OURS, 2.2, 0.7)
        _arrow(axis, (3.1, 1 + 2 * block), (7.9, 1 + 2 * block), text="copied, then trained" if block == 1 else "")
    axis.text(2, 0.2, "teacher", ha="center", fontsize=10)
    axis.text(9, 0.2, "student", ha="center", fontsize=10)
    axis.text(5.5, 6.75, "soft targets + masked words + cosine of the last states", ha="center", fontsize=9)
    _arrow(axis, (3.1, 6), (7.9, 5.3), WARM, curve=-0.15)
    return figure


def write_your_own():
    """Where the four extension points act in a step."""
    figure, axis = _canvas(8, 3.4)
    _box(axis, 1.4, 2.8, "batch", OTHER, 1.8, filled=False)
    _box(axis, 4.2, 4.2, "Teacher.listen", GREEN, 2.6)
    _box(axis, 4.2, 1.4, "student", OTHER, 2.6, filled=False)
    _box(axis, 7.7, 2.8, "term.values", OURS, 2.4)
    _box(axis, 7.7, 4.9, "loss.values", WARM, 2.4)
    _box(axis, 11.6, 2.8, "one update", OTHER, 2.2, filled=False)
    _box(axis, 11.6, 0.8, "Callback", "#7a5195", 2.2)
    for start, end in (
        ((2.3, 3.1), (2.9, 4.0)),
        ((2.3, 2.5), (2.9, 1.6)),
        ((5.5, 4.0), (6.5, 3.1)),
        ((5.5, 1.6), (6.5, 2.5)),
        ((8.9, 2.8), (10.5, 2.8)),
    ):
        _arrow(axis, start, end)
    _arrow(axis, (7.7, 3.2), (7.7, 4.5), ends="<|-|>")
    _arrow(axis, (11.6, 2.4), (11.6, 1.2), text="")
    axis.text(11.8, 1.75, "between epochs", fontsize=8, va="center")
    return figure


def schedules():
    """Temperatures and weights as functions of the step."""
    figure, axis = plt.subplots(figsize=(6, 3))
    steps = np.arange(101)
    curves = {
        "Linear(8, 1, num_steps=60)": (Linear(8.0, 1.0, num_steps=60), OURS),
        "WarmUp(4, num_steps=40)": (WarmUp(4.0, num_steps=40), WARM),
    }
    for name, (schedule, color) in curves.items():
        axis.plot(steps, [float(schedule(step)) for step in steps], color=color, label=name, lw=2)
    axis.set(xlabel="step", ylabel="value", ylim=(0, 8.5))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def many_tasks():
    """Teacher annealing: the weights of teachers and labels."""
    figure, axis = plt.subplots(figsize=(6, 2.6))
    steps = np.linspace(0, 1, 50)
    axis.stackplot(steps, 1 - steps, steps, colors=[OTHER, OURS], labels=["teachers", "labels"])
    axis.text(0.2, 0.35, "teachers", color="white", fontsize=11)
    axis.text(0.7, 0.6, "labels", color="white", fontsize=11)
    axis.set(xlabel="fraction of the training steps", ylabel="weight", xlim=(0, 1), ylim=(0, 1))
    return figure


def private():
    """Epsilon against the number of released labels, for three noise levels."""
    import dp_accounting
    from dp_accounting import rdp

    figure, axis = plt.subplots(figsize=(6, 3))
    counts = np.unique(np.geomspace(1, 1000, 25).astype(int))
    for noise, color in ((10.0, WARM), (20.0, OURS), (40.0, GREEN)):
        answer = dp_accounting.GaussianDpEvent(noise / np.sqrt(2))
        found = [rdp.RdpAccountant().compose(answer, int(count)).get_epsilon(1e-5) for count in counts]
        axis.plot(counts, found, color=color, label=f"answer_noise={noise:g}", lw=2)
    axis.axhline(8, color=OTHER, ls=":")
    axis.text(1, 8.3, "epsilon 8", color="#555555", fontsize=9)
    axis.set(xlabel="released labels", ylabel="epsilon at delta 1e-5", ylim=(0, 20))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def text():
    """A mean over positions with and without padding."""
    figure, axis = _canvas(7, 2.2)
    sentence = ["a", "good", "film", "[PAD]", "[PAD]", "[PAD]"]
    for place, word in enumerate(sentence):
        padding = word == "[PAD]"
        _box(axis, 1.3 + 1.8 * place, 2.5, word, OTHER if padding else OURS, 1.6, 0.8, filled=not padding)
        axis.text(1.3 + 1.8 * place, 1.6, "0" if padding else "1", ha="center", fontsize=10)
    axis.text(5.8, 0.6, "loss = sum over unmasked positions / 3, not / 6", ha="center", fontsize=10)
    return figure


def small_models():
    """From a teacher to a small student: the four ways, and where they meet."""
    figure, axis = _canvas(8, 3.2)
    _box(axis, 1.6, 2.7, "teacher", OTHER, 2.0, 1.4)
    ways = ("narrow: from_teacher", "low rank: factorize", "fewer bits: quantization_aware", "another network")
    for place, way in enumerate(ways):
        _box(axis, 6.4, 4.5 - 1.2 * place, way, OURS, 4.4)
        _arrow(axis, (2.7, 2.9 - 0.15 * place), (4.1, 4.5 - 1.2 * place))
        _arrow(axis, (8.7, 4.5 - 1.2 * place), (10.3, 2.9 - 0.15 * place))
    _box(axis, 11.6, 2.7, "distil, then\nmeasure", GREEN, 2.4, 1.2)
    return figure


if __name__ == "__main__":
    draw([regimes, bert_to_small, write_your_own, schedules, many_tasks, private, small_models, text])
