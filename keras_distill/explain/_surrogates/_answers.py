"""A teacher's answers on a table, and additional rows for the teacher to label."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_distill._checks import error
from keras_distill.explain._models import explained_model, logits_of, numeric_inputs


def table_of(owner: str, data: Any) -> np.ndarray:
    """Return a table (rows, columns) of float32, or raise if it is not one."""
    x = numeric_inputs(owner, data)
    if x.ndim != 2:
        advice = "Use students.SoftDecisionTree or explain.attributions for images"
        raise error(owner, "a table of shape (examples, columns)", f"shape {x.shape}", advice)
    return x


def log_probabilities(owner: str, teacher: Any, x: np.ndarray) -> np.ndarray:
    """Return a teacher's log-probabilities, (rows, classes) float64; one unit counts as two classes."""
    logits = logits_of(owner, explained_model(owner, teacher, gradients=False), x, 1024).astype("float64")
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def sampled_rows(x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return artificial rows: some columns from one row, the others from another, which keeps the marginals."""
    first, second = (x[rng.integers(len(x), size=count)] for _ in range(2))
    return np.where(rng.random(first.shape) < rng.random((count, 1)), first, second)


def wilson(successes: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95% interval of a proportion."""
    share, square = successes / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    reach = z * np.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return float(max(0.0, middle - reach)), float(min(1.0, middle + reach))
