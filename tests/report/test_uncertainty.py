"""Figures of uncertainty show the values of ``metrics``; the page has the risk-coverage curve."""

import keras
import numpy as np
import pytest

from keras_distill import metrics, report
from keras_distill.calibration import TemperatureScaler

RNG = np.random.default_rng(0)


def test_risk_coverage_shows_the_curve_and_its_area():
    errors, uncertainty = RNG.integers(0, 2, 300), RNG.normal(size=300)
    curve = metrics.risk_coverage_curve(errors, uncertainty)
    figure = report.risk_coverage({"one": curve, "two": metrics.risk_coverage_curve(errors, errors)})
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), curve[0])
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), curve[1])
    area = metrics.area_under_risk_coverage(errors, uncertainty)
    assert axes.get_legend().get_texts()[0].get_text() == f"one (AURC {area:.4f})"
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()  # distinguishable without colour
    with pytest.raises(ValueError, match="expected something to draw, got nothing"):
        report.risk_coverage({})


def test_detection_histograms_show_the_auroc():
    inside, outside = RNG.normal(size=200), RNG.normal(1.0, size=100)
    figure = report.detection_histograms({"model": {"test": inside, "letters": outside}}, num_bins=10)
    area = metrics.auroc(np.repeat([0, 1], [200, 100]), np.concatenate([inside, outside]))
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["test", f"letters: AUROC {area:.3f}"]
    bars = [patch for patch in figure.axes[0].patches if hasattr(patch, "get_height")]
    assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="expected scores of 'test' for 'model', got"):
        report.detection_histograms({"model": {"letters": outside}})


def test_uncertainty_maps_show_each_map_and_each_class():
    maps = {"data": RNG.uniform(size=(5, 7)), "knowledge": RNG.uniform(size=(5, 7))}
    points, labels = RNG.normal(size=(9, 2)), np.arange(9) % 3
    figure = report.uncertainty_maps(maps, (-1, 1, -2, 2), points, labels)
    for axes, (name, values) in zip(figure.axes, maps.items(), strict=False):
        assert axes.get_title() == name
        np.testing.assert_array_equal(axes.images[0].get_array(), values)
        assert len({tuple(kind.get_paths()[0].vertices.ravel()) for kind in axes.collections}) == 3  # three markers
        shown = np.concatenate([kind.get_offsets() for kind in axes.collections])
        np.testing.assert_array_equal(shown, np.concatenate([points[labels == kind] for kind in range(3)]))


def test_temperature_scaling_shows_both_errors():
    logits, labels = 4 * RNG.normal(size=(400, 3)), RNG.integers(0, 3, 400)
    scaler = TemperatureScaler(3.0)
    figure = report.temperature_scaling(labels, logits, scaler)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    for title, moment, outputs in zip(titles, ("before", "after"), (logits, logits / 3.0), strict=True):
        found = metrics.expected_calibration_error(labels, outputs, from_logits=True)
        assert title == f"{moment}: ECE {100 * found:.1f} %"


def test_the_page_and_the_json_have_coverage_and_risk(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Activation("linear")])
    logits, labels = RNG.normal(size=(500, 3)).astype("float32"), RNG.integers(0, 3, 500)
    found = report.evaluate({"model": [model, model]}, (logits, labels))
    coverage, risk = found["model"].risk_coverage
    assert len(coverage) <= 200
    uncertainty = np.asarray(metrics.uncertainty_score(logits, from_logits=True))
    whole = metrics.risk_coverage_curve(logits.argmax(1) != labels, uncertainty)
    assert coverage[-1] == 1.0
    np.testing.assert_allclose(risk, whole[1][np.searchsorted(whole[0], coverage - 1e-9)])
    again = report.Report.from_json(found.to_json())
    np.testing.assert_allclose(again["model"].risk_coverage, found["model"].risk_coverage)
    text = report.write_page(again, tmp_path / "report.html").read_text()
    assert "Do they know where they err?" in text
    assert 'aria-label="Coverage and risk"' in text
