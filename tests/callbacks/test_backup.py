"""A backup is complete, verified, of this run, and written by one run at a time, despite kills and disk faults."""

import json
import os
import shutil
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation
from keras_distill.callbacks import Backup
from tests.models import batch, mlp
from tests.processes import Child

EPOCHS, STEPS = 3, 1
QUICK = not os.environ.get("KERAS_DISTILL_CI")  # every second crash point; in CI all
X, Y = batch(16)


def make(temperature=2.0, rate=0.05, teacher_seed=1):
    student = keras.Sequential([*mlp(4, seed=3).layers, keras.layers.Dropout(0.3, seed=4)])
    distiller = Distiller(mlp(3, 4, seed=teacher_seed), student, LogitsDistillation(temperature))
    distiller.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    return distiller


def data(first):
    numbers = tf.data.Dataset.range(first, EPOCHS)
    order = numbers.flat_map(
        lambda n: tf.data.Dataset.from_tensor_slices(
            tf.random.experimental.stateless_shuffle(tf.range(16), tf.stack([0, tf.cast(n, tf.int32)]))
        )
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    return order.map(lambda i: (tf.gather(X, i), tf.gather(Y, i))).batch(16).with_options(options)


def run(directory, *, seed=0, keep=False, stop=None, fits=None, **options):
    """Train or resume; return everything that must be the same after a resume."""
    keras.utils.set_random_seed(seed)
    same_run, identity = options.pop("same_run", True), options.pop("identity", None)
    backup = Backup(directory, delete_checkpoint=not keep, same_run=same_run, identity=identity)
    distiller = fits if fits is not None else make(**options)
    calls = [backup, *([keras.callbacks.LambdaCallback(on_epoch_begin=stop)] if stop else [])]
    history = distiller.fit(
        data(backup.epoch), epochs=EPOCHS, steps_per_epoch=STEPS, callbacks=calls, verbose=0
    )  # fmt: skip
    weights = [*distiller.get_weights(), *(v.numpy() for v in distiller.optimizer.variables)]
    return weights, history.history, history.epoch


class StopError(Exception):
    pass


def stop_at(epoch):
    def stop(now, logs=None):
        if now == epoch:
            raise StopError

    return stop


def interrupted(directory, epoch=2, **options):
    with pytest.raises(StopError):
        run(directory, stop=stop_at(epoch), **options)


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one[0], two[0], strict=True)) and one[1:] == two[1:]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return run(tmp_path_factory.mktemp("expected") / "backups")


def test_a_kill_before_any_file_operation_is_resumed_bit_for_bit(tmp_path, faults, expected):
    states = faults.crash_points(tmp_path / "backups", lambda: run(tmp_path / "backups"))
    assert len(states) > 20
    for state in states[::2] if QUICK else states:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Backup")  # no partial file has the name of a backup
            assert same(run(state), expected), sorted(state.rglob("*"))
        assert not list(state.iterdir())


@pytest.mark.parametrize("kind", ["disk full", "forbidden"])
def test_every_failing_operation_is_reported_and_resumed_bit_for_bit(tmp_path, faults, expected, kind):
    said = []

    def act(number):
        directory = tmp_path / str(number)
        try:
            assert same(run(directory), expected)  # an old backup could not be removed
        except OSError as problem:
            said.append(str(problem))

    count = faults.each_failure(kind, act, every=3)
    assert count > 10 and len(said) >= count // 3 - 3
    assert all(text.startswith("Backup: expected to write into") for text in said), said
    for number in range(0, count, 9):
        assert same(run(tmp_path / str(number)), expected)


def test_an_unreadable_backup_counts_as_damaged(tmp_path, faults, expected):
    interrupted(tmp_path / "backups")
    told = []

    def act(number):
        copy = tmp_path / str(number)
        shutil.copytree(tmp_path / "backups", copy)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert Backup(copy).epoch in (1, 2)
        told.extend(caught)

    assert faults.each_failure("unreadable", act) >= 2


def flipped(content, bit):
    content = bytearray(content)
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


def test_every_flipped_bit_of_the_metadata_is_detected_and_the_previous_backup_is_used(tmp_path, expected):
    interrupted(tmp_path / "backups")
    file = tmp_path / "backups" / "epoch-000002" / "backup.json"
    good = file.read_bytes()
    for bit in range(8 * len(good)):
        file.write_bytes(flipped(good, bit))
        ((_, facts, problem), *_) = Backup(tmp_path / "backups")._found()
        if problem is None:  # white space, or an equivalent JSON escape
            file.write_bytes(good)
            assert facts == next(iter(Backup(tmp_path / "backups")._found()))[1]
    file.write_bytes(flipped(good, 8 * (len(good) // 2)))
    assert Backup(tmp_path / "backups").epoch == 1
    with pytest.warns(UserWarning, match=r"Backup: damaged \(epoch-000002: .*\)\. Training resumes after epoch 1\."):
        assert same(run(tmp_path / "backups"), expected)


@pytest.mark.parametrize(
    "content", ["[]", "null", "{}", '{"epoch": 2}', '{"body": 3, "sha256": ""}', "[" * 100_000, ""]
)
def test_metadata_of_the_wrong_type_counts_as_damage(tmp_path, content):
    interrupted(tmp_path / "backups")
    (tmp_path / "backups" / "epoch-000002" / "backup.json").write_text(content)
    assert Backup(tmp_path / "backups").epoch == 1
    with pytest.warns(UserWarning, match=r"damaged \(epoch-000002"):
        run(tmp_path / "backups")


def test_a_backup_under_the_name_of_another_epoch_is_damage(tmp_path):
    interrupted(tmp_path / "backups")
    shutil.copytree(tmp_path / "backups" / "epoch-000001", tmp_path / "backups" / "epoch-000009")
    assert Backup(tmp_path / "backups").epoch == 2


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "another seed"),
        ({"temperature": 4.0}, "another model, term or setting"),
        ({"rate": 0.01}, "another optimizer, loss or metric"),
        ({"teacher_seed": 9}, "another model, term or setting, another teacher"),
        ({"identity": {"data": "other"}}, r"another identity=\.\.\."),
    ],
)
def test_the_backup_of_another_run_is_refused_and_left_alone(tmp_path, change, what):
    interrupted(tmp_path / "backups", identity={"data": "mine"})
    before = sorted(path for path in (tmp_path / "backups").rglob("*"))
    options = {"identity": {"data": "mine"}, **change}
    with pytest.raises(
        ValueError, match=rf"Backup: expected backups of this run in .*, got one with {what}\. Give each"
    ):
        run(tmp_path / "backups", **options)
    assert sorted(path for path in (tmp_path / "backups").rglob("*")) == before
    run(tmp_path / "backups", same_run=False, **options)


def test_the_same_objects_go_on_although_callbacks_changed_their_numbers(tmp_path, expected):
    """As in a notebook: fit is interrupted, and called again on the same distiller."""
    keras.utils.set_random_seed(0)
    distiller = make()
    interrupted(tmp_path / "backups", fits=distiller)
    distiller.optimizer.learning_rate = 0.01
    run(tmp_path / "backups", fits=distiller)


def test_a_backup_of_an_earlier_version_is_read_with_a_warning_that_its_run_is_unknown(tmp_path, expected):
    interrupted(tmp_path / "backups")
    for folder in (tmp_path / "backups").iterdir():
        body = json.loads(json.loads((folder / "backup.json").read_text())["body"])
        old = {"epoch": body["epoch"], "sha256": body["weights"], "history": body["history"]}
        (folder / "backup.json").write_text(json.dumps(old))
    with pytest.warns(UserWarning, match="does not name its run"):
        assert same(run(tmp_path / "backups"), expected)


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from keras_distill._files import Lock\n"
        "lock = Lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(100)"
    )
    (tmp_path / "backups").mkdir()
    holder = Child(code, tmp_path / "backups")
    try:
        holder.read_until("held\n")
        with pytest.raises(OSError, match=r"Backup: expected to be the only run in .*, got another active one\. Wait"):
            run(tmp_path / "backups")
    finally:
        holder.kill()
    time.sleep(0.01)
    run(tmp_path / "backups")


def test_an_identity_of_the_wrong_type_is_refused():
    with pytest.raises(ValueError, match=r"Backup: expected identity of text, numbers, .*, got ndarray\. Give data\.f"):
        Backup("directory", identity=X)
