"""serve_check, and the commands keras-distill export and serve-check, on real files."""

import argparse
import json
import shutil

import keras
import numpy as np
import pytest

from keras_distill import export
from keras_distill.cli import _export, _serve_check
from keras_distill.export._serve_check import read_parity
from tests.formats import needs_to_write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """student.keras, inputs.npz with labels, and the student exported with warm-up requests."""
    pytest.importorskip("tensorflow_serving")
    folder = tmp_path_factory.mktemp("work")
    keras.utils.set_random_seed(0)
    student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)], name="tiny")
    student.save(folder / "student.keras")
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    np.savez(folder / "inputs.npz", x=x, labels=np.arange(40) % 3)
    export.saved_model(student, folder / "served", check_inputs=x, warmup_batch_sizes=(1, 4), temperature=2.0)
    return folder


def run(*arguments):
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    _export.add_parser(commands)
    _serve_check.add_parser(commands)
    options = parser.parse_args([str(argument) for argument in arguments])
    options.run(options)


def test_serve_check_of_a_base_path(folder):
    checked = export.serve_check(folder / "served", repeats=5, batch_sizes=(1, 3))
    assert checked.path == folder / "served" / "1"
    assert set(checked.signatures) == {"serving_default"}
    assert checked.warmup_records == 2
    assert checked.num_examples == 8
    assert set(checked.parity) == {"logits", "probabilities"} and max(checked.parity.values()) < 1e-6
    assert set(checked.latency_ms) == {1, 3}
    assert all(t["median"] <= t["p90"] <= t["p99"] for t in checked.latency_ms.values())
    text = checked.text()
    assert "input  x: float32 (any, 4)" in text and "output probabilities: float32 (any, 3)" in text


def test_serve_check_against_the_student(folder):
    student = export.load_student(folder / "student.keras")
    data = np.load(folder / "inputs.npz")
    checked = export.serve_check(
        folder / "served" / "1",
        student=student,
        check_inputs=data["x"],
        check_labels=data["labels"],
        repeats=3,
        batch_sizes=(1,),
    )
    assert checked.num_examples == 40 and max(checked.parity.values()) < 1e-6  # the temperature comes from the card
    accuracy = (student(data["x"]).numpy().argmax(-1) == data["labels"]).mean()
    assert checked.quality["accuracy"] == checked.quality["accuracy of the student"] == accuracy


def test_serve_check_detects_another_student(folder):
    other = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"serve_check: expected the export to agree with the student within"):
        export.serve_check(folder / "served", student=other, repeats=3)


def test_recorded_predictions_equal_the_students(folder):
    feeds, expected, tolerance = read_parity(folder / "served" / "1")
    student = export.load_student(folder / "student.keras")
    logits = student(feeds["x"]).numpy()
    np.testing.assert_allclose(expected["logits"], logits, atol=1e-6)
    np.testing.assert_allclose(expected["probabilities"], keras.ops.softmax(logits / 2), atol=1e-6)
    assert tolerance == 1e-4


def test_serve_check_detects_changed_weights(folder, tmp_path):
    broken = tmp_path / "m" / "1"
    shutil.copytree(folder / "served" / "1", broken)
    file = broken / "assets.extra" / "parity_check.npz"
    content = dict(np.load(file))
    content["outputs/logits"] = content["outputs/logits"] + 0.01
    np.savez(file, **content)
    with pytest.raises(
        ValueError, match=r"expected 'logits' to agree with the Keras student within .* got a difference"
    ):
        export.serve_check(broken, repeats=2)
    for damage in (b"", b"PK\x03\x04 damaged", file.read_bytes()[:200]):
        file.write_bytes(damage)
        with pytest.raises(ValueError, match=r"expected a parity_check\.npz written by an export"):
            export.serve_check(broken, repeats=2)
    np.savez(file, **{"inputs/x": np.zeros((2, 4), "float32"), "outputs/logits": np.zeros((3, 3), "float32")})
    with pytest.raises(ValueError, match="with other content"):
        export.serve_check(broken, repeats=2)
    file.unlink()
    assert "nothing to compare with" in export.serve_check(broken, repeats=2).text()


class Batchy(keras.layers.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


def test_an_example_that_depends_on_its_batch_is_reported(tmp_path):
    student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3), Batchy()])
    exported = export.saved_model(student, tmp_path)
    with pytest.raises(ValueError, match=r"expected '.*' of an example not to depend on its batch"):
        export.serve_check(exported, repeats=2)


def test_wrong_arguments_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="expected a SavedModel, or a directory with numbered versions of one, got"):
        export.serve_check(tmp_path)
    with pytest.raises(ValueError, match="expected a student to compare with on check_inputs, got None"):
        export.serve_check(folder / "served", check_inputs=np.zeros((1, 4)))
    with pytest.raises(ValueError, match="expected repeats to be an integer >= 1, got 0"):
        export.serve_check(folder / "served", repeats=0)


def test_command_saved_model_then_serve_check(folder, tmp_path, capsys):
    base = tmp_path / "serving" / "tiny"
    arguments = ["export", folder / "student.keras", "--to", "saved_model", "--out", base]
    options = ["--inputs", folder / "inputs.npz", "--labels", "a,b,c", "--uncertainty", "--warmup", "1,2", "--examples"]
    run(*arguments, *options, "--serving-files")
    shown = capsys.readouterr().out
    assert "compared on 40 examples" in shown and "same class for 100.00%" in shown and "ECE" in shown
    assert (base.parent / "models.config").is_file()
    run("serve-check", base, "--student", folder / "student.keras", "--batch-sizes", "2", "--repeats", "3")
    shown = capsys.readouterr().out
    assert "signature classify (tensorflow/serving/classify)" in shown
    assert "output entropy: float32 (any)" in shown
    assert "warm-up requests replayed: 4" in shown
    assert "latency at batch 2, ms: median" in shown
    card = json.loads((base / "1" / "distillation.json").read_text())
    assert card["command"].startswith("keras-distill ")


@pytest.mark.parametrize(
    ("kind", "name"),
    [("litert", "student.tflite"), ("onnx", "student.onnx")],
)
def test_command_edge_files(folder, tmp_path, capsys, kind, name):
    needs_to_write(kind)
    run("export", folder / "student.keras", "--to", kind, "--out", tmp_path, "--inputs", folder / "inputs.npz")
    assert (tmp_path / name).is_file()
    assert f"{kind}, " in capsys.readouterr().out


def test_command_int8(folder, tmp_path, capsys):
    needs_to_write("litert")
    options = ["--to", "litert", "--quantize", "int8", "--out", tmp_path]
    with pytest.raises(ValueError, match="expected --data or --inputs for --quantize int8, got neither"):
        run("export", folder / "student.keras", *options)
    run("export", folder / "student.keras", *options, "--inputs", folder / "inputs.npz", "--min-agreement", "0.9")
    assert "litert" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "onnx", "--labels", "a,b,c"], "export: expected options that --to onnx knows, got --labels"),
        (["--to", "saved_model", "--quantize", "int8"], "expected options that --to saved_model knows, got --quantize"),
        (["--to", "saved_model", "--min-agreement", "1"], "that --to saved_model knows, got --min-agreement"),
        (["--to", "saved_model", "--warmup", "1,x"], "expected numbers separated by commas for --warmup, got 1,x"),
        (
            ["--to", "saved_model", "--inputs", "{folder}/student.keras"],
            "plain arrays for --inputs, got .*student.keras with other content",
        ),
        (["--to", "saved_model", "--inputs", "{folder}/none.npz"], "expected an .npy or .npz file of plain arrays"),
    ],
)
def test_command_errors(folder, tmp_path, arguments, message):
    arguments = [argument.format(folder=folder) for argument in arguments]
    with pytest.raises(ValueError, match=message):
        run("export", folder / "student.keras", "--out", tmp_path / "out", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_pickled_inputs_are_refused(folder, tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"expected an \.npy or \.npz file of plain arrays for --inputs"):
        run("export", folder / "student.keras", "--to", "onnx", "--out", tmp_path, "--inputs", tmp_path / "x.npy")
