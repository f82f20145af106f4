"""Explains one answer of a teacher by a local linear model or by Kernel SHAP."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_distill._checks import choice, error, integer, number, optional
from keras_distill.explain._models import explained_model, logits_of, targets_of
from keras_distill.explain._surrogates._answers import table_of

_OWNER = "explain.local_surrogate"


@dataclasses.dataclass(frozen=True, eq=False)
class LocalExplanation:
    """Contributions of the columns of one row to the teacher's logit.

    Args:
        contributions: (columns,): slopes of the logit for ``"lime"``, shares of the difference from the background's
            mean logit for ``"kernel_shap"``.
        intercept: the constant to which the contributions are added.
        target: the explained class.
        fidelity: R**2 of the linear model on the weighted samples; NaN for ``"kernel_shap"``.
    """

    contributions: np.ndarray
    intercept: float
    target: int
    fidelity: float


def local_surrogate(
    teacher: Any,
    row: Any,
    background: Any,
    *,
    method: str = "lime",
    target: int | None = None,
    samples: int = 1000,
    width: float = 0.75,
    seed: int = 0,
) -> LocalExplanation:
    """Explain one answer of any teacher on a table, without gradients.

    Args:
        teacher: a Keras model or a teacher, with logits.
        row: (columns,), the row to explain.
        background: (examples, columns), typical rows; up to a hundred are enough for Kernel SHAP.
        method: ``"lime"`` (weighted ridge regression on normal samples around the row, with the background's standard
            deviations) or ``"kernel_shap"`` (by the library ``shap``).
        target: the class; None takes the predicted one.
        samples: >= 10, number of samples that the teacher labels; for Kernel SHAP the number of coalitions.
        width: > 0, width of the neighbourhood, in standard deviations times the root of the number of columns.
        seed: seed of the samples.

    Returns:
        The contributions.

    Raises:
        ValueError: if shapes do not fit, or ``shap`` is missing.

    Example:
        >>> import keras
        >>> teacher = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> teacher.set_weights([np.array([[2.0], [-1.0]])])
        >>> rows = np.random.default_rng(0).normal(size=(50, 2))
        >>> local_surrogate(teacher, rows[0], rows, target=0).contributions.round(1)
        array([ 2., -1.])

    Reference:
        Ribeiro, Singh, Guestrin, "Why Should I Trust You?" (LIME), KDD 2016, arXiv:1602.04938; Lundberg, Lee, "A
        Unified Approach to Interpreting Model Predictions", NeurIPS 2017, arXiv:1705.07874.
        Differs: columns stay continuous.
    """
    choice(_OWNER, "method", method, ("lime", "kernel_shap"))
    integer(_OWNER, "samples", samples, low=10)
    number(_OWNER, "width", width, above=0)
    rows = table_of(_OWNER, background)
    one = np.asarray(row, "float32")
    if one.shape != rows.shape[1:]:
        raise error(_OWNER, f"a row of {rows.shape[1]} columns", f"shape {one.shape}")
    known = explained_model(_OWNER, teacher, gradients=False)
    chosen = int(targets_of(_OWNER, target, logits_of(_OWNER, known, one[None]))[0])

    def ask(questions: Any) -> np.ndarray:
        return logits_of(_OWNER, known, np.asarray(questions, "float32"), 1024)[:, chosen].astype("float64")

    if method == "kernel_shap":
        with optional(_OWNER, "shap", "explain"):
            import shap
        before = np.random.get_state()
        np.random.seed(seed)  # the only source of randomness that this library uses
        try:
            found = shap.KernelExplainer(ask, rows).shap_values(one, nsamples=samples, silent=True)
        finally:
            np.random.set_state(before)
        return LocalExplanation(np.asarray(found, "float64"), float(ask(rows).mean()), chosen, float("nan"))
    scale = np.where(rows.std(0) > 0, rows.std(0), 1e-12).astype("float64")
    moves = np.random.default_rng(seed).standard_normal((samples, len(one)))
    moves[0] = 0
    weight = np.exp(-(moves**2).sum(-1) / (width**2 * len(one)))
    answers = ask(one + moves * scale)
    design = np.concatenate([moves, np.ones((samples, 1))], axis=1)
    weighted = design * weight[:, None]
    penalty = 1e-6 * np.eye(design.shape[1]) * weight.sum()
    solved = np.linalg.solve(weighted.T @ design + penalty, weighted.T @ answers)
    mean = np.average(answers, weights=weight)
    left = np.average((answers - design @ solved) ** 2, weights=weight)
    spread = np.average((answers - mean) ** 2, weights=weight)
    return LocalExplanation(solved[:-1] / scale, float(solved[-1]), chosen, float(1 - left / max(spread, 1e-300)))
