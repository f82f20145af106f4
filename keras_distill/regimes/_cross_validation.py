"""Cross-validation of whole methods on examples they have not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error
from keras_distill._typing import Structure
from keras_distill.regimes._folds import arrays_of, fingerprints, stratified_folds


@dataclasses.dataclass(frozen=True)
class CrossValidation:
    """Held-out results of several methods on the same folds.

    Attributes:
        scores: method to (folds,), the mean score of each fold.
        values: method to (examples,), the score of each example while it was held out.
    """

    scores: dict[str, np.ndarray]
    values: dict[str, np.ndarray]

    def mean(self, method: str) -> float:
        """Return the mean score over folds."""
        return float(self.scores[method].mean())

    def spread(self, method: str) -> float:
        """Return the standard deviation over folds (n - 1 in the denominator)."""
        return float(self.scores[method].std(ddof=1))

    def difference(self, method: str, other: str) -> tuple[float, float, float]:
        """Return the mean paired difference over examples, and its 95% interval.

        Args:
            method: the method.
            other: the method whose score is subtracted.

        Returns:
            (mean, low, high). The interval is mean -+ 1.96 standard errors of the paired differences: it covers the
            choice of examples, not that of training runs.
        """
        paired = self.values[method] - self.values[other]
        mean, error_of = paired.mean(), paired.std(ddof=1) / np.sqrt(len(paired))
        return float(mean), float(mean - 1.96 * error_of), float(mean + 1.96 * error_of)

    def __str__(self) -> str:
        """Return a table of means and spreads."""
        width = max(map(len, self.scores))
        return "\n".join(f"{each:<{width}}  {self.mean(each):.4f} +- {self.spread(each):.4f}" for each in self.scores)


def cross_validate(
    methods: Mapping[str, Callable[[], keras.Model]],
    data: Structure,
    num_folds: int = 5,
    *,
    fit_arguments: Mapping[str, Any] | None = None,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    seed: int = 0,
) -> CrossValidation:
    """Train and score whole methods on the same stratified folds, holding each example out once.

    Args:
        methods: name to a function that returns a compiled model, ``Distiller`` or regime to fit. Its teacher must not
            have seen ``data``, or must be trained inside the function.
        data: (x, y) of arrays with integer labels, or a finite ``tf.data.Dataset`` of such batches.
        num_folds: 2 to the number of examples; each class needs as many examples.
        fit_arguments: arguments of each ``fit``.
        score: maps (outputs, labels) of held-out examples to one number each, higher is better; None: whether the
            largest output is the label.
        seed: >= 0, seed of the folds and of every training.

    Returns:
        Means, spreads and paired differences.

    Raises:
        ValueError: as ``cross_fit``, or if there is no method.
    """
    owner = "cross_validate"
    if not isinstance(methods, Mapping) or not methods:
        raise error(owner, "a dictionary of methods", methods)
    x, y = arrays_of(owner, data)
    judge = score or (lambda outputs, labels: (outputs.argmax(-1) == labels).astype("float64"))
    folds = stratified_folds(y, num_folds, seed=seed, groups=fingerprints(x), owner=owner)
    values = {name: np.zeros(len(x)) for name in methods}
    for fold in range(num_folds):
        held = folds == fold
        for name, make in methods.items():
            keras.utils.set_random_seed(seed + fold)
            trainer = make()
            if not isinstance(trainer, keras.Model) or not trainer.compiled:
                raise error(owner, f"method {name!r} to return a compiled keras.Model", trainer)
            trainer.fit(x[~held], y[~held], **(fit_arguments or {}))
            student = getattr(trainer, "student", trainer)
            values[name][held] = judge(np.asarray(student.predict(x[held], verbose=0)), y[held])
    scores = {
        name: np.array([each[folds == fold].mean() for fold in range(num_folds)]) for name, each in values.items()
    }
    return CrossValidation(scores, values)
