"""Killed writers, full disks, damaged files, wrong datasets: real processes and real files."""

import os
import re
import signal
import tempfile
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill
from keras_distill import teachers
from keras_distill.terms import LogitsDistillation
from tests.processes import Child, wait_for

COMMON = """
import sys, time
import keras, numpy as np, tensorflow as tf
from keras_distill import teachers

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.5),
                          keras.layers.Dense(5)])
teacher = teachers.MonteCarloDropout(model, num_samples=2)
X = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")

def dataset(seconds=0.0, batch=8):
    def slowly(x):
        return tf.py_function(lambda t: (time.sleep(seconds), t)[1], [x], tf.float32)
    data = tf.data.Dataset.from_tensor_slices(X).batch(batch)
    if seconds:
        data = data.map(lambda x: tf.ensure_shape(slowly(x), (None, 4)))
    return data

def label(path, seconds=0.0, **options):
    return teachers.label(teacher, dataset(seconds), path, examples_per_shard=16, progress=False, **options)
"""
here: dict = {}
exec(COMMON, here)  # the same teacher and data in this process
X = here["X"]


def start(code, *arguments, **options):
    return Child(COMMON + textwrap.dedent(code), *arguments, **options)


def shards(path):
    return sorted(Path(path).glob("shard-*.tfrecord"))


def contents(path):
    return {file.name: file.read_bytes() for file in Path(path).iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "store"
    here["label"](path)
    return path


@pytest.fixture
def store(uninterrupted, tmp_path):
    path = tmp_path / "store"
    path.mkdir()
    for name, content in contents(uninterrupted).items():
        (path / name).write_bytes(content)
    return path


# ---------------------------------------------------------------------------------------------- killed


def test_a_killed_and_restarted_run_ends_with_the_same_bytes_and_repeats_nothing(tmp_path, uninterrupted):
    path = tmp_path / "store"
    for finished in (2, 6):
        process = start("label(sys.argv[1], seconds=0.05)", path)
        wait_for(lambda finished=finished: len(shards(path)) >= finished)
        assert process.kill() == -signal.SIGKILL
        with pytest.raises(teachers.StoredTeacherError, match=r"complete store .* finished shards. Run the same label"):
            teachers.Stored(path)
    before = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in shards(path)}
    (path / ".writing-000009-999999999").write_bytes(b"half a shard")
    here["label"](path)
    after = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in shards(path)}
    assert len(before) >= 6 and before.items() <= after.items()
    assert contents(path) == contents(uninterrupted)


def test_two_writers_on_one_path_are_refused_and_the_first_finishes(tmp_path, uninterrupted):
    path = tmp_path / "store"
    process = start("label(sys.argv[1], seconds=0.1)", path)
    wait_for(lambda: len(shards(path)) >= 1)
    for part in ((0, 1), (1, 2)):
        with pytest.raises(teachers.StoredTeacherError, match=r"only writer of .*, got another active writer"):
            here["label"](path, shard=part)
    assert process.wait() == 0, process.read()
    assert contents(path) == contents(uninterrupted)


def test_shards_by_parallel_processes_make_one_store(tmp_path, uninterrupted):
    path = tmp_path / "store"
    both = [start("label(sys.argv[1], shard=(int(sys.argv[2]), 2))", path, i) for i in range(2)]
    for process in both:
        assert process.wait() == 0, process.read()
    here["label"](path, shard=(0, 2))  # the last one finds everything complete
    assert contents(path) == contents(uninterrupted)


def test_a_full_disk_is_a_clear_error_and_finished_shards_are_kept(tmp_path, uninterrupted):
    path = tmp_path / "store"
    here["label"](path, shard=(0, 4))
    kept = shards(path)
    code = """
    import resource
    label_now = teachers.label
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))  # the system refuses to write more into one file
    try:
        label(sys.argv[1])
    except teachers.StoredTeacherError as problem:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print("REFUSED", problem)
    """
    process = start(code, path)
    process.wait()
    output = process.read()
    assert "REFUSED label: expected to write shard 1 in" in output, output
    assert "The finished shards are kept: free disk space and run the same label() again." in output
    assert shards(path) == kept and not list(path.glob(".writing-*"))
    here["label"](path)
    assert contents(path) == contents(uninterrupted)


# ---------------------------------------------------------------------------------------------- damaged


def flip(file, position):
    raw = bytearray(file.read_bytes())
    raw[position] ^= 0x10
    file.write_bytes(bytes(raw))


def damage_flipped(path):
    flip(shards(path)[3], -20)


def damage_truncated(path):
    file = shards(path)[3]
    file.write_bytes(file.read_bytes()[:-100])


def damage_missing(path):
    shards(path)[3].unlink()


def damage_replaced(path):
    shards(path)[3].write_bytes(shards(path)[4].read_bytes())


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (damage_flipped, "do not match its digest"),
        (damage_truncated, "bytes instead of"),
        (damage_missing, "missing"),
        (damage_replaced, "do not match its digest"),
    ],
)
def test_damage_is_found_named_and_repaired_alone(store, uninterrupted, damage, what):
    damage(store)
    problems = teachers.verify(store)
    assert [problem.shard for problem in problems] == [3] and what in str(problems[0])
    with pytest.raises(teachers.StoredTeacherError):
        teachers.Stored(store).check(here["dataset"]())
    untouched = {file: file.stat().st_mtime_ns for file in shards(store) if "shard-000003" not in file.name}
    with pytest.raises(teachers.StoredTeacherError, match="one of another teacher"):
        teachers.repair(here["model"], here["dataset"](), store, progress=False)
    repaired = teachers.repair(here["teacher"], here["dataset"](batch=40), store, progress=False)
    assert teachers.verify(store) == [] and repaired.num_examples == 200
    assert untouched.items() <= {file: file.stat().st_mtime_ns for file in shards(store)}.items()
    assert contents(store) == contents(uninterrupted)


def test_an_unreadable_shard_is_named_and_the_others_are_kept(uninterrupted):
    """Read as a user without permission for one file: root, who may run the tests, can read everything."""
    code = """
    import os
    path = sys.argv[1]
    for again in range(2):  # the first time nothing is wrong, and lazy imports are done
        print("FOUND", [str(problem) for problem in teachers.verify(path)])
        try:
            teachers.Stored(path).check(dataset())
            print("READ")
        except teachers.StoredTeacherError as problem:
            print("REFUSED", problem)
        if not again:
            os.chmod(sys.argv[2], 0)
            if os.geteuid() == 0:
                os.seteuid(65534)
    """
    with tempfile.TemporaryDirectory() as folder:  # unlike pytest's, a folder that other users can access
        for name, content in contents(uninterrupted).items():
            (Path(folder) / name).write_bytes(content)
        os.chmod(folder, 0o755)
        bad = shards(folder)[3]
        process = start(code, folder, bad)
        process.wait()
        output = process.read()
        assert re.search(r"FOUND \[\]\nREAD\n", output), output
        assert re.search(rf"FOUND \[.{bad.name}: unreadable: .*Permission denied.*\]", output), output
        refused = (
            rf"REFUSED Stored: expected readable shards in {folder}, got {bad}; Permission denied\. Run keras-distill"
        )
        assert re.search(refused, output), output
        assert len(shards(folder)) == len(shards(uninterrupted))


def test_a_flipped_byte_stops_training_and_names_the_store(store):
    stored = teachers.Stored(store)
    data = stored.attach(here["dataset"]())
    damage_flipped(store)
    with pytest.raises((teachers.StoredTeacherError, tf.errors.DataLossError)) as caught:
        for _ in data:
            pass
    problem = stored.translate(caught.value)
    assert isinstance(problem, teachers.StoredTeacherError)
    assert str(store) in str(problem) and "keras-distill store verify" in str(problem)


def test_a_damaged_manifest_is_refused(store):
    manifest = store / "manifest.json"
    text = manifest.read_text()
    for content, message in [
        (text.replace('"count": 200', '"count": 201'), "does not match its digest"),
        (text[:-40], "expected a readable"),
        (text.replace('"format_version": 1', '"format_version": 2'), "expected format version 1, got 2"),
        ("{}", "got another JSON file"),
    ]:
        manifest.write_text(content)
        with pytest.raises(teachers.StoredTeacherError, match=message):
            teachers.Stored(store)
        with pytest.raises(teachers.StoredTeacherError, match=message):
            here["label"](store)
    with pytest.raises(teachers.StoredTeacherError, match=r"got no manifest.json. Write one with teachers.label"):
        teachers.Stored(store / "nowhere")


def test_unexpected_files_are_named(store):
    (store / f"shard-000077-{'0' * 32}.tfrecord").write_bytes(b"")
    (problem,) = teachers.verify(store)
    assert "belongs to no shard" in str(problem)


def test_an_unfinished_store_is_reported_as_such(tmp_path):
    here["label"](tmp_path, shard=(0, 2))
    (problem,) = teachers.verify(tmp_path)
    assert "incomplete: 7 finished shards" in str(problem)


# ---------------------------------------------------------------------------------------------- another dataset


def changed_order(x):
    return np.concatenate([x[:100], x[100:][::-1]])


def changed_example(x):
    x = x.copy()
    x[113, 2] = np.nextafter(x[113, 2], np.float32(10))
    return x


def without_one(x):
    return np.delete(x, 42, axis=0)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("change", "first"),
    [
        (changed_order, "example 100 to be the one that was labelled"),
        (changed_example, "example 113 to be the one that was labelled"),
        (without_one, "example 42 to be the one that was labelled"),
        (lambda x: x[:160], "first missing one is number (160|between 141 and 160)"),
        (lambda x: x[:163], "first missing one is number (163|between 161 and 180)"),
        (lambda x: np.concatenate([x, x[:1]]), "first surplus one is number 200"),
        (lambda x: np.concatenate([x, x[:20]]), "first surplus one is number 200"),
        (lambda x: x + 0.5, "example 0 to be the one that was labelled"),
        (lambda x: x.astype("float64"), "example 0 to be the one that was labelled"),
    ],
)
def test_the_first_example_that_differs_is_named(uninterrupted, change, first, known):
    data = tf.data.Dataset.from_tensor_slices(change(X)).batch(20)
    data = data if known else data.filter(lambda x: True)
    with pytest.raises(teachers.StoredTeacherError, match=first):
        teachers.Stored(uninterrupted).check(data)


def test_infinite_empty_and_unsuitable_datasets_are_refused(uninterrupted):
    stored = teachers.Stored(uninterrupted)
    whole = here["dataset"]()
    for data, message in [
        (whole.repeat(), r"got an endless one. Put .repeat\(\) after attach"),
        (whole.take(0), "expected 200 examples, got an empty dataset"),
        (whole.map(lambda x: x[:, :3]), r"inputs of shape \[\(4,\)\] per example"),
        (X, "a tf.data.Dataset, got ndarray"),
    ]:
        with pytest.raises(teachers.StoredTeacherError, match=message):
            stored.attach(data)


def test_fit_on_plain_data_and_fit_on_wrong_data_stop_with_an_error(uninterrupted):
    stored = teachers.Stored(uninterrupted)
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    distiller = keras_distill.Distiller(stored, student, LogitsDistillation(), student_loss_weight=0.0)
    distiller.compile("sgd")
    with pytest.raises(teachers.StoredTeacherError, match=r"Train on stored\.attach"):
        distiller.fit(here["dataset"](), verbose=0)
    distiller.fit(stored.attach(here["dataset"]()), verbose=0)
    wrong = stored.attach(tf.data.Dataset.from_tensor_slices(changed_example(X)).batch(20))
    evaluated = distiller.evaluate(stored.attach(here["dataset"]()), verbose=0, return_dict=True)
    assert evaluated["loss"] == pytest.approx(evaluated["distillation_loss"]) and evaluated["loss"] > 0
    for use in (distiller.fit, distiller.evaluate):
        with pytest.raises(teachers.StoredTeacherError, match="example 113 to be the one that was labelled"):
            use(wrong, verbose=0)


def test_a_store_behind_a_scaler_raises_the_same_error(uninterrupted):
    stored = teachers.Stored(uninterrupted)
    wrong = stored.attach(tf.data.Dataset.from_tensor_slices(changed_example(X)).batch(20))
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    teacher = teachers.Calibrated(stored, keras.layers.Rescaling(0.5))
    distiller = keras_distill.Distiller(teacher, student, LogitsDistillation(), student_loss_weight=0.0)
    distiller.compile("sgd")
    with pytest.raises(teachers.StoredTeacherError, match="example 113 to be the one that was labelled"):
        distiller.fit(wrong, verbose=0)
    with pytest.raises(ValueError, match="Preprocessed: expected a teacher that runs a model, got a stored one"):
        teachers.Preprocessed(teacher, fn=keras.layers.Identity())
