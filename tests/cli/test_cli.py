"""The command: the files it writes, and a clear error with exit code 2 if it fails."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from keras_distill import data, report
from keras_distill.cli import main
from keras_distill.cli._demonstration import build_student, build_teacher

ROOT = pathlib.Path(__file__).parents[2]
WRITTEN = ["report.html", "report.json", "serving", "student.keras"]


def command(*arguments, **kwargs):
    return [sys.executable, "-m", "keras_distill", *arguments], {"cwd": ROOT, "text": True, **kwargs}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A very short demo, for tests that ignore its metrics, in a folder with an older demo and other files."""
    out = tmp_path_factory.mktemp("demo")
    (out / "serving" / "digits" / "1").mkdir(parents=True)
    (out / "serving" / "digits" / "1" / "old").touch()
    (out / "serving" / "another").mkdir()
    (out / "report.html").write_text("old")
    (out / "mine.txt").write_text("mine")
    assert main(["demo", "--epochs", "2", "--seeds", "1", "--out", str(out)]) == 0
    return out


def test_the_demo_replaces_an_older_one_and_nothing_else(short):
    assert sorted(os.listdir(short)) == sorted([*WRITTEN, "mine.txt"])
    assert sorted(os.listdir(short / "serving")) == ["another", "digits"]
    assert os.listdir(short / "serving" / "digits") == ["1"]
    assert (short / "serving" / "digits" / "1" / "saved_model.pb").is_file()
    assert not (short / "serving" / "digits" / "1" / "old").exists()
    assert (short / "report.html").read_text() != "old"


def test_the_saved_student_is_the_one_in_the_report(short):
    written = report.Report.from_json((short / "report.json").read_text())
    student = keras.models.load_model(short / "student.keras")
    test = data.load("digits").test
    answers = student.predict(test.inputs, verbose=0).argmax(-1)
    assert written["student distilled"].accuracy.values == (np.mean(answers == test.labels),)
    assert written["student distilled"].num_parameters == student.count_params() == 64 * 16 + 16 + 16 * 10 + 10
    np.testing.assert_array_equal(written["student distilled"].confusion.sum(axis=1), np.bincount(test.labels))


def test_the_served_student_is_the_saved_one(short):
    student = keras.models.load_model(short / "student.keras")
    served = tf.saved_model.load(str(short / "serving" / "digits" / "1")).signatures["serving_default"]
    images = data.load("digits").test.inputs[:20]
    logits = student.predict(images, verbose=0)
    outputs = served(tf.constant(images))
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-5)
    np.testing.assert_array_equal(outputs["classes"], logits.argmax(-1))


def test_the_report_says_how_it_was_made(short):
    written = json.loads((short / "report.json").read_text())
    assert written["settings"]["epochs"] == 2 and written["settings"]["seeds"] == 1
    assert data.load("digits").fingerprint[:16] in written["settings"]["data"]
    assert any("only 100 have a label" in note for note in written["notes"])
    runs = {name: [len(run["validation NLL"]) for run in each] for name, each in written["histories"].items()}
    assert runs == {"teacher": [2], "student alone": [2], "student distilled": [2]}
    assert "digits" in (short / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "digit"], "data.load: expected the name of a data set (nearest: 'digits'"),
        (["--dataset", "mnist"], "data.load('mnist'): expected a prepared copy"),
        (["--epochs", "0"], "expected epochs to be an integer >= 1, got 0."),
        (["--seeds", "0"], "expected seeds to be an integer >= 1, got 0."),
    ],
)
def test_errors_are_raised_before_training_and_leave_no_files(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_DISTILL_DATA", str(tmp_path / "no_data"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no_tfds"))
    assert main(["demo", *arguments, "--out", str(tmp_path / "a" / "b")]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"keras-distill demo: {sentence}")
    assert shown.err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_an_output_folder_that_cannot_be_written_is_found_before_training(tmp_path, capsys):
    (tmp_path / "file").touch()
    start = time.monotonic()
    assert main(["demo", "--out", str(tmp_path / "file" / "out")]) == 2
    assert time.monotonic() - start < 5
    shown = capsys.readouterr()
    assert shown.out == "" and "expected a folder that can be written to" in shown.err and "--out" in shown.err


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root; the test above covers root")
def test_a_read_only_folder_is_refused(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "expected a folder that can be written to" in capsys.readouterr().err


def test_text_is_no_data_set_for_the_demo(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "files" / "sst2"
    folder.mkdir(parents=True)
    for name in ("train", "dev", "test"):
        (folder / f"{name}.tsv").write_text("a fine film\t1\n")
    monkeypatch.setenv("KERAS_DISTILL_DATA", str(tmp_path / "files"))
    assert main(["demo", "--dataset", "sst2", "--out", str(tmp_path / "out")]) == 2
    assert "expected a data set of images to train on, got 'sst2'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_command_explains_itself(capsys):
    for words in ("demo", "label", "store verify", "store repair", "export", "serve-check"):
        with pytest.raises(SystemExit) as end:
            main([*words.split(), "--help"])
        assert end.value.code == 0
        assert f"usage: keras-distill {words}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["distil"], ["demo", "--epochs", "many"], ["demo", "--seed", "3"]])
def test_a_mistyped_command_exits_with_2_and_the_usage(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: keras-distill" in capsys.readouterr().err


@pytest.mark.parametrize(("shape", "units"), [((8, 8, 1), 16), ((28, 28, 1), 32), ((32, 32, 3), None)])
def test_the_demos_student_is_small(shape, units):
    student, teacher = build_student(shape, 10, units), build_teacher(shape, 10)
    assert student.output_shape == teacher.output_shape == (None, 10)
    assert student.count_params() < teacher.count_params() / 3  # on photographs it had more


def test_the_demos_student_passes_the_check_that_serves_it(short, capsys):
    assert main(["serve-check", str(short / "serving" / "digits"), "--student", str(short / "student.keras")]) == 0
    assert "serving_default" in capsys.readouterr().out


def test_the_demos_saved_model_brings_warm_up_requests_and_a_card(short):
    version = short / "serving" / "digits" / "1"
    requests = list(tf.data.TFRecordDataset(str(version / "assets.extra" / "tf_serving_warmup_requests")))
    sizes = []
    for each in requests:
        log = prediction_log_pb2.PredictionLog.FromString(each.numpy())
        sizes.append(tf.make_ndarray(log.predict_log.request.inputs["image"]).shape)
    assert sizes == [(1, 8, 8, 1), (32, 8, 8, 1)]
    card = json.loads((version / "distillation.json").read_text())
    written = report.Report.from_json((short / "report.json").read_text())
    assert card["command"] == "keras-distill demo --dataset digits --epochs 2 --seeds 1"
    assert card["data"]["fingerprint"] == data.load("digits").fingerprint
    assert card["metrics"]["accuracy"]["values"] == list(written["student distilled"].accuracy.values)
    assert card["teacher"]["num_parameters"] == written["teacher"].num_parameters
    assert card["distillation"]["terms"][0]["class_name"] == "LogitsDistillation"
    assert "2.0" in json.dumps(card["distillation"]["terms"]) and (version / "MODEL_CARD.md").is_file()


@pytest.mark.slow
def test_an_interrupted_run_leaves_existing_files_unchanged(tmp_path):
    (tmp_path / "report.html").write_text("the one before")
    line, kwargs = command("demo", "--epochs", "10000", "--out", str(tmp_path))
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".unfinished-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(3)  # in the middle of a training
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "keras-distill demo: interrupted." in errors
    assert os.listdir(tmp_path) == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "the one before"


@pytest.mark.slow
def test_the_distilled_student_beats_the_student_alone_as_in_the_readme(tmp_path):
    out = tmp_path / "new" / "out"
    assert main(["demo", "--epochs", "12", "--seeds", "3", "--out", str(out)]) == 0  # the README's run takes 40
    assert sorted(os.listdir(out)) == WRITTEN
    written = report.Report.from_json((out / "report.json").read_text())
    alone, distilled = written["student alone"], written["student distilled"]
    assert distilled.accuracy.mean > alone.accuracy.mean
    assert distilled.negative_log_likelihood.mean < alone.negative_log_likelihood.mean
    assert distilled.brier_score.mean < alone.brier_score.mean
    assert distilled.agreement.mean > alone.agreement.mean
    assert written["teacher"].accuracy.mean > distilled.accuracy.mean
    assert len(alone.accuracy.values) == 3
    assert "the student gains" in written.notes[0]


def test_help_and_version_are_quick_and_import_no_tensorflow():
    for arguments, shown in (("--help", "usage: keras-distill"), ("--version", "keras-distill 0.")):
        run, options = command(arguments)
        run[1:1] = ["-X", "importtime"]
        done = subprocess.run(run, capture_output=True, **options)
        assert done.returncode == 0 and done.stdout.startswith(shown)
        assert "keras_distill.cli" in done.stderr
        assert not any(f"| {name}" in done.stderr.replace("|   ", "| ") for name in ("tensorflow", "keras\n", "numpy"))


def test_the_command_prints_an_error_as_one_line_on_stderr_without_library_messages(tmp_path):
    run, options = command("label", "--teacher", str(tmp_path / "t.keras"), "--data", "digits", "--out", str(tmp_path))
    done = subprocess.run(run, capture_output=True, **options)
    expected = f"keras-distill label: expected a .keras file, got nothing at {tmp_path / 't.keras'}.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_an_export_is_compared_on_data_without_a_training_split(monkeypatch, tmp_path, capsys):
    examples = data.Examples(np.random.default_rng(0).normal(size=(20, 4)).astype("float32"), np.arange(20) % 3)
    only = data.Data("only_test", {"test": examples}, ("a", "b", "c"), "made up")
    monkeypatch.setattr(data, "load", lambda name: only)
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(tmp_path / "s.keras")
    arguments = ["export", str(tmp_path / "s.keras"), "--data", "only_test", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--to", "saved_model"]) == 0, capsys.readouterr().err
    assert "compared on 20 examples" in capsys.readouterr().out
    assert main([*arguments, "--to", "litert", "--quantize", "int8"]) == 2
    assert "got only_test, which has no training split" in capsys.readouterr().err
