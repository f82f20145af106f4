"""The report: its metrics against NumPy, SciPy and scikit-learn, its figures and page against its metrics."""

import dataclasses
import html.parser
import json
import os
import re
import shutil
import subprocess

import keras
import matplotlib.colors
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax
from sklearn.metrics import confusion_matrix, log_loss

from keras_distill import data, metrics, report
from keras_distill.terms import CrossLayerAttention


def linear(scale=1.0, name="linear", classes=4):
    """A model whose logits are its inputs times ``scale``, so that its predictions are known."""
    model = keras.Sequential([keras.Input((classes,)), keras.layers.Dense(classes, use_bias=False)], name=name)
    model.set_weights([scale * np.eye(classes, dtype="float32")])
    return model


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(5)
    return rng.normal(size=(240, 4)).astype("float32"), rng.integers(0, 4, 240)


@pytest.fixture(scope="module")
def students():
    return [linear(scale, f"student_{i}") for i, scale in enumerate((0.5, 1.0, -2.0))]


@pytest.fixture(scope="module")
def result(examples, students):
    return report.evaluate(
        {"teacher": linear(3.0, "teacher"), "student": students},
        examples,
        reference="teacher",
        class_names=["ant", "bee", "<b>cat</b>", "dog"],
        title="Insects & others",
        notes=["Half of them <i>bite</i>."],
        settings={"temperature": 2.0},
        histories={"student": [{"loss": [3.0, 2.0]}, {"loss": [5.0, 2.0]}]},
    )


def test_scores_are_those_of_numpy_scipy_and_scikit_learn(result, examples):
    inputs, labels = examples
    for name, scales in (("teacher", [3.0]), ("student", [0.5, 1.0, -2.0])):
        entry = result[name]
        for i, scale in enumerate(scales):
            logits = scale * inputs.astype("float64")
            probabilities = softmax(logits, axis=-1)
            assert entry.accuracy.values[i] == np.mean(logits.argmax(-1) == labels)
            nll = log_loss(labels, probabilities, labels=range(4))
            assert entry.negative_log_likelihood.values[i] == pytest.approx(nll, rel=1e-6)
            brier = np.mean(np.sum((probabilities - np.eye(4)[labels]) ** 2, axis=-1))
            assert entry.brier_score.values[i] == pytest.approx(brier, rel=1e-6)
            confidence, right = probabilities.max(-1), logits.argmax(-1) == labels
            bins = np.minimum((confidence * 15).astype(int), 14)
            gaps = [abs(np.sum(confidence[bins == b]) - np.sum(right[bins == b])) for b in range(15)]
            assert entry.expected_calibration_error.values[i] == pytest.approx(sum(gaps) / len(labels), abs=1e-6)


def test_confusion_and_reliability_are_summed_over_the_models_of_an_entry(result, examples):
    inputs, labels = examples
    answers = np.concatenate([(scale * inputs).argmax(-1) for scale in (0.5, 1.0, -2.0)])
    np.testing.assert_array_equal(result["student"].confusion, confusion_matrix(np.tile(labels, 3), answers))
    assert result["student"].reliability.weight.sum() == 3 * len(labels)
    assert result["teacher"].reliability.weight.sum() == len(labels)


def test_agreement_is_with_the_reference_and_not_of_the_reference(result, examples):
    answers = examples[0].argmax(-1)
    opposite = np.mean((-examples[0]).argmax(-1) == answers)
    assert result["student"].agreement.values == (1.0, 1.0, opposite)
    assert result["teacher"].agreement is None


def test_mean_and_spread_are_over_the_models(result):
    values = np.array(result["student"].brier_score.values)
    assert result["student"].brier_score.mean == pytest.approx(values.mean(), rel=1e-12)
    assert result["student"].brier_score.spread == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert result["teacher"].brier_score.spread is None


def test_size_is_that_of_the_file_without_optimizer_state(examples, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(50), keras.layers.Dense(4)])
    model.save(tmp_path / "plain.keras")
    before = report.evaluate({"m": model}, examples)["m"]
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*examples, verbose=0)
    after = report.evaluate({"m": model}, examples)["m"]
    assert before.num_parameters == after.num_parameters == 4 * 50 + 50 + 50 * 4 + 4
    model.save(tmp_path / "with_optimizer.keras")
    plain, full = ((tmp_path / f"{name}.keras").stat().st_size for name in ("plain", "with_optimizer"))
    assert full > 1.3 * plain
    assert before.size_bytes == pytest.approx(plain, rel=0.01)
    assert after.size_bytes == pytest.approx(plain, rel=0.01)


def test_speed_is_of_the_right_order(result, examples):
    slow = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3000), keras.layers.Dense(3000), keras.layers.Dense(4)]
    )
    both = report.evaluate({"slow": slow, "fast": linear()}, examples)
    assert both["slow"].milliseconds_per_example > 2 * both["fast"].milliseconds_per_example
    assert both["slow"].batch_size == 240  # fewer examples than a batch


def test_probabilities_give_the_same_report_as_their_logits(examples):
    inputs, labels = examples
    logits = report.evaluate({"m": linear()}, (inputs, labels))["m"]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Softmax()])
    probabilities = report.evaluate({"m": model}, (inputs, labels), from_logits=False)["m"]
    for score in ("accuracy", "negative_log_likelihood", "brier_score", "expected_calibration_error"):
        assert getattr(probabilities, score).mean == pytest.approx(getattr(logits, score).mean, rel=1e-5)


def test_data_may_come_as_arrays_examples_data_or_batches(examples):
    inputs, labels = examples
    split = data.Examples(inputs, labels)
    whole = data.Data("toy", {"test": split}, ("a", "b", "c", "d"), "here")
    batches = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(100)
    column = (inputs, labels[:, None])
    reports = [report.evaluate(linear(), each) for each in (examples, split, whole, batches, column)]
    losses = [each.entries[0].negative_log_likelihood.mean for each in reports]
    assert losses == [losses[0]] * 5
    assert reports[2].class_names == ("a", "b", "c", "d") and reports[0].class_names == ("0", "1", "2", "3")


def test_a_report_survives_json_unchanged_and_the_json_is_strict(result):
    text = result.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = report.Report.from_json(text)
    assert again.to_json() == text
    assert again["student"].accuracy == result["student"].accuracy
    np.testing.assert_array_equal(again["student"].confusion, result["student"].confusion)
    np.testing.assert_array_equal(again["student"].reliability.accuracy, result["student"].reliability.accuracy)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(models={}), "expected at least one model for each name"),
        (dict(models={"a": []}), "expected at least one model for each name"),
        (dict(models={"a": "model.keras"}), "expected a keras.Model as 'a', got str"),
        (dict(reference="techer"), r"expected reference to be one of the models \(nearest: 'teacher'\), got 'techer'"),
        (dict(labels=np.array([0, 4])), r"expected labels in 0\.\.3, got 0\.\.4"),
        (dict(labels=np.array([0, -1])), r"expected labels in 0\.\.3, got -1\.\.0"),
        (dict(labels=np.eye(4)[:2]), r"expected integer labels of shape \(examples,\).*labels\.argmax"),
        (dict(inputs=np.zeros((0, 4)), labels=np.zeros(0, int)), "expected at least one example"),
        (
            dict(inputs=np.zeros((3, 4)), labels=np.zeros(2, int)),
            "expected at least one example, and a label for each, got 3 inputs, 2 labels",
        ),
        (dict(class_names=["a", "b"]), "expected 4 class_names, got 2"),
        (dict(num_bins=0), "expected num_bins to be an integer >= 1, got 0"),
        (dict(batch_size=2.5), r"expected batch_size to be an integer >= 1, got 2\.5"),
    ],
)
def test_inconsistent_arguments_raise_a_clear_error(change, text):
    inputs, labels = change.pop("inputs", np.zeros((2, 4), "float32")), change.pop("labels", np.array([0, 1]))
    models = change.pop("models", {"teacher": linear()})
    with pytest.raises(ValueError, match=rf"report\.evaluate: {text}"):
        report.evaluate(models, (inputs, labels), **change)


def test_a_softmax_head_taken_for_logits_is_refused(examples):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Softmax()])
    with pytest.raises(ValueError, match=r"ends in softmax\. Pass from_logits=False"):
        report.evaluate(model, examples)


def test_models_of_different_class_counts_are_refused(examples):
    five = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    with pytest.raises(ValueError, match=r"same number of classes from every model, got \[4, 5\]"):
        report.evaluate({"a": linear(), "b": five}, examples)


def test_the_table_shows_mean_and_spread_of_each_quantity(result):
    header, rows = report.table(result)
    assert header == ["", "teacher", "student"]
    cells = {row[0]: row[1:] for row in rows}
    accuracy = 100 * np.array(result["student"].accuracy.values)
    assert cells["accuracy, % ↑"][1] == f"{accuracy.mean():.2f} ± {accuracy.std(ddof=1):.2f}"
    assert cells["agreement with teacher, % ↑"][0] == "–"
    assert cells["parameters"] == ["16", "16"]


def test_reliability_bars_dots_and_counts_are_the_bins(result):
    bins = result["student"].reliability
    upper, lower = report.reliability_diagram({"student": bins}).axes
    np.testing.assert_allclose([bar.get_height() for bar in upper.patches], np.nan_to_num(bins.accuracy))
    dots = next(line for line in upper.lines if line.get_label() == "mean confidence")
    np.testing.assert_allclose(dots.get_xdata(), bins.confidence)
    np.testing.assert_allclose([bar.get_height() for bar in lower.patches], bins.weight)
    assert sum(int(text.get_text()) for text in lower.texts) == bins.weight.sum()


def test_a_single_model_needs_no_name(result):
    figure = report.reliability_diagram(result["student"].reliability)
    assert len(figure.axes) == 2


def test_only_mistakes_are_coloured_by_their_share_of_the_true_class():
    figure = report.confusion_matrices({"a": [[9, 1], [0, 10]], "b": [[10, 0], [4, 6]]}, ["x", "y"])
    shares = [axes.images[0].get_array() for axes in figure.axes[:2]]
    assert shares[0][0, 1] == pytest.approx(0.1) and shares[1][1, 0] == pytest.approx(0.4)
    assert np.ma.getmaskarray(np.ma.masked_invalid(shares[0])).tolist() == [[True, False], [False, True]]
    assert [axes.images[0].norm.vmax for axes in figure.axes[:2]] == pytest.approx([0.4, 0.4])


def test_confusions_of_many_classes_are_drawn_without_text():
    figure = report.confusion_matrices({"a": np.eye(150, dtype=int)})
    assert list(figure.axes[0].texts) == []


def test_attention_between_layers_is_drawn_from_the_terms_values():
    term = CrossLayerAttention(["a", "b", "c"], ["x", "y"])
    term.build_from([keras.KerasTensor((None, 4, 4, 2))] * 3, [keras.KerasTensor((None, 4, 4, 2))] * 2)
    term._seen.assign([[0.7, 0.2, 0.1], [0.0, 0.25, 0.75]])
    axes = report.layer_attention({"run": term}).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.7, 0.2, 0.1], [0.0, 0.25, 0.75]], rtol=1e-6)
    assert [text.get_text() for text in axes.texts] == ["0.70", "0.20", "0.10", "0.00", "0.25", "0.75"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]


def test_curves_are_means_with_bands_from_least_to_greatest():
    figure = report.training_curves(
        {"a": [{"loss": [1.0, 3.0]}, {"loss": [2.0, 5.0, 9.0]}], "b": [{"accuracy": [0.5]}]}
    )
    loss, accuracy = figure.axes
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1.5, 4.0])
    band = loss.collections[0].get_paths()[0].vertices
    assert set(map(tuple, band)) >= {(1.0, 1.0), (1.0, 2.0), (2.0, 3.0), (2.0, 5.0)}
    assert accuracy.lines[0].get_ydata().tolist() == [0.5]


def test_line_styles_differ_as_well_as_colours():
    histories = {name: [{"loss": [1.0, 2.0]}] for name in "abcd"}
    lines = report.training_curves(histories).axes[0].lines
    assert len({line.get_linestyle() for line in lines}) == len({line.get_color() for line in lines}) == 4


DRAWN = [report.reliability_diagram, report.confusion_matrices, report.training_curves, report.layer_attention]


@pytest.mark.parametrize("draw", DRAWN)
def test_nothing_to_draw_is_an_error(draw):
    with pytest.raises(ValueError, match=rf"report\.{draw.__name__}: expected something to draw, got nothing"):
        draw({})


class Reader(html.parser.HTMLParser):
    """Collects what a browser would see: text, links, and whether tags are balanced."""

    empty = ("meta", "br", "link", "img", "use", "path")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.pointers, self.ids = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in self.empty:
            self.open.append(tag)
        self.note(attributes)

    def handle_startendtag(self, tag, attributes):
        self.note(attributes)

    def note(self, attributes):
        for name, value in attributes:
            self.pointers += [value] if name in ("src", "href", "xlink:href") else []
            self.ids += [value] if name == "id" else []

    def handle_endtag(self, tag):
        if tag not in self.empty:
            assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


@pytest.fixture(scope="module")
def page(result, tmp_path_factory):
    return report.write_page(result, tmp_path_factory.mktemp("page") / "report.html")


def test_the_page_shows_every_number_of_the_table_and_every_note(page, result):
    reader = Reader(page.read_text())
    assert reader.open == []
    _, rows = report.table(result)
    for cell in [cell for row in rows for cell in row] + [
        "Insects & others",
        "Half of them <i>bite</i>.",
        "temperature",
    ]:
        assert cell in reader.texts


def test_the_page_needs_nothing_else_and_runs_nothing(page):
    text = page.read_text()
    reader = Reader(text)
    assert len(set(reader.ids)) == len(reader.ids)
    elsewhere = [each for each in reader.pointers if each[1:] not in reader.ids]
    assert all(each.startswith("data:image/png;base64,") for each in elsewhere), elsewhere
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(reader.ids)
    assert "<script" not in text and "@import" not in text


def test_user_text_on_the_page_is_escaped(result, tmp_path):
    named = report.evaluate({"<script>alert(1)</script>": linear()}, (np.eye(4, dtype="float32"), np.arange(4)))
    text = report.write_page(named, tmp_path / "page.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_failed_page_keeps_the_old_one(result, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("the old one")
    broken = dataclasses.replace(result, entries=())
    with pytest.raises(ValueError, match=r"report\.table: expected at least one entry, got none"):
        report.write_page(broken, path)
    assert path.read_text() == "the old one" and os.listdir(tmp_path) == ["report.html"]


def test_the_same_report_gives_the_same_page_words(result, tmp_path):
    words = [Reader(report.write_page(result, tmp_path / "a.html").read_text()).texts for _ in range(2)]
    assert words[0] == words[1]


@pytest.mark.slow
def test_a_real_browser_draws_the_page(page, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None and "KERAS_DISTILL_CI" not in os.environ:
        pytest.skip("needs a Chromium browser; .ci/run installs one")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --hide-scrollbars --window-size=1200,2400"
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path}/profile", f"--screenshot={tmp_path}/page.png"]
    subprocess.run([*command, page.as_uri()], check=True, timeout=120, capture_output=True)
    pixels = np.asarray(keras.utils.load_img(tmp_path / "page.png")).reshape(-1, 3).astype(int)
    assert (pixels == 255).all(-1).mean() > 0.5  # a white page ...
    for color in ("#9ECAE1", "#D55E00", "#0072B2"):  # ... with the bars, the gaps and the first curve on it
        wanted = np.round(255 * np.array(matplotlib.colors.to_rgb(color)))
        assert (np.abs(pixels - wanted).max(-1) <= 2).sum() > 20, color


def test_bins_of_the_metric_and_of_the_report_are_the_same_bins(result, examples):
    inputs, labels = examples
    metric = metrics.ExpectedCalibrationError(from_logits=True)
    metric.update_state(labels, log_softmax(3.0 * inputs.astype("float64"), axis=-1).astype("float32"))
    np.testing.assert_array_equal(metric.bins.weight, result["teacher"].reliability.weight)
