"""Selective prediction: how fast errors decrease when the least certain predictions are withheld."""

from __future__ import annotations

from typing import Any

import keras

from keras_distill._checks import choice, number
from keras_distill._typing import Tensor
from keras_distill.metrics._detection import auroc_of_groups
from keras_distill.metrics._examples import read_classes
from keras_distill.metrics._histogram import HistogramMetric, cell_sums, check_score, errors_and_scores
from keras_distill.metrics._risk_coverage import (
    generalized_risk,
    mean_risk,
    merged_risk,
    optimal_risk,
    rejection_ratio,
    risk_at,
)


class _SelectiveMetric(HistogramMetric):
    """Base: a histogram of uncertainty with the weight and the errors of each cell."""

    def __init__(self, score: str, from_logits: bool, name: str, dtype: Any) -> None:
        super().__init__(2, name=name, dtype=dtype)
        self.from_logits = bool(from_logits)
        self.score = check_score(type(self).__name__, score, self.from_logits)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor = None) -> None:
        """Add a batch."""
        examples = read_classes(type(self).__name__, y_true, y_pred, sample_weight)
        errors, scores = errors_and_scores(examples, self.score, self.from_logits)
        self.cells.assign_add(cell_sums(scores, examples.weights, errors))

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "score": self.score, "from_logits": self.from_logits}


@keras.saving.register_keras_serializable(package="keras_distill")
class AreaUnderRiskCoverage(_SelectiveMetric):
    """Area under the risk-coverage curve (AURC; E-AURC with ``excess``): error rate over the fraction kept.

    Choose it for one number that covers both the error rate and how well confidence ranks errors; ``excess`` isolates
    the ranking. ``AreaUnderGeneralizedRiskCoverage`` weights the fractions more evenly. Streams over a histogram of
    uncertainty with 0.5 MB of state: scores closer than 0.28 % count as equal. ``area_under_risk_coverage`` is exact.

    Formula: "mean": (1 / n) sum_i r_i, r_i the error rate of the i most certain, averaged over the orders of ties.
    "merged": trapezoid over the distinct uncertainties, from coverage 0 (fd-shifts, without its factor 1000).

    Args:
        score: "max_probability", "entropy", "margin" or "energy"; see ``uncertainty_score``.
        from_logits: False (as in Keras): ``y_pred`` are probabilities. True: logits, which also rank saturated outputs.
        convention: "mean" or "merged"; see the formula. Weights count as numbers of copies.
        excess: subtract the area of the best order of the same errors.
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> aurc = AreaUnderRiskCoverage()
        >>> aurc.update_state([0, 0], [[0.9, 0.1], [0.3, 0.7]])  # sure and right, less sure and wrong
        >>> print(f"{float(aurc.result()):.2f}")  # (0 + 1/2) / 2
        0.25

    Reference:
        Geifman, Uziel, El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", 2019,
        arXiv:1805.08206, section 2. Differs: ties are averaged instead of ordered at random.
    """

    def __init__(
        self,
        score: str = "max_probability",
        from_logits: bool = False,
        convention: str = "mean",
        excess: bool = False,
        name: str = "aurc",
        dtype: Any = None,
    ) -> None:
        super().__init__(score, from_logits, name, dtype)
        self.convention = choice(type(self).__name__, "convention", convention, ("mean", "merged"))
        self.excess = bool(excess)

    def value(self) -> Tensor:
        """Return the area."""
        weight, loss = self.cells[0], self.cells[1]
        area = mean_risk(weight, loss) if self.convention == "mean" else merged_risk(weight, loss)
        return area - optimal_risk(weight, loss, self.convention) if self.excess else area

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "convention": self.convention, "excess": self.excess}


@keras.saving.register_keras_serializable(package="keras_distill")
class AreaUnderGeneralizedRiskCoverage(_SelectiveMetric):
    """Area under the generalised risk-coverage curve (AUGRC): fraction of all inputs that are kept and wrong.

    Choose it over ``AreaUnderRiskCoverage`` when the few most certain examples should not dominate. Streams in the same
    way; ``area_under_generalized_risk_coverage`` is exact.

    Formula: integral over coverage c from 0 to 1 of errors among the most certain fraction c / n, linear between.

    Args:
        score: "max_probability", "entropy", "margin" or "energy"; see ``uncertainty_score``.
        from_logits: False (as in Keras): ``y_pred`` are probabilities. True: logits.
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> augrc = AreaUnderGeneralizedRiskCoverage()
        >>> augrc.update_state([0, 0], [[0.9, 0.1], [0.3, 0.7]])
        >>> print(f"{float(augrc.result()):.3f}")  # 0 up to coverage 1/2, then up to 1/2: a triangle of 1/2 x 1/2
        0.125

    Reference:
        Traub et al., "Overcoming Common Flaws in the Evaluation of Selective Classification Systems", 2024,
        arXiv:2407.01032, eq. 6. Differs: nothing.
    """

    def __init__(
        self, score: str = "max_probability", from_logits: bool = False, name: str = "augrc", dtype: Any = None
    ) -> None:
        super().__init__(score, from_logits, name, dtype)

    def value(self) -> Tensor:
        """Return the area."""
        return generalized_risk(self.cells[0], self.cells[1])


@keras.saving.register_keras_serializable(package="keras_distill")
class RiskAtCoverage(_SelectiveMetric):
    """Error rate of the most certain fraction of the inputs.

    Choose it when the fraction to be answered automatically is known. Streams as ``AreaUnderRiskCoverage`` does;
    ``risk_at_coverage`` is exact.

    Args:
        coverage: above 0, at most 1: fraction of the inputs that is kept, rounded up to a whole example.
        score: "max_probability", "entropy", "margin" or "energy"; see ``uncertainty_score``.
        from_logits: False (as in Keras): ``y_pred`` are probabilities. True: logits.
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> risk = RiskAtCoverage(0.5)
        >>> risk.update_state([0, 0], [[0.9, 0.1], [0.3, 0.7]])
        >>> print(float(risk.result()))
        0.0
    """

    def __init__(
        self,
        coverage: float = 0.8,
        score: str = "max_probability",
        from_logits: bool = False,
        name: str = "risk_at_coverage",
        dtype: Any = None,
    ) -> None:
        super().__init__(score, from_logits, name, dtype)
        self.coverage = number(type(self).__name__, "coverage", coverage, above=0.0, high=1.0)

    def value(self) -> Tensor:
        """Return the risk."""
        return risk_at(self.cells[0], self.cells[1], self.coverage)

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        return {**super().get_config(), "coverage": self.coverage}


@keras.saving.register_keras_serializable(package="keras_distill")
class PredictionRejectionRatio(_SelectiveMetric):
    """Prediction rejection ratio (PRR): how close rejection by uncertainty comes to rejecting exactly the errors.

    Choose it to compare uncertainties across models of different accuracy: 1 is an oracle, 0 is chance, below 0 is
    worse than chance. Papers report it in per cent. NaN if nothing or everything is wrong. Streams as
    ``AreaUnderRiskCoverage`` does; ``prediction_rejection_ratio`` is exact.

    Formula: (area random - area model) / (area random - area oracle) under errors kept / n over the fraction rejected.

    Args:
        score: "max_probability", "entropy", "margin" or "energy"; see ``uncertainty_score``.
        from_logits: False (as in Keras): ``y_pred`` are probabilities. True: logits.
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> prr = PredictionRejectionRatio()
        >>> prr.update_state([0, 0], [[0.9, 0.1], [0.3, 0.7]])  # the only error is the least certain
        >>> print(float(prr.result()))
        1.0

    Reference:
        Malinin, Mlodozeniec, Gales, "Ensemble Distribution Distillation", 2020, arXiv:1905.00076, section 4.
        Differs: curves are linear between examples, and the value is a fraction.
    """

    def __init__(
        self, score: str = "max_probability", from_logits: bool = False, name: str = "prr", dtype: Any = None
    ) -> None:
        super().__init__(score, from_logits, name, dtype)

    def value(self) -> Tensor:
        """Return the ratio."""
        return rejection_ratio(self.cells[0], self.cells[1])


@keras.saving.register_keras_serializable(package="keras_distill")
class FailureAUROC(_SelectiveMetric):
    """AUROC of detecting the model's errors by its uncertainty: P(an error is less certain than a correct prediction).

    Choose it for the ranking alone; it ignores the number of errors. Ties count one half. NaN if nothing or everything
    is wrong. Streams as ``AreaUnderRiskCoverage`` does; ``auroc`` is exact.

    Args:
        score: "max_probability", "entropy", "margin" or "energy"; see ``uncertainty_score``.
        from_logits: False (as in Keras): ``y_pred`` are probabilities. True: logits.
        name: name in the logs.
        dtype: dtype of the result; the sums are float64.

    Example:
        >>> failure = FailureAUROC()
        >>> failure.update_state([0, 0], [[0.9, 0.1], [0.3, 0.7]])
        >>> print(float(failure.result()))
        1.0
    """

    def __init__(
        self, score: str = "max_probability", from_logits: bool = False, name: str = "failure_auroc", dtype: Any = None
    ) -> None:
        super().__init__(score, from_logits, name, dtype)

    def value(self) -> Tensor:
        """Return the area under the ROC curve."""
        return auroc_of_groups(self.cells[0] - self.cells[1], self.cells[1])
