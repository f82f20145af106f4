"""Agreement of each student's explanations with its teacher's, kept in the report as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill import explain, students, teachers
from keras_distill._checks import error

_MOST, _MOST_CLASSES, _COLUMNS = 200, 10, 6


@dataclasses.dataclass(frozen=True, eq=False)
class ShownExample:
    """One example, explained by teacher and student side by side.

    Args:
        rule: the rule by which it was selected.
        label: its true class.
        teacher_answer: the teacher's class.
        student_answer: the student's class.
        similarity: signed rank correlation of the two maps, -1 to 1.
        values: the input, (height, width, channels) or (columns,).
        teacher_map: attributions of the teacher's answer, channels summed.
        student_map: the same for the student.
        path: sentences that describe the path through a soft tree.
    """

    rule: str
    label: int
    teacher_answer: int
    student_answer: int
    similarity: float
    values: np.ndarray
    teacher_map: np.ndarray
    student_map: np.ndarray
    path: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Explained:
    """Explanations of one student, compared with its teacher's.

    Args:
        name: name of the student's entry.
        method: method of the attributions.
        num_examples: number of compared examples.
        measures: name to student, standard error, floor and ceiling (None if not measured).
        examples: examples shown side by side.
        rules: (rule, answer, share) of a readable surrogate of the student, for tables.
        rules_note: fidelity of the rules.
        tree: the picture of a soft tree: ``filters``, ``distributions`` and ``shares``; None for other students.
    """

    name: str
    method: str
    num_examples: int
    measures: Mapping[str, tuple[float, float | None, float, float | None]]
    examples: tuple[ShownExample, ...] = ()
    rules: tuple[tuple[str, str, float], ...] = ()
    rules_note: str = ""
    tree: Mapping[str, Any] | None = None


def explained(
    owner: str,
    groups: Mapping[str, Sequence[keras.Model]],
    reference: str | None,
    inputs: np.ndarray,
    labels: np.ndarray,
) -> tuple[Explained, ...]:
    """Compare every student's explanations with the reference's, on the first examples.

    Args:
        owner: name shown in the error message.
        groups: models by name; the first of each is explained, and the reference's second is the ceiling.
        reference: the teacher's name.
        inputs: (examples, ...).
        labels: (examples,).

    Returns:
        One entry per student.

    Raises:
        ValueError: if there is no reference, no student, or a model cannot be explained.
    """
    if reference is None or len(groups) < 2:
        advice = "Name the teacher with reference="
        raise error(owner, "a reference and at least one student for explain=True", f"reference {reference!r}", advice)
    teacher, *others = groups[reference]
    x, y = inputs[:_MOST], labels[:_MOST]
    found = []
    for name, group in groups.items():
        if name == reference:
            continue
        student, pupil = group[0], _with_gradient(group[0])
        blind = any(isinstance(model, teachers.Teacher) for model in (teacher, pupil))
        method = "occlusion" if blind else "gradient"
        ceiling = others[0] if others else None
        measured = explain.agreement(teacher, pupil, x, ceiling=ceiling, method=method, labels=y)
        rules, note = _rules(student, inputs)
        found.append(
            Explained(
                name=name,
                method=method,
                num_examples=len(x),
                measures={
                    key: (each.student, each.error, each.floor, each.ceiling) for key, each in measured.measures.items()
                },
                examples=_examples(teacher, pupil, student, x, y, method),
                rules=rules,
                rules_note=note,
                tree=_tree(student),
            )
        )
    return tuple(found)


def _with_gradient(model: keras.Model) -> keras.Model:
    """Return the model; for a soft tree that follows one path, the same tree averaged over all paths."""
    if not isinstance(model, students.SoftDecisionTree) or model.inference == "mean":
        return model
    twin = students.SoftDecisionTree.from_config({**model.get_config(), "inference": "mean"})
    twin.build((None, *model.sizes))
    twin.set_weights(model.get_weights())
    return twin


def _examples(
    teacher: Any, pupil: Any, student: Any, x: np.ndarray, y: np.ndarray, method: str
) -> tuple[ShownExample, ...]:
    if x.ndim not in (2, 4):
        return ()
    answers = [np.asarray(model.predict(x, batch_size=256, verbose=0)).argmax(-1) for model in (teacher, student)]
    maps = [explain.attributions(model, x, method, target=answers[0]) for model in (teacher, pupil)]
    alike = explain.spearman(*maps)
    chosen: dict[int, str] = {}
    order = np.argsort(-alike, kind="stable")
    for index, rule in ((order[0], "most agreed"), (order[-1], "most opposed")):
        chosen.setdefault(int(index), rule)
    apart = np.flatnonzero(answers[0] != answers[1])
    if len(apart):
        chosen.setdefault(int(apart[0]), "first different answer")
    for kind in np.unique(y)[:_MOST_CLASSES]:
        free = [int(index) for index in np.flatnonzero(y == kind) if int(index) not in chosen]
        if free:
            chosen[free[0]] = "first of its class"
    paths = student.explain(x[list(chosen)]) if isinstance(student, students.SoftDecisionTree) else None
    return tuple(
        ShownExample(
            rule=rule,
            label=int(y[index]),
            teacher_answer=int(answers[0][index]),
            student_answer=int(answers[1][index]),
            similarity=float(alike[index]),
            values=np.asarray(x[index], "float64"),
            teacher_map=_flat_map(maps[0][index]),
            student_map=_flat_map(maps[1][index]),
            path=() if paths is None else _sentences(paths[place]),
        )
        for place, (index, rule) in enumerate(chosen.items())
    )


def _flat_map(array: np.ndarray) -> np.ndarray:
    return np.asarray(array.sum(-1) if array.ndim == 3 else array, "float64")


def _sentences(path: students.TreePaths) -> tuple[str, ...]:
    turns = [
        f"node {node}: {'right' if right else 'left'} with probability {probability:.2f}"
        for node, right, probability in zip(path.nodes, path.directions, path.probabilities, strict=True)
    ]
    return (*turns, f"leaf {path.leaf}, reached with probability {path.path_probability:.2f}")


def _rules(student: keras.Model, x: np.ndarray) -> tuple[tuple[tuple[str, str, float], ...], str]:
    """Return the rules of a small tree that imitates the student, for tables of at least 50 rows."""
    if x.ndim != 2 or len(x) < 50:
        return (), ""
    rows = x[:5000]
    if len(np.unique(np.asarray(student.predict(rows, batch_size=1024, verbose=0)).argmax(-1))) < 2:
        return (), "The student gives every example the same answer."
    made = explain.surrogate(student, rows, "tree", size=8)
    rules = sorted(made.rules(), key=lambda rule: -(rule.share or 0.0))
    lines = tuple((" and ".join(rule.conditions) or "always", rule.answer, float(rule.share or 0.0)) for rule in rules)
    low, value, high, floor = (
        f"{100 * getattr(made.fidelity, name):.1f}" for name in ("low", "value", "high", "floor")
    )
    note = f"These rules answer as the student does on {value}% [{low}, {high}] of the examples"
    return lines, f"{note} (one constant answer: {floor}%)."


def _tree(student: keras.Model) -> Mapping[str, Any] | None:
    if not isinstance(student, students.SoftDecisionTree):
        return None
    picture = student.picture()
    return {"filters": picture.filters, "distributions": picture.distributions, "shares": picture.shares}
