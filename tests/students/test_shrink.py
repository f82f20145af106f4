"""A teacher and a budget in, a student, its file and an honest report out."""

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
    assert "build" in capsys.readouterr().out
    assert main(["shrink", str(tmp_path / "teacher.keras"), "--data", "digits"]) == 2
    assert "expected one of --latency, --parameters, --macs and --file-bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": ["quantize", "build"]}, r"shrink: expected steps in the order of build, factorize, quantize"),
        ({"steps": ["prune"]}, r"shrink: expected steps to be one of 'build', 'factorize', 'quantize', got prune"),
        ({"data": np.ones((3, 8, 8, 1))}, r"shrink: expected data.Data, or \(\(inputs, labels\), .*, got ndarray"),
        ({"budget": 0.5}, r"shrink: expected budget to be a students.Budget, got 0.5"),
        ({"budget": students.Budget(parameters=20)}, r"expected a budget that some size meets: parameters <= 20"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(trained, change, text):
    teacher, data = trained
    options = {"data": data, "budget": students.Budget(parameters=5000), "steps": ["build"], **change}
    with pytest.raises(ValueError, match=text):
        students.shrink(teacher, **options)
