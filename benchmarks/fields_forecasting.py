"""Does one student keep an ensemble's predictive distribution, and do its intervals have the stated coverage?

Regression: hourly bicycle hires (log scale) from season, hour, day and weather; an ensemble of five networks with a
mean and a variance each, trained on 2,000 rows; a student of one member's size learns the ensemble's mean and total
variance (``GaussianKL``) on those rows and on synthetic ones. "alone" is one member. Split conformal intervals are
fitted on 1,000 further rows. Series: the logarithm of the daily trading volume at the New York stock exchange, five
days ahead from the last ten; an ensemble of five, one student of its mixture's quantiles, conformalized on the thousand
days before the test: with fixed margins, with the last 500 known labels, and adaptively (rate 0.01, the default). The
members' epochs are chosen on the 1,000 rows, everything else was fixed in advance. The quick version takes one seed and
few epochs.
"""

from __future__ import annotations

import csv
import lzma
from typing import Any

from benchmarks import _harness, _resume

# isort: split
import keras
import numpy as np

from keras_distill import calibration, data, losses, metrics

CLAIM = "One student closes 60 % of the gap in NLL between a member and its ensemble; 90 % intervals cover 88 to 92 %."
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def table(name: str) -> dict[str, np.ndarray]:
    """Read a table; columns of numbers are converted."""
    with lzma.open(_harness.DATA / "finance_tabular" / f"{name}.csv.xz", "rt") as file:
        rows = list(csv.DictReader(file))
    columns = {}
    for key in rows[0]:
        column = np.array([row[key] for row in rows])
        try:
            columns[key] = column.astype("float32")
        except ValueError:
            columns[key] = column
    return columns


def network(shape: tuple[int, ...], outputs: int, units: int = 64) -> keras.Model:
    """Two hidden layers."""
    layers = [keras.layers.Flatten(), keras.layers.Dense(units, "relu"), keras.layers.Dense(units, "relu")]
    return keras.Sequential([keras.Input(shape), *layers, keras.layers.Dense(outputs)])


def fitted(x: Any, y: Any, outputs: int, loss: Any, epochs: int, seed: int) -> keras.Model:
    """Train with a cosine decay."""
    keras.utils.set_random_seed(seed)
    model = network(x.shape[1:], outputs)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-len(x) // 64))
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    return model


class Likelihood(keras.losses.Loss):
    """Negative log-likelihood of labels under means and log-variances."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return one value per example."""
        return losses.gaussian_likelihood(labels=y_true, student_outputs=y_pred, beta=0.5)


def nll(y: np.ndarray, outputs: np.ndarray) -> float:
    """Mean negative log-likelihood under one Gaussian."""
    mean, log_variance = np.split(outputs.astype("float64"), 2, axis=-1)
    each = 0.5 * (np.log(2 * np.pi) + log_variance + (y - mean) ** 2 / np.exp(log_variance))
    return float(each.mean())


def moments(members: list[np.ndarray]) -> np.ndarray:
    """Mean and log of the total variance of an ensemble of Gaussians."""
    means, log_variances = (np.stack(each, 1) for each in zip(*(np.split(m, 2, -1) for m in members), strict=True))
    parts = metrics.mixture_uncertainty(means, log_variances)
    return np.concatenate([parts.mean, np.log(parts.total)], -1).astype("float32")


def regression(seed: int, epochs: int, synthetic: int) -> dict[str, float]:
    """Bicycle hires: NLL of one member, the ensemble and the student; coverage of the student's intervals."""
    columns = table("islp_Bikeshare")
    y = np.log1p(columns.pop("bikers"))[:, None]
    for name in ("casual", "registered", "rownames", "day", "temp", "atemp"):
        columns.pop(name, None)
    columns["temp"] = table("islp_Bikeshare")["temp"]
    categorical = [name for name in ("season", "mnth", "hr", "weekday", "weathersit") if name in columns]
    order = np.random.default_rng(seed).permutation(len(y))
    train, calibrate, test = order[:2000], order[2000:3000], order[3000:]
    parts = [{key: column[rows] for key, column in columns.items()} for rows in (train, calibrate, test)]
    encoder = data.TableEncoder(parts[0], categorical=categorical)
    made = encoder(data.synthetic_rows(parts[0], synthetic, strength=0.2, seed=seed))
    x, x_calibrate, x_test = (encoder(part) for part in parts)
    # One member at several numbers of epochs, on held-out rows: too many overfit, which favours the ensemble.
    lengths = {each: nll(y[calibrate], fitted(x, y[train], 2, Likelihood(), each, 7).predict(x_calibrate, verbose=0))
               for each in (5, 10, 20)}  # fmt: skip
    members = [fitted(x, y[train], 2, Likelihood(), min(lengths, key=lengths.__getitem__), 100 * seed + m)
               for m in range(5)]  # fmt: skip

    def told(rows: np.ndarray) -> list[np.ndarray]:
        return [member.predict(rows, batch_size=4096, verbose=0) for member in members]

    transfer = np.concatenate([x, made])
    targets = moments(told(transfer))
    student = fitted(transfer, targets, 2, losses.GaussianKL(), epochs, 100 * seed + 50)
    single = float(np.mean([nll(y[test], outputs) for outputs in told(x_test)]))
    together = nll(y[test], moments(told(x_test)))
    found = student.predict(x_test, batch_size=4096, verbose=0)
    conformal = calibration.SplitConformal(0.9, "gaussian").fit(student.predict(x_calibrate, verbose=0), y[calibrate])
    low, high = conformal.intervals(found)
    crps = metrics.gaussian_crps(y[test], found[:, :1], np.exp(0.5 * found[:, 1:])).mean()
    distilled = nll(y[test], found)
    return {
        "nll_member": single,
        "nll_ensemble": together,
        "nll_student": distilled,
        "gap_closed": (single - distilled) / (single - together),
        "coverage": metrics.interval_coverage(y[test], low, high).coverage,
        "crps_student": float(crps),
    }


def forecasting(seed: int, epochs: int) -> dict[str, float]:
    """Trading volume: quantiles five days ahead; coverage before and after conformal calibration."""
    columns = table("islp_NYSE")
    series = np.stack([columns[name] for name in ("log_volume", "DJ_return", "log_volatility")], 1)
    series = (series - series[:4000].mean(0)) / series[:4000].std(0)
    windows = data.forecast_windows(series, history=10, horizons=5)
    train = windows.ends < 4000 - 5
    calibrate = (windows.ends >= 4000) & (windows.ends < 5000 - 5)
    test = windows.ends >= 5000
    x, y = windows.inputs, windows.targets
    members = [fitted(x[train], y[train], 10, Likelihood(), epochs, 100 * seed + m) for m in range(5)]
    both = [np.split(m.predict(x[train], batch_size=4096, verbose=0), 2, -1) for m in members]
    means, spread = np.stack([b[0] for b in both], -1), np.exp(0.5 * np.stack([b[1] for b in both], -1))
    quantiles = metrics.mixture_quantiles(means, spread, LEVELS).reshape(len(means), -1)
    student = fitted(x[train], quantiles, 25, "mse", epochs, 100 * seed + 50)

    def fan(rows: np.ndarray) -> np.ndarray:
        return np.sort(student.predict(rows, batch_size=4096, verbose=0).reshape(-1, 5, 5), -1)

    conformal = calibration.SplitConformal(0.9, "quantiles").fit(fan(x[calibrate]), y[calibrate])
    low, high = conformal.intervals(fan(x[test]))
    moving = {}
    for name, rate in (("window", 1e-9), ("adaptive", 0.01)):  # labels arrive with a delay of up to five days
        follower = calibration.AdaptiveConformal(0.9, "quantiles", rate=rate, window=500)
        ends = follower.fit(fan(x[calibrate]), y[calibrate]).follow(fan(x[test]), y[test], range(5))
        moving[f"coverage_{name}"] = metrics.interval_coverage(y[test], *ends).coverage
        moving[f"width_{name}"] = float(np.mean(ends[1] - ends[0]))
    late = np.arange(len(y[test])) >= len(y[test]) // 2
    moving["coverage_second_half"] = metrics.interval_coverage(y[test][late], low[late], high[late]).coverage
    plain = metrics.interval_coverage(y[test], fan(x[test])[..., 0], fan(x[test])[..., -1])
    score = metrics.quantile_score(y[test], fan(x[test]), LEVELS).mean()
    return {
        "coverage_plain": plain.coverage,
        "coverage": metrics.interval_coverage(y[test], low, high).coverage,
        "width": float(np.mean(high - low)),
        "quantile_score": float(score),
        **moving,
    }


def main() -> None:
    """Run the seeds and evaluate the means."""
    options = _harness.arguments(__doc__ or "")
    report = _harness.Report("fields_forecasting", CLAIM, options)
    seeds, epochs, synthetic = (3, 15, 8000) if options.full else (1, 3, 1000)
    run = _resume.Runs(options.out / f"fields_forecasting.{'full' if options.full else 'quick'}.runs.json")
    means = {}
    for name, one, count in (
        ("bicycle hires", lambda seed: regression(seed, epochs, synthetic), seeds),
        ("trading volume", lambda seed: forecasting(seed, max(2, epochs // 2)), seeds),
    ):
        found = [run(f"{name} {seed}", lambda seed=seed, one=one: one(seed)) for seed in range(count)]
        mean, spread = ({key: float(of([each[key] for each in found])) for key in found[0]} for of in (np.mean, np.std))
        report.add({"model": name, "seeds": count}, {"mean": mean, "spread": spread})
        means[name] = mean
    hires = means["bicycle hires"]
    closed = (hires["nll_member"] - hires["nll_student"]) / (hires["nll_member"] - hires["nll_ensemble"])
    report.verdict("gap in NLL closed (of the means)", closed, at_least=0.6)
    for name, mean in means.items():
        report.verdict(f"{name}: distance of the coverage from 90 %", abs(mean["coverage"] - 0.9), at_most=0.02)
    drifts = abs(means["trading volume"]["coverage_adaptive"] - 0.9)
    report.verdict("trading volume, adaptive: distance of the coverage from 90 %", drifts, at_most=0.02)
    report.write()
    run.finish()


if __name__ == "__main__":
    main()
