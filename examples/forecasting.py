"""Distil an ensemble's forecasts into the quantiles of one student, with conformal intervals of guaranteed coverage.

The series is synthetic: a daily cycle with varying noise. Five networks predict a mean and a variance for each of six
horizons; the student predicts five quantiles for each. Run (1 minute; ``--smoke``: less): ``python
examples/forecasting.py``.
"""

import argparse

import keras
import numpy as np

from keras_distill import calibration, data, losses, metrics

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
HORIZONS = 6


def series(steps: int, seed: int = 0) -> np.ndarray:
    """A cycle of 24 steps with autocorrelated noise, whose amplitude has a cycle of 60."""
    rng = np.random.default_rng(seed)
    noise = np.zeros(steps)
    for step in range(1, steps):
        noise[step] = 0.6 * noise[step - 1] + rng.normal()
    time = np.arange(steps)
    return np.sin(2 * np.pi * time / 24) + 0.3 * noise * (1.2 + np.sin(2 * np.pi * time / 60))


class Likelihood(keras.losses.Loss):
    """Negative log-likelihood of labels under means and log-variances."""

    def call(self, y_true, y_pred):
        """Return one value per example."""
        return losses.gaussian_likelihood(labels=y_true, student_outputs=y_pred, beta=0.5)


def network(history: int, units: int, outputs: tuple[int, ...]) -> keras.Model:
    """A network with one hidden layer on a history."""
    layers = [keras.layers.Flatten(), keras.layers.Dense(units, "relu"), keras.layers.Dense(int(np.prod(outputs)))]
    return keras.Sequential([keras.Input((history, 1)), *layers, keras.layers.Reshape(outputs)])


def main() -> None:
    """Train the ensemble and the student; measure CRPS and coverage on the end of the series."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    steps, epochs, members = (600, 3, 2) if options.smoke else (6000, 15, 5)
    windows = data.forecast_windows(series(steps), history=48, horizons=HORIZONS, times=np.arange(steps))
    bounds = int(0.6 * steps), int(0.8 * steps)  # the targets of one part end before those of the next begin
    train = windows.ends < bounds[0] - HORIZONS
    calibrate = (windows.ends >= bounds[0]) & (windows.ends < bounds[1] - HORIZONS)
    test = windows.ends >= bounds[1]
    x, y = windows.inputs, windows.targets
    forecasts = []
    for seed in range(members):
        keras.utils.set_random_seed(seed)
        model = network(48, 64, (2 * HORIZONS,))
        model.compile(keras.optimizers.Adam(2e-3), Likelihood())
        model.fit(x[train], y[train], epochs=epochs, verbose=0)
        forecasts.append(np.split(model.predict(x, batch_size=2048, verbose=0), 2, axis=-1))
    means, spread = np.stack([m for m, _ in forecasts], -1), np.exp(0.5 * np.stack([v for _, v in forecasts], -1))
    quantiles = metrics.mixture_quantiles(means, spread, LEVELS)
    keras.utils.set_random_seed(99)
    student = network(48, 32, (HORIZONS, len(LEVELS)))
    student.compile(keras.optimizers.Adam(2e-3), "mse")
    student.fit(x[train], quantiles[train], epochs=2 * epochs, verbose=0)
    fan = np.sort(student.predict(x, batch_size=2048, verbose=0), axis=-1)
    conformal = calibration.SplitConformal(0.9, "quantiles").fit(fan[calibrate], y[calibrate])
    low, high = conformal.intervals(fan[test])
    for name, found in (("ensemble", quantiles[test]), ("student", fan[test])):
        score = metrics.quantile_score(y[test], found, LEVELS).mean()
        covered = metrics.interval_coverage(y[test], found[..., 0], found[..., -1])
        print(f"{name:9} quantile score {score:.4f}, 90 % intervals cover {100 * covered.coverage:.1f} %")
    covered = metrics.interval_coverage(y[test], low, high)
    print(f"conformal                          90 % intervals cover {100 * covered.coverage:.1f} %")
    for horizon in range(HORIZONS):
        each = metrics.interval_coverage(y[test][:, horizon], low[:, horizon], high[:, horizon])
        print(f"  {horizon + 1} steps ahead: {100 * each.coverage:.1f} %, width {each.width:.2f}")


if __name__ == "__main__":
    main()
