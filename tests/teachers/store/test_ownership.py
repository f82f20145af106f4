"""Which files a writer may remove: across processes, containers and machines, and with every disk fault."""

import multiprocessing
import os
import struct
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import _files, teachers
from keras_distill.teachers.store import _files as files
from tests.faults import contents
from tests.processes import Child

X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])


def dataset(x=X):
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensor_slices(x).batch(4).with_options(options)


def label(teacher, path, **options):
    return teachers.label(teacher, dataset(), path, examples_per_shard=8, progress=False, **options)


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "store"
    label(teacher, path)
    return contents(path)


def test_a_live_writers_file_is_kept_whatever_its_process_id(teacher, tmp_path):
    """The writer of another container: its process is not in our /proc, its lock is in our kernel."""
    path = tmp_path / "store"
    label(teacher, path, shard=(1, 2))
    code = (
        "import sys, time; from pathlib import Path; from keras_distill import _files\n"
        "with _files.held(Path(sys.argv[1])):\n  print('held', flush=True); time.sleep(100)"
    )
    hidden = path / f".writing-000000-{_files.writer_name()}"
    writer = Child(code, hidden)
    try:
        writer.read_until("held\n")
        label(teacher, path, shard=(1, 2))
        assert hidden.exists()
    finally:
        writer.kill()
    label(teacher, path, shard=(1, 2))
    assert not hidden.exists()


def test_another_machines_file_is_a_leftover_only_after_a_period_without_writes(teacher, tmp_path):
    path = tmp_path / "store"
    path.mkdir()
    hidden = path / ".writing-000000-0123456789ab.ffff"  # another boot of another machine
    hidden.write_bytes(b"half")
    label(teacher, path)
    assert hidden.exists()
    long_ago = time.time() - _files.LEASE_SECONDS - 1
    os.utime(hidden, (long_ago, long_ago))
    label(teacher, path)
    assert not hidden.exists()


def test_two_writers_in_one_process_and_a_closed_handle(tmp_path):
    first = _files.Lock(tmp_path / ".lock")
    (tmp_path / ".lock").open("rb").close()  # POSIX record locks would end here
    with pytest.raises(BlockingIOError):
        _files.Lock(tmp_path / ".lock")
    with pytest.raises(BlockingIOError):
        _files.Lock(tmp_path / ".lock", 3)
    first.release()
    with _files.Lock(tmp_path / ".lock", 3), _files.Lock(tmp_path / ".lock", 4), pytest.raises(BlockingIOError):
        _files.Lock(tmp_path / ".lock", 4)


def test_a_kill_before_any_file_operation_is_recovered_from(teacher, tmp_path, faults, whole):
    path = tmp_path / "store"
    states = faults.crash_points(path, lambda: label(teacher, path))
    assert len(states) > 8
    for state in states:
        label(teacher, state)
        assert contents(state) == whole, sorted(state.iterdir())


@pytest.mark.parametrize("kind", ["disk full", "forbidden", "unreadable"])
def test_every_failing_operation_is_reported_and_labelling_continues(teacher, tmp_path, faults, whole, kind):
    def act(number):
        path = tmp_path / str(number)
        try:
            label(teacher, path)
            teachers.verify(path)
        except teachers.StoredTeacherError as problem:
            assert "injected fault" in str(problem) and ": expected " in str(problem)

    count = faults.each_failure(kind, act)
    assert count >= 4
    for number in range(count):
        label(teacher, tmp_path / str(number))
        assert contents(tmp_path / str(number)) == whole, number


def test_unwritable_paths_raise_a_clear_error(teacher, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(teachers.StoredTeacherError, match=r"label: expected to write into .*got \[Errno"):
            label(teacher, path)
    with pytest.raises(teachers.StoredTeacherError, match=r"expected a readable|no manifest"):
        teachers.Stored(tmp_path / "file" / "store")


def test_an_empty_first_batch_raises_a_clear_error(teacher, tmp_path):
    with pytest.raises(
        ValueError, match=r"label: expected at least one example in the first batch, got an empty batch"
    ):
        teachers.label(teacher, dataset(X[:4]).map(lambda x: x[:0]), tmp_path / "store", progress=False)


def test_a_process_forked_after_tensorflow_ran_is_refused_at_once(tmp_path):
    tf.constant(1.0) + 1.0
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=refused_when_forked, args=(results,))
    child.start()
    assert "one that was forked after TensorFlow had run" in results.get(timeout=60)
    child.join(60)


def refused_when_forked(results):
    from keras_distill.teachers.store._forks import refuse_after_fork

    try:
        refuse_after_fork("label")
        results.put("not refused")
    except ValueError as problem:
        results.put(str(problem))


# ------------------------------------------------------------------------------------- records with forged digests


def forged(path, change):
    """Change the bytes of shard 0 and recompute all digests: its name, and the manifest."""
    manifest = files.read_manifest(path)
    entry = manifest["shards"][0]
    old = path / entry["file"]
    content = change(bytearray(old.read_bytes()))
    old.write_bytes(bytes(content))
    entry["file"] = f"shard-000000-{files.digest_of(old)}.tfrecord"
    entry["bytes"] = len(content)
    old.rename(path / entry["file"])
    files.write_manifest(path, manifest)


def masked_crc(data):
    """TFRecord's checksum: CRC-32C, rotated and shifted."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 & -(crc & 1))
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def with_length(number, length):
    def change(content):
        position = 0
        for _ in range(number):
            position += 16 + struct.unpack_from("<Q", content, position)[0]
        header = struct.pack("<Q", length)
        content[position : position + 12] = header + struct.pack("<I", masked_crc(header))
        return content

    return change


def with_count(content):
    return content.replace(b'"count":8', b'"count":7')


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (with_length(1, 2**45), r"a record of 35184372088832 bytes instead of \d+"),
        (with_length(1, 2**63), r"a record of 9223372036854775808 bytes instead of"),
        (with_length(1, 0), "a record of 0 bytes instead of"),
        (with_length(0, 2**45), "readable shard"),
        (with_count, "its first record does not fit the manifest"),
        (lambda content: content + bytes(64), "which its records do not fill"),
        (lambda content: content[:-40], "which its records do not fill"),
    ],
    ids=["2**45 bytes", "2**63 bytes", "0 bytes", "header of 2**45", "another count", "more bytes", "fewer bytes"],
)
def test_signed_lengths_are_compared_before_tensorflow_reads_them(teacher, tmp_path, change, what):
    path = tmp_path / "store"
    label(teacher, path)
    teachers.Stored(path).check(dataset())
    forged(path, change)
    with pytest.raises(teachers.StoredTeacherError, match=what):
        teachers.Stored(path).check(dataset())
    assert teachers.verify(path)


def test_a_huge_shape_with_a_valid_digest_raises_a_clear_error(teacher, tmp_path):
    path = tmp_path / "store"
    label(teacher, path)
    manifest = files.read_manifest(path)
    manifest["outputs"][0]["shape"] = [2**38]
    manifest["row_bytes"] = 8 + 2 * 2**38
    files.write_manifest(path, manifest)
    with pytest.raises(teachers.StoredTeacherError, match=r"a record of \d+ bytes instead of \d{12}"):
        teachers.Stored(path)
    assert "of another teacher or other settings" in str(teachers.verify(path)[0])


def test_only_the_option_that_differs_is_named(teacher, tmp_path):
    label(teacher, tmp_path, top_k=2)
    with pytest.raises(teachers.StoredTeacherError, match=r"to fit this label\(\), got top_k=2 instead of 3\. Use"):
        label(teacher, tmp_path, top_k=3)
