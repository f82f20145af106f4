"""The section of the page that compares the explanations of students and teacher.

Kept apart from ``_page.py``: a report without explanations has no such section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill import students
from keras_distill.report._explained import Explained, ShownExample
from keras_distill.report._figures import _panels, plain
from keras_distill.report._html import escaped, figure_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPLAINED_STYLE = """
.grid { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; }
.grid figure { flex: 1 1 19rem; max-width: 26rem; margin: 0; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
.wide svg { max-width: none !important; width: 56rem; }
.text { text-align: left !important; white-space: normal; }
td.when { min-width: 14rem; }
"""

_MEASURES = {
    "answers": "same answer",
    "errors": "teacher's errors made alike",
    "spearman": "attributions, signed rank correlation",
    "top_overlap": "overlap of the largest tenth",
    "ssim": "structural similarity of the maps",
    "flips": "smallest changes that flip both",
}
_BLUE, _RED = "#0072B2", "#D55E00"


def explanations(found: Sequence[Explained], class_names: Sequence[str]) -> list[str]:
    """Return the parts of the page for every student.

    Args:
        found: the explanations of ``evaluate(..., explain=True)``.
        class_names: the report's class names.

    Returns:
        HTML, one string per part.
    """
    parts: list[str] = []
    for number, each in enumerate(found):
        parts += [f"<h2>What did {escaped(each.name)} learn of the teacher’s reasons?</h2>", _measures(each)]
        if each.tree is not None:
            parts += ["<h3>Its tree</h3>", _tree(each.tree, class_names, number)]
        if each.rules:
            parts += ["<h3>Its answers as rules</h3>", _rules(each, class_names)]
        if each.examples:
            shown = [_example(one, class_names, f"example{number}-{place}") for place, one in enumerate(each.examples)]
            parts += ["<h3>Example by example</h3>", _legend(each), f'<div class="grid">{"".join(shown)}</div>']
    return parts


def _measures(each: Explained) -> str:
    rows = []
    for name, (student, error, floor, ceiling) in each.measures.items():
        spread = "" if error is None else f" ± {error:.3f}"
        top = "not measured" if ceiling is None else f"{ceiling:.3f}"
        rows.append(
            f'<tr><th scope="row">{escaped(_MEASURES.get(name, name))}</th><td>{floor:.3f}</td>'
            f"<td>{student:.3f}{spread}</td><td>{top}</td></tr>"
        )
    head = "".join(f'<th scope="col">{cell}</th>' for cell in ("", "floor", "student", "ceiling"))
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f"<p>On {each.num_examples} examples; attributions by {escaped(each.method)}, ± is the standard error. The "
        "floor is the same student untrained, the ceiling a second teacher from another seed. A number near its floor "
        "says nothing about what was learned.</p>"
    )


def _legend(each: Explained) -> str:
    return (
        "<p>Left the input, then the evidence for (red) and against (blue) the teacher’s answer, in the teacher and in "
        f"{escaped(each.name)}. The examples are chosen by rule, not by hand.</p>"
    )


def _example(one: ShownExample, class_names: Sequence[str], mark: str) -> str:
    names = [class_names[index] for index in (one.label, one.teacher_answer, one.student_answer)]
    text = (
        f"{one.rule.capitalize()}: true {names[0]}, teacher {names[1]}, student {names[2]}; "
        f"correlation of the maps {one.similarity:+.2f}."
    )
    path = f" Path: {'; '.join(one.path)}." if one.path else ""
    return figure_html(_example_figure(one), f"{mark} {text}", text + path)


def _example_figure(one: ShownExample) -> Figure:
    image = one.values.ndim == 3
    figure, grid = _panels("explanations", 3, rows=1, width=1.3, height=1.7 if image else 2.2)
    for axes, title in zip(grid[0], ("input", "teacher", "student"), strict=True):
        axes.set_title(title, fontsize=8)
        axes.set(xticks=[], yticks=[])
    if image:
        shown = one.values if one.values.shape[-1] == 3 else one.values.mean(-1)
        low, high = float(shown.min()), float(shown.max())
        grid[0][0].imshow((shown - low) / max(high - low, 1e-12), cmap="gray_r")
        for axes, each in zip(grid[0][1:], (one.teacher_map, one.student_map), strict=True):
            most = float(np.abs(each).max()) or 1.0
            axes.imshow(each, cmap="RdBu_r", vmin=-most, vmax=most)
        return figure
    size = np.abs(one.teacher_map) / (np.abs(one.teacher_map).max() or 1.0)
    size = size + np.abs(one.student_map) / (np.abs(one.student_map).max() or 1.0)
    columns = np.argsort(-size, kind="stable")[:6][::-1]
    for axes, each in zip(grid[0][1:], (one.teacher_map, one.student_map), strict=True):
        bars = each[columns]
        axes.barh(range(len(columns)), bars, color=[_RED if bar > 0 else _BLUE for bar in bars])
        axes.axvline(0, color="#222222", linewidth=0.6)
    grid[0][0].set_ylim(grid[0][1].get_ylim())
    for row, column in enumerate(columns):
        grid[0][0].text(0.02, row, f"x{column} = {one.values[column]:.3g}", fontsize=7, va="center")
    return figure


def _rules(each: Explained, class_names: Sequence[str]) -> str:
    rows = "".join(
        f'<tr><td class="text when">{escaped(when)}</td>'
        f'<td class="text">{escaped(_class_name(answer, class_names))}</td>'
        f"<td>{100 * share:.1f}%</td></tr>"
        for when, answer, share in each.rules
    )
    head = '<th scope="col">if</th><th scope="col" class="text">answer</th><th scope="col">examples</th>'
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"{table}<p>{escaped(each.rules_note)}</p>"


def _class_name(answer: str, class_names: Sequence[str]) -> str:
    known = {f"class {index}": name for index, name in enumerate(class_names)}
    return known.get(answer, answer)


def _tree(tree: Mapping[str, Any], class_names: Sequence[str], number: int) -> str:
    figure = students.tree_figure(students.TreePicture(**tree), class_names=[plain(name) for name in class_names])
    caption = (
        "Each picture is the filter of a node: red sends an example right, blue left. The width of a line is the share "
        "of the training examples that take it. Below the last level: the average answer there."
    )
    levels = students.TreePicture(**tree).levels
    label = f"tree{number} The upper {levels} levels of the soft decision tree"
    return f'<div class="scroll wide">{figure_html(figure, label, caption)}</div>'
