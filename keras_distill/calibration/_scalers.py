"""Scaling of logits: by one temperature, or by a factor and an offset per class."""

from __future__ import annotations

import warnings
from typing import Any, Self

import keras
import numpy as np

from keras_distill._checks import error, number
from keras_distill._typing import Tensor
from keras_distill.calibration._base import Scaler, fitting_data, nll, scipy_optimize, softmax
from keras_distill.calibration._layers import TemperatureScaling, VectorScaling

_PACKAGE = "keras_distill"


@keras.saving.register_keras_serializable(package=_PACKAGE)
class TemperatureScaler(Scaler):
    """Temperature scaling: divides the logits by one number, chosen to minimise the NLL on held-out data.

    Choose it first: it cannot overfit, and accuracy, ranking of classes and AUROC between classes do not change. It
    corrects over- and under-confidence as a whole, not per class. Exact to 1e-12: the problem is convex in 1 / T and is
    solved by bracketing, in float64.

    Args:
        temperature: > 0, a known temperature, so that ``fit`` is not needed; None if it is to be fitted.
        bounds: smallest and largest temperature; the default suits logits of any usual size. If every prediction is
            right (or none better than chance), the best temperature is 0 (or infinite); the bound is then used, with a
            warning that says which.

    Attributes:
        temperature: the temperature.
        nll_before: mean NLL of the fitting data, in nats, at temperature 1.
        nll_after: the same at ``temperature``; never larger.

    Example:
        >>> logits, labels = [[2.0, 0.0]] * 4, [0, 0, 0, 1]  # 88 % sure, right 3 times of 4
        >>> scaler = TemperatureScaler().fit(logits, labels)
        >>> print(f"{scaler.temperature:.4f}")  # 2 / log 3
        1.8205

    Reference:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599, section 4.2.
        Differs: solved to convergence instead of 50 steps of L-BFGS.
    """

    def __init__(self, temperature: float | None = None, bounds: tuple[float, float] = (0.01, 10000.0)) -> None:
        low, high = (number("TemperatureScaler", "bounds", bound, above=0.0) for bound in bounds)
        if not low <= 1.0 <= high:
            raise error("TemperatureScaler", "bounds on either side of 1", bounds)
        self.bounds = (low, high)
        self.temperature = 1.0
        if temperature is not None:
            self.temperature = number("TemperatureScaler", "temperature", temperature, above=0.0)
            self._fitted = True
        self.nll_before = self.nll_after = float("nan")

    def fit(self, logits: Tensor, labels: Tensor, *, sample_weight: Tensor = None) -> Self:
        """Fit the temperature.

        Args:
            logits: (..., classes), of held-out data; (n,) or (n, 1) for a head of one logit.
            labels: (...,) class ids, or one-hot rows.
            sample_weight: (...,) or None.

        Returns:
            This scaler.

        Raises:
            ValueError: if shapes do not fit, there is nothing finite to fit, or scipy is missing.
        """
        optimize = scipy_optimize("TemperatureScaler")
        z, y, w = fitting_data("TemperatureScaler", logits, labels, sample_weight)
        wanted = np.sum(w * z[np.arange(len(z)), y])

        def slope(log_temperature: float) -> float:
            """Return the derivative of the NLL by 1 / T: mean expected logit minus mean logit of the label."""
            p = softmax(z / np.exp(log_temperature))
            return float(np.sum(w[:, None] * np.where(p > 0, p * np.where(p > 0, z, 0.0), 0.0)) - wanted)

        low, high = np.log(self.bounds)
        if slope(low) <= 0.0 or slope(high) >= 0.0:
            if slope(low) == 0.0 == slope(high):
                self.temperature, why = 1.0, "the logits of each row are equal, so that no temperature changes anything"
            elif slope(low) <= 0.0:
                self.temperature = self.bounds[0]
                why = "nearly every prediction is right, so that the best is 0: give held-out data that include errors"
            else:
                self.temperature = self.bounds[1]
                why = "the logits are too large for the bounds, or no better than chance: give wider bounds"
            warnings.warn(
                f"TemperatureScaler: no best temperature inside {self.bounds}, took {self.temperature:g}; {why}.",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            self.temperature = float(np.exp(optimize.brentq(slope, low, high, xtol=1e-13, rtol=1e-14)))
        self.nll_before, self.nll_after = nll(z, y, w), nll(z / self.temperature, y, w)
        self._fitted = True
        return self

    def layer(self) -> keras.layers.Layer:
        """Return a new ``TemperatureScaling``."""
        return TemperatureScaling(self.temperature, name="temperature_scaling")

    def get_config(self) -> dict[str, Any]:
        """Return the configuration, including the temperature if it is fitted."""
        return {"temperature": self.temperature if self._fitted else None, "bounds": list(self.bounds)}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class VectorScaler(Scaler):
    """Vector scaling: a factor and an offset for each class's logit, chosen to minimise the NLL on held-out data.

    Choose it over ``TemperatureScaler`` if over-confidence differs between classes and there are a few hundred held-out
    examples per class. Accuracy may change. The problem is convex and solved by L-BFGS in float64.

    Args:
        factors: (classes,), known factors; None if they are to be fitted.
        offsets: (classes,), known offsets; None if they are to be fitted.
        penalty: >= 0, weight of (squared distance of the factors from their mean + squared offsets), which is added to
            the NLL and pulls towards one temperature.

    Attributes:
        factors: (classes,), float64.
        offsets: (classes,), float64, of mean zero.
        nll_before: mean NLL of the fitting data, in nats, unscaled.
        nll_after: the same, scaled; never larger.

    Example:
        >>> logits, labels = [[0.0, 0.0]] * 4, [0, 0, 0, 1]  # class 0 in 3 of 4
        >>> offsets = VectorScaler().fit(logits, labels).offsets
        >>> print(f"{offsets[0] - offsets[1]:.3f}")  # log 3
        1.099

    Reference:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, arXiv:1706.04599, section 4.2.
        Differs: the optional penalty.
    """

    def __init__(self, factors: Any = None, offsets: Any = None, penalty: float = 0.0) -> None:
        self.penalty = number("VectorScaler", "penalty", penalty, low=0.0)
        if (factors is None) != (offsets is None):
            raise error("VectorScaler", "factors and offsets together", "only one of them")
        self.factors = np.ones(0) if factors is None else np.asarray(factors, float)
        self.offsets = np.zeros(0) if offsets is None else np.asarray(offsets, float)
        self._fitted = factors is not None
        self.nll_before = self.nll_after = float("nan")

    def fit(self, logits: Tensor, labels: Tensor, *, sample_weight: Tensor = None) -> Self:
        """Fit factors and offsets.

        Args:
            logits: (..., classes), of held-out data, finite.
            labels: (...,) class ids, or one-hot rows.
            sample_weight: (...,) or None.

        Returns:
            This scaler.

        Raises:
            ValueError: if shapes do not fit, logits are not finite, or scipy is missing.
        """
        optimize = scipy_optimize("VectorScaler")
        z, y, w = fitting_data("VectorScaler", logits, labels, sample_weight)
        if not np.isfinite(z).all():
            raise error("VectorScaler", "finite logits", "-inf", "Use TemperatureScaler")
        classes = z.shape[1]
        answers = np.eye(classes)[y]

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            factors, offsets = flat[:classes], flat[classes:]
            scaled = z * factors + offsets
            slope = w[:, None] * (softmax(scaled) - answers)
            apart = factors - factors.mean()
            value = nll(scaled, y, w) + self.penalty * (apart @ apart + offsets @ offsets)
            down = [(slope * z).sum(0) + 2 * self.penalty * apart, slope.sum(0) + 2 * self.penalty * offsets]
            return value, np.concatenate(down)

        start = np.concatenate([np.ones(classes), np.zeros(classes)])
        found = optimize.minimize(
            objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9}
        )
        if np.abs(found.x).max() > 1e4 or not (found.success or np.abs(found.jac).max() < 1e-5):
            warnings.warn(
                f"VectorScaler: no minimum reached ({found.message}). Give more held-out data or a penalty.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.factors, self.offsets = found.x[:classes], found.x[classes:] - found.x[classes:].mean()
        self.nll_before, self.nll_after = nll(z, y, w), nll(z * self.factors + self.offsets, y, w)
        self._fitted = True
        return self

    def layer(self) -> keras.layers.Layer:
        """Return a new ``VectorScaling``."""
        return VectorScaling(self.factors, self.offsets, name="vector_scaling")

    def get_config(self) -> dict[str, Any]:
        """Return the configuration, including factors and offsets if they are fitted."""
        fitted = self._fitted
        return {
            "factors": self.factors.tolist() if fitted else None,
            "offsets": self.offsets.tolist() if fitted else None,
            "penalty": self.penalty,
        }
