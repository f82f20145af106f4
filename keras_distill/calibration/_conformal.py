"""Split conformal intervals: guaranteed coverage that assumes only exchangeable data."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import choice, error, number
from keras_distill._typing import Tensor

KINDS = ("absolute", "gaussian", "quantiles")


@keras.saving.register_keras_serializable(package="keras_distill")
class ConformalIntervals(keras.layers.Layer):
    """Layer from a regression's outputs to {"low", "high", "prediction"}, with fitted margins.

    Args:
        kind: as in ``SplitConformal``.
        margins: one number per output, or one for all.
        **kwargs: as in ``keras.layers.Layer``.
    """

    def __init__(self, kind: str, margins: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind = choice("ConformalIntervals", "kind", kind, KINDS)
        self.margins = [float(each) for each in np.atleast_1d(np.asarray(margins, "float64"))]

    def call(self, outputs: Any) -> dict[str, Any]:
        """Return the intervals, each (..., outputs)."""
        outputs = ops.cast(outputs, "float32")
        margin = ops.convert_to_tensor(np.asarray(self.margins, "float32"))
        if self.kind == "quantiles":
            low, high = outputs[..., 0], outputs[..., -1]
            middle = outputs[..., outputs.shape[-1] // 2] if outputs.shape[-1] % 2 else 0.5 * (low + high)
            margin = margin[0] if len(self.margins) == 1 else margin
            return {"low": low - margin, "high": high + margin, "prediction": middle}
        if self.kind == "gaussian":
            half = outputs.shape[-1] // 2
            outputs, margin = outputs[..., :half], margin * ops.exp(0.5 * outputs[..., half:])
        return {"low": outputs - margin, "high": outputs + margin, "prediction": outputs}

    def get_config(self) -> dict[str, Any]:
        """Return the config for ``from_config``."""
        return {**super().get_config(), "kind": self.kind, "margins": self.margins}


def conformal_scores(owner: str, kind: str, outputs: Any, labels: Any) -> np.ndarray:
    """Return the distance of each label from the model's prediction, (examples, outputs) float64.

    Args:
        owner: name shown in the error message.
        kind: as in ``SplitConformal``.
        outputs: the model's outputs.
        labels: (examples,) or (examples, outputs).

    Returns:
        The scores; an interval contains the label if its margin is at least the score.

    Raises:
        ValueError: if the shapes do not fit each other, or a number is not finite.
    """
    outputs, labels = np.asarray(outputs, "float64"), np.asarray(labels, "float64")
    labels = labels[:, None] if labels.ndim == 1 else labels
    parts = {"absolute": 1, "gaussian": 2}.get(kind)
    outputs = outputs[:, None] if outputs.ndim == 1 else outputs
    if kind == "quantiles":
        outputs = outputs[:, None] if outputs.ndim == 2 else outputs
        fits = outputs.ndim == 3 and outputs.shape[:2] == labels.shape and outputs.shape[-1] >= 2
    else:
        fits = outputs.shape == (len(labels), (parts or 1) * labels.shape[1])
    if not fits:
        got = f"outputs {outputs.shape} and labels {labels.shape}"
        raise error(owner, f"outputs and labels of kind {kind!r} that fit each other", got)
    if not (np.isfinite(outputs).all() and np.isfinite(labels).all()):
        raise error(owner, "finite outputs and labels", "NaN or infinity")
    if kind == "quantiles":
        return np.maximum(outputs[..., 0] - labels, labels - outputs[..., -1])
    if kind == "gaussian":
        mean, log_variance = np.split(outputs, 2, axis=1)
        return np.abs(labels - mean) * np.exp(-0.5 * log_variance)
    return np.abs(labels - outputs)


class SplitConformal:
    """Intervals that cover at least the nominal fraction of new labels, from held-out data (split conformal, CQR).

    If fitted on n examples used neither to train nor to select the model, the interval of a new, exchangeable example
    contains its label with a probability of at least ``coverage`` and at most ``coverage`` + 1 / (n + 1), on average
    over examples. With several outputs (horizons), each has its own margin and its own guarantee.

    Formula: margin = the ceil((n + 1) * coverage)-th smallest score. Scores: "absolute" |y - prediction|; "gaussian"
    |y - mean| / standard deviation; "quantiles" max(low - y, y - high).

    Args:
        coverage: between 0 and 1.
        kind: the model's output. "absolute": predictions (examples, outputs); "gaussian": means, then log-variances
            (``students.GaussianHead``); "quantiles": (examples, levels) or (examples, outputs, levels), the lowest
            first, the highest last.

    Raises:
        ValueError: if coverage is not between 0 and 1 or kind is unknown.

    Example:
        >>> conformal = SplitConformal(coverage=0.8).fit([[0.0]] * 4, [1.0, 2.0, 3.0, 4.0])
        >>> conformal.margins.tolist()  # the fourth of four: ceil(5 * 0.8)
        [4.0]

    Reference:
        Vovk et al., "Algorithmic Learning in a Random World", 2005; Lei et al., JASA 2018; Romano, Patterson, Candès,
        "Conformalized Quantile Regression", NeurIPS 2019, arXiv:1905.03222. Differs: nothing.
    """

    def __init__(self, coverage: float = 0.9, kind: str = "absolute") -> None:
        self.coverage = number("SplitConformal", "coverage", coverage, above=0.0, high=1.0 - 1e-9)
        self.kind = choice("SplitConformal", "kind", kind, KINDS)
        self.margins: np.ndarray | None = None

    def fit(self, outputs: Any, labels: Tensor) -> SplitConformal:
        """Choose the margins on held-out examples.

        Args:
            outputs: the model's outputs for them; see ``kind``.
            labels: (examples,) or (examples, outputs).

        Returns:
            This object, with ``margins`` of shape (outputs,).

        Raises:
            ValueError: if there are too few examples for the coverage, the shapes do not fit, or a number is not
                finite.
        """
        owner = "SplitConformal.fit"
        scores = conformal_scores(owner, self.kind, outputs, labels)
        count = len(scores)
        place = math.ceil((count + 1) * self.coverage - 1e-9)
        if place > count:
            needed = math.ceil(self.coverage / (1 - self.coverage) - 1e-9)
            raise error(owner, f"at least {needed} examples for a coverage of {self.coverage:g}", count)
        self.margins = np.sort(scores, axis=0)[place - 1]
        return self

    def layer(self) -> ConformalIntervals:
        """Return the layer that adds the fitted intervals to a model's outputs."""
        if self.margins is None:
            raise error("SplitConformal", "fitted margins", "none", "Call fit(outputs, labels) first")
        return ConformalIntervals(self.kind, self.margins)

    def intervals(self, outputs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return lower and upper bounds for a model's outputs, each (examples, outputs).

        Args:
            outputs: as in ``fit``.

        Raises:
            ValueError: if ``fit`` was not called.
        """
        outputs = np.asarray(outputs, "float32")
        outputs = outputs[:, None] if outputs.ndim == 1 else outputs
        found = self.layer()(outputs)
        low, high = (np.asarray(ops.convert_to_numpy(found[name])) for name in ("low", "high"))
        return (low, high) if low.ndim == 2 else (low[:, None], high[:, None])

    def wrap(self, student: keras.Model) -> keras.Model:
        """Append the intervals to a model: one Keras model, saved and exported like any other.

        Args:
            student: a functional or sequential model with one output of this kind.

        Returns:
            A model with outputs {"low", "high", "prediction"}.

        Raises:
            ValueError: if ``fit`` was not called, or the model has several outputs.
        """
        if len(student.outputs) != 1:
            raise error("SplitConformal.wrap", "a model with one output", f"{len(student.outputs)} outputs")
        inputs = student.inputs[0] if len(student.inputs) == 1 else student.inputs
        return keras.Model(inputs, self.layer()(student.outputs[0]), name=f"{student.name}_intervals")
