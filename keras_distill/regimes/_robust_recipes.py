"""The papers' ways to learn from a robust teacher, as ready regimes: ARD and RSLAD."""

from __future__ import annotations

import keras

from keras_distill.regimes._attacks import ProjectedGradient
from keras_distill.regimes._robust import AdversarialTraining


def ard(
    teacher: keras.Model,
    student: keras.Model,
    attack: ProjectedGradient,
    *,
    robust_weight: float = 1.0,
    temperature: float = 30.0,
    seed: int = 0,
) -> AdversarialTraining:
    """Return a regime in which moved examples are to get the teacher's answers to the clean ones (ARD).

    Choose it where a robust teacher can be had; compare it with ``AdversarialTraining`` alone.

    Formula: (1 - robust_weight) * CE(student(x), y) + robust_weight * temperature**2 * KL(teacher(x) || student(x')),
    x' moved against CE(student(x'), y).

    Args:
        teacher: a robust model.
        student: a built model.
        attack: what moves the examples.
        robust_weight: 0..1.
        temperature: > 0, no unit.
        seed: >= 0, of the attack's random start.

    Returns:
        The regime, not compiled; it needs labels.

    Raises:
        ValueError: as ``AdversarialTraining``.

    Example:
        >>> import keras
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> ard(teacher, student, ProjectedGradient(0.1)).robust
        'teacher'

    Reference:
        Goldblum, Fowl, Feizi, Goldstein, "Adversarially Robust Distillation", AAAI 2020, arXiv:1905.09747, eq. 4.
        Differs: the labels' part is at temperature 1.
    """
    return AdversarialTraining(
        student, attack, teacher, robust="teacher", robust_weight=robust_weight, temperature=temperature, seed=seed
    )


def rslad(
    teacher: keras.Model,
    student: keras.Model,
    attack: ProjectedGradient,
    *,
    robust_weight: float = 5.0 / 6.0,
    seed: int = 0,
) -> AdversarialTraining:
    """Return a regime that learns and attacks the teacher's soft answers everywhere, and no labels (RSLAD).

    Choose it where a robust teacher can be had, also without labels; compare it with ``AdversarialTraining`` alone.

    Formula: (1 - robust_weight) * KL(teacher(x) || student(x)) + robust_weight * KL(teacher(x) || student(x')), with x'
    moved against the second.

    Args:
        teacher: a robust model.
        student: a built model.
        attack: what moves the examples.
        robust_weight: 0..1.
        seed: >= 0, of the attack's random start.

    Returns:
        The regime, not compiled; it needs no labels and no loss.

    Raises:
        ValueError: as ``AdversarialTraining``.

    Example:
        >>> import keras
        >>> teacher, student = (keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in "ts")
        >>> rslad(teacher, student, ProjectedGradient(0.1)).attacked
        'teacher'

    Reference:
        Zi et al., "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better", ICCV 2021,
        arXiv:2108.07969, eq. 5-7. Differs: nothing.
    """
    return AdversarialTraining(
        student, attack, teacher,
        robust="teacher", clean="teacher", attacked="teacher", robust_weight=robust_weight, seed=seed,
    )  # fmt: skip
