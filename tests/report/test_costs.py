"""Expected cost in the report: by hand, kept in JSON, shown only where costs were given."""

import keras
import numpy as np
import pytest

from keras_distill import metrics, report


def identity(classes=2):
    return keras.Sequential([keras.Input((classes,)), keras.layers.Activation("linear")], name="identity")


def test_the_cost_equals_the_metrics_and_is_restored_from_json():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 2)).astype("float32"), rng.integers(0, 2, 60)
    costs = {"false_positive": 1.0, "false_negative": 4.0}
    found = report.evaluate(identity(), (logits, labels), costs=costs)
    chance = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
    expected = metrics.decision_cost(labels, chance, **costs).cost
    assert found["identity"].expected_cost.mean == pytest.approx(expected, rel=1e-6)
    again = report.Report.from_json(found.to_json())
    assert again["identity"].expected_cost.mean == found["identity"].expected_cost.mean
    assert f"{expected:.4f}" in str(found) and "expected cost" in str(found)
    assert "expected cost" not in str(report.evaluate(identity(), (logits, labels)))


def test_costs_need_two_classes():
    with pytest.raises(ValueError, match=r"report\.evaluate: expected two classes with costs, got 3"):
        report.evaluate(
            identity(3),
            (np.eye(3, dtype="float32"), np.arange(3)),
            costs={"false_positive": 1.0, "false_negative": 1.0},
        )
