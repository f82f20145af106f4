"""From a teacher and a budget to a student, its file and a report."""

import json

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from keras_distill import students
from keras_distill.cli import main

L = keras.layers


@pytest.fixture(scope="module")
def trained():
    pytest.importorskip("ai_edge_litert")
    keras.utils.set_random_seed(0)
    loaded = load_digits()
    x, y = (loaded.images / 16.0).astype("float32")[..., None], loaded.target.astype("int32")
    teacher = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(24, 3, activation="relu"),
            L.Conv2D(24, 3, activation="relu"),
            L.Flatten(),
            L.Dense(64, activation="relu"),
            L.Dense(10),
        ]
    )
    teacher.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(True))
    teacher.fit(x[:1400], y[:1400], epochs=5, verbose=0)
    return teacher, ((x[:1400], y[:1400]), (x[1400:], y[1400:]))


def test_every_step_is_measured_and_the_budget_met(trained):
    teacher, data = trained
    wanted = students.cost(teacher).parameters // 4
    made = students.shrink(teacher, data, students.Budget(parameters=wanted), epochs=2)
    assert [step.name for step in made.steps] == ["teacher", "build", "factorize", "quantize"]
    first, build, low, last = made.steps
    assert wanted < build.parameters < first.parameters
    assert low.parameters <= wanted
    assert last.file_bytes < first.file_bytes / 4
    assert first.latency_ratio == 1.0 and first.fidelity == 1.0
    logits = made.model.predict(data[1][0], verbose=0)
    assert last.accuracy == pytest.approx(float((logits.argmax(-1) == data[1][1]).mean()))
    assert last.accuracy > first.accuracy - 0.1
    assert len(made.litert) == last.file_bytes
    assert "quantize" in made.table()
    assert json.loads(made.to_json())["budget"] == {"parameters": wanted}


def test_the_command_writes_student_file_and_report(trained, tmp_path, capsys):
    teacher, _ = trained
    teacher.save(tmp_path / "teacher.keras")
    command = ["shrink", str(tmp_path / "teacher.keras"), "--data", "digits", "--parameters", "9000", "--epochs", "1"]
    assert main([*command, "--steps", "build", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "shrink.json").read_text())
    assert report["steps"][-1]["parameters"] <= 9000
    assert (tmp_path / "out" / "student.tflite").stat().st_size == report["steps"][-1]["file_bytes"]
    assert keras.saving.load_model(tmp_path / "out" / "student.keras").count_params() <= 9000
    assert "A smaller model of digits" in (tmp_path / "out" / "report.html").read_text()
    assert "build" in capsys.readouterr().out
    assert main(["shrink", str(tmp_path / "teacher.keras"), "--data", "digits"]) == 2
    assert "expected one of --latency, --parameters, --macs and --file-bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": ["quantize", "build"]}, r"shrink: expected steps in the order of build, factorize, quantize"),
        ({"steps": ["prune"]}, r"shrink: expected steps to be one of 'build', 'factorize', 'quantize', got prune"),
        ({"data": np.ones((3, 8, 8, 1))}, r"shrink: expected data.Data, or \(\(inputs, labels\), .*, got ndarray"),
        (
            {"data": ((np.ones((3, 8, 8)), np.zeros(3, int)),) * 2},
            r"shrink: expected data of shape \(None, 8, 8, 1\) for input .*, got \(1, 8, 8\)",
        ),
        (
            {"data": ((np.ones((3, 8, 8, 1)), np.zeros(2, int)),) * 2},
            r"shrink: expected as many labels as inputs, got 3 inputs and 2 labels",
        ),
        (
            {"data": ((np.ones((3, 8, 8, 1)), np.eye(3)),) * 2},
            r"shrink: expected one integer label for each example, got float64 labels of shape \(3, 3\)",
        ),
        (
            {"data": ((np.ones((3, 8, 8, 1)), np.array([0, 3, 10])),) * 2},
            r"shrink: expected labels from 0 to 9, the teacher's classes, got labels from 0 to 10",
        ),
        ({"rounds": 0}, r"shrink: expected rounds to be an integer >= 1, got 0"),
        ({"budget": 0.5}, r"shrink: expected budget to be a students.Budget, got 0.5"),
        ({"budget": students.Budget(parameters=20)}, r"expected a budget that some size meets: parameters <= 20"),
    ],
)
def test_bad_input_raises_a_clear_error(trained, change, text):
    teacher, data = trained
    options = {"data": data, "budget": students.Budget(parameters=5000), "steps": ["build"], **change}
    with pytest.raises(ValueError, match=text):
        students.shrink(teacher, **options)


def tiny():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((20,)), L.Dense(64, activation="relu", name="hidden"), L.Dense(3)])


def points():
    x = np.random.default_rng(0).normal(size=(64, 20)).astype("float32")
    return x, x[:, :3].argmax(-1)


def test_rounds_go_down_by_equal_factors_to_the_budget():
    pytest.importorskip("ai_edge_litert")
    teacher = tiny()
    whole = teacher.count_params()
    made = students.shrink(
        teacher, (points(), points()), students.Budget(parameters=whole // 4), ["build"], epochs=0, rounds=2
    )
    assert [step.name for step in made.steps] == ["teacher", "build 1", "build 2"]
    assert 0.96 * whole / 2 <= made.steps[1].parameters <= whole / 2 + 1
    assert 0.9 * whole / 4 <= made.steps[2].parameters <= whole // 4  # one channel is 2% of so small a model


def test_the_page_states_the_budget_the_result_and_steps_without_improvement(tmp_path):
    from keras_distill import report

    step = students.ShrinkStep("teacher", 0.9, None, 0.02, 1.0, 4000, 9000, 16000, 0.4, 1.0)
    built = students.ShrinkStep("build", 0.88, 0.6, 0.03, 0.95, 2000, 4000, 8000, 0.2, 0.5)
    last = students.ShrinkStep("quantize", 0.87, 0.87, 0.03, 0.94, 2000, 4000, 2000, 0.1, 0.25)
    shrunk = students.Shrunk(None, b"", (step, built, last), students.Budget(latency_ratio=0.5))
    text = report.write_shrink_page(shrunk, tmp_path / "report.html", title="<b>", notes=["One seed."]).read_text()
    assert "Asked for: at most 0.50 of the teacher&#x27;s time in float." in text
    assert "8.0 times smaller than the teacher&#x27;s, and it runs 4.0 times as fast, with 3.00 points of" in text
    assert "Training brought no accuracy after: quantize." in text
    assert "<h1>&lt;b&gt;</h1>" in text and "<p>One seed.</p>" in text
    assert '<svg role="img" aria-label="Steps"' in text


def test_zeros_make_a_smaller_file_but_not_a_faster_model():
    pytest.importorskip("ai_edge_litert")
    model = tiny()
    kernel = model.layers[0].get_weights()[0]
    limit = np.quantile(np.abs(kernel), 0.8)
    model.layers[0].set_weights([kernel * (np.abs(kernel) > limit), np.zeros(64)])
    found = students.sparsity(model)
    zeros = int((model.layers[0].get_weights()[0] == 0).sum())
    assert found.zeros == pytest.approx(zeros / (20 * 64 + 64 * 3))
    assert found.gzip_bytes < 0.6 * found.dense_gzip_bytes
    assert found.latency_ratio > 0.5  # zeros are multiplied like other numbers
    honest = students.Sparsity(0.9, 151_000, 102_000, 140_000, 1.0)
    assert str(honest) == (
        "90% zeros: a smaller file (102,000 bytes after gzip, 140,000 without zeros), not faster (1.00 of the time)"
    )


def test_zeros_of_a_model_without_kernels_are_refused():
    x = keras.Input((3,))
    model = keras.Model(x, L.BatchNormalization()(x), name="flat")
    with pytest.raises(ValueError, match=r"sparsity: expected a model with weights of two or more axes, got 'flat'"):
        students.sparsity(model)
