"""A cross-validation in the report: paired differences, kept in the JSON and shown on the page."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from scipy import stats

from keras_distill import regimes, report

RNG = np.random.default_rng(0)
VALUES = {"alone": (RNG.random(60) < 0.6).astype(float), "<taught>": (RNG.random(60) < 0.8).astype(float)}
FOLDS = np.arange(60) % 3


def crossed():
    scores = {name: np.array([each[FOLDS == fold].mean() for fold in range(3)]) for name, each in VALUES.items()}
    return regimes.CrossValidation(scores, VALUES)


def measured(**more):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Activation("linear")])
    return report.evaluate({"model": model}, (RNG.normal(size=(8, 2)).astype("float32"), np.arange(8) % 2), **more)


def test_the_differences_are_those_of_paired_examples():
    found = report.comparison(crossed())
    assert (found.baseline, found.num_folds, found.num_examples) == ("alone", 3, 60)
    paired = VALUES["<taught>"] - VALUES["alone"]
    taught = found.methods[1]
    assert taught.difference == pytest.approx(paired.mean())
    assert taught.high == pytest.approx(stats.norm.interval(0.95, paired.mean(), stats.sem(paired))[1], abs=1e-4)
    assert report.comparison(crossed(), "<taught>").methods[0].difference == pytest.approx(-paired.mean())


def test_the_report_keeps_and_shows_it(tmp_path):
    made = measured(comparison=report.comparison(crossed()))
    again = report.Report.from_json(made.to_json())
    assert again.comparison == made.comparison
    page = made.save(tmp_path / "page.html").read_text()
    assert "minus alone" in page and "&lt;taught&gt;" in page and "<taught>" not in page
    assert "60 examples, each held out once in 3 folds" in page
    assert "minus alone" not in dataclasses.replace(made, comparison=None).save(tmp_path / "other.html").read_text()


@pytest.mark.parametrize("change", [{"baseline": "nobody"}, {"num_folds": -1}, {"methods": []}, {"more": 1}])
def test_an_altered_comparison_in_a_report_is_refused(change):
    fields = json.loads(measured(comparison=report.comparison(crossed())).to_json())
    fields["comparison"].update(change)
    with pytest.raises(ValueError, match="comparison that no report has"):
        report.Report.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: report.comparison({"alone": 0.5}), r"expected the result of regimes.cross_validate"),
        (lambda: report.comparison(crossed(), "allone"), r"a baseline among the methods \(nearest: 'alone'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
