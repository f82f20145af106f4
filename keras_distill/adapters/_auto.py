"""Chooses the adapter for two shapes, and describes the choice in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from keras_distill import _checks
from keras_distill.adapters._projections import Conv1x1, Dense
from keras_distill.adapters._sizes import AdaptiveAveragePool, AttentionPool, SequenceInterpolation


def auto(
    teacher_shape: Sequence[int | None], student_shape: Sequence[int | None]
) -> tuple[keras.layers.Layer | None, str, str]:
    """Choose the adapter that maps a student's features to a teacher's channels, from the two shapes alone.

    | student | teacher | adapter, on the student |
    |---|---|---|
    | vector | vector | ``Dense`` |
    | sequence | sequence | ``SequenceInterpolation`` if the lengths differ, ``Dense`` |
    | map | map | ``AdaptiveAveragePool`` if the student's is larger, ``Conv1x1`` |
    | sequence or map | vector | ``AttentionPool`` |
    | map | sequence | positions flattened to a sequence, then as for sequences |
    | sequence | map | steps arranged as a map, if the numbers agree, then as for maps |

    A student's smaller map keeps its size: the losses pool the teacher's.

    Args:
        teacher_shape: (batch, ..., channels), rank 2 to 4; None where unknown.
        student_shape: the same for the student.

    Returns:
        (adapter, side, reason): an unbuilt layer, or None if none is needed; "student"; one sentence.

    Raises:
        ValueError: if a number of channels is unknown, or no adapter maps one shape to the other.

    Example:
        >>> adapter, side, reason = auto((None, 4, 4, 64), (None, 8, 8, 16))
        >>> print(reason)
        student (None, 8, 8, 16) to teacher (None, 4, 4, 64): AdaptiveAveragePool((4, 4)), Conv1x1(64) on the student
    """
    teacher, student = tuple(teacher_shape), tuple(student_shape)
    if not (2 <= len(teacher) <= 4 and 2 <= len(student) <= 4) or teacher[-1] is None or student[-1] is None:
        expected = "shapes (batch, ..., channels) of rank 2 to 4 with known channels"
        raise _checks.error("adapters.auto", expected, f"{teacher} and {student}", "Build the adapter yourself")
    layers: list[keras.layers.Layer] = []
    said: list[str] = []
    here = _bring_to_rank(student, teacher, layers, said)
    if len(teacher) == len(here):
        _bring_to_size(here, teacher, layers, said)
        if here[-1] != teacher[-1]:
            layers.append(Conv1x1(teacher[-1]) if len(teacher) == 4 else Dense(teacher[-1]))
            said.append(f"{type(layers[-1]).__name__}({teacher[-1]})")
    what = f"{', '.join(said)} on the student" if said else "no adapter is needed"
    reason = f"student {student} to teacher {teacher}: {what}"
    if not layers:
        return None, "student", reason
    return layers[0] if len(layers) == 1 else keras.Sequential(layers), "student", reason


def _bring_to_rank(
    student: tuple[int | None, ...], teacher: tuple[int | None, ...], layers: list[keras.layers.Layer], said: list[str]
) -> tuple[int | None, ...]:
    """Append the layer that changes the student's rank to the teacher's, and return the new shape."""
    if len(student) == len(teacher):
        return student
    if len(teacher) == 2:
        layers.append(AttentionPool(teacher[-1]))
        said.append(f"AttentionPool({teacher[-1]})")
        return teacher
    target: tuple[int | None, ...] | None = None
    if len(student) == 4 and None not in student[1:3]:
        target = (student[1] * student[2], student[3])  # type: ignore[operator]
    elif len(student) == 3 and len(teacher) == 4 and None not in teacher[1:3]:
        if student[1] == teacher[1] * teacher[2]:  # type: ignore[operator]
            target = (teacher[1], teacher[2], student[2])
    if target is None:
        got = f"teacher {teacher} and student {student}"
        raise _checks.error("adapters.auto", "shapes that an adapter can join", got, "Tap another layer, or write one")
    layers.append(keras.layers.Reshape(target, dtype="float32"))
    said.append(f"Reshape({target})")
    return (student[0], *target)


def _bring_to_size(
    here: tuple[int | None, ...], teacher: tuple[int | None, ...], layers: list[keras.layers.Layer], said: list[str]
) -> None:
    """Append the layer that changes the student's positions to the teacher's, unless the losses do so."""
    if None in here[1:-1] or None in teacher[1:-1] or here[1:-1] == teacher[1:-1]:
        return
    if len(here) == 3:
        layers.append(SequenceInterpolation(teacher[1]))  # type: ignore[arg-type]
        said.append(f"SequenceInterpolation({teacher[1]})")
    elif any(own > other for own, other in zip(here[1:-1], teacher[1:-1], strict=True)):  # type: ignore[operator]
        size = (teacher[1], teacher[2])
        layers.append(AdaptiveAveragePool(size))  # type: ignore[arg-type]
        said.append(f"AdaptiveAveragePool({size})")
